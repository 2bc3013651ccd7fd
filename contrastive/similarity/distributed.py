"""Gathering rows across processes so that N processes with B rows each are one process with N·B rows.

Without ``torch.distributed`` every function here is the identity, along the same code path.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from contrastive.arguments import usable
from contrastive.checks import shown
from contrastive.errors import InvalidType, InvalidValue


def world_size() -> int:
    """Number of processes that compute one global batch together (1 without ``torch.distributed``)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class Gathered(NamedTuple):
    """The rows of this process and those of all processes, in rank order.

    ``local`` is ``(B, ...)``, ``all`` is ``(N, ...)``, and ``local`` stands at ``all[start : start + B]``.
    """

    local: Tensor
    all: Tensor
    start: int


def gather(rows: Tensor) -> Gathered:
    """Gather the rows of every process; gradients are summed back to the process that owns the row.

    With the loss of a process taken over its own rows against all columns, and averaged with
    :func:`global_mean`, loss and gradients are exactly those of one process that holds the whole batch.
    Processes may hold different numbers of rows, none included: counts are exchanged first.

    Args:
        rows: ``(B, ...)``, the same trailing shape and dtype on every process.

    Returns:
        :class:`Gathered`: the rows given, the rows ``(N, ...)`` of all processes in rank order, and the
        position of the first own row among them.
    """
    if world_size() == 1:
        return Gathered(rows, rows, 0)
    counts = _exchange_counts(rows)
    stacked = _GatherRows.apply(rows, counts)
    return Gathered(rows, stacked, _own_start(counts))


def global_mean(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over the anchors of all processes, as this process' share of it.

    Returns ``sum(own values) · world size / number of values anywhere``. Averaged over processes, as
    data-parallel training does with gradients, this is the mean over the global batch, also when
    processes hold different numbers of anchors.

    Args:
        values: ``(B,)``, one loss for each own anchor.
        valid: ``(B,)`` bool; anchors that count. All do if not given.

    Returns:
        A scalar; a differentiable zero when no process has a valid anchor.
    """
    _require_tensor("global_mean", "values", values)
    if not values.ndim:
        raise InvalidValue("global_mean: values is a single number; give one for each anchor, of shape (B,).")
    if values.is_floating_point() and values.dtype.itemsize < 2:
        raise InvalidType(
            f"global_mean: values have dtype {values.dtype}, which cannot be summed; give float16 or wider."
        )
    if valid is None:
        return average(values.sum(), len(values))
    _require_tensor("global_mean", "valid", valid)
    if valid.shape != values.shape or valid.dtype != torch.bool:
        raise InvalidValue(
            f"global_mean: valid has shape {tuple(valid.shape)} and dtype {valid.dtype}; give a Boolean for each value."
        )
    return average(torch.where(valid, values, torch.zeros_like(values)).sum(), valid.sum())


def average(total: Tensor, count: int | Tensor) -> Tensor:
    """:func:`global_mean` of anchors whose losses sum to ``total`` and of which there are ``count`` here."""
    _require_tensor("average", "total", total)
    if not usable(total):
        raise InvalidValue(f"average: total is {total.dtype}; give a real number.")
    if not isinstance(count, int | float | Tensor) or (isinstance(count, Tensor) and not usable(count)):
        raise InvalidType(f"average: count is {shown(count)}; give a number.")
    count = global_sum(torch.as_tensor(count, dtype=total.dtype, device=total.device))
    return total * world_size() / count.clamp(min=1)


def global_sum(value: Tensor) -> Tensor:
    """Sum of ``value`` over processes, without gradient."""
    _require_tensor("global_sum", "value", value)
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def _require_tensor(name: str, what: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise InvalidType(f"{name}: {what} is {shown(value)}; give a tensor.")


def _own_start(counts: list[int]) -> int:
    return sum(counts[: dist.get_rank()])


def _exchange_counts(rows: Tensor) -> list[int]:
    own = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(counts, own)
    return [int(count) for count in counts]


class _GatherRows(torch.autograd.Function):
    """All-gather of rows padded to the largest count; backward sums over processes and keeps the own rows."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, counts: list[int]) -> Tensor:
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        received = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(received, padded)
        start = sum(counts[: dist.get_rank()])
        ctx.own = slice(start, start + len(rows))  # type: ignore[attr-defined]
        return torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad[ctx.own], None  # type: ignore[attr-defined]
