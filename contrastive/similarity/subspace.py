"""Losses on the rows of a matrix of cosines that are each taken in the subspace of their row."""

from typing import Any

import torch
from torch import Tensor

from contrastive.errors import InvalidValue
from contrastive.similarity import rows as engine
from contrastive.similarity.rows import RowLoss, at_least_float32, check_pair, differentiable_once

# Squared lengths below this count as zero, and so does the similarity.
_ZERO = 1e-24


def stream_subspace(
    queries: Tensor, weights: Tensor, keys: Tensor, row_loss: RowLoss, *, block_size: int | None = None
) -> Tensor:
    r"""Sum a loss over the rows of ``s_ij = q_i · k_j / |k_j|_i``, each row with a length of its own.

    ``|k|_i = sqrt(sum_d w_id k_d^2)`` is the length of a key where the weights of row i are open. Two matrix
    products make the whole of s, so keys scaled row by row, ``(M, N, D)``, are never formed. Like
    :func:`contrastive.similarity.stream_rows` it goes through blocks of rows: with ``g = d loss / d s``,

        d/dq = (g / |k|) k,   d/dw = -(g s / 2|k|^2) k^2,   d/dk = (g / |k|)' q - k (g s / |k|^2)' w.

    Args:
        queries: ``(M, D)``, anything that is linear in s: directions in the subspace over a temperature.
        weights: ``(M, D)``, at least 0: squared gates.
        keys: ``(N, D)``.
        row_loss: ``row_loss(s, rows) -> Tensor`` gets the rows ``s (m, N)`` of the slice ``rows`` and returns
            the sum of their losses.
        block_size: rows a block; chosen from N and the device if not given.

    Returns:
        The scalar sum over all M rows, in at least float32. A key of length zero has similarity 0, and no
        gradient.

    Raises:
        ValueError: if the shapes, devices or dtypes do not fit each other.
        RuntimeError: when a streamed result (of more than ``2**18`` entries) is differentiated twice.
    """
    check_pair("stream_subspace", queries, keys)
    if weights.shape != queries.shape or weights.dtype != queries.dtype:
        raise InvalidValue(
            f"stream_subspace: weights are {tuple(weights.shape)} {weights.dtype} and queries "
            f"{tuple(queries.shape)} {queries.dtype}; give one weight for each number of the queries."
        )
    with torch.autocast(queries.device.type, enabled=False):
        queries, weights, keys = map(at_least_float32, (queries, weights, keys))
        if block_size is None:
            if len(queries) * len(keys) <= engine.DENSE_ENTRIES:
                return row_loss(_cosines(queries, weights, keys), slice(0, len(queries)))
            block_size = engine.choose_block_size(len(keys), queries.device)
        total: Tensor = _StreamSubspace.apply(queries, weights, keys, row_loss, block_size)
        return total


def _cosines(queries: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """The matrix s ``(M, N)`` at once, under plain autograd."""
    squared = weights @ keys.square().T
    visible = squared > _ZERO
    inverse = torch.where(visible, squared, 1.0).rsqrt()
    return (queries @ keys.T) * torch.where(visible, inverse, 0.0)


class _StreamSubspace(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, weights: Tensor, keys: Tensor, row_loss: RowLoss, block_size: int
    ) -> Tensor:
        needs_queries, needs_weights, needs_keys, _, _ = ctx.needs_input_grad
        wanted = needs_queries or needs_weights or needs_keys
        squared_keys = keys.square()
        grad_queries, grad_weights = torch.zeros_like(queries), torch.zeros_like(weights)
        grad_keys, grad_squared = torch.zeros_like(keys), torch.zeros_like(keys)
        total = queries.new_zeros(())
        for start in range(0, len(queries), block_size):
            rows = slice(start, min(start + block_size, len(queries)))
            inverse = torch.mm(weights[rows], squared_keys.T)
            inverse = torch.where(inverse > _ZERO, inverse.rsqrt_(), 0.0)
            cosines = torch.mm(queries[rows], keys.T).mul_(inverse).requires_grad_(wanted)
            with torch.enable_grad():
                value = row_loss(cosines, rows)
            total += value.detach()
            if not value.requires_grad:
                continue
            (grad,) = torch.autograd.grad(value, cosines)
            grad = grad * inverse
            if needs_queries:
                torch.mm(grad, keys, out=grad_queries[rows])
            if needs_keys:
                grad_keys.addmm_(grad.T, queries[rows])
            grad.mul_(cosines.detach()).mul_(inverse)
            if needs_weights:
                torch.mm(grad, squared_keys, out=grad_weights[rows])
            if needs_keys:
                grad_squared.addmm_(grad.T, weights[rows])
        grad_keys.addcmul_(keys, grad_squared, value=-1)
        ctx.save_for_backward(queries, weights, keys, grad_queries, grad_weights.mul_(-0.5), grad_keys)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        grads = [
            (g * grad).to(g.dtype) if needed else None
            for g, needed in zip(saved[3:], ctx.needs_input_grad, strict=False)
        ]
        if torch.is_grad_enabled():  # create_graph=True
            grads = [
                None if g is None else differentiable_once("stream_subspace", g, x)
                for g, x in zip(grads, saved[:3], strict=True)
            ]
        return *grads, None, None
