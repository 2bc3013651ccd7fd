"""Floors: recommenders of a few lines that a trained model must beat before its numbers mean anything.

Each counts on training histories and needs no more than seconds. Scores are in float64, so that tie-breaks survive.
"""

from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from contrastive.checks import check_number, check_whole
from contrastive.errors import InvalidValue, NotReady
from recsys.data import Sequences

Array: TypeAlias = NDArray[Any]
TIE_BREAK = 1e-6  # of popularity, against one transition


class Popularity:
    """Every history gets the items that occur most often in training."""

    counts: Array | None = None

    def fit(self, train: Sequences, num_items: int) -> "Popularity":
        """Count the items of training histories.

        Args:
            train: row per user.
            num_items: size of the catalogue.

        Raises:
            ValueError: an item is not in the catalogue.
        """
        self.counts = _counts(train, num_items)
        return self

    def score(self, histories: Sequences) -> Tensor:
        """Counts of all items, ``(B, num_items + 1)`` float64."""
        return torch.from_numpy(_fitted(self, self.counts)).expand(len(histories), -1)


class MarkovChain:
    """The item that most often followed the last one in training; popularity decides among equals.

    ``score(j) = number of transitions last -> j + 1e-6 * count of j``.
    """

    counts: Array | None = None
    transitions: Any = (
        None  # (num_items + 1, num_items + 1) CSR: how often the column's item followed the row's
    )

    def fit(self, train: Sequences, num_items: int) -> "MarkovChain":
        """Count the transitions between neighbours in training histories.

        Args:
            train: row per user.
            num_items: size of the catalogue.

        Raises:
            ValueError: an item is not in the catalogue.
        """
        self.counts = _counts(train, num_items)
        follows = np.ones(max(len(train.items) - 1, 0), bool)
        inner = train.offsets[1:-1]
        follows[inner[(inner > 0) & (inner < len(train.items))] - 1] = False  # not across users
        pairs = (train.items[:-1][follows], train.items[1:][follows])
        shape = (num_items + 1, num_items + 1)
        self.transitions = sparse.csr_matrix((np.ones(len(pairs[0])), pairs), shape)
        return self

    def score(self, histories: Sequences) -> Tensor:
        """Transition counts from each history's last item, ``(B, num_items + 1)`` float64."""
        scores = _fitted(self, self.transitions)[self._last(histories)].toarray()
        scores += TIE_BREAK * _fitted(self, self.counts)
        return torch.from_numpy(scores)

    def probabilities(self, histories: Sequences) -> Tensor:
        """Share of each item among the transitions from the history's last item.

        Returns:
            ``(B, num_items + 1)`` float64; rows add up to 1, or are 0 if nothing followed that item in training.
        """
        rows = _fitted(self, self.transitions)[self._last(histories)].toarray()
        return torch.from_numpy(rows / np.maximum(rows.sum(1, keepdims=True), 1))

    def _last(self, histories: Sequences) -> Array:
        """Last items ``(B,)``; 0, which nothing follows, for an empty history."""
        last = np.zeros(len(histories), np.int64)
        filled = histories.lengths > 0
        last[filled] = histories.items[histories.offsets[1:][filled] - 1]
        return last


class SequentialRules:
    """What followed the items of a history within a few steps, near ones and recent items first.

    ``q(i, j)`` is the share of j in what followed i in training, where j ``d`` steps behind i counts ``1 / d``;

        score(j) = sum over the history of recency^age * q(i, j) + 1e-6 * (count of j / the largest count),

    and the last item has age 0. With the last item alone: the sequential rules of Kamehkhosh et al. 2017, "A comparison
    of frequent pattern techniques and a deep learning method for session-based recommendation" (RecTemp), with the
    weights that Ludewig & Jannach 2018 found best (arXiv 1803.09587).

    Args:
        steps: how far behind an item its followers are counted.
        recency: weight of an item over that of the next one, in (0, 1].

    Raises:
        ValueError: ``steps`` below 1, or ``recency`` out of its range.
    """

    counts: Array | None = None
    rules: Any = None  # (num_items + 1, num_items + 1) CSR of q; rows add up to 1, or are empty

    def __init__(self, steps: int = 10, recency: float = 0.3) -> None:
        self.steps = check_whole("SequentialRules", "steps", steps)
        self.recency = check_number("SequentialRules", "recency", recency, "(0, 1]")

    def fit(self, train: Sequences, num_items: int) -> "SequentialRules":
        """Count what followed what in training histories.

        Args:
            train: row per user.
            num_items: size of the catalogue.

        Raises:
            ValueError: an item is not in the catalogue.
        """
        self.counts = _counts(train, num_items)
        users = np.repeat(np.arange(len(train)), train.lengths)
        shape = (num_items + 1, num_items + 1)
        counts = sparse.csr_matrix(shape)
        for distance in range(1, min(self.steps, int(train.lengths.max(initial=0)) - 1) + 1):
            same = users[:-distance] == users[distance:]
            pairs = train.items[:-distance][same], train.items[distance:][same]
            counts += sparse.csr_matrix((np.full(len(pairs[0]), 1 / distance), pairs), shape)
        totals = np.asarray(counts.sum(axis=1)).ravel()
        self.rules = sparse.diags(1 / np.where(totals > 0, totals, 1)).tocsr() @ counts
        return self

    def score(self, histories: Sequences) -> Tensor:
        """Weighted shares of all items for each history, ``(B, num_items + 1)`` float64."""
        counts = _fitted(self, self.counts)
        return torch.from_numpy(self._mixed(histories) + TIE_BREAK * counts / max(counts.max(), 1))

    def probabilities(self, histories: Sequences) -> Tensor:
        """The scores without the tie-break, of sum 1.

        Returns:
            ``(B, num_items + 1)`` float64; rows add up to 1, or are 0 if nothing followed any item of the history.
        """
        shares = self._mixed(histories)
        totals = shares.sum(1, keepdims=True)
        return torch.from_numpy(shares / np.where(totals > 0, totals, 1))

    def _mixed(self, histories: Sequences) -> Array:
        shares: Array = (_by_age(histories, self.recency, _fitted(self, self.rules)) @ self.rules).toarray()
        return shares


class ItemKNN:
    """Items whose users are those of the history's items, recent ones first.

    ``score(j) = sum over the history of recency^age * cos(i, j)``, where ``cos(i, j)`` is the share of common users
    ``|U_i & U_j| / sqrt(|U_i| |U_j|)``, 0 for i = j, and the last item has age 0 (Sarwar et al. 2001, "Item-based
    collaborative filtering recommendation algorithms", WWW; with decaying weights, and all items as neighbours).

    Args:
        recency: weight of an item over that of the next one, in (0, 1].

    Raises:
        ValueError: ``recency`` out of its range.
    """

    similarity: Any = None  # (num_items + 1, num_items + 1) CSR

    def __init__(self, recency: float = 0.8) -> None:
        self.recency = check_number("ItemKNN", "recency", recency, "(0, 1]")

    def fit(self, train: Sequences, num_items: int) -> "ItemKNN":
        """Compare the users of all pairs of items that have a user in common.

        Args:
            train: row per user.
            num_items: size of the catalogue.

        Raises:
            ValueError: an item is not in the catalogue.
        """
        _counts(train, num_items)
        users = np.repeat(np.arange(len(train)), train.lengths)
        shape = (len(train), num_items + 1)
        bought = sparse.csr_matrix((np.ones(len(users)), (users, train.items)), shape)
        bought.sum_duplicates()
        bought.data[:] = 1  # a user counts once, however often they came back
        common = (bought.T @ bought).tocoo()
        size = np.sqrt(np.maximum(np.asarray(bought.sum(axis=0)).ravel(), 1))
        cosine = common.data / (size[common.row] * size[common.col])
        cosine[common.row == common.col] = 0
        self.similarity = sparse.csr_matrix((cosine, (common.row, common.col)), common.shape)
        self.similarity.eliminate_zeros()
        return self

    def score(self, histories: Sequences) -> Tensor:
        """Weighted similarity of all items to each history, ``(B, num_items + 1)`` float64."""
        similarity = _fitted(self, self.similarity)
        return torch.from_numpy((_by_age(histories, self.recency, similarity) @ similarity).toarray())


FLOORS: dict[str, type[Popularity | MarkovChain | SequentialRules | ItemKNN]] = {
    "popularity": Popularity,
    "Markov chain": MarkovChain,
    "sequential rules": SequentialRules,
    "item-kNN": ItemKNN,
}
"""All of them, by the names that tables give them."""


def _by_age(histories: Sequences, recency: float, table: Any) -> Any:
    """Histories as rows ``(B, num_items + 1)`` of ``recency^age``, sparse; ``table`` has a row for every item."""
    rows = np.repeat(np.arange(len(histories)), histories.lengths)
    age = histories.offsets[1:][rows] - 1 - np.arange(len(rows))
    shape = (len(histories), table.shape[0])
    return sparse.csr_matrix((recency**age, (rows, histories.items)), shape)


def _fitted(floor: object, learnt: Any) -> Any:
    if learnt is None:
        name = type(floor).__name__
        raise NotReady(f"{name}: nothing was counted yet; call {name}().fit(train, num_items) first.")
    return learnt


def _counts(train: Sequences, num_items: int) -> Array:
    """How often each item occurs, ``(num_items + 1,)`` float64."""
    num_items = check_whole("fit", "num_items", num_items)
    if train.items.size and not 1 <= train.items.min() <= train.items.max() <= num_items:
        raise InvalidValue(
            f"training items are {train.items.min()} to {train.items.max()}, num_items={num_items}; items must be 1 to "
            "num_items."
        )
    return np.bincount(train.items, minlength=num_items + 1).astype(np.float64)
