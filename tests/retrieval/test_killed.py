"""Processes killed in the middle of writing leave what was there, and the next one goes on.

``CONTRASTIVE_KILLS`` sets how often each is killed.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from contrastive.retrieval import Embeddings, Index, embed

KILLS = int(os.environ.get("CONTRASTIVE_KILLS", "2"))
SCRIPT = Path(__file__).with_name("killed.py")


def kill(what: str, folder: Path, seconds: float) -> bool:
    """Kill the script so long after it has begun; tells whether it still ran."""
    process = subprocess.Popen([sys.executable, SCRIPT, what, folder], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "begun\n"
        time.sleep(seconds)
        running = process.poll() is None
        process.send_signal(signal.SIGKILL)
    return running


@pytest.mark.parametrize("what", ["save", "add"])
def test_an_index_is_whole_whenever_its_writer_is_killed(what, tmp_path):
    moments = random.Random(0)
    first = np.random.default_rng(0).normal(size=(2000, 16))
    Index.build(first, factory="HNSW8").save(tmp_path)
    size = 2000
    for _ in range(KILLS):
        assert kill(what, tmp_path, moments.uniform(0.0, 0.6))
        index = Index.load(tmp_path)
        assert len(index) >= size
        assert len(index) % 50 == 0
        assert index.ids.tolist() == list(range(len(index)))
        assert (index.search(first[:100], 1)[1][:, 0] == np.arange(100)).mean() > 0.95
        size = len(index)


def test_embeddings_go_on_without_holes_or_repetitions(tmp_path, capsys):
    moments = random.Random(1)
    for _ in range(KILLS):
        kill("embed", tmp_path, moments.uniform(0.0, 0.3))
    embed(lambda x: x + 1, torch.arange(40_000.0).reshape(20_000, 2), tmp_path, shard_size=500, batch_size=50)
    vectors, ids, _ = zip(*Embeddings(tmp_path, check=True).batches(), strict=True)
    assert np.concatenate(ids).tolist() == list(range(20_000))
    assert (np.concatenate(vectors) == np.arange(40_000).reshape(20_000, 2) + 1).all()
    assert not list(tmp_path.glob(".part-*"))
