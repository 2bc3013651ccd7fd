r"""SogCLR and iSogCLR: contrast with the whole data set through one running normaliser, and one temperature, a sample.

Yuan, Wu, Qiu, Du, Zhang, Zhou, Yang, "Provable Stochastic Optimization for Global Contrastive Learning: Small Batch
Does Not Harm Performance", ICML 2022, arXiv 2202.12387 (SogCLR). Qiu, Hu, Yuan, Zhou, Zhang, Yang, "Not All Semantics
are Created Equal: Contrastive Self-supervised Learning with Automatic Temperature Individualization", ICML 2023, arXiv
2305.11965 (iSogCLR). The variant ``"fastclip"``: Wei et al., "FastCLIP", 2024, arXiv 2407.01445.

With similarities ``h_i(z) = sim(i, z) - sim(i, i+)`` and all other samples as negatives, iSogCLR minimises

    F = mean_i [ t_i log E_z exp(h_i(z) / t_i) + t_i rho ]        t_min <= t_i <= t_max

over the network and over a temperature ``t_i`` a sample; SogCLR has one constant temperature and no rho. A batch only
estimates the expectation, so each sample keeps a moving average of it. One step, for anchors i of the batch with m
negatives j, similarities ``x_ij`` (``s_ij`` with two views of one kind, ``s_ij - s_ii+`` with two modalities):

    g_i = mean_j exp(x_ij / t_i)                               estimate from this batch
    s_i <- (1 - gamma) s_i + gamma g_i                         *estimator*, kept as its logarithm
    loss_i = mean_j [exp(x_ij / t_i) / s_i] s_ij - s_ii+       weights held constant
    D_i = log s_i + rho - mean_j [exp(x_ij / t_i) / s_i] x_ij / t_i      = dF/dt_i = rho - KL(weights | uniform)
    u_i <- (1 - beta) u_i + beta clip(D_i)                     *momentum*
    t_i <- clip(t_i - eta u_i, t_min, t_max)                   *temperature*

The loss is a surrogate: its gradient is that of F, its value (it may be negative) is not F. A temperature settles
where the weights have KL divergence rho, in nats, from uniform: high for samples among many similar ones.
"""

import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from contrastive.arguments import checked
from contrastive.checks import check_choice, check_number
from contrastive.errors import InvalidValue
from contrastive.objectives.base import Objective
from contrastive.objectives.global_contrast import (
    RULES,
    Anchors,
    Estimate,
    Negatives,
    average_by_sample,
    check_gamma,
    compare,
    move_estimators,
)
from contrastive.objectives.inputs import check_temperature, check_views, scaled_rows
from contrastive.objectives.state import SampleState
from contrastive.similarity import Gathered, gather, global_mean
from contrastive.similarity.rows import at_least_float32


class SogCLR(Objective):
    """Contrast with all samples of the data set, through a running estimate of each one's normaliser.

    State is kept for every sample, so it needs ``index``; two modalities may have an index each. The state moves in
    training mode only, is the same on all processes, and is saved with the module's.

    Args:
        temperature: ``t``.
        gamma: weight of the present batch in the moving average, in (0, 1]; the last value of a schedule.
        gamma_schedule: ``"constant"``, or ``"cosine"`` from 1 in epoch 0 to ``gamma``, which needs :meth:`set_epoch`.
        gamma_decay_epochs: epochs of that cosine; by default half of the run.
        negatives: ``"all"``: two views, negatives from both; ``"cross"``: two modalities, each the other's negatives.
        variant: ``"corrected"``; or as published: by the authors of iSogCLR (``"released"``), in ``"libauc"``.
        num_samples: size of the data set; by default :meth:`setup` tells.
        num_second_samples: number of ids of the second modality; by default as many. Read by ``"cross"``.
        allow_duplicates: average over an index that a batch has twice; False raises an error.
        normalize: divide rows by their length first; switch off only if that was done already.

    Raises:
        ValueError: for an option out of range.
    """

    requires = ("index",)
    _variants: tuple[str, ...] = ("corrected", "released", "libauc")

    @checked
    def __init__(
        self,
        temperature: float = 0.1,
        gamma: float = 0.8,
        gamma_schedule: Literal["constant", "cosine"] = "constant",
        gamma_decay_epochs: int | None = None,
        negatives: Negatives = "all",
        variant: Literal["corrected", "released", "libauc"] = "corrected",
        num_samples: int | None = None,
        num_second_samples: int | None = None,
        allow_duplicates: bool = True,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_temperature(name, temperature)
        check_gamma(name, gamma)
        check_choice(name, "gamma_schedule", gamma_schedule, ("constant", "cosine"))
        check_choice(name, "negatives", negatives, ("all", "cross"))
        variants = tuple(v for v in self._variants if (negatives, v) in RULES)
        check_choice(name, f"variant (with negatives={negatives!r})", variant, variants)
        self.temperature, self.gamma = temperature, gamma
        self.gamma_schedule, self.gamma_decay_epochs = gamma_schedule, gamma_decay_epochs
        self.negatives, self.num_second_samples = negatives, num_second_samples
        self.allow_duplicates, self.normalize = allow_duplicates, normalize
        self._rules = RULES[negatives, variant]
        self._bounded = negatives == "cross" and bool(self._rules.floored)
        initial = {"log_estimator": -math.inf, **({"bound": 0.0} if self._bounded else {}), **self._initial()}
        self.state = SampleState(**initial)
        self.second_state = SampleState(**initial) if negatives == "cross" else None
        self.register_buffer("epochs", torch.tensor([-1, -1]))  # the present one and their number, once told
        if num_samples is not None:
            self.setup(num_samples)

    epochs: Tensor

    def _initial(self) -> dict[str, float]:
        """Further state of a sample and its initial value."""
        return {}

    def setup(self, num_samples: int, *, num_classes: int = 0, dim: int | None = None) -> None:
        """Make room for the state of ``num_samples`` samples; what is known of the present ones is kept."""
        self.state.grow(num_samples)
        if self.second_state is not None:
            self.second_state.grow(self.num_second_samples or num_samples)

    def set_epoch(self, epoch: int, num_epochs: int) -> None:
        """Say which epoch begins, counted from 0, and of how many; schedules follow it."""
        self.epochs.copy_(torch.tensor([epoch, num_epochs]))

    def state_table(self) -> dict[str, Tensor]:
        """The state of all samples on the CPU, ``(N,)`` by name; of a second modality by ``second_*``.

        Estimators are given as logarithms, because they may leave the range of floats. ``visited`` is bool.
        """
        table = {}
        for prefix, state in (("", self.state), ("second_", self.second_state)):
            columns = {} if state is None else state.table()
            if state is not None:
                columns["visited"] = columns["log_estimator"] > -torch.inf
            table.update({prefix + name: column for name, column in columns.items()})
        return table

    def negatives_per_anchor(self, batch_size: int, num_views: int) -> int:
        """Negatives that one anchor meets in a step."""
        return (2 if self.negatives == "all" else 1) * (batch_size - 1)

    def forward(
        self,
        *views: Tensor,
        index: Tensor | None = None,
        labels: Tensor | None = None,
        second_index: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of two views ``(B, D)``; in training mode, move the state of their samples.

        Args:
            *views: two views, or two modalities; row ``b`` of both belongs to one sample.
            index: ``(B,)`` integers, each sample's position in the data set.
            labels: must be None: samples of one class are negatives like all others.
            second_index: ``(B,)`` integers for the second modality, where these differ: an image may have many texts.

        Raises:
            ValueError: for other than two views, labels, a bad index, or fewer than two samples over all processes.
        """
        name = type(self).__name__
        check_views(name, views, minimum=2)
        if len(views) > 2 or labels is not None:
            given = f"{len(views)} views" if labels is None else "labels, which it does not use"
            raise InvalidValue(f"{name}: got {given}; call it with two views and an index.")
        rows = [scaled_rows(z, 1.0) if self.normalize else at_least_float32(z) for z in views]
        states, places = [self.state], [self._check_index("index", index, self.state, len(rows[0]))]
        if self.second_state is not None:
            second_index = index if second_index is None else second_index
            states.append(self.second_state)
            places.append(self._check_index("second_index", second_index, self.second_state, len(rows[0])))
        temperatures = [
            self._temperatures(state, place.local, rows[0].dtype)
            for state, place in zip(states, places, strict=True)
        ]
        self.log(temperature=torch.stack([t.mean() for t in temperatures]).mean())
        directions = compare(name, rows, temperatures, self.negatives, self._bounded)
        losses = [self._contrast(*parts) for parts in zip(directions, states, places, strict=True)]
        return torch.stack(losses).sum()

    def _contrast(self, anchors: Anchors, state: SampleState, place: Gathered) -> Tensor:
        """The loss in one direction; in training mode also moves the state."""
        rules, index = self._rules, place.local.repeat_interleave(anchors.views)
        old, gamma = state.read(index), self._present_gamma()
        bound = torch.zeros_like(anchors.temperatures)
        if anchors.largest is not None:
            bound = ((anchors.largest - anchors.baseline) / anchors.temperatures).maximum(old["bound"])
        estimate = move_estimators(
            anchors, old["log_estimator"], self._first(old, state, place, gamma), gamma, rules, bound
        )
        if self.training:
            self._remember(state, place, anchors, estimate, bound)
        loss = anchors.surrogate(estimate.mass)
        if rules.loss == "mean":
            return global_mean(loss) * anchors.views
        if rules.loss == "sum":
            return global_mean(loss) * (anchors.num_negatives / 2)
        loss = loss / (2 * anchors.temperatures)
        return global_mean(loss - loss.detach() + estimate.mass)  # the published value is of the weights

    def _present_gamma(self) -> float:
        told = self.gamma_schedule == "cosine" or self._rules.first_visit == "epoch"
        epoch, num_epochs = self._epochs() if told else (0, 0)
        if self._rules.first_visit == "epoch" and epoch == 0:
            return 1.0
        if self.gamma_schedule == "constant":
            return self.gamma
        decay = self.gamma_decay_epochs or max(num_epochs // 2, 1)
        return self.gamma + (1 - self.gamma) * (1 + math.cos(math.pi * min(epoch / decay, 1.0))) / 2

    def _epochs(self) -> tuple[int, int]:
        epoch, num_epochs = self.epochs.tolist()
        if epoch < 0:
            raise InvalidValue(
                f"{type(self).__name__}: its schedule follows the epoch; call set_epoch(epoch, num_epochs) before each."
            )
        return epoch, num_epochs

    def _first(self, old: dict[str, Tensor], state: SampleState, place: Gathered, gamma: float) -> Tensor:
        """Which anchors' estimators start from this batch."""
        estimators, rule = old["log_estimator"], self._rules.first_visit
        if rule == "sample":
            return estimators == -torch.inf
        if rule == "epoch" and gamma < 1:
            return estimators - old["bound"] < math.log(1e-35)
        first = torch.zeros_like(estimators, dtype=torch.bool)
        if rule == "batch" and self.gamma_schedule == "constant" and int(self.epochs[0]) <= 0:
            first |= (state.read(place.all)["log_estimator"] == -torch.inf).all()
        return first

    @torch.no_grad()
    def _remember(
        self, state: SampleState, place: Gathered, anchors: Anchors, estimate: Estimate, bound: Tensor
    ) -> None:
        """Write what the anchors of all processes found, unless something is not finite."""
        found = gather(torch.stack([estimate.log_estimator, estimate.divergence, bound], 1)).all
        index, log_estimator, divergence, bound = average_by_sample(
            place.all.repeat_interleave(anchors.views), *found.unbind(1)
        )
        old = state.read(index)
        new = {"log_estimator": log_estimator, **self._learn(old, divergence)}
        if "bound" in old:
            new["bound"] = bound
        finite = found.isfinite().all()
        state.write(index, {name: torch.where(finite, x, old[name].to(x.dtype)) for name, x in new.items()})

    def _temperatures(self, state: SampleState, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Temperatures ``(B,)`` of samples."""
        return torch.full(index.shape, self.temperature, dtype=dtype, device=index.device)

    def _learn(self, old: dict[str, Tensor], divergence: Tensor) -> dict[str, Tensor]:
        """New temperatures, and what else they need, from the weights' divergence from uniform."""
        return {}

    def _check_index(self, argument: str, index: Tensor | None, state: SampleState, count: int) -> Gathered:
        """The index of own and of all samples, checked alike on all processes."""
        name = type(self).__name__
        if index is None or index.shape != (count,) or index.is_floating_point() or index.is_complex():
            given = "none" if index is None else f"shape {tuple(index.shape)} and dtype {index.dtype}"
            raise InvalidValue(
                f"{name}: {argument} has {given}; give one integer, the position in the data set, for each of the "
                f"{count} samples."
            )
        place = gather(index.long())
        if len(place.all) and not 0 <= int(place.all.min()) <= int(place.all.max()) < len(state):
            raise InvalidValue(
                f"{name}: {argument} goes from {int(place.all.min())} to {int(place.all.max())} and there is state for "
                f"{len(state)} samples; call setup(num_samples) with the size of the data set."
            )
        if not self.allow_duplicates and len(torch.unique(place.all)) < len(place.all):
            raise InvalidValue(
                f"{name}: {argument} has duplicates; sample without replacement, or set allow_duplicates=True."
            )
        return place


class ISogCLR(SogCLR):
    """SogCLR with a temperature learned for every sample. See :class:`SogCLR` for what both have in common.

    Defaults that depend on ``negatives`` are, for ``"all"`` and ``"cross"``: ``temperature_init`` 0.1 and 0.01,
    ``temperature_min`` 0.05 and 0.005, ``rho`` 0.4 and 6, ``beta`` 0.5 and 0.9.

    Args:
        temperature_init: initial temperature of all samples.
        temperature_min: lower bound.
        temperature_max: upper bound.
        rho: divergence, in nats, of an anchor's weights from uniform at which its temperature settles. The logarithm of
            the number of negatives is the largest possible: near it, every temperature falls to its lower bound.
        eta: step size of temperatures; of Adam's in ``variant="fastclip"``.
        eta_schedule: ``"constant"``, a quarter of a ``"cosine"`` from ``eta`` to ``eta_min``, or ``"exponential"`` with
            the factor 0.8 an epoch. All but the first need :meth:`set_epoch`.
        eta_min: see there.
        beta: weight of the present gradient in a temperature's momentum. Not read in ``variant="fastclip"``.
        betas: Adam's shares of the old mean and square, each in [0, 1); read in ``variant="fastclip"`` alone.
        variant: ``"corrected"``; or as published: by the authors (``"released"``), in ``"libauc"``, in ``"fastclip"``
            (of two modalities only).
        **options: those of :class:`SogCLR`.

    Raises:
        ValueError: for an option out of range.
    """

    _variants = ("corrected", "released", "libauc", "fastclip")

    @checked
    def __init__(
        self,
        temperature_init: float | None = None,
        temperature_min: float | None = None,
        temperature_max: float = 1.0,
        rho: float | None = None,
        eta: float = 0.03,
        eta_schedule: Literal["constant", "cosine", "exponential"] = "constant",
        eta_min: float = 1e-4,
        beta: float | None = None,
        negatives: Negatives = "all",
        variant: Literal["corrected", "released", "libauc", "fastclip"] = "corrected",
        betas: tuple[float, float] = (0.9, 0.999),
        **options: Any,
    ) -> None:
        name = type(self).__name__
        check_choice(name, "negatives", negatives, ("all", "cross"))
        defaults = (0.1, 0.05, 0.4, 0.5) if negatives == "all" else (0.01, 0.005, 6.0, 0.9)
        given = (temperature_init, temperature_min, rho, beta)
        start, lowest, rho, beta = (
            d if value is None else value for value, d in zip(given, defaults, strict=True)
        )
        self._adam = variant == "fastclip"
        super().__init__(start, negatives=negatives, variant=variant, **options)  # type: ignore[arg-type]
        if not 1e-8 <= lowest <= start <= temperature_max:
            raise InvalidValue(
                f"{name}: temperature_init {start} lies outside [temperature_min, temperature_max] = [{lowest}, "
                f"{temperature_max}], or these are not positive; widen the bounds or move the initial value."
            )
        for option, value, most in (("rho", rho, math.inf), ("eta", eta, math.inf), ("beta", beta, 1.0)):
            if not 0 <= value <= most:
                raise InvalidValue(f"{name}: {option} is {value}; give a number from 0 to {most:g}.")
        check_choice(name, "eta_schedule", eta_schedule, ("constant", "cosine", "exponential"))
        self.temperature_min, self.temperature_max = lowest, temperature_max
        self.rho, self.eta, self.eta_schedule, self.eta_min, self.beta = rho, eta, eta_schedule, eta_min, beta
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise InvalidValue(f"{name}: betas is {betas!r}; give two numbers, as (0.9, 0.999).")
        first, second = (check_number(name, "betas", share, "[0, 1)") for share in betas)
        self.betas = first, second
        self._first_exponent = 1 if variant == "released" else 0
        self._warned = False

    def _initial(self) -> dict[str, float]:
        return {"temperature": self.temperature, "momentum": 0.0, **({"square": 0.0} if self._adam else {})}

    def _contrast(self, anchors: Anchors, state: SampleState, place: Gathered) -> Tensor:
        largest = math.log(anchors.num_negatives)
        if not self._warned and self.rho > 0.9 * largest > 0:
            self._warned = True
            warnings.warn(
                f"ISogCLR: rho is {self.rho} and {anchors.num_negatives} negatives allow at most {largest:.2f}, so "
                "temperatures will fall to temperature_min; use a smaller rho or a larger batch.",
                stacklevel=5,
            )
        return super()._contrast(anchors, state, place)

    def _temperatures(self, state: SampleState, index: Tensor, dtype: torch.dtype) -> Tensor:
        return state.read(index)["temperature"].to(dtype)

    def _learn(self, old: dict[str, Tensor], divergence: Tensor) -> dict[str, Tensor]:
        most = self._rules.largest_gradient
        gradient = (self.rho - divergence).clamp(-most, most)
        self.stats["temperature_gradient"] = gradient.mean()
        if self._adam:
            return self._learn_by_adam(old, gradient)
        momentum = (1 - self.beta) * old["momentum"] + self.beta * gradient
        return {"temperature": self._bounded_step(old, self._present_eta() * momentum), "momentum": momentum}

    def _learn_by_adam(self, old: dict[str, Tensor], gradient: Tensor) -> dict[str, Tensor]:
        """Adam without memory in epoch 0, its bias corrected by epochs, not steps."""
        epoch = self._epochs()[0]
        b1, b2 = self.betas if epoch else (0.0, 0.0)
        momentum = b1 * old["momentum"] + (1 - b1) * gradient
        square = b2 * old["square"] + (1 - b2) * gradient**2
        root = (square / (1 - b2 ** (epoch + 1))).sqrt() + 1e-8
        step = self._present_eta() * momentum / (1 - b1 ** (epoch + 1)) / root
        return {"temperature": self._bounded_step(old, step), "momentum": momentum, "square": square}

    def _bounded_step(self, old: dict[str, Tensor], step: Tensor) -> Tensor:
        return (old["temperature"] - step).clamp(self.temperature_min, self.temperature_max)

    def _present_eta(self) -> float:
        if self.eta_schedule == "constant":
            return self.eta
        epoch, num_epochs = self._epochs()
        if self.eta_schedule == "cosine":
            decay = math.cos(math.pi / 2 * epoch / num_epochs)
        else:
            decay = 0.8 ** (epoch - self._first_exponent)
        return self.eta_min + (self.eta - self.eta_min) * decay
