"""The focal supervised contrast of Core-tuning: Zhang et al., NeurIPS 2021, arXiv 2102.06605, section 4.

Softmax probabilities need whole rows of the similarity matrix only for their log-sum-exp, which the engine streams;
the focal weights concern positive pairs alone. So with ``lse_r`` from the engine, rows sorted by class and a block of
them at a time, the few columns that hold their positives give value and gradient:

    log p_rs = z_r·z_s / t - lse_r,    d l_r / d log p_rs = weight_rs (p_rs log p_rs - (1 - p_rs)).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive.arguments import usable
from contrastive.checks import check_choice, check_flag
from contrastive.errors import InvalidValue
from contrastive.objectives.inputs import (
    check_temperature,
    check_views,
    described,
    divide,
    sample_ids,
    scaled_rows,
    zero_loss,
)
from contrastive.similarity import (
    Gathered,
    gather,
    global_sum,
    logsumexp_cross,
    logsumexp_self,
    rows,
    world_size,
)

# Anchors a block: few enough to have their positives in few columns, enough for efficient products.
_ROWS = 128


def focal_contrast(
    embeddings: Tensor,
    labels: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    focal: bool = True,
    average: Literal["positives", "rows"] = "positives",
    normalize: bool = True,
) -> Tensor:
    r"""Supervised contrast that gives most weight to positives that are still far apart.

    ``l_r = - mean over positives s of (1 - p_rs) log p_rs``, averaged over the rows that have a positive, where
    ``p_rs`` is the softmax of ``z_r·z_s / t`` over all rows ``s`` but ``r``. Gradients flow through the weight as well.

    Args:
        embeddings: ``(R, D)``.
        labels: ``(R,)`` integers; rows of equal labels are positives of each other.
        mask: ``(R, N)`` instead of labels, N the rows of all processes: nonzero where ``s`` is a positive of ``r``.
            What it says of a row and itself is ignored.
        weights: ``(R,)`` above 0, by default 1: how much a row counts as an anchor and as a positive. Not with a mask.
        temperature: ``t > 0``; a scalar tensor gets a gradient.
        focal: False leaves out the weights ``1 - p_rs``.
        average: divide the sum over positives by their number (or weight), or by the number of all rows, as released.
        normalize: divide rows by their length first; switch off only if that was done already.

    Returns:
        Scalar loss; over several processes this process' share. A differentiable zero, with a warning, when no row has
        a positive.

    Raises:
        ValueError: for a bad shape, dtype, temperature or option, or unless exactly one of labels and mask is given.
    """
    check_views("focal_contrast", (embeddings,), minimum=1)
    check_temperature("focal_contrast", temperature)
    if normalize is not True:
        normalize = check_flag("focal_contrast", "normalize", normalize)
    focal = check_flag("focal_contrast", "focal", focal)
    check_choice("focal_contrast", "average", average, ("positives", "rows"))
    if (labels is None) == (mask is None):
        raise InvalidValue("focal_contrast: give either labels or mask, and not both.")
    if mask is not None and (not usable(mask) or mask.ndim != 2 or len(mask) != len(embeddings)):
        raise InvalidValue(
            f"focal_contrast: mask is {described(mask)}; give a dense tensor ({len(embeddings)}, all rows)."
        )
    if weights is not None and (
        not usable(weights) or not weights.is_floating_point() or weights.shape != (len(embeddings),)
    ):
        raise InvalidValue(
            f"focal_contrast: weights are {described(weights)}; give a number above 0 for each of the "
            f"{len(embeddings)} rows."
        )
    samples = gather(scaled_rows(embeddings, temperature) if normalize else divide(embeddings, temperature))
    pairs = _pairs_of_mask(mask, samples) if mask is not None else _pairs_of_labels(labels, weights, samples)
    mass = global_sum(pairs.own_weights.sum())
    if mass == 0:
        return zero_loss("focal_contrast", "no row has a positive", (embeddings,))
    normaliser = pairs.normaliser if average == "positives" else len(samples.all)
    coefficients = pairs.own_weights / normaliser
    keys = F.embedding(pairs.candidates, samples.all)  # index_select with a faster backward
    whole = samples.all is samples.local and mask is None  # then the anchors are the candidates
    queries = keys if whole else F.embedding(pairs.anchors, samples.local)
    log_sums = _log_sums(queries, keys, samples, pairs)
    total: Tensor
    if len(queries) * len(keys) <= rows.DENSE_ENTRIES:
        everything = slice(0, len(queries)), slice(0, len(keys))
        positive = pairs.positive(*everything)
        log_p = (queries @ keys.T - log_sums[:, None]).masked_fill(~positive, 0.0)
        losses = -log_p * (-log_p.expm1() if focal else 1.0)
        total = coefficients @ (losses @ pairs.weights)
    else:
        total = _StreamPairs.apply(queries, keys, log_sums, coefficients, pairs, focal)
    return total * world_size() / mass


class _Pairs(NamedTuple):
    """The positive pairs among own rows and all rows, in an order in which each block of rows meets few columns."""

    anchors: Tensor  # (A,) own rows that have a positive
    candidates: Tensor  # (K,) rows of all processes that are someone's positive
    own_weights: Tensor  # (A,) of the anchors
    weights: Tensor  # (K,) of the candidates
    normaliser: Tensor  # (A,) weight of each anchor's positives
    positive: Callable[[slice, slice], Tensor]  # which pairs of some anchors and candidates are positive
    blocks: list[tuple[slice, slice]]  # some anchors and the candidates among which all their positives are


def _log_sums(queries: Tensor, keys: Tensor, samples: Gathered, pairs: _Pairs) -> Tensor:
    """Log-sum-exp of each anchor over all rows but itself; rows that are nobody's positive need none of their own."""
    if queries is keys:
        log_sums = logsumexp_self(Gathered(keys, keys, 0))
    else:
        log_sums = logsumexp_cross(queries, keys, pairs.anchors + samples.start, pairs.candidates)
    others = torch.ones(len(samples.all), dtype=torch.bool, device=keys.device)
    others[pairs.candidates] = False
    if bool(others.any()):
        log_sums = torch.logaddexp(log_sums, logsumexp_cross(queries, samples.all[others]))
    return log_sums


def _pairs_of_labels(labels: Tensor | None, weights: Tensor | None, samples: Gathered) -> _Pairs:
    ids = sample_ids("focal_contrast", labels, samples)
    dtype, device = samples.all.dtype, samples.all.device
    weight = samples.all.new_ones(len(ids.all)) if weights is None else gather(weights.detach().to(dtype)).all
    _, class_of, sizes = torch.unique(ids.all, return_inverse=True, return_counts=True)
    mass_of = torch.zeros(len(sizes), dtype=dtype, device=device).index_add(0, class_of, weight)
    # Rows of one class side by side: then the positives of a few rows stand in a few columns.
    candidates = class_of.argsort(stable=True)
    candidates = candidates[sizes[class_of[candidates]] > 1]
    end = samples.start + len(samples.local)
    anchors = candidates[(candidates >= samples.start) & (candidates < end)]
    row_class, column_class, own = class_of[anchors], class_of[candidates], weight[anchors]
    bounds = torch.stack(
        [
            torch.searchsorted(row_class, row_class),
            torch.searchsorted(column_class, row_class),
            torch.searchsorted(column_class, row_class, right=True),
        ]
    )

    def positive(block: slice, columns: slice) -> Tensor:
        same: Tensor = row_class[block, None] == column_class[columns]
        same &= anchors[block, None] != candidates[columns]
        return same

    return _Pairs(
        anchors - samples.start,
        candidates,
        own,
        weight[candidates],
        mass_of[row_class] - own,
        positive,
        _blocks(bounds.T.tolist(), _block_size(samples.all)),
    )


def _pairs_of_mask(mask: Tensor, samples: Gathered) -> _Pairs:
    count, total = len(samples.local), len(samples.all)
    if mask.shape != (count, total):
        raise InvalidValue(
            f"focal_contrast: mask has shape {tuple(mask.shape)}; give one entry for each of the {count} rows and the "
            f"{total} rows of all processes, shape ({count}, {total})."
        )
    own = torch.arange(count, device=mask.device)
    every_positive = (mask != 0).scatter(1, own[:, None] + samples.start, False)
    numbers = every_positive.sum(1)
    anchors = (numbers > 0).nonzero().flatten()
    one = samples.all.new_ones(())
    return _Pairs(
        anchors,
        torch.arange(total, device=mask.device),
        one.expand(len(anchors)),
        one.expand(total),
        numbers[anchors].to(samples.all.dtype),
        lambda block, columns: every_positive[anchors[block], columns],
        _blocks([[0, 0, total]] * len(anchors), _block_size(samples.all)),
    )


def _blocks(bounds: list[list[int]], size: int) -> list[tuple[slice, slice]]:
    """Blocks of at most ``size`` anchors, cut between classes where possible, and the columns of their positives.

    Args:
        bounds: of the class of each anchor: its first anchor, its first candidate and the end of its candidates.
        size: largest number of anchors.
    """
    blocks, start = [], 0
    while start < len(bounds):
        stop = min(start + size, len(bounds))
        if stop < len(bounds) and bounds[stop][0] > start:
            stop = bounds[stop][0]
        blocks.append((slice(start, stop), slice(bounds[start][1], bounds[stop - 1][2])))
        start = stop
    return blocks


def _block_size(samples: Tensor) -> int:
    return min(_ROWS, rows.choose_block_size(len(samples), samples.device))


class _StreamPairs(torch.autograd.Function):
    """``- sum of weight (1 - p) log p`` over pairs, block by block, gradients with it; ``p = exp(q·k - log sum)``."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        log_sums: Tensor,
        coefficients: Tensor,
        pairs: _Pairs,
        focal: bool,
    ) -> Tensor:
        grads = torch.zeros_like(queries), torch.zeros_like(keys), torch.zeros_like(log_sums)
        total = queries.new_zeros(())
        for block, columns in pairs.blocks:
            positive = pairs.positive(block, columns)
            log_p = torch.mm(queries[block], keys[columns].T).sub_(log_sums[block, None])
            log_p.masked_fill_(~positive, 0.0)
            if focal:  # the loss and its derivative by log p, both 0 where log p is
                rest = log_p.expm1().neg_()
                losses = rest * log_p
                slope = log_p.mul_(1 - rest).sub_(rest)
            else:
                losses, slope = log_p, -positive.to(log_p.dtype)
            total -= coefficients[block] @ (losses @ pairs.weights[columns])
            slope *= pairs.weights[columns]
            slope *= coefficients[block, None]
            torch.mm(slope, keys[columns], out=grads[0][block])
            grads[1][columns].addmm_(slope.T, queries[block])
            grads[2][block] = -slope.sum(1)
        ctx.save_for_backward(queries, keys, log_sums, *grads)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs, grads = ctx.saved_tensors[:3], [grad * upstream for grad in ctx.saved_tensors[3:]]
        if torch.is_grad_enabled():  # create_graph=True
            grads = [
                rows.differentiable_once("focal_contrast", grad, x)
                for grad, x in zip(grads, inputs, strict=True)
            ]
        return *grads, None, None, None
