"""A model and a transition table together: what the table knows by heart, the model need not learn.

Counts of "after this item came that one" alone reach the NDCG@10 of a trained encoder on some data. The mixture shows
how much of this a model has missed, and is a cheap re-ranker; its numbers stand under its own name, never the model's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from contrastive.checks import check_number
from recsys.data import Cases, Sequences
from recsys.metrics import History, Score, Ties, case_values, rank_block, scored_blocks

WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


class TransitionTable(Protocol):
    """A fitted :class:`~recsys.MarkovChain` or :class:`~recsys.SequentialRules`."""

    def probabilities(self, histories: Sequences) -> Tensor:
        """``(B, num_items + 1)`` float64; rows add up to 1, or are 0."""


@dataclass(frozen=True, eq=False)
class TransitionMixture:
    """``(1 - weight) * softmax(scores) + weight * q``, q what a table says of the next item.

    Histories of which the table knows nothing get the softmax alone.

    Attributes:
        model_score: scores ``(B, num_items + 1)`` of a model, taken as logits.
        table: of transitions, fitted.
        weight: of the table, from 0 to below 1.

    Raises:
        ValueError: the weight is out of range.
    """

    model_score: Score
    table: TransitionTable
    weight: float = 0.5

    def __post_init__(self) -> None:
        check_number("TransitionMixture", "weight", self.weight, "[0, 1)")

    @property
    def name(self) -> str:
        """What its numbers are reported under, after the model's own name."""
        return f"transition mixture (w {self.weight:g})"

    def score(self, histories: Sequences) -> Tensor:
        """Probabilities ``(B, num_items + 1)`` float64; column 0 is 0."""
        scores = self.model_score(histories)
        return self._mix(_softmax(scores), self._table(histories, scores))

    def tune(
        self,
        cases: Cases,
        metric: str = "NDCG@10",
        *,
        keep: str | None = None,
        weights: Sequence[float] = WEIGHTS,
        history: History = "keep",
        ties: Ties = "pessimistic",
        batch_size: int = 512,
    ) -> "TransitionMixture":
        """The mixture that is best on validation cases; of equals the one with the least weight.

        The model scores every case once, whatever the size of the grid.

        Args:
            cases: validation cases; tuned on test cases the numbers would be worthless.
            metric: to maximise.
            keep: a metric that must not fall below the model's own, ``"HR@10"`` for example.
            weights: grid of weights. The model alone is always in it.
            history: as for :func:`~recsys.metrics.rank_targets`.
            ties: as there.
            batch_size: cases scored at a time.

        Returns:
            A new mixture.

        Raises:
            ValueError: a metric is unknown, a weight is out of range, or there are no cases.
        """
        for name in (metric, keep or metric):
            case_values(np.zeros(1, np.int64), name)  # a misspelt metric fails before the work, not after
        grid = [replace(self, weight=w) for w in sorted({0.0, *weights})]
        ranks = np.empty((len(grid), len(cases)), np.int64)
        for block in scored_blocks(self.model_score, cases, batch_size):
            table = self._table(block.histories, block.scores)
            softmax = _softmax(block.scores)
            for row, mixture in zip(ranks, grid, strict=True):
                mixed = mixture._mix(softmax, table)
                row[block.cases] = rank_block(replace(block, scores=mixed), history, ties)
        values = np.array([case_values(row, metric).mean() for row in ranks])
        if keep is not None:
            kept = np.array([case_values(row, keep).mean() for row in ranks])
            values[kept < kept[0]] = -np.inf
        return grid[int(values.argmax())]

    def _table(self, histories: Sequences, beside: Tensor) -> Tensor:
        return self.table.probabilities(histories).to(beside.device)

    def _mix(self, softmax: Tensor, table: Tensor) -> Tensor:
        weight = self.weight * (table.sum(1, keepdim=True) > 0).to(softmax.dtype)
        return torch.lerp(softmax, table, weight)


def _softmax(scores: Tensor) -> Tensor:
    """In float64: probabilities that float32 rounds to the same value would tie."""
    logits = scores.to(torch.float64, copy=True)
    logits[:, 0] = -torch.inf
    return logits.softmax(dim=1)
