"""Full ranking: where does the next item of a history stand among all items of the catalogue?

Every case has one target. Its rank r is the number of candidates ahead of it, from 0, and with one target

    HR@k = mean [r < k]    NDCG@k = mean [r < k] / log2(r + 2)    MRR@k = mean [r < k] / (r + 1)

(Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20(4), with an ideal gain of
1; HR@k equals Recall@k). All items are candidates, never a sample of them, which would change the order of models
(Krichene and Rendle 2020, "On sampled metrics for item recommendation", KDD).

Two conventions change numbers and stand beside every result:

* ``history``: ``"keep"`` leaves the items of the history among the candidates, as papers on sequential recommendation
  do; ``"mask"`` removes them, though never the target.
* ``ties``: items that score as the target does are ahead of it (``"pessimistic"``: a constant scorer is as bad as it
  should be) or behind it (``"optimistic"``).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contrastive.arguments import checked
from contrastive.checks import check_choice, check_whole
from contrastive.errors import InvalidType, InvalidValue
from recsys.data import Cases, Sequences
from recsys.objectives import products

Array: TypeAlias = NDArray[Any]
History: TypeAlias = Literal["keep", "mask"]
Ties: TypeAlias = Literal["pessimistic", "optimistic"]
HISTORIES, TIES = ("keep", "mask"), ("pessimistic", "optimistic")
# Scores (B, num_items + 1) of all items for B histories, larger is better; column 0, padding, is never looked at.
Score: TypeAlias = Callable[[Sequences], Tensor]

KS = (5, 10, 20)
MISSED = np.iinfo(np.int64).max  # rank of a target that is on no list: beyond any k

# Gain of a target at rank r < k, by the metric's name; ranks at k and beyond gain nothing.
GAINS: dict[str, Callable[[Any, int], Any]] = {
    "HR": lambda ranks, k: np.ones_like(ranks),
    "NDCG": lambda ranks, k: 1 / np.log2(ranks + 2),
    "MRR": lambda ranks, k: 1 / (ranks + 1),
    "Precision": lambda ranks, k: np.full_like(ranks, 1 / k),
}


@dataclass(frozen=True, eq=False)
class ScoredBlock:
    """Some cases with the scores of all items.

    Attributes:
        cases: ``(B,)`` numbers of the cases.
        histories: their histories.
        targets: ``(B,)`` their targets.
        scores: ``(B, num_items + 1)``.
    """

    cases: Array
    histories: Sequences
    targets: Array
    scores: Tensor


@checked
def rank_targets(
    score: Score,
    cases: Cases,
    history: History = "keep",
    ties: Ties = "pessimistic",
    batch_size: int = 512,
) -> Array:
    """Rank the target of every case among all items.

    A rank takes two comparisons of the scores with the target's and two row sums: O(C V) time, and memory for the
    scores of one batch. Cases are scored in the order of their lengths, so that a model pads little.

    Args:
        score: scores ``(B, num_items + 1)`` for B histories; its result is not changed.
        cases: histories and targets.
        history: whether items of the history stay among the candidates.
        ties: whether items that score as the target does are ahead of it.
        batch_size: cases scored at a time.

    Returns:
        ``(C,)`` int64 ranks from 0, in the order of ``cases``.

    Raises:
        ValueError: a score is NaN (the case is named), scores have another shape, or an option is unknown.
    """
    ranks = np.empty(len(cases), np.int64)
    for block in scored_blocks(score, cases, batch_size):
        ranks[block.cases] = rank_block(block, history, ties)
    return ranks


def scored_blocks(score: Score, cases: Cases, batch_size: int) -> Iterator[ScoredBlock]:
    """Score cases in batches of like lengths, the longest first: a batch too large for the memory fails at once.

    Raises:
        ValueError: scores are not ``(B, num_items + 1)``, or ``batch_size`` is below 1.
    """
    for rows in _by_length(cases.histories, batch_size):
        histories, targets = cases.histories.take(rows), cases.targets[rows]
        largest = int(max(targets.max(), histories.items.max(initial=0)))
        yield ScoredBlock(rows, histories, targets, _scores(score, histories, largest))


def rank_block(block: ScoredBlock, history: History, ties: Ties) -> Array:
    """Ranks ``(B,)`` of the targets of a block; see :func:`rank_targets`."""
    _check("rank_targets", history, ties)
    scores = block.scores[:, 1:]
    targets = _index(block.targets - 1, scores)
    own = scores.gather(1, targets[:, None])[:, 0]
    ahead, compared = _ahead(scores, own, ties)
    _refuse_nan(compared < scores.shape[1], block.cases, "rank_targets")
    if history == "mask":
        items, rows = (_index(part, scores) for part in _seen(block.histories, block.targets))
        beaten = _is_ahead(ties)(scores[rows, items - 1], own[rows])
        ahead.index_add_(0, rows, beaten.long(), alpha=-1)
    return _ranks(ahead, ties)


@checked
def rank_by_vectors(
    states: Tensor,
    item_vectors: Tensor,
    targets: Array,
    mask: Sequences | None = None,
    ties: Ties = "pessimistic",
    *,
    user_block: int = 2048,
    item_block: int | None = None,
) -> Array:
    """Rank targets by dot products of states and item vectors, in blocks over both.

    The ranks are those of :func:`rank_targets` with the scores ``states @ item_vectors.T``, in memory of
    ``user_block * item_block`` scores, whatever the size of the catalogue. (Where two scores agree to the last bits,
    the order of additions inside a product may decide.)

    Args:
        states: ``(C, d)``, on any device.
        item_vectors: ``(num_items + 1, d)``, row 0 is padding.
        targets: ``(C,)`` items, 1 to num_items.
        mask: histories, row per case, whose items are no candidates; the target always is.
        ties: whether items that score as the target does are ahead of it.
        user_block: rows of a block.
        item_block: columns of a block; None for as many as make 8 million scores.

    Returns:
        ``(C,)`` int64 ranks from 0.

    Raises:
        ValueError: shapes do not fit, an item is not in the catalogue, a block is empty, or a score is NaN.
    """
    _check("rank_by_vectors", "keep", ties)
    user_block = check_whole("rank_by_vectors", "user_block", user_block)
    if states.ndim != 2 or item_vectors.ndim != 2:
        raise InvalidValue(
            f"rank_by_vectors: states {tuple(states.shape)} and item_vectors {tuple(item_vectors.shape)}; give (C, d) "
            "and (num_items + 1, d)."
        )
    if item_block is None:
        item_block = max(1, (1 << 23) // max(1, min(user_block, len(states))))
    item_block = check_whole("rank_by_vectors", "item_block", item_block)
    targets = _as_array(targets)
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        raise InvalidValue(
            f"rank_by_vectors: targets have the shape {targets.shape} and type {targets.dtype}; give integers (C,)."
        )
    if not (states.is_floating_point() and item_vectors.dtype == states.dtype):
        raise InvalidValue(
            f"rank_by_vectors: states are {states.dtype} and item_vectors {item_vectors.dtype}; give both of one "
            "floating-point type."
        )
    if states.ndim != 2 or item_vectors.ndim != 2 or states.shape[1] != item_vectors.shape[1]:
        raise InvalidValue(
            f"rank_by_vectors: states {tuple(states.shape)} and item_vectors {tuple(item_vectors.shape)}; give (C, d) "
            "and (num_items + 1, d)."
        )
    if len(targets) != len(states) or (mask is not None and len(mask) != len(states)):
        raise InvalidValue(
            f"rank_by_vectors: {len(states)} states, {len(targets)} targets"
            f"{'' if mask is None else f', {len(mask)} histories'}; give one for each state."
        )
    num_items = len(item_vectors) - 1
    _check_items(targets, num_items, "rank_by_vectors: a target")
    if mask is not None:
        _check_items(mask.items, num_items, "rank_by_vectors: an item of a history")
    ranks = np.empty(len(targets), np.int64)
    # Cases in the order of their targets: those of a block then stand in few blocks of items, often in one.
    order = np.argsort(targets, kind="stable")
    with torch.no_grad():
        for start in range(0, len(order), user_block):
            rows = order[start : start + user_block]
            seen = None if mask is None else _seen(mask.take(rows), targets[rows])
            block = states[_index(rows, states)]
            ahead, compared = _rank_rows(block, item_vectors[1:], targets[rows] - 1, seen, ties, item_block)
            _refuse_nan(compared < num_items, rows, "rank_by_vectors")
            ranks[rows] = _ranks(ahead, ties)
    return ranks


def _rank_rows(
    states: Tensor, items: Tensor, columns: Array, seen: tuple[Array, Array] | None, ties: Ties, width: int
) -> tuple[Tensor, Tensor]:
    """Candidates ahead ``(B,)`` and candidates compared ``(B,)``; ``columns`` of the targets rise."""
    own = products(states, items[:1])[:, 0]  # of the scores' dtype; every element is replaced
    first, last = int(columns[0]) // width, int(columns[-1]) // width
    # The target's score is taken from the very product that ranks the items beside it. A dot product of its own may
    # differ in the last bit, and items with equal vectors would no longer tie.
    for block in range(first, last + 1):
        scores = products(states, items[block * width : (block + 1) * width])
        low, high = np.searchsorted(columns, [block * width, (block + 1) * width])
        rows = torch.arange(int(low), int(high), device=states.device)
        own[rows] = scores[rows, _index(columns[low:high] - block * width, states)]
    ahead, compared = (torch.zeros(len(states), dtype=torch.int64, device=states.device) for _ in range(2))
    for block in (last, *range(last), *range(last + 1, -(-len(items) // width))):
        start = block * width
        if block != last:  # the last of above is still there
            scores = products(states, items[start : start + width])
        for total, count in zip((ahead, compared), _ahead(scores, own, ties), strict=True):
            total += count
        if seen is not None:
            low, high = np.searchsorted(seen[0], [start + 1, start + width + 1])
            at, rows = (_index(part[low:high], states) for part in seen)
            beaten = _is_ahead(ties)(scores[rows, at - start - 1], own[rows])
            ahead.index_add_(0, rows, beaten.long(), alpha=-1)
    return ahead, compared


def _is_ahead(ties: Ties) -> Callable[..., Tensor]:
    return torch.ge if ties == "pessimistic" else torch.gt


def _ahead(scores: Tensor, own: Tensor, ties: Ties) -> tuple[Tensor, Tensor]:
    """How many scores of each row are ahead of ``own``, and how many compare with it at all: NaN with nothing."""
    is_ahead, is_behind = _is_ahead(ties), torch.lt if ties == "pessimistic" else torch.le
    # Sums of 0 and 1 in float32 are exact below 2^24, and far faster than sums of Booleans. On a CPU a few rows at a
    # time stay in the cache, and PyTorch does not divide them between threads, whose waiting costs more than the work.
    exact = torch.float32 if scores.shape[1] < 1 << 24 else torch.float64
    rows = max(1, ((1 << 15) - 1 if scores.is_cpu else 1 << 26) // scores.shape[1])
    flags = torch.empty(min(rows, len(scores)), scores.shape[1], dtype=exact, device=scores.device)
    ahead, compared = [], []
    for start in range(0, len(scores), rows):
        part, limit = scores[start : start + rows], own[start : start + rows, None]
        ahead.append(is_ahead(part, limit, out=flags[: len(part)]).sum(1))
        compared.append(ahead[-1] + is_behind(part, limit, out=flags[: len(part)]).sum(1))
    return torch.cat(ahead).long(), torch.cat(compared).long()


def _ranks(ahead: Tensor, ties: Ties) -> Array:
    """Without the target, which is not behind itself."""
    return (ahead - int(ties == "pessimistic")).cpu().numpy()


def _seen(histories: Sequences, targets: Array) -> tuple[Array, Array]:
    """Items and rows of the histories, once each, without padding and the target of the row; items rise."""
    rows = np.repeat(np.arange(len(histories)), histories.lengths)
    other = (histories.items != targets[rows]) & (histories.items > 0)
    items, rows = np.divmod(np.unique(histories.items[other] * len(histories) + rows[other]), len(histories))
    return items, rows


@checked
def top_items(
    score: Score, histories: Sequences, k: int, history: History = "keep", batch_size: int = 512
) -> Array:
    """The ``k`` best items of each history, best first.

    Args:
        score: scores ``(B, num_items + 1)`` for B histories; its result is not changed.
        histories: ``R`` rows.
        k: length of a list; all items where there are fewer.
        history: ``"mask"`` lists no item of the history.
        batch_size: histories scored at a time.

    Returns:
        ``(R, min(k, num_items))`` int64 items; 0 where a row has no further candidate (all others are removed, or score
        ``-inf``).

    Raises:
        ValueError: a score is NaN (the row is named), scores have another shape, or an option is unknown.
    """
    _check("top_items", history, "pessimistic")
    k = check_whole("top_items", "k", k)
    lists: Array | None = None
    for rows in _by_length(histories, batch_size):
        block = histories.take(rows)
        scores = _scores(score, block, int(block.items.max(initial=1))).clone()
        scores[:, 0] = -torch.inf
        _refuse_nan(scores.isnan().any(1), rows, "top_items")
        if history == "mask":
            scores[
                _index(np.repeat(np.arange(len(rows)), block.lengths), scores), _index(block.items, scores)
            ] = -torch.inf
        values, items = scores.topk(min(k, scores.shape[1] - 1), dim=1)
        if lists is None:
            lists = np.zeros((len(histories), items.shape[1]), np.int64)
        lists[rows] = items.masked_fill(values == -torch.inf, 0).cpu().numpy()
    return np.zeros((0, k), np.int64) if lists is None else lists


@checked
def coverage(lists: Array, num_items: int) -> float:
    """Share of the catalogue that stands on at least one list: coverage@k for lists of k items.

    Herlocker et al. 2004, "Evaluating collaborative filtering recommender systems", ACM TOIS 22(1), section 4.2.

    Args:
        lists: items of :func:`top_items`; 0 counts for nothing.
        num_items: size of the catalogue.
    """
    lists = _as_array(lists)
    if lists.dtype.kind not in "iu" and lists.size:
        raise InvalidValue(
            f"coverage: lists have the type {lists.dtype}; give the items of top_items, integers."
        )
    return float(np.count_nonzero(np.unique(lists)) / check_whole("coverage", "num_items", num_items))


def _as_array(values: Any) -> Array:
    try:
        return np.asarray(values)
    except ValueError:  # a list of lists of different lengths
        raise InvalidValue(
            "an array was expected, not rows of different lengths; give integers, 1-d."
        ) from None


def case_values(ranks: Array, metric: str) -> Array:
    """A metric of each case; the metric is their mean.

    Args:
        ranks: ``(C,)`` integer ranks from 0.
        metric: ``HR@k``, ``NDCG@k``, ``MRR@k`` or ``Precision@k`` with any k of at least 1.

    Returns:
        ``(C,)`` float64.

    Raises:
        ValueError: there are no ranks, they are not integers from 0, or the metric is unknown.
    """
    ranks = _as_array(ranks)
    if ranks.ndim != 1 or not len(ranks) or ranks.dtype.kind not in "iu" or ranks.min() < 0:
        least = f", the least {ranks.min()}" if ranks.size and ranks.dtype != object else ""
        raise InvalidValue(
            f"ranks of shape {ranks.shape} and type {ranks.dtype}{least}; give integer ranks from 0, at least one."
        )
    name, _, k = metric.partition("@")
    if name not in GAINS or not k.isdecimal() or int(k) < 1:
        raise InvalidValue(
            f"metric {metric!r} is unknown; choose from {', '.join(f'{name}@10' for name in GAINS)}."
        )
    return np.asarray((ranks < int(k)) * GAINS[name](ranks.astype(np.float64), int(k)))


@checked
def ranking_metrics(ranks: Array, ks: Sequence[int] = KS) -> dict[str, float]:
    """HR, NDCG and MRR at each k, as means over all cases in float64.

    Args:
        ranks: ``(C,)`` integer ranks from 0, as of :func:`rank_targets`.
        ks: cut-offs; one beyond the number of items counts every target as a hit.

    Returns:
        ``{"HR@5": ..., "HR@10": ..., ..., "NDCG@5": ..., ..., "MRR@20": ...}``.

    Raises:
        ValueError: as :func:`case_values`.
    """
    return {name: float(case_values(ranks, name).mean()) for name in metric_names(ks)}


def metric_names(ks: Sequence[int]) -> list[str]:
    """Names of the metrics that are reported, ``HR@5`` for example."""
    ks = [check_whole("ranking metrics", "a cut-off in ks", k) for k in ks]
    return [f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in ks]


@checked
def metrics_by_length(
    ranks: Array, cases: Cases, ks: Sequence[int] = KS, bins: int = 4
) -> list[dict[str, Any]]:
    """Metrics of cases with short and with long histories, in bins of about as many cases each.

    Returns:
        Row per bin for :func:`~recsys.results.format_table`: ``history length`` as ``"4-6"``, ``cases``, metrics.
    """
    return _by_quantile("history length", ranks, cases.histories.lengths, ks, bins)


@checked
def metrics_by_popularity(
    ranks: Array, cases: Cases, train: Sequences, ks: Sequence[int] = KS, bins: int = 4
) -> list[dict[str, Any]]:
    """Metrics of cases by how often the target occurs in training, in bins of about as many cases each.

    Args:
        ranks: ``(C,)`` ranks of ``cases``.
        cases: what was ranked.
        train: training histories, which alone tell how popular an item is.
        ks: cut-offs.
        bins: number of bins; fewer where many targets are alike.

    Returns:
        Row per bin for :func:`~recsys.results.format_table`: ``target's training count``, ``cases``, metrics.
    """
    counts = np.bincount(train.items, minlength=int(cases.targets.max(initial=0)) + 1)
    return _by_quantile("target's training count", ranks, counts[cases.targets], ks, bins)


def _by_quantile(
    name: str, ranks: Array, values: Array, ks: Sequence[int], bins: int
) -> list[dict[str, Any]]:
    ranks = _as_array(ranks)
    bins = check_whole("metrics by bins", "bins", bins)
    if ranks.ndim != 1 or not len(ranks) or len(ranks) != len(values):
        number = len(ranks) if ranks.ndim == 1 else f"an array {ranks.shape} of"
        raise InvalidValue(f"{number} ranks of {len(values)} cases; give the rank of each case.")
    limits = np.unique(np.quantile(values, np.arange(1, bins + 1) / bins, method="inverted_cdf"))
    bin_of = np.searchsorted(limits, values)
    rows = []
    for number in range(len(limits)):
        inside = bin_of == number
        low, high = values[inside].min(), values[inside].max()
        label = str(low) if low == high else f"{low}-{high}"
        rows.append({name: label, "cases": int(inside.sum()), **ranking_metrics(ranks[inside], ks)})
    return rows


@dataclass(frozen=True)
class Comparison:
    """The difference between two models on the same cases.

    Attributes:
        metric: what was compared.
        difference: the first model's value less the second's.
        low: lower end of the 95 % interval of the difference.
        high: its upper end.
        p: two-sided probability of a difference this large between models that are equally good.
        cases: number of cases.
        samples: number of bootstrap samples.
    """

    metric: str
    difference: float
    low: float
    high: float
    p: float
    cases: int
    samples: int

    def __str__(self) -> str:
        return (
            f"{self.metric}: difference {self.difference:+.4f}, 95 % interval [{self.low:+.4f}, {self.high:+.4f}], "
            f"p = {self.p:.2g} (paired bootstrap, {self.cases:,} cases, {self.samples:,} samples)"
        )


@checked
def paired_bootstrap(
    ranks_a: Array, ranks_b: Array, metric: str = "NDCG@10", samples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare two models by drawing cases anew: how far could the difference be chance?

    The interval holds 95 % of the differences of the samples; p is the share of samples whose difference lies at least
    as far from the observed one as that lies from 0 (Efron and Tibshirani 1993, "An introduction to the bootstrap",
    sections 13.3 and 16.4; Sakai 2006, "Evaluating evaluation metrics based on the bootstrap", SIGIR).

    Args:
        ranks_a: ``(C,)`` ranks of one model.
        ranks_b: ``(C,)`` ranks of the other, on the same cases in the same order.
        metric: as for :func:`case_values`.
        samples: number of bootstrap samples.
        seed: of the samples.

    Raises:
        ValueError: the cases differ in number, or ``samples`` is below 1.
    """
    values_a, values_b = case_values(ranks_a, metric), case_values(ranks_b, metric)
    samples = check_whole("paired_bootstrap", "samples", samples)
    seed = check_whole("paired_bootstrap", "seed", seed, 0)
    if len(values_a) != len(values_b):
        raise InvalidValue(
            f"paired_bootstrap: {len(values_a)} and {len(values_b)} ranks; give two models' ranks of the same cases."
        )
    # Cases with the same difference are alike, and a metric cut off at k has few different ones. So a sample is how
    # often each difference was drawn, which is multinomial: the same distribution, without C draws for each sample.
    differences, counts = np.unique(values_a - values_b, return_counts=True)
    num_cases, observed = len(values_a), float((values_a - values_b).mean())
    generator = np.random.default_rng(seed)
    block = max(1, (1 << 22) // len(differences))  # 32 MB of counts at a time
    drawn = np.concatenate(
        [
            generator.multinomial(num_cases, counts / num_cases, size=min(block, samples - start))
            @ differences
            for start in range(0, samples, block)
        ]
    )
    drawn /= num_cases
    low, high = np.quantile(drawn, [0.025, 0.975])
    # A margin for rounding: sums in another order are not equal to the last bit.
    farther = np.abs(drawn - observed) >= abs(observed) * (1 - 1e-9) - 1e-15
    p = (1 + int(farther.sum())) / (1 + samples)
    return Comparison(metric, observed, float(low), float(high), p, num_cases, samples)


def _by_length(histories: Sequences, batch_size: int) -> Iterator[Array]:
    """Row numbers in batches, longest histories first."""
    batch_size = check_whole("ranking", "batch_size", batch_size)
    order = np.argsort(-histories.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _scores(score: Score, histories: Sequences, largest: int) -> Tensor:
    with torch.no_grad():
        scores = score(histories)
    if not isinstance(scores, Tensor):
        raise InvalidType(
            f"the scores of a model are a {type(scores).__name__}; give a tensor (B, num_items + 1)."
        )
    if scores.ndim != 2 or len(scores) != len(histories) or scores.shape[1] <= largest:
        raise InvalidValue(
            f"scores of shape {tuple(scores.shape)} for {len(histories)} histories with items up to {largest}; a model "
            "must score every item, and column 0 for padding: (B, num_items + 1)."
        )
    return scores


def _index(numbers: Array, beside: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int64)).to(beside.device)


def _refuse_nan(bad: Tensor, rows: Array, function: str) -> None:
    if bool(bad.any()):
        first = np.flatnonzero(bad.cpu().numpy())
        raise InvalidValue(
            f"{function}: {len(first)} of {len(rows)} rows of a block have scores that are NaN; the first is case "
            f"{rows[first[0]]}. Look for a loss that diverged, or a division by zero in the model."
        )


def _check(function: str, history: str, ties: str) -> None:
    check_choice(function, "history", history, HISTORIES)
    check_choice(function, "ties", ties, TIES)


def _check_items(items: Array, num_items: int, what: str) -> None:
    if items.size and (items.min() < 1 or items.max() > num_items):
        raise InvalidValue(
            f"{what} is {items.min() if items.min() < 1 else items.max()}; items are 1 to {num_items}, 0 is padding."
        )
