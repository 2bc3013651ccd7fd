"""Multinomial logistic regression of many small problems at once: a few samples, many features, many episodes."""

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_STEPS, TOLERANCE = 1000, 1e-7


def softmax_regression(samples: Tensor, classes: Tensor, query: Tensor) -> Tensor:
    """Fit ``softmax(W x + b)`` to the samples of every episode and return the logits of its queries.

    Minimises ``sum_i cross_entropy_i + |W|^2 / 2`` with free b, as scikit-learn's ``LogisticRegression(C=1)`` does
    for three classes or more. (Its form for two classes has one weight vector w = W_1 - W_0 and the ridge |w|^2 / 2,
    which is twice ours.)

    By the representer theorem ``W = A.T @ samples``, so all steps work on A ``(E, n, C)`` and the kernel matrix, and
    their cost does not depend on D. Softmax is curved by at most 1/2 (Boehning 1992, "Multinomial logistic regression
    algorithm"), and the quadratic with that curvature is the same in every step: it is inverted once. Its steps are
    accelerated by momentum, which an episode drops when it leads uphill (O'Donoghue and Candes 2015, "Adaptive restart
    for accelerated gradient schemes", the gradient scheme).

    Args:
        samples: ``(E, n, D)``, n samples an episode.
        classes: ``(n,)`` their classes 0..C-1, the same in every episode.
        query: ``(E, Q, D)``.

    Returns:
        Logits ``(E, Q, C)``. Episodes do not influence each other.
    """
    n = samples.shape[1]
    # Few numbers: double precision costs nothing here, and long rows make the kernel badly conditioned.
    kernel = (samples @ samples.transpose(1, 2)).double()
    target = F.one_hot(classes).to(kernel)
    rows = F.pad(kernel, (0, 1), value=1.0)  # (E, n, n + 1): logits = rows @ [A; b]
    quadratic = F.pad(rows / 2, (0, 0, 0, 1), value=1.0)
    quadratic[:, :n, :n] += torch.eye(n).to(kernel)
    quadratic[:, n, n] = 0
    inverse = torch.linalg.inv(quadratic)
    weights = kernel.new_zeros(len(kernel), n + 1, target.shape[1])
    ahead, age = weights, kernel.new_zeros(len(kernel), 1, 1)
    for _ in range(MAX_STEPS):
        residual = (rows @ ahead).softmax(dim=2) - target
        gradient = residual + ahead[:, :n]  # of W, as coefficients of the samples
        running = gradient.abs().amax(dim=(1, 2), keepdim=True) > TOLERANCE
        if not running.any():
            break
        new = ahead - inverse @ torch.cat([gradient, ahead[:, :n].sum(dim=1, keepdim=True)], dim=1)
        moved = new - weights
        ascent = (gradient * (kernel @ moved[:, :n])).sum((1, 2)) + (residual.sum(1) * moved[:, n]).sum(1)
        age = torch.where(ascent[:, None, None] > 0, 0, age + 1)
        # Episodes that are done stay as they are, whatever others still need.
        ahead = torch.where(running, new + age / (age + 3) * moved, ahead)
        weights = new
    return query @ (samples.transpose(1, 2) @ ahead[:, :n].to(samples)) + ahead[:, n:].to(samples)
