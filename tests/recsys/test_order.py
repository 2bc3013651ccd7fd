"""Interactions at one time: how they are ordered, counted, left out, and told beside every number."""

import json

import numpy as np
import pytest

from recsys import (
    Popularity,
    RankingResult,
    RecommenderData,
    SequenceData,
    evaluate_run_files,
    format_results,
    read_results,
    write_results,
)

# Of user 1 the last two share a time, of user 2 the two before the last; user 3 has five times.
ROWS = [
    *[(1, item, time) for item, time in ((4, 1), (3, 2), (2, 3), (9, 7), (5, 7))],
    *[(2, item, time) for item, time in ((1, 1), (8, 2), (7, 5), (6, 5), (2, 6))],
    *[(3, item, time) for item, time in ((6, 1), (5, 2), (4, 3), (3, 4), (2, 5))],
]
COLUMNS = dict(zip(("user", "item", "time"), map(list, zip(*ROWS, strict=True)), strict=True))


def histories(data):
    return [data.decode(data.sequences[row]).tolist() for row in range(data.num_users)]


def test_equal_times_are_in_the_order_asked_for():
    file = SequenceData.from_dataframe(COLUMNS)
    assert histories(file) == [[4, 3, 2, 9, 5], [1, 8, 7, 6, 2], [6, 5, 4, 3, 2]]
    by_item = SequenceData.from_dataframe(COLUMNS, ties="item")
    assert histories(by_item) == [[4, 3, 2, 5, 9], [1, 8, 6, 7, 2], [6, 5, 4, 3, 2]]
    lasts = set()
    for seed in range(20):
        shuffled = SequenceData.from_dataframe(COLUMNS, ties="shuffle", tie_seed=seed)
        again = SequenceData.from_dataframe(COLUMNS, ties="shuffle", tie_seed=seed)
        assert histories(shuffled) == histories(again)
        assert [sorted(row) for row in histories(shuffled)] == [sorted(row) for row in histories(file)]
        assert (np.diff(shuffled.times)[[0, 1, 2, 3]] >= 0).all()
        lasts.add((histories(shuffled)[0][-1], histories(shuffled)[1][2]))
    assert lasts == {(5, 7), (5, 6), (9, 7), (9, 6)}


def test_ties_are_counted_in_statistics_and_said_by_check():
    data = SequenceData.from_dataframe(COLUMNS)
    assert data.tied.tolist() == [False] * 4 + [True] + [False] * 3 + [True] + [False] * 6
    found = data.statistics()
    assert (found["tied"], found["tied_last"]) == (2, 1)
    split = data.split()
    assert split.tied("test").tolist() == [True, False, False]
    assert split.tied("valid").tolist() == [False, True, False]
    assert (split.tied_share(), split.tied_share("valid")) == (1 / 3, 1 / 3)
    counts = split.statistics()
    assert (counts["valid_tied"], counts["test_tied"]) == (1, 1)
    end = "have the time of the item before; by time, equal times in the order of the source."
    assert split.check() == [f"33.3% of the valid targets {end}", f"33.3% of the test targets {end}"]
    (sentence,) = data.check()
    assert sentence.startswith(
        "The last item of 33.3% of the users has the time of the one before; by time, "
    )
    untimed = SequenceData.from_dataframe(COLUMNS, time=None)
    assert untimed.split().tied_share() is None
    assert "tied" not in untimed.statistics()
    assert untimed.check() == untimed.split().check()
    assert "in the order of the source" in untimed.check()[0]
    steady = SequenceData.from_dataframe({name: values[10:] for name, values in COLUMNS.items()})
    assert steady.split().check() == steady.check() == []


def test_ties_that_are_dropped_are_held_out_from_nobody():
    data = SequenceData.from_dataframe(COLUMNS, ties="drop")
    split = data.split()
    split.check()
    assert data.user_ids[split.test.users].tolist() == [2, 3]
    # User 1's item before the last shares its time with the one behind, user 2's with the one before.
    assert data.user_ids[split.valid.users].tolist() == [3]
    whole = SequenceData.from_dataframe(COLUMNS).split()
    assert split.train.items.tolist() == whole.train.items.tolist()
    kept = np.flatnonzero(~whole.tied())
    assert split.test.targets.tolist() == whole.test.targets[kept].tolist()
    by_time = data.split("global-time", cuts=(4, 7))
    assert data.user_ids[by_time.valid.users].tolist() == [3]  # two of user 2 come first at time 5
    assert len(by_time.test) == 0 or data.user_ids[by_time.test.users].tolist() == []


def test_ties_without_times_and_unknown_orders_are_refused():
    untimed = {name: COLUMNS[name] for name in ("user", "item")}
    with pytest.raises(ValueError, match="ties='shuffle' orders equal times, and these data have none"):
        SequenceData.from_dataframe(untimed, ties="shuffle")
    with pytest.raises(ValueError, match="ties is 'random'"):
        SequenceData.from_dataframe(COLUMNS, ties="random")
    with pytest.raises(ValueError, match="tie_seed"):
        SequenceData.from_dataframe(COLUMNS, ties="shuffle", tie_seed=-1)


def test_the_order_comes_through_files_and_configurations(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in ROWS))
    for ties in ("file", "item", "drop"):
        expected = SequenceData.from_dataframe(COLUMNS, ties=ties)
        assert histories(SequenceData.read(path, ties=ties)) == histories(expected)
        module = RecommenderData(str(path), ties=ties)
        assert module.split.test.targets.tolist() == expected.split().test.targets.tolist()
    shuffled = SequenceData.from_dataframe(COLUMNS, ties="shuffle", tie_seed=3)
    assert histories(RecommenderData(str(path), ties="shuffle", tie_seed=3, seed=7).data) == histories(
        shuffled
    )
    core = SequenceData.read(path, ties="drop").k_core(1, 2)
    assert (core.ties, core.columns) == ("drop", {"user": "user", "item": "item", "time": "time"})


def test_every_result_says_its_share_of_ties(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in ROWS))
    run = tmp_path / "a.csv"
    run.write_text(
        "user,item,score\n" + "".join(f"{user},{item},1\n" for user in (1, 2, 3) for item in (2, 5))
    )
    table = evaluate_run_files(str(path), str(run), output=str(tmp_path / "results.json"))
    assert "33.3%" in table
    for result in read_results(tmp_path / "results.json"):
        assert result.tied == 1 / 3
        assert result.order == "by time, equal times in the order of the source"
    dropped = evaluate_run_files(str(path), str(run), ties_in_time="drop")
    assert "33.3%" not in dropped
    assert "0.0%" in dropped
    unknown = evaluate_run_files(str(path), str(run), time=None)
    assert "unknown" in unknown


def test_results_of_earlier_versions_are_read(tmp_path):
    result = RankingResult("m", "d", "test", "keep", "pessimistic", 3, {"HR@10": 0.5})
    write_results(tmp_path / "a.json", [result])
    document = json.loads((tmp_path / "a.json").read_text())
    for name in ("tied", "order"):
        del document["results"][0][name]
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert read_results(tmp_path / "a.json") == [result]
    assert "unknown" in format_results([result])


def test_the_order_of_equal_times_decides_what_popularity_finds():
    """Whole lists rated at once, the popular first: the file's order and that of item numbers disagree."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(300), 12)
    items = np.concatenate(
        [rng.choice(60, 12, replace=False, p=np.arange(60, 0, -1) / 1830) for _ in range(300)]
    )
    table = {"user": users, "item": items, "time": np.tile(np.repeat([1, 2, 3], 4), 300)}

    def hits(ties):
        data = SequenceData.from_dataframe(table, ties=ties)
        split = data.split()
        score = Popularity().fit(split.train, data.num_items).counts
        return np.isin(split.test.targets, np.argsort(-score)[:10]).mean()

    assert hits("file") - hits("item") > 0.1
