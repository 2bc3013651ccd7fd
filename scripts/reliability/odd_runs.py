"""Odd but allowed training runs of every objective: each trains with finite numbers, or is refused in one sentence.

    python scripts/reliability/odd_runs.py

Tried are ``overfit_batches``, ``fast_dev_run``, batches of such sizes that the last one of an epoch or of a validation
has one sample or two, or that no batch is full, and a run that goes on with half and with double the batch size. Every
command is a process of its own; its losses are read from ``metrics.csv``.
"""

import argparse
import csv
import math
import sys
import tempfile
import time
from pathlib import Path

import torch
from kills import QUICK, QUIET, commands, start, wait

QUICK_PARTS = ["CACR", "HardInfoNCE", "Hydra", "InfoNCE", "ISogCLR", "NNCLR", "SogCLR", "SupCon"]
RECSYS = ["--config=recsys/quickstart", "--data.synthetic={users: 200, items: 50}"]
PAIRS = ["--config=vision/pairs_digits", "--model.encoder.widths=[8,8]", "--model.encoder.blocks=[0,0]"]
SMALL = ["--model.encoder.widths=[8,8]", "--model.encoder.blocks=[0,0]"]


def runs(folder: Path) -> dict[str, list[str]]:
    """What is trained, by name: the words after ``contrastive fit``."""
    known = commands(folder)
    heads = {name: f'[{{"class_path": "recsys.{name}"}}]' for name in ("CL4SRec", "DuoRec", "SRACL")}
    return {
        **{name: [*QUICK, f"--model.objective={name}"] for name in QUICK_PARTS},
        "GroCo": [*QUICK, "--model.objective=GroCo", "--model.views.views=3"],
        "BECLR": ["--config=vision/beclr_digits", *SMALL, "--model.objective.memory_start_epoch=0"],
        "CoreTuning": known["FineTune"],
        "CrossEntropy": [*known["FineTune"], "--model.objective=CrossEntropy"],
        "SepCLR": known["Separate"],
        "ISogCLR of pairs": PAIRS,
        "InfoNCE of pairs": [*PAIRS, "--model.objective=InfoNCE", "--model.objective.negatives=cross"],
        "MCLRec": known["MCLRec"],
        **{name: [*RECSYS, f"--model.heads={words}"] for name, words in heads.items()},
    }


def variants(option: str) -> dict[str, list[str]]:
    """The odd runs of a command, by name: what is added to its words."""
    train, held_out = {"batch_size": (1294, 144), "batch_targets": (1666, 200)}[option]
    whole = {
        "one left": train - 1,
        "two left": (train - 2) // 3,
        "none is full": train + 1,
        "one held out left": held_out - 1,
        "two held out left": (held_out - 2) // 2,
    }
    short = ["--trainer.limit_train_batches=6"]
    return {
        "overfit 2": ["--trainer.overfit_batches=2"],
        "overfit a share": ["--trainer.overfit_batches=0.3"],
        "fast_dev_run": ["--trainer.fast_dev_run=true"],
        **{name: [f"--data.{option}={size}"] for name, size in whole.items()},
        **{f"batches of {size}": [f"--data.{option}={size}", *short] for size in (1, 2, 3)},
    }


def judge(folder: Path, log: Path, code: int) -> str | None:
    """What is wrong with a run that ended; None if nothing is."""
    text = log.read_text(encoding="utf-8", errors="replace")
    if code:
        said = [line for line in text.splitlines() if line.startswith("contrastive: error: ")]
        if len(said) == 1 and "Traceback" not in text:
            return None
        return f"exit code {code}: {text.strip().splitlines()[-1][:150] if text.strip() else 'nothing said'}"
    metrics = folder / "metrics.csv"
    if not metrics.is_file():
        return None  # fast_dev_run leaves nothing
    with metrics.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    bad = {name for row in rows for name, value in row.items() if value and not math.isfinite(float(value))}
    if bad:
        return f"not finite: {', '.join(sorted(bad))}"
    return None if any(name.endswith("loss") or "loss" in name for row in rows for name in row) else "no loss"


def attempt(name: str, words: list[str], folder: Path) -> tuple[int, int, list[str]]:
    """Try the odd runs of one objective; returns how many there were, how many were refused, and the faults."""
    refused, faults = 0, []
    option = "batch_targets" if any("recsys" in word for word in words) else "batch_size"
    first = "an epoch"
    again = [f"--ckpt_path={folder / name / first / 'checkpoints' / 'last.ckpt'}"]
    odd = {
        **variants(option),
        first: ["--trainer.max_epochs=1"],
        "half, resumed": [f"--data.{option}=64", *again],
        "double, resumed": [f"--data.{option}=256", *again],
    }
    for what, more in odd.items():
        run, log = folder / name / what, folder / f"{name} {what}.log"
        code = wait(start([*words, *QUIET, "--trainer.max_epochs=2", f"--run_dir={run}", *more], log))
        refused += bool(code)
        if problem := judge(run, log, code):
            faults.append(f"{what}: {problem}")
    return len(odd), refused, faults


def main() -> int:
    """Try all, and return how many were wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of objectives; all by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, words in runs(Path(folder)).items():
            if options.only and name not in options.only:
                continue
            begin = time.monotonic()
            tried, refused, faults = attempt(name, words, Path(folder))
            failed += len(faults)
            print(
                f"{name:<18}{tried - len(faults):>3} of {tried} right, {refused} of them refused; "
                f"{time.monotonic() - begin:4.0f} s",
                *faults,
                sep="\n    ",
                flush=True,
            )
    return failed


if __name__ == "__main__":
    sys.exit(main() > 0)
