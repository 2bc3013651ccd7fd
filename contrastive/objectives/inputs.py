"""What objectives do with their inputs before any mathematics: check, normalise, identify."""

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive.arguments import FLOATS, usable
from contrastive.checks import check_number, shown
from contrastive.errors import InvalidType, InvalidValue
from contrastive.similarity import Gathered, gather

_NUMBER = (int, float, np.number)
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
    check_integers(name, "labels", ids, count)
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
        if not isinstance(view, Tensor):
            raise InvalidType(
                f"{name}: view {position} is {shown(view)}; give a tensor of embeddings (B, D), as "
                "torch.as_tensor(...) makes one."
            )
        if view.ndim != 2 or view.dtype not in FLOATS or view.layout is not torch.strided:
            labels = "; labels are given by name, labels=..." if view.ndim == 1 else ""
            raise InvalidValue(
                f"{name}: view {position} has shape {tuple(view.shape)} and dtype {view.dtype} ({view.layout}); "
                f"expected floating-point embeddings (B, D), dense{labels}."
            )
        if view is not first and (
            view.shape != first.shape or view.dtype != first.dtype or view.device != first.device
        ):
            raise InvalidValue(
                f"{name}: view {position} is {tuple(view.shape)} {view.dtype} on {view.device} but view 0 is "
                f"{tuple(first.shape)} {first.dtype} on {first.device}; give all views the same shape, "
                "dtype and device."
            )
    if first.is_meta:
        raise InvalidValue(
            f"{name}: the views are on the meta device, which holds no data; give real tensors."
        )


def check_rows(name: str, what: str, rows: Any, like: Tensor) -> None:
    """Refuse rows ``(K, D)`` that cannot be compared with ``like`` ``(B, D)``."""
    if not usable(rows) or not rows.is_floating_point() or rows.ndim != 2 or rows.shape[1] != like.shape[1]:
        raise InvalidValue(
            f"{name}: {what} is {described(rows)}; give a dense floating-point tensor (K, {like.shape[1]})."
        )


def check_integers(name: str, what: str, values: Any, count: int | None) -> None:
    """Refuse anything but a tensor ``(count,)`` of integers; of any length if ``count`` is None."""
    if not isinstance(values, Tensor):
        raise InvalidType(
            f"{name}: {what} is {shown(values)}; give a tensor of integers, as torch.as_tensor(...) makes one."
        )
    fits = values.ndim == 1 and (count is None or len(values) == count)
    if not fits or values.is_floating_point() or not usable(values):
        number = "each row" if count is None else f"each of the {count} samples, shape ({count},)"
        raise InvalidValue(
            f"{name}: {what} have shape {tuple(values.shape)} and dtype {values.dtype}; give one integer for {number}."
        )


def check_ids(
    name: str, ids: Tensor | None, others: Tensor | None, count: int, other_count: int, partner: str
) -> None:
    """Refuse identities without those that they are compared with, or of another number than the rows."""
    if (ids is None) != (others is None):
        given, missing = ("ids", partner) if others is None else (partner, "ids")
        raise InvalidValue(
            f"{name}: got {given} without {missing}, so nothing could be left out; give both or neither."
        )
    if ids is not None:
        check_integers(name, "ids", ids, count)
        check_integers(name, partner, others, other_count)


def check_temperature(name: str, value: float | Tensor, *, name_of_value: str = "temperature") -> None:
    """Refuse a temperature that is not a finite positive number or a scalar tensor."""
    if type(value) is float and 1e-8 <= value < math.inf:
        return
    if isinstance(value, Tensor):
        if value.numel() == 1 and value.dtype in FLOATS and usable(value):
            return
    elif isinstance(value, _NUMBER) and not isinstance(value, bool) and 1e-8 <= float(value) < math.inf:
        return
    kind = InvalidValue if isinstance(value, (*_NUMBER, Tensor)) else InvalidType
    raise kind(
        f"{name}: {name_of_value} is {described(value)}; give a positive number, usually between 0.05 and 1."
    )


def check_option(name: str, option: str, value: float | Tensor, interval: str) -> None:
    """Refuse a number outside an interval, as ``"[0, inf)"``; a scalar tensor passes."""
    if not (isinstance(value, Tensor) and value.numel() == 1 and value.dtype in FLOATS and usable(value)):
        check_number(name, option, value, interval)


def described(value: Any) -> str:
    """What a message says of a value: shape and type of a tensor, anything else in short."""
    if not isinstance(value, Tensor):
        return shown(value)
    if value.numel() == 1 and usable(value):
        return str(value.item())
    return f"a tensor {tuple(value.shape)} of {value.dtype} on {value.device} ({value.layout})"
