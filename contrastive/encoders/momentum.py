"""An encoder that follows another one slowly."""

import math
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from contrastive.arguments import checked
from contrastive.errors import InvalidValue


class MomentumEncoder(nn.Module):
    """Copy of a module whose parameters are an exponential moving average of the original's.

    After each :meth:`update` every parameter is ``momentum * own + (1 - momentum) * original`` and every
    buffer (batch-norm statistics, for instance) is an exact copy of the original's (He et al. 2020,
    "Momentum Contrast for Unsupervised Visual Representation Learning", section 3.2).

    The copy needs no gradient and :meth:`forward` records no graph. It follows ``train()`` and ``eval()``
    like any module: in training mode its batch norm uses the statistics of the batch it sees, as He et al.
    do, and its running statistics are replaced at the next update. The original is referred to, not owned:
    it is absent from ``parameters()`` and from the ``state_dict``, which holds the copy alone.

    Args:
        module: The module to follow. Build all of its layers first (``ProjectionHead.setup``).
        momentum: Share of the old value that an update keeps, in [0, 1].
        final: What the momentum rises to at the end of a schedule, see :meth:`update`; from ``momentum`` to 1.

    Raises:
        ValueError: If ``momentum`` lies outside [0, 1], or ``final`` outside [momentum, 1].
    """

    @checked
    def __init__(self, module: nn.Module, momentum: float = 0.99, final: float = 1.0) -> None:
        super().__init__()
        if not 0.0 <= momentum <= 1.0:
            raise InvalidValue(f"momentum of MomentumEncoder is {momentum}; it must lie in [0, 1].")
        if not momentum <= final <= 1.0:
            raise InvalidValue(f"final of MomentumEncoder is {final}; it must lie in [{momentum}, 1].")
        self.momentum, self.final = momentum, final
        self.module = deepcopy(module).requires_grad_(False)
        self._original = (module,)  # in a tuple, lest nn.Module register it as a part of this module

    @property
    def dim(self) -> int:
        """Width of the output, as the module that is followed says."""
        width: int = self.module.dim  # type: ignore[assignment]
        return width

    @torch.no_grad()
    def update(self, progress: float = 0.0) -> None:
        """Move one step towards the original; call it after each optimiser step.

        Args:
            progress: Finished share of the training, in [0, 1]. The momentum rises from its initial
                value at 0 to ``final`` at 1 along a cosine (Grill et al. 2020, "Bootstrap Your Own Latent",
                section 3.2). Leave it at 0 for a constant momentum.

        Raises:
            ValueError: If ``progress`` lies outside [0, 1], or the original has gained or lost parameters.
        """
        if not 0.0 <= progress <= 1.0:
            raise InvalidValue(f"progress of MomentumEncoder.update is {progress}; it must lie in [0, 1].")
        original = self._original[0]
        own = dict(chain(self.module.named_parameters(), self.module.named_buffers()))
        theirs = dict(chain(original.named_parameters(), original.named_buffers()))
        if {name: value.shape for name, value in own.items()} != {n: v.shape for n, v in theirs.items()}:
            raise InvalidValue(
                "MomentumEncoder.update found other parameters in the original than in its copy: "
                "build all layers of a module before you wrap it."
            )
        rise = (self.final - self.momentum) * (1.0 + math.cos(math.pi * progress)) / 2.0
        rate = (1.0 - self.final) + rise
        for name, _ in self.module.named_parameters():
            own[name].lerp_(theirs[name].detach(), rate)
        for name, _ in self.module.named_buffers():
            own[name].copy_(theirs[name])

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the copy; arguments and result are those of the module that is followed."""
        result: Tensor = self.module(*args, **kwargs)
        return result
