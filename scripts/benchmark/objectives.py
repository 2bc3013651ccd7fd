"""Time and memory of objectives, forward and backward, beside the popular libraries in the same run.

python scripts/benchmark/objectives.py --batch 256 1024 4096 --threads 2 --out objectives.json

Every row is B samples in two views of width 128. Ratios are peer / ours, so larger is better for us. "products" are
three plain matrix products of the same size, the least work that any dense implementation does.
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
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE, DIM = 0.1, 128
ONE_STEP_ABOVE = 4096  # larger batches take seconds to minutes a step: the first one is timed


def products(batch: int) -> Callable[[], None]:
    z = torch.randn(2 * batch, DIM)
    matrix = torch.empty(2 * batch, 2 * batch)

    def step() -> None:
        torch.mm(z, z.T, out=matrix)
        matrix @ z
        matrix.T @ z

    return step


def naive(z1: Tensor, z2: Tensor) -> Tensor:
    """NT-Xent as most people write it."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    n = len(z)
    logits = (z @ z.T / TEMPERATURE).masked_fill(torch.eye(n, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, (torch.arange(n) + n // 2) % n)


def ours(z1: Tensor, z2: Tensor) -> Tensor:
    from contrastive.functional import info_nce

    return info_nce(z1, z2, temperature=TEMPERATURE)


def streamed(z1: Tensor, z2: Tensor) -> Tensor:
    """The same loss through ``stream_rows``, with an ordinary row function."""
    from contrastive import stream_rows

    z = F.normalize(torch.cat([z1, z2]), dim=1)
    n = len(z)
    partner = (torch.arange(n) + n // 2) % n

    def row_loss(similarity: Tensor, rows: slice) -> Tensor:
        logits = similarity / TEMPERATURE
        positive = logits.gather(1, partner[rows, None])
        own = torch.arange(rows.start, rows.stop)[:, None]
        return (logits.scatter(1, own, -torch.inf).logsumexp(1) - positive[:, 0]).sum()

    return stream_rows(z, z, row_loss) / n


def lightly() -> Callable[[Tensor, Tensor], Tensor]:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=TEMPERATURE)


def pytorch_metric_learning() -> Callable[[Tensor, Tensor], Tensor]:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return SelfSupervisedLoss(NTXentLoss(temperature=TEMPERATURE))


# name -> (loss, largest batch that it is tried at): beyond, it takes minutes or more memory than most machines have
CONTESTANTS: dict[str, tuple[Callable[[], Callable[[Tensor, Tensor], Tensor]], int]] = {
    "contrastive InfoNCE": (lambda: ours, 65536),
    "contrastive stream_rows": (lambda: streamed, 16384),
    "naive PyTorch": (lambda: naive, 8192),
    "lightly NTXentLoss": (lightly, 8192),
    "pytorch-metric-learning NTXentLoss": (pytorch_metric_learning, 256),
}


def measure(name: str, batch: int, repeats: int, threads: int) -> dict[str, float]:
    """Median seconds and peak extra memory of one contestant, in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if name == "products":
        return {"seconds": _median(products(batch), repeats)}
    loss_function = CONTESTANTS[name][0]()
    z1, z2 = torch.randn(batch, DIM, requires_grad=True), torch.randn(batch, DIM, requires_grad=True)

    def step() -> None:
        z1.grad = z2.grad = None
        loss_function(z1, z2).backward()

    warm = torch.randn(8, DIM, requires_grad=True)
    loss_function(warm, warm.flip(0)).backward()  # imports and thread pools are not the loss's memory
    before = _resident_bytes()
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    peak = _peak_resident_bytes() - before
    if batch <= ONE_STEP_ABOVE:
        seconds = _median(step, repeats)
    return {"seconds": seconds, "extra_bytes": max(peak, 0), "loss": float(loss_function(z1, z2).detach())}


def _median(step: Callable[[], None], repeats: int) -> float:
    step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _resident_bytes() -> int:
    """Memory in use now; resets the peak, so that it starts from here."""
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak_resident_bytes() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(
        f"{field} is not in /proc/self/status: peak memory is read there, so run this on Linux."
    )


def _in_new_process(name: str, batch: int, repeats: int, threads: int) -> dict[str, float]:
    """Each contestant gets a fresh process, so that memory that one leaves behind is not counted for another."""
    command = [sys.executable, __file__, "--one", name, "--batch", str(batch)]
    command += ["--repeats", str(repeats), "--threads", str(threads)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
    )
    if done.returncode:
        missing = "No module named" in done.stderr
        hint = " Install the peers: pip install 'contrastive[benchmark]'." if missing else ""
        raise SystemExit(f"{name} failed at batch {batch}: {done.stderr.strip().splitlines()[-1]}.{hint}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 1024, 4096, 16384, 65536])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--rounds", type=int, default=1, help="whole comparisons; the median ratio is printed"
    )
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.batch[0], options.repeats, options.threads)))
        return

    print(
        f"torch {torch.__version__}, {options.threads} threads, {platform.processor() or platform.machine()}, D = {DIM}"
    )
    print(f"{'batch':>6}  {'contestant':36}{'ms':>10}{'extra MB':>10}{'time / ours':>13}{'loss':>12}")
    table = []
    for batch in options.batch:
        names = [name for name, (_, limit) in CONTESTANTS.items() if batch <= limit]
        names = (["products"] if batch <= 16384 else []) + names
        rounds = [
            {n: _in_new_process(n, batch, options.repeats, options.threads) for n in names}
            for _ in range(options.rounds)
        ]
        for name in names:
            ratio = statistics.median(
                r[name]["seconds"] / r["contrastive InfoNCE"]["seconds"] for r in rounds
            )
            row = {key: statistics.median(r[name][key] for r in rounds) for key in rounds[0][name]}
            table.append({"batch": batch, "name": name, "ratio": ratio, **row})
            extra = f"{row['extra_bytes'] / 1e6:10.0f}" if "extra_bytes" in row else " " * 10
            loss = f"{row['loss']:12.6f}" if "loss" in row else ""
            print(
                f"{batch:>6}  {name:36}{1e3 * row['seconds']:>10.1f}{extra}{ratio:>12.2f}x{loss}", flush=True
            )
        losses = [r["loss"] for r in rounds[0].values() if "loss" in r]
        if max(losses) - min(losses) > 1e-5 * max(losses):
            raise SystemExit(
                f"the losses at batch {batch} differ: {losses}; the contestants compute different things."
            )
    if options.out:
        options.out.write_text(
            json.dumps({"torch": torch.__version__, "threads": options.threads, "rows": table}, indent=1)
        )


if __name__ == "__main__":
    main()
