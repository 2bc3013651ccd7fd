"""SupCon: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, arXiv 2004.11362."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive.arguments import checked
from contrastive.checks import check_choice, check_flag
from contrastive.objectives.base import Objective
from contrastive.objectives.inputs import (
    check_temperature,
    check_views,
    divide,
    sample_ids,
    scaled_rows,
    zero_loss,
)
from contrastive.similarity import (
    Gathered,
    average,
    gather,
    global_mean,
    global_sum,
    logsumexp_cross,
    logsumexp_self,
    stream_rows,
)


def sup_con(
    *views: Tensor,
    labels: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    base_temperature: float = 0.07,
    denominator: Literal["all", "negatives"] = "all",
    anchors: Literal["all", "first"] = "all",
    lone_anchors: Literal["skip", "zero"] = "skip",
    normalize: bool = True,
) -> Tensor:
    r"""Supervised contrastive loss: every other row of the same class is a positive.

    ``"all"``: ``l_i = (t / t_base) [ log sum_{k != i} exp(s_ik / t) - mean_{p in P(i)} s_ip / t ]``, averaged over
    anchors (Khosla et al. 2020, eq. 2, "out"). ``"negatives"``: each positive pair against the negatives only,
    ``log(exp(s_ip / t) + sum_{n not in P(i)} exp(s_in / t)) - s_ip / t``, averaged over positive pairs.

    Args:
        *views: one or more ``(B, D)``, row ``b`` of each from the same sample.
        labels: ``(B,)`` integers; without them only the other views of a sample are positives.
        temperature: ``t > 0``; a scalar tensor gets a gradient.
        base_temperature: ``t_base``; the published code multiplies its loss by ``t / t_base``. Read by ``"all"``.
        denominator: what a positive is compared with.
        anchors: rows of all views, or of the first view only. Candidates are always the rows of all views.
        lone_anchors: anchors without a positive are left out of the mean (``"skip"``), or count as zeros in it
            (``"zero"``: the published code). Read by ``"all"``.
        normalize: divide rows by their length first; switch off only if that was done already.

    Returns:
        Scalar loss; over several processes this process' share. A differentiable zero, with a warning, when
        no anchor has a positive.

    Raises:
        ValueError: for a bad shape, dtype, temperature or option.
    """
    return _sup_con(
        views, labels, temperature, base_temperature, denominator, anchors, lone_anchors, normalize=normalize
    )[0]


def _sup_con(
    views: tuple[Tensor, ...],
    labels: Tensor | None,
    temperature: float | Tensor,
    base_temperature: float,
    denominator: str,
    anchors: str,
    lone_anchors: str,
    *,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """The loss and the number of anchors, on any process, that have no positive."""
    check_views("sup_con", views, minimum=1)
    check_temperature("sup_con", temperature)
    if normalize is not True:
        normalize = check_flag("sup_con", "normalize", normalize)
    check_temperature("sup_con", base_temperature, name_of_value="base_temperature")
    check_choice("sup_con", "denominator", denominator, ("all", "negatives"))
    check_choice("sup_con", "anchors", anchors, ("all", "first"))
    check_choice("sup_con", "lone_anchors", lone_anchors, ("skip", "zero"))
    stacked = torch.stack(views, 1)
    samples = gather(scaled_rows(stacked, temperature) if normalize else divide(stacked, temperature))
    labels_of = sample_ids("sup_con", labels, samples)

    num_views = len(views)
    local, local_labels = samples.local.flatten(0, 1), labels_of.local.repeat_interleave(num_views)
    whole = samples.all is samples.local
    rows = Gathered(local, local if whole else samples.all.flatten(0, 1), samples.start * num_views)
    all_labels = labels_of.all.repeat_interleave(num_views)
    own = torch.arange(len(local), device=local.device) + rows.start
    if anchors == "first":
        local, local_labels, own = local[::num_views], local_labels[::num_views], own[::num_views]

    classes, of_row, sizes = torch.unique(all_labels, return_inverse=True, return_counts=True)
    num_positives = sizes[of_row[own]] - 1
    has_positive = num_positives > 0
    lone = global_sum((~has_positive).sum())
    num_anchors = global_sum(torch.tensor(len(local), device=local.device))
    if bool(lone == num_anchors):
        return zero_loss("sup_con", "no anchor has a positive", views), lone

    if denominator == "negatives":
        total = stream_rows(local, rows.all, _against_negatives(own, local_labels, all_labels))
        return average(total, num_positives.sum()), lone

    if anchors == "all":
        candidates = logsumexp_self(rows)
    else:
        candidates = logsumexp_cross(local, rows.all, own, torch.arange(len(rows.all), device=local.device))
    # The positives enter linearly, so class sums replace a mask over all pairs.
    class_sums = rows.all.new_zeros(len(classes), local.shape[1]).index_add(0, of_row, rows.all)
    others = class_sums[of_row[own]] - local
    positives = (local * others).sum(-1) / num_positives.clamp(min=1)
    loss = (candidates - positives) * (temperature / base_temperature)
    if lone_anchors == "zero":
        return global_mean(torch.where(has_positive, loss, torch.zeros_like(loss))), lone
    return global_mean(loss, has_positive), lone


def _against_negatives(own: Tensor, labels: Tensor, all_labels: Tensor) -> Callable[..., Tensor]:
    """Row loss: the sum over positive pairs of ``log(exp(s_p) + sum_n exp(s_n)) - s_p``."""

    def row_loss(logits: Tensor, rows: slice) -> Tensor:
        same = labels[rows, None] == all_labels
        has_negative = ~same.all(1, keepdim=True)  # without one, every positive's loss is 0
        positive = same.scatter(1, own[rows, None], False) & has_negative
        negatives = logits.masked_fill(same & has_negative, -torch.inf).logsumexp(1, keepdim=True)
        return torch.where(positive, F.softplus(negatives - logits), torch.zeros_like(logits)).sum()

    return row_loss


class SupCon(Objective):
    """Supervised contrastive loss: all samples of one class are positives. See :func:`sup_con` for the options.

    Anchors without a positive are left out of the mean and counted in ``stats["anchors_without_positive"]``.

    Args:
        temperature: ``t``.
        base_temperature: the loss is multiplied by ``t / base_temperature``, as published; give both the same value
            for the plain loss.
        denominator: ``"all"`` other rows, or the ``"negatives"`` only.
        anchors: rows of ``"all"`` views or of the ``"first"``.
        lone_anchors: ``"skip"`` anchors without a positive, or let them count as ``"zero"``, as published.
    """

    requires = ("labels",)

    @checked
    def __init__(
        self,
        temperature: float = 0.1,
        base_temperature: float = 0.07,
        denominator: Literal["all", "negatives"] = "all",
        anchors: Literal["all", "first"] = "all",
        lone_anchors: Literal["skip", "zero"] = "skip",
    ) -> None:
        super().__init__()
        check_temperature("SupCon", temperature)
        check_temperature("SupCon", base_temperature, name_of_value="base_temperature")
        check_choice("SupCon", "denominator", denominator, ("all", "negatives"))
        check_choice("SupCon", "anchors", anchors, ("all", "first"))
        check_choice("SupCon", "lone_anchors", lone_anchors, ("skip", "zero"))
        self.temperature = temperature
        self.base_temperature = base_temperature
        self.denominator = denominator
        self.anchors = anchors
        self.lone_anchors = lone_anchors

    def negatives_per_anchor(self, batch_size: int, num_views: int) -> int:
        """Candidates other than the anchor and its own views; those of its class among them are positives."""
        return (batch_size - 1) * num_views

    def forward(self, *views: Tensor, index: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Return the loss of ``views``, each ``(B, D)``, with ``labels`` ``(B,)``."""
        loss, lone = _sup_con(
            views,
            labels,
            self.temperature,
            self.base_temperature,
            self.denominator,
            self.anchors,
            self.lone_anchors,
            normalize=True,
        )
        self.log(anchors_without_positive=lone)
        return loss
