"""The frame of the reproductions on arms that train nothing, and every script on its smallest scale."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "scripts" / "reproduce"
PARTS = ("study", "summarise", "ties")  # no studies by themselves
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.stem not in PARTS)


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("study", FOLDER / "study.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "study", module)
    spec.loader.exec_module(module)
    return module


def a_study(study, train, **options):
    arms = [study.Arm("ours", [{"t": 1}, {"t": 2}]), study.Arm("theirs", [{"t": 3}, {"t": 4}])]
    claims = [study.Claim("ours is better", study.better("ours", "theirs", "knn"))]
    return study.Study("A paper", arms, train, claims, seeds=3, **options)


def run(study, monkeypatch, folder, train, *words, **options):
    monkeypatch.setattr(sys, "argv", [str(folder / "paper.py"), "--threads", "1", *words])
    monkeypatch.chdir(folder)
    study.main(lambda scale, smoke: a_study(study, train, **options))


@pytest.mark.parametrize(
    ("values", "margin", "verdict"),
    [
        ([0.03, 0.031, 0.029], 0.0, "reproduced"),
        ([0.03, 0.031, 0.029], 0.05, "not reproduced"),
        ([0.03, -0.01, 0.02], 0.0, "inconclusive"),
        ([-0.01, -0.011, -0.009], -0.02, "reproduced"),
        ([0.5, 0.5], 0.4, "reproduced"),
        ([0.5], 0.4, "inconclusive"),
    ],
)
def test_judges_by_a_one_sided_test_over_seeds(study, values, margin, verdict):
    found = study.Claim("text", lambda results: values, margin).judge({})
    assert found["verdict"] == verdict


def test_tunes_on_validation_and_goes_on_where_it_was_stopped(study, monkeypatch, tmp_path, capsys):
    calls = []

    def train(run):
        calls.append((run.arm, run.settings["t"], run.seed, run.tuning))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return {"knn": run.settings["t"] + run.seed / 100, "score": run.settings["t"]}

    with pytest.raises(KeyboardInterrupt):
        run(study, monkeypatch, tmp_path, train)
    assert not (tmp_path / "results").exists()
    first = list(calls)
    run(study, monkeypatch, tmp_path, train)
    tuning = study.TUNING_SEED
    assert calls[:5] == [("ours", 1, tuning, True), ("ours", 2, tuning, True)] + [
        ("ours", 2, s, False) for s in range(3)
    ]
    assert first[-1] == calls[6]
    assert len(calls) == 11
    document = json.loads((tmp_path / "results" / "paper-digits.json").read_text())
    assert [arm["settings"] for arm in document["arms"]] == [{"t": 2}, {"t": 4}]
    assert document["claims"][0]["verdict"] == "not reproduced"
    assert "NOT REPRODUCED: ours is better" in capsys.readouterr().out
    assert (tmp_path / "results" / "paper-digits.png").stat().st_size > 1000


def test_smoke_keeps_nothing(study, monkeypatch, tmp_path):
    run(study, monkeypatch, tmp_path, lambda run: {"knn": 1.0}, "--smoke")
    assert list(tmp_path.iterdir()) == []


def test_refuses_unequal_tuning(study, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["paper.py"])
    unfair = a_study(study, None)
    unfair.arms[0].candidates.append({"t": 9})
    with pytest.raises(SystemExit, match="ours 3, theirs 2"):
        study.main(lambda scale, smoke: unfair)


def test_summary_has_claims_numbers_and_notes(study, monkeypatch, tmp_path):
    def train(run):
        return {"knn": run.settings["t"] + run.seed, "score": 0.0}

    run(study, monkeypatch, tmp_path, train, setting="Tiny.", notes="Nothing differs.")
    command = [sys.executable, str(FOLDER / "summarise.py"), "--results", str(tmp_path / "results")]
    subprocess.run([*command, "--out", str(tmp_path / "RESULTS.md")], check=True)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "## A paper: digits" in text
    assert "| ours is better | **not reproduced** | -2.000 ± 0.000 |" in text
    assert "| theirs | t 3 | 4.000 ± 1.000 |" in text
    assert "Nothing differs." in text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs(script):
    command = [sys.executable, str(script), "--smoke", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    outcome = ("NDCG@10",) if script.stem == "recommenders" else ("REPRODUCED:", "INCONCLUSIVE:")
    assert any(word in done.stdout for word in outcome)
