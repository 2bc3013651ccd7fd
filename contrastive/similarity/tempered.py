"""Softmax-weighted mean similarities, each row at a temperature of its own, in memory linear in the rows.

With products ``s_ij = a_i · b_j`` and temperatures ``t_i``, row i gets

    log_sum_i = log sum_j exp(s_ij / t_i)        without gradient
    mean_i    = sum_j p_ij s_ij                  with p_ij = exp(s_ij / t_i - log_sum_i) held constant

so the gradient of the mean is a weighted sum of rows: what losses with stored normalisers need. The matrix is
visited in blocks of rows. ``a @ a.T`` is symmetric but its exponentials are not, because temperatures differ by row:
a block on and right of the diagonal is multiplied out once and gives two sets of exponentials, its rows' and its
columns'. As in :mod:`contrastive.similarity.softmax`, exponentials that fit a fixed budget are kept for backward.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrastive.similarity import rows as engine
from contrastive.similarity import softmax
from contrastive.similarity.distributed import Gathered

# Rows a block on a CPU: few enough that little is computed left of the diagonal.
_CPU_ROWS = 128


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
        largest[part] = blocks.logits(blocks.products(part, first), part, first)[0].amax(1)
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
        columns = rows if b is None else _Sums(row_scales.new_empty(0), blocks.safe)
        if column_scales is not None:
            columns = _Sums(column_scales, blocks.safe)
        budget = softmax._KEPT_ENTRIES if blocks.safe and any(ctx.needs_input_grad) else 0
        kept: list[tuple[Tensor, Tensor | None]] = []
        for part, first, counted in blocks:
            products = blocks.products(part, first)
            of_rows, of_columns = blocks.logits(products, part, first)
            rows.add(part, of_rows, products, dim=1)
            if of_columns is not None:
                of_columns[:, :counted].exp_()  # of no use but to backward
                own_columns = slice(first + counted, first + products.shape[1])
                columns.add(own_columns, of_columns[:, counted:], products[:, counted:], dim=0)
            budget -= 2 * products.numel()
            if budget >= 0:
                kept.append((of_rows, of_columns))
        outputs = (*rows.result(), *(row_scales.new_empty(2, 0) if columns is rows else columns.result()))
        ctx.mark_non_differentiable(outputs[0], outputs[2])
        ctx.save_for_backward(a, b, row_scales, column_scales, outputs[0], outputs[2])
        ctx.own, ctx.group, ctx.kept = own, group, kept
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b, row_scales, column_scales, row_sums, column_sums = ctx.saved_tensors
        needs_a, needs_b = ctx.needs_input_grad[:2]
        blocks = _Blocks(a, b, row_scales, column_scales, ctx.own, ctx.group)
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
            for number, (part, first, counted) in enumerate(blocks):
                kept = ctx.kept[number] if number < len(ctx.kept) else None
                weights = blocks.weights(part, first, of_rows, of_columns, kept)
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
    ) -> None:
        self.a, self.b, self.symmetric = a, a if b is None else b, b is None
        self.row_scales, self.column_scales = row_scales, row_scales if b is None else column_scales
        self._own, self._group = own, group
        size = engine.choose_block_size(len(self.b), a.device)
        size = min(size, _CPU_ROWS) if a.device.type == "cpu" else size
        self._size = max(group, size - size % group)  # a group is never torn
        # exp stays inside the range of floats, without a shift: the longest rows bound every product.
        largest = softmax._largest_norm(self.a) * softmax._largest_norm(self.b)
        scales = [s for s in (row_scales, column_scales) if s is not None and len(s)]
        self.safe = bool(largest * torch.cat([*scales, a.new_zeros(1)]).max() <= softmax._SAFE_LOGIT[a.dtype])

    def __iter__(self) -> Iterator[tuple[slice, int, int]]:
        """Rows of a block, its first column, and how many of its columns the rows have counted already."""
        for start in range(0, len(self.a), self._size):
            stop = min(start + self._size, len(self.a))
            yield slice(start, stop), *((start, stop - start) if self.symmetric else (0, 0))

    def products(self, part: slice, first: int) -> Tensor:
        return torch.mm(self.a[part], self.b[first:].T)

    def logits(self, products: Tensor, part: slice, first: int) -> tuple[Tensor, Tensor | None]:
        """Products over the temperatures of rows and of columns, pairs of one group at ``-inf``."""
        groups = torch.arange(part.start, part.stop, device=products.device).add_(self._own) // self._group
        within = torch.arange(self._group, device=products.device)
        left_out = groups[:, None] * self._group + within - first
        of_rows = (products * self.row_scales[part, None]).scatter_(1, left_out, -torch.inf)
        if self.column_scales is None:
            return of_rows, None
        return of_rows, (products * self.column_scales[first:]).scatter_(1, left_out, -torch.inf)

    def weights(
        self,
        part: slice,
        first: int,
        of_rows: tuple[Tensor, Tensor],
        of_columns: tuple[Tensor, Tensor],
        kept: tuple[Tensor, Tensor | None] | None,
    ) -> Tensor:
        """What a block's products are weighted by: rows' upstream gradients times p, plus the same of columns."""
        sums, upstream = of_rows[0][part, None], of_rows[1][part, None]
        column_sums, column_upstream = of_columns[0][first:], of_columns[1][first:]
        if kept is not None:
            weights = kept[0] * (upstream * (-sums).exp())
            return (
                weights
                if kept[1] is None
                else weights.addcmul_(kept[1], column_upstream * (-column_sums).exp())
            )
        rows, columns = self.logits(self.products(part, first), part, first)
        weights = rows.sub_(sums).exp_().mul_(upstream)
        return (
            weights
            if columns is None
            else weights.addcmul_(columns.sub_(column_sums).exp_(), column_upstream)
        )

    def dense_total(self, of_rows: tuple[Tensor, Tensor], of_columns: tuple[Tensor, Tensor]) -> Tensor:
        """The means times their upstream gradients, summed; differentiable any number of times."""
        whole = slice(0, len(self.a))
        products = self.a @ self.b.T
        with torch.no_grad():
            rows, columns = self.logits(products, whole, 0)
            rows = rows.sub_(of_rows[0][:, None]).exp_()
        total = ((rows * products).sum(1) * of_rows[1]).sum()
        if columns is None or self.symmetric:
            return total
        with torch.no_grad():
            columns = columns.sub_(of_columns[0]).exp_()
        return total + ((columns * products).sum(0) * of_columns[1]).sum()


class _Sums:
    """Sums of exponentials, and of these times products, collected block by block."""

    def __init__(self, like: Tensor, safe: bool) -> None:
        self._safe = safe
        self._shift = torch.full_like(like, 0.0 if safe else -torch.inf)
        self._exponentials, self._weighted = torch.zeros_like(like), torch.zeros_like(like)

    def add(self, part: slice, logits: Tensor, products: Tensor, *, dim: int) -> None:
        """Add the logits ``(m, n)`` of ``part``, summed over ``dim``; they become exponentials in place."""
        if not self._safe:
            shift = torch.maximum(self._shift[part], logits.amax(dim)).clamp_(
                min=torch.finfo(logits.dtype).min
            )
            decay = (self._shift[part] - shift).exp_()
            self._exponentials[part] *= decay
            self._weighted[part] *= decay
            self._shift[part] = shift
            logits.sub_(shift.unsqueeze(dim))
        logits.exp_()
        self._exponentials[part] += logits.sum(dim)
        self._weighted[part] += (logits * products).sum(dim)

    def result(self) -> tuple[Tensor, Tensor]:
        """Log-sums and means."""
        return self._shift + self._exponentials.log(), self._weighted / self._exponentials
