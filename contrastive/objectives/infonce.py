r"""The InfoNCE family: contrast each anchor's positive with the rest of the batch, a queue, or its hardest part.

With unit vectors ``z``, similarities ``s_ij = z_i · z_j`` and temperature ``t``, every loss here is

    l_i = log( sum over candidates j of exp(s_ij / t) )  -  (mean over positives p of s_ip) / t

and the losses differ in which candidates enter the sum and which samples are positives:

============================  ===========================================  =================================
loss                          candidates of anchor i                       source
============================  ===========================================  =================================
:func:`info_nce`, ``"all"``    every other view of every sample              NT-Xent, arXiv 2002.05709, eq. 1
:func:`info_nce`, ``"cross"``  the other modality only                       CLIP, arXiv 2103.00020, fig. 3
``decoupled=True``             the same without the positive                 DCL, arXiv 2110.06848, eq. 5
:func:`queue_info_nce`         the positive and a queue of earlier keys      MoCo, arXiv 1911.05722, eq. 1
:func:`sup_con`                every other view; positives share a label     SupCon, arXiv 2004.11362, eq. 2
:func:`hard_info_nce`          the positive and the K nearest negatives      arXiv 2012.09740, eq. 8
============================  ===========================================  =================================

Dividing unit vectors by ``sqrt(t)`` folds the temperature into the products; the code calls them *rows*.
"""

import math
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn

from contrastive.arguments import checked
from contrastive.checks import check_choice, check_flag, check_number
from contrastive.errors import InvalidValue
from contrastive.objectives.base import Objective
from contrastive.objectives.inputs import (
    check_ids,
    check_rows,
    check_temperature,
    check_views,
    divide,
    sample_ids,
    scaled_rows,
    zero_loss,
)
from contrastive.objectives.queue import KeyQueue
from contrastive.similarity import (
    Gathered,
    gather,
    global_mean,
    logsumexp_both,
    logsumexp_cross,
    logsumexp_self,
)

_SIGMA = 0.5


def info_nce(
    *views: Tensor,
    temperature: float | Tensor = 0.1,
    negatives: Literal["all", "cross"] = "all",
    decoupled: bool | Literal["weighted"] = False,
    sigma: float = _SIGMA,
    ids: Tensor | None = None,
) -> Tensor:
    r"""InfoNCE over in-batch negatives: NT-Xent (``"all"``) or the cross-modal form of CLIP (``"cross"``).

    For two views, over the ``N = 2B`` anchors (``"all"``) or both directions of ``B`` (``"cross"``),
    ``L = mean_i [ log sum_{k != i} exp(s_ik / t) - s_{i,p(i)} / t ]``, the positive ``p(i)`` included in the
    sum unless ``decoupled``. More than two views average the loss over all pairs of views.

    Args:
        *views: two or more ``(B, D)``, row ``b`` of each from the same sample; normalised here.
        temperature: ``t > 0``; a scalar tensor gets a gradient.
        negatives: candidates from all views, or only from the other view (two modalities).
        decoupled: leave the positive out of the sum (DCL); ``"weighted"`` also weights the positives by
            ``2 - B softmax(s_p / sigma)`` without gradient (DCLW).
        sigma: width of these weights; read only by ``decoupled="weighted"``.
        ids: ``(B,)`` integers; samples with equal ids are never each other's negatives.

    Returns:
        Scalar loss; over several processes this process' share (see
        :func:`contrastive.similarity.global_mean`).

    Raises:
        ValueError: for a bad shape, dtype or temperature, or ``decoupled`` with a single sample.
    """
    check_views("info_nce", views, minimum=2)
    check_temperature("info_nce", temperature)
    check_choice("info_nce", "negatives", negatives, ("all", "cross"))
    check_choice("info_nce", "decoupled", decoupled, (False, True, "weighted"))
    if sigma is not _SIGMA:  # checks cost more than a small batch: what was left out needs none
        check_number("info_nce", "sigma", sigma, "(0, inf)")
    rows = gather(scaled_rows(torch.stack(views, 1), temperature))
    if len(rows.all) < 2:
        if decoupled and len(rows.all) == 1:
            raise InvalidValue(
                "info_nce: decoupled with 1 sample in the global batch has no candidates; give at least 2."
            )
        return zero_loss(
            "info_nce", "the global batch has fewer than two samples, so there are no negatives", views
        )
    left_out = sample_ids("info_nce", ids, rows) if decoupled or ids is not None else None
    candidates_of = _candidates_all if negatives == "all" else _candidates_cross
    losses = []
    for v, w in combinations(range(len(views)), 2):
        positives = (rows.local[:, v] * rows.local[:, w]).sum(-1)
        candidates = candidates_of(rows, v, w, left_out)
        if decoupled:  # an anchor whose every candidate was left out has nothing to lose
            candidates = torch.where(candidates > -torch.inf, candidates, positives.detach())
            weights = (
                _positive_weights(positives.detach() * temperature, sigma) if decoupled == "weighted" else 1.0
            )
            loss = candidates - weights * positives
        elif left_out is not None:  # the positive was left out with its sample: it comes back
            loss = torch.logaddexp(candidates, positives) - positives
        else:
            loss = candidates - positives
        losses.append(global_mean(loss.flatten()))
    return torch.stack(losses).mean()


def _candidates_all(rows: Gathered, v: int, w: int, left_out: Gathered | None) -> Tensor:
    """Log-sum-exp ``(2, B)`` over both views, for each of them as anchors; without ``left_out`` own row only."""
    local = rows.local[:, (v, w)].flatten(0, 1)
    both = Gathered(
        local, local if rows.all is rows.local else rows.all[:, (v, w)].flatten(0, 1), 2 * rows.start
    )
    ids = () if left_out is None else (left_out.local.repeat_interleave(2), left_out.all.repeat_interleave(2))
    return logsumexp_self(both, *ids).view(-1, 2).T


def _candidates_cross(rows: Gathered, v: int, w: int, left_out: Gathered | None) -> Tensor:
    """Log-sum-exp ``(2, B)`` of ``v`` over ``w`` and of ``w`` over ``v``."""
    a, b = rows.local[:, v], rows.local[:, w]
    ids = () if left_out is None else (left_out.local, left_out.all)
    if rows.all is rows.local:
        return torch.stack(logsumexp_both(a, b, *ids))
    return torch.stack([logsumexp_cross(a, rows.all[:, w], *ids), logsumexp_cross(b, rows.all[:, v], *ids)])


def _positive_weights(similarities: Tensor, sigma: float) -> Tensor:
    """``2 - B softmax(s / sigma)`` over the global batch: DCLW's weights of the positives, ``(B,)``."""
    logits = gather(similarities / sigma)
    return 2 - len(logits.all) * (logits.local - logits.all.logsumexp(0)).exp()


def queue_info_nce(
    queries: Tensor,
    keys: Tensor,
    queue: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    ids: Tensor | None = None,
    queue_ids: Tensor | None = None,
) -> Tensor:
    r"""InfoNCE with a queue of earlier keys as the only negatives (MoCo).

    ``L = mean_i [ log( exp(q_i·k_i / t) + sum_j exp(q_i·Q_j / t) ) - q_i·k_i / t ]``.

    Args:
        queries: ``(B, D)``; normalised here.
        keys: ``(B, D)`` of the same samples; normalised here. Detach them where they come from a momentum
            encoder.
        queue: ``(K, D)`` unit rows, without gradient.
        temperature: ``t > 0``; a scalar tensor gets a gradient.
        ids: ``(B,)`` integers; queue entries with a query's id are not its negatives.
        queue_ids: ``(K,)`` ids of the queue; required with ``ids``.

    Returns:
        Scalar loss; over several processes this process' share.

    Raises:
        ValueError: for a bad shape, dtype or temperature.
    """
    check_views("queue_info_nce", (queries, keys), minimum=2)
    check_rows("queue_info_nce", "queue", queue, queries)
    check_ids("queue_info_nce", ids, queue_ids, len(queries), len(queue), "queue_ids")
    check_temperature("queue_info_nce", temperature)
    queries, keys = scaled_rows(queries, temperature), scaled_rows(keys, temperature)
    positives = (queries * keys).sum(-1)
    negatives = logsumexp_cross(queries, divide(queue.to(queries.dtype), temperature), ids, queue_ids)
    return global_mean(torch.logaddexp(positives, negatives) - positives)


class InfoNCE(Objective):
    """InfoNCE: each view's sample is told from the rest of the batch, or from a queue of earlier keys.

    The defaults are NT-Xent (SimCLR). ``negatives="cross"`` with ``learnable_temperature=True`` is CLIP's loss;
    ``decoupled=True`` is DCL; ``queue_size=65536``, with a momentum encoder for the keys, is MoCo;
    ``momentum_keys=True``, with one and ``Pretrain(symmetric=True)``, is MoCo v3 (arXiv 2104.02057), whose loss is
    ``2t`` times as large.

    Args:
        temperature: ``t``, or its initial value if learnable.
        negatives: ``"all"``: all views are candidates; ``"cross"``: only the other view.
        decoupled: leave the positive out of the denominator; ``"weighted"`` is DCLW.
        learnable_temperature: learn ``log(1 / t)``, kept within the two bounds at every step.
        temperature_min: lower bound of a learnable temperature (CLIP's 1/100).
        temperature_max: upper bound of a learnable temperature (CLIP's 1).
        queue_size: if above 0, negatives are the last so many keys instead of the batch. Called with
            ``(queries, keys)``. The queue is part of the state and is the same on all processes.
        sigma: width of DCLW's weights, above 0; read only by ``decoupled="weighted"``.
        momentum_keys: called with ``(queries, keys)``, tell each query's key from the keys of the other samples, and
            nothing else: neither from other queries, nor a key's query from other queries.

    Called with ``labels``, samples of equal labels are not each other's negatives: use it to mark known duplicates.

    Raises:
        ValueError: for options out of range or that exclude each other.
    """

    @checked
    def __init__(
        self,
        temperature: float = 0.1,
        negatives: Literal["all", "cross"] = "all",
        decoupled: bool | Literal["weighted"] = False,
        learnable_temperature: bool = False,
        temperature_min: float = 0.01,
        temperature_max: float = 1.0,
        queue_size: int = 0,
        sigma: float = _SIGMA,
        momentum_keys: bool = False,
    ) -> None:
        super().__init__()
        check_temperature("InfoNCE", temperature)
        self.sigma = check_number("InfoNCE", "sigma", sigma, "(0, inf)")
        self.momentum_keys = check_flag("InfoNCE", "momentum_keys", momentum_keys)
        if momentum_keys and (queue_size or negatives != "all" or decoupled):
            raise InvalidValue(
                f"InfoNCE: momentum_keys with queue_size={queue_size}, negatives={negatives!r}, "
                f"decoupled={decoupled!r}; the keys of the batch are the candidates, so leave the others at their "
                "defaults."
            )
        check_choice("InfoNCE", "negatives", negatives, ("all", "cross"))
        check_choice("InfoNCE", "decoupled", decoupled, (False, True, "weighted"))
        if learnable_temperature and not 0 < temperature_min <= temperature <= temperature_max:
            raise InvalidValue(
                f"InfoNCE: temperature {temperature} lies outside [temperature_min, temperature_max] = "
                f"[{temperature_min}, {temperature_max}]; widen the bounds or move the initial value."
            )
        check_temperature("InfoNCE", temperature_min, name_of_value="temperature_min")
        check_temperature("InfoNCE", temperature_max, name_of_value="temperature_max")
        if queue_size < 0 or (queue_size and (negatives != "all" or decoupled)):
            raise InvalidValue(
                f"InfoNCE: queue_size={queue_size} with negatives={negatives!r}, decoupled={decoupled!r}; a queue "
                "takes a size above 0 and replaces the negatives of the batch, so leave the others at their "
                "defaults."
            )
        self.negatives = negatives
        self.decoupled = decoupled
        self._bounds = (math.log(1 / temperature_max), math.log(1 / temperature_min))
        self._temperature = float(temperature)
        log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature))) if learnable_temperature else None
        self.register_parameter("log_scale", log_scale)
        self.queue = KeyQueue(queue_size) if queue_size else None

    log_scale: nn.Parameter | None

    @property
    def temperature(self) -> float | Tensor:
        """The present temperature; a scalar tensor with gradient if it is learnable."""
        return self._temperature if self.log_scale is None else (-self.log_scale).exp()

    def negatives_per_anchor(self, batch_size: int, num_views: int) -> int:
        """Negatives that one anchor meets: the queue's, or those of one pair of views of the batch."""
        if self.queue is not None:
            return self.queue.size
        if self.momentum_keys:
            return batch_size - 1
        return (2 if self.negatives == "all" else 1) * (batch_size - 1)

    def forward(self, *views: Tensor, index: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Return the loss of ``views``, each ``(B, D)``; with a queue, of ``(queries, keys)``."""
        if self.log_scale is not None:
            with torch.no_grad():
                self.log_scale.clamp_(*self._bounds)
        temperature = self.temperature
        if self.queue is not None:
            loss = self._contrast_with(self.queue, views, temperature, labels)
        elif self.momentum_keys:
            loss = self._contrast_keys(views, temperature, labels)
        else:
            loss = info_nce(
                *views,
                temperature=temperature,
                negatives=self.negatives,
                decoupled=self.decoupled,
                sigma=self.sigma,
                ids=labels,
            )
        self.log(temperature=temperature)
        return loss

    def _contrast_keys(
        self, views: tuple[Tensor, ...], temperature: float | Tensor, labels: Tensor | None
    ) -> Tensor:
        check_views("InfoNCE", views, minimum=2)
        if len(views) != 2:
            raise InvalidValue(
                f"InfoNCE: got {len(views)} views with momentum_keys; call it with two: (queries, keys)."
            )
        queries, keys = (scaled_rows(view, temperature) for view in views)
        rows, positives = gather(keys), (queries * keys).sum(-1)
        if len(rows.all) < 2:
            return zero_loss(
                "InfoNCE", "the global batch has fewer than two samples, so there are no negatives", views
            )
        ids = sample_ids("InfoNCE", labels, rows)  # a sample's own key comes back as the positive
        negatives = logsumexp_cross(queries, rows.all, ids.local, ids.all)
        return global_mean(torch.logaddexp(negatives, positives) - positives)

    def _contrast_with(
        self, queue: KeyQueue, views: tuple[Tensor, ...], temperature: float | Tensor, labels: Tensor | None
    ) -> Tensor:
        if len(views) != 2:
            raise InvalidValue(
                f"InfoNCE: got {len(views)} views with a queue; call it with two: (queries, keys)."
            )
        queries, keys = views
        queue.prepare(keys)
        ids = None if labels is None else queue.ids
        loss = queue_info_nce(
            queries, keys, queue.rows.clone(), temperature=temperature, ids=labels, queue_ids=ids
        )
        if self.training:
            queue.push(scaled_rows(keys, 1.0), labels)
        return loss
