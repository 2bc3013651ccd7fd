"""The tables of recommenders: trained, resumed and written by the command that the results name."""

import argparse
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys import MarkovChain, SequenceData, rank_targets, ranking_metrics

REPRODUCE = Path(__file__).parents[2] / "scripts" / "reproduce"


def run(script, *words):
    done = subprocess.run(
        [sys.executable, str(REPRODUCE / script), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_table_of_recommenders(tmp_path):
    SequenceData.generate(users=60, items=40, seed=0).write(tmp_path / "small.seq.tsv.gz")
    words = ["--data", tmp_path, "--dataset", "small", "--seeds", 0, "--epochs", 1, "--threads", 1]
    words += ["--work", tmp_path / "work", "--out", tmp_path / "out"]
    run("recommenders.py", *words, "--method", "SASRec")
    printed = run("recommenders.py", *words, "--method", "SASRec", "MCLRec")
    assert "small SASRec" not in printed  # finished before, and read
    document = json.loads((tmp_path / "out/recommenders-small.json").read_text(encoding="utf-8"))
    names = [rows[0]["method"] for rows in document["rows"]]
    assert names == ["popularity", "Markov chain", "sequential rules", "item-kNN", "SASRec", "MCLRec"]
    for rows in document["rows"]:
        assert 0 <= rows[0]["test"]["NDCG@10"] <= rows[0]["test"]["HR@10"] <= 1
    assert [found["method"] for found in document["comparisons"]] == [*names[:4], "MCLRec"]
    lines = run("recommenders.py", *words, "--recency", 1, 0.5).splitlines()
    assert [line.rpartition(":")[0] for line in lines] == ["small, recency 1.0", "small, recency 0.5"]
    assert all(0 < float(line.rpartition(": ")[2].split()[0]) < 1 for line in lines)
    shutil.rmtree(tmp_path / "work")
    printed = run("recommenders.py", *words, "--method", "SASRec", "MCLRec")
    assert "small MCLRec" not in printed  # the results hold what is needed
    again = json.loads((tmp_path / "out/recommenders-small.json").read_text(encoding="utf-8"))
    assert (again["rows"][4:], again["comparisons"]) == (document["rows"][4:], document["comparisons"])
    run("summarise.py", "--results", tmp_path / "out", "--out", tmp_path / "RESULTS.md")
    page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "| SASRec | 1 | 1 of 1 |" in page
    assert "Still rising when their time was over" in page


@pytest.mark.filterwarnings("ignore")  # of Lightning, which the script keeps away too
def test_how_results_depend_on_the_order_of_equal_times(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(REPRODUCE))
    recommenders, summarise = map(importlib.import_module, ("recommenders", "summarise"))

    def run(script, *words):  # in this process: each of its own would import torch
        monkeypatch.setattr(sys, "argv", ["script", *map(str, words)])
        script.main()
        return capsys.readouterr().out

    data = SequenceData.generate(users=60, items=40, seed=0)
    data.write(tmp_path / "small.seq.tsv.gz")
    heading = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(data.num_users):  # every second user rated the last three items at once
        items = data.decode(data.sequences[user]).tolist()
        times = [min(place, len(items) - 3) if user % 2 else place for place in range(len(items))]
        heading += [f"{user + 1}\t{item}\t{time}" for item, time in zip(items, times, strict=True)]
    (tmp_path / "small.inter").write_text("\n".join(heading) + "\n")
    words = ["--data", tmp_path, "--dataset", "small", "--seeds", 0, "--epochs", 1, "--threads", 1]
    words += ["--work", tmp_path / "work", "--out", tmp_path / "out", "--method", "SASRec"]
    run(recommenders, *words)
    ties = ["--times", tmp_path / "small.inter", "--shuffles", 2]
    run(recommenders, *words, *ties)
    path = tmp_path / "out/recommenders-small.json"
    found = json.loads(path.read_text(encoding="utf-8"))["ties"]
    assert (found["cases"], found["tied"]) == (60, 0.5)
    floors = ["popularity", "Markov chain", "sequential rules", "item-kNN"]
    of = {(*run["order"], run["method"]): run["test"] for run in found["runs"]}
    orders = [("file", 0), ("item", 0), ("shuffle", 0), ("shuffle", 1)]
    assert set(of) == {
        *((*order, name) for order in orders for name in floors),
        *((*order, "SASRec") for order in orders[2:]),
    }
    for order in orders[1:]:
        read = SequenceData.read(tmp_path / "small.inter", ties=order[0], tie_seed=order[1]).split()
        scores = MarkovChain().fit(read.train, 40).score
        assert of[(*order, "Markov chain")] == ranking_metrics(rank_targets(scores, read.test))
    table = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [of[("file", 0, name)] for name in floors] == [rows[0]["test"] for rows in table[:4]]
    assert of[("shuffle", 0, "SASRec")] != of[("shuffle", 1, "SASRec")]
    assert {(one["floor"], *one["order"]) for one in found["comparisons"]} == {
        (name, *order) for name in floors for order in orders[2:]
    }
    (own,) = [one["test"] for one in found["own_time"] if one["run"] == "SASRec, seed 0"]
    with np.load(path.with_suffix(".npz")) as kept:
        assert own == ranking_metrics(kept["SASRec, seed 0"][0::2])
    run(summarise, "--results", tmp_path / "out", "--out", tmp_path / "RESULTS.md")
    page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "50.0 % of the 60 test items share their time with the one before" in page
    markov = [of[("shuffle", seed, "Markov chain")]["HR@10"] for seed in (0, 1)]
    assert f"{sum(markov) / 2:.4f} [{min(markov):.4f}, {max(markov):.4f}]" in page
    printed = run(recommenders, *words, *ties)
    assert "small SASRec" not in printed  # finished before, and read
    assert json.loads(path.read_text(encoding="utf-8"))["ties"] == found
    (tmp_path / "small.inter").write_text("\n".join(heading[:-1]) + "\n")
    with pytest.raises(SystemExit, match=r"holds other interactions than small\.seq\.tsv\.gz"):
        run(recommenders, *words, *ties)


@pytest.mark.filterwarnings("ignore")  # of Lightning, which the script keeps away too
def test_a_run_goes_on_from_its_latest_epoch(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPRODUCE))
    recommenders = importlib.import_module("recommenders")
    SequenceData.generate(users=60, items=40, seed=0).write(tmp_path / "small.seq.tsv.gz")
    options = argparse.Namespace(
        data=tmp_path, dataset="small", stride=1, accelerator="cpu", epochs=5, out=tmp_path / "out"
    )
    settings = {"dropout": 0.5, "learning_rate": 1e-9}  # nothing to learn: the first epoch stays the best

    def train(work):
        options.work = tmp_path / work
        return recommenders.train(options, "SASRec", settings, 0)

    whole = train("whole")

    def stop(self):
        if self.current_epoch == 3:
            raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(recommenders.SequentialRecommender, "on_train_epoch_start", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            train("parts")
    (last,) = (tmp_path / "parts").glob("*/last.ckpt")
    assert torch.load(last, weights_only=True)["epoch"] == 2
    parts = train("parts")
    assert whole["epoch"] == 1
    for name in ("epoch", "epochs", "valid", "test"):
        assert parts[name] == whole[name]
