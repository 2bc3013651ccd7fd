"""Retrieval metrics of metric learning (Musgrave et al. 2020, arXiv 2003.08505), in blocks of queries."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contrastive.arguments import checked
from contrastive.errors import InvalidValue
from contrastive.evaluation.features import Features, class_positions, normalize, row_blocks
from contrastive.evaluation.knn import Metric


@dataclass(frozen=True)
class Retrieval:
    """How well samples of the same class are found.

    Attributes:
        metrics: means over queries: ``precision_at_1``, ``recall_at_K`` (share of queries with a match among
            the first K), ``r_precision``, ``map_at_r``, ``map`` and ``mrr``.
        class_means: the same, as the mean of the means of the query classes.
        num_lone: queries without any match in the reference; they are left out of all means.
    """

    metrics: dict[str, float]
    class_means: dict[str, float]
    num_lone: int


@checked
def retrieval_metrics(
    reference: Features,
    queries: Features | None = None,
    *,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    metric: Metric = "cosine",
    depth: int | None = None,
) -> Retrieval:
    """Rank ``reference`` for every query and see where the samples of its class stand.

    With R matches of a query, precision P(k) among the first k and rel(k) = 1 where rank k is a match::

        R-precision = matches in the first R / R        MAP@R = sum_{k <= R} P(k) rel(k) / R
        MAP = sum_k P(k) rel(k) / R                     MRR = 1 / rank of the first match

    Of equally close samples those that do not match come first: features that are all the same find nothing.

    Args:
        reference: labelled features to search in.
        queries: labelled queries; None lets every row of ``reference`` query all others.
        recall_at: the K of ``recall_at_K``.
        metric: ``"cosine"``, or ``"euclidean"`` on the rows as they are.
        depth: how many ranks MAP and MRR look at; all if left out. Libraries that cut the ranking at the size
            of the largest class report smaller values for both.

    Raises:
        ValueError: unlabelled features, or no query has a match.
    """
    itself = queries is None
    queries = reference if queries is None else queries
    _, labels, query_labels = class_positions(reference, queries, "retrieval_metrics")
    matches = torch.bincount(labels, minlength=int(query_labels.max()) + 1)[query_labels] - int(itself)
    asked = (matches > 0).nonzero().squeeze(1)
    if not len(asked):
        raise InvalidValue(
            "retrieval_metrics: no query has a sample of its class in the reference; give at least one class "
            "with two samples"
        )
    x, q = reference.vectors.float(), queries.vectors.float().to(reference.vectors.device)
    if metric == "cosine":
        x, q = normalize(x), normalize(q)
    ranked = len(x) - int(itself)
    columns = max(depth or ranked, int(matches.max()), *recall_at, 1)
    columns = min(columns, ranked)
    ranks = torch.arange(1, columns + 1, device=x.device)
    parts: list[Tensor] = []
    for block in row_blocks(len(asked), 16 * len(x)):
        rows = asked[block]
        closeness = q[rows] @ x.T if metric == "cosine" else -torch.cdist(q[rows], x)
        if itself:
            closeness[torch.arange(len(rows)), rows] = -torch.inf  # sorts last, and is cut off
        alike = labels == query_labels[rows, None]
        last = torch.sort(alike.to(torch.uint8), dim=1, stable=True).indices  # matches behind all others
        order = torch.sort(closeness.gather(1, last), dim=1, descending=True, stable=True).indices[
            :, :columns
        ]
        relevant = alike.gather(1, last.gather(1, order))
        r = matches[rows, None]
        gained = relevant * relevant.cumsum(1).double() / ranks  # P(k) rel(k)
        within_r, within_depth = ranks <= r, ranks <= (depth or columns)
        first = (relevant & within_depth).to(torch.uint8).argmax(dim=1)
        found = (relevant & within_depth).any(dim=1)
        values = [
            relevant[:, 0].double(),
            *((relevant & (ranks <= k)).any(dim=1).double() for k in recall_at),
            (relevant & within_r).sum(1) / r[:, 0].double(),
            (gained * within_r).sum(1) / r[:, 0],
            (gained * within_depth).sum(1) / r[:, 0],
            found / (first + 1).double(),
        ]
        parts.append(torch.stack(values, dim=1))
    table = torch.cat(parts)
    _, group = torch.unique(query_labels[asked], return_inverse=True)
    sums = table.new_zeros(int(group.max()) + 1, table.shape[1]).index_add_(0, group, table)
    class_means = (sums / torch.bincount(group)[:, None]).mean(0)
    names = [
        "precision_at_1",
        *(f"recall_at_{k}" for k in recall_at),
        "r_precision",
        "map_at_r",
        "map",
        "mrr",
    ]
    return Retrieval(
        metrics=dict(zip(names, table.mean(0).tolist(), strict=True)),
        class_means=dict(zip(names, class_means.tolist(), strict=True)),
        num_lone=len(queries) - len(asked),
    )
