"""Training steps and full ranking of recommenders, beside the usual way to compute the same.

    python scripts/benchmark/recsys.py --data FOLDER/amazon-beauty.seq.tsv.gz --threads 2
    python scripts/benchmark/recsys.py --grow users items length --threads 2 --out growth.png

The usual way is a row of 50 columns for every training prefix, padded on the right, a batch of 256 of them, dense
logits, and for evaluation the whole score matrix and a top-k; RecBole's SASRec and MCLRec's published code do so.
RecBole itself takes part if PYTHONPATH names a folder with it (pip install --no-deps --target FOLDER recbole==1.2.1,
and what its import asks for): its dependencies are older than ours. Each contestant runs in a process of its own, so
that peak memory is its own. Without --data, histories are generated in the size of Amazon Beauty. Time per epoch is
that of a median step times the steps of an epoch.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from measure import peak_bytes, resident_bytes

# This file has the package's name, and Python looks in its folder first.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from recsys import MCLRec, RecommenderData, SASRec, SequentialRecommender  # noqa: E402
from recsys.batches import Batch, HeldOutBatches, training_prefixes  # noqa: E402
from recsys.metrics import rank_by_vectors  # noqa: E402
from recsys.objectives import Samples  # noqa: E402
from recsys.training import Part  # noqa: E402

LENGTH, BATCH = 50, 256


def load(options: argparse.Namespace) -> RecommenderData:
    if options.data:
        return RecommenderData(options.data, eval_batch=512)
    sizes = {"users": options.users, "items": options.items, "mean_length": options.length}
    return RecommenderData(synthetic=sizes, eval_batch=512)


def model_of(data: RecommenderData, heads: list[Any]) -> SequentialRecommender:
    torch.manual_seed(0)
    model = SequentialRecommender(SASRec(data.num_items, max_length=LENGTH), heads=heads)
    model.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign, assignment]
    data.needs_samples = bool(heads)
    if heads:
        model.prefixes = training_prefixes(data.split, LENGTH)
        for head in heads:
            head.setup(model.encoder, data.split, model.prefixes)
    return model.train()


def ours(data: RecommenderData, heads: list[Any]) -> Callable[[], None]:
    """A step as training takes it."""
    model = model_of(data, heads)
    optimizers, generator = model.configure_optimizers(), torch.Generator().manual_seed(0)
    batches = iter(data.train_dataloader())

    def step() -> None:
        batch = next(batches)
        samples = None
        if heads:
            assert model.prefixes is not None
            items, lengths = model.prefixes.gather(batch.samples)
            samples = Samples(items, lengths, model.prefixes.targets[batch.samples], batch.samples, generator)
        model.update(optimizers, [Part(batch, samples, generator)])

    return step


def usual(data: RecommenderData, heads: list[Any]) -> Callable[[], None]:
    """The same step with a padded row for each prefix, and views of full width."""
    model = model_of(data, heads)
    optimizers, generator = model.configure_optimizers(), torch.Generator().manual_seed(0)
    table = model.prefixes or training_prefixes(data.split, LENGTH)
    order = torch.randperm(len(table), generator=generator)
    place = 0
    encoder = model.encoder
    encoder.encode_grouped = encoder.encode  # type: ignore[method-assign]

    def step() -> None:
        nonlocal place
        rows = order[place : place + BATCH]
        place += BATCH
        items, lengths = table.gather(rows)
        items = F.pad(items, (0, LENGTH - items.shape[1]))
        batch = Batch(items, lengths, torch.arange(len(rows)), lengths - 1, table.targets[rows], rows)
        samples = Samples(items, lengths, table.targets[rows], rows, generator)
        model.update(optimizers, [Part(batch, samples, generator)])

    return step


def recbole(data: RecommenderData) -> Any:
    """RecBole's SASRec for the same items, and the names of its inputs."""
    from recbole.model.sequential_recommender.sasrec import SASRec as Theirs

    class Config(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            return self.get(key)

    config = Config(
        USER_ID_FIELD="user",
        ITEM_ID_FIELD="item",
        LIST_SUFFIX="_list",
        ITEM_LIST_LENGTH_FIELD="length",
        NEG_PREFIX="negative_",
        MAX_ITEM_LIST_LENGTH=LENGTH,
        device="cpu",
        n_layers=2,
        n_heads=2,
        hidden_size=64,
        inner_size=256,
        hidden_dropout_prob=0.5,
        attn_dropout_prob=0.5,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        initializer_range=0.02,
        loss_type="CE",
    )
    torch.manual_seed(0)
    return Theirs(config, SimpleNamespace(num=lambda field: data.num_items + 1))


def padded(items: Tensor, lengths: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """A batch as RecBole has it: ``LENGTH`` columns."""
    return {"item_list": F.pad(items, (0, LENGTH - items.shape[1])), "length": lengths, "item": targets}


def recbole_step(data: RecommenderData, heads: list[Any]) -> Callable[[], None]:
    """A step of RecBole's SASRec with its cross-entropy."""
    model = recbole(data).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    table = training_prefixes(data.split, LENGTH)
    batches = iter(torch.randperm(len(table)).split(BATCH))

    def step() -> None:
        rows = next(batches)
        optimizer.zero_grad()
        model.calculate_loss(padded(*table.gather(rows), table.targets[rows])).backward()
        optimizer.step()

    return step


def recbole_rank(data: RecommenderData) -> Callable[[], None]:
    """Full ranking as RecBole's evaluation collects it: scores of a batch, the 20 best, whether the target is there."""
    model = recbole(data).eval()
    batches = HeldOutBatches(data.split.valid, max_length=LENGTH, batch_size=BATCH)

    @torch.inference_mode()
    def evaluate() -> None:
        for batch in batches:
            scores = model.full_sort_predict(padded(batch.items, batch.lengths, batch.targets))
            scores[:, 0] = -torch.inf
            (scores.topk(20).indices == batch.targets[:, None]).sum()

    return evaluate


def rank_ours(data: RecommenderData) -> Callable[[], None]:
    """One pass over the validation cases as training makes it."""
    encoder = model_of(data, []).encoder.eval()

    @torch.inference_mode()
    def evaluate() -> None:
        for batch in data.val_dataloader():
            states = encoder.encode(batch.items, batch.lengths)
            rank_by_vectors(states, encoder.item_vectors(), batch.targets.numpy())

    return evaluate


def rank_usual(data: RecommenderData) -> Callable[[], None]:
    """The same pass with padding to full width, a kept score matrix and the 20 best of each row."""
    encoder = model_of(data, []).encoder.eval()
    batches = HeldOutBatches(data.split.valid, max_length=LENGTH, batch_size=BATCH)

    @torch.inference_mode()
    def evaluate() -> None:
        scores: list[Tensor] = []
        targets = []
        for batch in batches:
            items = F.pad(batch.items, (0, LENGTH - batch.items.shape[1]))
            scores.append(encoder.encode(items, batch.lengths) @ encoder.item_vectors().T)
            targets.append(batch.targets)
        top = torch.cat(scores).topk(20).indices
        (top == torch.cat(targets)[:, None]).float().sum(1).mean()

    return evaluate


THREE_PHASES = {"update": "released", "model_weight": 0.05}
CONTESTANTS: dict[str, tuple[Callable[..., Callable[[], None]], Any]] = {
    "SASRec step": (ours, []),
    "SASRec step, usual": (usual, []),
    "SASRec step, RecBole": (recbole_step, []),
    "MCLRec step": (ours, [{}]),
    "MCLRec step, three phases": (ours, [THREE_PHASES]),
    "MCLRec step, three phases, usual": (usual, [THREE_PHASES]),
    "full ranking": (rank_ours, None),
    "full ranking, usual": (rank_usual, None),
    "full ranking, RecBole": (recbole_rank, None),
}


def measure(options: argparse.Namespace) -> dict[str, float]:
    make, heads = CONTESTANTS[options.one]
    data = load(options)
    before = resident_bytes()
    run = make(data) if heads is None else make(data, [MCLRec(**arguments) for arguments in heads])
    repeats = options.repeats if heads is not None else max(2, options.repeats // 10)
    wall, cpu = [], []
    for _ in range(repeats + 1):
        start, used = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    peak = (peak_bytes() - before) / 1e6
    steps = len(data.train_dataloader()) if heads is not None else 1
    return {
        "wall": statistics.median(wall[1:]),
        "cpu": statistics.median(cpu[1:]),
        "mean cpu": statistics.fmean(cpu[1:]),
        "peak MB": peak,
        "steps": steps,
    }


def one(options: argparse.Namespace, name: str, **sizes: int) -> dict[str, float]:
    words = [sys.executable, __file__, "--one", name, "--threads", str(options.threads)]
    words += ["--repeats", str(options.repeats)]
    words += ["--data", options.data] if options.data and not sizes else []
    for key, number in {
        "users": options.users,
        "items": options.items,
        "length": options.length,
        **sizes,
    }.items():
        words += [f"--{key}", str(number)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


GROWTH: dict[str, list[dict[str, int]]] = {
    "users": [{"users": n, "items": 12_000} for n in (5_000, 20_000, 80_000)],
    "items": [{"users": 20_000, "items": n} for n in (10_000, 100_000, 1_000_000)],
    "length": [{"users": 5_000, "items": 12_000, "length": n} for n in (8, 16, 32, 64)],
}


def grow(options: argparse.Namespace) -> None:
    tables: dict[str, list[dict[str, float]]] = {}
    for what in options.grow:
        for sizes in GROWTH[what]:
            row: dict[str, float] = dict(sizes)
            for name in ("SASRec step", "full ranking"):
                found = one(options, name, **sizes)
                row |= {f"{name}, ms": 1000 * found["wall"], f"{name}, MB": found["peak MB"]}
            tables.setdefault(what, []).append(row)
            print("  ".join(f"{key} {value:,.0f}" for key, value in row.items()), flush=True)
    if options.out:
        draw(tables, options.out)


def draw(tables: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Time above, memory below, a column for each size that grows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.8 * len(tables), 5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(tables), sharex="col", sharey="row", squeeze=False)
    for column, (what, rows) in zip(grid.T, tables.items(), strict=True):
        for axes, unit in zip(column, ("ms", "MB"), strict=True):
            for name in ("SASRec step", "full ranking"):
                axes.plot(
                    [row[what] for row in rows], [row[f"{name}, {unit}"] for row in rows], "o-", label=name
                )
            axes.set(xscale="log", yscale="log")
            axes.set_xticks([row[what] for row in rows], [f"{row[what]:,.0f}" for row in rows])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        column[-1].set_xlabel(what)
    for axes, unit in zip(grid[:, 0], ("ms", "MB above the data"), strict=True):
        axes.set(ylim=(10, None), ylabel=unit)
    grid[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="", help="file of histories; generated ones by default")
    parser.add_argument("--users", type=int, default=22_000)
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--length", type=int, default=9)
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument(
        "--grow", nargs="+", choices=list(GROWTH), help="measure growth with these instead of comparing"
    )
    parser.add_argument("--repeats", type=int, default=20, help="steps, of which the median counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="picture of the growth, or JSON of the comparison")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(options)))
        return
    print(
        f"{platform.machine()}, torch {torch.__version__}, {options.threads} threads, {options.data or 'generated'}"
    )
    if options.grow:
        grow(options)
        return
    found: dict[str, dict[str, float]] = {}
    for name in options.contestants:
        try:
            found[name] = one(options, name)
        except subprocess.CalledProcessError as failed:
            if "RecBole" not in name or "No module named" not in failed.stderr:
                raise SystemExit(failed.stderr) from None
            print(f"{name:34} not installed")
            continue
        f, reference = found[name], found.get(name.rpartition(", ")[0])
        ratio = (
            ""
            if reference is f or reference is None
            else (f"  {f['wall'] / reference['wall']:.1f}x wall, {f['cpu'] / reference['cpu']:.1f}x CPU")
        )
        epoch = "" if f["steps"] == 1 else f"  epoch {f['cpu'] * f['steps']:,.0f} CPU-s"
        print(
            f"{name:34} {1000 * f['wall']:9,.0f} ms wall {1000 * f['cpu']:9,.0f} ms CPU "
            f"{f['peak MB']:7,.0f} MB{epoch}{ratio}",
            flush=True,
        )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
