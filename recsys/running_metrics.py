"""Ranking metrics that are collected over batches and processes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from contrastive.arguments import checked
from contrastive.checks import check_whole
from contrastive.errors import InvalidValue
from recsys.metrics import KS, metric_names


class RankingMetrics(Metric):
    """HR, NDCG and MRR, as of :func:`~recsys.metrics.ranking_metrics`, over batches and processes.

    Sums of hits and gains, and the number of cases, are added up over all processes and divided once, so shards of
    unequal size count by their cases. A sampler that repeats cases to fill the last shard would count them twice:
    give each case to one process.

    Args:
        ks: cut-offs.
        **options: of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: there are no cut-offs, or one is below 1.
    """

    full_state_update = False
    higher_is_better = True
    gains: Tensor
    cases: Tensor

    @checked
    def __init__(self, ks: Sequence[int] = KS, **options: Any) -> None:
        super().__init__(**options)
        self.ks = tuple(check_whole("RankingMetrics", "a cut-off in ks", k) for k in ks)
        if not self.ks:
            raise InvalidValue("RankingMetrics: ks is empty; give cut-offs of at least 1.")
        self.add_state("gains", torch.zeros(3, len(ks), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("cases", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, ranks: Tensor) -> None:
        """Add the cases of a batch.

        Args:
            ranks: ``(B,)`` integer ranks from 0.

        Raises:
            ValueError: ranks are of another shape or type, or below 0.
        """
        if ranks.ndim != 1 or ranks.is_floating_point() or bool((ranks < 0).any()):
            raise InvalidValue(
                f"RankingMetrics: ranks of shape {tuple(ranks.shape)} and type {ranks.dtype}; give (B,) integers."
            )
        exact = ranks.to(self.gains.device).double()
        hit = exact[:, None] < torch.tensor(self.ks, device=self.gains.device)
        gain = torch.stack([torch.ones_like(exact), 1 / torch.log2(exact + 2), 1 / (exact + 1)])
        self.gains += gain @ hit.double()
        self.cases += len(ranks)

    def compute(self) -> dict[str, Tensor]:
        """Metrics by name, float64.

        Raises:
            ValueError: there was no case.
        """
        if not self.cases:
            raise InvalidValue("RankingMetrics: there was no case to rank; is the validation data empty?")
        return dict(zip(metric_names(self.ks), (self.gains / self.cases).flatten(), strict=True))
