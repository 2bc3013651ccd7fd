"""The script that kills training: what it trains can be trained, and it notices a difference."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "scripts" / "reliability" / "kills.py"


@pytest.fixture(scope="module")
def kills():
    spec = importlib.util.spec_from_file_location("kills", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_difference_in_weights_or_optimiser_is_noticed(kills, tmp_path):
    content = {
        "state_dict": {"a": torch.ones(2)},
        "optimizer_states": [{"state": {0: {"step": torch.ones(())}}}],
    }
    torch.save(content, tmp_path / "one.ckpt")
    torch.save(content, tmp_path / "same.ckpt")
    assert kills.differing(tmp_path / "one.ckpt", tmp_path / "same.ckpt") == []
    content["optimizer_states"][0]["state"][0]["step"] += 1
    content["state_dict"]["b"] = torch.zeros(1)
    torch.save(content, tmp_path / "other.ckpt")
    found = kills.differing(tmp_path / "one.ckpt", tmp_path / "other.ckpt")
    assert found == ["model.b", "optimizers.0.state.0.step"]


def test_a_killed_recommender_goes_on_as_if_nothing_had_happened(tmp_path):
    words = ["--kills=1", "--epochs=3", "--only", "MCLRec"]  # by itself: the process of the tests has threads
    environment = {**os.environ, "PYTHONPATH": str(PATH.parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(PATH), *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "1 of 1 end bit-equal" in done.stdout, done.stderr[-2000:]
    assert done.returncode == 0
