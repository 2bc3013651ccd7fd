"""Hard InfoNCE: Wang and Liu, "Understanding the Behaviour of Contrastive Loss", CVPR 2021, arXiv 2012.09740."""

from itertools import combinations
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from contrastive.arguments import checked
from contrastive.checks import check_choice, check_flag, check_number
from contrastive.errors import InvalidValue
from contrastive.objectives.base import Objective
from contrastive.objectives.inputs import (
    check_ids,
    check_integers,
    check_rows,
    check_temperature,
    check_views,
    divide,
    sample_ids,
    scaled_rows,
    zero_loss,
)
from contrastive.similarity import average, gather, stream_rows


def hard_info_nce(
    queries: Tensor,
    keys: Tensor,
    positives: Tensor,
    *,
    num_negatives: int | float,
    temperature: float | Tensor = 0.1,
    form: Literal["softmax", "simple"] = "softmax",
    repulsion: float = 1.0,
    ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    r"""Contrast each query's positive with its K most similar negatives only (Wang and Liu 2021).

    ``"softmax"`` (eq. 8): ``-log [ exp(s_p / t) / (exp(s_p / t) + sum_{j in H} exp(s_j / t)) ]``, with H the K nearest
    negatives. ``"simple"`` (eq. 9): ``-s_p + repulsion · mean_{j in H} s_j``. H is chosen by value, without gradient.

    Args:
        queries: ``(M, D)``; normalised here.
        keys: ``(N, D)`` candidates; normalised here. Own keys only: this function does not gather.
        positives: ``(M,)`` int64, the row of ``keys`` that is each query's positive.
        num_negatives: K as an integer of at least 1, or as a fraction of the N keys in (0, 1). Queries with fewer
            negatives use all of theirs.
        temperature: ``t > 0``; a scalar tensor gets a gradient. Read by ``"softmax"``.
        form: the loss above.
        repulsion: weight of the negatives. Read by ``"simple"``.
        ids: ``(M,)`` integers; keys with a query's id are not its negatives (nor is the positive, ever).
        key_ids: ``(N,)`` integers; required with ``ids``.
        normalize: divide queries and keys by their length first; switch off only if that was done already.

    Returns:
        Scalar: the mean over the queries of all processes, as this process' share.

    Raises:
        ValueError: for a bad shape, temperature, option or number of negatives.
    """
    check_views("hard_info_nce", (queries,), minimum=1)
    check_rows("hard_info_nce", "keys", keys, queries)
    check_integers("hard_info_nce", "positives", positives, len(queries))
    check_ids("hard_info_nce", ids, key_ids, len(queries), len(keys), "key_ids")
    check_temperature("hard_info_nce", temperature)
    if normalize is not True:
        normalize = check_flag("hard_info_nce", "normalize", normalize)
    check_number("hard_info_nce", "repulsion", repulsion)
    check_choice("hard_info_nce", "form", form, ("softmax", "simple"))
    _check_num_negatives("hard_info_nce", num_negatives)
    if form == "simple":
        temperature = 1.0
    count = (
        num_negatives
        if isinstance(num_negatives, int | np.integer)
        else max(1, round(num_negatives * len(keys)))
    )
    count = min(count, len(keys))

    positives = positives.long()
    if len(positives) and not 0 <= int(positives.min()) <= int(positives.max()) < len(keys):
        raise InvalidValue(
            f"hard_info_nce: positives go from {int(positives.min())} to {int(positives.max())}; give rows of the "
            f"{len(keys)} keys."
        )

    def row_loss(logits: Tensor, rows: slice) -> Tensor:
        positive = logits.gather(1, positives[rows, None])
        left_out = torch.zeros_like(logits, dtype=torch.bool).scatter(1, positives[rows, None], True)
        if ids is not None and key_ids is not None:
            left_out |= ids[rows, None] == key_ids
        hardest = logits.masked_fill(left_out, -torch.inf).topk(count, dim=1).values
        if form == "softmax":
            return (torch.cat([positive, hardest], 1).logsumexp(1) - positive[:, 0]).sum()
        exists = hardest > -torch.inf
        mean = torch.where(exists, hardest, torch.zeros_like(hardest)).sum(1) / exists.sum(1).clamp(min=1)
        return (repulsion * mean - positive[:, 0]).sum()

    prepare = scaled_rows if normalize else divide
    total = stream_rows(prepare(queries, temperature), prepare(keys, temperature), row_loss)
    return average(total, len(queries))


class HardInfoNCE(Objective):
    """InfoNCE over the K most similar negatives of each anchor, among both views of all other samples.

    Args:
        temperature: ``t``; read by ``form="softmax"``. The published sweep is flat from 0.3 to 1.
        num_negatives: K, or a fraction of the candidates (0.0819 in the paper's CIFAR runs, 4095 of 50,000).
        form: ``"softmax"`` or ``"simple"``, see :func:`hard_info_nce`.
        repulsion: weight of the negatives in the simple form.

    Called with ``labels``, samples of equal labels are not each other's negatives.
    """

    @checked
    def __init__(
        self,
        temperature: float = 0.3,
        num_negatives: int | float = 0.1,
        form: Literal["softmax", "simple"] = "softmax",
        repulsion: float = 1.0,
    ) -> None:
        super().__init__()
        check_temperature("HardInfoNCE", temperature)
        check_choice("HardInfoNCE", "form", form, ("softmax", "simple"))
        _check_num_negatives("HardInfoNCE", num_negatives)
        self.temperature = temperature
        self.num_negatives = num_negatives
        self.form = form
        self.repulsion = repulsion

    def negatives_per_anchor(self, batch_size: int, num_views: int) -> int:
        """K, or all that the batch has."""
        if isinstance(self.num_negatives, int):
            return min(self.num_negatives, 2 * (batch_size - 1))
        return min(max(1, round(self.num_negatives * 2 * batch_size)), 2 * (batch_size - 1))

    def forward(self, *views: Tensor, index: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Return the loss of ``views``, each ``(B, D)``, averaged over all pairs of views."""
        check_views("HardInfoNCE", views, minimum=2)
        samples = gather(torch.stack(views, 1))
        if len(samples.all) < 2:
            return zero_loss("HardInfoNCE", "the global batch has fewer than two samples", views)
        ids = sample_ids("HardInfoNCE", labels, samples)
        own = torch.arange(2 * len(samples.local), device=samples.local.device)
        partners = 2 * samples.start + (own ^ 1)
        losses = [
            hard_info_nce(
                samples.local[:, (v, w)].flatten(0, 1),
                samples.all[:, (v, w)].flatten(0, 1),
                partners,
                num_negatives=self.num_negatives,
                temperature=self.temperature,
                form=self.form,
                repulsion=self.repulsion,
                ids=ids.local.repeat_interleave(2),
                key_ids=ids.all.repeat_interleave(2),
            )
            for v, w in combinations(range(len(views)), 2)
        ]
        return torch.stack(losses).mean()


def _check_num_negatives(name: str, value: int | float) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (value >= 1 if whole else isinstance(value, float | np.floating) and 0 < value < 1):
        raise InvalidValue(
            f"{name}: num_negatives is {value!r}; give an integer of at least 1, or a fraction of the "
            "candidates in (0, 1)."
        )
