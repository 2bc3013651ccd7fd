"""Kill training at random moments, go on from ``last``, and compare the end with a run that nobody killed.

    python scripts/reliability/kills.py --kills 20
    python scripts/reliability/kills.py --kills 10 --processes 2 --only InfoNCE ISogCLR MCLRec

Every run is a process of its own, forked from one that has everything imported, so that SIGKILL meets the command's own
work. With several processes, one of them is killed, and the others have to end by themselves within a minute. Compared
are all tensors of the model and of its optimisers.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from contrastive.cli import main
from contrastive.encoders import ConvEncoder, save_encoder
from contrastive.reading import read_tensors

SMALL = ["--model.encoder.widths=[8,8]", "--model.encoder.blocks=[0,0]", "--model.projector.hidden_dim=32"]
QUICK = ["--config=quickstart", *SMALL, "--data.batch_size=128"]
QUIET = ["--extras.evaluate=false", "--extras.report=false", "--trainer.enable_progress_bar=false"]
PATIENCE = 60.0  # seconds in which all processes of a run have to end after one was killed


def commands(folder: Path) -> dict[str, list[str]]:
    """What is trained, by name: the words after ``contrastive fit``."""
    torch.manual_seed(0)
    encoder = save_encoder(ConvEncoder(in_channels=1, widths=(8, 8), blocks=(0, 0)), folder / "encoder")
    separate = [f"--model.{part}_encoder.widths=[8,8]" for part in ("common", "salient")]
    separate += [f"--model.{part}_encoder.blocks=[0,0]" for part in ("common", "salient")]
    return {
        **{name: [*QUICK, f"--model.objective={name}"] for name in ("InfoNCE", "SogCLR", "ISogCLR")},
        "FineTune": [
            "--config=vision/finetune_digits",
            f"--model.encoder={encoder}",
            "--trainer.max_steps=-1",
        ],
        "Separate": ["--config=vision/separate_digits", *separate],
        "MCLRec": ["--config=recsys/quickstart", "--data.synthetic={users: 200, items: 50}"],
    }


def start(words: Sequence[str], log: Path) -> int:
    """Fork a process that carries a command out in a group of its own; returns its number."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    os.setpgid(0, 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        code = main(["fit", *words])
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """Exit code of a child."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint that training goes on from, by their places in it."""
    found: dict[str, torch.Tensor] = {}

    def walk(place: str, part: Any) -> None:
        if isinstance(part, torch.Tensor):
            found[place] = part
        elif isinstance(part, dict | list | tuple):
            for name, value in part.items() if isinstance(part, dict) else enumerate(part):
                walk(f"{place}.{name}", value)

    content = read_tensors(checkpoint)
    walk("model", content["state_dict"])
    walk("optimizers", content["optimizer_states"])
    return found


def differing(a: Path, b: Path) -> list[str]:
    """Names of the tensors that differ between two checkpoints, or are in one only."""
    one, other = state(a), state(b)
    alike = {name for name in one.keys() & other.keys() if torch.equal(one[name], other[name])}
    return sorted((one.keys() | other.keys()) - alike)


def members(group: int) -> list[int]:
    """Processes of a group that have not ended, the first one first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def kill(child: int, draw: random.Random) -> float:
    """Kill one process of a run; returns after how many seconds the last of the others had ended."""
    begin = time.monotonic()
    os.kill(draw.choice(members(child) or [child]), signal.SIGKILL)
    os.waitpid(child, 0)
    while members(child):
        if time.monotonic() - begin > PATIENCE:
            os.killpg(child, signal.SIGKILL)
            return float("inf")
        time.sleep(0.1)
    return time.monotonic() - begin


def try_kills(name: str, words: list[str], kills: int, seed: int, folder: Path) -> bool:
    """Kill a run so often, resume each time, and print a line of what came of it."""
    draw, log = random.Random(seed), folder / f"{name}.log"
    words = [*words, *QUIET]
    whole = folder / name / "whole"
    last = Path("checkpoints", "last.ckpt")
    begin = time.monotonic()
    child = start([*words, f"--run_dir={whole}"], log)
    while not (whole / last).is_file() and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.01)
    first = time.monotonic()
    if (whole / last).is_file() and wait(child):
        sys.exit(f"{name}: the run that is not killed has failed; see {log}")
    length = time.monotonic() - first
    equal, slowest, faults = 0, 0.0, []
    for number in range(kills):
        killed, resumed = folder / name / f"killed-{number}", folder / name / f"resumed-{number}"
        child = start([*words, f"--run_dir={killed}"], log)
        while not (killed / last).is_file():
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.9 * length))
        slowest = max(slowest, kill(child, draw))
        code = wait(start([*words, f"--run_dir={resumed}", f"--ckpt_path={killed / last}"], log))
        end = resumed / last if (resumed / last).is_file() else killed / last  # it was over already
        differ = differing(whole / last, end)
        equal += code == 0 and not differ
        if code or differ:
            faults.append(f"kill {number}: exit code {code}, {len(differ)} tensors differ {differ[:3]}")
    seconds = time.monotonic() - begin
    print(f"{name:<10} {equal:>3} of {kills} end bit-equal; all ended {slowest:5.1f} s after a kill at most; "
          f"{seconds:5.0f} s", *faults, sep="\n    ", flush=True)  # fmt: skip
    return equal == kills


def run() -> int:
    """Try all, and return how many did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each run")
    parser.add_argument("--processes", type=int, default=1, help="that train together")
    parser.add_argument("--only", nargs="*", help="names of runs; all by default")
    parser.add_argument("--epochs", type=int, default=8, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, words in commands(Path(folder)).items():
            if not options.only or name in options.only:
                words = [*words, f"--trainer.max_epochs={options.epochs}"]
                if options.processes > 1:
                    words = [*words, f"--trainer.devices={options.processes}", "--trainer.strategy=ddp_fork"]
                failed += not try_kills(name, words, options.kills, options.seed, Path(folder))
    return failed


if __name__ == "__main__":
    raise SystemExit(run())
