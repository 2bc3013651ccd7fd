"""Compare ways to compute the same loss: time of forward and backward, and peak extra memory.

A benchmark script declares contestants and cases and hands them to :func:`compare`:

    def ours(batch: int, dim: int) -> Problem:
        z = torch.randn(batch, dim, requires_grad=True)
        return Problem(lambda: objective(z), [z])

    if __name__ == "__main__":
        compare(__doc__, {"ours": ours, "official form": official}, {"B = 512": {"batch": 512, "dim": 128}})

The first contestant is ours; ratios are others / ours. Each contestant runs in a process of its own, so that memory
that one leaves behind is not counted for another. Inputs come from the same seed.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LONG_STEP = 5.0  # seconds; a step that takes longer is not repeated


@dataclass(frozen=True)
class Problem:
    """A loss to compute and the leaves to differentiate it by; ``loss`` may return None to have only itself timed."""

    loss: Callable[[], Tensor | None]
    leaves: Sequence[Tensor]


Contestant = Callable[..., Problem]


def compare(
    description: str | None,
    contestants: Mapping[str, Contestant],
    cases: Mapping[str, Mapping[str, Any]],
    *,
    skip: Callable[[str, str], bool] = lambda contestant, case: False,
    tolerance: float = 1e-5,
) -> None:
    """Run the command line of a benchmark.

    Args:
        description: text of ``--help``.
        contestants: name -> function that builds the problem from the arguments of a case. The first is ours.
        cases: name -> arguments.
        skip: says for a contestant and a case that it would take too long or too much memory.
        tolerance: largest relative difference of the losses; beyond it the contestants compute different things.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", nargs="+", default=list(cases), choices=list(cases), metavar="CASE")
    parser.add_argument("--repeats", type=int, default=5, help="steps; the median counts")
    parser.add_argument("--rounds", type=int, default=1, help="whole comparisons; medians are printed")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(options.threads)
        print(json.dumps(_measure(contestants[options.one], cases[options.case[0]], options.repeats)))
        return

    print(
        f"torch {torch.__version__}, {options.threads} threads, {platform.processor() or platform.machine()}"
    )
    print(f"{'case':24}{'contestant':36}{'ms':>10}{'extra MB':>10}{'time / ours':>13}{'loss':>13}")
    table = []
    for case in options.case:
        names = [name for name in contestants if not skip(name, case)]
        rounds = [
            {name: _in_new_process(name, case, options.repeats, options.threads) for name in names}
            for _ in range(options.rounds)
        ]
        for name in names:
            ratio = statistics.median(r[name]["seconds"] / r[names[0]]["seconds"] for r in rounds)
            row = {key: statistics.median(r[name][key] for r in rounds) for key in rounds[0][name]}
            table.append({"case": case, "name": name, "ratio": ratio, **row})
            loss = f"{row['loss']:13.6f}" if "loss" in row else ""
            cost = f"{1e3 * row['seconds']:>10.1f}{row['extra_bytes'] / 1e6:>10.0f}"
            print(f"{case:24}{name:36}{cost}{ratio:>12.2f}x{loss}", flush=True)
        losses = [result["loss"] for result in rounds[0].values() if "loss" in result]
        if losses and max(losses) - min(losses) > tolerance * max(map(abs, losses)):
            raise SystemExit(
                f"the losses at {case} differ: {losses}; the contestants compute different things."
            )
    if options.out:
        document = {"torch": torch.__version__, "threads": options.threads, "rows": table}
        options.out.write_text(json.dumps(document, indent=1))


def _measure(contestant: Contestant, arguments: Mapping[str, Any], repeats: int) -> dict[str, float]:
    """Median seconds of a step and peak extra memory of the first one, in this process."""
    torch.manual_seed(0)
    problem = contestant(**arguments)
    warm = torch.randn(8, 8, requires_grad=True)
    (warm @ warm).sum().backward()  # thread pools are not the loss's memory
    before = resident_bytes()
    loss, seconds = _step(problem)
    result = {"extra_bytes": float(max(peak_bytes() - before, 0))}
    # Once so much was freed, glibc keeps what is freed later instead of giving it back to the system and asking for
    # it again in every step; in training the encoder's activations see to that.
    del warm
    torch.zeros(31 * 2**18)
    if seconds < LONG_STEP:
        seconds = statistics.median(_step(problem)[1] for _ in range(repeats))
    return result | {"seconds": seconds} | ({} if loss is None else {"loss": loss})


def _step(problem: Problem) -> tuple[float | None, float]:
    for leaf in problem.leaves:
        leaf.grad = None
    start = time.perf_counter()
    loss = problem.loss()
    if loss is not None:
        loss.backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - start
    return None if loss is None else float(loss.detach()), seconds


def resident_bytes() -> int:
    """Memory in use now; resets the peak, so that it starts from here."""
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """Most memory that was in use since :func:`resident_bytes`, pages of mapped files included."""
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(
        f"{field} is not in /proc/self/status: peak memory is read there, so run this on Linux."
    )


def _in_new_process(name: str, case: str, repeats: int, threads: int) -> dict[str, float]:
    command = [sys.executable, sys.argv[0], "--one", name, "--case", case]
    command += ["--repeats", str(repeats), "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        missing = "No module named" in done.stderr
        hint = " Install the peers: pip install 'contrastive-representations[benchmark]'." if missing else ""
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"{name} failed at {case}: {last}.{hint}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result
