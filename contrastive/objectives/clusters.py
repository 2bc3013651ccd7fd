"""Clusters of the rows of a memory: k-means, balanced assignment by optimal transport, nearest rows of a cluster.

What is drawn comes from a seed and what is summed is summed in a fixed order, so that processes that hold the same rows
find the same clusters.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive.errors import InvalidValue, NotFinite

_WIDEST_RANGE = 60.0
"""exp(-60) and its reciprocal are far from the ends of float32."""


class ByCluster(NamedTuple):
    """Rows in the order of their clusters: cluster ``c`` has the rows ``order[starts[c] : starts[c] + counts[c]]``."""

    order: Tensor
    starts: Tensor
    counts: Tensor


def sort_by_cluster(labels: Tensor, num_clusters: int) -> ByCluster:
    """Sort rows by their labels ``(M,)``, 0 to ``num_clusters - 1``; rows of one cluster keep their order."""
    counts = torch.bincount(labels, minlength=num_clusters)
    return ByCluster(labels.argsort(stable=True), counts.cumsum(0) - counts, counts)


def cluster_means(rows: Tensor, labels: Tensor, previous: Tensor) -> Tensor:
    """Mean row of each cluster ``(K, D)``; that of an empty cluster is taken from ``previous``.

    Args:
        rows: ``(M, D)``.
        labels: ``(M,)`` integers below K.
        previous: ``(K, D)``.
    """
    order, starts, counts = sort_by_cluster(labels, len(previous))
    # Unlike index_add this sums in the same order in every run, on every device.
    means = F.embedding_bag(order, rows, starts, mode="mean")
    return torch.where(counts[:, None] > 0, means, previous)


def assignment_plan(scores: Tensor, epsilon: float, iterations: int = 10) -> Tensor:
    """Soft assignment of rows to clusters of equal mass, by so many rounds of Sinkhorn's algorithm.

    Maximises ``<plan, scores> + epsilon · entropy`` over plans whose rows sum to 1 and whose columns sum alike (Caron
    et al., "SwAV", arXiv 2006.09882, eqs. 3 and 5). It stops before convergence, as published; rows sum to 1 exactly.
    Computed by scaling rows and columns of one matrix of exponentials, or, where these would underflow, with
    logarithms, so that any epsilon will do.

    Args:
        scores: ``(R, K)``, larger for clusters that fit better.
        epsilon: weight of the entropy, above 0; small values make hard assignments.
        iterations: rounds, at least 1.

    Returns:
        ``(R, K)``.

    Raises:
        FloatingPointError: for scores that are not finite.
    """
    if not bool(torch.isfinite(scores).all()):
        raise NotFinite(
            "assignment_plan: scores are not finite; look for bad values in the embeddings or the prototypes."
        )
    log_plan = scores / epsilon
    if log_plan.numel() and bool(log_plan.max() - log_plan.min() < _WIDEST_RANGE):
        kernel = (log_plan - log_plan.max()).exp()
        rows = kernel.new_ones(len(kernel), 1)
        for _ in range(iterations):
            columns = (rows.T @ kernel).reciprocal()
            rows = (kernel @ columns.T).reciprocal()
        return rows * kernel * columns
    for _ in range(iterations):
        log_plan = log_plan - log_plan.logsumexp(0)
        log_plan = log_plan - log_plan.logsumexp(1, keepdim=True)
    return log_plan.exp()


def nearest_in_ranges(queries: Tensor, keys: Tensor, starts: Tensor, stops: Tensor, k: int) -> Tensor:
    """The k nearest keys ``(R, k)`` of each query among the keys ``starts[r] : stops[r]``, nearest first.

    Queries that search the same part of the keys are taken together, a few at a time, so the cost is that of their
    ranges and not that of all keys, and no more than a few rows of the similarity matrix are held.

    Args:
        queries: ``(R, D)`` unit rows.
        keys: ``(M, D)`` unit rows.
        starts: ``(R,)`` first key of each query's range.
        stops: ``(R,)`` the key after its last; ranges hold at least k keys.
        k: number of keys to find.
    """
    found = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    # A GPU would rather do more work than start more of it.
    together = 16 if queries.device.type == "cpu" else 1024
    for part in torch.split(starts.argsort(stable=True), together):
        start, stop = starts[part, None], stops[part, None]
        first, last = int(start.min()), int(stop.max())
        similarity = queries[part] @ keys[first:last].T
        place = torch.arange(first, last, device=queries.device)
        similarity.masked_fill_((place < start) | (place >= stop), -torch.inf)
        found[part] = similarity.topk(k).indices + first
    return found


def kmeans(
    rows: Tensor, num_clusters: int, *, restarts: int = 10, iterations: int = 100, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from k-means++ starts (Arthur and Vassilvitskii 2007); the best of several.

    Args:
        rows: ``(M, D)``.
        num_clusters: K, at most M.
        restarts: independent starts.
        iterations: largest number of iterations of each.
        seed: what the starts are drawn from.

    Returns:
        Labels ``(M,)`` and centres ``(K, D)``. A cluster may be empty only if fewer than K rows are distinct.

    Raises:
        ValueError: for more clusters than rows.
    """
    if num_clusters > len(rows):
        raise InvalidValue(
            f"kmeans: num_clusters is {num_clusters}, but there are {len(rows)} rows; ask for fewer."
        )
    generator = torch.Generator().manual_seed(seed)
    best: tuple[float, Tensor, Tensor] | None = None
    for _ in range(restarts):
        centres = _spread(rows, num_clusters, generator)
        labels, error = _nearest_centre(rows, centres)
        for _ in range(iterations):
            centres = cluster_means(rows, labels, centres)
            before = labels
            labels, error = _nearest_centre(rows, centres)
            if torch.equal(labels, before):
                break
        if best is None or error < best[0]:
            best = error, labels, centres
    assert best is not None
    return best[1], best[2]


def _spread(rows: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Rows ``(K, D)`` drawn one after the other, each in proportion to its squared distance from those before."""
    uniform = torch.rand(num_clusters, dtype=torch.float64, generator=generator).to(rows.device)
    squares = rows.square().sum(1)
    distances = torch.ones_like(squares)
    nearest, chosen = torch.full_like(squares, torch.inf), []
    for draw in uniform:
        mass = distances.double().cumsum(0)
        chosen.append(torch.searchsorted(mass, draw * mass[-1], right=True).clamp(max=len(rows) - 1))
        row = rows[chosen[-1]]
        nearest = torch.minimum(nearest, (squares - 2 * rows @ row + row.square().sum()).clamp(min=0))
        nearest[chosen[-1]] = 0.0
        distances = nearest
    return rows[torch.stack(chosen)]


def _nearest_centre(rows: Tensor, centres: Tensor) -> tuple[Tensor, float]:
    """Label ``(M,)`` of the nearest centre, and the sum of squared distances less that of the rows' lengths."""
    distances = torch.addmm(centres.square().sum(1), rows, centres.T, alpha=-2)
    error, labels = distances.min(1)
    return labels, float(error.sum())
