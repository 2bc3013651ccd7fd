"""The recommender of a training run beside floors, on the validation and test targets of its data."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from contrastive.building import build
from contrastive.encoders import load_encoder
from contrastive.errors import InvalidValue
from contrastive.evaluation.results import describe_data, describe_encoder, write_result
from contrastive.evaluation.run import read_config
from contrastive.reading import entry, read_tensors
from recsys.data import Cases, Split
from recsys.encoders import SequenceEncoder
from recsys.floors import FLOORS
from recsys.metrics import HISTORIES, TIES, rank_by_vectors, rank_targets, ranking_metrics
from recsys.plan import describe_ties

if TYPE_CHECKING:
    from recsys.training import RecommenderData

Ranks = NDArray[Any]
SHOWN = ("HR@10", "NDCG@10")
_MOST_SCORES = 10**9  # of one row on one split, some ten seconds; of more cases a part is judged
_BLOCK_SCORES = 2**25  # of a floor, in memory
_MOST_PAIRS = 10**9  # of items of one history, which item-kNN counts


def evaluate_recommender(
    run: str | os.PathLike[str],
    data: "RecommenderData",
    *,
    floors: bool = True,
    seed: int = 0,
    device: str = "auto",
    trust: bool = False,
) -> dict[str, Any]:
    """Rank the held-out targets by the encoder of a run, and by methods that only count.

    Prints a table and writes ``results/recommender.json``. Items of the history and ties are treated as the run's
    configuration says. Judged are the exported encoder, that of the last epoch, and where there is one that of the best
    epoch, ``checkpoints/best.ckpt``. Where cases times items are many, a random part of the cases is judged by all.

    Args:
        run: folder of the run.
        data: what it was trained on.
        floors: False leaves them out.
        seed: of the choice among many cases.
        device: where to run the encoder; ``auto`` takes a GPU if there is one.
        trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
            author you trust.

    Returns:
        The content of ``recommender.json``: its metrics are a table, split by method by metric.

    Raises:
        FileNotFoundError: the run holds no encoder.
        ValueError: a file is damaged, or does not fit the data.
    """
    start, folder = time.perf_counter(), Path(run)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = entry(read_config(folder), "model", "init_args") or {}
    history, ties = model.get("history", "keep"), model.get("ties", "pessimistic")
    if history not in HISTORIES or ties not in TIES:
        raise InvalidValue(
            f"{folder / 'config.yaml'} has history={history!r} and ties={ties!r}; these are one of "
            f"{', '.join(HISTORIES)} and of {', '.join(TIES)}."
        )
    encoder = build(model.get("encoder"), SequenceEncoder, str(folder / "config.yaml"), trust=trust)
    encoder.setup(data.num_items)
    load_encoder(folder, encoder).to(device)
    name = _named(model)
    judges: dict[str, Callable[[Cases], Ranks]] = {}
    notes: list[str] = []
    if floors:
        for floor, kind in FLOORS.items():
            if floor == "item-kNN" and int((data.split.train.lengths**2).sum()) > _MOST_PAIRS:
                notes.append("item-kNN is left out: histories of these lengths have too many pairs of items.")
                continue
            score = kind().fit(data.split.train, data.num_items).score
            size = max(1, min(512, _BLOCK_SCORES // (data.num_items + 1)))
            judges[floor] = lambda cases, score=score, size=size: rank_targets(  # type: ignore[misc]
                score, cases, history, ties, size
            )
    parts = {part: _some(getattr(data.split, part), data.num_items, seed) for part in ("valid", "test")}
    parts = {part: cases for part, cases in parts.items() if len(cases)}
    table: dict[str, dict[str, dict[str, float]]] = {
        part: {floor: ranking_metrics(judge(cases)) for floor, judge in judges.items()}
        for part, cases in parts.items()
    }

    def judge_encoder(label: str) -> None:
        for part, cases in parts.items():
            table[part][label] = ranking_metrics(_ranks(encoder, cases, data, history, ties))

    judge_encoder(f"{name}, last epoch")
    best = folder / "checkpoints" / "best.ckpt"
    if best.is_file():
        saved = read_tensors(best)
        weights = {
            key.removeprefix("encoder."): value
            for key, value in (entry(saved, "state_dict") or {}).items()
            if key.startswith("encoder.")
        }
        try:
            encoder.load_state_dict(weights)
        except RuntimeError as problem:
            raise InvalidValue(
                f"{best} has other weights than the encoder of this run ({' '.join(str(problem).split())}); put the "
                "run's own there, or remove it."
            ) from problem
        judge_encoder(f"{name}, best epoch {int(saved['epoch']) + 1}")
    cases_judged = {
        part: {"judged": len(cases), "of": len(getattr(data.split, part))} for part, cases in parts.items()
    }
    document = write_result(
        folder / "results",
        "recommender",
        protocol={
            "name": "recommender",
            "split": data.kind,
            "history": history,
            "ties": ties,
            "max_length": data.max_length,
            "cases": cases_judged,
            "notes": notes,
        },
        metrics=table,
        split="test",
        seed=seed,
        data=describe_data(data) | facts(data),
        encoder=describe_encoder(folder),
        seconds=time.perf_counter() - start,
    )
    print(format_table(document, data.split))
    return document


def facts(data: "RecommenderData") -> dict[str, Any]:
    """What results depend on, of the data: sizes, columns, order and ties."""
    whole = data.data
    return {
        "users": whole.num_users,
        "items": whole.num_items,
        "interactions": whole.num_interactions,
        "columns": dict(whole.columns or {}),
        "order": whole.order,
        "tied": {part: data.split.tied_share(part) for part in ("valid", "test")},
    }


def format_table(document: dict[str, Any], split: Split) -> str:
    """The numbers as text: a row a method, a column for each metric on each split."""
    parts = {"valid": "validation", "test": "test"}
    table = {parts[part]: rows for part, rows in document["metrics"].items()}
    names = list(next(iter(table.values()), {}))
    width = 2 + max(map(len, [*names, "method"]))
    columns = [(part, metric) for part in table for metric in SHOWN]
    head = "method".ljust(width) + "".join(f"{f'{part} {metric}':>20}" for part, metric in columns)
    lines = [
        name.ljust(width) + "".join(f"{table[part][name][metric]:>20.4f}" for part, metric in columns)
        for name in names
    ]
    protocol = document["protocol"]
    counts = "; ".join(
        f"{count['judged']:,}"
        + (f" of {count['of']:,}, drawn at random," if count["judged"] < count["of"] else "")
        + f" {parts[part]} targets"
        for part, count in protocol["cases"].items()
    )
    below = [
        f"{counts}; against the whole catalogue, history={protocol['history']}, ties={protocol['ties']}",
        f"{split.data.order}; ties in time: {describe_ties(split)}",
        *protocol["notes"],
    ]
    return "\n".join([head, *lines, *below])


def _named(model: dict[str, Any]) -> str:
    heads = model.get("heads") or []
    parts = [model.get("encoder"), *(heads if isinstance(heads, list) else [])]
    return " + ".join(str(entry(part, "class_path")).rpartition(".")[2] for part in parts)


def _some(cases: Cases, num_items: int, seed: int) -> Cases:
    most = max(1, _MOST_SCORES // (num_items + 1))
    if len(cases) <= most:
        return cases
    rows = np.sort(np.random.default_rng(seed).choice(len(cases), most, replace=False))
    return replace(
        cases, histories=cases.histories.take(rows), targets=cases.targets[rows], users=cases.users[rows]
    )


@torch.inference_mode()
def _ranks(encoder: SequenceEncoder, cases: Cases, data: "RecommenderData", history: Any, ties: Any) -> Ranks:
    """Ranks of the targets. Every process by itself: often just one comes here."""
    vectors = encoder.eval().item_vectors()
    ranks = np.empty(len(cases), np.int64)
    for start in range(0, len(cases), data.eval_batch):
        rows = np.arange(start, min(start + data.eval_batch, len(cases)))
        histories = cases.histories.take(rows)
        items, lengths = (
            torch.from_numpy(array).to(vectors.device) for array in histories.padded(data.max_length)
        )
        seen = histories if history == "mask" else None
        ranks[rows] = rank_by_vectors(
            encoder.encode(items, lengths), vectors, cases.targets[rows], seen, ties
        )
    return ranks
