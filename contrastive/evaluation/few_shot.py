"""N-way K-shot classification of cached features, all episodes at once (spec of the protocol: Snell et al. 2017)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive.evaluation.features import Features, row_blocks

Classifier = Literal["centroid", "cosine_centroid", "logistic_regression"]


@dataclass(frozen=True)
class FewShot:
    """Accuracy over episodes.

    Attributes:
        accuracies: ``(E,)`` fractions, one an episode.
        mean: their mean.
        ci95: half width of the 95 % interval of the mean over episodes: 1.96 population deviations / sqrt(E).
        ci95_t: the same from Student's t and the sample deviation, for fewer than about 30 episodes.
    """

    accuracies: Tensor
    mean: float
    ci95: float
    ci95_t: float


def few_shot(
    features: Features,
    support: Tensor,
    query: Tensor,
    *,
    classifier: Classifier = "centroid",
) -> FewShot:
    """Classify the queries of every episode by its support samples.

    Args:
        features: labelled features, taken as they are; normalise or centre them first if the protocol does.
        support: ``(E, way, shot)`` rows of ``features``.
        query: ``(E, way, q)`` rows; ``query[e, c]`` are samples of the class of ``support[e, c]``.
        classifier: ``"centroid"``, the nearest class mean; ``"cosine_centroid"``, the class mean of unit rows with
            the largest cosine; ``"logistic_regression"`` on unit rows with C = 1.

    Raises:
        ValueError: index shapes that do not belong together, or an unknown classifier.
    """
    if classifier not in _CLASSIFIERS:
        raise ValueError(f"few_shot: classifier is {classifier!r}; choose one of {', '.join(_CLASSIFIERS)}")
    if support.ndim != 3 or query.ndim != 3 or support.shape[:2] != query.shape[:2]:
        raise ValueError(
            f"few_shot: support has shape {tuple(support.shape)} and query {tuple(query.shape)}; expected "
            "(episodes, way, shot) and (episodes, way, queries), as sample_episodes gives them"
        )
    episodes, way, _ = support.shape
    parts = []
    for block in row_blocks(episodes, (support[0].numel() + query[0].numel()) * features.vectors.shape[1]):
        x, q = features.vectors[support[block].long()], features.vectors[query[block].long()].flatten(1, 2)
        predicted = _CLASSIFIERS[classifier](x, q).argmax(dim=2)
        truth = torch.arange(way, device=x.device).repeat_interleave(query.shape[2])
        parts.append((predicted == truth).double().mean(dim=1))
    accuracies = torch.cat(parts)
    mean, ci95 = confidence_interval(accuracies)
    return FewShot(accuracies, mean, ci95, confidence_interval(accuracies, student=True)[1])


def sample_episodes(
    labels: Tensor, *, way: int = 5, shot: int = 1, queries: int = 15, episodes: int = 1000, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw episodes: ``way`` classes each, and of every class ``shot`` + ``queries`` samples, without replacement.

    Args:
        labels: ``(N,)`` integers.
        way: classes in an episode.
        shot: support samples of a class.
        queries: query samples of a class.
        episodes: number of episodes.
        seed: of an own generator; the same seed draws the same list everywhere.

    Returns:
        Rows of the support ``(episodes, way, shot)`` and of the queries ``(episodes, way, queries)``.

    Raises:
        ValueError: sizes below 1, too few classes, or a class with too few samples (it is named).
    """
    if min(way, shot, queries, episodes) < 1:
        raise ValueError(
            f"sample_episodes: way={way}, shot={shot}, queries={queries}, episodes={episodes}; each must be 1 or more"
        )
    classes, group, counts = torch.unique(labels.cpu(), return_inverse=True, return_counts=True)
    if way > len(classes):
        raise ValueError(
            f"sample_episodes: way={way} of {len(classes)} classes; ask for {len(classes)} at most"
        )
    if int(counts.min()) < shot + queries:
        smallest = int(counts.argmin())
        raise ValueError(
            f"sample_episodes: class {int(classes[smallest])} has {int(counts[smallest])} samples and an episode "
            f"draws shot + queries = {shot + queries}; lower them, or leave the class out"
        )
    # members[c] lists the rows of class c, filled up with -1 to the size of the largest class.
    order = torch.argsort(group, stable=True)
    column = torch.arange(len(order)) - (torch.cumsum(counts, 0) - counts)[group[order]]
    members = torch.full((len(classes), int(counts.max())), -1)
    members[group[order], column] = order
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for block in row_blocks(episodes, max(len(classes), way * members.shape[1])):
        size = block.stop - block.start
        drawn = torch.rand(size, len(classes), generator=generator).topk(way, dim=1).indices
        rows = members[drawn]
        # Random keys in place of shuffling: the samples with the largest keys are a draw without replacement.
        keys = torch.rand(rows.shape, generator=generator).masked_fill_(rows < 0, -1)
        parts.append(rows.gather(2, keys.topk(shot + queries, dim=2).indices))
    chosen = torch.cat(parts)
    return chosen[:, :, :shot], chosen[:, :, shot:]


def confidence_interval(values: Tensor, *, student: bool = False) -> tuple[float, float]:
    """Mean of ``values`` ``(E,)`` and half the width of its 95 % interval.

    Args:
        values: one number an episode or a seed.
        student: t quantile and sample deviation, for few values, instead of 1.96 and population deviation. A
            single value then has an infinite interval.
    """
    values = values.double()
    if not student:
        return float(values.mean()), 1.96 * float(values.std(correction=0)) / math.sqrt(len(values))
    from scipy.stats import t

    if len(values) == 1:
        return float(values), math.inf
    deviation = float(values.std(correction=1))
    return float(values.mean()), float(t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))


def _centroid(support: Tensor, query: Tensor) -> Tensor:
    """Scores ``(E, Q, way)`` of queries ``(E, Q, D)`` by support ``(E, way, shot, D)``: minus the distance."""
    return -torch.cdist(query, support.mean(dim=2))


def _cosine_centroid(support: Tensor, query: Tensor) -> Tensor:
    prototypes = F.normalize(F.normalize(support, dim=3).mean(dim=2), dim=2)
    return F.normalize(query, dim=2) @ prototypes.transpose(1, 2)


def _logistic_regression(support: Tensor, query: Tensor, *, steps: int = 200) -> Tensor:
    """Multinomial logistic regression of every episode, ``sum_i loss_i + |W|^2 / 2`` on unit rows.

    By the representer theorem ``W = A.T @ support``, so gradient descent on W can be carried out on A ``(E, n,
    way)`` with n = way * shot: its cost does not depend on D. The ridge term makes the problem strongly convex, and
    Nesterov's accelerated gradient reaches float32 accuracy in a fixed number of steps.
    """
    episodes, way, shot, _ = support.shape
    x = F.normalize(support, dim=3).flatten(1, 2)
    truth = F.one_hot(torch.arange(way, device=x.device).repeat_interleave(shot), way).to(x)
    kernel = x @ x.transpose(1, 2)
    # The bias is an unpenalised weight of a constant column; curvature of softmax is at most 1/2.
    largest = (kernel + 1).abs().sum(2).amax(1)
    rate = (1 / (largest / 2 + 1))[:, None, None]
    momentum = (1 - rate.sqrt()) / (1 + rate.sqrt())
    weights, bias = x.new_zeros(episodes, way * shot, way), x.new_zeros(episodes, 1, way)
    ahead_weights, ahead_bias = weights, bias
    for _ in range(steps):
        residual = (kernel @ ahead_weights + ahead_bias).softmax(dim=2) - truth
        new_weights = ahead_weights - rate * (residual + ahead_weights)
        new_bias = ahead_bias - rate * residual.sum(dim=1, keepdim=True)
        ahead_weights = new_weights + momentum * (new_weights - weights)
        ahead_bias = new_bias + momentum * (new_bias - bias)
        weights, bias = new_weights, new_bias
    return F.normalize(query, dim=2) @ (x.transpose(1, 2) @ weights) + bias


_CLASSIFIERS = {
    "centroid": _centroid,
    "cosine_centroid": _cosine_centroid,
    "logistic_regression": _logistic_regression,
}
