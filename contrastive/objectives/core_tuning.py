r"""Core-tuning: Zhang, Hooi, Hu, Liang, Feng, "Unleashing the Power of Contrastive Self-Supervised Visual Models via
Contrast-Regularized Fine-Tuning", NeurIPS 2021, arXiv 2102.06605.

Cross entropy alone leaves the features of one class scattered. Core-tuning trains the classifier on three rows for
each sample, whose labels are mixed as the features are:

==================  ======================================  ==========================================================
row                 features                                mixed with
==================  ======================================  ==========================================================
original            ``f_i``                                 nothing
semi-hard negative  ``(1 - a_i) f_i + a_i f_n(i)``          ``n(i)``: a random sample of another class
hard positive       ``b_i f_hp(i) + (1 - b_i) f_hn(i)``     least similar of the class, most similar of other classes
==================  ======================================  ==========================================================

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
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive.arguments import checked
from contrastive.checks import check_choice, shown
from contrastive.errors import InvalidType, InvalidValue
from contrastive.objectives.base import Objective
from contrastive.objectives.focal import focal_contrast
from contrastive.objectives.inputs import (
    check_integers,
    check_temperature,
    check_views,
    sample_ids,
    zero_loss,
)
from contrastive.objectives.mixing import (
    Draws,
    Mixing,
    SoftLabels,
    Variant,
    draw,
    hardest_pairs,
    mix,
    mix_labels,
    row_ids,
)
from contrastive.similarity import Gathered, gather, global_mean, rows

Classifier: TypeAlias = Callable[[Tensor], Tensor]


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

    In both, rows are compared by exact identities of their soft labels; the 32-bit hash of the official code takes some
    rows of different labels for positives, with many classes most of them.

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

    @checked
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
                raise InvalidValue(f"CoreTuning: {name} is {value}; give {accepted}.")
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
            raise InvalidValue(
                f"CoreTuning: no {'labels are' if labels is None else 'classifier is'} given; call it with (features, "
                "labels, classifier), or give setup the number of classes and the width of the features."
            )
        if not callable(classifier) or isinstance(classifier, type):
            raise InvalidType(
                f"CoreTuning: classifier is {shown(classifier)}; give a function of features, or a module."
            )
        check_integers("CoreTuning", "labels", labels, len(views[0]))
        width = self.head[0].in_features if len(self.head) else None
        if views[0].shape[1] != width:
            raise InvalidValue(
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
        detached = self.variant == "released"

        def mixed(layer: Classifier) -> Tensor:
            if not isinstance(layer, nn.Linear):
                return layer(mix(features, features.detach() if detached else None, mixing))
            weight, bias = _parameters(layer, features)  # a linear layer commutes with mixing
            if detached:
                mapped, originals = _LinearTwice.apply(features, weight, bias)
                return mix(mapped, originals, mixing)
            return mix(F.linear(features, weight, bias), None, mixing)

        logits = mixed(classifier)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise InvalidType("CoreTuning: the classifier gives no logits (R, C); give one that does.")
        if bool((labels < 0).any() or (labels >= logits.shape[1]).any()):
            raise InvalidValue(
                f"CoreTuning: labels range from {int(labels.min())} to {int(labels.max())}, but the classifier tells "
                f"{logits.shape[1]} classes; give labels from 0 to {logits.shape[1] - 1}."
            )
        cross_entropy = global_mean(soft_cross_entropy(logits, soft_labels))
        first, _, last = self.head
        hidden = mixed(first).relu_()
        projections = F.linear(hidden, *_parameters(last, hidden))
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


def _parameters(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer in the precision of ``x``."""
    assert isinstance(layer, nn.Linear)
    return layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype)


class _LinearTwice(torch.autograd.Function):
    """A linear layer of ``x`` and of ``x`` detached, for the products of one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        output = F.linear(x, weight, bias)
        return output, output.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_of_detached: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        both = grad + grad_of_detached
        return grad @ weight, both.T @ x, both.sum(0) if ctx.has_bias else None


def soft_cross_entropy(logits: Tensor, labels: SoftLabels) -> Tensor:
    """Cross entropy ``(R,)`` of ``logits`` ``(R, C)`` with soft labels."""
    log_probabilities = logits.log_softmax(1)
    first = log_probabilities.gather(1, labels.first[:, None])[:, 0]
    second = log_probabilities.gather(1, labels.second[:, None])[:, 0]
    return -torch.lerp(second, first, labels.share.to(logits.dtype))
