"""Softmax-weighted mean similarities, each row at a temperature of its own, in memory linear in the rows.

With products ``s_ij = a_i · b_j`` and temperatures ``t_i``, row i gets

    log_sum_i = log sum_j exp(s_ij / t_i)        without gradient
    mean_i    = sum_j p_ij s_ij                  with p_ij = exp(s_ij / t_i - log_sum_i) held constant

so the gradient of the mean is a weighted sum of rows: what losses with stored normalisers need. The matrix is
visited in blocks of rows. ``a @ a.T`` is symmetric but its exponentials are not, because temperatures differ by row:
a block on and right of the diagonal is multiplied out once and gives two sets of exponentials, its rows' and its
columns'. As in :mod:`contrastive.similarity.softmax`, exponentials that fit a fixed budget are kept for backward.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrastive.similarity import rows as engine
from contrastive.similarity import softmax
from contrastive.similarity.distributed import Gathered

# Rows a block on a CPU: few enough that little is computed left of the diagonal.
_CPU_ROWS = 192
# Product of a pair that is left out: its exponential, and that times the product, are 0 at any temperature.
_LEFT_OUT = -1e30


class TemperedMeans(NamedTuple):
    """``log_sum`` and ``mean``, ``(M,)`` each, as defined above; only the mean has a gradient."""

    log_sum: Tensor
    mean: Tensor


def tempered_self(rows: Gathered, temperatures: Tensor, group: int = 1) -> TemperedMeans:
    """Log-sum and mean of each own row over the rows of all processes, those of its own group left out.

    Args:
        rows: own rows ``(M, D)`` and those of all processes ``(N, D)``, from :func:`gather`.
        temperatures: ``(M,)``, of the own rows.
        group: so many consecutive rows belong together and are left out of each other's sums.

    Raises:
        RuntimeError: when a matrix of more than ``2**18`` entries is differentiated twice.
    """
    keys = None if rows.all is rows.local else rows.all
    return _tempered(rows.local, keys, temperatures, None, rows.start, group)[0]


def tempered_both(
    a: Gathered, b: Gathered, a_temperatures: Tensor, b_temperatures: Tensor
) -> tuple[TemperedMeans, TemperedMeans]:
    """Log-sum and mean of each own row of ``a`` over all of ``b`` and the reverse, its partner left out.

    Args:
        a: own rows ``(M, D)`` and those of all processes ``(N, D)``, from :func:`gather`.
        b: their partners, in the same order.
        a_temperatures: ``(M,)``, of the own rows of ``a``.
        b_temperatures: ``(M,)``, of the own rows of ``b``.

    Raises:
        RuntimeError: when a matrix of more than ``2**18`` entries is differentiated twice.
    """
    if a.all is a.local:
        return _tempered(a.local, b.local, a_temperatures, b_temperatures, 0, 1)
    return (
        _tempered(a.local, b.all, a_temperatures, None, a.start, 1)[0],
        _tempered(b.local, a.all, b_temperatures, None, b.start, 1)[0],
    )


@torch.no_grad()
def largest_other(a: Gathered, b: Gathered) -> Tensor:
    """Largest product ``(M,)`` of each own row of ``a`` with the rows of ``b``, its partner left out."""
    blocks = _Blocks(a.local, b.all, torch.ones_like(a.local[:, 0]), None, a.start, 1)
    largest = a.local.new_empty(len(a.local))
    for part, first, _ in blocks:
        largest[part] = blocks.products(part, first).amax(1)
    return largest


def _tempered(
    a: Tensor, b: Tensor | None, of_rows: Tensor, of_columns: Tensor | None, own: int, group: int
) -> tuple[TemperedMeans, TemperedMeans]:
    with torch.autocast(a.device.type, enabled=False):
        a = engine.at_least_float32(a)
        b = None if b is None else engine.at_least_float32(b)
        scales = [None if t is None else t.detach().to(a.dtype).reciprocal() for t in (of_rows, of_columns)]
        results = _Tempered.apply(a, b, *scales, own, group)
    return TemperedMeans(*results[:2]), TemperedMeans(*results[2:])


class _Tempered(torch.autograd.Function):
    """Log-sums and means of the rows of ``a @ b.T``, and of its columns if these have scales (1 / temperature).

    ``b = None`` means ``a``, whose row i and column i are one and have one scale.
    """

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor | None,
        row_scales: Tensor,
        column_scales: Tensor | None,
        own: int,
        group: int,
    ) -> tuple[Tensor, ...]:
        blocks = _Blocks(a, b, row_scales, column_scales, own, group)
        rows = _Sums(row_scales, blocks.safe)
        columns = rows if b is None else None if column_scales is None else _Sums(column_scales, blocks.safe)
        budget = softmax._KEPT_ENTRIES if blocks.safe and any(ctx.needs_input_grad) else 0
        # One piece, because the C library hands many small ones back to the system and fetches them anew every step.
        free = a.new_empty(min(budget, blocks.entries()))
        kept: list[Tensor] = []
        for part, first, counted in blocks:
            products = blocks.products(part, first)
            place = free[: blocks.sides * products.numel()]
            if len(place) == blocks.sides * products.numel():
                free = free[len(place) :]
                kept.append(place.view(blocks.sides, *products.shape))
                exponents = blocks.exponents(products, part, first, kept[-1])
            else:
                free = free[:0]
                exponents = blocks.exponents(products, part, first)
            rows.add(part, exponents[0], products, dim=1)
            if columns is not None:
                beyond = slice(first + counted, first + products.shape[1])
                columns.add(beyond, exponents[1][:, counted:], products[:, counted:], dim=0)
        nothing = row_scales.new_empty(0)
        outputs = (*rows.result(), *((nothing, nothing) if columns in (rows, None) else columns.result()))
        ctx.mark_non_differentiable(outputs[0], outputs[2])
        ctx.save_for_backward(a, b, row_scales, column_scales, outputs[0], outputs[2])
        ctx.own, ctx.group, ctx.safe, ctx.kept = own, group, blocks.safe, kept
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b, row_scales, column_scales, row_sums, column_sums = ctx.saved_tensors
        needs_a, needs_b = ctx.needs_input_grad[:2]
        blocks = _Blocks(a, b, row_scales, column_scales, ctx.own, ctx.group, ctx.safe)
        of_rows = row_sums, grads[1]
        of_columns = of_rows if b is None else (column_sums, grads[3])
        twice = torch.is_grad_enabled()  # create_graph=True
        if twice and len(a) * len(blocks.b) <= engine.DENSE_ENTRIES:
            inputs = [x for x, needed in ((a, needs_a), (b, needs_b)) if needed]
            total = blocks.dense_total(of_rows, of_columns)
            found = iter(torch.autograd.grad(total, inputs, create_graph=True))
            return next(found) if needs_a else None, next(found) if needs_b else None, *(None,) * 4
        grad_a = torch.zeros_like(a)
        grad_b = grad_a if b is None else torch.zeros_like(b)
        with torch.no_grad(), torch.autocast(a.device.type, enabled=False):
            factors = [g * (-sums).exp() if blocks.safe else g for sums, g in (of_rows, of_columns)]
            for number, (part, first, counted) in enumerate(blocks):
                if number < len(ctx.kept):
                    exponents = ctx.kept[number]
                else:
                    exponents = blocks.exponents(blocks.products(part, first), part, first)
                sums = (row_sums[part, None], of_columns[0][first:])
                if not blocks.safe:
                    for of_side, of_sums in zip(exponents, sums, strict=False):
                        of_side.sub_(of_sums).exp_()
                memory = blocks.memory("weights", *exponents.shape[1:])
                weights = torch.mul(exponents[0], factors[0][part, None], out=memory)
                if blocks.sides == 2:
                    weights.addcmul_(exponents[1], factors[1][first:])
                grad_a[part].addmm_(weights, blocks.b[first:])
                grad_b[first + counted :].addmm_(weights[:, counted:].T, a[part])
        if twice:
            grad_a = engine.differentiable_once("tempered", grad_a, a)
            grad_b = grad_a if b is None else engine.differentiable_once("tempered", grad_b, b)
        return grad_a if needs_a else None, grad_b if needs_b else None, *(None,) * 4


class _Blocks:
    """The matrix in blocks of rows: whole rows, or if it is symmetric what is on and right of the diagonal."""

    def __init__(
        self,
        a: Tensor,
        b: Tensor | None,
        row_scales: Tensor,
        column_scales: Tensor | None,
        own: int,
        group: int,
        safe: bool | None = None,
    ) -> None:
        self.a, self.b, self.symmetric = a, a if b is None else b, b is None
        self.row_scales, self.column_scales = row_scales, row_scales if b is None else column_scales
        groups = torch.arange(own, own + len(a), device=a.device)[:, None] // group
        self._left_out = groups * group + torch.arange(group, device=a.device)
        size = engine.choose_block_size(len(self.b), a.device)
        size = min(size, _CPU_ROWS) if a.device.type == "cpu" else size
        self._size = max(group, size - size % group)  # a group is never torn
        self.sides = 1 if self.column_scales is None else 2
        self._memory: dict[str, Tensor] = {}
        self.safe = self._is_safe() if safe is None else safe

    def _is_safe(self) -> bool:
        """Whether exp stays inside the range of floats without a shift: the longest rows bound every product."""
        longest = softmax._largest_norm(self.a)
        bound = longest * (longest if self.symmetric else softmax._largest_norm(self.b))
        scales = [s for s in (self.row_scales, self.column_scales) if s is not None]
        return bool(
            bound * torch.cat([*scales, bound.new_zeros(1)]).max() <= softmax._SAFE_LOGIT[bound.dtype]
        )

    def __iter__(self) -> Iterator[tuple[slice, int, int]]:
        """Rows of a block, its first column, and how many of its columns the rows have counted already."""
        for start in range(0, len(self.a), self._size):
            stop = min(start + self._size, len(self.a))
            yield slice(start, stop), *((start, stop - start) if self.symmetric else (0, 0))

    def entries(self) -> int:
        """Number of exponentials in all blocks."""
        return self.sides * sum(
            int(part.stop - part.start) * (len(self.b) - first) for part, first, _ in self
        )

    def memory(self, name: str, *shape: int) -> Tensor:
        """Uninitialised memory, the same for every block; the first one asks for most."""
        if name not in self._memory:
            self._memory[name] = self.a.new_empty(math.prod(shape))
        return self._memory[name][: math.prod(shape)].view(shape)

    def products(self, part: slice, first: int) -> Tensor:
        """A block of ``a @ b.T``, valid until the next one."""
        memory = self.memory("products", part.stop - part.start, len(self.b) - first)
        products = torch.mm(self.a[part], self.b[first:].T, out=memory)
        # On the diagonal, where blocks of a symmetric matrix begin, one looks like the other.
        left_out = self._left_out[: len(products)] if self.symmetric else self._left_out[part]
        return products.scatter_(1, left_out, _LEFT_OUT)

    def exponents(self, products: Tensor, part: slice, first: int, memory: Tensor | None = None) -> Tensor:
        """Products over the temperatures of rows and, if there are two sides, of columns: ``(sides, m, n)``.

        If safe, already the exponentials of these. Valid until the next block, unless written to ``memory``.
        """
        if memory is None:
            memory = self.memory("exponents", self.sides, *products.shape)
        torch.mul(products, self.row_scales[part, None], out=memory[0])
        if self.column_scales is not None:
            torch.mul(products, self.column_scales[first:], out=memory[1])
        return memory.exp_() if self.safe else memory

    def dense_total(self, of_rows: tuple[Tensor, Tensor], of_columns: tuple[Tensor, Tensor]) -> Tensor:
        """The means times their upstream gradients, summed; differentiable any number of times."""
        products = (self.a @ self.b.T).scatter(1, self._left_out, _LEFT_OUT)
        self.safe = False
        with torch.no_grad():
            logits = self.exponents(products, slice(0, len(self.a)), 0)
            p_of_rows = (logits[0] - of_rows[0][:, None]).exp_()
        weights = p_of_rows * of_rows[1][:, None]
        if self.sides == 2 and not self.symmetric:
            weights = weights + (logits[1] - of_columns[0]).exp_() * of_columns[1]
        return (weights * products).sum()


class _Sums:
    """Sums of exponentials, and of these times products, collected block by block."""

    def __init__(self, like: Tensor, safe: bool) -> None:
        self._safe = safe
        self._shift = torch.full_like(like, 0.0 if safe else -torch.inf)
        self._exponentials, self._weighted = torch.zeros_like(like), torch.zeros_like(like)

    def add(self, part: slice, exponents: Tensor, products: Tensor, *, dim: int) -> None:
        """Add what :meth:`_Blocks.exponents` gave for ``part``, summed over ``dim``; logits become exponentials."""
        if not self._safe:
            shift = torch.maximum(self._shift[part], exponents.amax(dim))
            decay = (self._shift[part] - shift).exp_()
            self._exponentials[part].mul_(decay)
            self._weighted[part].mul_(decay)
            self._shift[part] = shift
            exponents.sub_(shift.unsqueeze(dim)).exp_()
        self._exponentials[part].add_(exponents.sum(dim))
        self._weighted[part].add_(torch.linalg.vecdot(exponents, products, dim=dim))

    def result(self) -> tuple[Tensor, Tensor]:
        """Log-sums and means."""
        return self._shift + self._exponentials.log(), self._weighted / self._exponentials
