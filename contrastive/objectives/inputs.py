"""What objectives do with their inputs before any mathematics: check, normalise, identify."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive.errors import InvalidValue
from contrastive.similarity import Gathered, gather

_SHORTEST = 1e-12  # rows below this length are divided by it instead


def scaled_rows(x: Tensor, temperature: float | Tensor) -> Tensor:
    """``x (..., D)`` normalised and divided by ``sqrt(temperature)``, in at least float32 also under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        x = x if x.dtype == torch.float64 else x.float()
        plain = not isinstance(temperature, Tensor)
        scaled: Tensor = _Normalise.apply(x, 1 / math.sqrt(temperature) if plain else 1.0)
        return scaled if plain else divide(scaled, temperature)


class _Normalise(torch.autograd.Function):
    """Rows ``x`` scaled to a length; as ``F.normalize``, in half the passes over memory.

    With ``y = length · x / |x|`` the gradient is ``(length / |x|) (g - y (y·g) / length^2)``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, length: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        factor = length / norm.clamp(min=_SHORTEST)
        y: Tensor = x * factor
        ctx.save_for_backward(x, y, norm, factor)
        ctx.length = length
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        x, y, norm, factor = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            y = F.normalize(x, dim=-1, eps=_SHORTEST) * ctx.length
            return torch.autograd.grad(y, x, grad, create_graph=True)[0], None
        along = (y * grad).sum(-1, keepdim=True).masked_fill_(norm < _SHORTEST, 0.0)
        return torch.addcmul(grad, y, along, value=-1 / ctx.length**2).mul_(factor), None


def divide(x: Tensor, temperature: float | Tensor) -> Tensor:
    """``x / sqrt(temperature)``, so that products of rows are similarities over the temperature."""
    root = temperature.sqrt().to(x.dtype) if isinstance(temperature, Tensor) else math.sqrt(temperature)
    return x / root


def sample_ids(name: str, ids: Tensor | None, samples: Gathered) -> Gathered:
    """Integers that say which samples are the same: those given, or else the position in the global batch."""
    count = len(samples.local)
    if ids is None:
        all_ids = torch.arange(len(samples.all), device=samples.local.device)
        return Gathered(all_ids[samples.start : samples.start + count], all_ids, samples.start)
    if ids.shape != (count,) or ids.is_floating_point() or ids.is_complex():
        raise InvalidValue(
            f"{name}: labels have shape {tuple(ids.shape)} and dtype {ids.dtype}; give one integer for each of the "
            f"{count} samples, shape ({count},)."
        )
    return gather(ids.long())


def zero_loss(name: str, reason: str, views: tuple[Tensor, ...]) -> Tensor:
    """A zero that is connected to ``views``, and a warning that says why."""
    warnings.warn(f"{name}: {reason}; the loss is 0 and trains nothing.", stacklevel=3)
    return torch.stack([(view * 0.0).sum() for view in views]).sum()


def check_views(name: str, views: tuple[Tensor, ...], *, minimum: int) -> None:
    """Refuse views that are not at least ``minimum`` equal-shaped ``(B, D)`` floating-point tensors."""
    if len(views) < minimum:
        raise InvalidValue(
            f"{name}: got {len(views)} views; give at least {minimum} tensors of shape (B, D)."
        )
    first = views[0]
    for position, view in enumerate(views):
        if view.ndim != 2 or not view.is_floating_point():
            raise InvalidValue(
                f"{name}: view {position} has shape {tuple(view.shape)} and dtype {view.dtype}; expected "
                "floating-point embeddings (B, D)."
            )
        if (view.shape, view.dtype, view.device) != (first.shape, first.dtype, first.device):
            raise InvalidValue(
                f"{name}: view {position} is {tuple(view.shape)} {view.dtype} on {view.device} but view 0 is "
                f"{tuple(first.shape)} {first.dtype} on {first.device}; give all views the same shape, "
                "dtype and device."
            )


def check_temperature(name: str, value: float | Tensor, *, name_of_value: str = "temperature") -> None:
    """Refuse a temperature that is not a finite positive number."""
    if not isinstance(value, Tensor) and not (math.isfinite(value) and value >= 1e-8):
        raise InvalidValue(
            f"{name}: {name_of_value} is {value}; give a positive number, usually between 0.05 and 1."
        )
