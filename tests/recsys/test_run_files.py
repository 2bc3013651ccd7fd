"""Lists of other models: read, joined by id and ranked as the scores they come from would be."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.data import SequenceData
from recsys.metrics import MISSED, rank_targets, ranking_metrics, top_items
from recsys.results import read_results
from recsys.run_files import rank_in_lists, read_run

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate_recommender.py"


@pytest.fixture(scope="module")
def data():
    """Users u00.. and items that are words, in files a user could have."""
    made = SequenceData.generate(users=40, items=40, seed=1)
    rows = np.repeat(np.arange(40), made.sequences.lengths)
    return SequenceData.from_dataframe(
        {
            "user": [f"u{row:02}" for row in rows],
            "item": [f"item-{code}" for code in made.sequences.items],
            "time": np.arange(len(rows)),
        },
        time="time",
    )


def write_run(path, data, cases, scores, lists):
    """Lists of the items with their scores, in the order of ``lists`` turned round: order in a file means nothing."""
    lines = ["user,item,score"] if path.suffix == ".csv" else []
    for case, items in enumerate(lists):
        for item in items[::-1][items[::-1] > 0]:
            user, name, score = (
                data.user_ids[cases.users[case]],
                data.item_ids[item],
                float(scores[case, item]),
            )
            lines.append(
                f"{user},{name},{score!r}" if path.suffix == ".csv" else f"{user} Q0 {name}\t0 {score!r} us"
            )
    text = "\n".join([*lines, ""])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture(scope="module")
def scored(data):
    cases = data.split().test
    scores = torch.randn(len(cases), data.num_items + 1, generator=torch.Generator().manual_seed(0))
    scores = scores.mul(4).round() / 4  # ties
    by_user = dict(
        zip([tuple(h) for h in map(cases.histories.__getitem__, range(len(cases)))], scores, strict=True)
    )

    def score(histories):
        return torch.stack([by_user[tuple(histories[row])] for row in range(len(histories))])

    return cases, scores, score


@pytest.mark.parametrize("name", ["a.csv", "a.run", "a.trec.gz"])
@pytest.mark.parametrize("history", ["keep", "mask"])
@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
def test_full_lists_give_the_ranks_of_their_scores(tmp_path, data, scored, name, history, ties):
    cases, scores, score = scored
    lists = top_items(score, cases.histories, data.num_items)
    run = read_run(write_run(tmp_path / name, data, cases, scores, lists))
    found = rank_in_lists(run, data, cases, history, ties)
    assert found.ranks.tolist() == rank_targets(score, cases, history, ties).tolist()
    assert (found.missed, found.without_list, found.other_users) == (0, 0, 0)
    assert found.shortest == data.num_items or history == "mask"


def test_targets_that_are_not_on_a_list_are_missed(tmp_path, data, scored):
    cases, scores, score = scored
    lists = top_items(score, cases.histories, 12)
    lists[3] = 0
    run = read_run(write_run(tmp_path / "a.csv", data, cases, scores, lists))
    found = rank_in_lists(run, data, cases, ties="optimistic")
    on_list = (lists == cases.targets[:, None]).any(axis=1)
    ranks = rank_targets(score, cases, ties="optimistic")
    assert found.ranks[on_list].tolist() == ranks[on_list].tolist()
    assert (found.ranks[~on_list] == MISSED).all()
    assert (found.missed, found.without_list, found.shortest) == ((~on_list).sum(), 1, 12)


def test_integer_ids_and_users_without_a_case(tmp_path):
    data = SequenceData.from_dataframe({"user": [7, 7, 7, 9, 9], "item": [30, 10, 20, 10, 30]})
    (tmp_path / "a.csv").write_text("7,20,1.5\n7,10,2.5\n\n9,30,1\n")
    found = rank_in_lists(read_run(tmp_path / "a.csv"), data, data.split().test)
    assert found.ranks.tolist() == [1]
    assert found.other_users == 1
    (tmp_path / "b.csv").write_text("9,30,1\n")
    with pytest.raises(ValueError, match=r"b\.csv: none of its users has a case"):
        rank_in_lists(read_run(tmp_path / "b.csv"), data, data.split().test)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "user,item,score\n1,2,0.5\n1,2\n", r"line 3 is '1,2'; expected user,item,score"),
        ("a.csv", "name,thing,points\n", r"line 1 is 'name,thing,points'"),
        ("a.csv", "1,2,nan\n", "the score on line 1 is nan"),
        ("a.csv", "user,item,score\n", "there is no line"),
        (
            "a.run",
            "1 Q0 2 1 0.5 tag\n\n1 Q0 2 0.5 tag\n",
            r"line 3 is .*; expected user Q0 item rank score tag",
        ),
        ("a.run", "1 Q0 2 1 high tag\n", "line 1 is .* the score a number"),
        ("a.run", "", "there is no line"),
    ],
)
def test_bad_files_are_refused_by_line(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        read_run(tmp_path / name)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            "u00,item-1,1\nx,item-1,1\n",
            r"a\.csv, line 2: user 'x' is not in the data \(1 lines .*'u00' for example",
        ),
        ("u00,item-1,1\nu01,1,1\nu02,2,1\n", r"a\.csv, line 2: item '1' is not in the data \(2 lines"),
        (
            "u00,item-1,1\nu01,item-1,1\nu00,item-1,2\n",
            r"u00 has item item-1 on line 1 and again on line 3",
        ),
    ],
)
def test_ids_that_do_not_fit_are_refused_by_line(tmp_path, data, lines, words):
    (tmp_path / "a.csv").write_text(lines)
    with pytest.raises(ValueError, match=words):
        rank_in_lists(read_run(tmp_path / "a.csv"), data, data.split().test)


def run_script(*words):
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_script_prints_a_table_and_writes_results(tmp_path, data, scored):
    cases, scores, score = scored
    data.write(tmp_path / "toy.seq.tsv.gz")
    lists = top_items(score, cases.histories, 12)
    ours = write_run(tmp_path / "ours.run", data, cases, scores, lists)
    (tmp_path / "theirs.csv").write_text(
        "".join(
            f"{data.user_ids[user]},{data.item_ids[target]},1\n"
            for user, target in zip(cases.users, cases.targets, strict=True)
        )
    )
    done = run_script(
        *("--data", tmp_path / "toy.seq.tsv.gz", "--run", ours, "--compare", tmp_path / "theirs.csv"),
        *("--history", "mask", "--ks", "[5, 10]", "--output", tmp_path / "out" / "results.json"),
    )
    assert done.returncode == 0, done.stderr
    results = {result.model: result for result in read_results(tmp_path / "out" / "results.json")}
    assert list(results) == [
        "ours.run",
        "theirs.csv",
        "popularity",
        "Markov chain",
        "sequential rules",
        "item-kNN",
    ]
    assert {result.history for result in results.values()} == {"mask"}
    found = rank_in_lists(read_run(ours), data, cases, "mask")
    assert results["ours.run"].metrics == ranking_metrics(found.ranks, (5, 10))
    assert results["ours.run"].settings["missed"] == found.missed
    assert results["theirs.csv"].metrics["HR@5"] == 1
    comparison = json.loads((tmp_path / "out" / "results.json").read_text())["comparisons"][0]
    assert comparison["difference"] == pytest.approx(results["ours.run"].metrics["NDCG@10"] - 1)
    assert f"{found.missed} of 40 targets are on no list and count as misses" in done.stdout
    assert "theirs.csv: the shortest list has 1 items; metrics at larger k are lower bounds" in done.stdout
    assert "ours.run less theirs.csv, NDCG@10: difference -" in done.stdout


def test_the_script_names_the_line_of_a_mistake(tmp_path, data):
    data.write(tmp_path / "toy.seq.tsv")
    (tmp_path / "bad.csv").write_text("u00,item-1,1\nu00,item-2\n")
    done = run_script("--data", tmp_path / "toy.seq.tsv", "--run", tmp_path / "bad.csv")
    assert done.returncode == 1
    assert done.stderr.startswith("error: read_run(")
    assert "line 2" in done.stderr
    assert "Traceback" not in done.stderr
