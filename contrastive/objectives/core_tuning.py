r"""Core-tuning: Zhang, Hooi, Hu, Liang, Feng, "Unleashing the Power of Contrastive Self-Supervised Visual Models via
Contrast-Regularized Fine-Tuning", NeurIPS 2021, arXiv 2102.06605.

Cross entropy alone leaves the features of one class scattered. Core-tuning trains the classifier on three rows for
each sample, whose labels are mixed as the features are:

======================  ===========================================  ========================================
row                     features                                     from
======================  ===========================================  ========================================
original                ``f_i``
semi-hard negative      ``(1 - a_i) f_i + a_i f_n(i)``                a sample ``n(i)`` of another class, at random
hard positive           ``b_i f_hp(i) + (1 - b_i) f_hn(i)``           the least similar of the class, the most similar
                                                                     of the others
======================  ===========================================  ========================================

and pulls rows of one class together by a supervised contrast of their projections ``z``, in which the pairs that are
far apart weigh most. With ``p_rs`` the softmax of ``z_r·z_s / t`` over all rows but ``r`` itself:

    L = mean_r CE(r)  +  contrast_weight · mean_r [ - mean over positives s of (1 - p_rs) log p_rs ]

The paper's symbols: eta is ``contrast_weight``, tau (here t) ``temperature``, alpha ``mixing_alpha``, the draws
lambda of the two mixtures ``Draws.negative`` (a, at least ``semi_hard``) and ``Draws.positive`` (b).

Two facts make it cheap. A linear layer commutes with mixing, so classifier and first layer of the head see each sample
once and not three times. And the contrast needs whole rows of the similarity matrix only for their log-sum-exp, which
the engine streams; the focal weights concern pairs of one class alone.
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive.objectives.base import Objective
from contrastive.objectives.focal import focal_contrast
from contrastive.objectives.inputs import (
    check_choice,
    check_temperature,
    check_views,
    sample_ids,
    scaled_rows,
    zero_loss,
)
from contrastive.similarity import Gathered, gather, global_mean, rows

Variant: TypeAlias = Literal["corrected", "released"]
Classifier: TypeAlias = Callable[[Tensor], Tensor]


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
        others = same.scatter(1, own[block, None], False)
        if variant == "released":
            negatives[block] = similarity.masked_fill(same, 0.0).argmax(1)
            found = similarity.masked_fill(~others, 0.0).argmin(1)
            positives[block] = torch.where(found == 0, own[block], found)
        else:
            negatives[block] = similarity.masked_fill(same, -torch.inf).argmax(1)
            found = similarity.masked_fill(~others, torch.inf).argmin(1)
            positives[block] = torch.where(others.any(1), found, own[block])
    return positives, negatives


def mix(x: Tensor, mixing: Mixing | None, originals: Tensor | None = None) -> Tensor:
    """Originals, semi-hard negatives and hard positives of ``x`` ``(B, ...)``, one below the other: ``(3B, ...)``.

    Args:
        x: own samples; gathered here.
        mixing: what to mix; None returns the originals alone.
        originals: takes the place of ``x`` as the originals.
    """
    originals = x if originals is None else originals
    if mixing is None:
        return originals
    (partners, negative, positive), hard_positives, hard_negatives = mixing
    everyone = gather(x).all
    partner, close, far = (everyone.index_select(0, i) for i in (partners, hard_negatives, hard_positives))
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


def soft_cross_entropy(logits: Tensor, labels: SoftLabels) -> Tensor:
    """Cross entropy ``(R,)`` of ``logits`` ``(R, C)`` with soft labels."""
    log_probabilities = logits.log_softmax(1)
    first = log_probabilities.gather(1, labels.first[:, None])[:, 0]
    second = log_probabilities.gather(1, labels.second[:, None])[:, 0]
    return -torch.lerp(second, first, labels.share.to(logits.dtype))


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
        ids = torch.unique(every_key.all, dim=0, return_inverse=True)[1]
        return ids[every_key.start : every_key.start + len(first)], torch.ones_like(share)
    place = torch.arange(len(first), device=first.device)
    own = -1 - (place + len(first) // max(len(classes.local), 1) * classes.start)
    hard = place >= 2 * len(classes.local)
    ids = torch.where(pure, only, torch.where(hard, first, own))
    return ids, torch.where(hard & ~pure, share, torch.ones_like(share))


class CoreTuning(Objective):
    """Core-tuning: cross entropy on originals and hard mixtures of them, and a focal contrast of their projections.

    Called with the features of the network to be fine-tuned, ``(features, labels, classifier)``, by
    :class:`~contrastive.training.FineTune`; the result is the whole loss, not an addition to cross entropy. Called as
    other objectives are, ``(*views, labels=labels)``, the views' rows are one batch, and the classifier is the
    objective's own. The projection head is always its own: linear, ReLU, linear, as wide as the features inside.

    Where the released code departs from the paper or fails, ``variant="corrected"`` (the default) does this:

    - hard pairs are looked for among the samples of the class and of other classes; released: see
      :func:`hardest_pairs`;
    - the partner of a semi-hard negative has another class; released: any sample, itself included;
    - a hard positive is a positive of its anchor's class, with the share of that class as its weight; released: an
      additional negative;
    - the sum over positives is divided by their number; released: by that of all rows, so that the contrast all but
      vanishes with many classes (``average`` overrides either);
    - originals train the encoder; released: they train classifier and head only.

    A batch with one class has no hard negatives: then only its originals are used, with a warning (as released, the
    class is mixed with itself). Processes mine and mix in the global batch; each draws for its own samples.

    Args:
        contrast_weight: weight of the contrast. The paper chooses from 0.1, 1 and 10 (for ``"rows"``).
        temperature: of the contrast.
        mixing_alpha: shares are drawn from Beta(alpha, alpha).
        semi_hard: smallest share of the partner in a semi-hard negative.
        contrast_dim: width of the projections.
        focal: weight positive pairs by ``1 - p``.
        average: ``"positives"`` or ``"rows"``: see :func:`focal_contrast`. By default as the variant has it.
        variant: ``"corrected"`` or ``"released"``.
        dim: width of the features; by default :meth:`setup` is told.

    Raises:
        ValueError: for an option out of its range.
    """

    requires = ("labels",)

    def __init__(
        self,
        contrast_weight: float = 1.0,
        temperature: float = 0.07,
        mixing_alpha: float = 1.0,
        semi_hard: float = 0.8,
        contrast_dim: int = 256,
        focal: bool = True,
        average: Literal["positives", "rows"] | None = None,
        variant: Variant = "corrected",
        dim: int | None = None,
    ) -> None:
        super().__init__()
        check_temperature("CoreTuning", temperature)
        check_choice("CoreTuning", "average", average, (None, "positives", "rows"))
        check_choice("CoreTuning", "variant", variant, ("corrected", "released"))
        ranges = {
            "contrast_weight": (contrast_weight, contrast_weight >= 0, "0 or more"),
            "mixing_alpha": (mixing_alpha, mixing_alpha > 0, "a number above 0, usually 1"),
            "semi_hard": (semi_hard, 0 <= semi_hard <= 1, "a share in [0, 1], usually 0.8"),
            "contrast_dim": (contrast_dim, contrast_dim >= 1, "1 or more"),
        }
        for name, (value, valid, accepted) in ranges.items():
            if not valid:
                raise ValueError(f"CoreTuning: {name} is {value}; give {accepted}.")
        self.contrast_weight = contrast_weight
        self.temperature = temperature
        self.mixing_alpha = mixing_alpha
        self.semi_hard = semi_hard
        self.contrast_dim = contrast_dim
        self.focal = focal
        self.average: Literal["positives", "rows"] = average or (
            "rows" if variant == "released" else "positives"
        )
        self.variant: Variant = variant
        self.head = nn.Sequential()
        self.classifier: nn.Linear | None = None
        if dim is not None:
            self.setup(0, dim=dim)

    def setup(self, num_samples: int, *, num_classes: int = 0, dim: int | None = None) -> None:
        """Build the projection head for features of width ``dim``, and a classifier if ``num_classes`` is given."""
        if dim is None:
            return
        if not len(self.head):
            self.head.extend([nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, self.contrast_dim)])
        if num_classes and self.classifier is None:
            self.classifier = nn.Linear(dim, num_classes, bias=False)

    def negatives_per_anchor(self, batch_size: int, num_views: int) -> int:
        """All other rows, three for each sample; those of its class among them are positives."""
        return 3 * num_views * batch_size - 1

    def __call__(
        self, *inputs: Any, labels: Tensor | None = None, classifier: Classifier | None = None, **others: Any
    ) -> Tensor:
        """Compute the loss of ``(features, labels, classifier)`` or of ``(*views, labels=labels)``."""
        if len(inputs) > 1 and not (isinstance(inputs[1], Tensor) and inputs[1].is_floating_point()):
            inputs, labels, classifier = inputs[:1], inputs[1], inputs[2] if len(inputs) > 2 else classifier
        return super().__call__(*inputs, labels=labels, classifier=classifier, **others)

    def forward(
        self,
        *views: Tensor,
        index: Tensor | None = None,
        labels: Tensor | None = None,
        classifier: Classifier | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Return the loss.

        Args:
            *views: features, ``(B, D)`` each, not normalised; usually one.
            index: not used.
            labels: ``(B,)`` classes from 0 up.
            classifier: maps features ``(R, D)`` to logits ``(R, C)``; by default the objective's own. An ``nn.Linear``
                is applied to each sample once, anything else to every mixture.
            draws: random choices for the rows of all views in order; drawn from the global generator by default.

        Raises:
            ValueError: for bad shapes or labels, without a classifier, or for features of a width not told before.
        """
        check_views("CoreTuning", views, minimum=1)
        classifier = self.classifier if classifier is None else classifier
        if labels is None or classifier is None:
            raise ValueError(
                f"CoreTuning: no {'labels are' if labels is None else 'classifier is'} given; call it with (features, "
                "labels, classifier), or give setup the number of classes and the width of the features."
            )
        width = self.head[0].in_features if len(self.head) else None
        if views[0].shape[1] != width:
            raise ValueError(
                f"CoreTuning: features have width {views[0].shape[1]}, but the projection head was built for {width}; "
                "give the width to the constructor (dim=...) or to setup."
            )
        with torch.autocast(views[0].device.type, enabled=False):
            features = rows.at_least_float32(torch.cat(views))
            return self._loss(features, labels.repeat(len(views)), classifier, draws)

    def _loss(self, features: Tensor, labels: Tensor, classifier: Classifier, draws: Draws | None) -> Tensor:
        values = gather(features.detach())
        classes = sample_ids("CoreTuning", labels, values)
        if not len(classes.all):
            return zero_loss("CoreTuning", "the batch is empty", (features,))
        mixing = self._mixing(values, classes, draws)
        soft_labels = mix_labels(classes, mixing)
        # As released, the originals train what stands on the features, but not the features.
        originals = features.detach() if self.variant == "released" else features

        def mixed(layer: Classifier) -> Tensor:
            if isinstance(layer, nn.Linear):  # commutes with mixing
                mapped = _linear(layer, features)
                return mix(mapped, mixing, mapped if originals is features else _linear(layer, originals))
            return layer(mix(features, mixing, originals))

        logits = mixed(classifier)
        if bool((labels < 0).any() or (labels >= logits.shape[1]).any()):
            raise ValueError(
                f"CoreTuning: labels range from {int(labels.min())} to {int(labels.max())}, but the classifier tells "
                f"{logits.shape[1]} classes; give labels from 0 to {logits.shape[1] - 1}."
            )
        cross_entropy = global_mean(soft_cross_entropy(logits, soft_labels))
        first, _, last = self.head
        projections = _linear(last, torch.relu(mixed(first)))
        ids, weights = row_ids(soft_labels, classes, self.variant)
        contrast = focal_contrast(
            projections,
            ids,
            weights=weights,
            temperature=self.temperature,
            focal=self.focal,
            average=self.average,
        )
        self.log(cross_entropy=cross_entropy, contrast=contrast)
        return cross_entropy + self.contrast_weight * contrast

    def _mixing(self, values: Gathered, classes: Gathered, draws: Draws | None) -> Mixing | None:
        if self.variant == "corrected" and bool((classes.all == classes.all[0]).all()):
            warnings.warn("CoreTuning: the batch has one class, so nothing is mixed.", stacklevel=2)
            return None
        if draws is None:
            draws = draw(classes, self.mixing_alpha, self.semi_hard, self.variant)
        return Mixing(draws, *hardest_pairs(values, classes, self.variant))


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer in the precision of ``x``."""
    assert isinstance(layer, nn.Linear)
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.linear(x, layer.weight.to(x.dtype), bias)
