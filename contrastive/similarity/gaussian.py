"""Log-sum-exps of Gaussian kernels between the points of a batch, in memory linear in their number.

For points ``x_i`` in one or several spaces and a bandwidth ``t``, the kernel of a pair is
``exp(-|x_i - x_j|^2 / 2t)``, and that of the joint space is the product over the spaces. Uniformity is a function of
the sum of all kernels without the own pairs (which are 1), a kernel entropy of the row sums.

The matrices of all spaces are visited together, a square tile at a time; with one process only tiles on and
above the diagonal, each of which serves its rows and its columns. Their product comes from the same
exponentials. Where the rows of a tile are all the same point of a space, its kernels there are computed for one of
them. Backward computes tiles again, which takes no longer than fetching them; with row sums ``r_i`` and upstream
gradients ``g``, the weights ``w_ij = k_ij (g_i / r_i + g_j / r_j)`` give

    d/dx_i = sum_j w_ij (x_j - x_i) / t.
"""

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from contrastive.checks import check_number, shown
from contrastive.errors import InvalidType
from contrastive.similarity.distributed import Gathered
from contrastive.similarity.rows import DENSE_ENTRIES, at_least_float32, differentiable_once

# Row sums below this may have lost terms to underflow.
_TINY = 1e-20


def gaussian_logsumexp(spaces: Sequence[Gathered], temperature: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``log sum_{j != i} exp(-sum_k |x_ki - x_kj|^2 / 2t)`` of each own row, and the total of each space.

    Args:
        spaces: for each space the own rows ``(M, D)`` and those of all processes ``(N, D)``, from
            :func:`gather`. Widths may differ.
        temperature: ``t``, the squared bandwidth of the kernels.

    Returns:
        The log-sum of each own row for all spaces jointly, ``(M,)``, and for each of two or more spaces the scalar
        ``log sum_i sum_{j != i} exp(-|x_i - x_j|^2 / 2t)`` over the own rows ``i``. In at least float32; ``-inf`` where
        nothing is left to sum over, and where a row is so far from all others that its sum cannot be told from 0
        beside the nearest pairs.

    Raises:
        RuntimeError: when matrices of more than ``2**18`` entries are differentiated twice.
    """
    check_number("gaussian_logsumexp", "temperature", temperature, "(0, inf)")
    if (
        not isinstance(spaces, list | tuple)
        or not spaces
        or not all(isinstance(one, Gathered) for one in spaces)
    ):
        raise InvalidType(
            f"gaussian_logsumexp: spaces is {shown(spaces)}; give a list of what gather(rows) returns."
        )
    alone = all(space.all is space.local for space in spaces)
    local, everywhere = [], []
    with torch.autocast(spaces[0].local.device.type, enabled=False):
        for space in spaces:
            centre = at_least_float32(space.all).detach().mean(0) if len(space.all) else 0.0
            local.append((at_least_float32(space.local) - centre) / math.sqrt(temperature))
            if not alone:
                everywhere.append((at_least_float32(space.all) - centre) / math.sqrt(temperature))
        rows, *totals = _GaussianLogSumExp.apply(spaces[0].start, len(spaces), *local, *everywhere)
    return rows, tuple(totals)


class _GaussianLogSumExp(torch.autograd.Function):
    """The above for scaled rows: those of this process in each space, then those of all if they are others."""

    @staticmethod
    def forward(ctx: Any, start: int, num_spaces: int, *points: Tensor) -> tuple[Tensor, ...]:
        local, everywhere = points[:num_spaces], points[num_spaces:]
        tiles = _Tiles(local, everywhere, start, [0.0] * num_spaces)
        sums = _sums(tiles)
        if any(float(x.sum()) < _TINY for x in sums[1:] or sums):
            tiles = _Tiles(local, everywhere, start, _largest_logits(tiles))
            sums = _sums(tiles)
        shifts = [sum(tiles.shifts), *tiles.shifts]
        ctx.save_for_backward(*points, *sums)
        ctx.start, ctx.num_spaces, ctx.shifts = start, num_spaces, tiles.shifts
        return tuple(x.log() + shift for x, shift in zip(sums, shifts, strict=False))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved, count = ctx.saved_tensors, len(ctx.needs_input_grad) - 2
        points, sums = saved[:count], saved[count:]
        local, everywhere = points[: ctx.num_spaces], points[ctx.num_spaces :]
        twice = torch.is_grad_enabled()  # create_graph=True
        if twice and len(local[0]) * len((everywhere or local)[0]) <= DENSE_ENTRIES:
            outputs = _dense(local, everywhere or local, ctx.start)
            return (
                None,
                None,
                *torch.autograd.grad(outputs, points, upstream, create_graph=True, materialize_grads=True),
            )
        with torch.no_grad(), torch.autocast(local[0].device.type, enabled=False):
            tiles = _Tiles(local, everywhere, ctx.start, ctx.shifts)
            weights = [
                torch.where(r > 0, g / r, torch.zeros_like(r)) for g, r in zip(upstream, sums, strict=True)
            ]
            grads = _gradients(tiles, weights)
        if twice:
            grads = [
                differentiable_once("gaussian_logsumexp", g, x) for g, x in zip(grads, points, strict=True)
            ]
        return None, None, *grads


class _Tiles:
    """Square tiles of ``exp(-|a_i - b_j|^2 / 2 - shift)``, one for each space; the own pair is 0."""

    def __init__(
        self,
        local: Sequence[Tensor],
        everywhere: Sequence[Tensor],
        own: int,
        shifts: list[float],
    ) -> None:
        self.symmetric = not everywhere
        self.rows, self.columns = local, everywhere or local
        self.own, self.shifts = own, shifts
        # One product gives -|a - b|^2 / 2 - shift = a·b - |a|^2 / 2 - |b|^2 / 2 - shift.
        self._left = [
            torch.cat([a, -_half_square(a) - shift, torch.ones_like(a[:, :1])], 1)
            for a, shift in zip(self.rows, shifts, strict=True)
        ]
        self._right = [torch.cat([b, torch.ones_like(b[:, :1]), -_half_square(b)], 1) for b in self.columns]
        self._one_row = [_slices_of_one_point(a) for a in self.rows]
        self._one_column = (
            self._one_row if self.symmetric else [_slices_of_one_point(b) for b in self.columns]
        )

    def __iter__(self) -> Iterator[tuple[slice, slice, list[Tensor]]]:
        """Rows, columns, and for each space the tile ``(m, n)`` between them."""
        for rows, columns in self.places():
            size = rows.stop - rows.start, columns.stop - columns.start
            yield rows, columns, [tile.exp_().expand(size) for tile in self.logits(rows, columns)]

    def places(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each tile; of a symmetric matrix those on and above the diagonal."""
        num_rows, num_columns = len(self.rows[0]), len(self.columns[0])
        size = _tile_size(self.rows[0].device)
        for i in range(0, num_rows, size):
            for j in range(i if self.symmetric else 0, num_columns, size):
                yield slice(i, min(i + size, num_rows)), slice(j, min(j + size, num_columns))

    def logits(self, rows: slice, columns: slice) -> list[Tensor]:
        """Exponents of a tile, one row or column for all that are equal; that of an own pair is ``-inf``."""
        offset = self.own + rows.start - columns.start
        has_own = -(rows.stop - rows.start) < offset < columns.stop - columns.start
        logits = []
        for k, (left, right) in enumerate(zip(self._left, self._right, strict=True)):
            m = 1 if rows.start in self._one_row[k] and not has_own else None
            n = 1 if columns.start in self._one_column[k] and not has_own else None
            logits.append(torch.mm(left[rows][:m], right[columns][:n].T))
            if has_own:
                logits[-1].diagonal(offset).fill_(-torch.inf)
        return logits


def _sums(tiles: _Tiles) -> list[Tensor]:
    """Row sums of the product of all kernels and, of two or more, the total of each."""
    rows_of_product = tiles.rows[0].new_zeros(len(tiles.rows[0]))
    totals = [tiles.rows[0].new_zeros(()) for _ in tiles.rows] if len(tiles.rows) > 1 else []
    for rows, columns, kernels in tiles:
        twice = tiles.symmetric and rows != columns
        product = reduce(torch.mul, kernels)
        rows_of_product[rows] += product.sum(1)
        if twice:
            rows_of_product[columns] += product.sum(0)
        for total, kernel in zip(totals, kernels, strict=False):
            total.add_(kernel.sum(), alpha=2 if twice else 1)
    return [rows_of_product, *totals]


def _largest_logits(tiles: _Tiles) -> list[float]:
    """The largest exponent of each space, 0 where there is no pair."""
    largest = [-math.inf] * len(tiles.rows)
    for place in tiles.places():
        for k, logits in enumerate(tiles.logits(*place)):
            largest[k] = max(largest[k], float(logits.max()))
    return [value if math.isfinite(value) else 0.0 for value in largest]


def _gradients(tiles: _Tiles, weights: list[Tensor]) -> list[Tensor]:
    """Gradients of the points, from upstream gradients over sums: those of rows and those of totals."""
    points = [*tiles.rows] if tiles.symmetric else [*tiles.rows, *tiles.columns]
    with_one = [torch.cat([x, torch.ones_like(x[:, :1])], 1) for x in points]
    moved = [torch.zeros_like(x) for x in with_one]  # sum_j w_ij x_j and, in the last column, sum_j w_ij
    of_columns = 0 if tiles.symmetric else len(tiles.rows)  # where the columns stand among the points
    of_rows, *of_totals = weights
    of_totals = [2 * w if tiles.symmetric else w for w in of_totals]  # for (i, j) and (j, i)
    for rows, columns, kernels in tiles:
        ends = of_rows[rows, None] + of_rows[columns] if tiles.symmetric else of_rows[rows, None]
        joint = reduce(Tensor.mul_, kernels[1:], ends * kernels[0])
        for k, kernel in enumerate(kernels):
            pairs = torch.addcmul(joint, kernel, of_totals[k]) if of_totals else joint
            moved[k][rows].addmm_(pairs, with_one[of_columns + k][columns])
            if not (tiles.symmetric and rows == columns):
                moved[of_columns + k][columns].addmm_(pairs.T, with_one[k][rows])
    return [towards[:, :-1] - towards[:, -1:] * x for towards, x in zip(moved, points, strict=True)]


def _dense(local: Sequence[Tensor], everywhere: Sequence[Tensor], start: int) -> list[Tensor]:
    """The definition, differentiable any number of times."""
    logits = [a @ b.T - _half_square(a) - _half_square(b).T for a, b in zip(local, everywhere, strict=True)]
    own = torch.ones_like(logits[0], dtype=torch.bool).triu(start).tril(start)
    joint, *each = (x.masked_fill(own, -torch.inf) for x in (torch.stack(logits).sum(0), *logits))
    return [joint.logsumexp(1), *(x.logsumexp((0, 1)) for x in each if len(logits) > 1)]


def _slices_of_one_point(x: Tensor) -> set[int]:
    """Where those slices of the rows start that hold the same point throughout."""
    size = _tile_size(x.device)
    return {i for i in range(0, len(x), size) if bool((x[i : i + size] == x[i]).all())}


def _half_square(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(1, keepdim=True)


def _tile_size(device: torch.device) -> int:
    """Tiles that stay in a processor's cache."""
    return 256 if device.type == "cpu" else 8192
