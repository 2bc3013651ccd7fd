"""From a folder of images to neighbours that are called by their files."""

import re

import numpy as np
import pytest
import yaml
from PIL import Image

from contrastive import ConvEncoder
from contrastive.encoders import save_encoder
from contrastive.errors import InvalidValue
from contrastive.evaluation.report import write_report
from contrastive.retrieval import build_index, embed_run, search_index, write_embeddings

FILES = [
    f"{split}/{kind}/{number}.png"
    for split, count in (("train", 6), ("test", 3))
    for kind in ("a", "b")
    for number in range(count)
]
TESTED = [name for name in FILES if name.startswith("test")]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of a folder of images, in the folder that holds both."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(FILES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    save_encoder(ConvEncoder(in_channels=3, widths=(4, 8), blocks=(0, 0)), "run/encoder")
    settings = {"source": "photos", "size": 8, "num_workers": 0}
    data = {"class_path": "contrastive.data.ImageData", "init_args": settings}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    return tmp_path / "run"


def table(embeddings):
    ids, columns = [], []
    for _, some, rows in embeddings.batches():
        ids += some.tolist()
        columns += rows.drop_columns("thumbnail").to_pylist()
    return ids, columns


def test_a_column_of_paths(run):
    for split, expected in (("test", TESTED), ("train", [n for n in FILES if n not in TESTED])):
        found = embed_run(run, split, split=split, device="cpu", shard_size=4)
        assert found.manifest["columns"] == ["label", "class", "path", "thumbnail"]
        ids, columns = table(found)
        assert ids == list(range(len(expected)))
        assert [row["path"] for row in columns] == expected
        assert [row["class"] for row in columns] == [name.split("/")[1] for name in expected]


def test_ids_by_path_reach_the_search(run):
    found = write_embeddings("e", run=run, ids="path", id_prefix="p:", device="cpu", thumbnails=False)
    assert [ids.tolist() for _, ids, _ in found.batches()] == [[f"p:{name}" for name in TESTED]]
    build_index("e", "index")
    near = search_index("index", id=f"p:{TESTED[2]}", k=9)
    assert sorted(row["path"] for row in near) == sorted({*TESTED} - {TESTED[2]})
    assert all(row["id"] == f"p:{row['path']}" for row in near)
    [best] = search_index("index", image=f"photos/{TESTED[4]}", run=run, k=1)
    assert best["path"] == TESTED[4]
    with pytest.raises(InvalidValue, match="was begun with ids 'path', this run has None"):
        write_embeddings("e", run=run, id_prefix="p:", device="cpu", thumbnails=False)


def test_renamed_files_are_no_continuation(run, tmp_path):
    embed_run(run, "e", device="cpu")
    (tmp_path / "photos" / TESTED[-1]).rename(tmp_path / "photos" / "test/b/9.png")
    with pytest.raises(InvalidValue, match="was begun with paths"):
        embed_run(run, "e", device="cpu")


def test_names_that_cannot_be_ids(run, tmp_path):
    (tmp_path / "list.csv").write_text("photos/train/a/0.png\nphotos/test/a/0.png\nphotos/train/a/0.png\n")
    with pytest.raises(InvalidValue, match=r"'photos/train/a/0.png' stands 2 times"):
        embed_run(run, "e", source="list.csv", ids="path", device="cpu")
    assert [row["path"] for row in table(embed_run(run, "e", source="list.csv", device="cpu"))[1]][1] == (
        "photos/test/a/0.png"
    )
    with pytest.raises(InvalidValue, match="in no files that have a name; ids='row' numbers"):
        embed_run(run, "f", source="digits", ids="path", device="cpu")
    assert "path" not in embed_run(run, "f", source="digits", device="cpu").manifest["columns"]
    with pytest.raises(InvalidValue, match="ids is 'name'; give one of 'row', 'path'"):
        embed_run(run, "g", ids="name", device="cpu")


def test_the_report_calls_its_images_by_their_files(run):
    text = write_report(run).read_text()
    shown = re.findall(r'<span class="file">(.*?)</span>', text)
    assert set(TESTED) < set(shown) <= set(FILES)
    assert (
        len(shown) == 6 * (1 + 5) + 6
    )  # six queries and their neighbours, then the originals of six rows of views


def test_the_report_draws_held_out_images_from_the_training_files(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["init_args"] |= {"source": "photos/train", "validation_fraction": 0.5}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    from contrastive.evaluation.record import read_run
    from contrastive.evaluation.report import take_sample

    sample = take_sample(read_run(run), 4, 0)
    for inputs, files in zip((sample.inputs, sample.bank), sample.files, strict=True):
        assert len(inputs) == len(files)
        for image, name in zip(inputs, files, strict=True):
            assert (image.permute(1, 2, 0).numpy() == np.array(Image.open(f"photos/train/{name}"))).all()
