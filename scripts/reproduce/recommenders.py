"""Next-item recommendation: contrastive methods beside floors and a plain encoder that was trained as hard.

    python scripts/reproduce/recommenders.py --data FOLDER --dataset amazon-office
    python scripts/reproduce/recommenders.py --data FOLDER --dataset amazon-beauty --method MCLRec --seeds 0 1 2

FOLDER holds ``<dataset>.seq.tsv.gz`` and, where there are any, ``.attr.tsv.gz`` or ``.items.tsv.gz``. Every method
trains until validation NDCG@10 has not risen for ten epochs; the best epoch is judged on the test items, against the
whole catalogue with the history kept, ties counting against the model. Each finished run is a JSON file with its ranks
beside it, each unfinished one has a checkpoint: the same command goes on where it was stopped. Whatever has finished in
--work stands in the table and the paired comparisons that are written to --out, where the test ranks of every run are
kept too: runs that stand there are not made again, and a run of yours can be compared with them user by user.

    python scripts/reproduce/recommenders.py --data FOLDER --dataset ml-100k --method SASRec --seeds 0 \\
        --times ml-100k.inter --shuffles 5

reads the same interactions with their times from a table, and tells how results depend on the order of equal times
(ties.py): floors and methods on so many shuffles, and whatever stands in --out on the users whose last item has a time
of its own.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

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
    SequentialRules,
    TransitionMixture,
    rank_targets,
    ranking_metrics,
)
from recsys.batches import training_prefixes
from recsys.data import SequenceData, Sequences
from recsys.metrics import paired_bootstrap

FLOORS: dict[str, Callable[[], Any]] = {
    "popularity": Popularity,
    "Markov chain": MarkovChain,
    "sequential rules": SequentialRules,
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
BOTH = "MCLRec and SRA-CL"
METHODS[BOTH] = [{"model_weight": 0.05, "user_weight": 0.1, "item_weight": 0.1}]
BY_NAME = ("MCLRec, three phases", BOTH)  # trained only if --method asks for them
# Chosen with validation data by --tune (recency, with training data, by --recency; NOTES tell of the rest); others use
# the first candidate.
CHOSEN: dict[str, dict[str, dict[str, Any]]] = {
    "amazon-office": {"SASRec": {"dropout": 0.5}},
    "amazon-beauty": {"SASRec": {"dropout": 0.5}, "GRU4Rec": {"dropout": 0.5}},
    "ml-100k": {
        "SASRec": {"dropout": 0.7},
        "GRU4Rec": {"dropout": 0.7},
        "SRA-CL": {"user_weight": 0.03, "item_weight": 0.01, "recency": 0.8},
        "SRA-CL, leaky retrieval": {"user_weight": 0.03, "item_weight": 0.01, "recency": 0.8},
    },
}
NOTES = {
    "amazon-office": "The encoder's dropout was chosen for the plain loss by validation NDCG@10 of one further seed: "
    "0.0603 with 0.2 and with 0.5, 0.0599 with 0.7. The weights of the heads were not tuned. The data has no "
    "attributes of items, so SRA-CL takes their meaning from training interactions, where the paper has descriptions "
    "by a language model. MKL was made to use AVX-512 on an AMD processor, which takes a third off the time "
    "(not for SASRec's first seed).",
    "amazon-beauty": "Dropouts were chosen by validation NDCG@10 of one further seed: SASRec 0.0501 with 0.2, 0.0518 "
    "with 0.5, 0.0502 with 0.7; GRU4Rec 0.0470 with 0.3, 0.0472 with 0.5, 0.0457 with 0.7. The weights of the heads "
    "were not tuned. The heads' runs began on the GPU (five to eleven epochs) and went on on the processor; their "
    "seconds are the sum. SASRec's runs are those of the processor; three earlier ones on the GPU, stopped after 29 to "
    "41 epochs, had reached 0.0411 ± 0.0005, as the history of this page shows.",
    "ml-100k": "Dropouts were chosen by validation NDCG@10 of one further seed: SASRec 0.0644 with 0.2, 0.0695 with "
    "0.5, 0.0700 with 0.7; GRU4Rec 0.0737 with 0.3, 0.0772 with 0.5, 0.0776 with 0.7. The weights of the heads were "
    "not tuned, but for SRA-CL's. CL4SRec's second seed began on the GPU, and its seconds are the sum. "
    "SRA-CL takes the meaning of films from title, year and genres by MiniLM. With 943 users the standard "
    "error of a single NDCG@10 is 0.005. SRA-CL's recency was chosen on training data: so many neighbours go on with "
    "the history's own next item: 0.0067 with 1, 0.0089 with 0.9, 0.0092 with 0.8, 0.0088 with 0.7, 0.0078 with 0.5. "
    "Its weights were not chosen by --tune: they are the first ones tried with that recency, smaller than the paper's "
    "0.1, with which, and with the plain mean, two earlier runs (seeds 0 and 2) had reached 0.0554 and 0.0562 on "
    "validation, below SASRec, and 0.0490 and 0.0585 on test; the history of this page has their row. The "
    "last nine epochs of its third seed ran on two threads. Other weights with the plain mean were given short trials "
    "on validation before; no other head had a second try. MCLRec's runs are those of a GPU with an earlier torch. "
    "SASRec's were too, with 0.0569 ± 0.0028 and SRA-CL's third seed significantly above, until it was trained anew "
    "like SRA-CL. Seeds 1 and 2 of the leaky retrieval ran side by side, with MKL made to use AVX-512 on an AMD "
    "processor.",
}
# HR@5, HR@10, HR@20, NDCG@5, NDCG@10, NDCG@20 of the papers' tables: MCLRec's, and SRA-CL's for its own.
PAPERS = {
    "amazon-beauty": {
        "SASRec": [0.0377, 0.0624, 0.0894, 0.0241, 0.0342, 0.0386],
        "GRU4Rec": [0.0180, 0.0284, 0.0427, 0.0116, 0.0150, 0.0186],
        "CL4SRec": [0.0401, 0.0642, 0.0974, 0.0268, 0.0345, 0.0428],
        "DuoRec": [0.0559, 0.0825, 0.1193, 0.0340, 0.0425, 0.0518],
        "MCLRec": [0.0581, 0.0871, 0.1243, 0.0352, 0.0446, 0.0539],
        "SRA-CL": [None, 0.0924, 0.1314, None, 0.0469, 0.0568],
    },
    "amazon-office": {
        "SASRec": [None, 0.0791, 0.1329, None, 0.0348, 0.0482],
        "GRU4Rec": [None, None, 0.0956, None, None, 0.0361],
        "CL4SRec": [None, 0.0695, 0.1297, None, 0.0322, 0.0488],
        "DuoRec": [None, 0.1015, 0.1549, None, 0.0519, 0.0653],
        "MCLRec": [None, 0.1036, 0.1629, None, 0.0538, 0.0684],
        "SRA-CL": [None, 0.1111, 0.1702, None, 0.0575, 0.0725],
    },
}
SHOWN = ("HR@5", "HR@10", "HR@20", "NDCG@5", "NDCG@10", "NDCG@20")
PATIENCE, TUNING_SEED = 10, 1000


def load(options: argparse.Namespace, seed: int) -> RecommenderData:
    stem = options.data / options.dataset
    files = {
        name: Path(f"{stem}.{kind}.tsv.gz") for name, kind in (("attributes", "attr"), ("items", "items"))
    }
    present: dict[str, Any] = {name: str(path) for name, path in files.items() if path.is_file()}
    source = f"{stem}.seq.tsv.gz"
    if (order := vars(options).get("order")) is not None:  # of equal times, in the table that has times
        source = str(options.times)
        present |= {"ties": order[0], "tie_seed": order[1]}
    return RecommenderData(
        source,
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
    meaning = meaning_of(data, work)
    heads = {
        "SASRec": lambda: [],
        "CL4SRec": lambda: [CL4SRec(**settings)],
        "DuoRec": lambda: [DuoRec(**settings)],
        "MCLRec": lambda: [MCLRec(**settings)],
        "MCLRec, three phases": lambda: [MCLRec(**settings, update="released")],
        "SRA-CL": lambda: [SRACL(**settings, **meaning)],
        "SRA-CL, leaky retrieval": lambda: [SRACL(**settings, **meaning, retrieval="official_leaky")],
        BOTH: lambda: [MCLRec(model_weight=settings.pop("model_weight")), SRACL(**settings, **meaning)],
    }[method]()
    return SequentialRecommender(encoder, heads=heads, seed=seed, **options)


def meaning_of(data: RecommenderData, work: Path) -> dict[str, str]:
    """Where SRA-CL takes the meaning of items from, and where it is kept."""
    present = [name for name in ("attributes", "texts") if getattr(data.data, name) is not None]
    return {"semantics": [*present, "interactions"][0], "cache": str(work / "semantics")}


def agreement(options: argparse.Namespace) -> None:
    """Print, for each weight of recent items, how often a neighbour of a training prefix goes on with the same item."""
    data = load(options, 0)
    prefixes = training_prefixes(data.split, data.max_length)
    for recency in options.recency:
        head = SRACL(recency=recency, **meaning_of(data, options.work))
        head.setup(SASRec(data.num_items, max_length=data.max_length), data.split, prefixes)
        found = head.prefix_neighbours
        same = (prefixes.targets[found.clamp(min=0)] == prefixes.targets[:, None]) & (found >= 0)
        share = same.sum() / (found >= 0).sum()
        print(f"{options.dataset}, recency {recency}: {share:.4f} of the neighbours go on alike", flush=True)


class Clock(Callback):
    """Seconds of training, those before an interruption included: of processor time, where the processor trains."""

    def __init__(self, accelerator: str) -> None:
        self.now = time.process_time if accelerator == "cpu" else time.perf_counter
        self.before, self.start = 0.0, self.now()

    @property
    def seconds(self) -> float:
        return self.before + self.now() - self.start

    def on_train_start(self, *_: Any) -> None:
        self.start = self.now()

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.before = state["seconds"]


def train(options: argparse.Namespace, method: str, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """The record of one run: read if it has finished before, else trained and judged."""
    found = [
        run
        for run in finished(options)
        if (run["method"], run["settings"], run["seed"]) == (method, settings, seed)
    ]
    if found:
        return found[0]
    record = record_of(options, {"method": method, "settings": settings, "seed": seed})
    folder = options.work / record.stem.rpartition("-")[2]
    seed_everything(seed, verbose=False)
    data = load(options, seed)
    model = build(method, settings, data, options.work, seed)
    best = ModelCheckpoint(folder, "best", monitor="val_NDCG@10", mode="max")
    # Of every epoch, and written behind the best, whose state it holds.
    latest = ModelCheckpoint(folder, "last", enable_version_counter=False)
    stop = EarlyStopping("val_NDCG@10", mode="max", patience=PATIENCE)
    clock = Clock(options.accelerator)
    trainer = Trainer(
        max_epochs=options.epochs,
        accelerator=options.accelerator,
        devices=1,
        logger=False,
        callbacks=[clock, stop, best, latest],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    last = folder / "last.ckpt"
    trainer.fit(model, data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    seconds = clock.seconds
    device = (
        torch.cuda.get_device_name() if trainer.strategy.root_device.type == "cuda" else platform.machine()
    )
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
        np.save(record.with_suffix(".npy"), narrow(model.ranks["test"]))
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


def record_of(options: argparse.Namespace, run: dict[str, Any]) -> Path:
    """File of a run, named by what decides it."""
    decides = [options.dataset, run["method"], run["settings"], run["seed"]]
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    return options.work / f"{options.dataset}-{key}.json"  # type: ignore[no-any-return]


def narrow(ranks: np.ndarray) -> np.ndarray:
    return ranks.astype(np.uint16 if ranks.max() < 2**16 else np.int32)


def mixed(model: SequentialRecommender, data: RecommenderData) -> dict[str, Any]:
    """Test metrics of the model mixed with a table of transitions: a weight for NDCG, and one that keeps HR@10."""
    model.eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    def score(histories: Sequences) -> torch.Tensor:
        items, lengths = (torch.from_numpy(array).to(device) for array in histories.padded(data.max_length))
        with torch.inference_mode():
            scores: torch.Tensor = model(items, lengths)
        return scores

    result = {}
    for prefix, table in (("", MarkovChain()), ("rules, ", SequentialRules())):
        table.fit(data.split.train, data.num_items)
        for name, keep in (("free", None), ("HR@10 kept", "HR@10")):
            tuned = TransitionMixture(score, table).tune(
                data.split.valid, keep=keep, weights=(0.1, 0.3, 0.5, 0.7, 0.9)
            )
            metrics = ranking_metrics(rank_targets(tuned.score, data.split.test))
            result[prefix + name] = {"weight": tuned.weight, "test": metrics}
    return result


def floor(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Metrics of a method without training; its ranks go where those of runs are."""
    data = load(options, 0)
    fitted = FLOORS[name]().fit(data.split.train, data.num_items)
    start = time.perf_counter()
    ranks = {part: rank_targets(fitted.score, getattr(data.split, part)) for part in ("valid", "test")}
    seconds = time.perf_counter() - start
    result = {"method": name, "settings": {}, "seed": 0}
    options.work.mkdir(parents=True, exist_ok=True)
    np.save(record_of(options, result).with_suffix(".npy"), narrow(ranks["test"]))
    return result | {part: ranking_metrics(found) for part, found in ranks.items()} | {"seconds": seconds}


def write(path: Path, document: Any) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    os.replace(part, path)


def settings_of(
    options: argparse.Namespace, method: str, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Settings of a method on a data set: those given, recorded, or the first candidate, and the encoder's dropout."""
    chosen = CHOSEN.get(options.dataset, {})
    shared = {} if method == "GRU4Rec" else {"dropout": chosen.get("SASRec", {}).get("dropout", 0.5)}
    return shared | (settings or chosen.get(method, METHODS[method][0]))


def tune(options: argparse.Namespace, method: str) -> dict[str, Any]:
    """The candidate that is best on validation."""
    candidates = [{"dropout": share} for share in DROPOUT] if method == "SASRec" else METHODS[method]
    tried = [
        train(options, method, settings_of(options, method, settings), TUNING_SEED) for settings in candidates
    ]
    return max(tried, key=lambda run: run["valid"]["NDCG@10"])["settings"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--dataset", default="amazon-beauty")
    default = [name for name in (*FLOORS, *METHODS) if name not in BY_NAME]
    parser.add_argument("--method", nargs="+", choices=[*FLOORS, *METHODS], default=default)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tune", action="store_true", help="choose settings on validation first")
    parser.add_argument(
        "--recency", nargs="+", type=float, help="only try these in SRA-CL's retrieval, without training"
    )
    parser.add_argument("--epochs", type=int, default=60, help="at most so many")
    parser.add_argument("--stride", type=int, default=1, help="prefixes beyond the window that share a pass")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce/recsys"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument(
        "--smoke", action="store_true", help="only show that everything runs; keeps no results"
    )
    parser.add_argument("--times", type=Path, help="table of the same interactions with their times")
    parser.add_argument("--shuffles", type=int, default=5, help="of equal times, with --times")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    if options.recency:
        agreement(options)
        return
    if options.times is not None:
        from ties import study

        study(options)
        return
    if not options.smoke:
        carry_out(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        SequenceData.generate(users=60, items=40, seed=0).write(place / "small.seq.tsv.gz")
        options.data, options.dataset, options.work, options.out = (
            place,
            "small",
            place / "work",
            place / "out",
        )
        options.method, options.seeds, options.epochs = ["SASRec", "MCLRec", "SRA-CL"], [0], 1
        carry_out(options)


def carry_out(options: argparse.Namespace) -> None:
    for method in options.method:
        if method not in FLOORS:
            settings = (tune if options.tune else settings_of)(options, method)
            for seed in options.seeds:
                train(options, method, settings, seed)
    rows = [[floor(options, name)] for name in FLOORS]
    runs_ = finished(options)
    rows += [runs for method in METHODS if (runs := of_method(options, runs_, method))]
    report(options, rows)


def finished(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs whose results and ranks are in --out or in --work."""
    document, ranks = results_of(options)
    found = {
        identity(run): run
        for runs in document.get("rows", [])
        for run in runs
        if run["method"] in METHODS and rank_name(run) in ranks
    }
    for path in options.work.glob(f"{options.dataset}-*.json"):
        run = json.loads(path.read_text(encoding="utf-8"))
        found[identity(run)] = run
    return list(found.values())


def results_of(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What --out holds: the document, and the test ranks by the name of the run."""
    path = options.out / f"recommenders-{options.dataset}.json"
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ranks = path.with_suffix(".npz")
    if not ranks.is_file():
        return document, {}
    with np.load(ranks, allow_pickle=False) as file:
        return document, {name: file[name] for name in file.files}


def identity(run: dict[str, Any]) -> str:
    return json.dumps([run["method"], run["settings"], run["seed"]], sort_keys=True)


def rank_name(run: dict[str, Any]) -> str:
    return f"{run['method']}, seed {run['seed']}"


def of_method(options: argparse.Namespace, runs: list[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    """The runs of a method in the order of their seeds: of the settings with most of them, the chosen ones if equal."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run["method"] == method and run["seed"] != TUNING_SEED:
            found.setdefault(json.dumps(run["settings"], sort_keys=True), []).append(run)
    if not found:
        return []
    chosen = settings_of(options, method)
    most = max(found.values(), key=lambda runs: (len(runs), runs[0]["settings"] == chosen))
    return sorted(most, key=lambda run: run["seed"])


def report(options: argparse.Namespace, rows: list[list[dict[str, Any]]]) -> None:
    """Print the table, and write it with the paired comparisons to the plain encoder, for RESULTS.md."""
    print(f"\n{options.dataset}, test, history kept" + "".join(f"{name:>18}" for name in SHOWN))
    for runs in rows:
        cells = [[run["test"][name] for run in runs] for name in SHOWN]
        print(f"{runs[0]['method']:33}" + "".join(f"{cell(values):>18}" for values in cells))
    _, before = results_of(options)
    ranks = {
        rank_name(run): np.load(file)
        if (file := record_of(options, run).with_suffix(".npy")).is_file()
        else before[rank_name(run)]
        for runs in rows
        for run in runs
    }
    document = {
        "kind": "recommenders",
        "dataset": options.dataset,
        "command": f"python scripts/reproduce/recommenders.py --data DIR --dataset {options.dataset}"
        + (f" --stride {options.stride}" if options.stride > 1 else ""),
        "notes": NOTES.get(options.dataset, ""),
        "shown": SHOWN,
        "papers": PAPERS.get(options.dataset, {}),
        "rows": rows,
        "comparisons": compared(ranks),
    }
    if "ties" in (earlier := results_of(options)[0]):
        document["ties"] = earlier["ties"]
    path = options.out / f"recommenders-{options.dataset}.json"
    part = path.with_suffix(f".{os.getpid()}.part.npz")
    part.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(part, **ranks)
    os.replace(part, path.with_suffix(".npz"))
    write(path, document)
    print(f"wrote {path}")


def compared(ranks: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Paired bootstrap over test users, seed by seed, of every method against the plain encoder."""
    result = []
    for name, ours in ranks.items():
        method, _, seed = name.rpartition(", seed ")
        theirs = ranks.get(f"SASRec, seed {seed}")
        if method == "SASRec" or theirs is None:
            continue
        found = paired_bootstrap(ours, theirs, metric="NDCG@10")
        result.append({"method": method, "seed": int(seed), **dataclasses.asdict(found)})
    return result


def cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


if __name__ == "__main__":
    main()
