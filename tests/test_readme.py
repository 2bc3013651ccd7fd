"""Every command and example of the README runs, in a folder where a short quickstart run stands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.strip()
]
SHORT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The README's surroundings: the configurations, a run, and a folder of photos."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "configs", folder / "configs")
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(150):
            pixels = random.integers(0, 256, (40, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / label / f"{i}.png")
    run(folder, ["fit", "--config", "configs/quickstart.yaml", *SHORT])
    return folder


def run(folder, words):
    done = subprocess.run(
        [sys.executable, "-c", "from contrastive.cli import main; raise SystemExit(main())", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_two_commands_stand_where_ci_reads_them():
    install_and_fit, install_and_test = COMMANDS[:2]
    assert install_and_fit.startswith("pip install")
    assert "contrastive fit --config configs/quickstart.yaml" in install_and_fit
    assert " pytest" in install_and_test


@pytest.mark.parametrize("command", COMMANDS[2:], ids=range(len(COMMANDS) - 2))
def test_commands(folder, command):
    words = command.split()
    assert words[0] == "contrastive"
    output = run(folder, words[1:] + (SHORT if words[1] == "fit" else []))
    assert output.strip()


def test_python_examples(folder, monkeypatch):
    monkeypatch.chdir(folder)
    script = "\n".join(re.findall(r"```python\n(.*?)```", README, re.S))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    printed = re.findall(r"^[01]\.\d+$", done.stdout, re.M)  # beside the run plans
    assert len(printed) == 1
    assert 0 < float(printed[0]) <= 1
