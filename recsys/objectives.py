r"""Losses of next-item prediction, and contrastive terms that are added to them.

A **next-item loss** compares states ``(N, d)`` with their target items: over the whole catalogue
(:class:`FullSoftmax`), over sampled negatives (:class:`SampledSoftmax`), or with one negative a target (:class:`BPR`,
:class:`BCE`). A **head** is a contrastive term on histories: it is called as ``head(encoder, samples)`` with random
training prefixes and knows no loss but its own. Several heads add up; their weights are inside them.

All terms compare raw inner products unless said otherwise. For ``2B`` states in pairs, ``p(i)`` the partner of ``i``,

    pair_contrast = mean_i [ log sum_{j != i} exp(s_ij / t) - s_{i,p(i)} / t ].
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive.checks import check_choice, check_flag, check_number, check_whole
from contrastive.errors import InvalidValue
from contrastive.similarity import Gathered, gather, global_mean, logsumexp_cross, logsumexp_self
from contrastive.similarity.rows import DENSE_ENTRIES
from recsys import augment

if TYPE_CHECKING:
    from recsys.batches import PrefixTable
    from recsys.data import Split
    from recsys.encoders import SequenceEncoder

SIMILARITIES = ("dot", "cos")
_DENSE_LOGITS = 2**23  # up to so many, a matrix of logits is small, and plain cross-entropy the fastest way


class Samples(NamedTuple):
    """Random training prefixes, for heads.

    Attributes:
        items: ``(B, T)`` int64, right-padded with 0.
        lengths: ``(B,)`` int64.
        targets: ``(B,)`` int64, the items that followed.
        rows: ``(B,)`` int64, the positions of the prefixes among all training prefixes.
        generator: of everything that a head draws.
    """

    items: Tensor
    lengths: Tensor
    targets: Tensor
    rows: Tensor
    generator: torch.Generator


# ---------------------------------------------------------------------- next item


def products(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of rows ``a`` ``(..., N, d)`` and ``b`` ``(..., M, d)``: ``(..., N, M)``.

    In at least float32 also under autocast: differences of logits are what a loss or a ranking lives by.
    """
    with torch.autocast(a.device.type, enabled=False):
        wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        out: Tensor = a.to(wide) @ b.to(wide).mT
    return out


class FullSoftmax(nn.Module):
    """Cross-entropy over the whole catalogue, ``mean [ log sum_j exp(h·E_j) - h·E_target ]``.

    Above some eight million logits they are streamed in tiles, so that a catalogue of a million items fits.

    Args:
        padding_class: count the padding row as a class, as the published MCLRec does; it is never a target.
    """

    def __init__(self, padding_class: bool = False) -> None:
        super().__init__()
        self.padding_class = check_flag("FullSoftmax", "padding_class", padding_class)

    def forward(
        self, states: Tensor, targets: Tensor, item_vectors: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the loss of states ``(N, d)`` with targets ``(N,)`` among ``item_vectors`` ``(num_items + 1, d)``."""
        first = 0 if self.padding_class else 1
        classes = item_vectors[first:]
        if len(states) * len(classes) <= _DENSE_LOGITS:
            logits = products(states, classes)
            return global_mean(F.cross_entropy(logits, targets - first, reduction="none"))
        positives = (states * item_vectors[targets]).sum(-1)
        return global_mean(logsumexp_cross(states, classes) - positives)


class SampledSoftmax(nn.Module):
    """Cross-entropy over the target and random items, the same ones for all states of a batch.

    Items are drawn uniformly, without the padding; one that happens to be a state's target is left out of its sum.

    Args:
        num_negatives: items that are drawn for a batch.
    """

    def __init__(self, num_negatives: int = 1000) -> None:
        super().__init__()
        self.num_negatives = check_whole("SampledSoftmax", "num_negatives", num_negatives)

    def forward(
        self, states: Tensor, targets: Tensor, item_vectors: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the loss of states ``(N, d)`` with targets ``(N,)`` among ``item_vectors`` ``(num_items + 1, d)``."""
        drawn = torch.randint(
            1, len(item_vectors), (self.num_negatives,), generator=generator, device=states.device
        )
        positives = (states * item_vectors[targets]).sum(-1)
        negatives = logsumexp_cross(states, item_vectors[drawn], targets, drawn)
        return global_mean(torch.logaddexp(positives, negatives) - positives)


class BPR(nn.Module):
    """Bayesian personalised ranking (Rendle et al. 2009, arXiv 1205.2618): one random negative for each target."""

    def forward(
        self, states: Tensor, targets: Tensor, item_vectors: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return ``mean -log sigmoid(h·E_target - h·E_negative)`` of states ``(N, d)`` with targets ``(N,)``."""
        negatives = other_items(targets, len(item_vectors), generator)
        margins = (states * (item_vectors[targets] - item_vectors[negatives])).sum(-1)
        return global_mean(-F.logsigmoid(margins))


class BCE(nn.Module):
    """Binary cross-entropy with one random negative for each target: the loss of the SASRec paper, eq. 6."""

    def forward(
        self, states: Tensor, targets: Tensor, item_vectors: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return ``mean [-log sigmoid(h·E_target) - log(1 - sigmoid(h·E_negative))]`` of states ``(N, d)``."""
        negatives = other_items(targets, len(item_vectors), generator)
        positive = (states * item_vectors[targets]).sum(-1)
        negative = (states * item_vectors[negatives]).sum(-1)
        return global_mean(-F.logsigmoid(positive) - F.logsigmoid(-negative))


def other_items(targets: Tensor, num_rows: int, generator: torch.Generator) -> Tensor:
    """Draw an item other than the target for each of ``targets`` ``(N,)``, uniformly from 1 to ``num_rows - 1``.

    Raises:
        ValueError: there is no other item.
    """
    if num_rows < 3:
        raise InvalidValue(
            f"a negative is an item other than the target, but the catalogue has {num_rows - 1}; give data of two "
            "items or more, or FullSoftmax, which draws none."
        )
    drawn = torch.randint(1, num_rows - 1, targets.shape, generator=generator, device=targets.device)
    return drawn + (drawn >= targets)


# ---------------------------------------------------------------------- heads


class Head(nn.Module):
    """A contrastive term: ``head(encoder, samples)`` returns its weighted loss.

    One with weights of its own makes them in ``setup``, for training, and in ``restore``, for a checkpoint that is read
    without training.
    """

    def setup(self, encoder: "SequenceEncoder", split: "Split", prefixes: "PrefixTable") -> None:
        """Build what depends on encoder and data, before training."""

    def restore(self, encoder: "SequenceEncoder", weights: Mapping[str, Tensor]) -> None:
        """Make the weights that ``setup`` would make, for those of a checkpoint to be loaded into.

        Args:
            encoder: that the checkpoint is of.
            weights: of this head, by name; their shapes tell what the data would.
        """

    def forward(self, encoder: "SequenceEncoder", samples: Samples) -> Tensor:
        """Return the weighted loss of the samples."""
        raise NotImplementedError


def pair_contrast(
    first: Tensor, second: Tensor, temperature: float = 1.0, similarity: Literal["dot", "cos"] = "dot"
) -> Tensor:
    """InfoNCE over the ``2B`` rows of two views, by inner products (module docstring) or by cosines.

    Args:
        first: ``(B, d)``.
        second: ``(B, d)``, row ``b`` the partner of row ``b`` of ``first``.
        temperature: ``t``.
        similarity: ``"dot"`` or ``"cos"``.

    Returns:
        Scalar loss, this process' share of the mean over all processes' rows. 0 for a single pair.

    Raises:
        ValueError: a temperature that is not above 0, or an unknown similarity.
    """
    check_number("pair_contrast", "temperature", temperature, "(0, inf)")
    check_choice("pair_contrast", "similarity", similarity, SIMILARITIES)
    views = torch.stack((first, second), 1)
    if similarity == "cos":
        views = F.normalize(views, dim=-1)
    rows = gather(views * temperature**-0.5)
    local, everyone = rows.local.flatten(0, 1), rows.all.flatten(0, 1)
    positives = (rows.local[:, 0] * rows.local[:, 1]).sum(-1).repeat_interleave(2)
    if len(local) * len(everyone) <= DENSE_ENTRIES:
        logits = products(local, everyone)
        logits.diagonal(2 * rows.start).fill_(-torch.inf)
        return global_mean(logits.logsumexp(1) - positives)
    own = local if rows.all is rows.local else everyone
    return global_mean(logsumexp_self(Gathered(local, own, 2 * rows.start)) - positives)


class CL4SRec(Head):
    """Two random edits of a history agree (Xie et al. 2022, arXiv 2010.14395): crop, mask or reorder.

    Args:
        weight: of the term.
        crop: share of the items that a crop removes.
        mask: share of the items that are masked.
        reorder: share of the items that are shuffled.
        temperature: ``t``.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        weight: float = 0.1,
        crop: float = 0.4,
        mask: float = 0.3,
        reorder: float = 0.6,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = check_number("CL4SRec", "weight", weight, "[0, inf)")
        self.temperature = check_number("CL4SRec", "temperature", temperature, "(0, inf)")
        self.edits = check_edits("CL4SRec", crop=crop, mask=mask, reorder=reorder)

    def forward(self, encoder: "SequenceEncoder", samples: Samples) -> Tensor:
        """Return the weighted contrast of two edited views."""
        first, second = augment.random_views(samples.items, samples.lengths, samples.generator, **self.edits)
        states, others = encode_all(encoder, first, second)
        return self.weight * pair_contrast(states, others, self.temperature)


class DuoRec(Head):
    """Two passes with other dropout agree, and histories with one target do (Qiu et al. 2022, arXiv 2110.05730).

    The second pair of a prefix is another training prefix that led to the same item, if there is one, else itself.

    Args:
        weight: of the two passes.
        target_weight: of the prefixes with the same target.
        temperature: ``t``.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, weight: float = 0.1, target_weight: float = 0.1, temperature: float = 1.0) -> None:
        super().__init__()
        self.weight = check_number("DuoRec", "weight", weight, "[0, inf)")
        self.target_weight = check_number("DuoRec", "target_weight", target_weight, "[0, inf)")
        self.temperature = check_number("DuoRec", "temperature", temperature, "(0, inf)")

    prefixes: "PrefixTable"
    _order: Tensor
    _place: Tensor
    _counts: Tensor
    _first: Tensor

    def setup(self, encoder: "SequenceEncoder", split: "Split", prefixes: "PrefixTable") -> None:
        """Sort the training prefixes by target."""
        order = torch.argsort(prefixes.targets, stable=True)
        counts = torch.bincount(prefixes.targets, minlength=encoder.num_items + 1)
        first = counts.cumsum(0) - counts
        tables = {
            "_order": order,
            "_place": torch.argsort(order),
            "_counts": counts,
            "_first": first,
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.prefixes = prefixes

    def same_target(self, samples: Samples) -> Tensor:
        """Draw, for each sample, the row of another training prefix with its target; its own if there is none."""
        counts, first = self._counts[samples.targets], self._first[samples.targets]
        shift = torch.rand(counts.shape, generator=samples.generator, device=counts.device)
        steps = 1 + (shift * (counts - 1)).long()  # 1 to counts - 1: never itself
        place = first + (self._place[samples.rows] - first + steps) % counts
        return self._order[torch.where(counts > 1, place, self._place[samples.rows])]

    def forward(self, encoder: "SequenceEncoder", samples: Samples) -> Tensor:
        """Return the weighted sum of both contrasts."""
        anchor = samples.items, samples.lengths
        again, alike = anchor, self.prefixes.gather(self.same_target(samples))
        states, second, third = encode_all(encoder, anchor, again, alike)
        loss = self.weight * pair_contrast(states, second, self.temperature)
        return loss + self.target_weight * pair_contrast(states, third, self.temperature)


def encode_all(encoder: "SequenceEncoder", *views: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Encode several views ``(items (B, T), lengths (B,))`` in one pass; return a ``(B, d)`` for each."""
    width = max(items.shape[1] for items, _ in views)
    items = torch.cat([F.pad(items, (0, width - items.shape[1])) for items, _ in views])
    return encoder.encode_grouped(items, torch.cat([lengths for _, lengths in views])).chunk(len(views))


def check_edits(name: str, **shares: float) -> dict[str, float]:
    """Return the shares of a history that edits change, numbers in [0, 1].

    Raises:
        ValueError: one is out of range.
    """
    return {edit: check_number(name, edit, share, "[0, 1]") for edit, share in shares.items()}
