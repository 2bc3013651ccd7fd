"""Cross entropy of a classifier: what fine-tuning is compared with."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive.arguments import checked
from contrastive.checks import shown
from contrastive.errors import InvalidType, InvalidValue
from contrastive.objectives.base import Objective
from contrastive.objectives.inputs import check_integers, check_views
from contrastive.similarity import global_mean, rows


class CrossEntropy(Objective):
    """Plain cross entropy of a classifier on the features.

    Called by :class:`~contrastive.training.FineTune` with ``(features, labels, classifier)``, as a method whose loss is
    more than an addition to cross entropy.

    Args:
        label_smoothing: share of every label that is spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: if ``label_smoothing`` lies outside its range.
    """

    requires = ("labels", "classifier")

    @checked
    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise InvalidValue(f"CrossEntropy: label_smoothing is {label_smoothing}; give a share in [0, 1).")
        self.label_smoothing = label_smoothing

    def negatives_per_anchor(self, batch_size: int, num_views: int) -> int:
        """None: samples are not compared."""
        return 0

    def forward(
        self,
        *views: Tensor,
        index: Tensor | None = None,
        labels: Tensor | None = None,
        classifier: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return the mean over all rows of ``views``, ``(B, D)`` each, with ``labels`` ``(B,)`` of their samples."""
        check_views("CrossEntropy", views, minimum=1)
        if labels is None or classifier is None:
            raise InvalidValue(
                "CrossEntropy: give labels=... and classifier=..., which maps features to logits."
            )
        if not callable(classifier):
            raise InvalidType(
                f"CrossEntropy: classifier is {shown(classifier)}; give a function of features."
            )
        check_integers("CrossEntropy", "labels", labels, len(views[0]))
        scores = classifier(torch.cat(views))
        if not isinstance(scores, Tensor) or scores.ndim != 2 or not scores.is_floating_point():
            raise InvalidType("CrossEntropy: the classifier gives no logits (B, C); give one that does.")
        logits = rows.at_least_float32(scores)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
            raise InvalidValue(
                f"CrossEntropy: labels go from {int(labels.min())} to {int(labels.max())} and the classifier tells "
                f"{logits.shape[1]} classes apart; give labels from 0 to {logits.shape[1] - 1}."
            )
        targets = labels.long().repeat(len(views))
        return global_mean(
            F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.label_smoothing)
        )
