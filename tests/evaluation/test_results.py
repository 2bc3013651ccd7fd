import json

import pytest

from contrastive.evaluation import format_result, write_result

RESULT = {
    "protocol": {"name": "knn", "k": 20},
    "metrics": {"accuracy": 0.5, "recall": {"cat": 1.0}},
    "split": "test",
    "seed": 3,
    "data": {"source": "digits", "fingerprint": "abc"},
    "encoder": {"class": "ConvEncoder"},
    "seconds": 1.234567,
}


def test_a_result_says_where_its_numbers_come_from(tmp_path):
    document = write_result(tmp_path / "results", "knn", **RESULT)
    assert json.loads((tmp_path / "results" / "knn.json").read_text()) == document
    assert {name: document[name] for name in RESULT} == {**RESULT, "seconds": 1.23}
    assert {"python", "torch", "contrastive"} <= document["versions"].keys()
    assert document["command"]
    assert format_result(document).splitlines() == [
        "knn on the test set (k 20)",
        "  accuracy             50.00 %",
    ]


def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_result(tmp_path, "knn", **RESULT)
    with pytest.raises(ValueError, match="NaN or infinite"):
        write_result(tmp_path, "knn", **{**RESULT, "metrics": {"accuracy": float("nan")}})
    assert json.loads((tmp_path / "knn.json").read_text())["metrics"] == RESULT["metrics"]
    assert [path.name for path in tmp_path.iterdir()] == ["knn.json"]
