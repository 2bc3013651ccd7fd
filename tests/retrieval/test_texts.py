"""Texts of every kind of file, and from there to an answer."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from contrastive.encoders import named
from contrastive.retrieval import (
    Embeddings,
    Index,
    build_index,
    embed,
    embed_named,
    read_texts,
    search_index,
    write_embeddings,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Counts(nn.Module):
    """Stands in for a model: how often each letter occurs."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(26))
        self.dim, self.config = 26, {"name": name, "max_length": 256, "prompt": ""}

    def forward(self, texts: list[str]) -> Tensor:
        return torch.tensor([[text.count(c) for c in LETTERS] for text in texts]) * self.weight


TEXTS = ["aab", "zzz", "abc, or so", "b", "a longer text of many letters"]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The same texts in every kind of file."""
    table = pa.table({"sku": [f"s{i}" for i in range(5)], "title": TEXTS, "price": [3, 1, 4, 1, 5]})
    pq.write_table(table, tmp_path / "t.parquet")
    for suffix, mark in ((".csv", ","), (".tsv", "\t")):
        lines = [mark.join(["sku", "title", "price"])]
        lines += [mark.join([f"s{i}", f'"{TEXTS[i]}"', str(p)]) for i, p in enumerate((3, 1, 4, 1, 5))]
        (tmp_path / f"t{suffix}").write_text("\n".join(lines) + "\n")
    (tmp_path / "t.txt").write_text("\n".join(TEXTS) + "\n")
    return {suffix: tmp_path / f"t.{suffix}" for suffix in ("parquet", "csv", "tsv", "txt")}


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv"])
def test_tables_give_texts_ids_and_columns(files: dict[str, Path], kind: str) -> None:
    texts = read_texts(files[kind], "title", "sku")
    assert list(texts) == texts[:] == TEXTS
    assert (texts[2], texts[1:4], texts[4:1], len(texts)) == (TEXTS[2], TEXTS[1:4], [], 5)
    assert texts.ids.tolist() == ["s0", "s1", "s2", "s3", "s4"]
    assert texts.columns.to_pydict() == {"title": TEXTS, "price": [3, 1, 4, 1, 5]}
    numbered = read_texts(files[kind], "title")
    assert numbered.ids is None
    assert numbered.columns.column_names == ["sku", "title", "price"]
    assert read_texts(files[kind], "title", "price").ids.dtype == int
    assert numbered.fingerprint != texts.fingerprint


def test_lines(files: dict[str, Path]) -> None:
    texts = read_texts(files["txt"])
    assert list(texts) == TEXTS
    assert texts.columns.column_names == ["text"]


def test_texts_are_embedded_in_order(files: dict[str, Path], tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def encoder(texts: list[str]) -> Tensor:
        seen.append(texts)
        return Counts("")(texts).float()

    texts = read_texts(files["csv"], "title", "sku")
    found = embed(
        encoder, texts, tmp_path / "e", ids=texts.ids, metadata=texts.columns, shard_size=3, batch_size=2
    )
    assert [[len(text) for text in batch] for batch in seen] == [[10, 3], [3], [29, 1]]  # long ones together
    rows = [row for vectors, _, _ in Embeddings(tmp_path / "e").batches() for row in vectors.tolist()]
    assert rows == Counts("")(TEXTS).tolist()
    assert found.manifest["columns"] == ["title", "price"]
    assert Index.from_embeddings(tmp_path / "e").columns(["s3"])["title"].to_pylist() == ["b"]
    with pytest.raises(ValueError, match="thumbnails are of images"):
        embed(encoder, TEXTS, tmp_path / "f", thumbnails=True)
    with pytest.raises(ValueError, match=r"gave shape \(5, 1, 26\) for 5 inputs"):
        embed(lambda texts: encoder(texts)[:, None], TEXTS, tmp_path / "f")
    with pytest.raises(ValueError, match="NaN or infinite"):
        embed(lambda texts: encoder(texts) / 0, TEXTS, tmp_path / "g")


def test_from_a_file_to_an_answer(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named, "TextEncoder", Counts)
    model = "sentence-transformers/counts"
    found = write_embeddings(
        tmp_path / "e", encoder=model, source=str(files["csv"]), column="title", id_column="sku", device="cpu"
    )
    assert found.manifest["encoder"] == model
    assert found.manifest["preprocessing"] == {"max_length": 256, "prompt": ""}
    build_index(tmp_path / "e", tmp_path / "index")
    rows = search_index(tmp_path / "index", text="ab aa", encoder=model, k=2)
    assert [(row["id"], row["title"], row["price"]) for row in rows] == [
        ("s0", "aab", 3),
        ("s2", TEXTS[2], 4),
    ]
    assert len(search_index(tmp_path / "index", id="s0", k=9)) == 4
    other = embed_named(model, str(files["txt"]), tmp_path / "e2", device="cpu")
    assert other.manifest["fingerprint"] == found.manifest["fingerprint"]
    with pytest.raises(ValueError, match="takes a text; give one"):
        search_index(tmp_path / "index", image="cat.png", encoder=model)
    with pytest.raises(ValueError, match="give one of the two"):
        embed_named(model, str(files["csv"]), tmp_path / "g", column="title", id_column="sku", id_prefix="a-")
    named_rows = embed_named(model, str(files["txt"]), tmp_path / "h", id_prefix="line-", device="cpu")
    assert [ids.tolist() for _, ids, _ in named_rows.batches()] == [[f"line-{i}" for i in range(5)]]
    with pytest.raises(ValueError, match="was begun with data"):
        embed_named(model, str(files["txt"]), tmp_path / "e", device="cpu")


def test_images_by_name_and_the_index_that_is_asked_with_the_same_name(tmp_path: Path) -> None:
    options = {"encoder": "timm/resnet10t", "pretrained": False, "image_size": 32}
    found = write_embeddings(tmp_path / "e", source="digits", device="cpu", batch_size=64, **options)
    assert (len(found), found.manifest["columns"]) == (359, ["label", "class", "thumbnail"])  # the test set
    assert found.manifest["preprocessing"]["resize"] == 32
    build_index(tmp_path / "e", tmp_path / "index")
    picture = tmp_path / "digit.png"
    picture.write_bytes(Index.load(tmp_path / "index").columns([17])["thumbnail"][0].as_py())
    row = search_index(tmp_path / "index", image=str(picture), k=1, **options)[0]
    assert (row["id"], round(row["score"], 4)) == (17, 1)
    with pytest.raises(ValueError, match="queries come from"):
        search_index(tmp_path / "index", image=str(picture), **options | {"encoder": "timm/resnet14t"})
    with pytest.raises(ValueError, match="takes an image; give one"):
        search_index(tmp_path / "index", text="seven", **options)
    folder = tmp_path / "photos"
    folder.mkdir()
    picture.rename(folder / "digit.png")
    assert (
        len(write_embeddings(tmp_path / "f", source=str(folder), device="cpu", **options)) == 1
    )  # no test set


def test_several_indexes_are_searched(tmp_path: Path) -> None:
    rows = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    for name, part in (("a", slice(0, 20)), ("b", slice(20, 30))):
        Index.build(rows[part], range(30)[part], metadata={"n": range(30)[part]}).save(tmp_path / name)
    Index.build(rows, metadata={"n": range(30)}).save(tmp_path / "all")
    apart = search_index([str(tmp_path / "a"), str(tmp_path / "b")], id="25", k=7)
    assert apart == search_index(tmp_path / "all", id="25", k=7)
    with pytest.raises(ValueError, match=r"no item 99 among the 30 of .*a, .*b"):
        search_index([str(tmp_path / "a"), str(tmp_path / "b")], id="99")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give either run .* or encoder"),
        ({"run": "r", "encoder": "timm/resnet18"}, "give either run"),
        ({"encoder": "timm/resnet18"}, "give source"),
        ({"run": "r", "pretrained": False}, "are options of encoder"),
        ({"run": "r", "id_column": "sku"}, "are options of encoder"),
    ],
)
def test_what_cannot_be_embedded(options: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        write_embeddings(tmp_path / "e", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give one of id, image and text"),
        ({"id": "1", "text": "a"}, "give one of id, image and text"),
        ({"image": "cat.png"}, "an image needs either run"),
        ({"text": "a", "run": "r"}, "a text needs encoder"),
    ],
)
def test_what_cannot_be_searched_for(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        search_index("index", **options)


def test_files_that_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    def written(name: str, content: str) -> Path:
        (tmp_path / name).write_text(content)
        return tmp_path / name

    for path, options, words in (
        (files["csv"], {}, r"has no column 'text'; there are: sku, title, price"),
        (files["csv"], {"column": "title", "id_column": "key"}, "has no column 'key'"),
        (files["parquet"], {"column": "price"}, "'price' of .* holds int64; give one of strings"),
        (written("gap.txt", "a\n\nb\n"), {}, "1 of 3 texts of .* are empty, the first in row 1"),
        (written("none.txt", ""), {}, "0 of 0 texts of .* are empty; give some"),
        (written("x.csv", "id,text\n1,a\n"), {}, "has a column 'id'.*or name it as id_column"),
        (written("y.csv", "key,text\n1,a\n,b\n"), {"id_column": "key"}, "1 ids in 'key' of .* are missing"),
        (written("z.csv", "a,text\n1\n"), {}, "cannot be read"),
        (written("z.json", "[]"), {}, "is of a kind that is not read"),
    ):
        with pytest.raises(ValueError, match=words):
            read_texts(path, **options)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_texts(tmp_path / "nothing.txt")
