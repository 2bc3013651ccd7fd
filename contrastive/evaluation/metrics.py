"""What every classifier on frozen features is judged by."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Classification:
    """The outcome of classifying a test set.

    Attributes:
        metrics: ``accuracy`` and ``balanced_accuracy`` (mean recall of the classes in the test set), as
            fractions; ``top5_accuracy`` with more than 5 classes; ``auc`` and ``average_precision`` of the
            larger label with two.
        recall: recall of each class of the test set, by its label.
        predictions: predicted labels ``(N,)``, in the order of the test set.
        scores: class scores ``(N, C)``; column c belongs to ``classes[c]``.
        classes: ``(C,)`` sorted labels, of training and test set together.
    """

    metrics: dict[str, float]
    recall: dict[int, float]
    predictions: Tensor
    scores: Tensor
    classes: Tensor

    @property
    def accuracy(self) -> float:
        """Share of the test set that was classified correctly."""
        return self.metrics["accuracy"]


def classify(
    scores: Tensor, targets: Tensor, classes: Tensor, *, top5: bool = True, least: float = -torch.inf
) -> Classification:
    """Judge class scores against the true classes.

    Args:
        scores: ``(N, C)``, larger is better. With two classes they should add up to 1 in each row.
        targets: ``(N,)`` positions in ``classes``.
        classes: ``(C,)`` labels.
        top5: False where fewer than five classes can have a meaningful score.
        least: a class whose score is not above it is not among the first five of a sample.
    """
    top = scores.argmax(dim=1)
    hits = top == targets
    counts = torch.bincount(targets, minlength=len(classes))
    correct = torch.bincount(targets[hits], minlength=len(classes))
    present = counts > 0
    recalls = correct[present].double() / counts[present]
    metrics = {"accuracy": float(hits.double().mean()), "balanced_accuracy": float(recalls.mean())}
    if top5 and len(classes) > 5:
        best, top_five = scores.topk(5, dim=1)
        found = (top_five == targets[:, None]) & (best > least)
        metrics["top5_accuracy"] = float(found.any(dim=1).double().mean())
    if len(classes) == 2 and bool(present.all()):
        from sklearn.metrics import average_precision_score, roc_auc_score

        truth, score = targets.cpu().numpy(), scores[:, 1].cpu().numpy()
        metrics["auc"] = float(roc_auc_score(truth, score))
        metrics["average_precision"] = float(average_precision_score(truth, score))
    recall = dict(zip(classes[present].tolist(), recalls.tolist(), strict=True))
    return Classification(metrics, recall, classes[top], scores, classes)
