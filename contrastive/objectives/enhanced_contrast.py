"""The loss of BECLR, as a pure function: see :mod:`contrastive.objectives.beclr` for the method and its symbols."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from contrastive.checks import check_choice
from contrastive.errors import InvalidValue
from contrastive.objectives.inputs import check_temperature, divide, sample_ids, scaled_rows
from contrastive.similarity import Gathered, gather, global_mean, logsumexp_cross, logsumexp_self

Negatives = Literal["student", "mixed", "teacher"]


class BECLRLoss(NamedTuple):
    """The loss and its two terms, scalars."""

    loss: Tensor
    positive: Tensor
    negative: Tensor


class Batches(NamedTuple):
    """Something of each of the three batches that are enhanced."""

    targets: Tensor
    predictions: Tensor
    projections: Tensor


def beclr(
    targets: Tensor,
    predictions: Tensor,
    projections: Tensor,
    neighbours: Batches | None = None,
    *,
    temperature: float = 2.0,
    negative_weight: float = 0.1,
    negatives: Negatives = "student",
) -> BECLRLoss:
    """The pretraining loss of BECLR (arXiv 2402.02444), in memory linear in the number of rows.

    Over several processes the negatives are those of all, and the loss is that of the whole batch.

    Args:
        targets: ``(2, B, D)`` teacher's projections of both views; no gradient goes through them.
        predictions: ``(2, B, D)`` of the student's projections, by the predictor.
        projections: ``(2, B, D)`` of the student. All three are normalised here.
        neighbours: for each of the three, ``(2, B, k, D)`` constant rows that were found for its rows.
        temperature: of the negatives.
        negative_weight: weight of the negative term.
        negatives: whose rows repel each other: those of the ``"student"``; ``"mixed"``: the student's first view and
            the teacher's second; ``"teacher"``, which has no gradient. SS, ST and TT in the authors' code.

    Returns:
        The loss and its terms.

    Raises:
        ValueError: for bad shapes or options, or when there is one row a view over all processes and so no negative.
    """
    check_temperature("beclr", temperature)
    check_choice("beclr", "negatives", negatives, ("student", "mixed", "teacher"))
    live = Batches(*(scaled_rows(x, 1.0) for x in (targets.detach(), predictions, projections)))
    _check_shapes(live, neighbours)
    positives = [(live.predictions * live.targets.flip(0)).sum(-1).flatten()]
    constant = None
    if neighbours is not None:
        found = Batches(*(scaled_rows(x.detach(), 1.0).flatten(1, 2) for x in neighbours))
        positives.append((found.predictions * found.targets.flip(0)).sum(-1).flatten())
        constant = divide(_both_sides(found, negatives), temperature)
    positive = -global_mean(torch.cat(positives))
    negative = _log_mean_of_negatives(divide(_both_sides(live, negatives), temperature), constant)
    return BECLRLoss(positive + negative_weight * negative, positive, negative)


def _both_sides(rows: Batches, negatives: Negatives) -> Tensor:
    """The rows that repel each other, ``(N, 2, D)``: first and second view of each sample."""
    first = rows.targets if negatives == "teacher" else rows.projections
    second = rows.projections if negatives == "student" else rows.targets
    return torch.stack([first[0], second[1].to(first.dtype)], 1)


def _log_mean_of_negatives(live: Tensor, constant: Tensor | None) -> Tensor:
    """Log of the mean, over all pairs of rows of different samples, of the exponential of their product.

    Pairs of two constant rows need no gradient, and pairs of a live and a constant one are the same in both orders.

    Args:
        live: ``(B, 2, D)`` rows with gradient, scaled.
        constant: ``(B k, 2, D)`` rows without.
    """
    rows, ids = _as_rows(live)
    count = len(rows.all)
    log_sums = [logsumexp_self(rows, ids.local, ids.all)]
    if constant is not None:
        others, other_ids = _as_rows(constant)
        count += len(others.all)
        log_sums.append(logsumexp_cross(rows.local, others.all) + math.log(2))
        log_sums.append(logsumexp_self(others, other_ids.local, other_ids.all))
    if count < 4:
        raise InvalidValue(
            f"beclr: the global batch has {count // 2} rows in each view, so there are no negatives; give at least 2 "
            "(drop a last incomplete batch)."
        )
    return gather(torch.cat(log_sums)).all.logsumexp(0) - math.log(count) - math.log(count - 2)


def _as_rows(pairs: Tensor) -> tuple[Gathered, Gathered]:
    """Both rows ``(2 N, D)`` of pairs ``(N, 2, D)`` of all processes, and ids that the two of a pair share."""
    everywhere = gather(pairs)
    ids = sample_ids("beclr", None, everywhere)
    local = everywhere.local.flatten(0, 1)
    both = local if everywhere.all is everywhere.local else everywhere.all.flatten(0, 1)
    shared = Gathered(ids.local.repeat_interleave(2), ids.all.repeat_interleave(2), 2 * ids.start)
    return Gathered(local, both, 2 * everywhere.start), shared


def _check_shapes(live: Batches, neighbours: Batches | None) -> None:
    shape = live.projections.shape
    if len(shape) != 3 or shape[0] != 2 or any(x.shape != shape for x in live):
        raise InvalidValue(
            f"beclr: targets, predictions and projections have shapes {[tuple(x.shape) for x in live]}; give all three "
            "one shape (2, B, D): two views."
        )
    for x in neighbours or ():
        if x.ndim != 4 or (*x.shape[:2], x.shape[3]) != shape or x.shape != neighbours[0].shape:  # type: ignore[index]
            raise InvalidValue(
                f"beclr: neighbours have shape {tuple(x.shape)}; give each of the three (2, {shape[1]}, k, {shape[2]})."
            )
