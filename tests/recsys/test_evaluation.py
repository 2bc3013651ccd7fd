"""What `contrastive fit` leaves of a recommender beside its weights: the table, the results, the report."""

import csv
import json
import re
import signal
import sys

import pytest
import torch

import contrastive.cli.fit as fit
from contrastive.cli import main
from contrastive.evaluation import evaluate_run
from contrastive.evaluation.report import write_report
from recsys import (
    ItemKNN,
    MarkovChain,
    Popularity,
    RecommenderData,
    SequenceData,
    SequentialRules,
    rank_targets,
    ranking_metrics,
)
from recsys import evaluation as ours

FLOORS = {
    "popularity": Popularity,
    "Markov chain": MarkovChain,
    "sequential rules": SequentialRules,
    "item-kNN": ItemKNN,
}
OPTIONS = ["--config", "recsys/quickstart", "--name=shop", "--data.source=mine.csv", "--data.item=thing"]
OPTIONS += ["--model.history=mask", "--trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with interactions, in which `fit` was run; what the run logged of the test, and what it printed."""
    folder = tmp_path_factory.mktemp("shop")
    data = SequenceData.generate(60, 32)
    with open(folder / "mine.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "thing", "time"])
        for user in range(data.num_users):
            items = data.sequences[user].tolist()
            last = len(items) - 1  # every third user has the last item at the time of the one before
            for place, item in enumerate(items):
                writer.writerow((f"u{user}", f"i{item}", place - (place == last and user % 3 == 0)))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [path for path in sys.path if path])
        assert main(["fit", *OPTIONS, "--trainer.max_epochs=2"]) == 0
        yield folder
    signal.signal(signal.SIGINT, handler)


def result(folder):
    return json.loads((folder / "runs/shop/0/results/recommender.json").read_text(encoding="utf-8"))


def test_fit_ranks_the_model_beside_floors(shop):
    document = result(shop)
    split = RecommenderData(str(shop / "mine.csv"), item="thing").split
    for part in ("valid", "test"):
        rows = document["metrics"][part]
        names = [*FLOORS, "SASRec + MCLRec, last epoch"]
        assert list(rows)[:5] == names
        assert re.fullmatch(r"SASRec \+ MCLRec, best epoch [12]", list(rows)[5])
        for name, floor in FLOORS.items():
            scores = floor().fit(split.train, split.data.num_items).score
            expected = ranking_metrics(rank_targets(scores, getattr(split, part), "mask"))
            assert rows[name] == pytest.approx(expected, abs=1e-12)


def test_what_the_numbers_depend_on_stands_beside_them(shop):
    document = result(shop)
    assert document["protocol"]["history"] == "mask"
    assert document["protocol"]["cases"] == {
        "valid": {"judged": 60, "of": 60},
        "test": {"judged": 60, "of": 60},
    }
    data = document["data"]
    assert data["columns"] == {"user": "user", "item": "thing", "time": "time"}
    assert data["order"] == "by time, equal times in the order of the source"
    assert data["tied"] == pytest.approx({"valid": 0.0, "test": 1 / 3})
    assert (data["class"], data["source"], data["users"]) == ("RecommenderData", "mine.csv", 60)
    fingerprint = SequenceData.read(shop / "mine.csv", item="thing").fingerprint
    record = json.loads((shop / "runs/shop/0/run.json").read_text(encoding="utf-8"))
    assert data["fingerprint"] == record["data"]["fingerprint"] == fingerprint
    assert document["encoder"]["class"] == "SASRec"
    assert document["encoder"]["fingerprint"].startswith("2:")


@pytest.mark.parametrize("kind", ["last", "best"])
def test_the_model_is_judged_as_the_commands_judge_it(shop, kind, monkeypatch):
    made, keep = [], fit.TrainerCLI.__init__
    monkeypatch.setattr(
        fit.TrainerCLI, "__init__", lambda self, *words: (made.append(self), keep(self, *words))[1]
    )
    for command, part in (("validate", "valid"), ("test", "test")):
        assert main([command, *OPTIONS, f"--ckpt_path={kind}"]) == 0
        logged = made[-1].trainer.callback_metrics
        rows = result(shop)["metrics"][part]
        (row,) = [metrics for name, metrics in rows.items() if f", {kind} epoch" in name]
        prefix = command.removesuffix("idate")
        assert row == pytest.approx({name: float(logged[f"{prefix}_{name}"]) for name in row}, abs=1e-6)


def test_evaluate_gives_the_same_again(shop, capsys):
    before = result(shop)
    capsys.readouterr()
    assert main(["evaluate", "--run", "runs/shop/0"]) == 0
    printed = capsys.readouterr().out
    assert result(shop)["metrics"] == before["metrics"]
    head, *lines = printed.splitlines()
    assert head.split("  ")[0] == "method"
    for name, row in before["metrics"]["test"].items():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert line.split()[-2:] == [f"{row['HR@10']:.4f}", f"{row['NDCG@10']:.4f}"]
    assert "60 validation targets; 60 test targets; against the whole catalogue, history=mask" in printed
    assert "33.3% of the test targets have the time of the item before" in printed
    document = evaluate_run("runs/shop/0", baselines=False)
    assert all("SASRec" in name for name in document["metrics"]["test"])
    evaluate_run("runs/shop/0")


def test_commands_for_labels_say_what_a_recommender_has_instead(shop, capsys):
    assert main(["knn", "--run", "runs/shop/0"]) == 1
    assert "rank it with `contrastive evaluate`" in capsys.readouterr().err
    assert main(["evaluate", "--run", "runs/shop/0", "--k=5"]) == 1
    assert "whose data have no labels; leave k out" in capsys.readouterr().err


def test_the_report_shows_ranking_and_interactions(shop):
    page = (shop / "runs/shop/0/report.html").read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "SASRec with MCLRec on mine.csv" in text
    for name, row in result(shop)["metrics"]["test"].items():
        assert f"{name} {' '.join(f'{row[m]:.4f}' for m in ('HR@5', 'HR@10', 'HR@20'))}" in text
    assert "user: user, item: thing, time: time" in text
    assert "validation: 0.0%, test: 33.3%" in text
    for not_here in ("No pictures", "No results", "No comparison", "ValueError", "contrastive knn"):
        assert not_here not in text


def test_a_report_before_any_evaluation_says_what_is_missing(shop, tmp_path):
    (tmp_path / "config.yaml").write_text((shop / "runs/shop/0/config.yaml").read_text())
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "No comparison: `contrastive evaluate --run`" in text
    assert "No pictures" not in text


def test_a_checkpoint_of_another_encoder_is_refused(shop, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(shop / "runs/shop/0", run)
    saved = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    saved["state_dict"] = {name: w for name, w in saved["state_dict"].items() if "item_embedding" not in name}
    torch.save(saved, run / "checkpoints/best.ckpt")
    with pytest.raises(ValueError, match=r"best.ckpt has other weights than the encoder of this run"):
        evaluate_run(run)


def test_of_many_cases_a_part_is_judged_and_said(shop, tmp_path, monkeypatch, capsys):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(shop / "runs/shop/0", run)
    monkeypatch.setattr(ours, "_MOST_SCORES", 20 * 33)
    monkeypatch.setattr(ours, "_MOST_PAIRS", 1)
    document = evaluate_run(run)
    assert document["protocol"]["cases"]["test"] == {"judged": 20, "of": 60}
    assert "item-kNN" not in document["metrics"]["test"]
    printed = capsys.readouterr().out
    assert "20 of 60, drawn at random, test targets" in printed
    assert "item-kNN is left out" in printed
    again = evaluate_run(run)
    assert again["metrics"] == document["metrics"]
