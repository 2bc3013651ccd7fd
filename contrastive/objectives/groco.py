r"""GroCo: Shvetsova et al., "Learning by Sorting: Self-supervised Learning with Group Ordering Constraints", ICCV 2023.

arXiv 2301.02009. For each anchor, the group of its positives should rank above the group of its k nearest negatives;
the order within a group does not matter. The similarities ``[negatives | positives]`` of the anchor, each group in
ascending order, run through a differentiable sorting network with the soft permutation ``P`` (see
:mod:`contrastive.objectives.sorting`). The first k outputs are the places of the negatives, so input i is among the
negatives with probability (the paper's group sums, section 3.3)

    q_i = sum_{j < k} P_ij

and the loss is the binary cross-entropy between ``q_i`` and whether input i is a negative, averaged over the
``n = k + m`` inputs of all anchors, then over views. Every view of every sample is an anchor. Its m positives are the
other views of its sample (with small crops: the large ones only), its negatives the same view of other samples.

Gradients are small: with one positive, ten negatives and steepness 1 the loss stays between 0.147 and 0.264, and moves
each row by about 1e-3. Plain SGD wants a very large learning rate (24 in the paper), Adam and its relatives adapt.
"""

import warnings
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive.arguments import checked
from contrastive.checks import LARGEST, check_choice, check_flag, check_whole
from contrastive.errors import InvalidValue, NotFinite
from contrastive.objectives.base import Objective
from contrastive.objectives.inputs import check_views
from contrastive.objectives.sorting import (
    Comparator,
    ComparatorName,
    back_through_network,
    build_comparator,
    build_network,
)
from contrastive.similarity import average, gather, global_sum, stream_rows

NetworkName = Literal["odd_even", "bitonic", "merge"]

# Anchors sorted at once times wires squared. Beyond, sweeps are made again in backward instead of being kept.
_SORTED_ON_CPU, _SORTED_ON_GPU = 2**22, 2**27


def groco(
    *views: Tensor,
    num_negatives: int = 10,
    steepness: float = 1.0,
    num_positive_views: int | None = None,
    stop_gradient: bool = True,
    network: NetworkName = "odd_even",
    comparator: ComparatorName = "cauchy",
    exponent: float = 0.25,
) -> Tensor:
    """Group ordering loss: all positives of an anchor above its nearest negatives.

    Args:
        *views: two or more ``(B, D)``, row ``b`` of each from the same sample; normalised here.
        num_negatives: k, the nearest negatives that each anchor keeps; all there are, with a warning, if the global
            batch has fewer.
        steepness: slope of the comparator over cosine similarities.
        num_positive_views: the first so many views serve as positives, all of them by default; the others (small
            crops) are anchors only.
        stop_gradient: a gradient only through anchors, not through positives and negatives.
        network: ``"odd_even"`` (the paper's) or ``"bitonic"``, a full sort in fewer layers; or ``"merge"``, the last
            ``log2(n)`` layers of ``"bitonic"``, which suffice for two groups in order, and sort less softly.
        comparator: one of :data:`contrastive.objectives.sorting.COMPARATORS`; ``"cauchy"`` is the paper's.
        exponent: read by the comparator ``"logistic_phi"``.

    Returns:
        Scalar loss; over several processes this process' share (see
        :func:`contrastive.similarity.global_mean`).

    Raises:
        ValueError: for a bad shape, dtype or option, or fewer than two samples in the global batch.
        FloatingPointError: if a view is not finite.
    """
    alpha = _check_options(
        "groco", num_negatives, steepness, num_positive_views, network, comparator, exponent
    )
    stop_gradient = check_flag("groco", "stop_gradient", stop_gradient)
    loss, _, kept = _groco("groco", views, num_negatives, num_positive_views, stop_gradient, network, alpha)
    if kept < num_negatives:
        _warn_of_few_negatives("groco", num_negatives, kept)
    return loss


def _groco(
    name: str,
    views: tuple[Tensor, ...],
    num_negatives: int,
    num_positive_views: int | None,
    stop_gradient: bool,
    network: str,
    alpha: Comparator,
) -> tuple[Tensor, Tensor, int]:
    """The loss, the share of anchors of all processes that are in order, and the negatives kept."""
    check_views(name, views, minimum=2)
    num_positive_views = len(views) if num_positive_views is None else num_positive_views
    if num_positive_views > len(views):
        raise InvalidValue(
            f"{name}: num_positive_views is {num_positive_views}, but there are {len(views)} views; give at most "
            "that many, or None for all."
        )
    with torch.autocast(views[0].device.type, enabled=False):
        anchors = torch.stack(views, 1)
        anchors = F.normalize(
            anchors if anchors.dtype == torch.float64 else anchors.float(), dim=-1, eps=1e-8
        )
        others = anchors.detach() if stop_gradient else anchors
        candidates = gather(others)
        _check_candidates(name, candidates.all)
        num_negatives = min(num_negatives, len(candidates.all) - 1)
        similarities = anchors @ others[:, :num_positive_views].transpose(1, 2)  # (B, views, positive views)

    # Views with as many positives, (m, (view, columns of its positives)), are sorted together: at most two groups.
    groups: dict[int, list[tuple[int, list[int]]]] = {}
    for view in range(len(views)):
        columns = [column for column in range(num_positive_views) if column != view]
        groups.setdefault(len(columns), []).append((view, columns))
    loss, in_order = anchors.new_zeros(()), torch.zeros((), device=anchors.device)
    for num_positives, members in groups.items():
        negatives = torch.cat(
            [
                _nearest(anchors[:, view], candidates.all[:, view], num_negatives, candidates.start)
                for view, _ in members
            ]
        )
        positives = torch.cat([similarities[:, view, columns] for view, columns in members])
        in_order += (negatives.amax(1) < positives.amin(1)).sum()
        total = _sum_over_anchors(negatives, positives, network, alpha)
        loss = loss + average(total, len(anchors)) / (num_negatives + num_positives)
    share = global_sum(in_order) / (len(candidates.all) * len(views))
    return loss / len(views), share, num_negatives


def _nearest(anchors: Tensor, candidates: Tensor, k: int, start: int) -> Tensor:
    """Products ``(M, k)`` of each anchor with its k nearest candidates but itself, in ascending order."""
    values = anchors.new_empty(len(anchors), k)
    nearest = torch.empty(len(anchors), k, dtype=torch.int64, device=anchors.device)

    def select(similarity: Tensor, rows: slice) -> Tensor:
        itself = torch.arange(rows.start, rows.stop, device=similarity.device)[:, None] + start
        similarity.scatter_(1, itself, -torch.inf)  # a block that nobody else reads
        values[rows], nearest[rows] = _largest(similarity, k)
        return similarity.new_zeros(())

    stream_rows(anchors.detach(), candidates.detach(), select)  # those not selected have no gradient
    products: Tensor = _Products.apply(anchors, candidates, nearest, values)
    return products


def _largest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row and their columns, ``(m, k)`` each, in ascending order of values.

    They lie in the k sets of columns with the largest maxima: where these are few, selecting them first is faster.
    """
    columns, size = None, 8
    num_sets = similarity.shape[1] // size
    if k <= num_sets // 4:
        sets = similarity[:, : size * num_sets].view(-1, size, num_sets)
        chosen = sets.amax(1).topk(k, sorted=False).indices[:, :, None]
        members = chosen + num_sets * torch.arange(size, device=similarity.device)
        rest = torch.arange(size * num_sets, similarity.shape[1], device=similarity.device)
        columns = torch.cat([members.flatten(1), rest.expand(len(similarity), -1)], 1)
        similarity = similarity.gather(1, columns)
    values, found = similarity.topk(k)
    return values.flip(1), (found if columns is None else columns.gather(1, found)).flip(1)


class _Products(torch.autograd.Function):
    """Products ``values (M, k)`` of anchors ``(M, D)`` with ``nearest`` rows of the candidates ``(N, D)``, made before.

    Backward gathers and sums in one pass, without an ``(M, k, D)`` or ``(M, N)`` tensor.
    """

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, candidates: Tensor, nearest: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(anchors, candidates, nearest)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        anchors, candidates, nearest = ctx.saved_tensors
        grad_anchors, grad_candidates = None, None
        if ctx.needs_input_grad[0]:
            grad_anchors = F.embedding_bag(nearest, candidates, per_sample_weights=grad, mode="sum")
        if ctx.needs_input_grad[1]:  # the same with the roles exchanged: each candidate's anchors, in order
            order = nearest.flatten().argsort()
            counts = torch.bincount(nearest.flatten(), minlength=len(candidates))
            grad_candidates = F.embedding_bag(
                order // nearest.shape[1],
                anchors,
                counts.cumsum(0) - counts,
                per_sample_weights=grad.flatten()[order],
                mode="sum",
            )
        return grad_anchors, grad_candidates, None, None


def _sum_over_anchors(negatives: Tensor, positives: Tensor, network: str, alpha: Comparator) -> Tensor:
    """:func:`group_cross_entropy`, of so many anchors at a time that sorting them stays within a budget of memory."""
    budget = _SORTED_ON_CPU if negatives.device.type == "cpu" else _SORTED_ON_GPU
    rows = max(16, budget // (negatives.shape[1] + positives.shape[1]) ** 2)
    with torch.autocast(negatives.device.type, enabled=False):
        totals = [
            group_cross_entropy(*part, network, alpha, remember=len(negatives) <= rows)
            for part in zip(torch.split(negatives, rows), torch.split(positives, rows), strict=True)
        ]
        return torch.stack(totals).sum()


def group_cross_entropy(
    negatives: Tensor, positives: Tensor, network: str, alpha: Comparator, *, remember: bool = True
) -> Tensor:
    """Cross-entropy between soft and true membership of the groups, summed over anchors and inputs.

    Args:
        negatives: similarities ``(R, k)`` in ascending order.
        positives: similarities ``(R, m)`` in any order.
        network: as in :func:`groco`.
        alpha: the comparator, from :func:`contrastive.objectives.sorting.build_comparator`.
        remember: as in :func:`contrastive.objectives.sorting.back_through_network`.
    """
    # The merging network wants its second half reversed.
    positives = positives.sort(1, descending=network == "merge").values
    wires = torch.cat([negatives, positives], 1).T
    is_negative = torch.zeros(len(wires), 1, dtype=wires.dtype, device=wires.device)
    is_negative[: negatives.shape[1]] = 1
    layers = build_network(network, len(wires), wires.device)
    among_negatives = back_through_network(wires, is_negative, layers, alpha, remember=remember)
    among_negatives = among_negatives.clamp(0, 1)  # rounding
    return F.binary_cross_entropy(among_negatives, is_negative.expand_as(wires), reduction="sum")


class GroCo(Objective):
    """Order every anchor's positives above its nearest negatives, by differentiable sorting. See :func:`groco`.

    The value says little: at steepness 1 it is 0.147 when perfect. ``stats["in_order"]`` is the share of anchors
    whose positives all stand above all of their negatives.

    Args:
        num_negatives: nearest negatives that each anchor keeps; all of them where the batch has fewer.
        steepness: slope of the comparator.
        num_positive_views: the first so many views serve as positives; all by default, 2 for multi-crop.
        stop_gradient: a gradient only through anchors.
        network: ``"odd_even"``, ``"bitonic"`` or ``"merge"``.
        comparator: one of :data:`contrastive.objectives.sorting.COMPARATORS`.
        exponent: read by the comparator ``"logistic_phi"``.

    Raises:
        ValueError: for a value outside its range.
    """

    @checked
    def __init__(
        self,
        num_negatives: int = 10,
        steepness: float = 1.0,
        num_positive_views: int | None = None,
        stop_gradient: bool = True,
        network: NetworkName = "odd_even",
        comparator: ComparatorName = "cauchy",
        exponent: float = 0.25,
    ) -> None:
        super().__init__()
        self._alpha = _check_options(
            "GroCo", num_negatives, steepness, num_positive_views, network, comparator, exponent
        )
        self.num_negatives = num_negatives
        self.num_positive_views = num_positive_views
        self.stop_gradient = stop_gradient
        self.network = network
        self._warned = False

    def negatives_per_anchor(self, batch_size: int, num_views: int) -> int:
        """Negatives that each anchor keeps."""
        return min(self.num_negatives, batch_size - 1)

    def forward(self, *views: Tensor, index: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Return the loss of ``views``, each ``(B, D)``; ``index`` and ``labels`` have no part in it."""
        loss, in_order, kept = _groco(
            "GroCo",
            views,
            self.num_negatives,
            self.num_positive_views,
            self.stop_gradient,
            self.network,
            self._alpha,
        )
        if kept < self.num_negatives and not self._warned:
            self._warned = True
            _warn_of_few_negatives("GroCo", self.num_negatives, kept)
        self.log(in_order=in_order)
        return loss


def _check_options(
    name: str,
    num_negatives: int,
    steepness: float,
    num_positive_views: int | None,
    network: str,
    comparator: str,
    exponent: float,
) -> Comparator:
    if check_whole(name, "num_negatives", num_negatives, -LARGEST) < 1:
        raise InvalidValue(f"{name}: num_negatives is {num_negatives}; give at least 1, usually 10.")
    if (
        num_positive_views is not None
        and check_whole(name, "num_positive_views", num_positive_views, -LARGEST) < 2
    ):
        raise InvalidValue(
            f"{name}: num_positive_views is {num_positive_views}, which leaves the first view without a positive; "
            "give at least 2, or None for all views."
        )
    check_choice(name, "network", network, ("odd_even", "bitonic", "merge"))
    return build_comparator(name, comparator, steepness, exponent)


def _check_candidates(name: str, candidates: Tensor) -> None:
    """Refuse a batch without negatives, and values that sorting would spread; the same on every process."""
    if len(candidates) < 2:
        raise InvalidValue(
            f"{name}: the global batch has {len(candidates)} samples, so no anchor has a negative; give at least 2 "
            "(drop a last incomplete batch)."
        )
    bad = ~torch.isfinite(candidates.sum(2))
    if bool(bad.any()):
        row, view = bad.nonzero()[0].tolist()
        raise NotFinite(
            f"{name}: row {row} of view {view} of the global batch is not finite ({int(bad.sum())} of {bad.numel()} "
            "rows are not). Lower the learning rate, clip gradients, or look for bad values in the inputs."
        )


def _warn_of_few_negatives(name: str, wanted: int, kept: int) -> None:
    warnings.warn(
        f"{name}: num_negatives is {wanted}, but a global batch of {kept + 1} samples has {kept}; all of them are "
        "kept. Later batches that are too small are not reported.",
        stacklevel=4,
    )
