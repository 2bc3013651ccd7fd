"""From the command line: an index of embeddings, and what is close to an item in it."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contrastive.retrieval.ids import Array
from contrastive.retrieval.index import Index
from contrastive.retrieval.vectors import Metric

Folder = str | os.PathLike[str]


def build_index(
    embeddings: Folder,
    out: Folder,
    *,
    metric: Metric = "cosine",
    factory: str = "auto",
    recall: float = 0.95,
    memory_budget_gb: float | None = None,
    seed: int = 0,
) -> Index:
    """Build an index of embeddings on disk, tune it and save it.

    Args:
        embeddings: folder of embeddings, as ``contrastive embed`` writes them.
        out: folder of the index; one that is there is replaced.
        metric: ``cosine``, ``dot`` or ``euclidean``.
        factory: ``auto`` chooses by size and memory; ``Flat`` is exact; or a factory string of FAISS.
        recall: share of the ten true neighbours that an approximate index is to find.
        memory_budget_gb: memory that ``auto`` may use, in GB; half of what is free by default.
        seed: of the samples for training and tuning.

    Returns:
        The index.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: see :meth:`Index.from_embeddings` and :meth:`Index.save`.
    """
    start = time.perf_counter()
    budget = None if memory_budget_gb is None else int(memory_budget_gb * 1e9)
    index = Index.from_embeddings(embeddings, metric=metric, factory=factory, memory_budget=budget, seed=seed)
    built = time.perf_counter() - start
    tuned = "exact"
    if not index.exact:
        found = index.tune(recall, seed=seed)
        tuned = f"recall@{found['k']} {found['recall']:.3f} at {found['queries_per_second']:,.0f} queries a second"
    index.save(out)
    print(
        f"index of {len(index):,} vectors of width {index.dim} in {out}: {index.factory}, {metric}, {tuned}; "
        f"built in {built:.1f} s"
    )
    return index


def search_index(
    index: Folder,
    *,
    id: str | None = None,
    image: str | None = None,
    run: Folder | None = None,
    k: int = 10,
    filter: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Find what is closest to an item of an index, or to an image.

    Args:
        index: folder of a saved index.
        id: of an item in it, which is left out of its own neighbours.
        image: file to search for instead; needs ``run``.
        run: folder of the run whose encoder made the vectors.
        k: number of neighbours.
        filter: column -> value or list of values; only items that meet all of them.

    Returns:
        For each neighbour its ``score``, ``id`` and columns (but pictures), closest first.

    Raises:
        ValueError: neither or both of id and image are given, an image without a run, or the run's encoder is not the
            one that the index was made with, or there is no such id.
    """
    if (id is None) == (image is None) or (image is not None and run is None):
        raise ValueError(
            "search: give either id, or image together with run (the folder of the encoder's run)."
        )
    if image is not None and run is not None:
        from contrastive.evaluation.results import describe_encoder

        opened = Index.load(
            index, mmap=True, check=False, fingerprint=describe_encoder(run).get("fingerprint")
        )
        own: int | str | None = None
        queries = _encode(image, run)
    else:
        opened = Index.load(index, mmap=True, check=False)
        own = str(id) if opened.manifest["id"] == "string" else _integer(str(id))
        if own not in opened:
            raise ValueError(f"search: there is no item {own!r} among the {len(opened):,} of {index}.")
        queries = opened.reconstruct(np.array([own]))
    scores, ids = opened.search(queries, k + (own is not None), filter)
    kept = [
        (score, item)
        for score, item in zip(scores[0].tolist(), ids[0].tolist(), strict=True)
        if item != own and np.isfinite(score)
    ][:k]
    table = opened.columns([item for _, item in kept])
    names = [] if table is None else [name for name in table.column_names if name != "thumbnail"]
    rows = [{}] * len(kept) if table is None else table.select(names).to_pylist()
    return [{"score": score, "id": item, **row} for (score, item), row in zip(kept, rows, strict=True)]


def format_neighbours(found: list[Mapping[str, Any]]) -> str:
    """Neighbours as a table of text."""
    if not found:
        return "nothing found"
    names = list(found[0])
    cells = [[f"{row[n]:.4f}" if isinstance(row[n], float) else str(row[n]) for n in names] for row in found]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    lines = [names, *cells]
    return "\n".join(
        "  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"search: the ids of this index are integers, got {text!r}.") from None


def _encode(image: str, run: Folder) -> Array:
    """The vector ``(1, D)`` of an image file, brought to the size that the run was trained on."""
    from contrastive.data.images import decode, scale
    from contrastive.evaluation.features import extract_features
    from contrastive.evaluation.run import load_run_encoder, prepare_data

    data: Any = prepare_data(run)
    path = Path(image)
    if not path.is_file():
        raise FileNotFoundError(f"search: there is no image {image}; give the path of a file.")
    channels, *size = data.image_shape
    pixels = scale(decode(path.read_bytes(), channels), (size[0], size[1]))
    features = extract_features(load_run_encoder(run), [(pixels[None], torch.zeros(1, dtype=torch.int64))])
    return features.vectors.numpy()
