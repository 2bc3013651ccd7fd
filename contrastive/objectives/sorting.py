"""Differentiable sorting networks, and how weights placed on their outputs come back to their inputs.

Petersen et al., "Differentiable Sorting Networks for Scalable Sorting and Ranking Supervision", ICML 2021, arXiv
2105.04019, and "Monotonic Differentiable Sorting Networks", ICLR 2022, arXiv 2203.09630.

A sorting network is a fixed list of layers of comparators. A comparator meets two wires with values ``a`` and ``b``,
where the smaller value belongs on the first. With the difference ``d = a - b`` and a sigmoid ``alpha``, the soft
comparator swaps the share ``alpha(d)`` of each value and keeps the rest on its wire:

    a' = a - alpha(d) d          b' = b + alpha(d) d

A layer is thus a mixing matrix ``M_l``, and ``P = M_1 ... M_L`` the soft permutation: ``sorted = values @ P``. Its
rows and columns sum to 1. :func:`back_through_network` computes ``P @ weights`` without ``P``: one sweep over the
layers finds the shares, a second one in reverse order carries the weights back. The gradient takes two more.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from contrastive.arguments import usable
from contrastive.checks import check_choice, check_number, shown
from contrastive.errors import InvalidValue

NetworkName = Literal["odd_even", "bitonic"]
ComparatorName = Literal["cauchy", "logistic", "logistic_phi", "gaussian", "reciprocal", "optimal"]
Comparator = Callable[[Tensor], Tensor]
Wires = slice | Tensor


def soft_sort(
    values: Tensor,
    *,
    steepness: float = 10.0,
    network: NetworkName = "odd_even",
    comparator: ComparatorName = "cauchy",
    exponent: float = 0.25,
) -> tuple[Tensor, Tensor]:
    """Sort rows softly, in ascending order.

    Args:
        values: ``(R, n)``.
        steepness: slope of the comparator; the sort becomes exact as it grows.
        network: ``"odd_even"``, n layers of neighbours, or ``"bitonic"``, about ``log2(n)**2 / 2`` layers.
        comparator: one of :data:`COMPARATORS`.
        exponent: read by the comparator ``"logistic_phi"``.

    Returns:
        The sorted rows ``(R, n)``, and the soft permutations ``(R, n, n)``: entry ``i, j`` is the share of input i
        in output j.

    Raises:
        ValueError: for a bad shape or option.
    """
    if not usable(values) or values.ndim != 2 or not values.is_floating_point():
        given = (
            f"have shape {tuple(values.shape)} and dtype {values.dtype}"
            if isinstance(values, Tensor)
            else "are none"
        )
        raise InvalidValue(f"soft_sort: values {given}; expected dense floating-point rows (R, n).")
    alpha = build_comparator("soft_sort", comparator, steepness, exponent)
    check_choice("soft_sort", "network", network, ("odd_even", "bitonic"))
    num_rows, n = values.shape
    wires = values.T[:, :, None].expand(n, num_rows, n)
    outputs = torch.eye(n, dtype=values.dtype, device=values.device)[:, None].expand_as(wires)
    layers = build_network(network, n, values.device)
    permutation = back_through_network(wires.flatten(1), outputs.flatten(1), layers, alpha)
    permutation = permutation.view(n, num_rows, n).transpose(0, 1)
    return torch.einsum("ri,rij->rj", values, permutation), permutation


# ---------------------------------------------------------------------- comparators


def _cauchy(d: Tensor, steepness: float) -> Tensor:
    return torch.atan(steepness * d).mul_(1 / math.pi).add_(0.5)


def _logistic(d: Tensor, steepness: float) -> Tensor:
    return torch.sigmoid(steepness * d)


def _logistic_phi(d: Tensor, steepness: float, exponent: float) -> Tensor:
    return torch.sigmoid(steepness * d / (d.abs() + 1e-10) ** exponent)


def _gaussian(d: Tensor, steepness: float) -> Tensor:
    share: Tensor = torch.special.ndtr(steepness * d)
    return share


def _reciprocal(d: Tensor, steepness: float) -> Tensor:
    v = steepness * d
    return 0.5 * v / (2 + v.abs()) + 0.5


def _optimal(d: Tensor, steepness: float) -> Tensor:
    v = steepness * d
    tail = 0.5 - 1 / (16 * (v.abs() + 1e-10))
    return torch.where(v.abs() <= 0.25, v, v.sign() * tail) + 0.5


COMPARATORS: dict[str, Callable[..., Tensor]] = {
    "cauchy": _cauchy,
    "logistic": _logistic,
    "logistic_phi": _logistic_phi,
    "gaussian": _gaussian,
    "reciprocal": _reciprocal,
    "optimal": _optimal,
}
"""``alpha(d, steepness)``: the share that is swapped, 1/2 for equal values; ``alpha(-d)`` stays on its wire."""


def build_comparator(name: str, comparator: str, steepness: float, exponent: float) -> Comparator:
    """``alpha(d)`` for these options, checked; ``name`` is whose options they are."""
    check_choice(name, "comparator", comparator, tuple(COMPARATORS))
    if not (isinstance(steepness, int | float | np.number) and math.isfinite(steepness) and steepness > 0):
        raise InvalidValue(
            f"{name}: steepness is {shown(steepness)}; give a finite number above 0, usually 1 to 100."
        )
    steepness, exponent = float(steepness), check_number(name, "exponent", exponent, "[0, 1)")
    options = {"exponent": exponent} if comparator == "logistic_phi" else {}
    return partial(COMPARATORS[comparator], steepness=steepness, **options)


# ---------------------------------------------------------------------- networks


class Layer(NamedTuple):
    """Comparators that touch different wires: the smaller value of each pair goes to ``low``."""

    low: Wires
    high: Wires


@lru_cache(maxsize=64)
def build_network(network: str, n: int, device: torch.device) -> tuple[Layer, ...]:
    """Layers that sort ``n`` wires; ``"merge"`` sorts only what ascends first and then descends."""
    if network == "odd_even":
        starts = [layer % 2 for layer in range(n) if layer % 2 < n - 1]
        return tuple(Layer(slice(start, n - 1, 2), slice(start + 1, n, 2)) for start in starts)
    depth = (n - 1).bit_length()
    # A network for the next power of two without its first wires, which would hold the smallest values.
    dropped = 2**depth - n
    layers = []
    for block in range(depth - 1 if network == "merge" else 0, depth):
        for stride in (2**bit for bit in range(block, -1, -1)):
            first = [i for i in range(dropped, 2**depth) if not i & stride]
            ascending = [i & 2 ** (block + 1) == 0 for i in first]
            low = [i if up else i + stride for i, up in zip(first, ascending, strict=True)]
            high = [i + stride if up else i for i, up in zip(first, ascending, strict=True)]
            layers.append(Layer(*(torch.tensor(wires, device=device) - dropped for wires in (low, high))))
    return tuple(layers)


# ---------------------------------------------------------------------- sweeps


def back_through_network(
    values: Tensor, weights: Tensor, layers: tuple[Layer, ...], alpha: Comparator, *, remember: bool = True
) -> Tensor:
    """``P @ weights`` for the soft permutation ``P`` of each column of ``values``: what each input gets back.

    Args:
        values: ``(n, R)``; wires come first, so that each is contiguous.
        weights: placed on the outputs, ``(n, R)`` or ``(n, 1)``, without gradient.
        layers: from :func:`build_network`.
        alpha: from :func:`build_comparator`.
        remember: keep what the sweeps found for backward; otherwise they are made again there.

    Returns:
        ``(n, R)``. Takes ``O(n**2)`` numbers a column with odd-even layers, for which ``P`` would take ``O(n**3)``.
    """
    result: Tensor = _BackThroughNetwork.apply(values, weights, layers, alpha, remember)
    return result


class _BackThroughNetwork(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weights: Tensor,
        layers: tuple[Layer, ...],
        alpha: Comparator,
        remember: bool,
    ) -> Tensor:
        carried, found = _sweep(values, weights, layers, alpha)
        ctx.save_for_backward(values, weights, *(found if remember else ()))
        ctx.layers, ctx.alpha = layers, alpha
        return carried

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (values, weights, *found), layers, alpha = ctx.saved_tensors, ctx.layers, ctx.alpha
        if torch.is_grad_enabled():  # create_graph=True
            result = _plain(values, weights, layers, alpha)
            return torch.autograd.grad(result, values, grad, create_graph=True)[0], None, None, None, None
        depth = len(layers)
        found = found or _sweep(values, weights, layers, alpha)[1]
        differences, swapped, contrasts = found[:depth], found[depth : 2 * depth], found[2 * depth :]
        grad = grad.clone(memory_format=torch.contiguous_format)
        # Through the second sweep, from inputs to outputs: what the shares do to the weights carried back.
        from_shares = []
        for (low, high), share, contrast in zip(layers, swapped, contrasts, strict=True):
            a, b = grad[low], grad[high]
            contrast_of_grad = a - b
            _move(grad, low, high, a, b, share * contrast_of_grad)
            from_shares.append(contrast_of_grad.mul_(contrast))
        # Through the first sweep, from outputs to inputs: what the values do to the shares and to each other.
        grad.zero_()
        slopes = _slopes(alpha, differences)
        for (low, high), share, difference in zip(
            reversed(layers), reversed(swapped), reversed(differences), strict=True
        ):
            slope, from_share = slopes.pop(), from_shares.pop()
            passed = torch.addcmul(share, slope, difference)
            a, b = grad[low], grad[high]
            _move(grad, low, high, a, b, from_share.mul_(slope).addcmul_(passed, a - b))
        return grad, None, None, None, None


def _sweep(
    values: Tensor, weights: Tensor, layers: tuple[Layer, ...], alpha: Comparator
) -> tuple[Tensor, list[Tensor]]:
    """The weights carried back; of every layer the differences, then the shares swapped, then those of the weights."""
    wires = values.clone(memory_format=torch.contiguous_format)
    carried = weights.expand_as(wires).clone(memory_format=torch.contiguous_format)
    differences, swapped, contrasts = [], [], []
    for low, high in layers:
        a, b = wires[low], wires[high]
        difference = a - b
        share = alpha(difference)
        _move(wires, low, high, a, b, share * difference)
        differences.append(difference)
        swapped.append(share)
    for (low, high), share in zip(reversed(layers), reversed(swapped), strict=True):
        a, b = carried[low], carried[high]
        contrast = a - b
        _move(carried, low, high, a, b, share * contrast)
        contrasts.append(contrast)
    return carried, [*differences, *swapped, *contrasts[::-1]]


def _move(wires: Tensor, low: Wires, high: Wires, a: Tensor, b: Tensor, amount: Tensor) -> None:
    """Take ``amount`` from ``a = wires[low]`` and give it to ``b = wires[high]``."""
    a.sub_(amount)
    b.add_(amount)
    if isinstance(low, Tensor):  # then they are copies
        wires[low], wires[high] = a, b


@torch.enable_grad()
def _slopes(alpha: Comparator, differences: Sequence[Tensor]) -> list[Tensor]:
    """``alpha'(d)`` of every layer."""
    if not differences:
        return []
    together = torch.cat(list(differences)).requires_grad_()
    slopes = torch.autograd.grad(alpha(together).sum(), together)[0]
    return list(torch.split(slopes, [len(difference) for difference in differences]))


def _plain(values: Tensor, weights: Tensor, layers: tuple[Layer, ...], alpha: Comparator) -> Tensor:
    """The same two sweeps, differentiable any number of times."""
    wires, carried, swapped = values, weights.expand_as(values), []
    for low, high in layers:
        a, b = wires[low], wires[high]
        swapped.append(alpha(a - b))
        moved = swapped[-1] * (a - b)
        wires = wires.clone()
        wires[low], wires[high] = a - moved, b + moved
    for (low, high), share in zip(reversed(layers), reversed(swapped), strict=True):
        a, b = carried[low], carried[high]
        moved = share * (a - b)
        carried = carried.clone()
        carried[low], carried[high] = a - moved, b + moved
    return carried
