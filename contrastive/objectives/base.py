"""What every objective has in common: declared inputs, late sizing and statistics to log."""

from typing import Any

import torch
from torch import Tensor, nn


class Objective(nn.Module):
    """A rule that turns the embeddings of several views of one batch into a scalar loss.

    Called as ``objective(*views, index=None, labels=None)``, each view ``(B, D)`` and not normalised.
    The mathematics of an objective is a pure function; the class holds its options and its state.
    Blocking, gathering across processes and the weighting of the mean belong to
    :mod:`contrastive.similarity`.
    """

    requires: tuple[str, ...] = ()
    """Names of the keyword inputs the objective cannot do without: ``"index"``, ``"labels"``."""

    stats: dict[str, Tensor]
    """Detached scalars of the last call, for logging."""

    def __init__(self) -> None:
        super().__init__()
        self.stats = {}

    def setup(self, num_samples: int) -> None:
        """Size the state that is kept per sample, once the length of the data set is known."""

    def negatives_per_anchor(self, batch_size: int, num_views: int) -> int:
        """Number of negatives that one anchor meets in a step of ``batch_size`` samples over all processes."""
        raise NotImplementedError

    def forward(
        self, *views: Tensor, index: Tensor | None = None, labels: Tensor | None = None, **extra: Any
    ) -> Tensor:
        """Return the scalar loss of ``views``, each ``(B, D)``."""
        raise NotImplementedError

    def log(self, **stats: Tensor | float) -> None:
        """Record detached scalars of this call in :attr:`stats`."""
        self.stats = {
            name: value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
            for name, value in stats.items()
        }
