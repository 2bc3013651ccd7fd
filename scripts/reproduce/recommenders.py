"""Next-item recommendation: contrastive methods beside floors and a plain encoder that was trained as hard.

    python scripts/reproduce/recommenders.py --data FOLDER --dataset amazon-office
    python scripts/reproduce/recommenders.py --data FOLDER --dataset amazon-beauty --method MCLRec --seeds 0 1 2

FOLDER holds ``<dataset>.seq.tsv.gz`` and, where there are any, ``.attr.tsv.gz`` or ``.items.tsv.gz``. Every method
trains until validation NDCG@10 has not risen for ten epochs; the best epoch is judged on the test items, against the
whole catalogue with the history kept, ties counting against the model. Each finished run is a JSON file with its ranks
beside it, each unfinished one has a checkpoint: the same command goes on where it was stopped. When every method has
its seeds, the table and the paired comparisons are written to --out.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from recsys import (
    SRACL,
    CL4SRec,
    DuoRec,
    GRU4Rec,
    ItemKNN,
    MarkovChain,
    MCLRec,
    Popularity,
    RecommenderData,
    SASRec,
    SequentialRecommender,
    TransitionMixture,
    rank_targets,
    ranking_metrics,
)
from recsys.data import Sequences

FLOORS: dict[str, Callable[[], Any]] = {
    "popularity": Popularity,
    "Markov chain": MarkovChain,
    "item-kNN": ItemKNN,
}
# What a method may choose from, on validation NDCG@10 of one further seed. The encoder's dropout is chosen for the
# plain loss and then the same for all.
DROPOUT = (0.2, 0.5, 0.7)
METHODS: dict[str, list[dict[str, Any]]] = {
    "SASRec": [{}],
    "GRU4Rec": [{"dropout": share} for share in (0.3, 0.5, 0.7)],
    "CL4SRec": [{"weight": weight} for weight in (0.1, 0.03, 0.3)],
    "DuoRec": [{"weight": a, "target_weight": b} for a, b in ((0.1, 0.1), (0.03, 0.3), (0.3, 0.3))],
    "MCLRec": [{"model_weight": weight} for weight in (0.05, 0.02, 0.2)],
    "MCLRec, three phases": [{"model_weight": weight} for weight in (0.05, 0.02, 0.2)],
    "SRA-CL": [{"user_weight": a, "item_weight": b} for a, b in ((0.1, 0.1), (0.05, 0.05), (0.1, 0.3))],
    "SRA-CL, leaky retrieval": [
        {"user_weight": a, "item_weight": b} for a, b in ((0.1, 0.1), (0.05, 0.05), (0.1, 0.3))
    ],
}
# Chosen with validation data by --tune; others use the first candidate.
CHOSEN: dict[str, dict[str, dict[str, Any]]] = {}
SHOWN = ("HR@5", "HR@10", "HR@20", "NDCG@5", "NDCG@10", "NDCG@20")
PATIENCE, TUNING_SEED = 10, 1000


def load(options: argparse.Namespace, seed: int) -> RecommenderData:
    stem = options.data / options.dataset
    files = {
        name: Path(f"{stem}.{kind}.tsv.gz") for name, kind in (("attributes", "attr"), ("items", "items"))
    }
    present = {name: str(path) for name, path in files.items() if path.is_file()}
    return RecommenderData(
        f"{stem}.seq.tsv.gz",
        **present,
        max_length=50,
        stride=options.stride,
        eval_batch=2048 if options.accelerator != "cpu" else 512,
        seed=seed,
    )


def build(
    method: str, settings: dict[str, Any], data: RecommenderData, work: Path, seed: int
) -> SequentialRecommender:
    settings = dict(settings)
    dropout = settings.pop("dropout", 0.5)
    options = {name: settings.pop(name) for name in ("learning_rate", "weight_decay") if name in settings}
    if method == "GRU4Rec":
        return SequentialRecommender(
            GRU4Rec(max_length=data.max_length, dropout=dropout), seed=seed, **options
        )
    encoder = SASRec(max_length=data.max_length, dropout=dropout, attention_dropout=dropout)
    data_ = data.data
    semantics = (
        "attributes"
        if data_.attributes is not None
        else "texts"
        if data_.texts is not None
        else "interactions"
    )
    meaning = {"semantics": semantics, "cache": str(work / "semantics")}
    heads = {
        "SASRec": lambda: [],
        "CL4SRec": lambda: [CL4SRec(**settings)],
        "DuoRec": lambda: [DuoRec(**settings)],
        "MCLRec": lambda: [MCLRec(**settings)],
        "MCLRec, three phases": lambda: [MCLRec(**settings, update="released")],
        "SRA-CL": lambda: [SRACL(**settings, **meaning)],
        "SRA-CL, leaky retrieval": lambda: [SRACL(**settings, **meaning, retrieval="official_leaky")],
    }[method]()
    return SequentialRecommender(encoder, heads=heads, seed=seed, **options)


def train(options: argparse.Namespace, method: str, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """The record of one run: read if it has finished before, else trained and judged."""
    key = hashlib.sha256(
        json.dumps([options.dataset, method, settings, seed], sort_keys=True).encode()
    ).hexdigest()[:12]
    record = options.work / f"{options.dataset}-{key}.json"
    if record.is_file():
        found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return found
    folder = options.work / key
    seed_everything(seed, verbose=False)
    data = load(options, seed)
    model = build(method, settings, data, options.work, seed)
    best = ModelCheckpoint(folder, "best", monitor="val_NDCG@10", mode="max", save_last=True)
    stop = EarlyStopping("val_NDCG@10", mode="max", patience=PATIENCE)
    trainer = Trainer(
        max_epochs=options.epochs,
        accelerator=options.accelerator,
        devices=1,
        logger=False,
        callbacks=[best, stop],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    last = folder / "last.ckpt"
    start = time.perf_counter()
    trainer.fit(model, data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    seconds = time.perf_counter() - start
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else platform.machine()
    saved = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
    with torch.inference_mode():
        (valid,) = trainer.validate(
            model, data, ckpt_path=best.best_model_path, verbose=False, weights_only=True
        )
        (test,) = trainer.test(model, data, ckpt_path=best.best_model_path, verbose=False, weights_only=True)
    result = {
        "dataset": options.dataset,
        "method": method,
        "settings": settings,
        "seed": seed,
        "epoch": int(saved["epoch"]) + 1,
        "epochs": int(trainer.current_epoch),
        "valid": {name.removeprefix("val_"): value for name, value in valid.items()},
        "test": {name.removeprefix("test_"): value for name, value in test.items()},
        "seconds": seconds,
        "device": device,
        "torch": torch.__version__,
    }
    if seed != TUNING_SEED:
        result["mixture"] = mixed(model, data)
        np.save(record.with_suffix(".npy"), model.ranks["test"].astype(np.int32))
    write(record, result)
    for file in folder.glob("*.ckpt"):
        file.unlink()
    at = f"epoch {result['epoch']} of {result['epochs']}"
    shown = ", ".join(
        f"{part} {name} {result[part][name]:.4f}"
        for part, name in (("valid", "NDCG@10"), ("test", "HR@10"), ("test", "NDCG@10"))
    )
    print(
        f"{options.dataset} {method} {json.dumps(settings)} seed {seed}: {at}, {shown} ({seconds:.0f} s)",
        flush=True,
    )
    return result


def mixed(model: SequentialRecommender, data: RecommenderData) -> dict[str, Any]:
    """Test metrics of the model mixed with the transition table: a weight for NDCG, and one that keeps HR@10."""
    model.eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    def score(histories: Sequences) -> torch.Tensor:
        items, lengths = (torch.from_numpy(array).to(device) for array in histories.padded(data.max_length))
        with torch.inference_mode():
            scores: torch.Tensor = model(items, lengths)
        return scores

    table = MarkovChain().fit(data.split.train, data.num_items)
    result = {}
    for name, keep in (("free", None), ("HR@10 kept", "HR@10")):
        tuned = TransitionMixture(score, table).tune(
            data.split.valid, keep=keep, weights=(0.1, 0.3, 0.5, 0.7, 0.9)
        )
        metrics = ranking_metrics(rank_targets(tuned.score, data.split.test))
        result[name] = {"weight": tuned.weight, "test": metrics}
    return result


def floor(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Metrics of a method without training."""
    data = load(options, 0)
    fitted = FLOORS[name]().fit(data.split.train, data.num_items)
    start = time.perf_counter()
    parts = {
        part: ranking_metrics(rank_targets(fitted.score, getattr(data.split, part)))
        for part in ("valid", "test")
    }
    return {"method": name, "settings": {}, "seed": 0, **parts, "seconds": time.perf_counter() - start}


def write(path: Path, document: Any) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    os.replace(part, path)


def choose(options: argparse.Namespace, method: str) -> dict[str, Any]:
    """Settings of a method on a data set: chosen on validation with --tune, else recorded or the first candidate."""
    chosen = CHOSEN.get(options.dataset, {})
    shared = {} if method == "GRU4Rec" else {"dropout": chosen.get("SASRec", {}).get("dropout", 0.5)}
    if not options.tune:
        return shared | chosen.get(method, METHODS[method][0])
    candidates = [{"dropout": share} for share in DROPOUT] if method == "SASRec" else METHODS[method]
    tried = [train(options, method, shared | settings, TUNING_SEED) for settings in candidates]
    return max(tried, key=lambda run: run["valid"]["NDCG@10"])["settings"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--method", nargs="+", choices=[*FLOORS, *METHODS], default=[*FLOORS, *METHODS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tune", action="store_true", help="choose settings on validation first")
    parser.add_argument("--epochs", type=int, default=60, help="at most so many")
    parser.add_argument("--stride", type=int, default=1, help="prefixes beyond the window that share a pass")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce/recsys"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    rows = []
    for method in options.method:
        if method in FLOORS:
            rows.append([floor(options, method)])
            continue
        settings = choose(options, method)
        rows.append([train(options, method, settings, seed) for seed in options.seeds])
    report(options, rows)


def report(options: argparse.Namespace, rows: list[list[dict[str, Any]]]) -> None:
    print(f"\n{options.dataset}, test, history kept" + "".join(f"{name:>18}" for name in SHOWN))
    for runs in rows:
        cells = [[run["test"][name] for run in runs] for name in SHOWN]
        print(f"{runs[0]['method']:33}" + "".join(f"{cell(values):>18}" for values in cells))


def cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


if __name__ == "__main__":
    main()
