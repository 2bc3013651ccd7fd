"""Random edits of histories, for whole batches at once: crop, mask, reorder, insert and substitute.

A batch is ``items (B, T)`` int64, oldest first, zeros to the right, with ``lengths (B,)``; an edit returns the same.
Each edit has two parts: the draws, and a function without chance that carries them out. Draws come from the generator
that is given, on its device, so that a CPU generator gives the same edits on every device.

Crop, mask and reorder are those of CL4SRec (Xie et al. 2022, arXiv 2010.14395) with the roundings of MCLRec (Qin et al.
2023, arXiv 2304.07763); insert and substitute are those of CoSeRec (Liu et al. 2021, arXiv 2108.06479), and substitute
with semantic neighbours is the edit of SRA-CL (arXiv 2503.04162).
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor

from contrastive.checks import check_flag, check_number, check_whole
from contrastive.errors import InvalidValue

View: TypeAlias = tuple[Tensor, Tensor]  # items and lengths

CROP, MASK, REORDER, COPY = range(4)


@dataclass(frozen=True)
class Edits:
    """Draws for a batch: which edit each history gets, and where.

    Args:
        ops: ``(B,)`` int64, one of ``CROP``, ``MASK``, ``REORDER`` and ``COPY``.
        starts: ``(B,)`` int64, where the window of a crop or reorder begins.
        sizes: ``(B,)`` int64, how many items a crop keeps, a mask hides or a reorder shuffles.
        order: ``(B, T)`` int64, permutations of the positions. A mask hides the first ``size`` of them; a reorder
            puts the item of position ``order[b, t]`` at position t, and outside its window ``order[b, t] = t``.
    """

    ops: Tensor
    starts: Tensor
    sizes: Tensor
    order: Tensor


def crop(items: Tensor, lengths: Tensor, generator: Generator, ratio: float = 0.5) -> View:
    """Keep a window of ``floor(n (1 - ratio))`` consecutive items, at least one, and move it to the left end.

    Args:
        items: ``(B, T)`` int64, right-padded with 0.
        lengths: ``(B,)`` int64, n of each history.
        generator: source of the draws; where the window begins is uniform.
        ratio: share of the items to remove, in [0, 1].

    Returns:
        Items ``(B, T)`` and lengths ``(B,)``.

    Raises:
        ValueError: wrong shapes or types, or a ratio out of range.
    """
    return _same(CROP, items, lengths, generator, crop=ratio)


def mask(items: Tensor, lengths: Tensor, generator: Generator, ratio: float = 0.5) -> View:
    """Set ``floor(n ratio)`` different positions, uniformly chosen, to 0; lengths stay.

    Args:
        items: ``(B, T)`` int64, right-padded with 0.
        lengths: ``(B,)`` int64, n of each history.
        generator: source of the draws.
        ratio: share of the items to hide, in [0, 1].

    Returns:
        Items ``(B, T)`` and lengths ``(B,)``.

    Raises:
        ValueError: wrong shapes or types, or a ratio out of range.
    """
    return _same(MASK, items, lengths, generator, mask=ratio)


def reorder(items: Tensor, lengths: Tensor, generator: Generator, ratio: float = 0.8) -> View:
    """Shuffle a window of ``floor(n ratio)`` consecutive items; lengths stay.

    Args:
        items: ``(B, T)`` int64, right-padded with 0.
        lengths: ``(B,)`` int64, n of each history.
        generator: source of the draws; where the window begins and the permutation are uniform.
        ratio: share of the items to shuffle, in [0, 1].

    Returns:
        Items ``(B, T)`` and lengths ``(B,)``.

    Raises:
        ValueError: wrong shapes or types, or a ratio out of range.
    """
    return _same(REORDER, items, lengths, generator, reorder=ratio)


def random_views(
    items: Tensor,
    lengths: Tensor,
    generator: Generator,
    crop: float = 0.5,
    mask: float = 0.5,
    reorder: float = 0.8,
) -> tuple[View, View]:
    """Two views of each history by two different edits out of crop, mask and reorder; one item or none is copied.

    Args:
        items: ``(B, T)`` int64, right-padded with 0.
        lengths: ``(B,)`` int64.
        generator: source of the draws; all six ordered pairs of edits are equally likely.
        crop: ratio of :func:`crop`.
        mask: ratio of :func:`mask`.
        reorder: ratio of :func:`reorder`.

    Returns:
        Two pairs of items ``(B, T)`` and lengths ``(B,)``.

    Raises:
        ValueError: wrong shapes or types, or a ratio out of range.
    """
    _check(items, lengths)
    pair = (_uniform((len(items),), generator, items) * 6).long()
    first = pair // 2
    second = (first + 1 + pair % 2) % 3
    ops = torch.cat([first, second])
    twice = lengths.repeat(2)
    edits = draw(ops.where(twice > 1, COPY), twice, items.shape[1], generator, crop, mask, reorder)
    edited, kept = apply(items.repeat(2, 1), twice, edits)
    (items1, items2), (lengths1, lengths2) = edited.chunk(2), kept.chunk(2)
    return (items1, lengths1), (items2, lengths2)


def draw(
    ops: Tensor,
    lengths: Tensor,
    width: int,
    generator: Generator,
    crop: float = 0.5,
    mask: float = 0.5,
    reorder: float = 0.8,
) -> Edits:
    """Draw where the given edits take place.

    Args:
        ops: ``(B,)`` int64, ``CROP``, ``MASK``, ``REORDER`` or ``COPY``.
        lengths: ``(B,)`` int64, at most ``width``.
        width: T.
        generator: source of the draws.
        crop: ratio of :func:`crop`.
        mask: ratio of :func:`mask`.
        reorder: ratio of :func:`reorder`.

    Returns:
        The draws, on the device of ``ops``.

    Raises:
        ValueError: a ratio is out of range.
    """
    crop, mask, reorder = (
        check_number("augment", f"the ratio of {name}", ratio, "[0, 1]")
        for name, ratio in (("crop", crop), ("mask", mask), ("reorder", reorder))
    )
    numbers = range(width + 1)
    table = torch.tensor(
        [
            [min(n, max(1, math.floor(n * (1 - crop)))) for n in numbers],
            [math.floor(n * mask) for n in numbers],
            [math.floor(n * reorder) for n in numbers],
            list(numbers),
        ],
        device=ops.device,
    )
    sizes = table[ops, lengths]
    starts = (_uniform((len(ops),), generator, ops) * (lengths - sizes + 1)).long()
    t = torch.arange(width, device=ops.device)
    # Positions of one group are shuffled among themselves. For a mask: real positions, then padding. For a reorder: the
    # window, which takes the rank of its first position; every other position is alone.
    inside = (t >= starts[:, None]) & (t < (starts + sizes)[:, None])
    window = torch.where(inside, starts[:, None], t)
    groups = torch.where((ops == MASK)[:, None], (t >= lengths[:, None]).long(), window)
    return Edits(ops, starts, sizes, _shuffle(groups, generator))


def apply(items: Tensor, lengths: Tensor, edits: Edits) -> View:
    """Carry out edits that were drawn.

    Args:
        items: ``(B, T)`` int64, right-padded with 0.
        lengths: ``(B,)`` int64.
        edits: one for each history.

    Returns:
        Items ``(B, T)`` and lengths ``(B,)``.
    """
    ops, t = edits.ops[:, None], torch.arange(items.shape[1], device=items.device)
    sizes = edits.sizes[:, None]
    moved = torch.where(ops == REORDER, edits.order, t)
    moved = torch.where(ops == CROP, (edits.starts[:, None] + t).clamp(max=items.shape[1] - 1), moved)
    first = (t < sizes) & (ops == MASK)
    hidden = torch.zeros_like(first).scatter_(1, edits.order, first) | ((t >= sizes) & (ops == CROP))
    edited = items.gather(1, moved).masked_fill_(hidden, 0)
    return edited, torch.where(edits.ops == CROP, edits.sizes, lengths)


def insert(
    items: Tensor,
    lengths: Tensor,
    generator: Generator,
    ratio: float,
    *,
    num_items: int | None = None,
    neighbours: Tensor | None = None,
    max_length: int | None = None,
) -> View:
    """Put new items behind ``floor(n ratio)`` different positions, uniformly chosen.

    Args:
        items: ``(B, T)`` int64, right-padded with 0.
        lengths: ``(B,)`` int64, n of each history.
        generator: source of the draws.
        ratio: number of new items over n, in [0, 1].
        num_items: draw new items uniformly from ``1..num_items``.
        neighbours: ``(num_items + 1, k)`` int64; draw each new item from the row of the item before it, uniformly among
            the entries that are not 0. Behind an item without entries nothing is put. Give this or ``num_items``.
        max_length: of histories that grow longer, the last so many items are kept; None keeps all.

    Returns:
        Items ``(B, T')`` with T' = T + floor(T ratio), at most ``max_length``, and lengths ``(B,)``.

    Raises:
        ValueError: wrong shapes or types, a ratio or number out of range, or not one source of items.
    """
    _check(items, lengths)
    if (num_items is None) == (neighbours is None):
        raise InvalidValue(
            f"augment.insert: num_items is {num_items}, neighbours {'given' if neighbours is not None else 'None'}; "
            "give one of the two."
        )
    if num_items is not None:
        num_items = check_whole("augment.insert", "num_items", num_items)
    if max_length is not None:
        max_length = check_whole("augment.insert", "max_length", max_length)
    width = items.shape[1]
    edits = draw(torch.full_like(lengths, MASK), lengths, width, generator, mask=ratio)
    t = torch.arange(width, device=items.device)
    places = torch.zeros_like(items, dtype=torch.bool).scatter_(1, edits.order, t < edits.sizes[:, None])
    if neighbours is None:
        new = (_uniform(items.shape, generator, items).double() * (num_items or 1)).long() + 1
    else:
        slots = draw_slots(items, places, neighbours, generator)
        places &= slots >= 0
        new = neighbours[items, slots.clamp(min=0)]
    return insert_behind(items, lengths, places, new, width + math.floor(width * ratio), max_length)


def insert_behind(
    items: Tensor,
    lengths: Tensor,
    places: Tensor,
    new: Tensor,
    width: int,
    max_length: int | None = None,
) -> View:
    """Put given items behind given positions.

    Args:
        items: ``(B, T)`` int64, right-padded with 0.
        lengths: ``(B,)`` int64.
        places: ``(B, T)`` bool, real positions behind which something is put.
        new: ``(B, T)`` int64, what is put behind each of them.
        width: columns of the result before it is cut, enough for the longest history.
        max_length: keep the last so many items; None keeps all.

    Returns:
        Items ``(B, min(width, max_length))`` and lengths ``(B,)``.
    """
    t = torch.arange(items.shape[1], device=items.device)
    behind = places.long()
    to = t + behind.cumsum(1) - behind  # each position moves on by the number of new items before it
    real = t < lengths[:, None]
    grown = items.new_zeros(len(items), width + 1)  # what is not there goes to the last column
    grown.scatter_(1, to.where(real, width), items)
    grown.scatter_(1, (to + 1).where(places, width), new)
    lengths = lengths + behind.sum(1)
    kept = min(width, max_length or width)
    starts = (lengths - kept).clamp(min=0)
    lengths = lengths - starts
    t = torch.arange(kept, device=items.device)
    return grown.gather(1, starts[:, None] + t).masked_fill_(t >= lengths[:, None], 0), lengths


def substitute(
    items: Tensor,
    lengths: Tensor,
    neighbours: Tensor,
    probability: float,
    generator: Generator,
    *,
    allow_padding: bool = False,
) -> View:
    """Replace each item, with a probability and independently, by one of its neighbours.

    Args:
        items: ``(B, T)`` int64, right-padded with 0.
        lengths: ``(B,)`` int64.
        neighbours: ``(num_items + 1, k)`` int64, items that may stand for each item; 0 is none.
        probability: in [0, 1]. SRA-CL uses 0.2.
        generator: source of the draws; all entries of a row are equally likely.
        allow_padding: draw entries that are 0 as well, which hide the position, as SRA-CL's released code does.
            Otherwise they are passed over, and an item with no other entry stays.

    Returns:
        Items ``(B, T)`` and the same lengths.

    Raises:
        ValueError: wrong shapes or types, or a probability out of range.
    """
    _check(items, lengths)
    probability = check_number("augment.substitute", "probability", probability, "[0, 1]")
    check_flag("augment.substitute", "allow_padding", allow_padding)
    real = torch.arange(items.shape[1], device=items.device) < lengths[:, None]
    places = (_uniform(items.shape, generator, items) < probability) & real & (items > 0)
    slots = draw_slots(items, places, neighbours, generator, allow_padding=allow_padding)
    return substitute_slots(items, neighbours, slots), lengths


def draw_slots(
    items: Tensor,
    places: Tensor,
    neighbours: Tensor,
    generator: Generator,
    *,
    allow_padding: bool = False,
) -> Tensor:
    """Draw a column of the table of neighbours for some positions.

    Args:
        items: ``(B, T)`` int64.
        places: ``(B, T)`` bool, the positions.
        neighbours: ``(num_items + 1, k)`` int64.
        generator: source of the draws; all entries that are not 0 are equally likely.
        allow_padding: draw entries that are 0 as well.

    Returns:
        ``(B, T)`` int64 columns; -1 elsewhere and where there is no entry to draw.

    Raises:
        ValueError: the table is no matrix of integers.
    """
    if neighbours.ndim != 2 or neighbours.dtype != torch.int64:
        raise InvalidValue(
            f"augment: neighbours have the shape {tuple(neighbours.shape)} and type {neighbours.dtype}; give "
            "(num_items + 1, k) int64."
        )
    at = places.nonzero(as_tuple=True)
    found = neighbours[items[at]]
    usable = torch.ones_like(found, dtype=torch.bool) if allow_padding else found != 0
    rank = usable.cumsum(1)
    count = usable.sum(1)
    drawn = (_uniform((len(found),), generator, items) * count).long() + 1
    hit = (usable & (rank == drawn[:, None])).to(torch.uint8)
    slots = torch.full_like(items, -1)
    if neighbours.shape[1]:
        slots[at] = hit.argmax(1).where(count > 0, -1)
    return slots


def substitute_slots(items: Tensor, neighbours: Tensor, slots: Tensor) -> Tensor:
    """Replace items by given neighbours.

    Args:
        items: ``(B, T)`` int64.
        neighbours: ``(num_items + 1, k)`` int64.
        slots: ``(B, T)`` int64, the column to take; -1 keeps the item.

    Returns:
        ``(B, T)`` int64.
    """
    if not neighbours.shape[1]:
        return items
    return torch.where(slots >= 0, neighbours[items, slots.clamp(min=0)], items)


def _same(op: int, items: Tensor, lengths: Tensor, generator: Generator, **ratio: float) -> View:
    _check(items, lengths)
    edits = draw(torch.full_like(lengths, op), lengths, items.shape[1], generator, **ratio)
    return apply(items, lengths, edits)


def _check(items: Tensor, lengths: Tensor) -> None:
    if items.ndim != 2 or lengths.shape != items.shape[:1]:
        raise InvalidValue(
            f"augment: items have the shape {tuple(items.shape)}, lengths {tuple(lengths.shape)}; give (B, T) and (B,)."
        )
    if items.dtype != torch.int64 or lengths.dtype != torch.int64:
        raise InvalidValue(
            f"augment: items have the type {items.dtype}, lengths {lengths.dtype}; give int64 for both."
        )
    if lengths.is_cpu and len(lengths) and not 0 <= lengths.min() <= lengths.max() <= items.shape[1]:
        raise InvalidValue(
            f"augment: lengths run from {lengths.min()} to {lengths.max()}, items have {items.shape[1]} columns; give "
            "0 to that."
        )


def _uniform(shape: tuple[int, ...] | torch.Size, generator: Generator, like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), drawn on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device).to(like.device)


def _shuffle(groups: Tensor, generator: Generator) -> Tensor:
    """Positions of each row by ascending group, in uniform random order within one: ``(B, T)`` int64.

    Group, random number and position are packed into one integer, so that sorting values is enough.
    """
    random = (_uniform(groups.shape, generator, groups) * 2**24).long()
    t = torch.arange(groups.shape[1], device=groups.device)
    keys = (groups << 44) | (random << 20) | t
    if keys.is_cpu:  # NumPy sorts short rows ten times as fast
        return torch.from_numpy(np.sort(keys.numpy(), axis=1)) & 0xFFFFF
    return keys.sort(1).values & 0xFFFFF
