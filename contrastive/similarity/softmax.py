"""The log-sum-exp of a similarity matrix's rows and columns, in memory linear in their number.

Every objective of the softmax family is a log-sum-exp over candidates minus a few products, so this one
kernel serves InfoNCE, SupCon, the decoupled and the queue form, and cross-entropy over a catalogue.

Temperatures are folded into the rows (``x = z / sqrt(temperature)``), so that their gradients need no case
of their own. The matrix is visited a square tile at a time; for ``x @ x.T`` only tiles on and above the
diagonal, each of which serves its rows and its columns. With ``e = exp(s)``, ``r_i = sum_j e_ij`` and
upstream gradients ``g``, backward recomputes ``e`` (but for the tiles that fit a fixed budget) and needs

    d/dx_i = sum_j e_ij (g_i / r_i + g_j / r_j) x_j.

That is two full products' worth of work for forward and backward together, where dense autograd needs three.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrastive.arguments import usable
from contrastive.checks import shown
from contrastive.errors import InvalidType, InvalidValue
from contrastive.similarity.distributed import Gathered
from contrastive.similarity.rows import DENSE_ENTRIES, at_least_float32, check_pair, differentiable_once

# exp and its sums stay inside float32's (float64's) range, without any shift, while |s| is below this.
_SAFE_LOGIT = {torch.float32: 60.0, torch.float64: 600.0}
# Entries of forward's tiles that wait for backward instead of being computed again: 32 MB in float32.
_KEPT_ENTRIES = 2**23


def logsumexp_self(rows: Gathered, ids: Tensor | None = None, all_ids: Tensor | None = None) -> Tensor:
    """``log sum_j exp(x_i · x_j)`` of each own row over the rows of all processes, itself left out.

    Args:
        rows: own rows ``(M, D)`` and those of all processes ``(N, D)``, from :func:`gather`.
        ids: ``(M,)`` integers of the own rows. Pairs with equal ids are left out of the sum; without ids a
            row leaves out only itself.
        all_ids: ``(N,)`` ids of the rows of all processes; required with ``ids`` on several processes.

    Returns:
        ``(M,)`` in at least float32; ``-inf`` where nothing is left to sum over.

    Raises:
        RuntimeError: when a matrix of more than ``2**18`` entries is differentiated twice.
    """
    if not isinstance(rows, Gathered):
        raise InvalidType(f"logsumexp_self: rows is {shown(rows)}; give what gather(rows) returns.")
    keys = None if rows.all is rows.local else rows.all
    if keys is not None or all_ids is None:
        all_given = all_ids if keys is not None else ids
        _check_ids("logsumexp_self", ids, all_given, rows.local, rows.all, "all_ids")
    pairs = (
        _LeftOut(None, None, rows.start)
        if ids is None
        else _LeftOut(ids, ids if keys is None else all_ids, None)
    )
    return _logsumexp(rows.local, keys, pairs, columns=False)[0]


def logsumexp_cross(
    queries: Tensor, keys: Tensor, ids: Tensor | None = None, key_ids: Tensor | None = None
) -> Tensor:
    """``log sum_j exp(q_i · k_j)`` of each query over the keys.

    Args:
        queries: ``(M, D)``.
        keys: ``(N, D)``.
        ids: ``(M,)`` integers; a key with the query's id is left out of its sum.
        key_ids: ``(N,)`` integers.

    Returns:
        ``(M,)`` in at least float32; ``-inf`` where nothing is left to sum over.

    Raises:
        RuntimeError: when a matrix of more than ``2**18`` entries is differentiated twice.
    """
    _check_ids("logsumexp_cross", ids, key_ids, queries, keys, "key_ids")
    return _logsumexp(queries, keys, _LeftOut(ids, key_ids, None), columns=False)[0]


def logsumexp_both(
    queries: Tensor, keys: Tensor, ids: Tensor | None = None, key_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`logsumexp_cross`, for the rows ``(M,)`` and the columns ``(N,)`` of one matrix at once."""
    _check_ids("logsumexp_both", ids, key_ids, queries, keys, "key_ids")
    return _logsumexp(queries, keys, _LeftOut(ids, key_ids, None), columns=True)


def _check_ids(
    name: str, ids: Tensor | None, others: Tensor | None, queries: Tensor, keys: Tensor, partner: str
) -> None:
    """Refuse identities without those that they are compared with: nothing would be left out."""
    if ids is None and others is None:
        return
    if ids is None or others is None:
        given, missing = ("ids", partner) if others is None else (partner, "ids")
        raise InvalidValue(f"{name}: got {given} without {missing}; give both or neither.")
    for what, values, rows in (("ids", ids, queries), (partner, others, keys)):
        if not usable(values) or values.is_floating_point() or values.shape != (len(rows),):
            given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise InvalidValue(
                f"{name}: {what} is of {given}; give a tensor of integers, one for each of the {len(rows)} rows."
            )


class _LeftOut(NamedTuple):
    """Pairs that do not enter the sums: those of equal ids, or each row's own column, ``own`` for row 0."""

    ids: Tensor | None
    key_ids: Tensor | None
    own: int | None


def _logsumexp(
    queries: Tensor, keys: Tensor | None, pairs: _LeftOut, *, columns: bool
) -> tuple[Tensor, Tensor]:
    check_pair("logsumexp", queries, queries if keys is None else keys)
    with torch.autocast(queries.device.type, enabled=False):
        queries = at_least_float32(queries)
        keys = None if keys is None else at_least_float32(keys)
        result: tuple[Tensor, Tensor] = _LogSumExp.apply(queries, keys, pairs, columns)
    return result


class _LogSumExp(torch.autograd.Function):
    """Rows' and columns' log-sum-exp of ``a @ b.T``; ``b = None`` means ``a``, whose matrix is symmetric."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor | None, pairs: _LeftOut, columns: bool
    ) -> tuple[Tensor, Tensor]:
        tiles = _Tiles(a, b, pairs, budget=_KEPT_ENTRIES if any(ctx.needs_input_grad) else 0)
        row_lse, column_lse = (_sum_exponentials if tiles.safe else _running_logsumexp)(tiles, columns)
        if not columns:
            ctx.mark_non_differentiable(column_lse)
        ctx.save_for_backward(a, b, row_lse, column_lse)
        ctx.pairs, ctx.columns, ctx.kept = pairs, columns, tiles.kept
        return row_lse, column_lse

    @staticmethod
    def backward(ctx: Any, grad_rows: Tensor, grad_columns: Tensor) -> tuple[Tensor | None, ...]:
        a, b, row_lse, column_lse = ctx.saved_tensors
        needs_a, needs_b = ctx.needs_input_grad[:2]
        twice = torch.is_grad_enabled()  # create_graph=True
        if twice and len(a) * len(a if b is None else b) <= DENSE_ENTRIES:
            lse = _dense(a, a if b is None else b, ctx.pairs)
            inputs = [x for x, needed in ((a, needs_a), (b, needs_b)) if needed]
            outputs, upstream = (lse, (grad_rows, grad_columns)) if ctx.columns else (lse[:1], (grad_rows,))
            grads = iter(torch.autograd.grad(outputs, inputs, upstream, create_graph=True))
            return next(grads) if needs_a else None, next(grads) if needs_b else None, None, None
        with torch.no_grad(), torch.autocast(a.device.type, enabled=False):
            tiles = _Tiles(a, b, ctx.pairs, kept=ctx.kept)
            rows = row_lse.detach(), grad_rows
            columns = (column_lse.detach(), grad_columns) if ctx.columns else None
            grad_a, grad_b = _gradients(tiles, rows, columns, needs_a, needs_b)
        if twice:
            grad_a = None if grad_a is None else differentiable_once("logsumexp", grad_a, a)
            grad_b = None if grad_b is None else differentiable_once("logsumexp", grad_b, b)
        return grad_a, grad_b, None, None


class _Tiles:
    """Square tiles of ``a @ b.T``: exponentials where these are safe, else logits; left-out pairs 0 or ``-inf``."""

    def __init__(
        self,
        a: Tensor,
        b: Tensor | None,
        pairs: _LeftOut,
        budget: int = 0,
        kept: dict[tuple[int, int], Tensor] | None = None,
    ) -> None:
        self.symmetric = b is None
        self.a, self.b = a, a if b is None else b
        # By the Cauchy-Schwarz inequality the longest rows bound every logit.
        self.safe = bool(_largest_norm(self.a) * _largest_norm(self.b) <= _SAFE_LOGIT[a.dtype])
        self.kept = {} if kept is None else kept
        self._budget = budget
        self._pairs = pairs
        self._size = _tile_size(len(self.a), len(self.b), a.device)
        self._id_ranges = [_ranges(ids, self._size) for ids in (pairs.ids, pairs.key_ids)]
        self._memory: list[Tensor | None] = [None, None]

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns, and the tile ``(m, n)`` between them, valid until the next one."""
        for i, rows in enumerate(_slices(len(self.a), self._size)):
            for j, columns in enumerate(_slices(len(self.b), self._size)):
                if self.symmetric and j < i:
                    continue
                tile = self.kept.get((i, j))
                yield rows, columns, self._compute(i, j, rows, columns) if tile is None else tile

    def scratch(self, rows: slice, columns: slice, which: int = 1) -> Tensor:
        """Uninitialised memory of a tile's shape; 0 holds the tile itself, 1 is free to use."""
        m, n = rows.stop - rows.start, columns.stop - columns.start
        memory = self._memory[which]
        if memory is None:
            memory = self.a.new_empty(min(self._size, len(self.a)) * min(self._size, len(self.b)))
            self._memory[which] = memory
        return memory[: m * n].view(m, n)

    def _compute(self, i: int, j: int, rows: slice, columns: slice) -> Tensor:
        entries = (rows.stop - rows.start) * (columns.stop - columns.start)
        if entries <= self._budget:
            self._budget -= entries
            tile = self.kept[i, j] = torch.mm(self.a[rows], self.b[columns].T)
        else:
            tile = torch.mm(self.a[rows], self.b[columns].T, out=self.scratch(rows, columns, 0))
        if self.safe:
            tile.exp_()
        ids, key_ids, own = self._pairs
        left_out = 0.0 if self.safe else -torch.inf
        if own is not None:
            offset = own + rows.start - columns.start
            if -len(tile) < offset < tile.shape[1]:
                tile.diagonal(offset).fill_(left_out)
        elif ids is not None and key_ids is not None:
            (low, high), (key_low, key_high) = self._id_ranges[0][i], self._id_ranges[1][j]
            if low <= key_high and key_low <= high:  # ids in order: only tiles near the diagonal share any
                tile.masked_fill_(ids[rows, None] == key_ids[columns], left_out)
        return tile


def _sum_exponentials(tiles: _Tiles, columns: bool) -> tuple[Tensor, Tensor]:
    """Log-sum-exp without a shift, for logits that cannot overflow."""
    row_sums, column_sums = tiles.a.new_zeros(len(tiles.a)), tiles.a.new_zeros(len(tiles.b))
    for rows, cols, exponentials in tiles:
        row_sums[rows] += exponentials.sum(1)
        if tiles.symmetric and rows != cols:
            row_sums[cols] += exponentials.sum(0)
        elif columns:
            column_sums[cols] += exponentials.sum(0)
    return row_sums.log_(), column_sums.log_()


def _running_logsumexp(tiles: _Tiles, columns: bool) -> tuple[Tensor, Tensor]:
    """Log-sum-exp with a running maximum, for logits of any size."""
    row_lse, column_lse = (x.new_full((len(x),), -torch.inf) for x in (tiles.a, tiles.b))
    for rows, cols, logits in tiles:
        row_lse[rows] = torch.logaddexp(row_lse[rows], torch.logsumexp(logits, 1))
        if tiles.symmetric and rows != cols:
            row_lse[cols] = torch.logaddexp(row_lse[cols], torch.logsumexp(logits, 0))
        elif columns:
            column_lse[cols] = torch.logaddexp(column_lse[cols], torch.logsumexp(logits, 0))
    return row_lse, column_lse


def _gradients(
    tiles: _Tiles,
    of_rows: tuple[Tensor, Tensor],
    of_columns: tuple[Tensor, Tensor] | None,
    needs_a: bool,
    needs_b: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients with respect to ``a`` and ``b``, from (log-sum-exp, upstream gradient) of rows and columns."""
    a, b = tiles.a, tiles.b
    grad_a = torch.zeros_like(a) if needs_a else None
    grad_b = torch.zeros_like(b) if needs_b else None
    if tiles.symmetric:
        grad_b, of_columns = grad_a, of_rows
    if tiles.safe:
        row_weights = _divide_by_exp(*of_rows)
        column_weights = None if of_columns is None else _divide_by_exp(*of_columns)
    for rows, cols, tile in tiles:
        weights = tiles.scratch(rows, cols)
        if not tiles.safe:  # exp(s - log r_i) g_i + exp(s - log r_j) g_j
            lse, upstream = of_rows
            torch.sub(tile, lse[rows, None], out=weights).exp_().mul_(upstream[rows, None])
            if of_columns is not None:
                lse, upstream = of_columns
                weights += (tile - lse[cols]).exp_().mul_(upstream[cols])
            weights.masked_fill_(tile == -torch.inf, 0.0)
        elif column_weights is None:  # exp(s) g_i / r_i
            torch.mul(tile, row_weights[rows, None], out=weights)
        else:  # exp(s) (g_i / r_i + g_j / r_j)
            torch.add(row_weights[rows, None], column_weights[cols], out=weights).mul_(tile)
        if grad_a is not None:
            grad_a[rows].addmm_(weights, b[cols])
        if grad_b is not None and not (tiles.symmetric and rows == cols):
            grad_b[cols].addmm_(weights.T, a[rows])
    return grad_a, None if tiles.symmetric else grad_b


def _divide_by_exp(lse: Tensor, upstream: Tensor) -> Tensor:
    """``upstream / exp(lse)``, and 0 for empty sums."""
    return torch.where(lse > -torch.inf, upstream * (-lse).exp(), torch.zeros_like(upstream))


def _dense(a: Tensor, b: Tensor, pairs: _LeftOut) -> tuple[Tensor, Tensor]:
    """The definition, differentiable any number of times."""
    logits = a @ b.T
    if pairs.own is not None:
        own = torch.ones_like(logits, dtype=torch.bool).triu(pairs.own).tril(pairs.own)
        logits = logits.masked_fill(own, -torch.inf)
    elif pairs.ids is not None and pairs.key_ids is not None:
        logits = logits.masked_fill(pairs.ids[:, None] == pairs.key_ids, -torch.inf)
    return torch.logsumexp(logits, 1), torch.logsumexp(logits, 0)


def _tile_size(num_rows: int, num_columns: int, device: torch.device) -> int:
    """Tiles that stay in a processor's cache, and few of them when the matrix is small."""
    if device.type != "cpu":
        return 8192
    return 1024 if min(num_rows, num_columns) >= 4096 else 512


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _largest_norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1).max() if len(x) else x.new_zeros(())


def _ranges(ids: Tensor | None, size: int) -> list[list[int]]:
    """Smallest and largest id of each slice of ``size`` rows."""
    if ids is None or not len(ids):
        return []
    ranges: list[list[int]] = torch.stack(
        [torch.stack(part.aminmax()) for part in torch.split(ids, size)]
    ).tolist()
    return ranges
