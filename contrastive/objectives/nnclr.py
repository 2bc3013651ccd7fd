"""NNCLR: the positive of a view is the nearest of the embeddings that were seen before.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman, "With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning
of Visual Representations", ICCV 2021, arXiv 2104.14548. With the two views' unit embeddings ``z``, predictions ``p`` of
these, a queue Q of earlier embeddings and temperature ``t``, anchors are the nearest neighbours (eq. 3)

    n_i = argmax_{q in Q} z_i · q
    l_i = -log( exp(n_i · p_i' / t) / sum_j exp(n_i · p_j' / t) )          ' for the other view

and the same with the roles of n and p exchanged, "symmetric with respect to the batch"; both views serve as anchors.
"""

import torch
from torch import Tensor, nn

from contrastive.arguments import checked
from contrastive.errors import InvalidValue
from contrastive.objectives.base import Objective
from contrastive.objectives.infonce import info_nce
from contrastive.objectives.inputs import check_integers, check_temperature, check_views, scaled_rows
from contrastive.objectives.queue import KeyQueue
from contrastive.similarity.rows import at_least_float32, choose_block_size


class NNCLR(Objective):
    """InfoNCE whose anchors are the nearest neighbours of a view among earlier embeddings.

    The queue takes the first view's embeddings, is the same on all processes and part of the state; random directions
    fill it at first. Given ``labels`` are compared with those of the neighbours and logged as ``neighbour_precision``;
    they have no influence on the loss.

    Args:
        temperature: ``t``.
        queue_size: rows of Q; published results use 98,304, and small data sets no more than a few epochs' worth.
        predictor: maps embeddings to ``p``, as :class:`~contrastive.encoders.PredictionHead` does; None for ``p = z``.

    Raises:
        ValueError: for an option out of range.
    """

    @checked
    def __init__(
        self, temperature: float = 0.1, queue_size: int = 16384, predictor: nn.Module | None = None
    ) -> None:
        super().__init__()
        check_temperature("NNCLR", temperature)
        if queue_size < 1:
            raise InvalidValue(f"NNCLR: queue_size is {queue_size}; give at least 1, usually 4096 or more.")
        self.temperature = temperature
        self.predictor = predictor
        self.queue = KeyQueue(queue_size)

    def negatives_per_anchor(self, batch_size: int, num_views: int) -> int:
        """Negatives that one anchor meets in a step."""
        return batch_size - 1

    def forward(self, *views: Tensor, index: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Return the loss of two views ``(B, D)``; in training mode, write the first to the queue.

        Args:
            *views: two views, row ``b`` of both from one sample.
            index: has no part in it.
            labels: ``(B,)`` classes, for ``stats`` alone.

        Raises:
            ValueError: for other than two views, or bad shapes.
        """
        check_views("NNCLR", views, minimum=2)
        if len(views) != 2:
            raise InvalidValue(f"NNCLR: got {len(views)} views; call it with two.")
        if labels is not None:
            check_integers("NNCLR", "labels", labels, len(views[0]))
        rows = at_least_float32(torch.stack(views))
        predictions = rows if self.predictor is None else self.predictor(rows.flatten(0, 1)).view_as(rows)
        self.queue.prepare(views[0])
        unit = scaled_rows(rows.detach(), 1.0)
        found = [self._nearest(z) for z in unit]
        neighbours = [self.queue.rows[place] for place in found]
        losses = [
            info_nce(anchors.to(p.dtype), p, temperature=self.temperature, negatives="cross")
            for anchors, p in zip(neighbours, predictions.flip(0), strict=True)
        ]
        similarity = torch.stack(
            [(n * z).sum(1).mean() for n, z in zip(neighbours, unit, strict=True)]
        ).mean()
        self.log(neighbour_similarity=similarity)
        if labels is not None:
            right = torch.stack([self.queue.ids[place] == labels for place in found])
            self.stats["neighbour_precision"] = right.float().mean()
        if self.training:
            self.queue.push(unit[0], labels)
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _nearest(self, rows: Tensor) -> Tensor:
        """Place in the queue of the nearest neighbour of each unit row, ``(B,)``, some rows at a time."""
        queue = self.queue.rows.to(rows.dtype)
        blocks = torch.split(rows, choose_block_size(len(queue), rows.device))
        with torch.autocast(rows.device.type, enabled=False):
            return torch.cat([(block @ queue.T).argmax(1) for block in blocks])
