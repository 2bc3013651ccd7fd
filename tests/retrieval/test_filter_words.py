"""Conditions on the command line: texts stay texts, ranges can be written, mistakes are told."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive.cli import main
from contrastive.cli.commands import _without_filter
from contrastive.errors import InputError
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


@pytest.mark.parametrize("command", ["search", "recommend"])
def test_the_help_tells_of_ranges(capsys, command):
    assert main([command, "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "--filter FILTER column -> value, list of values or range" in told
    assert '"year": {"from": 1990, "to": 1999}' in told


def test_a_command_that_filters_nothing_refuses_it(capsys):
    assert main(["index", "--embeddings", "e", "--out", "i", "--filter", '{"year": 1990}']) != 0
    assert "there is no option filter" in capsys.readouterr().err


GOOD = '{"class": ["7", "10"], "year": {"from": 1990, "to": 1995.5}}'
_PIECES = [
    "{",
    "}",
    "[",
    "]",
    '"',
    ",",
    ":",
    "\\",
    "null",
    "NaN",
    "-",
    "1e999",
    "0",
    "true",
    "\ud800",
    "\0",
    "'",
    " ",
]


@st.composite
def spoilt(draw):
    """Conditions of which pieces are cut out, doubled or put in."""
    words = GOOD
    for _ in range(draw(st.integers(1, 4))):
        start, stop = sorted((draw(st.integers(0, len(words))), draw(st.integers(0, len(words)))))
        words = words[:start] + draw(st.sampled_from([*_PIECES, words[start:stop] * 2])) + words[stop:]
    return words


@given(words=st.one_of(spoilt(), st.text(max_size=20), st.sampled_from(["[" * 10**5, "1" * 5000, ""])))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_spoilt_conditions_are_told_in_one_sentence_or_understood(words):
    columns = {"class": CLASSES, "year": [1990, 1991, 1992, 1993, 1994, 1995, 1996]}
    index = Index.build(np.eye(7, dtype=np.float32), metadata=columns)
    told = ""
    try:
        _, conditions = _without_filter(["--id", "3", "--filter", words])
        ids = index.search(np.eye(7, dtype=np.float32)[:1], 7, conditions)[1][0].tolist()
    except InputError as error:
        ids, told = [], str(error)
    assert set(ids) <= {*range(7), -1}
    assert ids or told.startswith(("--filter ", "search: "))
    assert "\n" not in told
    assert len(told) < 500
