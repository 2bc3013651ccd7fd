"""Losses on the rows of a similarity matrix that is never held whole."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from contrastive.arguments import usable
from contrastive.checks import shown
from contrastive.errors import InvalidValue, NotReady

RowLoss = Callable[..., Tensor]

# Up to this many entries the matrix is small: plain autograd is as fast, and can be differentiated twice.
DENSE_ENTRIES = 2**18


def stream_rows(
    queries: Tensor, keys: Tensor, row_loss: RowLoss, *params: Tensor, block_size: int | None = None
) -> Tensor:
    """Sum a loss over the rows of ``queries @ keys.T`` in memory that grows with one block of rows.

    Value and gradients are computed block by block: autograd runs inside the block, then two matrix
    products add its part to the gradients of ``queries`` and ``keys``. Memory is O(block_size · N) and
    nothing is computed again in backward. A matrix of at most ``2**18`` entries is one block under plain
    autograd, which can be differentiated twice; a streamed result cannot, and says so.

    Args:
        queries: ``(M, D)`` anchors.
        keys: ``(N, D)`` candidates. May be the same tensor as ``queries``.
        row_loss: ``row_loss(similarity, rows, *params) -> Tensor``: gets ``similarity`` ``(m, N)``, the
            products of the anchors ``rows`` (a slice of ``range(M)``) with all keys, in at least float32, and
            returns the *sum* of these anchors' losses as ordinary differentiable PyTorch.
        *params: tensors that ``row_loss`` depends on and that get gradients. Anything else may be closed over.
        block_size: rows a block; chosen from N and the device if not given.

    Returns:
        The scalar sum over all M rows, in at least float32.

    Raises:
        ValueError: if the shapes, devices or dtypes of ``queries`` and ``keys`` do not fit each other.
        RuntimeError: when a streamed result is differentiated twice.
    """
    check_pair("stream_rows", queries, keys)
    if block_size is not None and block_size < 1:
        raise InvalidValue(
            f"stream_rows: block_size is {block_size}; give at least 1 row, or None to choose."
        )
    num_queries, num_keys = len(queries), len(keys)
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = at_least_float32(queries), at_least_float32(keys)
        dense = num_queries * num_keys <= DENSE_ENTRIES
        if (dense and block_size is None) or (
            block_size is not None and block_size >= num_queries > 0 and dense
        ):
            return row_loss(queries @ keys.T, slice(0, num_queries), *params)
        if block_size is None:
            block_size = choose_block_size(num_keys, queries.device)
        total: Tensor = _StreamRows.apply(queries, keys, row_loss, block_size, *params)
        return total


class _StreamRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, row_loss: RowLoss, block_size: int, *params: Tensor
    ) -> Tensor:
        needs_queries, needs_keys, _, _, *needs_params = ctx.needs_input_grad
        grad_queries = torch.zeros_like(queries) if needs_queries else None
        grad_keys = torch.zeros_like(keys) if needs_keys else None
        grad_params = [torch.zeros_like(p) if n else None for p, n in zip(params, needs_params, strict=True)]
        total = torch.zeros((), dtype=queries.dtype, device=queries.device)
        block = queries.new_empty(min(block_size, len(queries)), len(keys))
        for start in range(0, len(queries), block_size):
            rows = slice(start, min(start + block_size, len(queries)))
            similarity = torch.mm(queries[rows], keys.T, out=block[: rows.stop - start])
            inputs = [
                similarity.detach().requires_grad_(needs_queries or needs_keys),
                *(p.detach().requires_grad_(n) for p, n in zip(params, needs_params, strict=True)),
            ]
            with torch.enable_grad():
                value = row_loss(inputs[0], rows, *inputs[1:])
            total += value.detach()
            wanted = [x for x in inputs if x.requires_grad]
            if not wanted or not value.requires_grad:
                continue
            grads = dict(
                zip(map(id, wanted), torch.autograd.grad(value, wanted, allow_unused=True), strict=True)
            )
            grad = grads.get(id(inputs[0]))
            if grad is not None and grad_queries is not None:
                torch.mm(grad, keys, out=grad_queries[rows])
            if grad is not None and grad_keys is not None:
                grad_keys.addmm_(grad.T, queries[rows])
            for accumulated, x in zip(grad_params, inputs[1:], strict=True):
                grad = grads.get(id(x))
                if accumulated is not None and grad is not None:
                    accumulated += grad
        ctx.save_for_backward(queries, keys, *params, grad_queries, grad_keys, *grad_params)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        inputs, grads = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        grads = [None if g is None else (g * grad).to(g.dtype) for g in grads]
        if torch.is_grad_enabled():  # create_graph=True
            grads = [
                None if g is None else differentiable_once("stream_rows", g, x)
                for g, x in zip(grads, inputs, strict=True)
            ]
        return grads[0], grads[1], None, None, *grads[2:]


class _DifferentiableOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, gradient: Tensor, source: Tensor, name: str) -> Tensor:
        ctx.name = name  # type: ignore[attr-defined]
        return gradient.clone()

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Any:
        raise NotReady(
            f"{ctx.name}: a streamed result was differentiated twice, "  # type: ignore[attr-defined]
            "but only matrices of at most "
            f"{DENSE_ENTRIES} entries are kept for that. Use a smaller batch for second derivatives."
        )


def differentiable_once(name: str, gradient: Tensor, source: Tensor) -> Tensor:
    """``gradient`` with a graph that raises, naming ``name``, when differentiated with respect to ``source``."""
    result: Tensor = _DifferentiableOnce.apply(gradient, source, name)
    return result


def choose_block_size(num_keys: int, device: torch.device) -> int:
    """Rows a block: enough to keep matrix products efficient, few enough to stay in cache, or to fill a GPU."""
    entries = 2**21 if device.type == "cpu" else 2**25
    return max(64, entries // max(num_keys, 1))


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is when it is float32 or float64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def check_pair(name: str, queries: Tensor, keys: Tensor) -> None:
    """Refuse queries ``(M, D)`` and keys ``(N, D)`` that do not fit each other."""
    for role, x in (("queries", queries), ("keys", keys)):
        if not usable(x) or x.ndim != 2 or not x.is_floating_point():
            given = (
                f"has shape {tuple(x.shape)} and dtype {x.dtype}"
                if isinstance(x, Tensor)
                else f"is {shown(x)}"
            )
            raise InvalidValue(f"{name}: {role} {given}; expected a dense floating-point matrix (rows, D).")
    if queries.shape[1] != keys.shape[1] or queries.dtype != keys.dtype or queries.device != keys.device:
        raise InvalidValue(
            f"{name}: queries are {tuple(queries.shape)} {queries.dtype} on {queries.device} and keys "
            f"{tuple(keys.shape)} {keys.dtype} on {keys.device}; give both the same width, dtype and device."
        )
