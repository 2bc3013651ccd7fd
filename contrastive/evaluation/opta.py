"""OpTA: prototypes of few support samples, moved onto the queries of their episode by optimal transport.

Poulakakis-Daktylidis and Jamali-Rad, "BECLR: Batch Enhanced Contrastive Few-Shot Learning", ICLR 2024 (arXiv
2402.02444). It needs no training, so it fits any frozen encoder. It is transductive: what is predicted for one query
depends on all queries of the episode, and its numbers belong beside those of other transductive heads only.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from contrastive.arguments import checked_fields
from contrastive.errors import InvalidValue
from contrastive.evaluation.features import row_blocks
from contrastive.evaluation.softmax_regression import softmax_regression


@checked_fields
@dataclass(frozen=True)
class OpTA:
    """Transductive classifier of episodes; call it with features ``support`` (E, N, K, D) and ``query`` (E, Q, D).

    1. Every sample is standardised over its D features (:func:`standardize_samples`).
    2. Prototypes P (N, D) are the class means of the support.
    3. ``passes`` times: cost ``C_ij = |P_i - x_j|^2 / max C``, plan ``pi`` from P to the queries X by
       :func:`sinkhorn`, and every prototype moves to the mean of the queries it sends mass to, ``P_i = sum_j pi_ij
       x_j / sum_j pi_ij`` (the barycentric map).
    4. With several shots ``P = mix * P + (1 - mix) * class mean``.
    5. Queries are classified by a logistic regression fitted on the prototypes, or by the nearest prototype.

    The plan gives every class the same share of the queries. Where classes are not equally frequent among the queries
    this does harm; ``marginal_relaxation`` lets the shares follow the data. Step 3 then takes the mean of the K support
    samples and the Q pi_ij queries together, as soft k-means does (Ren et al. 2018, "Meta-learning for semi-supervised
    few-shot classification", eq. 4), so that a class without queries keeps its prototype, and there is no step 4. A
    query's class is a guess, so it may count less than a support sample, by ``query_weight`` (the lambda of EM with
    labelled and unlabelled data: Nigam et al. 2000, "Text classification from labeled and unlabeled documents").

    Attributes:
        passes: None for those of the paper, 5 with one shot and 1 with several.
        epsilon: weight of the plan's entropy, in units of the largest cost.
        mix: weight of the transported prototypes with several shots, 0 to 1.
        marginal_relaxation: weight of the Kullback-Leibler penalty on unequal classes, in the units of ``epsilon``.
            None for equal classes; the smaller, the less they are pulled towards equal shares.
        query_weight: weight of a query beside a support sample where marginals are relaxed, above 0.
        classify: ``"logistic_regression"`` with C = 1 (the paper), or ``"centroid"`` for the nearest prototype.
        max_iterations: of :func:`sinkhorn`, in each pass.
        threshold: of :func:`sinkhorn`.

    Raises:
        ValueError: a setting out of its range.
    """

    passes: int | None = None
    epsilon: float = 0.05
    mix: float = 0.7
    marginal_relaxation: float | None = None
    query_weight: float = 1.0
    classify: Literal["logistic_regression", "centroid"] = "logistic_regression"
    max_iterations: int = 1000
    threshold: float = 1e-4

    def __post_init__(self) -> None:
        if self.passes is not None and self.passes < 1:
            raise InvalidValue(
                f"OpTA: passes={self.passes}; give 1 or more, or None for 5 passes with one shot and 1 with several"
            )
        if not 0 <= self.mix <= 1:
            raise InvalidValue(
                f"OpTA: mix={self.mix}; it is the weight of the transported prototypes: give 0 to 1"
            )
        if not 0 < self.query_weight < math.inf:
            raise InvalidValue(
                f"OpTA: query_weight={self.query_weight}; give a number above 0: 1 lets a query count as much as a "
                "support sample"
            )
        if self.classify not in ("logistic_regression", "centroid"):
            raise InvalidValue(f"OpTA: classify={self.classify!r}; choose logistic_regression or centroid")
        _check_sinkhorn(self.epsilon, self.marginal_relaxation, self.max_iterations, self.threshold)

    def __call__(self, support: Tensor, query: Tensor) -> Tensor:
        """Scores ``(E, Q, N)`` of the queries: the largest is the predicted class.

        Args:
            support: ``(E, N, K, D)`` features, K samples of each of N classes.
            query: ``(E, Q, D)`` features of the same encoder.

        Raises:
            ValueError: shapes that do not belong together, a value that is not finite, or a sample whose features
                are all equal.
        """
        if (
            support.ndim != 4
            or query.ndim != 3
            or (len(support), support.shape[3]) != (len(query), query.shape[2])
        ):
            raise InvalidValue(
                f"OpTA: support has shape {tuple(support.shape)} and query {tuple(query.shape)}; expected (E, N, K, D) "
                "and (E, Q, D): episodes, classes, shots, features, and episodes, queries, features"
            )
        if 0 in support.shape or 0 in query.shape:
            raise InvalidValue(
                f"OpTA: support has shape {tuple(support.shape)} and query {tuple(query.shape)}; every size must be 1 "
                "or more"
            )
        support, query = standardize_samples(support), standardize_samples(query)
        way, shot, dim = support.shape[1:]
        columns = (way * shot + query.shape[1]) * max(way, dim)
        blocks = row_blocks(len(support), columns)
        return torch.cat([self.scores(support[block], query[block]) for block in blocks])

    def scores(self, support: Tensor, query: Tensor) -> Tensor:
        """Steps 2 to 5 of one block of episodes whose samples are standardised; shapes as in the call."""
        prototypes, _ = self.transport(support, query)
        if self.classify == "centroid":
            return -_squared_distances(prototypes, query).transpose(1, 2)
        classes = torch.arange(prototypes.shape[1], device=prototypes.device)
        return softmax_regression(prototypes, classes, query)

    def transport(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Steps 2 to 4: the prototypes ``(E, N, D)`` and the plan of the last pass ``(E, N, Q)``."""
        shot = support.shape[2]
        means = prototypes = support.mean(dim=2)
        for _ in range(self.passes or (5 if shot == 1 else 1)):
            cost = _squared_distances(prototypes, query)
            largest = cost.amax(dim=(1, 2), keepdim=True)
            # All samples may coincide: without any distance the plan is uniform.
            plan = sinkhorn(
                cost / largest.clamp_min(torch.finfo(cost.dtype).tiny),
                epsilon=self.epsilon,
                marginal_relaxation=self.marginal_relaxation,
                max_iterations=self.max_iterations,
                threshold=self.threshold,
            )
            mass = plan.sum(dim=2, keepdim=True)
            if self.marginal_relaxation is None:
                prototypes = (plan / mass) @ query
            else:
                weight = self.query_weight * query.shape[1]
                prototypes = (shot * means + weight * (plan @ query)) / (shot + weight * mass)
        if shot > 1 and self.marginal_relaxation is None:
            prototypes = self.mix * prototypes + (1 - self.mix) * means
        return prototypes, plan


def standardize_samples(vectors: Tensor) -> Tensor:
    """Subtract from every sample the mean of its features and divide by their deviation, as BECLR does.

    Args:
        vectors: ``(..., D)`` floating point, D features a sample.

    Returns:
        The same shape; deviations count D - 1 degrees of freedom.

    Raises:
        ValueError: a value that is not finite, or a sample whose D features are all equal. The first such row is
            named.
    """
    centred = vectors - vectors.mean(dim=-1, keepdim=True)
    deviation: Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / math.sqrt(
        max(vectors.shape[-1] - 1, 1)
    )
    finite = torch.isfinite(deviation[..., 0])
    # The deviation of equal features may be a rounding error, and that of nearly equal ones may underflow.
    varied = (vectors != vectors[..., :1]).any(dim=-1) & (deviation[..., 0] > 0)
    for good, what in ((finite, "NaN or infinite features"), (varied, "features that are all equal")):
        if not good.all():
            position = (~good).nonzero()[0].tolist()
            row = position[0] if len(position) == 1 else tuple(position)
            raise InvalidValue(
                f"standardize_samples: {int((~good).sum())} of {good.numel()} samples have {what}, the first is row "
                f"{row}; it cannot be brought to mean 0 and deviation 1 over its {vectors.shape[-1]} features. Leave "
                "the sample out before episodes are drawn, check the encoder, or use an inductive classifier"
            )
    return centred / deviation


def sinkhorn(
    cost: Tensor,
    *,
    epsilon: float = 0.05,
    marginal_relaxation: float | None = None,
    max_iterations: int = 1000,
    threshold: float = 1e-4,
) -> Tensor:
    """Entropic transport plans between N classes and Q queries, each with uniform mass, of many episodes.

    ``min <C, pi> + epsilon sum pi (log pi - 1)`` over plans with column sums 1/Q and row sums 1/N (Cuturi 2013,
    "Sinkhorn distances"), in log domain (Peyre and Cuturi 2019, "Computational optimal transport", section 4.4). With
    ``marginal_relaxation`` rho the row sums are free at a price ``rho KL(pi 1 | 1/N)`` (Chizat et al. 2018, "Scaling
    algorithms for unbalanced optimal transport problems"). Column sums stay: every query is there once,
    only how many belong to which class is unknown. In the limit of small rho each query is shared out by the softmax
    of its own costs; a large rho gives the balanced plan.

    An episode stops when ``sum_i |u_i - previous u_i| < threshold`` for its class potentials u, and is then left
    alone, so that its plan does not depend on the others.

    Args:
        cost: ``(E, N, Q)``, finite; epsilon, rho and the threshold are in its units.
        epsilon: weight of the entropy, above 0.
        marginal_relaxation: rho, above 0; None for row sums of exactly 1/N.
        max_iterations: updates of both potentials at most; a warning says for how many plans they did not do.
        threshold: see above.

    Returns:
        ``(E, N, Q)`` plans, each of total mass 1. Columns sum to 1/Q, rows as nearly to 1/N as the threshold asks.

    Raises:
        ValueError: a cost that is not (E, N, Q), or a setting out of its range.
    """
    _check_sinkhorn(epsilon, marginal_relaxation, max_iterations, threshold)
    if cost.ndim != 3 or 0 in cost.shape[1:]:
        raise InvalidValue(
            f"sinkhorn: cost has shape {tuple(cost.shape)}; expected (E, N, Q): episodes, classes, queries"
        )
    episodes, classes, queries = cost.shape
    # 1e-8 as in the released code: the plan of the paper has a mass of 1 + 1e-8 Q.
    log_class, log_query = math.log(1 / classes + 1e-8), math.log(1 / queries + 1e-8)
    damping = 1.0 if marginal_relaxation is None else marginal_relaxation / (marginal_relaxation + epsilon)
    logits = cost / -epsilon
    u, v = cost.new_zeros(episodes, classes), cost.new_zeros(episodes, queries)  # in units of epsilon
    # Those of the episodes that still run; they get fewer.
    running = torch.arange(episodes, device=cost.device)
    part, part_u, part_v = logits, u, v
    for _ in range(max_iterations):
        previous = part_u
        part_u = damping * (log_class - torch.logsumexp(part + part_v[:, None, :], dim=2))
        part_v = log_query - torch.logsumexp(part + part_u[:, :, None], dim=1)
        going = epsilon * (part_u - previous).abs().sum(dim=1) >= threshold
        if not going.all():
            u[running], v[running] = part_u, part_v
            running, part, part_u, part_v = running[going], part[going], part_u[going], part_v[going]
            if len(running) == 0:
                break
    u[running], v[running] = part_u, part_v
    if len(running):
        warnings.warn(
            f"sinkhorn: {len(running)} of {episodes} plans did not settle within {max_iterations} iterations at "
            f"epsilon={epsilon}, so their rows may be far from what was asked; raise max_iterations or epsilon, or "
            "give a larger threshold.",
            stacklevel=2,
        )
    return (logits + u[:, :, None] + v[:, None, :]).exp()


def _check_sinkhorn(
    epsilon: float, marginal_relaxation: float | None, max_iterations: int, threshold: float
) -> None:
    if not 0 < epsilon < math.inf:
        raise InvalidValue(
            f"sinkhorn: epsilon={epsilon}; the weight of the entropy must be above 0 and finite, as 0.05"
        )
    if marginal_relaxation is not None and not 0 < marginal_relaxation < math.inf:
        raise InvalidValue(
            f"sinkhorn: marginal_relaxation={marginal_relaxation}; give a number above 0, as 0.01, or None for classes "
            "of equal mass"
        )
    if max_iterations < 1 or threshold < 0:
        raise InvalidValue(
            f"sinkhorn: max_iterations={max_iterations}, threshold={threshold}; give 1 or more and 0 or more"
        )


def _squared_distances(prototypes: Tensor, query: Tensor) -> Tensor:
    """``(E, N, Q)`` from ``(E, N, D)`` and ``(E, Q, D)``; rounding must not make them negative."""
    norms: list[Tensor] = [
        torch.linalg.vector_norm(vectors, dim=2).square() for vectors in (prototypes, query)
    ]
    products = prototypes @ query.transpose(1, 2)
    return (norms[0][:, :, None] + norms[1][:, None, :] - 2 * products).clamp_min_(0)


UNBALANCED = OpTA(passes=3, epsilon=0.03, marginal_relaxation=0.002, query_weight=0.25, classify="centroid")
"""OpTA for an unknown mix of queries: a sharp plan, and queries that count a quarter. Otherwise classes that have few
queries are drawn to the other classes, a little more in each pass, and fall behind the class means they started from,
which with several shots are hard to beat. The nearest prototype does better here than the paper's regression on one
sample a class. Chosen on characters of Omniglot's training alphabets."""
