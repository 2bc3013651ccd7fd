r"""CACR: Zheng et al., "Contrastive Attraction and Contrastive Repulsion", TMLR 2023, arXiv 2105.03746.

InfoNCE compares each positive with all negatives in one softmax. CACR lets the positives of a query compete among
themselves, where the farthest is pulled hardest, and the negatives among themselves, where the nearest is pushed
hardest, and adds the two costs. With unit vectors ``f`` and squared distances ``d(x, y) = |f(x) - f(y)|^2``,

    positive weights   a(x+ | x) ~ exp(+t+ d(x, x+))      attraction  L_CA =   E_x sum_{x+} a(x+ | x) d(x, x+)
    negative weights   r(x- | x) ~ exp(-t- d(x, x-))      repulsion   L_CR = - E_x sum_{x-} r(x- | x) d(x, x-)

    L = alpha L_CA + beta L_CR

The positives of a query are other views of its sample, the negatives are views of other samples. In the code ``t+``
and ``t-`` are the positive and the negative *temperature*. They multiply distances: 0 makes the weights uniform (the
paper's ablations), and larger is harder. ``alpha`` and ``beta`` are the attraction and the repulsion *weight*.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from contrastive.arguments import checked
from contrastive.checks import check_choice
from contrastive.errors import InvalidType, InvalidValue
from contrastive.objectives.base import Objective
from contrastive.objectives.inputs import (
    check_integers,
    check_rows,
    check_views,
    described,
    divide,
    sample_ids,
    scaled_rows,
)
from contrastive.objectives.queue import KeyQueue
from contrastive.similarity import Gathered, average, gather, global_sum, logsumexp_cross, stream_rows
from contrastive.similarity import rows as streaming
from contrastive.similarity.rows import RowLoss

Terms = tuple[Tensor, Tensor]


class CACR(Objective):
    """Contrastive attraction and contrastive repulsion, among the views of a batch or with momentum keys.

    - In the batch (the default): each of ``V = 1 + K`` views is a query once, its K positives are the other
      views; for each pair of views ``v < w``, rows of ``v`` are repelled by the rows of ``w`` of other samples.
    - ``queue_size`` above 0 (the MoCo-v2 form): positives are momentum keys, negatives are a queue of earlier
      keys and the other rows of the query's own view.
    - ``momentum_keys=True`` (the MoCo-v3 form): positives and negatives are the momentum keys of the batch, and
      the positive weights are shared out among the queries of a key. With two views and ``"rbf"`` this is
      InfoNCE at temperature ``1 / (2 t-)``, times twice that temperature.

    With momentum keys it is called with ``(query, key)``, two views of a sample, as ``Pretrain(momentum=...)`` does,
    or as ``(query_1, ..., query_V, keys=(key_1, ..., key_W))``: query ``v`` and key ``v`` are of one view, and so no
    positives of each other.

    Called with ``labels``, samples of equal labels are not each other's negatives: use it to mark known duplicates,
    which would be repelled hardest of all.

    The loss is usually negative. Its gradients are not magnified by an inverse temperature, so SGD needs a larger
    learning rate than with InfoNCE. ``stats`` hold both terms, weighted.

    Args:
        positive_temperature: ``t+``, 0 or more. Has no effect on a query with one positive.
        negative_temperature: ``t-``, 0 or more; 0.9 (CIFAR-10) and 2 are published.
        distance: ``"euclidean"``: repulsion is minus the mean squared distance. ``"rbf"``: it is the logarithm of
            the mean kernel ``exp(-rbf_scale d)`` or, with ``momentum_keys``, ``log(sum exp(-t- d)) / t-`` with the
            positive among the candidates.
        rbf_scale: sharpness of the kernel, above 0 and at most 20; read by ``"rbf"`` but with ``momentum_keys``.
        attraction_weight: ``alpha``.
        repulsion_weight: ``beta``.
        debias: prior probability that a negative is of the query's class. Above 0 repulsion becomes
            ``(beta L_CR + debias d(x, x+)) / (1 - debias)``. In the batch and Euclidean only.
        weight_grad: whether gradients pass through the weights, ``"full"`` or ``"none"``; with a queue also
            ``"batch"``: through the negative weights of the batch's own rows. None takes ``"full"`` in the batch
            and ``"none"`` with momentum keys.
        queue_size: number of earlier keys.
        in_batch: repel the other rows of a query's view beside the queue; read with a queue.
        momentum_keys: take the MoCo-v3 form.
        variant: ``"released"`` repeats what the published code does otherwise. The debiasing term has the
            opposite sign; with a queue, the first view's similarities to it serve every view, and ``weight_grad``
            is ``"batch"``; with ``momentum_keys`` the Euclidean loss is a sum over the batch, halved. Of several
            processes it is the sum over the global batch, so that N processes are one, where the published code has
            each process sum its own: there every process' share, and the step, is 1/N of that here.

    Raises:
        ValueError: for options out of range or that exclude each other.
    """

    @checked
    def __init__(
        self,
        positive_temperature: float = 1.0,
        negative_temperature: float = 2.0,
        distance: Literal["euclidean", "rbf"] = "euclidean",
        rbf_scale: float = 2.0,
        attraction_weight: float = 1.0,
        repulsion_weight: float = 1.0,
        debias: float = 0.0,
        weight_grad: Literal["full", "batch", "none"] | None = None,
        queue_size: int = 0,
        in_batch: bool = True,
        momentum_keys: bool = False,
        variant: Literal["corrected", "released"] = "corrected",
    ) -> None:
        super().__init__()
        if queue_size < 0 or (queue_size and momentum_keys):
            raise InvalidValue(
                f"CACR: queue_size={queue_size} with momentum_keys={momentum_keys}; a queue takes a size above 0 and "
                "is a form of its own, so leave momentum_keys at False."
            )
        self.options = _Options(
            positive_temperature,
            negative_temperature,
            distance,
            rbf_scale,
            attraction_weight,
            repulsion_weight,
            debias,
            weight_grad,
            in_batch,
            variant,
        )
        self.momentum_keys = momentum_keys
        self.queue = KeyQueue(queue_size) if queue_size else None
        self.options.check(has_keys=momentum_keys or queue_size > 0, has_queue=queue_size > 0)

    def negatives_per_anchor(self, batch_size: int, num_views: int) -> int:
        """Negatives that one row meets: those of one other view, and of the queue."""
        if self.queue is None:
            return batch_size - 1
        return self.queue.size + (batch_size - 1 if self.options.in_batch else 0)

    def forward(
        self,
        *views: Tensor,
        index: Tensor | None = None,
        labels: Tensor | None = None,
        keys: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return the loss of ``views``, each ``(B, D)``; with momentum keys, of queries and ``keys``."""
        has_keys = self.queue is not None or self.momentum_keys
        if has_keys and keys is None:
            if len(views) != 2:
                raise InvalidValue(
                    f"CACR: got {len(views)} views and no keys; with momentum keys call it with (query, key), or with "
                    "one query for each view and keys=(key_1, ...)."
                )
            views, keys = views[:1], views[1:]
        elif not has_keys and keys is not None:
            raise InvalidValue("CACR: got keys, but neither queue_size nor momentum_keys is set; set one.")
        queue = queue_ids = None
        if self.queue is not None:
            self.queue.prepare(views[0])
            queue, queue_ids = self.queue.rows.clone(), self.queue.ids.clone()
        attraction, repulsion = _terms(self.options, views, keys, queue, labels, queue_ids)
        if self.queue is not None and keys is not None and self.training:
            self.queue.push(scaled_rows(keys[-1], 1.0), labels)
        self.log(attraction=attraction, repulsion=repulsion)
        return attraction + repulsion


def cacr(
    *views: Tensor,
    keys: Sequence[Tensor] | None = None,
    queue: Tensor | None = None,
    ids: Tensor | None = None,
    queue_ids: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Attraction plus repulsion: in the batch, or with momentum ``keys``, or with keys and a ``queue``.

    Args:
        *views: two or more ``(B, D)``, row ``b`` of each from the same sample; normalised here. The queries, if there
            are ``keys``.
        keys: one or more ``(B, D)``; normalised here. Detach them where they come from a momentum encoder. Of several
            queries and keys, query ``v`` and key ``v`` are of one view.
        queue: ``(N, D)`` unit rows, without gradient.
        ids: ``(B,)`` integers; samples with equal ids are never each other's negatives.
        queue_ids: ``(N,)`` ids of the queue; required with ``ids``.
        **options: ``positive_temperature``, ``negative_temperature``, ``distance``, ``rbf_scale``,
            ``attraction_weight``, ``repulsion_weight``, ``debias``, ``weight_grad``, ``in_batch`` and ``variant`` of
            :class:`CACR`.

    Returns:
        Scalar loss; over several processes this process' share (see
        :func:`contrastive.similarity.global_mean`).

    Raises:
        ValueError: for a bad shape, dtype or option.
    """
    chosen = _Options(**options)
    chosen.check(has_keys=keys is not None, has_queue=queue is not None)
    attraction, repulsion = _terms(chosen, views, keys, queue, ids, queue_ids)
    return attraction + repulsion


@dataclass(frozen=True)
class _Options:
    """Options of :class:`CACR` that its mathematics reads."""

    positive_temperature: float = 1.0
    negative_temperature: float = 2.0
    distance: str = "euclidean"
    rbf_scale: float = 2.0
    attraction_weight: float = 1.0
    repulsion_weight: float = 1.0
    debias: float = 0.0
    weight_grad: str | None = None
    in_batch: bool = True
    variant: str = "corrected"

    def check(self, *, has_keys: bool, has_queue: bool) -> None:
        """Refuse options that are out of range, or that the form cannot use."""
        check_choice("CACR", "distance", self.distance, ("euclidean", "rbf"))
        check_choice("CACR", "weight_grad", self.weight_grad, (None, "full", "none", "batch"))
        check_choice("CACR", "variant", self.variant, ("corrected", "released"))
        for name in ("positive_temperature", "negative_temperature", "attraction_weight", "repulsion_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidValue(f"CACR: {name} is {value}; give a number of at least 0.")
        if not 0 < self.rbf_scale <= 20:
            raise InvalidValue(
                f"CACR: rbf_scale is {self.rbf_scale}; give a number above 0 and at most 20, beyond which kernels of "
                "far rows vanish in float32."
            )
        if not 0 <= self.debias < 1 or (self.debias and (has_keys or self.distance == "rbf")):
            raise InvalidValue(
                f"CACR: debias is {self.debias}; give a prior in [0, 1), and 0 with momentum keys or distance='rbf'."
            )
        if self.weight_grad == "batch" and not has_queue:
            raise InvalidValue("CACR: weight_grad='batch' needs a queue; give 'full' or 'none'.")
        if self.distance == "rbf" and has_keys and not has_queue and self.negative_temperature == 0:
            raise InvalidValue(
                "CACR: negative_temperature is 0; distance='rbf' with momentum_keys divides by it, so give a positive "
                "number."
            )


def _terms(
    options: _Options,
    views: Sequence[Tensor],
    keys: Sequence[Tensor] | None,
    queue: Tensor | None,
    ids: Tensor | None,
    queue_ids: Tensor | None,
) -> Terms:
    """Weighted attraction and weighted repulsion."""
    if keys is not None and (not isinstance(keys, list | tuple) or not keys):
        raise InvalidType(f"CACR: keys is {described(keys)}; give a sequence of views, keys=(key_1, ...).")
    check_views("CACR", (*views, *(keys or ())), minimum=2)
    if queue is not None:
        check_rows("CACR", "queue", queue, views[0])
        if queue_ids is not None:
            check_integers("CACR", "queue_ids", queue_ids, len(queue))
    with torch.autocast(views[0].device.type, enabled=False):
        if keys is None:
            return _in_batch(options, _rows(views), ids)
        if len(views) * len(keys) > 1 and min(len(views), len(keys)) < 2:
            raise InvalidValue(
                f"CACR: got {len(views)} queries and {len(keys)} keys; give one of each, from two views, or at least "
                "two of each, so that every query finds the key of another view."
            )
        if queue is None:
            return _with_keys(options, _rows(views), _rows(keys), ids)
        return _with_queue(options, _rows(views), _rows(keys), queue, ids, queue_ids)


def _in_batch(options: _Options, rows: Tensor, ids: Tensor | None) -> Terms:
    """Every view attracts the others of its sample; each pair of views repels."""
    samples = gather(rows)
    local, (count, num_views) = rows, rows.shape[:2]
    grad = options.weight_grad or "full"

    weights, distances = _positive_weights(options, local, local, grad, over=2)
    attraction = options.attraction_weight * average((weights * distances).sum() / num_views, count)
    if len(samples.all) < 2:
        return attraction, _nothing_repelled(local)

    negatives = _negatives(samples, ids)
    row_loss = _repelled(options, grad, negatives)
    share = local.new_ones(count)
    queries, keys = local.unbind(1), samples.all.unbind(1)
    pairs = combinations(range(num_views), 2)
    totals = [_stream(queries[v], keys[w], row_loss, share) for v, w in pairs]
    repulsion = _mean_over_queries(options, totals, count)
    if options.debias:
        positive = average(distances.sum() / (num_views * (num_views - 1)), count)
        sign = -1 if options.variant == "released" else 1
        repulsion = (repulsion + sign * options.debias * positive) / (1 - options.debias)
    return attraction, repulsion


def _with_queue(
    options: _Options,
    local: Tensor,
    keys: Tensor,
    queue: Tensor,
    ids: Tensor | None,
    queue_ids: Tensor | None,
) -> Terms:
    """Keys attract; a queue of earlier keys and the other rows of the query's own view repel."""
    samples = gather(local)
    count, num_views = local.shape[:2]
    released = options.variant == "released"
    grad = options.weight_grad or ("batch" if released else "none")

    weights, distances = _positive_weights(options, local, keys, grad, over=2)
    attraction = options.attraction_weight * average((weights * distances).sum() / num_views, count)

    queue = queue.to(local.dtype)
    negatives = _negatives(samples, ids).after_queue(len(queue), queue_ids, options.in_batch)
    row_loss = _repelled(options, grad, negatives)
    share = local.new_ones(count)
    totals = []
    queries, candidates = local.unbind(1), samples.all.unbind(1)
    for v in range(num_views):
        batch = (queries[v], candidates[v]) if options.in_batch else ()
        totals.append(_stream(queries[0 if released else v], queue, row_loss, share, *batch))
    return attraction, _mean_over_queries(options, totals, count)


def _with_keys(options: _Options, local: Tensor, keys: Tensor, ids: Tensor | None) -> Terms:
    """Keys of the batch attract and repel; the queries of a key share its weight, for both."""
    samples = gather(keys)
    count, num_keys = keys.shape[:2]
    euclidean, grad = options.distance == "euclidean", options.weight_grad or "none"

    weights, distances = _positive_weights(options, local, keys, grad, over=1)
    attraction = options.attraction_weight * average((weights * distances).sum() / num_keys, count)
    if euclidean and len(samples.all) < 2:
        return attraction, _nothing_repelled(local)

    negatives = _negatives(samples, ids)
    row_loss = _repelled(options, grad, negatives)
    totals = []
    for v, w in _pairs(local.shape[1], num_keys):
        share, query, key = weights[:, v, w], local[:, v], samples.all[:, w]
        if euclidean:
            totals.append(_stream(query, key, row_loss, share))
        else:
            totals.append((share * _log_kernels(options, query, key, distances[:, v, w], negatives)).sum())
    repulsion = options.repulsion_weight * average(torch.stack(totals).sum() / num_keys, count)
    if euclidean and options.variant == "released":
        halved_sum = 0.5 * global_sum(torch.tensor(count, device=local.device))
        attraction, repulsion = halved_sum * attraction, halved_sum * repulsion
    return attraction, repulsion


class _Negatives(NamedTuple):
    """Columns that are no negatives of a row: its own, ``own`` for row 0, or else all of the row's id."""

    own: int | None
    ids: Tensor | None = None
    column_ids: Tensor | None = None

    def after_queue(self, size: int, queue_ids: Tensor | None, in_batch: bool) -> "_Negatives":
        """The same where the columns of a queue come first, and those of the batch follow if ``in_batch``."""
        if self.ids is None or self.column_ids is None:
            return _Negatives(size + (self.own or 0) if in_batch else None)
        if queue_ids is None:
            raise InvalidValue("CACR: got ids for the batch and none for the queue; give queue_ids too.")
        return _Negatives(None, self.ids, torch.cat([queue_ids, self.column_ids]) if in_batch else queue_ids)


def _negatives(samples: Gathered, ids: Tensor | None) -> _Negatives:
    """Negatives among the samples of all processes."""
    if ids is None:
        return _Negatives(samples.start)
    return _Negatives(None, *sample_ids("CACR", ids, samples)[:2])


def _positive_weights(
    options: _Options, queries: Tensor, keys: Tensor, grad: str, *, over: Literal[1, 2]
) -> tuple[Tensor, Tensor]:
    """Weights of positives, a softmax ``over`` queries (1) or keys (2), and distances, both ``(B, V, W)``.

    Of several views, equal ones are no positives: they have weight 0 and distance 0.
    """
    distances = (2 - 2 * queries @ keys.transpose(1, 2)).clamp(min=0)
    num_queries, num_keys = distances.shape[1:]
    same_view = torch.eye(num_queries, num_keys, dtype=torch.bool, device=queries.device)
    if num_queries == num_keys == 1:
        same_view = ~same_view
    distances = distances.masked_fill(same_view, 0.0)
    exponent = options.positive_temperature * (distances if grad == "full" else distances.detach())
    return exponent.masked_fill(same_view, -torch.inf).softmax(over), distances


def _stream(queries: Tensor, keys: Tensor, row_loss: RowLoss, *params: Tensor) -> Tensor:
    """:func:`stream_rows` in blocks so small that the many intermediate results of the row loss stay in cache."""
    block_size = streaming.choose_block_size(8 * len(keys), queries.device)
    return stream_rows(queries, keys, row_loss, *params, block_size=block_size)


def _repelled(options: _Options, grad: str, negatives: _Negatives) -> RowLoss:
    """Row loss: the cost of each query's negatives under their weights, times the query's share, summed."""
    own, ids, column_ids = negatives
    sharpness = 2 * options.negative_temperature  # of similarities: d = 2 - 2 s

    def row_loss(similarity: Tensor, rows: slice, share: Tensor, *batch: Tensor) -> Tensor:
        steering = similarity if grad == "full" else similarity.detach()
        if batch:  # after the columns of the queue
            more = batch[0][rows] @ batch[1].T
            similarity = torch.cat([similarity, more], 1)
            steering = torch.cat([steering, more if grad != "none" else more.detach()], 1)
        exponent, exists = sharpness * steering, share.new_ones(())
        if ids is not None and column_ids is not None:
            left_out = ids[rows, None] == column_ids
            some = ~left_out.all(1)
            exponent = exponent.masked_fill(left_out & some[:, None], -torch.inf)
            exists = some.to(similarity.dtype)  # a row without negatives repels nothing
        elif own is not None:
            with torch.no_grad():  # the softmax passes no gradient to where it is 0
                exponent.diagonal(own + rows.start).fill_(-torch.inf)
        weights = exponent.softmax(1)
        if options.distance == "euclidean":
            cost = 2 * (weights * similarity).sum(1) - 2
        else:
            cost = (weights * (2 * options.rbf_scale * (similarity - 1)).exp()).sum(1)
        return (share[rows] * exists * cost).sum()

    return row_loss


def _log_kernels(
    options: _Options, queries: Tensor, keys: Tensor, positive: Tensor, negatives: _Negatives
) -> Tensor:
    """``log( exp(-t- d(q, k+)) + sum over negatives of exp(-t- d(q, k)) ) / t-`` of each query, ``(B,)``."""
    temperature = options.negative_temperature
    queries, keys = divide(queries, 1 / (2 * temperature)), divide(keys, 1 / (2 * temperature))
    candidates = logsumexp_cross(queries, keys, negatives.ids, negatives.column_ids) - 2 * temperature
    if negatives.ids is not None:  # the positive was left out with its sample: it comes back
        candidates = torch.logaddexp(candidates, -temperature * positive)
    return candidates / temperature


def _mean_over_queries(options: _Options, totals: list[Tensor], count: int) -> Tensor:
    """Weighted repulsion from sums over the own queries: their mean over all processes, or its logarithm."""
    stacked = torch.stack(totals)
    if options.distance == "euclidean":
        return options.repulsion_weight * average(stacked.mean(), count)
    # Inside the logarithm stand the queries of all processes.
    whole = gather(stacked[None]).all.sum(0) / global_sum(torch.tensor(count, device=stacked.device))
    whole = torch.where(whole > 0, whole, torch.ones_like(whole))
    return options.repulsion_weight * whole.log().mean()


def _nothing_repelled(rows: Tensor) -> Tensor:
    warnings.warn("CACR: the global batch has fewer than two samples, so nothing is repelled.", stacklevel=3)
    return (rows * 0.0).sum()


def _rows(views: Sequence[Tensor]) -> Tensor:
    """Unit rows ``(B, V, D)``."""
    return scaled_rows(torch.stack(list(views), 1), 1.0)


def _pairs(num_queries: int, num_keys: int) -> list[tuple[int, int]]:
    """Queries and keys of different views; a single query and a single key always are."""
    pairs = list(product(range(num_queries), range(num_keys)))
    return pairs if len(pairs) == 1 else [(v, w) for v, w in pairs if v != w]
