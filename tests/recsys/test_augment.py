"""Edits against the reference given its draws, against loops, and the distributions of the draws."""

from itertools import pairwise, permutations
from math import floor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import augment
from recsys.augment import COPY, CROP, MASK, REORDER, Edits

REFERENCE = Path(__file__).parents[1] / "reference"
MANY = 24_000  # histories drawn to judge a distribution


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(lengths, width=None, seed=0):
    """Histories of different items each, right-padded."""
    lengths = torch.as_tensor(lengths)
    width = int(lengths.max()) if width is None else width
    items = torch.rand(len(lengths), width, generator=generator(seed)).argsort(1) + 1
    return items * (torch.arange(width) < lengths[:, None]), lengths


def rows(items, lengths):
    return [row[:n].tolist() for row, n in zip(items, lengths.tolist(), strict=True)]


def chi_square(values, size):
    """Statistic of a uniform distribution over ``size`` values, in standard deviations above its mean."""
    counts = np.bincount(np.asarray(values).ravel(), minlength=size)
    expected = counts.sum() / size
    return (((counts - expected) ** 2 / expected).sum() - (size - 1)) / np.sqrt(2 * (size - 1))


# Against the references


@pytest.mark.parametrize("view", [0, 1])
def test_edits_are_those_of_mclrec_given_its_draws(view):
    reference = {
        key: torch.from_numpy(value)
        for key, value in np.load(REFERENCE / "mclrec-dataaug.npz").items()
        if key != "meta"
    }
    items, lengths = reference["item_seq"], reference["item_len"]
    ops, starts, index = (reference[key][:, view] for key in ("op", "start", "idx"))
    assert set(ops.tolist()) == {CROP, MASK, REORDER, COPY}
    sizes = augment.draw(ops, lengths, 10, generator(), crop=0.5, mask=0.5, reorder=0.8).sizes
    order = torch.arange(10).repeat(len(items), 1)
    for b in range(len(items)):  # the reference lists what it drew, ours is a permutation of all positions
        drawn = [i for i in index[b].tolist() if i >= 0]
        assert ops[b] == CROP or ops[b] == COPY or len(drawn) == sizes[b]
        if ops[b] == MASK:
            order[b] = torch.tensor(drawn + [i for i in range(10) if i not in drawn])
        if ops[b] == REORDER:
            order[b, starts[b] : starts[b] + len(drawn)] = starts[b] + torch.tensor(drawn)
    edited, kept = augment.apply(items, lengths, Edits(ops, starts.clamp(min=0), sizes, order))
    assert torch.equal(edited, reference[f"aug{view + 1}"])
    assert torch.equal(kept, reference[f"aug_len{view + 1}"])


def test_substitution_is_that_of_sracl_given_its_draws():
    reference = np.load(REFERENCE / "sracl-windows.npz")
    lengths = torch.from_numpy(reference["train_len"])

    def right_padded(name, padding):  # the reference pads to the left
        matrix = np.full_like(reference[name], padding)
        for b, n in enumerate(lengths.tolist()):
            matrix[b, :n] = reference[name][b, 6 - n :]
        return torch.from_numpy(matrix)

    items, slots = right_padded("train_seq", 0), right_padded("slot", -1)
    assert (slots >= 0).sum() > 10
    edited = augment.substitute_slots(items, torch.from_numpy(reference["neighbour_table"]), slots)
    assert torch.equal(edited, right_padded("substituted", 0))


# Against loops


LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=5)
SHARE = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 1.0])


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(0, 3), SHARE, st.integers(0, 100))
def test_edits_keep_what_they_promise(lengths, extra, ratio, seed):
    items, n = batch(lengths, max(lengths) + extra + 1, seed)
    before = rows(items, n)
    cropped, left = augment.crop(items, n, generator(seed), ratio)
    for old, new in zip(before, rows(cropped, left), strict=True):
        assert len(new) == min(len(old), max(1, floor(len(old) * (1 - ratio))))
        assert any(old[start : start + len(new)] == new for start in range(len(old) + 1))
    masked, same = augment.mask(items, n, generator(seed), ratio)
    assert torch.equal(same, n)
    for old, new in zip(before, rows(masked, n), strict=True):
        assert new.count(0) == floor(len(old) * ratio)
        assert all(a in (0, b) for a, b in zip(new, old, strict=True))
    shuffled, same = augment.reorder(items, n, generator(seed), ratio)
    assert torch.equal(same, n)
    for old, new in zip(before, rows(shuffled, n), strict=True):
        assert sorted(new) == sorted(old)
        moved = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
        assert not moved or max(moved) - min(moved) < floor(len(old) * ratio)
    for edited, kept in ((cropped, left), (masked, n), (shuffled, n)):
        assert edited.shape == items.shape
        assert edited.dtype == kept.dtype == torch.int64
        assert not edited[torch.arange(items.shape[1]) >= kept[:, None]].any()


@settings(max_examples=60, deadline=None)
@given(LENGTHS, SHARE, st.sampled_from([None, 1, 4, 9, 30]), st.booleans(), st.integers(0, 100))
def test_insertions_keep_the_order_of_the_rest(lengths, ratio, max_length, similar, seed):
    items, n = batch(lengths, max(lengths) + 1, seed)
    neighbours = torch.zeros(items.max() + 1, 3, dtype=torch.int64)
    neighbours[1::2, 1] = torch.arange(1, len(neighbours), 2) + 100  # even items have none
    source = {"neighbours": neighbours} if similar else {"num_items": 7}
    every, grown = augment.insert(
        items + 1000 * (items > 0) * (not similar), n, generator(seed), ratio, **source
    )
    cut, kept = augment.insert(
        items + 1000 * (items > 0) * (not similar), n, generator(seed), ratio, max_length=max_length, **source
    )
    width = items.shape[1] + floor(items.shape[1] * ratio)
    assert every.shape[1] == width
    assert cut.shape[1] == min(width, max_length or width)
    for old, new, short in zip(rows(items, n), rows(every, grown), rows(cut, kept), strict=True):
        if similar:
            assert [i for i in new if i < 100] == old
            assert all(b == a + 100 and a % 2 for a, b in pairwise(new) if b > 100)
            assert len(new) - len(old) <= floor(len(old) * ratio)
        else:
            assert [i - 1000 for i in new if i > 1000] == old
            assert all(1 <= i <= 7 for i in new if i < 1000)
            assert len(new) == len(old) + floor(len(old) * ratio)
            assert not any(a < 1000 and b < 1000 for a, b in pairwise([0, *new]))
        assert short == new[-max_length:] if max_length else short == new
    assert not cut[torch.arange(cut.shape[1]) >= kept[:, None]].any()


def test_insertion_puts_given_items_behind_given_positions():
    items, lengths = torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1])
    places = torch.tensor([[True, False, True], [False, False, False]])
    new = torch.tensor([[8, 0, 9], [0, 0, 0]])
    grown, kept = augment.insert_behind(items, lengths, places, new, 5)
    assert grown.tolist() == [[1, 8, 2, 3, 9], [4, 0, 0, 0, 0]]
    assert kept.tolist() == [5, 1]
    grown, kept = augment.insert_behind(items, lengths, places, new, 5, max_length=2)
    assert grown.tolist() == [[3, 9], [4, 0]]
    assert kept.tolist() == [2, 1]


def test_views_are_two_different_edits():
    items, lengths = batch([8] * 400 + [1] * 20 + [0] * 5, 10)
    (first, n1), (second, n2) = augment.random_views(
        items, lengths, generator(), crop=0.5, mask=0.5, reorder=0.8
    )

    def kind(edited, n, b):
        if n[b] == 4:
            return CROP
        return MASK if (edited[b, :8] == 0).any() else REORDER

    kinds = [(kind(first, n1, b), kind(second, n2, b)) for b in range(400)]
    assert set(kinds) == set(permutations([CROP, MASK, REORDER], 2))
    whole = augment.random_views(items, lengths, generator(), crop=1.0, mask=1.0)
    for edited, n in ((first, n1), (second, n2), *whole):  # one item or none is copied
        assert torch.equal(edited[400:], items[400:])
        assert torch.equal(n[400:], lengths[400:])


def test_substitutes_come_from_the_table():
    items, lengths = batch([30] * 200)
    neighbours = torch.zeros(31, 4, dtype=torch.int64)
    for item in range(1, 31):  # 1 to 3 neighbours at odd columns and the last, some items none
        for column in range(item % 4):
            neighbours[item, 3 - column] = 100 * (column + 1) + item
    edited, same = augment.substitute(items, lengths, neighbours, 0.5, generator())
    assert torch.equal(same, lengths)
    changed = edited != items
    assert (edited > 0).all()
    assert not changed[items % 4 == 0].any()
    assert (edited[changed] % 100 == items[changed]).all()
    assert abs(changed[items % 4 > 0].float().mean() - 0.5) < 0.03
    for count in (1, 2, 3):
        drawn = edited[changed & (items % 4 == count)] // 100 - 1
        assert chi_square(drawn, count) < 4 if count > 1 else (drawn == 0).all()
    loose, _ = augment.substitute(items, lengths, neighbours, 0.5, generator(), allow_padding=True)
    assert abs((loose[items % 4 == 1] == 0).float().mean() - 0.5 * 3 / 4) < 0.05


def test_no_substitution_of_padding_or_hidden_positions():
    items, lengths = torch.tensor([[0, 3, 0, 2, 2]]), torch.tensor([3])
    neighbours = torch.full((4, 2), 9)
    edited, _ = augment.substitute(items, lengths, neighbours, 1.0, generator())
    assert edited.tolist() == [[0, 9, 0, 2, 2]]
    nothing = torch.zeros(4, 0, dtype=torch.int64)
    assert torch.equal(augment.substitute(items, lengths, nothing, 1.0, generator())[0], items)
    assert torch.equal(
        augment.substitute(items, lengths, torch.zeros_like(neighbours), 1.0, generator())[0], items
    )


# Distributions; 4 standard deviations


def draws(op, n, width=None, seed=0, **ratio):
    lengths = torch.full((MANY,), n)
    return augment.draw(torch.full((MANY,), op), lengths, width or n, generator(seed), **ratio)


@pytest.mark.parametrize(("op", "ratio", "size"), [(CROP, {"crop": 0.5}, 5), (REORDER, {"reorder": 0.8}, 8)])
def test_windows_begin_anywhere(op, ratio, size):
    edits = draws(op, 10, 13, **ratio)
    assert (edits.sizes == size).all()
    assert edits.starts.min() == 0
    assert edits.starts.max() == 10 - size
    assert chi_square(edits.starts, 10 - size + 1) < 4


def test_masks_hide_every_set_of_positions_alike():
    edits = draws(MASK, 5, 8, mask=0.5)
    hidden = edits.order[:, :2].sort(1).values
    assert (edits.sizes == 2).all()
    assert (hidden[:, 0] < hidden[:, 1]).all()
    assert hidden.max() == 4
    sets = {pair: i for i, pair in enumerate((a, b) for b in range(5) for a in range(b))}
    assert chi_square([sets[tuple(pair)] for pair in hidden.tolist()], 10) < 4


def test_permutations_of_a_window_are_uniform():
    edits = draws(REORDER, 5, 7, reorder=0.8)
    outside = torch.arange(7)
    inside = (outside >= edits.starts[:, None]) & (outside < edits.starts[:, None] + 4)
    assert (edits.order == outside)[~inside].all()
    window = edits.order[inside].view(MANY, 4) - edits.starts[:, None]
    numbers = {p: i for i, p in enumerate(permutations(range(4)))}
    assert chi_square([numbers[tuple(p)] for p in window.tolist()], 24) < 4


def test_pairs_of_edits_are_uniform():
    items, lengths = batch([6] * MANY)
    (first, n1), (second, n2) = augment.random_views(items, lengths, generator(), mask=0.5, reorder=0.0)

    def kind(edited, n):
        return torch.where(n < 6, CROP, torch.where((edited == 0).any(1), MASK, REORDER))

    one, two = kind(first, n1), kind(second, n2)
    assert (one != two).all()
    assert chi_square(2 * one + (two - one - 1) % 3, 6) < 4


def test_inserted_items_and_their_places_are_uniform():
    items, lengths = batch([8] * MANY)
    grown, n = augment.insert(items + 100, lengths, generator(), 0.2, num_items=11)
    assert (n == 9).all()
    new = grown < 100
    assert chi_square(grown[new] - 1, 11) < 4
    assert chi_square(new.nonzero()[:, 1] - 1, 8) < 4


# Draws and input


def test_the_same_generator_gives_the_same_views():
    items, lengths = batch([9, 3, 7, 1])
    first, again, other = (augment.random_views(items, lengths, generator(seed)) for seed in (1, 1, 2))
    assert all(
        torch.equal(a, b)
        for one, two in zip(first, again, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    assert not all(torch.equal(one[0], two[0]) for one, two in zip(first, other, strict=True))
    assert torch.equal(items, batch([9, 3, 7, 1])[0])  # not changed in place


def test_empty_batches():
    items, lengths = torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    table = torch.ones(3, 2, dtype=torch.int64)
    for edited, kept in (
        *augment.random_views(items, lengths, generator()),
        augment.substitute(items, lengths, table, 0.5, generator()),
        augment.insert(items, lengths, generator(), 0.5, neighbours=table),
    ):
        assert len(edited) == len(kept) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i, n, g: augment.crop(i[0], n, g), r"items have the shape \(3,\), lengths \(2,\)"),
        (lambda i, n, g: augment.mask(i, n[:1], g), r"items have the shape \(2, 3\), lengths \(1,\)"),
        (
            lambda i, n, g: augment.reorder(i.float(), n, g),
            r"type torch.float32, lengths torch.int64; give int64",
        ),
        (lambda i, n, g: augment.random_views(i, n + 1, g), r"lengths run from 2 to 4, items have 3 columns"),
        (lambda i, n, g: augment.random_views(i, n, g, crop=1.5), r"the ratio of crop is 1.5; give a number"),
        (lambda i, n, g: augment.mask(i, n, g, -0.1), r"the ratio of mask is -0.1"),
        (lambda i, n, g: augment.reorder(i, n, g, float("nan")), r"the ratio of reorder is nan"),
        (lambda i, n, g: augment.insert(i, n, g, 0.5), "give one of the two"),
        (lambda i, n, g: augment.insert(i, n, g, 0.5, num_items=0), "num_items is 0; give"),
        (lambda i, n, g: augment.insert(i, n, g, 0.5, num_items=3, max_length=0), "max_length is 0"),
        (lambda i, n, g: augment.substitute(i, n, i, 1.2, g), "probability is 1.2"),
        (lambda i, n, g: augment.substitute(i, n, n, 0.5, g), r"neighbours have the shape \(2,\)"),
        (lambda i, n, g: augment.substitute(i, n, i.float(), 0.5, g), "type torch.float32; give"),
    ],
)
def test_refuses(call, message):
    items, lengths = batch([3, 1])
    with pytest.raises(ValueError, match=message):
        call(items, lengths, generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cpu_generator_gives_the_same_edits_on_a_gpu():
    items, lengths = batch([9, 3, 7, 1, 0])
    table = torch.arange(30).view(10, 3)
    for edit in (
        lambda i, n, t: augment.random_views(i, n, generator()),
        lambda i, n, t: [augment.substitute(i, n, t, 0.5, generator())],
        lambda i, n, t: [augment.insert(i, n, generator(), 0.5, num_items=9)],
    ):
        here = edit(items, lengths, table)
        there = edit(items.cuda(), lengths.cuda(), table.cuda())
        for one, two in zip(here, there, strict=True):
            assert all(torch.equal(a, b.cpu()) for a, b in zip(one, two, strict=True))
