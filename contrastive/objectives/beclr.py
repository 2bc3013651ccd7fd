r"""BECLR: agree with a teacher, spread evenly, and meet more rows of one's own kind than a batch holds.

Poulakakis-Daktylidis and Jamali-Rad, "BECLR: Batch Enhanced Contrastive Few-Shot Learning", ICLR 2024, arXiv
2402.02444. A student makes projections z and, by a small predictor h, predictions p = h(z); a teacher that follows the
student slowly makes targets t. With unit vectors, B samples in two views and rows i, j over both views,

    positive = - mean_i p_i · t_i'                              i' is the other view of i; no gradient through t
    negative = log mean_i mean_{j not in {i, i'}} exp(z_i · z_j / temperature)
    loss     = positive + negative_weight · negative

DyCE enhances each of the three batches (t, p and z) by k neighbours of every row, taken from a clustered memory of its
own kind (:class:`~contrastive.objectives.clustered_memory.ClusteredMemory`). These are constants: they are further
negatives, and B becomes B (1 + k). Which images they show differs from batch to batch.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from contrastive.arguments import checked
from contrastive.checks import check_choice
from contrastive.errors import InvalidValue, NotFinite
from contrastive.objectives.base import Objective
from contrastive.objectives.clustered_memory import ClusteredMemory
from contrastive.objectives.enhanced_contrast import Batches, Negatives, beclr
from contrastive.objectives.inputs import check_integers, check_temperature, check_views, scaled_rows
from contrastive.similarity import gather
from contrastive.similarity.rows import at_least_float32


class BECLR(Objective):
    """Agree with a momentum teacher and spread, in batches enhanced by neighbours from a clustered memory.

    Called as ``objective(z1, z2, teacher=(t1, t2))``: two views' projections by the student, with gradient, and the
    momentum network's, without. ``Pretrain(momentum=0.995, momentum_final=1.0)`` does so; let the projector end in 512.
    Given ``labels`` are compared with what the memories find and logged; they have no influence on the loss.

    Args:
        dim: D, width of the embeddings; leave it out to take the projector's in :meth:`setup`.
        temperature: of the negatives.
        negative_weight: weight of the negative term.
        negatives: ``"student"``, ``"mixed"`` or ``"teacher"``, see :func:`beclr`.
        num_neighbours: k, rows that enhance each row; 0 gives the plain loss without memories.
        num_clusters: of each memory, several for each class that you expect; published: 200 for 64 classes.
        memory_size: rows of each memory; by default 40 for each cluster.
        memory_start_epoch: the first epoch with enhanced batches, counted from 0, once the memories are full; needs
            :meth:`set_epoch` if above 0.
        recluster_epochs: see :class:`~contrastive.objectives.clustered_memory.ClusteredMemory`, as for all that follow
            but the last: cluster anew after so many epochs.
        memory_momentum: share of the old prototypes that an update keeps.
        metric: ``"euclidean"`` or ``"cosine"``, both of normalised rows.
        epsilon: softness of the assignment to clusters.
        iterations: rounds of Sinkhorn's algorithm.
        variant: ``"released"`` repeats the authors' code, faults included.
        predictor: h; by default linear to D / 4, batch norm, ReLU, linear to D. ``nn.Identity()`` for none.

    Raises:
        ValueError: for options out of range.
    """

    requires = ("teacher",)

    @checked
    def __init__(
        self,
        dim: int | None = None,
        temperature: float = 2.0,
        negative_weight: float = 0.1,
        negatives: Negatives = "student",
        num_neighbours: int = 5,
        num_clusters: int = 200,
        memory_size: int | None = None,
        memory_start_epoch: int = 60,
        recluster_epochs: int = 60,
        memory_momentum: float = 0.0,
        metric: Literal["euclidean", "cosine"] = "euclidean",
        epsilon: float = 0.05,
        iterations: int = 10,
        variant: Literal["corrected", "released"] = "corrected",
        predictor: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_temperature("BECLR", temperature)
        check_choice("BECLR", "negatives", negatives, ("student", "mixed", "teacher"))
        size = 40 * num_clusters if memory_size is None else memory_size
        for option, value, least in (
            ("negative_weight", negative_weight, 0),
            ("num_neighbours", num_neighbours, 0),
            ("memory_start_epoch", memory_start_epoch, 0),
            ("dim", 1 if dim is None else dim, 1),
        ):
            if not least <= value < math.inf:
                raise InvalidValue(f"BECLR: {option} is {value}; give a number of {least} or more.")
        if num_neighbours and num_neighbours >= size:
            raise InvalidValue(
                f"BECLR: num_neighbours is {num_neighbours}, but a memory has {size} rows; give fewer neighbours, "
                "usually 3 to 10, or a larger memory_size."
            )
        self.temperature, self.negative_weight, self.negatives = temperature, negative_weight, negatives
        self.num_neighbours, self.memory_start_epoch = num_neighbours, memory_start_epoch
        self.predictor = predictor
        self.memories = nn.ModuleList()
        if num_neighbours:
            options = (metric, epsilon, iterations, memory_momentum, recluster_epochs, variant)
            self.memories.extend(ClusteredMemory(size, num_clusters, *options) for _ in Batches._fields)
            self.register_buffer("epoch", torch.tensor(-1))  # the present one, once told
        self._dim: int | None = None
        if dim is not None:
            self._build(dim)

    epoch: Tensor

    def setup(self, num_samples: int, *, num_classes: int = 0, dim: int | None = None) -> None:
        """Build predictor and memories for the width of the embeddings, if the constructor was not told.

        Raises:
            ValueError: if the width is unknown, or another than before.
        """
        if dim is None and self._dim is None:
            raise InvalidValue(
                "BECLR: the projector does not tell the width of the embeddings; give dim to BECLR, or a projector "
                "that has dim."
            )
        if dim is not None and self._dim is not None and dim != self._dim:
            raise InvalidValue(f"BECLR: dim is {self._dim}, but the projector's is {dim}; make them equal.")
        if dim is not None and self._dim is None:
            self._build(dim)

    def _build(self, dim: int) -> None:
        from contrastive.encoders.heads import PredictionHead

        self._dim = dim
        if self.predictor is None:
            self.predictor = PredictionHead(dim, hidden_dim=max(dim // 4, 1))
        for memory in self._memories():
            memory.setup(dim)

    def _memories(self) -> list[ClusteredMemory]:
        """The memories of targets, predictions and projections; none for the plain loss."""
        return [memory for memory in self.memories if isinstance(memory, ClusteredMemory)]

    def set_epoch(self, epoch: int, num_epochs: int) -> None:
        """Say which epoch begins, counted from 0, and of how many; warns of a memory that starts after the end."""
        if not self.num_neighbours:
            return
        self.epoch.fill_(epoch)
        if epoch == 0 and num_epochs <= self.memory_start_epoch:
            warnings.warn(
                f"BECLR: memory_start_epoch is {self.memory_start_epoch}, but the run has {num_epochs} epochs, so "
                "batches are never enhanced; start earlier, as after a tenth of the run, or set num_neighbours=0.",
                stacklevel=2,
            )

    def forward(
        self,
        *views: Tensor,
        index: Tensor | None = None,
        labels: Tensor | None = None,
        teacher: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return the loss of two views ``(B, D)``; in training mode, write them to the memories.

        Args:
            *views: the student's projections of two views.
            index: has no part in it.
            labels: ``(B,)`` classes, for ``stats`` alone.
            teacher: the momentum network's projections of the same views, ``(B, D)`` each.

        Raises:
            ValueError: for other than two views, no teacher, a width that is not :attr:`dim`'s, one sample over all
                processes, or an epoch that was not told.
            FloatingPointError: for embeddings that are not finite, before the memories are touched.
        """
        check_views("BECLR", views, minimum=2)
        given = tuple(teacher) if isinstance(teacher, list | tuple) else ()
        if len(views) != 2 or len(given) != 2:
            raise InvalidValue(
                f"BECLR: got {len(views)} views and {len(given)} of the teacher; call it with two and "
                "teacher=(t1, t2), the momentum network's embeddings of the same two."
            )
        check_views("BECLR", (*views, *given), minimum=4)
        if labels is not None:
            check_integers("BECLR", "labels", labels, len(views[0]))
        if self.predictor is None or views[0].shape[1] != self._dim:
            raise InvalidValue(
                f"BECLR: embeddings are {views[0].shape[1]} wide, and it was built for width {self._dim}; give dim to "
                "the constructor, or call setup(num_samples, dim=...) before training."
            )
        targets, projections = (at_least_float32(torch.stack(x)) for x in (given, views))
        predictions = self.predictor(projections.flatten(0, 1)).view_as(projections)
        batches = Batches(targets.detach(), at_least_float32(predictions), projections)
        neighbours: Batches | None = None
        found_stats: dict[str, Tensor] = {}
        if self.num_neighbours:
            with torch.autocast(projections.device.type, enabled=False):
                neighbours, found_stats = self._enhance(batches, labels)
        result = beclr(
            *batches,
            neighbours,
            temperature=self.temperature,
            negative_weight=self.negative_weight,
            negatives=self.negatives,
        )
        # A collapse shows here; evenly spread directions have 1/sqrt(D).
        spread = scaled_rows(batches.targets, 1.0).flatten(0, 1).std(0).mean()
        self.log(positive=result.positive, negative=result.negative, std=spread, **found_stats)
        return result.loss

    @torch.no_grad()
    def _enhance(self, batches: Batches, labels: Tensor | None) -> tuple[Batches | None, dict[str, Tensor]]:
        """Neighbours ``(2, B, k, D)`` of each batch, None before the start, and what labels say of them."""
        if self.training and int(self.epoch) < 0 < self.memory_start_epoch:
            raise InvalidValue(
                f"BECLR: memory_start_epoch is {self.memory_start_epoch} and the epoch is unknown; call "
                "set_epoch(epoch, num_epochs) before each, or set memory_start_epoch=0."
            )
        epoch = max(int(self.epoch), 0)
        memories = self._memories()
        own = slice(None)
        places: list[Tensor | None] = [None] * len(memories)
        if self.training:
            everywhere = gather(torch.stack([x.detach() for x in batches]).permute(2, 0, 1, 3))
            own = slice(everywhere.start, everywhere.start + len(everywhere.local))
            _check_finite(everywhere.all)
            classes = None if labels is None else gather(labels).all.repeat(2)
            rows = everywhere.all.permute(1, 2, 0, 3).flatten(1, 2)  # view after view, as if of one process
            places = [memory.update(x, epoch, classes) for memory, x in zip(memories, rows, strict=True)]
        if epoch < self.memory_start_epoch or not all(memory.started for memory in memories):
            return None, {}
        found = [m.nearest(x.detach(), self.num_neighbours) for m, x in zip(memories, batches, strict=True)]
        stats = {"cluster_purity": [m.purity() for m in memories]}
        if labels is not None:
            stats["neighbour_precision"] = [
                _precision(f, m, labels, None if p is None else p.view(2, -1)[:, own])
                for f, m, p in zip(found, memories, places, strict=True)
            ]
        known = {name: [x for x in values if x is not None] for name, values in stats.items()}
        return Batches(*(m.rows[f] for m, f in zip(memories, found, strict=True))), {
            name: torch.stack(values).mean() for name, values in known.items() if values
        }


def _precision(found: Tensor, memory: ClusteredMemory, labels: Tensor, own: Tensor | None) -> Tensor | None:
    """Share of the rows found ``(2, B, k)``, but for the sample's own ``(2, B)``, that are of its class."""
    classes = memory.classes[found]
    counted = classes >= 0
    if own is not None:
        counted &= (found[..., None] != own.T[:, None]).all(-1)
    right = (classes == labels[:, None].to(classes)) & counted
    return right.sum() / counted.sum() if bool(counted.any()) else None


def _check_finite(rows: Tensor) -> None:
    """Refuse embeddings ``(N, 3, 2, D)`` of all processes before they enter a memory, which would keep them."""
    bad = ~torch.isfinite(rows).flatten(2).all(2)
    if bool(bad.any()):
        row, batch = bad.nonzero()[0].tolist()
        raise NotFinite(
            f"BECLR: sample {row} of the global batch has {Batches._fields[batch]} that are not finite "
            f"({int(bad.sum())} of {bad.numel()} are not). Lower the learning rate, clip gradients, or look for bad "
            "values in the inputs."
        )
