"""What every objective has in common: declared inputs, late sizing and statistics to log."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from contrastive.arguments import usable
from contrastive.checks import shown
from contrastive.errors import InvalidType, NotFinite


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

    def __call__(self, *views: Any, **inputs: Any) -> Tensor:
        """Compute the loss; refuse one that is not finite, naming the objective and the first bad row.

        Raises:
            FloatingPointError: if the loss is NaN or infinite.
            TypeError: if ``index`` or ``labels`` is no dense tensor.
        """
        for what in ("index", "labels"):
            if (given := inputs.get(what)) is not None and not usable(given):
                raise InvalidType(
                    f"{type(self).__name__}: {what} is {shown(given)}; give a dense tensor of integers, as "
                    "torch.as_tensor(...) makes one."
                )
        loss: Tensor = super().__call__(*views, **inputs)
        if not bool(torch.isfinite(loss.detach())):
            raise NotFinite(_describe_bad_loss(type(self).__name__, loss, _tensors(views)))
        return loss

    def setup(self, num_samples: int, *, num_classes: int = 0, dim: int | None = None) -> None:
        """Size what depends on the data, once it is known: state per sample, parameters per class.

        Called before the optimiser is built, and before a checkpoint is read.

        Args:
            num_samples: length of the training set; the ``index`` of a sample is below it.
            num_classes: number of classes, 0 without labels.
            dim: width of the embeddings, None if the projector does not tell.
        """

    def set_epoch(self, epoch: int, num_epochs: int) -> None:
        """Say which epoch of training begins, counted from 0, and of how many; for schedules."""

    def negatives_per_anchor(self, batch_size: int, num_views: int) -> int:
        """Number of negatives that one anchor meets in a step of ``batch_size`` samples over all processes."""
        raise NotImplementedError

    def forward(self, *views: Tensor, index: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Return the scalar loss of ``views``, each ``(B, D)``."""
        raise NotImplementedError

    def log(self, **stats: Tensor | float) -> None:
        """Record detached scalars of this call in :attr:`stats`."""
        self.stats = {
            name: value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
            for name, value in stats.items()
        }


def _tensors(views: Iterable[Any]) -> tuple[Tensor, ...]:
    """The views one after the other, where an objective takes them in groups."""
    return tuple(x for view in views for x in ((view,) if isinstance(view, Tensor) else _tensors(view)))


def _describe_bad_loss(name: str, loss: Tensor, views: tuple[Tensor, ...]) -> str:
    message = f"{name}: the loss is {float(loss.detach())}"
    for position, view in enumerate(views):
        bad = (~torch.isfinite(view.detach())).flatten(1).any(1).nonzero().flatten()
        if len(bad):
            return (
                f"{message}; the first bad row is row {int(bad[0])} of view {position} ({len(bad)} of {len(view)} rows "
                "are not finite). Lower the learning rate, clip gradients, or look for bad values in the inputs."
            )
    return f"{message} although every embedding is finite; raise the temperature or train in float32."
