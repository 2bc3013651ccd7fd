"""Differentiable sorting networks, and how weights placed on their outputs come back to their inputs.

Petersen et al., "Differentiable Sorting Networks for Scalable Sorting and Ranking Supervision", ICML 2021, arXiv
2105.04019, and "Monotonic Differentiable Sorting Networks", ICLR 2022, arXiv 2203.09630.

A sorting network is a fixed list of layers of comparators. A comparator meets two wires with values ``a`` and ``b``,
where the smaller value belongs on the first. With the difference ``d = b - a`` and a sigmoid ``alpha``, the soft
comparator keeps the share ``alpha(d)`` of each value on its wire and swaps the rest:

    a' = a + (1 - alpha) d          b' = b - (1 - alpha) d

A layer is thus a mixing matrix ``M_l``, and ``P = M_1 ... M_L`` the soft permutation: ``sorted = values @ P``. Its
rows and columns sum to 1. :func:`back_through_network` computes ``P @ weights`` without ``P``: one sweep over the
layers finds the shares, a second one in reverse order carries the weights back. The gradient takes two more.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from contrastive.objectives.inputs import check_choice

NetworkName = Literal["odd_even", "bitonic"]
ComparatorName = Literal["cauchy", "logistic", "logistic_phi", "gaussian", "reciprocal", "optimal"]
Comparator = Callable[[Tensor], Tensor]


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
    if values.ndim != 2 or not values.is_floating_point():
        raise ValueError(
            f"soft_sort: values have shape {tuple(values.shape)} and dtype {values.dtype}; expected floating-point "
            "rows (R, n)."
        )
    keep = build_comparator("soft_sort", comparator, steepness, exponent)
    check_choice("soft_sort", "network", network, ("odd_even", "bitonic"))
    num_rows, n = values.shape
    wires = values.T[:, :, None].expand(n, num_rows, n)
    outputs = torch.eye(n, dtype=values.dtype, device=values.device)[:, None].expand_as(wires)
    layers = build_network(network, n, values.device)
    permutation = back_through_network(wires.flatten(1), outputs.flatten(1), layers, keep)
    permutation = permutation.view(n, num_rows, n).transpose(0, 1)
    return torch.einsum("ri,rij->rj", values, permutation), permutation


# ---------------------------------------------------------------------- comparators


def _cauchy(d: Tensor, steepness: float) -> Tensor:
    return torch.atan(steepness * d) / math.pi + 0.5


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
"""``alpha(d, steepness)``: the share that stays on its wire, 1/2 for equal values."""


def build_comparator(name: str, comparator: str, steepness: float, exponent: float) -> Comparator:
    """``alpha(d)`` for these options, checked; ``name`` is whose options they are."""
    check_choice(name, "comparator", comparator, tuple(COMPARATORS))
    if not (math.isfinite(steepness) and steepness > 0):
        raise ValueError(f"{name}: steepness is {steepness}; give a finite number above 0, usually 1 to 100.")
    if not 0 <= exponent < 1:
        raise ValueError(f"{name}: exponent is {exponent}; give a number in [0, 1).")
    options = {"exponent": exponent} if comparator == "logistic_phi" else {}
    return partial(COMPARATORS[comparator], steepness=steepness, **options)


# ---------------------------------------------------------------------- networks


class Layer(NamedTuple):
    """Comparators that touch different wires: the smaller value of each pair goes to ``low``."""

    low: slice | Tensor
    high: slice | Tensor
    comparators: slice
    """Where they stand among the comparators of the whole network."""


@lru_cache(maxsize=64)
def build_network(network: str, n: int, device: torch.device) -> tuple[Layer, ...]:
    """Layers that sort ``n`` wires; ``"merge"`` sorts only what ascends first and then descends."""
    pairs: list[tuple[Any, Any, int]] = []
    if network == "odd_even":
        for layer in range(n):
            first = layer % 2
            pairs.append((slice(first, n - 1, 2), slice(first + 1, n, 2), (n - first) // 2))
    else:
        depth = (n - 1).bit_length()
        # A network for the next power of two without its first wires, which would hold the smallest values.
        dropped = 2**depth - n
        for block in range(depth - 1 if network == "merge" else 0, depth):
            for stride in (2**bit for bit in range(block, -1, -1)):
                low, high = [], []
                for i in range(dropped, 2**depth):
                    if not i & stride:
                        descending = i & 2 ** (block + 1)
                        low.append((i + stride if descending else i) - dropped)
                        high.append((i if descending else i + stride) - dropped)
                pairs.append((torch.tensor(low, device=device), torch.tensor(high, device=device), len(low)))
    layers, start = [], 0
    for low, high, count in pairs:
        if count:
            layers.append(Layer(low, high, slice(start, start + count)))
        start += count
    return tuple(layers)


# ---------------------------------------------------------------------- sweeps


def back_through_network(
    values: Tensor, weights: Tensor, layers: tuple[Layer, ...], keep: Comparator
) -> Tensor:
    """``P @ weights`` for the soft permutation ``P`` of each column of ``values``: what each input gets back.

    Args:
        values: ``(n, R)``; wires come first, so that each is contiguous.
        weights: placed on the outputs, ``(n, R)`` or ``(n, 1)``, without gradient.
        layers: from :func:`build_network`.
        keep: from :func:`build_comparator`.

    Returns:
        ``(n, R)``. Takes ``O(n**2)`` numbers a column with odd-even layers, for which ``P`` would take ``O(n**3)``.
    """
    result: Tensor = _BackThroughNetwork.apply(values, weights, layers, keep)
    return result


class _BackThroughNetwork(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weights: Tensor, layers: tuple[Layer, ...], keep: Comparator
    ) -> Tensor:
        wires = values.clone(memory_format=torch.contiguous_format)
        carried = weights.expand_as(wires).clone(memory_format=torch.contiguous_format)
        num_comparators = layers[-1].comparators.stop if layers else 0
        differences, swapped, contrasts = wires.new_empty(3, num_comparators, wires.shape[1])
        for low, high, here in layers:
            difference = torch.sub(wires[high], wires[low], out=differences[here])
            share = torch.sub(1, keep(difference), out=swapped[here])
            _move(wires, high, low, share * difference)
        for low, high, here in reversed(layers):
            contrast = torch.sub(carried[low], carried[high], out=contrasts[here])
            _move(carried, low, high, swapped[here] * contrast)
        ctx.save_for_backward(values, weights, differences, swapped, contrasts)
        ctx.layers, ctx.keep = layers, keep
        return carried

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        values, weights, differences, swapped, contrasts = ctx.saved_tensors
        layers, keep = ctx.layers, ctx.keep
        if torch.is_grad_enabled():  # create_graph=True
            result = _plain(values, weights, layers, keep)
            return torch.autograd.grad(result, values, grad, create_graph=True)[0], None, None, None
        grad = grad.clone(memory_format=torch.contiguous_format)
        # Through the second sweep, from inputs to outputs: the gradient of every share.
        from_shares = torch.empty_like(contrasts)
        for low, high, here in layers:
            contrast = grad[low] - grad[high]
            torch.mul(contrasts[here], contrast, out=from_shares[here])
            _move(grad, low, high, contrast.mul_(swapped[here]))
        # Through the first sweep, from outputs to inputs: alpha'(d) turns gradients of shares into those of values.
        slopes = _slopes(keep, differences)
        from_shares *= slopes
        passed = slopes.mul_(differences).neg_().add_(swapped)
        grad.zero_()
        for low, high, here in reversed(layers):
            contrast = grad[low] - grad[high]
            _move(grad, low, high, torch.addcmul(from_shares[here], passed[here], contrast))
        return grad, None, None, None


def _move(wires: Tensor, source: slice | Tensor, target: slice | Tensor, amount: Tensor) -> None:
    """Take ``amount`` from some wires and give it to others, in place."""
    for where, sign in ((source, -1), (target, 1)):
        if isinstance(where, slice):
            wires[where].add_(amount, alpha=sign)
        else:
            wires.index_add_(0, where, amount, alpha=sign)


@torch.enable_grad()
def _slopes(keep: Comparator, differences: Tensor) -> Tensor:
    """``alpha'(d)``."""
    differences = differences.detach().requires_grad_()
    return torch.autograd.grad(keep(differences).sum(), differences)[0]


def _plain(values: Tensor, weights: Tensor, layers: tuple[Layer, ...], keep: Comparator) -> Tensor:
    """The same two sweeps, differentiable any number of times."""
    wires, carried, swapped = values.clone(), weights.expand_as(values).clone(), []
    for low, high, _ in layers:
        difference = wires[high] - wires[low]
        swapped.append(1 - keep(difference))
        wires = wires.clone()
        _move(wires, high, low, swapped[-1] * difference)
    for (low, high, _), share in zip(reversed(layers), reversed(swapped), strict=True):
        amount = share * (carried[low] - carried[high])
        carried = carried.clone()
        _move(carried, low, high, amount)
    return carried
