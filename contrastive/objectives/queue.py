"""A first-in, first-out store of the keys of earlier steps, as momentum contrast needs it (arXiv 1911.05722)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive.errors import InvalidValue
from contrastive.similarity import gather

# Marks keys of unknown identity: below every label.
_NO_ID = torch.iinfo(torch.int64).min


class KeyQueue(nn.Module):
    """The last ``size`` keys of all processes, the same on each; part of the ``state_dict``.

    Args:
        size: number of keys.

    Attributes:
        rows: ``(size, D)`` unit keys; random ones until so many were written, none before :meth:`prepare`.
        ids: ``(size,)`` identities of the keys.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("rows", torch.empty(0))
        self.register_buffer("ids", torch.full((size,), _NO_ID))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    rows: Tensor
    ids: Tensor
    position: Tensor

    @torch.no_grad()
    def prepare(self, like: Tensor) -> None:
        """Before the first step, take random unit rows of the width of ``like``, the same on every process."""
        if len(self.rows) == 0:
            generator = torch.Generator().manual_seed(0)
            rows = F.normalize(torch.randn(self.size, like.shape[1], generator=generator), dim=1)
            self.rows = rows.to(like.device, torch.promote_types(like.dtype, torch.float32))
        if self.rows.shape[1] != like.shape[1]:
            raise InvalidValue(
                f"the queue holds keys of width {self.rows.shape[1]}, and these are {like.shape[1]} wide; give "
                "embeddings of one width, or make the objective anew."
            )

    @torch.no_grad()
    def push(self, keys: Tensor, ids: Tensor | None) -> None:
        """Write unit keys ``(B, D)`` of every process, in rank order, over the oldest rows."""
        keys = gather(keys.detach()).all[-self.size :].to(self.rows.dtype)
        written = (self.position + torch.arange(len(keys), device=keys.device)) % self.size
        self.rows[written] = keys
        self.ids[written] = _NO_ID if ids is None else gather(ids.long()).all[-self.size :]
        self.position = (self.position + len(keys)) % self.size

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}rows" in state_dict:  # their width is known only now
            self.rows = torch.empty_like(state_dict[f"{prefix}rows"], device=self.rows.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
