"""Linear probes: how much of the classes a linear layer can read off frozen features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive.arguments import checked
from contrastive.errors import InvalidValue
from contrastive.evaluation.features import Features, class_positions
from contrastive.evaluation.metrics import Classification, classify

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_SELECTION_ROWS = 10_000  # training rows that are enough to choose C by


@dataclass(frozen=True)
class ProbeResult(Classification):
    """The outcome of a linear probe.

    Attributes:
        head: the fitted layer; applied to raw features it gives the logits of ``classes``.
        C: inverse strength of the ridge term, 0 for the SGD protocol, which has none.
        losses: mean training loss of each epoch (SGD), or at the end (L-BFGS).
        converged: whether L-BFGS reached its tolerance; True for SGD.
    """

    head: nn.Linear
    C: float
    losses: tuple[float, ...]
    converged: bool


@checked
def linear_probe(
    train: Features,
    test: Features,
    *,
    protocol: Literal["lbfgs", "sgd"] = "lbfgs",
    C: float | Literal["auto"] = "auto",
    standardize: bool = True,
    epochs: int = 90,
    batch_size: int | None = 256,
    learning_rate: float | None = None,
    seed: int = 0,
) -> ProbeResult:
    """Fit multinomial logistic regression on frozen features and judge it on the test set.

    ``protocol="lbfgs"`` minimises ``C * sum_i loss_i + |W|^2 / 2``, the convention of scikit-learn's
    ``LogisticRegression``, whose coefficients it reproduces. ``protocol="sgd"`` is the linear evaluation of
    the literature (Chen et al. 2020, arXiv 2002.05709) on cached features: cross-entropy without weight
    decay, momentum 0.9, cosine decay to zero over all steps, weights of zero at the start; the accuracy is
    that after the last epoch.

    Args:
        train: labelled training features.
        test: labelled test features; never used for fitting or choosing anything.
        protocol: ``"lbfgs"`` or ``"sgd"``.
        C: L-BFGS only. ``"auto"`` takes the best of :data:`C_GRID` on a held-out fifth of the training set,
            then fits on all of it; with fewer than 20 training samples of some class it takes 1.
        standardize: shift and scale every column to mean 0 and deviation 1 on the training set first; the
            head has this folded in. Published SGD numbers are without.
        epochs: SGD only. 90 and 100 are usual.
        batch_size: SGD only. None takes the whole set in one step.
        learning_rate: SGD only. ``0.1 * batch_size / 256`` if left out.
        seed: of the held-out fifth and of the order of SGD batches.

    Raises:
        ValueError: unlabelled features, different widths, an unknown protocol, a C or a rate that is not
            positive, or a single training class.
    """
    if protocol not in ("lbfgs", "sgd"):
        raise InvalidValue(f'linear_probe: protocol is {protocol!r}; choose "lbfgs" or "sgd"')
    if C != "auto" and not (isinstance(C, float | int) and C > 0):
        raise InvalidValue(f'linear_probe: C is {C!r}; give a positive number or "auto"')
    if (
        (learning_rate is not None and learning_rate <= 0)
        or epochs < 1
        or (batch_size is not None and batch_size < 1)
    ):
        raise InvalidValue(
            f"linear_probe: learning_rate={learning_rate}, epochs={epochs}, batch_size={batch_size}; "
            "all must be positive"
        )
    classes, targets, test_targets = class_positions(train, test, "linear_probe")
    if len(torch.unique(targets)) < 2:
        raise InvalidValue(
            "linear_probe: the training set has a single class; a classifier needs two or more"
        )
    mean, scale = _column_scale(train.vectors)
    if not standardize:
        mean, scale = torch.zeros_like(mean), torch.ones_like(scale)
    x = (train.vectors - mean) / scale
    generator = torch.Generator().manual_seed(seed)
    if protocol == "lbfgs":
        strength, start = (float(C), None) if C != "auto" else _choose_C(x, targets, len(classes), generator)
        weight, bias, loss, converged = _fit_lbfgs(x, targets, len(classes), strength, start=start)
        losses: tuple[float, ...] = (loss,)
    else:
        size = len(x) if batch_size is None else min(batch_size, len(x))
        rate = 0.1 * size / 256 if learning_rate is None else learning_rate
        weight, bias, losses = _fit_sgd(x, targets, len(classes), epochs, size, rate, generator)
        strength, converged = 0.0, True
    weight = weight / scale
    head = nn.Linear(1, 1)  # takes over the fitted tensors, so that no large layer is drawn at random first
    head.in_features, head.out_features = weight.shape[1], weight.shape[0]
    head.weight = nn.Parameter(weight, requires_grad=False)
    head.bias = nn.Parameter(bias - weight @ mean, requires_grad=False)
    outcome = classify(head(test.vectors.to(weight)).softmax(dim=1), test_targets, classes)
    return ProbeResult(**vars(outcome), head=head, C=strength, losses=losses, converged=converged)


@checked
def label_efficiency(
    train: Features,
    test: Features,
    *,
    labels_per_class: Sequence[int | None] = (1, 5, 10, None),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    k: int = 20,
) -> dict[str, dict[str, tuple[float, float]]]:
    """Test accuracy of kNN and probe when only a few training labels are known.

    For the probe, columns are standardised over the whole training set, which needs no labels.

    Args:
        train: labelled training features, from which labels are drawn at random, equally many a class.
        test: labelled test features.
        labels_per_class: how many labels a class; None takes all, in a single run.
        seeds: one draw each.
        k: number of neighbours, at most as many as there are labels.

    Returns:
        For ``"knn"`` and ``"probe"``: ``{"1": (mean, std), ..., "all": (mean, 0.0)}``, in fractions, the
        population deviation over draws.

    Raises:
        ValueError: a class has fewer samples than labels are asked for; the message names it.
    """
    from contrastive.evaluation.knn import knn_classify

    targets = train.require_labels("label_efficiency")
    mean, scale = _column_scale(train.vectors)
    scaled_train = Features((train.vectors - mean) / scale, train.labels, train.index)
    scaled_test = Features((test.vectors - mean) / scale, test.labels, test.index)
    table: dict[str, dict[str, tuple[float, float]]] = {"knn": {}, "probe": {}}
    for count in labels_per_class:
        accuracies: dict[str, list[float]] = {"knn": [], "probe": []}
        for seed in seeds[:1] if count is None else seeds:
            rows = torch.arange(len(train)) if count is None else _draw_labels(targets, count, seed)
            accuracies["knn"].append(knn_classify(train.rows(rows), test, k=min(k, len(rows))).accuracy)
            probe = linear_probe(scaled_train.rows(rows), scaled_test, standardize=False, seed=seed)
            accuracies["probe"].append(probe.accuracy)
        for name, values in accuracies.items():
            spread = torch.tensor(values, dtype=torch.float64)
            key = "all" if count is None else str(count)
            table[name][key] = (float(spread.mean()), float(spread.std(correction=0)))
    return table


def _draw_labels(labels: Tensor, count: int, seed: int) -> Tensor:
    """Rows of ``count`` random samples of every class."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for label in torch.unique(labels):
        members = (labels == label).nonzero().squeeze(1)
        if len(members) < count:
            raise InvalidValue(
                f"label_efficiency: class {int(label)} has {len(members)} training samples and "
                f"labels_per_class asks for {count}; ask for {len(members)} at most"
            )
        rows.append(members[torch.randperm(len(members), generator=generator)[:count].to(members.device)])
    return torch.cat(rows)


def _column_scale(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each column; the deviation of a constant column counts as 1."""
    deviation, mean = torch.std_mean(vectors, dim=0, correction=0)
    # Constant columns keep rounding noise, which must not be blown up to unit size.
    tiny = deviation <= 10 * torch.finfo(vectors.dtype).eps * mean.abs()
    return mean, torch.where(tiny, 1.0, deviation)


def _choose_C(
    x: Tensor, targets: Tensor, num_classes: int, generator: torch.Generator
) -> tuple[float, tuple[Tensor, Tensor] | None]:
    """The value of :data:`C_GRID` with the best accuracy on a held-out fifth of the training set, and its fit."""
    counts = torch.bincount(targets, minlength=num_classes)
    if int(counts[counts > 0].min()) < 20:
        return 1.0, None
    keys = torch.rand(len(x), generator=generator).to(x.device)
    order = torch.argsort(keys)
    order = order[torch.argsort(targets[order], stable=True)]
    starts = torch.cumsum(counts, 0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(x), device=x.device) - starts[targets[order]]
    share = (rank + keys) / counts[targets]  # stratified: every class is spread evenly over 0..1
    kept = min(1.0, _SELECTION_ROWS / len(x))
    held_out, fitted = share < 0.2 * kept, (share >= 0.2 * kept) & (share < kept)
    best, best_accuracy = 1.0, -1.0
    start = best_fit = None
    for candidate in C_GRID:
        weight, bias, _, _ = _fit_lbfgs(x[fitted], targets[fitted], num_classes, candidate, start=start)
        start = (weight, bias)
        logits = F.linear(x[held_out], weight, bias)
        accuracy = float((logits.argmax(1) == targets[held_out]).double().mean())
        if accuracy > best_accuracy:
            best, best_accuracy, best_fit = candidate, accuracy, start
    return best, best_fit


def _fit_lbfgs(
    x: Tensor,
    targets: Tensor,
    num_classes: int,
    C: float,
    *,
    start: tuple[Tensor, Tensor] | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 500,
) -> tuple[Tensor, Tensor, float, bool]:
    """Minimise ``mean_i loss_i + |W|^2 / (2 C N)``: weight, bias, mean loss, whether it converged."""
    import numpy as np
    from scipy.optimize import minimize

    if 2 * len(x) <= x.shape[1]:
        # The rows of W lie in the span of few samples: solve for their coordinates in an orthonormal basis.
        basis, coordinates = torch.linalg.qr(x.T)
        weight, bias, loss, converged = _fit_lbfgs(
            coordinates.T, targets, num_classes, C, tolerance=tolerance, max_iterations=max_iterations
        )
        return weight @ basis.T, bias, loss, converged
    rows, dim = x.shape
    # With two classes scikit-learn has one logit w = W_1 - W_0. At the optimum W_1 = -W_0: |w|^2 = 2 |W|^2.
    ridge = (2.0 if num_classes == 2 else 1.0) / (C * rows)
    one_hot = F.one_hot(targets, num_classes).to(x.dtype)

    def value_and_gradient(flat: Any) -> tuple[float, Any]:
        parameters = torch.from_numpy(flat).to(x).view(num_classes, dim + 1)
        weight, bias = parameters[:, :dim], parameters[:, dim]
        log_p = torch.addmm(bias, x, weight.T).log_softmax(dim=1)
        loss = -(log_p * one_hot).sum(dtype=torch.float64) / rows
        residual = log_p.exp_().sub_(one_hot)
        gradient = torch.empty(num_classes, dim + 1, dtype=torch.float64, device=x.device)
        gradient[:, :dim] = (residual.T @ x).double() / rows + ridge * weight
        gradient[:, dim] = residual.sum(dim=0, dtype=torch.float64) / rows
        penalty = 0.5 * ridge * weight.square().sum(dtype=torch.float64)
        return float(loss + penalty), gradient.flatten().cpu().numpy()

    flat = np.zeros(num_classes * (dim + 1))
    if start is not None:
        flat = torch.cat([start[0], start[1][:, None]], dim=1).flatten().double().cpu().numpy()
    options = {"maxiter": max_iterations, "maxls": 50, "gtol": tolerance, "ftol": 64 * np.finfo(float).eps}
    found = minimize(value_and_gradient, flat, jac=True, method="L-BFGS-B", options=options)
    solution = torch.from_numpy(found.x).to(x).view(num_classes, dim + 1)
    weight = solution[:, :dim]
    loss = float(found.fun) - 0.5 * ridge * float(weight.square().sum(dtype=torch.float64))
    return weight, solution[:, dim], loss, bool(found.nit < max_iterations)


def _fit_sgd(
    x: Tensor,
    targets: Tensor,
    num_classes: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """SGD with momentum 0.9 and a cosine schedule; the gradient of softmax regression is written out."""
    one_hot = F.one_hot(targets, num_classes).to(x.dtype)
    weight, bias = x.new_zeros(num_classes, x.shape[1]), x.new_zeros(num_classes)
    weight_velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    steps = math.ceil(len(x) / batch_size)
    step, losses = 0, []
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator).to(x.device) if steps > 1 else None
        total = x.new_zeros((), dtype=torch.float64)
        for start in range(0, len(x), batch_size):
            rows = slice(None) if order is None else order[start : start + batch_size]
            inputs, truth = x[rows], one_hot[rows]
            log_p = torch.addmm(bias, inputs, weight.T).log_softmax(dim=1)
            total -= (log_p * truth).sum()
            residual = log_p.exp_().sub_(truth).div_(len(inputs))
            weight_velocity.mul_(0.9).addmm_(residual.T, inputs)
            bias_velocity.mul_(0.9).add_(residual.sum(0))
            rate = learning_rate * (1 + math.cos(math.pi * step / (epochs * steps))) / 2
            weight.sub_(weight_velocity, alpha=rate)
            bias.sub_(bias_velocity, alpha=rate)
            step += 1
        losses.append(float(total) / len(x))
    return weight, bias, tuple(losses)
