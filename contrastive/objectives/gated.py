r"""The loss of Hydra and SimLAP: Wu et al., "Rethinking Positive Pairs in Contrastive Learning", arXiv 2410.18200.

With queries ``z_i`` of class ``y_i``, keys ``k_j`` of classes ``c_j``, the partner class ``p_i`` drawn for query i and
``g_i`` in [0, 1]^D the gate of the pair ``(y_i, p_i)``,

    s_ij = cos(g_i ⊙ z_i, g_i ⊙ k_j)              Hydra: the key is gated with the query's gate
    s_ij = <g_i² ⊙ z_i / |z_i|, k_j / |k_j|>      SimLAP: a gate may also shrink its similarities
    t_ij = log( exp(s_ij / t) + sum_{n: c_n not in {y_i, p_i}} exp(s_in / t) ) - s_ij / t    for each j with c_j = p_i

The loss is the mean of t over all positive pairs (i, j), or over the positives of each query first. Keys of the query's
own class are neither positives nor negatives, unless it is its own partner class.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive.checks import check_choice
from contrastive.errors import InvalidValue
from contrastive.objectives.inputs import (
    check_integers,
    check_option,
    check_rows,
    check_temperature,
    check_views,
    zero_loss,
)
from contrastive.similarity import average, gather, global_sum, stream_rows, stream_subspace
from contrastive.similarity.rows import at_least_float32


def gated_contrast(
    queries: Tensor,
    keys: Tensor | None,
    gates: Tensor | None,
    *,
    labels: Tensor,
    partners: Tensor,
    key_labels: Tensor | None = None,
    temperature: float | Tensor = 0.2,
    similarity: Literal["cosine", "dot"] = "cosine",
    reduction: Literal["pairs", "queries"] = "pairs",
    repulsion: float | Tensor = 0.0,
) -> Tensor:
    r"""Contrast queries with keys of their partner class, each in the subspace of its gate (formulas above).

    Two matrix products make the similarities and blocks of rows the loss: nothing of size (M, N) or (M, N, D) is kept.

    Args:
        queries: ``(M, D)``; normalised here.
        keys: ``(N, D)`` of this process; normalised here; gathered from all. None takes the queries, and then no
            query is a key of its own.
        gates: ``(M, D)``, at least 0, or None for open gates. ``"cosine"`` does not see the length of a gate.
        labels: ``(M,)`` int64 classes of the queries.
        partners: ``(M,)`` int64 classes whose keys are positives.
        key_labels: ``(N,)`` int64; those of the queries by default.
        temperature: ``t > 0``; a scalar tensor gets a gradient.
        similarity: ``"cosine"`` in the subspace, or gated ``"dot"`` product of unit vectors.
        reduction: mean over positive ``"pairs"``; or mean over all ``"queries"`` of the mean over their positives
            (the sum over ``their number + 1e-6``, as published).
        repulsion: ``a`` in ``s_ij - a cos(z_i, k_j)``. Read by ``"dot"``; a scalar tensor gets a gradient.

    Returns:
        Scalar loss; over several processes this process' share. A differentiable zero, with a warning, when no
        query has a positive.

    Raises:
        ValueError: for a bad shape, dtype, temperature or option.
    """
    check_choice("gated_contrast", "similarity", similarity, ("cosine", "dot"))
    check_choice("gated_contrast", "reduction", reduction, ("pairs", "queries"))
    check_temperature("gated_contrast", temperature)
    if not isinstance(temperature, Tensor):
        temperature = float(temperature)
    check_option("gated_contrast", "repulsion", repulsion, "(-inf, inf)")
    check_views("gated_contrast", (queries,), minimum=1)
    if gates is not None:
        check_rows("gated_contrast", "gates", gates, queries)
        check_views("gated_contrast", (queries, gates.to(queries.dtype)), minimum=1)
    if keys is not None:
        check_rows("gated_contrast", "keys", keys, queries)
    for name, ids, rows in (
        ("labels", labels, queries),
        ("partners", partners, queries),
        ("key_labels", key_labels, keys),
    ):
        if ids is not None or name != "key_labels":
            check_integers("gated_contrast", name, ids, len(queries if rows is None else rows))
    if key_labels is None and keys is not None and len(keys) != len(queries):
        raise InvalidValue(
            f"gated_contrast: {len(keys)} keys and {len(queries)} queries; give key_labels, one for each key."
        )
    with torch.autocast(queries.device.type, enabled=False):
        anchors = _unit(at_least_float32(queries))
        gates = None if gates is None else gates.to(anchors.dtype)
        gathered = gather(anchors if keys is None else _unit(at_least_float32(keys)))
        classes = gather(labels if key_labels is None else key_labels).all
        own = gathered.start if keys is None else None
        row_loss, num_positives = _against_negatives(labels, partners, classes, own, reduction)
        if bool(global_sum(num_positives) == 0):
            inputs = [x for x in (queries, keys, gates) if x is not None]
            return zero_loss("gated_contrast", "no query has a key of its partner class", tuple(inputs))

        if similarity == "dot" or gates is None:
            weights = torch.ones_like(anchors) if gates is None else gates.square()
            if similarity == "dot":
                weights = weights - repulsion
            total = stream_rows(anchors * weights / temperature, gathered.all, row_loss)
        else:
            # The length of a gate has no effect; without it, squares of nearly closed gates cannot underflow.
            gates = gates / gates.detach().amax(1, keepdim=True).clamp_min(torch.finfo(gates.dtype).tiny)
            directions = _unit(anchors * gates) * gates / temperature
            total = stream_subspace(directions, gates.square(), gathered.all, row_loss)
        return average(total, num_positives if reduction == "pairs" else len(queries))


def _unit(x: Tensor) -> Tensor:
    """Rows divided by their length; rows of length zero stay, and get no gradient."""
    length = x.norm(dim=1, keepdim=True)
    return x * torch.where(length > 1e-12, length, torch.inf).reciprocal()


def _against_negatives(
    labels: Tensor, partners: Tensor, key_labels: Tensor, own: int | None, reduction: str
) -> tuple[Callable[[Tensor, slice], Tensor], Tensor]:
    """The sum of t over the positives of some rows, as a function of their similarities; the number of all positives.

    Query i is key ``own + i`` and leaves it out.
    """
    ordered = key_labels.sort().values
    num_positives = torch.searchsorted(ordered, partners, right=True) - torch.searchsorted(ordered, partners)
    if own is not None:
        num_positives = num_positives - (labels == partners).long()

    def row_loss(logits: Tensor, rows: slice) -> Tensor:
        of_partner = partners[rows, None] == key_labels
        excluded = of_partner | (labels[rows, None] == key_labels)
        has_negative = ~excluded.all(1, keepdim=True)  # without one, every t is 0
        positive = of_partner & has_negative
        if own is not None:
            positive[torch.arange(len(logits)), torch.arange(rows.start, rows.stop) + own] = False
        negatives = logits.masked_fill(excluded & has_negative, -torch.inf).logsumexp(1, keepdim=True)
        losses = F.softplus(negatives - logits, threshold=60)
        if reduction == "queries":
            losses = losses / (num_positives[rows, None].to(losses.dtype) + 1e-6)
        return torch.where(positive, losses, 0.0).sum()

    return row_loss, num_positives.sum()
