"""All columns of a file about items are kept, typed, and can be filtered by: in Python, from a run, by the command."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from contrastive import save_encoder
from contrastive.cli import main
from recsys import Recommender, SASRec, SequenceData

TABLE = {
    "item": [10, 20, 30, 99],
    "title": ["Alien", "Up", None, "none here"],
    "price": [1.5, 20.0, None, 3.0],
    "stock": [3, 0, 7, 1],
    "new": [True, False, None, True],
    "code": ["007", "7", None, "8"],
    "released": ["1979-05-25", "2009-05-28", None, "2000-01-01"],
    "category": ["film", "film", "book", "book"],
}
TYPES = {
    "title": pa.string(),
    "price": pa.float64(),
    "stock": pa.int64(),
    "new": pa.bool_(),
    "code": pa.string(),
    "released": pa.string(),
    "category": pa.string(),
}


def log():
    return {"user": [1] * 3 + [2] * 3, "item": [10, 20, 30, 30, 20, 10]}


def as_text(folder, name):
    cut = "," if name.endswith(".csv") else "\t"
    cells = [list(TABLE), *zip(*TABLE.values(), strict=True)]
    lines = [cut.join("" if cell is None else str(cell) for cell in row) for row in cells]
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def test_columns_are_kept_with_their_types(tmp_path):
    pq.write_table(pa.table(TABLE), tmp_path / "a.parquet")
    for source in (
        as_text(tmp_path, "a.csv"),
        as_text(tmp_path, "a.tsv"),
        as_text(tmp_path, "a.item"),
        tmp_path / "a.parquet",
        pa.table(TABLE),
        TABLE,
    ):
        data = SequenceData.from_dataframe(log(), items=source)
        kept = data.item_columns
        assert dict(zip(kept.column_names, kept.schema.types, strict=True)) == TYPES, source
        for name in TYPES:
            assert kept[name].to_pylist() == [None, *TABLE[name][:3]]
        assert data.texts == [None, "Alien", "Up", None]
    core = data.k_core(1, 2)
    assert core.item_columns["stock"].to_pylist() == [None, 3, 0, 7]


def test_types_of_recbole_and_columns_without_a_title(tmp_path):
    path = tmp_path / "a.item"
    path.write_text(
        "item_id:token\tprice:float\tclass:token_seq\tnumber:token\tsize:float_seq\n"
        "10\t1.5\tred old\t7\t1 2\n20\t\t\t\t\n"
    )
    data = SequenceData.from_dataframe(log(), items=path)
    assert data.texts is None
    assert data.item_columns.to_pylist()[1:] == [
        {"price": 1.5, "class": ["red", "old"], "number": "7", "size": [1.0, 2.0]},
        {"price": None, "class": None, "number": None, "size": None},
        dict.fromkeys(("price", "class", "number", "size")),
    ]


def test_the_items_are_called_as_in_the_interactions(tmp_path):
    table = {"book_id": [1, 2], "isbn": ["x", "y"], "pages": [100, 200]}
    data = SequenceData.from_dataframe({"user": [1, 1], "book_id": [1, 2]}, items=table)
    assert data.item_columns["pages"].to_pylist() == [None, 100, 200]
    with pytest.raises(
        ValueError, match=r"several columns that may be the item: book_id, isbn. Rename the others"
    ):
        SequenceData.from_dataframe({"user": [1, 1], "item": [1, 2]}, items=table)
    path = tmp_path / "a.csv"
    path.write_text("id,pages,pages\n1,2,3\n")
    with pytest.raises(ValueError, match=r"a.csv has two columns 'pages'; rename one"):
        SequenceData.from_dataframe({"user": [1, 1], "item": [1, 2]}, items=path)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run on files of a user, as fit leaves it, without the training."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{user},{10 * item}" for user in (1, 2) for item in (1, 2, 3)]
    (tmp_path / "log.csv").write_text("\n".join(["userId,movieId", *rows]) + "\n")
    as_text(tmp_path, "items.csv")
    config = {
        "class_path": "recsys.RecommenderData",
        "init_args": {"source": "log.csv", "items": "items.csv"},
    }
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps({"data": config}))
    torch.manual_seed(0)
    save_encoder(SASRec(3, dim=8, max_length=50).eval(), folder / "encoder")
    return folder


@pytest.mark.parametrize(
    ("filter", "ids"),
    [
        ({"category": "film"}, {10, 20}),
        ({"stock": [7, 3]}, {10, 30}),
        ({"new": True}, {10}),
        ({"items_code": "007"}, {10}),
        ({"price": slice(1.6, None)}, {20}),
        ({"items_title": "Up"}, {20}),
        ({"released": slice("2000", None), "category": "film"}, {20}),
    ],
)
def test_a_recommender_of_a_run_filters_by_them(run, filter, ids):
    recommender = Recommender.from_run(run)
    assert set(recommender.recommend([10], k=3, filter=filter).ids) == ids


def test_the_command_filters_by_them(run, capsys):
    words = ["recommend", "--model", str(run), "--history", "10", "--filter", '{"category": "book"}']
    assert main(words) == 0
    assert "30" in capsys.readouterr().out
    assert main([*words[:-1], '{"colour": "red"}']) == 1
    assert "no column 'colour'" in capsys.readouterr().err


def test_lists_meet_a_filter_by_any_entry(run):
    data = SequenceData.from_dataframe(
        log(), items={"item": [10, 20, 30], "genres": [["a", "b"], [], ["b"]], "title": ["x", "y", "z"]}
    )
    recommender = Recommender.from_model(SASRec(3, dim=8), data)
    for value, ids in (("b", {10, 30}), ("a", {10}), (["a", "c"], {10}), ("c", set())):
        assert set(recommender.recommend([20], k=3, filter={"genres": value}).ids) == ids


def test_items_that_are_added_leave_columns_empty(run):
    recommender = Recommender.from_run(run)
    recommender.add_items([40, 50], like={40: [10], 50: [20]}, columns={"category": ["film", "book"]})
    assert set(recommender.recommend([10], k=5, filter={"category": "film"}).ids) == {10, 20, 40}
    assert set(recommender.recommend([10], k=5, filter={"stock": slice(0, None)}).ids) == {10, 20, 30}
