"""Conditions on the command line: texts stay texts, ranges can be written, mistakes are told."""

import numpy as np
import pytest

from contrastive.cli import main
from contrastive.retrieval import Index

CLASSES = ["7", "10", "null", "cat", "007", "true", "1e3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rows = np.random.default_rng(0).normal(size=(7, 8)).astype(np.float32)
    columns = {"class": CLASSES, "year": [1990, 1991, 1992, 1993, 1994, 1995, 1996]}
    return Index.build(rows, metadata=columns).save(tmp_path_factory.mktemp("index") / "index")


def found(capsys, folder, conditions):
    capsys.readouterr()
    assert main(["search", "--index", str(folder), "--id", "3", "--filter", conditions]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {name for line in lines for name in line.split() if name in CLASSES}


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"cat"}))
def test_texts_stay_texts(capsys, folder, name):
    assert found(capsys, folder, f'{{"class": "{name}"}}') == {name}
    assert found(capsys, folder, f'{{"class": ["{name}"]}}') == {name}


def test_ranges_can_be_written(capsys, folder):
    assert found(capsys, folder, '{"year": {"from": 1994}}') == {"007", "true", "1e3"}
    assert found(capsys, folder, '{"year": {"from": 1991, "to": 1992}}') == {"10", "null"}
    assert found(capsys, folder, '{"year": {"to": 1990}}') == {"7"}


@pytest.mark.parametrize("words", ['{"class": 7', "[1]", "7", '{"year": {"over": 3}}', '{"year": {}}'])
def test_what_is_no_condition_is_a_sentence(capsys, folder, words):
    assert main(["search", "--index", str(folder), "--id", "3", f"--filter={words}"]) == 1
    assert "contrastive: error: --filter " in capsys.readouterr().err


def test_numbers_that_no_cell_can_hold_find_nothing():
    index = Index.build(np.eye(4, dtype=np.float32), metadata={"year": [1990, 1991, None, 1993]})
    for wanted in (1990.9, [1990.9], [1990.9, 1993]):
        ids = index.search(np.eye(4, dtype=np.float32)[:1], 4, {"year": wanted})[1]
        assert set(ids[0].tolist()) - {-1} == ({3} if wanted == [1990.9, 1993] else set())
    # Empty cells meet no condition.
    ids = index.search(np.eye(4, dtype=np.float32)[:1], 4, {"year": [None, 1991]})[1]
    assert set(ids[0].tolist()) - {-1} == {1}
    for wanted in (slice(None, None), slice(None, 3000), slice(0, None)):
        ids = index.search(np.eye(4, dtype=np.float32)[:1], 4, {"year": wanted})[1]
        assert set(ids[0].tolist()) - {-1} == {0, 1, 3}
    nan = float("nan")
    holed = Index.build(np.eye(3, dtype=np.float32), metadata={"price": [1.5, nan, None]})
    for wanted, met in (([nan], set()), ([nan, 1.5], {0}), (slice(None, None), {0})):
        ids = holed.search(np.eye(3, dtype=np.float32)[:1], 3, {"price": wanted})[1]
        assert set(ids[0].tolist()) - {-1} == met
    with pytest.raises(ValueError, match=r"^search: the range for 'year' has a step"):
        index.search(np.eye(4, dtype=np.float32)[:1], 4, {"year": slice(1990, 1993, 2)})
