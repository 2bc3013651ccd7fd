import json

import pytest

from recsys.metrics import Comparison
from recsys.results import RankingResult, format_results, format_table, read_results, write_results


def a_result(**changes):
    fields = {
        "model": "SASRec",
        "data": "toy",
        "split": "test",
        "history": "mask",
        "ties": "optimistic",
        "cases": 22363,
        "metrics": {"HR@10": 0.5, "NDCG@10": 0.25001},
        "settings": {"seed": 1},
    }
    return RankingResult(**{**fields, **changes})


def test_results_come_back_with_their_conventions(tmp_path):
    results = [a_result(), a_result(model="GRU4Rec", history="keep")]
    comparison = Comparison("HR@10", 0.1, 0.05, 0.15, 0.01, 10, 100)
    write_results(tmp_path / "deep" / "results.json", results, [comparison])
    assert read_results(tmp_path / "deep" / "results.json") == results
    document = json.loads((tmp_path / "deep" / "results.json").read_text())
    assert [(r["history"], r["ties"]) for r in document["results"]] == [
        ("mask", "optimistic"),
        ("keep", "optimistic"),
    ]
    assert document["comparisons"][0]["p"] == 0.01
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["results.json"]


def test_a_nan_is_refused_and_the_old_file_stays(tmp_path):
    write_results(tmp_path / "r.json", [a_result()])
    with pytest.raises(ValueError, match="finite numbers only"):
        write_results(tmp_path / "r.json", [a_result(metrics={"HR@10": float("nan")})])
    assert read_results(tmp_path / "r.json") == [a_result()]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"results": [{"model": "x"}]}', '{"results": 3}'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=r"r\.json holds no results of a ranking"):
        read_results(tmp_path / "r.json")


def test_tables():
    results = [a_result(), a_result(model="S")]
    assert format_results(results) == (
        "model   data  split  history  ties         cases  tied in time   HR@10  NDCG@10\n"
        "SASRec  toy   test   mask     optimistic  22,363  unknown       0.5000   0.2500\n"
        "S       toy   test   mask     optimistic  22,363  unknown       0.5000   0.2500"
    )
    assert format_results(results[:1], markdown=True).splitlines()[1:] == [
        "| ------ | ---- | ----- | ------- | ---------- | -----: | ------------ | -----: | ------: |",
        "| SASRec | toy  | test  | mask    | optimistic | 22,363 | unknown      | 0.5000 |  0.2500 |",
    ]
    assert format_table([]) == ""
