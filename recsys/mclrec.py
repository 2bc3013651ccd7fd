r"""MCLRec: contrastive recommendation with learned views (Qin et al., SIGIR 2023, arXiv 2304.07763).

Two random edits of a history are encoded, ``h1`` and ``h2``; two small networks, the *augmenters*, map them to two
further views ``z1`` and ``z2`` of unit length. With :func:`~recsys.objectives.pair_contrast` as ``con``,

    data term    = con(h1, h2)
    model term   = con(h1, z2) + con(h2, z1) + con(z1, z2)
    regulariser  = r(h1, z2) + r(h2, z1) + r(z1, z2)                 (the paper: r(z1, z2) alone)

    encoder:     next-item loss + data_weight · data term + model_weight · (model term + 0.1 · regulariser)
    augmenters:  model term + 0.1 · regulariser

Encoder and augmenters are trained alternately, each with the other held. ``r`` compares positives with the hardest
negative (:func:`regulariser`); it needs only each row's maximum and sum.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive.checks import check_choice, check_number, check_whole
from contrastive.errors import InvalidValue
from contrastive.similarity import gather, stream_rows, world_size
from contrastive.similarity.distributed import average
from contrastive.similarity.rows import DENSE_ENTRIES
from recsys import augment
from recsys.objectives import SIMILARITIES, Head, Samples, check_edits, encode_all, pair_contrast, products

if TYPE_CHECKING:
    from recsys.batches import PrefixTable
    from recsys.data import Split
    from recsys.encoders import SequenceEncoder

Update = Literal["paper", "released", "joint"]


def regulariser(first: Tensor, second: Tensor, temperature: float = 1.0) -> Tensor:
    r"""The margin term of a pair of views (released code; it descends from MetAug, arXiv 2201.12153).

    For row ``i`` of the ``2B`` views with similarities ``s / t``: positive ``p_i``, negatives ``n_ij``, hardest one
    ``m_i``; ``lo_i = min(p_i, m_i)`` and ``hi_i = max(p_i, m_i)``; then

        r = mean_i max(p_i - lo_i, 0) + mean_ij max(hi_i - n_ij, 0).

    No negative exceeds ``hi_i``, so the second mean is that of ``hi_i`` less that of the negatives.

    Args:
        first: ``(B, d)``.
        second: ``(B, d)``, row ``b`` the partner of row ``b`` of ``first``.
        temperature: ``t``.

    Returns:
        Scalar, this process' share; 0 for a single pair, which has no negatives.

    Raises:
        ValueError: a temperature that is not above 0.
    """
    check_number("regulariser", "temperature", temperature, "(0, inf)")
    rows = gather(torch.stack((first, second), 1) * temperature**-0.5)
    local, everyone = rows.local.flatten(0, 1), rows.all.flatten(0, 1)
    count = len(everyone) - 2
    if not count:
        return 0.0 * local.sum()

    def margins(similarity: Tensor, block: slice) -> Tensor:
        own = 2 * rows.start + block.start
        places = torch.arange(own, own + len(similarity), device=similarity.device)[:, None]
        positives = similarity.gather(1, places ^ 1)  # views of a sample stand beside each other
        with torch.no_grad():  # which negative is the hardest
            others = similarity.scatter(1, torch.cat((places, places ^ 1), 1), -torch.inf)
            hardest_place = others.argmax(1, keepdim=True)
        hardest = similarity.gather(1, hardest_place)
        negatives = (similarity.sum(1, keepdim=True) - positives - similarity.gather(1, places)) / count
        # max(p - lo, 0) is max(p - m, 0), for lo is the smaller one.
        return (F.relu(positives - hardest) + torch.maximum(positives, hardest) - negatives).sum()

    return average(stream_rows(local, everyone, margins), len(local))


def small_terms(pairs: Sequence[tuple[Tensor, Tensor]], temperature: float) -> tuple[Tensor, Tensor]:
    """Sums over pairs of :func:`~recsys.objectives.pair_contrast` and :func:`regulariser`, from one product for all.

    For batches whose matrices are small, where the number of operations is what takes time.

    Args:
        pairs: P pairs of ``(B, d)``.
        temperature: of the regulariser.
    """
    views = torch.stack([torch.stack(pair, 1).flatten(0, 1) for pair in pairs])  # (P, 2B, d)
    similarity = products(views, views)
    places = torch.arange(views.shape[1], device=views.device)
    positives = similarity[:, places, places ^ 1]
    own = torch.eye(len(places), dtype=torch.bool, device=views.device)
    others = similarity.masked_fill(own, -torch.inf)
    contrast = (others.logsumexp(2) - positives).mean(1).sum()
    count = len(places) - 2
    if not count:
        return contrast, 0.0 * contrast
    with torch.no_grad():  # which negative is the hardest
        place = others.masked_fill(own[places ^ 1], -torch.inf).argmax(2, keepdim=True)
    hardest = similarity.gather(2, place)[..., 0]
    lengths = views.square().sum(2)
    negatives = ((views * views.sum(1, keepdim=True)).sum(2) - positives - lengths) / count
    margins = F.relu(positives - hardest) + torch.maximum(positives, hardest) - negatives
    return contrast, margins.mean(1).sum() / temperature


def set_regulariser(first: Tensor, second: Tensor) -> Tensor:
    r"""The margin term of the paper: one pair of margins for the whole batch (section 3.4 there).

    With the smallest positive ``p`` and the hardest negative ``m`` of all rows, ``lo = min(p, m)`` and
    ``hi = max(p, m)``: ``mean_i max(p_i - lo, 0) + mean_ij max(hi - n_ij, 0)``, whose every term is 0 or more already.

    Args:
        first: ``(B, d)``.
        second: ``(B, d)``.

    Returns:
        Scalar; 0 for a single pair.
    """
    rows = gather(torch.stack((first, second), 1))
    everyone = rows.all.flatten(0, 1)
    count = len(everyone) - 2
    if not count:
        return 0.0 * everyone.sum()
    positives = (rows.all[:, 0] * rows.all[:, 1]).sum(-1)
    total, lengths = everyone.sum(0), everyone.square().sum(1)
    negatives = (total.square().sum() - lengths.sum() - 2 * positives.sum()) / (len(everyone) * count)
    hardest = _hardest_negative(everyone)
    low = torch.minimum(positives.min(), hardest)
    high = torch.maximum(positives.min(), hardest)
    return (positives.mean() - low) + (high - negatives)


def _hardest_negative(rows: Tensor) -> Tensor:
    """The largest product of rows of different samples; found without a gradient, then computed with one."""
    best, place = rows.new_tensor(-torch.inf), (0, 0)
    with torch.no_grad():
        for start in range(0, len(rows), 1024):
            similarity = rows[start : start + 1024] @ rows.T
            own = torch.arange(start, start + len(similarity), device=rows.device)[:, None]
            similarity.scatter_(1, torch.cat((own, own ^ 1), 1), -torch.inf)
            flat = int(similarity.argmax())
            if similarity.view(-1)[flat] > best:
                best, place = similarity.view(-1)[flat], (start + flat // len(rows), flat % len(rows))
    return (rows[place[0]] * rows[place[1]]).sum()


class Augmenter(nn.Module):
    """Three linear maps with GELU between them, brought to unit length: ``(B, d)`` to ``(B, d)``."""

    def __init__(self, dim: int, widths: tuple[int, int]) -> None:
        super().__init__()
        sizes = (dim, *widths, dim)
        self.maps = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, states: Tensor) -> Tensor:
        """Return a learned view of states."""
        first, second, third = self.maps
        return F.normalize(third(F.gelu(second(F.gelu(first(states))))), dim=-1)


class MCLRec(Head):
    """The contrastive terms of MCLRec and its two augmenters.

    ``update`` says what a batch does: ``"paper"`` steps the encoder, then the augmenters; ``"released"`` steps the
    encoder once more, as the published code; ``"joint"`` steps both at once, the paper's ablation.

    Args:
        data_weight: of the data term (``lambda`` of the paper).
        model_weight: of the model term (``beta``).
        regulariser_weight: of the regulariser beside the model term (``gamma / beta``).
        margins: ``"row"`` for the regulariser of the released code on three pairs, ``"set"`` for that of the paper.
        update: see above.
        crop: share of the items that a crop removes.
        mask: share of the items that are masked.
        reorder: share of the items that are shuffled.
        temperature: of the data term and of the regulariser with ``margins="row"``.
        similarity: of the data term, ``"dot"`` or ``"cos"``.
        widths: of the augmenters' inner layers.

    Raises:
        ValueError: an unknown ``update``, ``margins`` or ``similarity``, or a number out of range.
    """

    def __init__(
        self,
        data_weight: float = 0.0,
        model_weight: float = 0.05,
        regulariser_weight: float = 0.1,
        margins: Literal["row", "set"] = "row",
        update: Update = "paper",
        crop: float = 0.5,
        mask: float = 0.5,
        reorder: float = 0.8,
        temperature: float = 1.0,
        similarity: Literal["dot", "cos"] = "dot",
        widths: tuple[int, int] = (32, 16),
    ) -> None:
        super().__init__()
        check_choice("MCLRec", "update", update, ("paper", "released", "joint"))
        check_choice("MCLRec", "margins", margins, ("row", "set"))
        check_choice("MCLRec", "similarity", similarity, SIMILARITIES)
        self.update, self.margins, self.similarity = update, margins, similarity
        self.data_weight = check_number("MCLRec", "data_weight", data_weight, "[0, inf)")
        self.model_weight = check_number("MCLRec", "model_weight", model_weight, "[0, inf)")
        self.regulariser_weight = check_number("MCLRec", "regulariser_weight", regulariser_weight, "[0, inf)")
        self.temperature = check_number("MCLRec", "temperature", temperature, "(0, inf)")
        self.edits = check_edits("MCLRec", crop=crop, mask=mask, reorder=reorder)
        if not isinstance(widths, tuple | list) or len(widths) != 2:
            raise InvalidValue(f"MCLRec: widths is {widths!r}; give two whole numbers, as (32, 16).")
        first, second = (check_whole("MCLRec", "widths", width) for width in widths)
        self.widths = first, second
        self.augmenters = nn.ModuleList()

    def setup(
        self, encoder: "SequenceEncoder", split: "Split | None", prefixes: "PrefixTable | None"
    ) -> None:
        """Make the augmenters for the width of the encoder."""
        if not self.augmenters:
            self.augmenters.extend(Augmenter(encoder.dim, self.widths) for _ in range(2))

    def restore(self, encoder: "SequenceEncoder", weights: Mapping[str, Tensor]) -> None:
        """Make the augmenters of a checkpoint."""
        self.setup(encoder, None, None)

    def views(self, samples: Samples) -> tuple[Any, Any]:
        """Draw the two edited views of a batch, which all of its phases share."""
        return augment.random_views(samples.items, samples.lengths, samples.generator, **self.edits)

    def forward(self, encoder: "SequenceEncoder", samples: Samples) -> Tensor:
        """Return the weighted loss of newly drawn views."""
        return self.encoder_loss(encoder, self.views(samples))

    def encoder_loss(self, encoder: "SequenceEncoder", views: tuple[Any, Any]) -> Tensor:
        """``data_weight · data term + model_weight · (model term + regulariser)``, what the encoder minimises."""
        h1, h2 = encode_all(encoder, *views)
        loss = self.model_weight * self.model_loss(h1, h2)
        if self.data_weight:
            loss = loss + self.data_weight * pair_contrast(h1, h2, self.temperature, self.similarity)
        return loss

    def augmenter_loss(self, encoder: "SequenceEncoder", views: tuple[Any, Any]) -> Tensor:
        """Model term and regulariser, what the augmenters minimise; the encoder gets no gradient."""
        with torch.no_grad():
            h1, h2 = encode_all(encoder, *views)
        return self.model_loss(h1, h2)

    def model_loss(self, h1: Tensor, h2: Tensor) -> Tensor:
        """Model term and weighted regulariser of encoded views ``(B, d)``."""
        z1, z2 = self.augmenters[0](h1), self.augmenters[1](h2)
        pairs = ((h1, z2), (h2, z1), (z1, z2))
        per_row = bool(self.regulariser_weight) and self.margins == "row"
        if per_row and world_size() == 1 and 4 * len(h1) ** 2 <= DENSE_ENTRIES:
            contrast, margins = small_terms(pairs, self.temperature)
            return contrast + self.regulariser_weight * margins
        loss = torch.stack([pair_contrast(a, b) for a, b in pairs]).sum()
        if per_row:
            margins = torch.stack([regulariser(a, b, self.temperature) for a, b in pairs]).sum()
            return loss + self.regulariser_weight * margins
        if self.regulariser_weight:
            loss = loss + self.regulariser_weight * set_regulariser(z1, z2)
        return loss
