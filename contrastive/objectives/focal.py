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

from contrastive.objectives.inputs import (
    check_choice,
    check_temperature,
    check_views,
    divide,
    sample_ids,
    scaled_rows,
    zero_loss,
)
from contrastive.similarity import Gathered, gather, global_sum, logsumexp_self, rows, world_size

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
    check_choice("focal_contrast", "average", average, ("positives", "rows"))
    if (labels is None) == (mask is None):
        raise ValueError("focal_contrast: give either labels or mask, and not both.")
    samples = gather(scaled_rows(embeddings, temperature) if normalize else divide(embeddings, temperature))
    pairs = _pairs_of_mask(mask, samples) if mask is not None else _pairs_of_labels(labels, weights, samples)
    mass = global_sum(pairs.mass)
    if mass == 0:
        return zero_loss("focal_contrast", "no row has a positive", (embeddings,))
    if average == "rows":
        pairs = pairs._replace(normaliser=torch.full_like(pairs.normaliser, len(samples.all)))
    queries = samples.local.index_select(0, pairs.anchors)
    keys = samples.all.index_select(0, pairs.candidates)
    log_sums = logsumexp_self(samples).index_select(0, pairs.anchors)
    total: Tensor
    if len(queries) * len(keys) <= rows.DENSE_ENTRIES:
        everything = slice(0, len(queries)), slice(0, len(keys))
        log_p, weight = _log_p(queries, keys, log_sums, pairs.weights(*everything))
        total = -(weight * log_p * (-log_p.expm1() if focal else 1.0)).sum()
    else:
        total = _StreamPairs.apply(queries, keys, log_sums, pairs, focal)
    return total * world_size() / mass


class _Pairs(NamedTuple):
    """The positive pairs among own rows and all rows, in an order in which each block of rows meets few columns."""

    anchors: Tensor  # (A,) own rows that have a positive
    candidates: Tensor  # (K,) rows of all processes that are someone's positive
    mass: Tensor  # weight of all anchors
    normaliser: Tensor  # (A,) what the sum over an anchor's positives is divided by
    block: Callable[[slice, slice], Tensor]  # weight of the pairs of some anchors and candidates, (m, n)
    columns: Callable[[slice], slice]  # candidates in which the positives of some anchors lie

    def weights(self, block: slice, columns: slice) -> Tensor:
        """How much each pair ``(m, n)`` counts; 0 where it is none."""
        return self.block(block, columns) / self.normaliser[block, None]


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
    begins = torch.searchsorted(column_class, row_class).tolist()
    ends = torch.searchsorted(column_class, row_class, right=True).tolist()

    def block_weights(block: slice, columns: slice) -> Tensor:
        positive: Tensor = row_class[block, None] == column_class[columns]
        positive &= anchors[block, None] != candidates[columns]
        return positive * weight[candidates[columns]] * own[block, None]

    return _Pairs(
        anchors - samples.start,
        candidates,
        own.sum(),
        mass_of[row_class] - own,
        block_weights,
        lambda block: slice(begins[block.start], ends[block.stop - 1]),
    )


def _pairs_of_mask(mask: Tensor, samples: Gathered) -> _Pairs:
    count, total = len(samples.local), len(samples.all)
    if mask.shape != (count, total):
        raise ValueError(
            f"focal_contrast: mask has shape {tuple(mask.shape)}; give one entry for each of the {count} rows and the "
            f"{total} rows of all processes, shape ({count}, {total})."
        )
    own = torch.arange(count, device=mask.device)
    positive = (mask != 0).scatter(1, own[:, None] + samples.start, False)
    numbers = positive.sum(1)
    anchors = (numbers > 0).nonzero().flatten()
    return _Pairs(
        anchors,
        torch.arange(total, device=mask.device),
        samples.all.new_tensor(len(anchors)),
        numbers[anchors].to(samples.all.dtype),
        lambda block, columns: positive[anchors[block], columns],
        lambda block: slice(0, total),
    )


def _log_p(queries: Tensor, keys: Tensor, log_sums: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """``log p`` of some pairs, 0 where a pair does not count, and their weights."""
    log_p = torch.mm(queries, keys.T) - log_sums[:, None]
    return log_p.masked_fill(weight == 0, 0.0), weight


class _StreamPairs(torch.autograd.Function):
    """``- sum of weight (1 - p) log p`` over pairs, block by block, gradients with it; ``p = exp(q·k - log sum)``."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, log_sums: Tensor, pairs: _Pairs, focal: bool
    ) -> Tensor:
        grads = torch.zeros_like(queries), torch.zeros_like(keys), torch.zeros_like(log_sums)
        total = queries.new_zeros(())
        block_size = min(_ROWS, rows.choose_block_size(len(keys), queries.device))
        for start in range(0, len(queries), block_size):
            block = slice(start, min(start + block_size, len(queries)))
            columns = pairs.columns(block)
            log_p, weight = _log_p(
                queries[block], keys[columns], log_sums[block], pairs.weights(block, columns)
            )
            if focal:  # the loss and its derivative by log p
                p, rest = log_p.exp(), -log_p.expm1()
                total -= (weight * rest * log_p).sum()
                slope = weight * (p * log_p - rest)
            else:
                total -= (weight * log_p).sum()
                slope = -weight
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
        return *grads, None, None
