"""A step of SogCLR and iSogCLR without their state: compare, move each sample's estimator, weigh its negatives.

Papers and symbols are those of :mod:`contrastive.objectives.isogclr`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from contrastive.arguments import usable
from contrastive.checks import check_choice, check_number
from contrastive.errors import InvalidValue
from contrastive.objectives.inputs import check_temperature, check_views, described, scaled_rows
from contrastive.similarity import Gathered, gather, global_mean
from contrastive.similarity.tempered import largest_other, tempered_both, tempered_self

Negatives = Literal["all", "cross"]


@dataclass(frozen=True)
class Rules:
    """In what published implementations differ.

    Attributes:
        largest_gradient: bound of ``|D_i|``.
        first_visit: the estimator of a new sample starts from its own batch (``"sample"``); so only in epoch 0 and if
            all of the batch is new (``"batch"``); anew all through epoch 0 (``"epoch"``); or from 0 (``"average"``).
        loss: per anchor as above, or its ``"sum"`` over negatives, or ``"tempered"``: divided by ``t_i``.
        with_self: the positive counts among the candidates of ``g_i``, with ``x_ii = 0``.
        floor: a small number that is added to estimators or bounds them, in units of the largest exponential so far.
        apply_floor: ``logaddexp`` adds it, ``maximum`` bounds.
        floored: where it counts: in the ``"state"``, the ``"weights"``, the ``"gradient"`` D.
    """

    largest_gradient: float
    first_visit: Literal["sample", "batch", "epoch", "average"] = "sample"
    loss: Literal["mean", "sum", "tempered"] = "mean"
    with_self: bool = False
    floor: float = 0.0
    apply_floor: Callable[[Tensor, Tensor], Tensor] = torch.maximum
    floored: tuple[str, ...] = ()


RULES = {
    ("all", "corrected"): Rules(3.0),
    ("all", "released"): Rules(3.0, "average"),
    ("all", "libauc"): Rules(math.inf, "batch", floor=1e-8, floored=("weights",)),
    ("cross", "corrected"): Rules(5.0),
    ("cross", "released"): Rules(5.0, "average", "mean", True, 1e-10, torch.logaddexp, ("weights",)),
    ("cross", "libauc"): Rules(
        math.inf, "batch", "sum", floor=1e-20, floored=("state", "weights", "gradient")
    ),
    ("cross", "fastclip"): Rules(
        5.0, "epoch", "tempered", False, 1e-14, torch.logaddexp, ("weights", "gradient")
    ),
}


class GlobalContrast(NamedTuple):
    """What :func:`sogclr` returns: the loss, and for each sample what moves its state.

    Attributes:
        loss: scalar surrogate; over several processes this process' share.
        log_estimator: ``(B,)``, or ``(2, B)`` for two modalities: logarithms of the new moving averages.
        divergence: the same shape: KL divergence of the negatives' weights from uniform, in nats.
    """

    loss: Tensor
    log_estimator: Tensor
    divergence: Tensor


def sogclr(
    z1: Tensor,
    z2: Tensor,
    log_estimator: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    gamma: float = 0.8,
    negatives: Negatives = "all",
) -> GlobalContrast:
    """One step of SogCLR, state in and state out; the gradient of iSogCLR's temperatures is ``rho - divergence``.

    Args:
        z1: ``(B, D)``; normalised here.
        z2: ``(B, D)``, row ``b`` from the same sample.
        log_estimator: ``(B,)``, or ``(2, B)`` for two modalities: logarithms of the samples' moving averages,
            ``-inf`` for a sample that is met for the first time.
        temperature: a number, or a tensor of the shape of ``log_estimator``.
        gamma: weight of this batch in the moving average, in (0, 1].
        negatives: ``"all"``: both views of the other samples; ``"cross"``: two modalities, each the other's negatives.

    Raises:
        ValueError: for a bad shape, dtype or option, or fewer than two samples over all processes.
    """
    check_views("sogclr", (z1, z2), minimum=2)
    check_choice("sogclr", "negatives", negatives, ("all", "cross"))
    if not isinstance(temperature, Tensor):
        check_temperature("sogclr", temperature)
    check_gamma("sogclr", gamma)
    shape = (len(z1),) if negatives == "all" else (2, len(z1))
    for what, value in (("log_estimator", log_estimator), ("temperature", temperature)):
        if what == "temperature" and (not isinstance(value, Tensor) or value.numel() == 1):
            continue
        if not isinstance(value, Tensor) or (
            not usable(value) or value.shape != shape or not value.is_floating_point()
        ):
            raise InvalidValue(
                f"sogclr: {what} is {described(value)}; give a floating-point tensor {shape} for {len(z1)} samples and "
                f"negatives={negatives!r}."
            )
    views = [scaled_rows(z, 1.0) for z in (z1, z2)]
    temperatures = (
        torch.as_tensor(temperature, dtype=views[0].dtype, device=z1.device)
        .expand(shape)
        .reshape(-1, len(z1))
    )
    losses, states = [], []
    for anchors, old in zip(
        compare("sogclr", views, list(temperatures), negatives),
        log_estimator.reshape(-1, len(z1)).unbind(),
        strict=True,
    ):
        old = old.repeat_interleave(anchors.views)
        estimate = move_estimators(anchors, old, old == -torch.inf, gamma)
        losses.append(global_mean(anchors.surrogate(estimate.mass)) * anchors.views)
        sample = torch.arange(len(z1), device=z1.device).repeat_interleave(anchors.views)
        states.append(average_by_sample(sample, estimate.log_estimator, estimate.divergence)[1:])
    log_estimators, divergences = zip(*states, strict=True)
    return GlobalContrast(
        torch.stack(losses).sum(),
        torch.stack(log_estimators).view(shape),
        torch.stack(divergences).view(shape),
    )


class Anchors(NamedTuple):
    """One direction of comparison: n anchors, ``views`` of a sample side by side, and what they met."""

    log_sum: Tensor  # log sum_j exp(s_ij / t_i)
    mean: Tensor  # of s_ij, by these exponentials; the only one with a gradient, besides the positives
    positives: Tensor
    temperatures: Tensor
    num_negatives: int
    views: int
    largest: Tensor | None  # max_j s_ij, where it is asked for

    @property
    def relative(self) -> bool:
        """Whether x_ij is relative to the positive: for two modalities."""
        return self.views == 1

    @property
    def baseline(self) -> Tensor:
        """What x_ij is relative to: the positive, or 0."""
        return self.positives.detach() if self.relative else torch.zeros_like(self.positives)

    def surrogate(self, mass: Tensor) -> Tensor:
        """The loss of each anchor, whose negatives' weights sum to ``mass``."""
        return mass * self.mean - (mass * self.positives if self.relative else self.positives)


def compare(
    name: str, views: list[Tensor], temperatures: list[Tensor], negatives: str, with_largest: bool = False
) -> list[Anchors]:
    """Compare two views ``(B, D)`` of unit rows: all with all in one direction, or two modalities in both."""
    rows = gather(torch.stack(views, 1))
    if len(rows.all) < 2:
        raise InvalidValue(
            f"{name}: the global batch has {len(rows.all)} samples; give at least 2, for negatives."
        )
    local, start, alone = rows.local, rows.start, rows.all is rows.local
    positives = (views[0] * views[1]).sum(-1)
    if negatives == "all":
        own = local.flatten(0, 1)
        both = Gathered(own, own if alone else rows.all.flatten(0, 1), 2 * start)
        of_views = temperatures[0].repeat_interleave(2)
        means = tempered_self(both, of_views, group=2)
        count = len(both.all) - 2
        return [Anchors(*means, positives.repeat_interleave(2), of_views, count, 2, None)]
    a, b = (Gathered(x, x if alone else rows.all[:, v], start) for v, x in enumerate(local.unbind(1)))
    largest = (largest_other(a, b), largest_other(b, a)) if with_largest else (None, None)
    return [
        Anchors(*means, positives, temperature, len(rows.all) - 1, 1, most)
        for means, temperature, most in zip(
            tempered_both(a, b, *temperatures), temperatures, largest, strict=True
        )
    ]


class Estimate(NamedTuple):
    """``(n,)`` each: logarithm of the new estimator, sum of the weights, KL divergence of these from uniform."""

    log_estimator: Tensor
    mass: Tensor
    divergence: Tensor


@torch.no_grad()
def move_estimators(
    anchors: Anchors,
    old: Tensor,
    first: Tensor,
    gamma: float,
    rules: Rules = RULES["all", "corrected"],
    bound: Tensor | float = 0.0,
) -> Estimate:
    """Move the logarithms ``old`` of estimators; where ``first``, start from this batch."""
    present = anchors.log_sum - anchors.baseline / anchors.temperatures - math.log(anchors.num_negatives)
    candidates = present
    if rules.with_self:
        candidates = torch.logaddexp(present, torch.full_like(present, -math.log(anchors.num_negatives)))
    old = old.to(present.dtype) + (math.log1p(-gamma) if gamma < 1 else -math.inf)
    new = torch.where(first, candidates, torch.logaddexp(old, candidates + math.log(gamma)))
    floored = new
    if rules.floored:
        floored = rules.apply_floor(new, torch.zeros_like(new) + math.log(rules.floor) + bound)
    mass = (present - (floored if "weights" in rules.floored else new)).exp()
    mean = mass * (anchors.mean - anchors.baseline) / anchors.temperatures
    divergence = mean - (floored if "gradient" in rules.floored else new)
    return Estimate(floored if "state" in rules.floored else new, mass, divergence)


def average_by_sample(index: Tensor, log_estimator: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The distinct indices, and means over the anchors of each; of estimators by their logarithms."""
    order = index.argsort(stable=True)  # segments, unlike scattered sums, are the same on every process
    distinct, counts = torch.unique_consecutive(index[order], return_counts=True)

    def reduce(values: Tensor, how: str) -> Tensor:
        return torch.segment_reduce(values, how, lengths=counts)

    log_estimator = log_estimator[order]
    largest = reduce(log_estimator, "max")
    sums = (log_estimator - largest.repeat_interleave(counts)).exp()
    return distinct, largest + reduce(sums, "mean").log(), *(reduce(x[order], "mean") for x in others)


def check_gamma(name: str, gamma: float) -> None:
    """Refuse a weight of the present batch that lies outside (0, 1]."""
    check_number(name, "gamma", gamma, "(0, 1]")
