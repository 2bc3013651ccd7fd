"""N-way K-shot classification of cached features, all episodes at once (spec of the protocol: Snell et al. 2017)."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive.arguments import checked
from contrastive.errors import InvalidValue
from contrastive.evaluation.features import Features, row_blocks
from contrastive.evaluation.opta import UNBALANCED, OpTA, standardize_samples
from contrastive.evaluation.softmax_regression import softmax_regression

Classifier = Literal["centroid", "cosine_centroid", "logistic_regression", "opta", "opta_unbalanced"]


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


@dataclass(frozen=True)
class FewShotComparison:
    """Two sets of features on the same episodes.

    Attributes:
        first: accuracy of the first features.
        second: accuracy of the second features.
        difference: mean over episodes of first minus second.
        ci95: half width of the 95 % interval of the difference: Student's t over the episodes' differences.
        p_value: of the two-sided paired t test that the difference is 0.
    """

    first: FewShot
    second: FewShot
    difference: float
    ci95: float
    p_value: float


@checked
def few_shot(
    features: Features,
    support: Tensor,
    query: Tensor,
    *,
    classifier: Classifier | OpTA = "centroid",
) -> FewShot:
    """Classify the queries of every episode by its support samples.

    Inductive classifiers judge each query by itself. Transductive ones (:data:`TRANSDUCTIVE`) see all queries of an
    episode; report the two kinds apart.

    Args:
        features: labelled features, taken as they are; normalise or centre them first if the protocol does.
        support: ``(E, way, shot)`` rows of ``features``.
        query: ``(E, way, q)`` rows; ``query[e, c]`` are samples of the class of ``support[e, c]``. Or ``(E, Q)`` rows
            of any mix of these classes: whose they are is then read from the labels of ``features``.
        classifier: ``"centroid"``, the nearest class mean; ``"cosine_centroid"``, the class mean of unit rows with
            the largest cosine; ``"logistic_regression"`` on unit rows with C = 1; ``"opta"``, prototypes moved onto
            the queries, for equally many of every class; ``"opta_unbalanced"``, the same for any mix of queries. Or
            an :class:`OpTA` with settings of its own.

    Raises:
        ValueError: index shapes that do not belong together, an unknown classifier, a query of none of its episode's
            classes, or for OpTA a sample whose features are all equal.

    Warns:
        UserWarning: OpTA for balanced queries meets an episode where one class has more queries than another.
    """
    if isinstance(classifier, str) and classifier not in _CLASSIFIERS:
        raise InvalidValue(f"few_shot: classifier is {classifier!r}; choose one of {', '.join(CLASSIFIERS)}")
    if (
        support.ndim != 3
        or query.ndim not in (2, 3)
        or support.shape[: query.ndim - 1] != query.shape[:-1]
        or 0 in (*support.shape, *query.shape)
    ):
        raise InvalidValue(
            f"few_shot: support has shape {tuple(support.shape)} and query {tuple(query.shape)}; expected "
            "(episodes, way, shot) and (episodes, way, queries) or (episodes, queries), as sample_episodes gives them"
        )
    truth, query = _query_classes(features, support, query), query.flatten(1)
    head = _CLASSIFIERS[classifier] if isinstance(classifier, str) else classifier
    vectors = features.vectors
    if isinstance(head, OpTA):
        _warn_of_imbalance(head, truth, support.shape[1])
        vectors, head = standardize_samples(vectors), head.scores
    parts = []
    known, asked = support[0].numel(), query[0].numel()
    # Classifiers hold the samples of an episode, and products of the known samples with all of them.
    for block in row_blocks(len(support), (known + asked) * max(known, vectors.shape[1])):
        predicted = head(vectors[support[block].long()], vectors[query[block].long()]).argmax(dim=2)
        parts.append((predicted == truth[block]).double().mean(dim=1))
    accuracies = torch.cat(parts)
    mean, ci95 = confidence_interval(accuracies)
    return FewShot(accuracies, mean, ci95, confidence_interval(accuracies, student=True)[1])


@checked
def compare_few_shot(
    first: Features,
    second: Features,
    support: Tensor,
    query: Tensor,
    *,
    classifier: Classifier | OpTA = "centroid",
) -> FewShotComparison:
    """Compare two encoders on the same episodes.

    Episodes differ in difficulty much more than good encoders do. Paired by episode that difference cancels, and the
    interval is several times as narrow as that of two independent means. It covers the choice of episodes only, not
    the seeds of training.

    Args:
        first: features of one encoder.
        second: features of the other, of the same samples in the same order.
        support: as in :func:`few_shot`, two episodes or more.
        query: as in :func:`few_shot`.
        classifier: as in :func:`few_shot`, for both.

    Raises:
        ValueError: features of different samples, fewer than two episodes, or what :func:`few_shot` raises.
    """
    if not torch.equal(first.index, second.index) or (
        first.labels is not None
        and second.labels is not None
        and not torch.equal(first.labels, second.labels)
    ):
        raise InvalidValue(
            f"compare_few_shot: the two features ({len(first)} and {len(second)} rows) differ in their samples or "
            "labels; extract both from the same data set, in the same order"
        )
    if support.ndim != 3 or len(support) < 2:
        raise InvalidValue(
            f"compare_few_shot: support of shape {tuple(support.shape)}; an interval of the difference takes two "
            "episodes or more"
        )
    one, other = (few_shot(features, support, query, classifier=classifier) for features in (first, second))
    difference = one.accuracies - other.accuracies
    mean, ci95 = confidence_interval(difference, student=True)
    return FewShotComparison(one, other, mean, ci95, _paired_p_value(difference))


@checked
def sample_episodes(
    labels: Tensor,
    *,
    way: int = 5,
    shot: int = 1,
    queries: int = 15,
    episodes: int = 1000,
    imbalance: float | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Draw episodes: ``way`` classes each, and of every class ``shot`` + ``queries`` samples, without replacement.

    With ``imbalance`` an episode still has ``way * queries`` queries, but their shares of the classes are drawn from a
    symmetric Dirichlet distribution (Veilleux et al. 2021, "Realistic evaluation of transductive few-shot learning",
    arXiv 2204.11181). Classes and support are those of the balanced list with the same seed.

    Args:
        labels: ``(N,)`` integers.
        way: classes in an episode.
        shot: support samples of a class.
        queries: query samples of a class; with ``imbalance``, on average.
        episodes: number of episodes.
        imbalance: concentration of the Dirichlet distribution, above 0: 2 in the paper, unequal below 1. A class gives
            no more samples than it has, the other classes then give more. None for equally many queries.
        seed: of an own generator; the same seed draws the same list everywhere.

    Returns:
        Rows of the support ``(episodes, way, shot)`` and of the queries ``(episodes, way, queries)``; with
        ``imbalance`` of the queries ``(episodes, way * queries)``, sorted by class.

    Raises:
        ValueError: sizes below 1, too few classes, a class with too few samples (it is named), or a concentration
            that is not above 0.
    """
    if min(way, shot, queries, episodes) < 1:
        raise InvalidValue(
            f"sample_episodes: way={way}, shot={shot}, queries={queries}, episodes={episodes}; each must be 1 or more"
        )
    if imbalance is not None and not 0 < imbalance < math.inf:
        raise InvalidValue(
            f"sample_episodes: imbalance={imbalance}; it is the concentration of a Dirichlet distribution: give a "
            "number above 0, as 2, or None for equally many queries of every class"
        )
    classes, group, counts = torch.unique(labels.cpu(), return_inverse=True, return_counts=True)
    if way > len(classes):
        raise InvalidValue(
            f"sample_episodes: way={way} of {len(classes)} classes; ask for {len(classes)} at most"
        )
    if int(counts.min()) < shot + queries:
        smallest = int(counts.argmin())
        raise InvalidValue(
            f"sample_episodes: class {int(classes[smallest])} has {int(counts[smallest])} samples and an episode "
            f"draws shot + queries = {shot + queries}; lower them, or leave the class out"
        )
    # members[c] lists the rows of class c, filled up with -1 to the size of the largest class.
    order = torch.argsort(group, stable=True)
    column = torch.arange(len(order)) - (torch.cumsum(counts, 0) - counts)[group[order]]
    members = torch.full((len(classes), int(counts.max())), -1)
    members[group[order], column] = order
    generator = torch.Generator().manual_seed(seed)
    # A generator of its own: the draws of classes and samples stay those of the balanced list.
    shares = None if imbalance is None else np.random.default_rng(seed).dirichlet([imbalance] * way, episodes)
    supports, query_parts = [], []
    for block in row_blocks(episodes, max(len(classes), way * members.shape[1])):
        size = block.stop - block.start
        drawn = torch.rand(size, len(classes), generator=generator).topk(way, dim=1).indices
        rows = members[drawn]
        # Random keys in place of shuffling: the samples with the largest keys are a draw without replacement.
        keys = torch.rand(rows.shape, generator=generator).masked_fill_(rows < 0, -1)
        if shares is None:
            chosen = rows.gather(2, keys.topk(shot + queries, dim=2).indices)
            query = chosen[:, :, shot:]
        else:
            wanted = _query_counts(torch.from_numpy(shares[block]), counts[drawn] - shot, way * queries)
            chosen = rows.gather(2, keys.topk(shot + int(wanted.max()), dim=2).indices)
            column = torch.arange(chosen.shape[2] - shot)
            query = chosen[:, :, shot:][column < wanted[:, :, None]].view(size, way * queries)
        supports.append(chosen[:, :, :shot])
        query_parts.append(query)
    return torch.cat(supports), torch.cat(query_parts)


@checked
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


def _query_classes(features: Features, support: Tensor, query: Tensor) -> Tensor:
    """Position of each query's class among the classes of its episode, ``(E, Q)``."""
    episodes, way, _ = support.shape
    device = features.vectors.device
    if query.ndim == 3:
        return torch.arange(way, device=device).repeat_interleave(query.shape[2]).expand(episodes, -1)
    labels = features.require_labels("few_shot").to(device)
    same = labels[query.long()][:, :, None] == labels[support[:, :, 0].long()][:, None, :]
    if not (same.sum(dim=2) == 1).all():
        episode, position = (same.sum(dim=2) != 1).nonzero()[0].tolist()
        raise InvalidValue(
            f"few_shot: query {position} of episode {episode} has label {int(labels[query[episode, position]])}, and "
            f"the support has labels {labels[support[episode, :, 0].long()].tolist()}; it must be one of these, and "
            "they must differ: draw the episodes from the labels of these features"
        )
    return same.long().argmax(dim=2)


def _query_counts(shares: Tensor, available: Tensor, total: int) -> Tensor:
    """Whole numbers ``(E, way)`` near ``total * shares`` that sum to ``total`` and exceed ``available`` nowhere."""
    wanted = torch.minimum(total * shares, available)
    room = available - wanted
    missing = total - wanted.sum(dim=1, keepdim=True)
    # All samples may be needed: then there is no room, and nothing is missing.
    wanted = torch.minimum(
        wanted + missing * room / room.sum(dim=1, keepdim=True).clamp_min(1e-12), available
    )
    counts = wanted.floor()
    # Largest remainders: the rank of a class by its fraction says whether it gets one of the queries left over.
    rank = (wanted - counts).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (counts + (rank < total - counts.sum(dim=1, keepdim=True))).long()


def _warn_of_imbalance(head: OpTA, truth: Tensor, way: int) -> None:
    if head.marginal_relaxation is not None:
        return
    counts = F.one_hot(truth, way).sum(dim=1)
    unequal = float((counts != counts[:, :1]).any(dim=1).double().mean())
    if unequal > 0:
        warnings.warn(
            f"few_shot: OpTA takes every class to have equally many queries, and in {100 * unequal:.0f} % of the "
            "episodes they have not, so accuracies suffer; use classifier='opta_unbalanced', or OpTA with "
            "marginal_relaxation, where the mix of queries is unknown",
            stacklevel=3,
        )


def _paired_p_value(difference: Tensor) -> float:
    """Two-sided p value of the t test that the mean of ``difference`` ``(E,)`` is 0."""
    from scipy.stats import t

    error = float(difference.std(correction=1)) / math.sqrt(len(difference))
    mean = float(difference.mean())
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * t.sf(abs(mean) / error, len(difference) - 1))


def _centroid(support: Tensor, query: Tensor) -> Tensor:
    """Scores ``(E, Q, way)`` of queries ``(E, Q, D)`` by support ``(E, way, shot, D)``: minus the distance."""
    return -torch.cdist(query, support.mean(dim=2))


def _cosine_centroid(support: Tensor, query: Tensor) -> Tensor:
    prototypes = F.normalize(F.normalize(support, dim=3).mean(dim=2), dim=2)
    return F.normalize(query, dim=2) @ prototypes.transpose(1, 2)


def _logistic_regression(support: Tensor, query: Tensor) -> Tensor:
    _, way, shot, _ = support.shape
    classes = torch.arange(way, device=support.device).repeat_interleave(shot)
    return softmax_regression(F.normalize(support, dim=3).flatten(1, 2), classes, F.normalize(query, dim=2))


_CLASSIFIERS: dict[str, OpTA | Callable[[Tensor, Tensor], Tensor]] = {
    "centroid": _centroid,
    "cosine_centroid": _cosine_centroid,
    "logistic_regression": _logistic_regression,
    "opta": OpTA(),
    "opta_unbalanced": UNBALANCED,
}
CLASSIFIERS: tuple[Classifier, ...] = get_args(Classifier)
"""Names that :func:`few_shot` knows, inductive ones first."""
TRANSDUCTIVE: tuple[Classifier, ...] = ("opta", "opta_unbalanced")
"""Those of them whose prediction of one query depends on the other queries of its episode."""
