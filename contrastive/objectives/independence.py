r"""Ways to make two codes of the same samples independent of each other.

For codes ``x`` ``(N, D)`` and ``y`` ``(N, E)`` of the same samples. All but the last estimate their mutual
information, or a bound on it, with a small network that is fitted while the encoders are trained.

===================  ==================================================  ==============================================
name                 what is minimised                                   source
===================  ==================================================  ==============================================
:func:`club`         ``mean_i [ log q(y_i|x_i) - mean_j log q(y_j|x_i) ]``  Cheng et al. 2020, arXiv 2006.12013, eq. 8
``permutation``      the same with one ``j`` for each ``i``              eq. 14 there
:func:`vub`          ``mean_i KL( q(y|x_i) || N(0, I) )``                Alemi et al. 2017, arXiv 1612.00410
:func:`leave_one_out`  ``mean_i [ log q(y_i|x_i) - log mean_{j != i} q(y_i|x_j) ]``  Poole et al. 2019, arXiv 1905.06922
:class:`DensityRatio`  ``sum_i relu( log d(x_i, y_i) / (1 - d(x_i, y_i)) )``  FactorVAE, arXiv 1802.05983
:func:`mmd`          distance of the distributions of ``x`` in two groups  Gretton et al. 2012, JMLR 13
===================  ==================================================  ==============================================

``q(y|x)`` is a normal distribution with diagonal variance (:class:`ConditionalGaussian`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from contrastive.similarity import Gathered, gather, global_mean, logsumexp_cross, stream_rows

GAMMAS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Inverse widths of the kernels of :func:`mmd`."""


class ConditionalGaussian(nn.Module):
    """``q(y|x)``: normal, with mean and log-variance from two-layer networks; the latter within -1 and 1.

    Args:
        in_dim: width of ``x``.
        dim: width of ``y``.
        hidden_dim: width of the hidden layer of each network.
    """

    def __init__(self, in_dim: int, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim))
        self.log_variance = nn.Sequential(
            nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim), nn.Tanh()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance ``(N, dim)`` of ``y`` given ``x`` ``(N, in_dim)``."""
        return self.mean(x), self.log_variance(x)


def misfit(y: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """``mean_i sum_k [ (mean_ik - y_ik)^2 / v_ik + log v_ik ]``: what fits ``q`` (twice minus its log-likelihood)."""
    return global_mean(((mean - y).square() * (-log_variance).exp() + log_variance).sum(1))


def club(y: Gathered, mean: Tensor, log_variance: Tensor, permutation: Tensor | None = None) -> Tensor:
    """Contrastive log-ratio upper bound; in closed form over all pairs, or over one other sample for each.

    Args:
        y: codes of this process ``(M, E)`` and of all ``(N, E)``.
        mean: ``(M, E)`` of ``q(y|x_i)`` for the own samples.
        log_variance: ``(M, E)``.
        permutation: ``(N,)`` row numbers; sample ``i`` is compared with row ``permutation[i]`` only.
    """
    precision = (-log_variance).exp()
    if permutation is None:  # mean_j (y_j - mean)^2 = var(y) + (mean(y) - mean)^2
        centre = y.all.mean(0)
        others = (y.all - centre).square().mean(0) + (centre - mean).square()
    else:
        others = (y.all[permutation[y.start : y.start + len(y.local)]] - mean).square()
    return global_mean(0.5 * (precision * (others - (y.local - mean).square())).sum(1))


def vub(mean: Tensor, log_variance: Tensor, *, over_entries: bool = False) -> Tensor:
    """Variational upper bound: the divergence of ``q(y|x)`` from a standard normal distribution.

    Args:
        mean: ``(M, E)``.
        log_variance: ``(M, E)``.
        over_entries: average over the E entries too, as the released code of Cheng et al. does, instead of summing.
    """
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return global_mean(divergence.mean(1) if over_entries else divergence.sum(1))


def leave_one_out(y: Gathered, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Leave-one-out bound; 0 for fewer than two samples. Arguments as in :func:`club`."""
    if len(y.all) < 2:
        return (mean + log_variance).sum() * 0.0
    precision = (-log_variance).exp()
    own = -0.5 * ((y.local - mean).square() * precision + log_variance).sum(1)
    # log q(y_i|x_j) is a product of features of i and of j; around the centre of y they are small.
    centre = y.all.detach().mean(0)
    offset = (mean - centre).square() * precision + log_variance
    keys = torch.cat([-0.5 * precision, (mean - centre) * precision, -0.5 * offset.sum(1, keepdim=True)], 1)
    local = y.local - centre
    queries = torch.cat([local.square(), local, torch.ones_like(local[:, :1])], 1)
    samples = torch.arange(len(y.all), device=local.device)
    ids = samples[y.start : y.start + len(local)]
    count = torch.tensor(len(y.all) - 1, dtype=own.dtype, device=own.device)
    others = logsumexp_cross(queries, gather(keys).all, ids, samples) - count.log()
    return global_mean(own - others)


class DensityRatio(nn.Module):
    """Discriminator between pairs ``(x_i, y_i)`` and pairs of different samples; gives its logit.

    Args:
        dim: width of ``x`` and ``y`` together, and of the hidden layers.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``log d / (1 - d)`` of each pair, ``(N,)``."""
        logits: Tensor = self.layers(torch.cat([x, y], 1)).squeeze(1)
        return logits


def total_correlation(logits: Tensor) -> Tensor:
    """``sum_i relu(logit_i)`` over all processes."""
    return gather(F.relu(logits).sum()[None]).all.sum()


def discrimination(joint: Tensor, torn: Tensor) -> Tensor:
    """Binary cross-entropy that fits :class:`DensityRatio`, from its logits of true and of torn pairs."""
    return 0.5 * global_mean(F.softplus(-joint) + F.softplus(torn))


def mmd(x: Gathered, in_second: Gathered) -> Tensor:
    """Squared maximum mean discrepancy of two groups, summed over :data:`GAMMAS`; the biased estimate.

    ``sum_gamma [ mean k(a, a) + mean k(b, b) - 2 mean k(a, b) ]`` with ``k = exp(-gamma |a - b|^2)``, and not below 0.

    Args:
        x: rows of both groups, of this process ``(M, D)`` and of all ``(N, D)``.
        in_second: ``(M,)`` and ``(N,)`` bool, which rows belong to the second group.

    Returns:
        A scalar; 0 if one of the groups is empty.
    """
    second = in_second.all.sum()
    first = len(in_second.all) - second
    if not bool(first > 0) or not bool(second > 0):
        return x.local.sum() * 0.0
    weights = torch.where(in_second.all, -1.0 / second, 1.0 / first).to(x.all.dtype)
    centre = x.all.detach().mean(0)
    local = x.local - centre
    everywhere = local if x.all is x.local else x.all - centre
    squares = everywhere.square().sum(1)

    def row_loss(products: Tensor, rows: slice, squares: Tensor) -> Tensor:
        own = torch.arange(rows.start + x.start, rows.stop + x.start, device=products.device)
        distances = squares[own, None] + squares - 2 * products
        distances = distances.scatter(1, own[:, None], 0.0).clamp(min=0)
        kernels = torch.stack([(-gamma * distances).exp() @ weights for gamma in GAMMAS]).sum(0)
        return weights[own] @ kernels

    return gather(stream_rows(local, everywhere, row_loss, squares)[None]).all.sum().clamp(min=0)


class VariationalTerm(nn.Module):
    """One of the terms above together with the network it needs.

    Called with codes of all processes, it returns the term, whose gradient reaches the codes but not the network, plus
    a zero whose gradient fits the network to the codes but does not reach these. So one optimiser can hold the
    parameters of both sides.

    Args:
        kind: ``"vCLUB"``, ``"vCLUB-sampled"``, ``"vUB"``, ``"vL1Out"`` or ``"TC"``.
        in_dim: width of ``x``.
        dim: width of ``y``.
        hidden_dim: width of the hidden layers of ``q``; not read by ``"TC"``.
        over_entries: see :func:`vub`; not read by others.
    """

    def __init__(
        self, kind: str, in_dim: int, dim: int, hidden_dim: int = 64, *, over_entries: bool = False
    ) -> None:
        super().__init__()
        self.kind, self.over_entries = kind, over_entries
        self.network: nn.Module = (
            DensityRatio(in_dim + dim) if kind == "TC" else ConditionalGaussian(in_dim, dim, hidden_dim)
        )

    def forward(self, x: Gathered, y: Gathered, permutation: Tensor | None = None) -> Tensor:
        """The term of codes ``x`` and ``y``; ``permutation`` ``(N,)`` is read by ``"vCLUB-sampled"``, else drawn."""
        term, fit = (self._density_ratio if self.kind == "TC" else self._conditional)(x, y, permutation)
        return term + (fit - fit.detach())

    def _density_ratio(self, x: Gathered, y: Gathered, _: Tensor | None) -> tuple[Tensor, Tensor]:
        following = (torch.arange(len(x.local), device=x.local.device) + x.start + 1) % max(len(x.all), 1)
        joint = self.network(x.local.detach(), y.local.detach())
        torn = self.network(x.local.detach(), y.all.detach()[following])
        return total_correlation(self._frozen(x.local, y.local)), discrimination(joint, torn)

    def _conditional(self, x: Gathered, y: Gathered, permutation: Tensor | None) -> tuple[Tensor, Tensor]:
        fit = misfit(y.local.detach(), *self.network(x.local.detach()))
        mean, log_variance = self._frozen(x.local)
        if self.kind == "vUB":
            return vub(mean, log_variance, over_entries=self.over_entries), fit
        if self.kind == "vL1Out":
            return leave_one_out(y, mean, log_variance), fit
        if self.kind == "vCLUB-sampled" and permutation is None:
            # Every process draws numbers for its own rows, so that all agree on the order of all rows.
            permutation = gather(torch.rand(len(y.local), device=y.local.device)).all.argsort()
        return club(y, mean, log_variance, permutation), fit

    def _frozen(self, *codes: Tensor) -> Any:
        constants: Mapping[str, Tensor] = {k: p.detach() for k, p in self.network.named_parameters()}
        return functional_call(self.network, dict(constants), codes)
