"""Optimisers and their schedule, stated in optimiser steps and chosen by plain arguments."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from contrastive.arguments import checked, checked_fields
from contrastive.errors import InvalidValue


@checked_fields
@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser, its learning rate and its schedule: linear warm-up, then half a cosine.

    Every optimiser step has its own learning rate, so a run of any length, in epochs or in steps and with or
    without gradient accumulation, ends where the cosine ends.

    Args:
        name: ``"adamw"``, ``"sgd"`` (with momentum) or ``"lars"`` (:class:`LARS`, for very large batches).
        learning_rate: Peak learning rate, before the scaling of ``reference_batch``.
        weight_decay: Decoupled for AdamW, added to the gradient for SGD and LARS. Only matrices and kernels
            decay; biases, norm layers and scalars such as a temperature never do.
        momentum: Of SGD and LARS. AdamW keeps its usual (0.9, 0.999).
        trust: Trust coefficient of LARS.
        warmup_fraction: Share of all steps with a linearly growing learning rate, in [0, 1).
        warmup_steps: The same as a number of steps; overrules ``warmup_fraction``.
        final_fraction: Learning rate of the last step as a share of the peak, in [0, 1].
        reference_batch: If above 0, the peak is ``learning_rate * global batch / reference_batch`` (Goyal et
            al. 2017, "Accurate, Large Minibatch SGD"; SimCLR uses 256). The global batch counts devices and
            accumulation.

    Raises:
        ValueError: If a number lies outside its range or ``name`` is unknown.
    """

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    trust: float = 1e-3
    warmup_fraction: float = 0.05
    warmup_steps: int | None = None
    final_fraction: float = 0.0
    reference_batch: int = 0

    def __post_init__(self) -> None:
        if self.name not in ("adamw", "sgd", "lars"):
            raise InvalidValue(f"optimizer.name is {self.name!r}; choose 'adamw', 'sgd' or 'lars'.")
        ranges = {
            "learning_rate": (self.learning_rate > 0, "a number above 0"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "momentum": (0 <= self.momentum < 1, "a number in [0, 1)"),
            "trust": (self.trust > 0, "a number above 0"),
            "warmup_fraction": (
                0 <= self.warmup_fraction < 1,
                "a number in [0, 1); for steps use warmup_steps",
            ),
            "warmup_steps": (self.warmup_steps is None or self.warmup_steps >= 0, "0 or more, or None"),
            "final_fraction": (0 <= self.final_fraction <= 1, "a number in [0, 1]"),
            "reference_batch": (self.reference_batch >= 0, "a batch size, or 0 for no scaling"),
        }
        for name, (valid, accepted) in ranges.items():
            if not valid:
                raise InvalidValue(f"optimizer.{name} is {getattr(self, name)}; give {accepted}.")

    def peak(self, global_batch: int) -> float:
        """Highest learning rate of a run with ``global_batch`` samples for each optimiser step."""
        return self.learning_rate * (global_batch / self.reference_batch if self.reference_batch else 1.0)

    def warmup(self, total_steps: int) -> int:
        """Number of warm-up steps in a run of ``total_steps``."""
        return (
            self.warmup_steps if self.warmup_steps is not None else round(self.warmup_fraction * total_steps)
        )


def build_optimizer(
    config: OptimizerConfig, module: nn.Module, total_steps: int, global_batch: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Build the optimiser of the trainable parameters of ``module`` and a schedule to be stepped with it.

    Args:
        config: What to build.
        module: Owner of the parameters.
        total_steps: Optimiser steps of the whole run.
        global_batch: Samples that contribute to one optimiser step.

    Raises:
        ValueError: If the warm-up is not shorter than the run, or ``module`` has nothing to train.
    """
    warmup = config.warmup(total_steps)
    if warmup >= total_steps:
        raise InvalidValue(
            f"optimizer.warmup_steps is {warmup}, but the run has only {total_steps} steps; "
            "give a number below that or train longer."
        )
    groups = parameter_groups(module, config.weight_decay)
    peak = config.peak(global_batch)
    for group in groups:
        group["lr"] = peak * group.pop("scale")
    optimizer: torch.optim.Optimizer
    if config.name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=peak)
    elif config.name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=peak, momentum=config.momentum)
    else:
        optimizer = LARS(groups, lr=peak, momentum=config.momentum, trust=config.trust)
    return optimizer, LambdaLR(optimizer, warmup_cosine(total_steps, warmup, config.final_fraction))


def restore_options(
    optimizer: torch.optim.Optimizer, scheduler: LambdaLR, options: list[dict[str, Any]]
) -> None:
    """Give an optimiser whose state was loaded from a checkpoint the options of this run.

    A checkpoint restores learning rate, weight decay and so on along with the state, over whatever was asked
    for.

    Args:
        optimizer: The optimiser; its state stays.
        scheduler: Its schedule; the place in it stays.
        options: :func:`group_options` of the optimiser before anything was loaded.
    """
    for group, wanted in zip(optimizer.param_groups, options, strict=True):
        group.update(wanted)
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    for group, rate, share in zip(
        optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group["lr"] = rate * share(scheduler.last_epoch)


def group_options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the options of every parameter group."""
    return [
        {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    ]


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters into those that decay (two or more dimensions) and those that do not.

    Biases, the gains of norm layers and scalars are recognised by their shape. ``adapt`` tells LARS the same:
    the exempt ones take plain momentum steps (as in SimCLR's recipe). ``scale`` is the share of the learning rate, 1
    unless a method ``learning_rate_scales`` of the module names another for a parameter; groups of 1 come first.

    Raises:
        ValueError: If no parameter of ``module`` requires a gradient.
    """
    named: dict[str, float] = getattr(module, "learning_rate_scales", dict)()
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((named.get(name, 1.0), parameter.ndim >= 2), []).append(parameter)
    if not groups:
        raise InvalidValue(
            f"{type(module).__name__} has no parameter that requires a gradient; "
            "give an encoder or a projector that is not frozen."
        )
    return [
        {
            "params": groups[key],
            "weight_decay": weight_decay if key[1] else 0.0,
            "adapt": key[1],
            "scale": key[0],
        }
        for key in sorted(groups, reverse=True)
    ]


def warmup_cosine(total_steps: int, warmup_steps: int, final_fraction: float = 0.0) -> Callable[[int], float]:
    """Return the learning rate of step 0, 1, ... as a share of the peak.

    Step ``s`` of the warm-up has ``(s + 1) / (warmup_steps + 1)``, so that no step is wasted on a rate of
    zero; the first step after it has 1; and the cosine would reach ``final_fraction`` right after the last
    step.
    """

    def share(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))

    return share


class LARS(torch.optim.Optimizer):
    """Momentum SGD whose step is scaled, layer by layer, to the size of the weights.

    You, Gitman, Ginsburg 2017, "Large Batch Training of Convolutional Networks", algorithm 1, with gradient
    ``g``, weights ``w`` and velocity ``v`` of one layer::

        local rate = trust * |w| / (|g| + weight_decay * |w|)
        v = momentum * v + lr * local rate * (g + weight_decay * w)
        w = w - v

    The local rate is 1 where a norm is zero, and in groups with ``adapt=False`` (biases and norm layers).

    Args:
        params: Parameters or groups; a group may set ``adapt``.
        lr: Global learning rate.
        momentum: Momentum of the velocity.
        weight_decay: Weight decay.
        trust: Trust coefficient.
    """

    @checked
    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; ``closure``, if given, recomputes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        direction = gradient.add(weight, alpha=group["weight_decay"])
        if group["adapt"]:
            size, slope = weight.norm(), gradient.norm()
            rate = group["trust"] * size / (slope + group["weight_decay"] * size)
            direction = direction * torch.where((size > 0) & (slope > 0), rate, torch.ones_like(rate))
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        velocity: Tensor = state["velocity"]
        velocity.mul_(group["momentum"]).add_(direction, alpha=group["lr"])
        weight.sub_(velocity)
