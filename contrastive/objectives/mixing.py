"""Hard mixtures of Core-tuning: which samples are mixed, how, and which of the rows belong together.

Zhang et al., NeurIPS 2021, arXiv 2102.06605, section 4; see :mod:`contrastive.objectives.core_tuning` for the whole.
"""

from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive.objectives.inputs import scaled_rows
from contrastive.similarity import Gathered, gather, rows

Variant: TypeAlias = Literal["corrected", "released"]


class Draws(NamedTuple):
    """The random choices of one step, ``(B,)`` each.

    ``partners`` are rows of the global batch: n(i). ``negative`` is the share of the partner in the semi-hard
    negative, ``positive`` that of the hardest positive in the hard positive, both in [0, 1].
    """

    partners: Tensor
    negative: Tensor
    positive: Tensor


class SoftLabels(NamedTuple):
    """Labels of mixed rows: class ``first`` with probability ``share``, otherwise ``second``; ``(R,)`` each."""

    first: Tensor
    second: Tensor
    share: Tensor


class Mixing(NamedTuple):
    """What is mixed with what: the draws, and the hardest positive and negative ``(B,)`` in the global batch."""

    draws: Draws
    hard_positives: Tensor
    hard_negatives: Tensor


def draw(labels: Gathered, mixing_alpha: float, semi_hard: float, variant: Variant) -> Draws:
    """Draw partners and shares from the global generator of the labels' device.

    The partner is any sample of another class; as released, that of a random permutation of the own samples. Needs two
    classes unless ``released``.
    """
    device, count = labels.local.device, len(labels.local)
    if variant == "released":
        partners = torch.randperm(count, device=device) + labels.start
    else:  # in the order of the classes, the samples of another class are all but one segment
        order = labels.all.argsort(stable=True)
        sorted_labels = labels.all[order]
        begin = torch.searchsorted(sorted_labels, labels.local)
        size = torch.searchsorted(sorted_labels, labels.local, right=True) - begin
        others = len(order) - size
        place = (torch.rand(count, device=device, dtype=torch.float64) * others).long().clamp(max=others - 1)
        partners = order[place + torch.where(place < begin, torch.zeros_like(size), size)]
    alpha = torch.tensor(float(mixing_alpha), device=device)
    negative, positive = torch.distributions.Beta(alpha, alpha).sample((2, count))
    return Draws(partners, negative.clamp(min=semi_hard), positive)


@torch.no_grad()
def hardest_pairs(
    features: Gathered, labels: Gathered, variant: Variant = "corrected"
) -> tuple[Tensor, Tensor]:
    """The least similar sample of each own sample's class and the most similar of the others, by cosine.

    A sample alone in its class is its own hardest positive. As released, entries outside the class are zeros in the
    search, and position 0 means that nothing was found: for features that are never negative, that hardly ever finds
    the hardest positive.

    Args:
        features: ``(B, D)`` and those of all processes ``(N, D)``.
        labels: ``(B,)`` and ``(N,)`` integers.
        variant: as described.

    Returns:
        Positions in the global batch, ``(B,)`` each: hardest positive, hardest negative.
    """
    queries, keys = scaled_rows(features.local, 1.0), scaled_rows(features.all, 1.0)
    own = torch.arange(len(queries), device=queries.device) + features.start
    positives, negatives = own.clone(), own.clone()
    block_size = rows.choose_block_size(len(keys), queries.device)
    for start in range(0, len(queries), block_size):
        block = slice(start, min(start + block_size, len(queries)))
        similarity = torch.mm(queries[block], keys.T)
        same = labels.local[block, None] == labels.all
        nothing = 0.0 if variant == "released" else torch.inf
        negatives[block] = similarity.masked_fill(same, -nothing).argmax(1)
        similarity.masked_fill_(~same, nothing).scatter_(1, own[block, None], nothing)
        found = similarity.argmin(1)
        none = found == 0 if variant == "released" else similarity.gather(1, found[:, None])[:, 0] == nothing
        positives[block] = torch.where(none, own[block], found)
    return positives, negatives


def mix(x: Tensor, originals: Tensor | None, mixing: Mixing | None) -> Tensor:
    """Originals, semi-hard negatives and hard positives of ``x`` ``(B, ...)``, one below the other: ``(3B, ...)``.

    Args:
        x: own samples; gathered here.
        originals: the originals, if they are not ``x`` itself.
        mixing: what to mix; None returns the originals alone.
    """
    originals = x if originals is None else originals
    if mixing is None:
        return originals
    (partners, negative, positive), hard_positives, hard_negatives = mixing
    everyone = gather(x).all
    # An embedding is an index_select whose backward is three times as fast.
    partner, close, far = (F.embedding(i, everyone) for i in (partners, hard_negatives, hard_positives))
    negative, positive = (share.to(x.dtype)[:, None] for share in (negative, positive))
    return torch.cat([originals, torch.lerp(x, partner, negative), torch.lerp(close, far, positive)])


def mix_labels(labels: Gathered, mixing: Mixing | None) -> SoftLabels:
    """The labels of the rows that :func:`mix` returns."""
    own, everyone = labels.local, labels.all
    if mixing is None:
        return SoftLabels(own, own, torch.ones(len(own), device=own.device))
    (partners, negative, positive), hard_positives, hard_negatives = mixing
    return SoftLabels(
        torch.cat([own, everyone[partners], everyone[hard_positives]]),
        torch.cat([own, own, everyone[hard_negatives]]),
        torch.cat([torch.ones_like(negative), negative, positive]),
    )


def row_ids(labels: SoftLabels, classes: Gathered, variant: Variant = "corrected") -> tuple[Tensor, Tensor]:
    """Which of the rows of :func:`mix` are positives of each other: those of equal ids, by exact comparison.

    Pure rows have the id of their class. A hard positive stands for the class of its anchor, weighted by the share of
    that class; a semi-hard negative for itself alone. As released, rows of equal soft labels are positives, no others.

    Args:
        labels: of the rows, ``(R,)``.
        classes: labels ``(B,)`` and ``(N,)`` of the samples.
        variant: as described.

    Returns:
        Ids ``(R,)``, unique across processes, and weights ``(R,)`` in (0, 1].
    """
    first, second, share = labels
    only = torch.where(share == 0, second, first)
    pure = (first == second) | (share == 0) | (share == 1)
    if variant == "released":
        low, high = torch.minimum(only, second), torch.maximum(only, second)
        share_of_low = torch.where(first <= second, share, 1 - share)
        key = torch.stack([low, high, share_of_low, 1 - share_of_low], 1)
        key = torch.where(pure[:, None], torch.stack([only, only, pure, ~pure], 1), key)
        every_key = gather(key.double())
        ids = torch.zeros(len(every_key.all), dtype=torch.int64, device=first.device)
        for column in every_key.all.T:  # many times as fast as torch.unique of rows
            place = torch.unique(column, return_inverse=True)[1]
            ids = torch.unique(ids * len(ids) + place, return_inverse=True)[1]
        return ids[every_key.start : every_key.start + len(first)], torch.ones_like(share)
    place = torch.arange(len(first), device=first.device)
    own = -1 - (place + len(first) // max(len(classes.local), 1) * classes.start)
    hard = place >= 2 * len(classes.local)
    ids = torch.where(pure, only, torch.where(hard, first, own))
    return ids, torch.where(hard & ~pure, share, torch.ones_like(share))
