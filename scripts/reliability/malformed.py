"""Malformed inputs for every public class and function: what comes back is a valid result or a sentence of ours.

python scripts/reliability/malformed.py                         # 5,000 inputs, and what each kind of entry made of them
python scripts/reliability/malformed.py --count 500 --only functional --seed 1

Every entry of the packages' ``__all__`` is called with arguments that work, of which one is replaced by an odd value:
of another type, out of range, of another shape or layout. An entry passes if it returns, with a finite number where it
returns a loss, or raises one of ``contrastive.errors``; anything else is a fault. The choice depends on the seed alone.
"""

import argparse
import functools
import importlib
import inspect
import random
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from contrastive.errors import InputError

PACKAGES = (
    *(
        f"contrastive.{name}"
        for name in ("functional", "objectives", "encoders", "views", "data", "training")
    ),
    *(f"contrastive.{name}" for name in ("evaluation", "retrieval", "similarity")),
    "recsys",
)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# name -> value; tensors are made anew for every call, as some are changed in place
ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-1": lambda: -1,
    "0": lambda: 0,
    "-0.5": lambda: -0.5,
    "1.5": lambda: 1.5,
    "2**70": lambda: 2**70,
    "-2**70": lambda: -(2**70),
    "1e-320": lambda: 1e-320,
    "text": lambda: "x",
    "empty text": lambda: "",
    "NUL": lambda: "a\0b",
    "bytes": lambda: b"x",
    "[]": lambda: [],
    "[1, 2]": lambda: [1, 2],
    "nested list": lambda: [[0.1, 0.2], [0.3, 0.4]],
    "ragged list": lambda: [[1], [2, 3]],
    "(None,)": lambda: (None,),
    "{}": dict,
    "set": lambda: {1},
    "object": object,
    "function": lambda: print,
    "class": lambda: Path,
    "np.int64": lambda: np.int64(3),
    "np.float32": lambda: np.float32(0.5),
    "np.bool": lambda: np.True_,
    "array (8, 4)": lambda: rows(8, 4).numpy(),
    "array of objects": lambda: np.array([None, "x", 3], object),
    "tensor 0-d": lambda: torch.tensor(0.5),
    "tensor (4,)": lambda: rows(4),
    "tensor (8, 4)": lambda: rows(8, 4, seed=1),
    "tensor (8, 5)": lambda: rows(8, 5),
    "tensor (2, 8, 4)": lambda: rows(2, 8, 4),
    "tensor (0, 4)": lambda: rows(0, 4),
    "tensor (8, 0)": lambda: rows(8, 0),
    "double": lambda: rows(8, 4).double(),
    "half": lambda: rows(8, 4).half(),
    "integers (8, 4)": lambda: torch.arange(32).view(8, 4),
    "integers (8,)": lambda: torch.arange(8),
    "bytes (8,)": lambda: torch.arange(8, dtype=torch.uint8),
    "big integers (8,)": lambda: torch.arange(8) + 2**40,
    "negative integers (8,)": lambda: torch.arange(8) - 4,
    "booleans (8,)": lambda: torch.arange(8) % 2 == 0,
    "complex": lambda: rows(8, 4).to(torch.complex64),
    "sparse": lambda: rows(8, 4).to_sparse(),
    "meta": lambda: torch.empty(8, 4, device="meta"),
    "float8": lambda: rows(8, 4).to(torch.float8_e4m3fn),
    "NaN rows": lambda: rows(8, 4).index_fill(0, torch.tensor([2]), float("nan")),
    "zero rows": lambda: torch.zeros(8, 4),
    "huge rows": lambda: rows(8, 4) * 1e38,
}
NOT_FINITE_IN = {"NaN rows", "huge rows", "nan", "inf", "half", "tensor 0-d"}


@dataclass(frozen=True)
class Entry:
    """A public callable, with the arguments that work; names of positional ones are ``0``, ``1``, ..."""

    name: str
    call: Callable[..., Any]
    works: Callable[[], dict[str, Any]]
    options: tuple[str, ...]
    gives_loss: bool = False

    def run(self, option: str | None = None, value: Any = None) -> Any:
        arguments = self.works()
        if option is not None:
            arguments[option] = value
        return self._call(arguments)

    def _call(self, arguments: dict[str, Any]) -> Any:
        places = sorted(int(name) for name in arguments if name.isdigit())
        named = {name: value for name, value in arguments.items() if not name.isdigit()}
        return self.call(*(arguments[str(place)] for place in places), **named)


# ---------------------------------------------------------------------- arguments that work


@functools.cache
def shared() -> dict[str, Any]:
    """What takes long to make, once: data of a recommender, and a folder of pictures, runs and indexes."""
    from recsys import SASRec, SequenceData

    data = SequenceData.generate(users=20, items=40, seed=0)
    return {"data": data, "split": data.split("leave-last-out"), "sasrec": SASRec(40, dim=8, max_length=8)}


def features(seed: int = 0) -> Any:
    from contrastive.evaluation import Features

    return Features(rows(24, 4, seed=seed), torch.arange(24) % 3)


def two() -> dict[str, Any]:
    return {"0": rows(8, 4), "1": rows(8, 4, seed=1)}


def _scores(sequences: Any) -> torch.Tensor:
    return rows(len(sequences), 41)


def _index() -> Any:
    from contrastive.retrieval import Index

    return Index.build(rows(20, 4), metadata={"n": list(range(20))})


# Arguments without a default, by their name, or by class (or function) and name. A name that is missing here is a
# public entry that is not tested, and an error.
NEEDED: dict[str, Callable[[], Any]] = {
    "x": lambda: rows(8, 4),
    "y": lambda: rows(8, 4, seed=1),
    "z": lambda: rows(8, 4),
    "z1": lambda: rows(8, 4),
    "z2": lambda: rows(8, 4, seed=1),
    "common": lambda: rows(8, 4),
    "salient": lambda: rows(8, 3),
    "embeddings": lambda: rows(8, 4),
    "queries": lambda: rows(8, 4),
    "keys": lambda: rows(8, 4, seed=1),
    "queue": lambda: rows(16, 4, seed=2),
    "positives": lambda: rows(8, 4, seed=3),
    "log_estimator": lambda: torch.zeros(8),
    "values": lambda: rows(8),
    "value": lambda: rows(()),
    "total": lambda: rows(()),
    "count": lambda: 3,
    "labels": lambda: torch.arange(8) % 3,
    "partners": lambda: torch.arange(8),
    "gates": lambda: torch.rand(3, 4, generator=torch.Generator().manual_seed(0)),
    "num_negatives": lambda: 3,
    "in_dim": lambda: 4,
    "module": lambda: nn.Linear(4, 4),
    "encoder": lambda: _mlp(),
    "common_encoder": lambda: _mlp(),
    "salient_encoder": lambda: _mlp(),
    "second_encoder": lambda: _mlp(),
    "objective": lambda: importlib.import_module("contrastive").InfoNCE(),
    "size": lambda: 8,
    "dim": lambda: 4,
    "recipes": lambda: [importlib.import_module("contrastive.views").Recipe(8)] * 2,
    "backgrounds": lambda: torch.zeros(8, 3, 8, 8, dtype=torch.uint8),
    "train_inputs": lambda: rows(20, 4),
    "inputs": lambda: rows(20, 4),
    "batch_size": lambda: 4,
    "features": features,
    "first": features,
    "second": lambda: features(1),
    "train": features,
    "test": lambda: features(1),
    "reference": features,
    "support": lambda: _episodes()[0],
    "query": lambda: _episodes()[1],
    "vectors": lambda: rows(8, 4),
    "index": _index,
    "indexes": lambda: [_index()],
    "anchors": lambda: [0, 1],
    "mine_negatives.positives": lambda: [2, 3],
    "number": lambda: 1,
    "ranks": lambda: np.array([0, 3, 20]),
    "ranks_a": lambda: np.array([0, 3, 20]),
    "ranks_b": lambda: np.array([1, 3, 10]),
    "lists": lambda: np.array([[1, 2], [2, 3]]),
    "num_items": lambda: 12,
    "score": lambda: _scores,
    "model_score": lambda: _scores,
    "cases": lambda: shared()["split"].test,
    "histories": lambda: shared()["split"].test.histories,
    "metrics_by_length.ranks": lambda: np.zeros(20, int),
    "metrics_by_popularity.ranks": lambda: np.zeros(20, int),
    "metrics_by_popularity.train": lambda: shared()["split"].train,
    "k": lambda: 3,
    "states": lambda: rows(3, 4),
    "item_vectors": lambda: rows(6, 4),
    "targets": lambda: np.array([1, 2, 3]),
    "results": list,
    "SequentialRecommender.encoder": lambda: shared()["sasrec"],
    "sequences": lambda: shared()["data"].sequences,
    "user_ids": lambda: shared()["data"].user_ids,
    "item_ids": lambda: shared()["data"].item_ids,
    "items": lambda: np.array([1, 2, 3]),
    "offsets": lambda: np.array([0, 2, 3]),
    "logsumexp_self.rows": lambda: _gathered(),
    "spaces": lambda: [_gathered()],
    "temperature": lambda: 0.5,
    "focal_contrast.labels": lambda: torch.arange(8) % 3,
    "gated_contrast.gates": lambda: torch.rand(8, 4, generator=torch.Generator().manual_seed(0)),
    "hard_info_nce.positives": lambda: torch.arange(8),
    "soft_sort.values": lambda: rows(8, 4),
    "sample_episodes.labels": lambda: torch.arange(120) % 6,
    "label_efficiency.labels_per_class": lambda: (1, None),
    "gather.rows": lambda: rows(8, 4),
}
# Not called here: what only other code calls, takes a trainer or a network, or reads folders (the commands do that).
# fmt: off
LEFT_OUT = {
    "Objective", "Views", "Batch", "DataReport", "Classification", "ProbeResult", "Retrieval", "FewShot",
    "FewShotComparison", "RankingResult", "Split", "TransitionMixture", "Cases", "SequenceData", "RunPlan",
    "SaveOnStop", "LARS", "TextEncoder", "extract_features", "run_folder", "format_result", "write_result",
    "stream_rows", "stream_subspace", "Gathered", "describe", "evaluate_run_files", "load_recbole",
    "read_results", "write_results", "Recommender", "embed", "embed_named", "embed_run", "write_embeddings",
    "Embeddings", "read_texts", "build_index", "search_index", "export_encoder", "load_encoder",
    "save_encoder", "check_data", "load_classifier", "load_run_encoder", "set_threads", "probe_run",
    "knn_run", "evaluate_run", "few_shot_run", "MilvusIndex",
}
# fmt: on
# Options of objectives that go with a batch of eight.
SMALL: dict[str, dict[str, int]] = {
    "GroCo": {"num_negatives": 3},
    "BECLR": {"num_clusters": 2, "memory_start_epoch": 0},
}
VIEWS = {"info_nce", "sup_con", "cacr", "groco", "kernel_entropy"}


def _mlp() -> nn.Module:
    from contrastive import MLPEncoder

    return MLPEncoder(4, (8,), 4)


def _episodes() -> Any:
    from contrastive.evaluation import sample_episodes

    return sample_episodes(torch.arange(24) % 3, way=2, shot=2, queries=3, episodes=2)


def _gathered() -> Any:
    from contrastive.similarity import gather

    return gather(rows(8, 4))


# ---------------------------------------------------------------------- entries


def entries() -> Iterator[Entry]:
    """Every public class and function of the packages, and every objective as it is called in training."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            kind = getattr(module, name, None)
            if name in LEFT_OUT or not (inspect.isclass(kind) or inspect.isfunction(kind)):
                continue
            yield _entry(f"{package}.{name}", kind, package == "contrastive.functional")
            if package == "contrastive.objectives":
                yield _called(f"{package}.{name}()", kind)
    yield from _of_an_index()
    yield from _of_a_recommender()


def _entry(name: str, kind: Any, gives_loss: bool) -> Entry:
    own = name.rpartition(".")[2]
    parameters = [
        one
        for one in inspect.signature(kind).parameters.values()
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    needed = {}
    for one in parameters:
        if one.default is one.empty or f"{own}.{one.name}" in NEEDED:
            made = NEEDED.get(f"{own}.{one.name}") or NEEDED.get(one.name)
            if made is None:
                raise KeyError(
                    f"{name} needs {one.name}: give a value that works in NEEDED, or leave the entry out"
                )
            needed[one.name] = made

    def works() -> dict[str, Any]:
        made = {key: value() for key, value in needed.items()}
        return {**two(), **made} if own in VIEWS else made

    places = ("0", "1") if own in VIEWS else ()
    return Entry(name, kind, works, (*places, *(one.name for one in parameters)), gives_loss)


def _called(name: str, kind: Any) -> Entry:
    """An objective with views and what it asks for."""
    from contrastive import objectives

    own = kind.__name__

    def call(*views: Any, **inputs: Any) -> Any:
        torch.manual_seed(0)
        objective = kind(
            **{"GroCo": {"num_negatives": 3}, "BECLR": {"num_clusters": 2, "memory_start_epoch": 0}}.get(
                own, {}
            )
        )
        objective.setup(8, num_classes=3, dim=4)
        return objective(*views, **inputs)

    def works() -> dict[str, Any]:
        made = {**two()}
        if "index" in kind.requires or issubclass(kind, objectives.SogCLR):
            made["index"] = torch.arange(8)
        if "labels" in kind.requires:
            made["labels"] = torch.arange(8) % 3
        if "classifier" in kind.requires or own == "CoreTuning":
            made["classifier"] = nn.Linear(4, 3)
        if "teacher" in kind.requires:
            made["teacher"] = (rows(8, 4, seed=2), rows(8, 4, seed=3))
        if "is_target" in kind.requires:
            made["is_target"] = torch.arange(8) % 2 == 0
        if own in ("SepCLR", "SupervisedSepCLR"):
            made |= {"0": (rows(8, 4), rows(8, 4, seed=1)), "1": (rows(8, 3), rows(8, 3, seed=1))}
        if own == "SupervisedSepCLR":
            made["1"] = (rows(8, 2),)
        if own == "SupervisedSepCLR":
            made["attributes"] = torch.rand(8, 2, generator=torch.Generator().manual_seed(0)).round()
        return made

    named = tuple(inspect.signature(kind.forward).parameters)
    options = dict.fromkeys(["0", "1", *works(), *(one for one in ("index", "labels") if one in named)])
    return Entry(name, call, works, tuple(options), gives_loss=True)


def _of_an_index() -> Iterator[Entry]:
    def method(name: str, **works: Callable[[], Any]) -> Entry:
        def call(**arguments: Any) -> Any:
            return getattr(_index(), name)(**arguments)

        parameters = tuple(inspect.signature(getattr(type(_index()), name)).parameters)[1:]
        made = functools.partial(lambda works: {key: value() for key, value in works.items()}, works)
        return Entry(f"contrastive.retrieval.Index.{name}", call, made, parameters)

    from contrastive.retrieval import Index

    yield _entry("contrastive.retrieval.Index.build", Index.build, False)
    yield method("search", queries=lambda: rows(2, 4))
    yield method("range_search", queries=lambda: rows(2, 4), score=lambda: 0.5)
    yield method("add", vectors=lambda: rows(2, 4), metadata=lambda: {"n": [1, 2]})
    yield method("update", vectors=lambda: rows(2, 4), ids=lambda: [0, 1])
    yield method("remove", ids=lambda: [0, 1])
    yield method("reconstruct", ids=lambda: [0, 1])
    yield method("columns", ids=lambda: [0, 1])


def _of_a_recommender() -> Iterator[Entry]:
    from recsys import Recommender

    made = Recommender.from_model(shared()["sasrec"], shared()["data"])
    parameters = tuple(inspect.signature(made.recommend).parameters)
    history = shared()["data"].item_ids[1:4].tolist()
    yield Entry("recsys.Recommender.recommend", made.recommend, lambda: {"histories": history}, parameters)
    yield _entry_of_add(made)


def _entry_of_add(made: Any) -> Entry:
    from recsys import Recommender

    def call(**arguments: Any) -> Any:
        fresh = Recommender.from_model(shared()["sasrec"], shared()["data"])
        return fresh.add_items(**arguments)

    parameters = tuple(inspect.signature(made.add_items).parameters)
    return Entry(
        "recsys.Recommender.add_items", call, lambda: {"ids": [1000], "vectors": rows(1, 8)}, parameters
    )


# ---------------------------------------------------------------------- trying


@dataclass
class Fault:
    """What an entry answered instead of a sentence."""

    entry: str
    option: str
    value: str
    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.entry}({self.option}={self.value}): {self.what} [{self.where}]"


def attempt(entry: Entry, option: str, value: str) -> Fault | None:
    """Call an entry with one odd argument."""
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            found = entry.run(option, ODD[value]())
    except InputError:
        return None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in last if "contrastive/" in frame.filename or "recsys/" in frame.filename]
        place = (ours or list(last))[-1]
        where = f"{'/'.join(Path(place.filename).parts[-2:])}:{place.lineno}"
        return Fault(entry.name, option, value, f"{type(error).__name__}: {str(error)[:120]}", where)
    loss = found if isinstance(found, torch.Tensor) and found.ndim == 0 else None
    if entry.gives_loss and loss is not None and value not in NOT_FINITE_IN and not loss.isfinite():
        return Fault(entry.name, option, value, f"gives {float(loss)}", "")
    return None


def chosen(count: int, seed: int, only: str = "") -> list[tuple[Entry, str, str]]:
    """``count`` tries of all that there are, as many of each entry's options as of any other's."""
    random_ = random.Random(seed)
    pairs = [(entry, option) for entry in entries() if only in entry.name for option in entry.options]
    tries = []
    while len(tries) < count and pairs:
        random_.shuffle(pairs)
        tries += [(entry, option, random_.choice(list(ODD))) for entry, option in pairs]
    return tries[:count]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the names of entries")
    options = parser.parse_args()
    tries = Counter[str]()
    faults = []
    for entry, option, value in chosen(options.count, options.seed, options.only):
        tries[entry.name.rpartition(".")[0]] += 1
        if fault := attempt(entry, option, value):
            faults.append(fault)
            print(fault, flush=True)
    print(f"{sum(tries.values())} inputs, {len(faults)} faults:", dict(tries))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
