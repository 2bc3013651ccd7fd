"""DyCE: a memory of earlier embeddings whose clusters follow them, from BECLR (arXiv 2402.02444)."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive.checks import check_choice
from contrastive.errors import InvalidValue, NotFinite
from contrastive.objectives.clusters import (
    assignment_plan,
    cluster_means,
    kmeans,
    nearest_in_ranges,
    sort_by_cluster,
)

_NO_CLASS = -1


class ClusteredMemory(nn.Module):
    """The last M embeddings of all processes, in K clusters, the same on each process; part of the ``state_dict``.

    Once full, the memory is clustered by k-means. From then on every batch is assigned to the clusters by optimal
    transport, replaces the oldest rows, and moves the *prototypes*, the mean rows of the clusters. All numbers have at
    least float32, also in a module that is cast to half precision.

    Args:
        size: M, rows of the memory.
        num_clusters: K, at most M.
        metric: how rows and prototypes are compared for the assignment: ``"euclidean"`` distance or ``"cosine"``, both
            of them normalised, or the ``"distance"`` of rows and prototypes as they are.
        epsilon: weight of the entropy in the assignment, see :func:`assignment_plan`.
        iterations: rounds of Sinkhorn's algorithm.
        momentum: share of the old prototypes that an update keeps, in [0, 1).
        recluster_epochs: cluster anew, by k-means, after so many epochs; 0 for never.
        variant: ``"released"`` does what the authors' code does: it assigns rows by the *largest* distance, raises
            epsilon by tenths until nothing overflows, drops what is left of a batch at the end of the memory, takes
            positions within a cluster for positions in the memory, and searches the whole memory also where the first
            view's cluster has exactly k rows. Its prototypes of batches without an empty cluster are the same.

    Raises:
        ValueError: for an option out of range.

    Attributes:
        rows: ``(M, D)`` embeddings, not normalised.
        labels: ``(M,)`` their clusters.
        classes: ``(M,)`` their true classes where these are told, else -1. Read by :meth:`purity` alone.
        prototypes: ``(K, D)``.
        position: where the next row is written.
        clustered_epoch: the epoch of the latest k-means, -1 before the first.
    """

    def __init__(
        self,
        size: int,
        num_clusters: int,
        metric: Literal["euclidean", "cosine", "distance"] = "euclidean",
        epsilon: float = 0.05,
        iterations: int = 10,
        momentum: float = 0.0,
        recluster_epochs: int = 60,
        variant: Literal["corrected", "released"] = "corrected",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_choice(name, "metric", metric, ("euclidean", "cosine", "distance"))
        check_choice(name, "variant", variant, ("corrected", "released"))
        if not 1 <= num_clusters <= size:
            raise InvalidValue(
                f"{name}: num_clusters is {num_clusters} and size is {size}; give 1 to {size} clusters, or a memory of "
                "more rows, usually 40 for each cluster."
            )
        for option, value, least, most in (
            ("epsilon", epsilon, 1e-8, float("inf")),
            ("iterations", iterations, 1, float("inf")),
            ("momentum", momentum, 0, 1 - 1e-9),
            ("recluster_epochs", recluster_epochs, 0, float("inf")),
        ):
            if not least <= value <= most:
                raise InvalidValue(f"{name}: {option} is {value}; give a number from {least} to {most:g}.")
        self.size, self.num_clusters = size, num_clusters
        self.metric, self.epsilon, self.iterations, self.momentum = metric, epsilon, iterations, momentum
        self.recluster_epochs, self.variant = recluster_epochs, variant
        self.register_buffer("rows", torch.empty(0, 0))
        self.register_buffer("prototypes", torch.empty(0, 0))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("classes", torch.full((size,), _NO_CLASS))
        self.register_buffer("position", torch.tensor(0))
        self.register_buffer("clustered_epoch", torch.tensor(-1))

    rows: Tensor
    prototypes: Tensor
    labels: Tensor
    classes: Tensor
    position: Tensor
    clustered_epoch: Tensor

    def setup(self, dim: int) -> None:
        """Make room for embeddings of width ``dim``."""
        self.rows = self.rows.new_zeros(self.size, dim)
        self.prototypes = self.prototypes.new_zeros(self.num_clusters, dim)

    @property
    def started(self) -> bool:
        """Whether the memory has been full once, so that it has clusters."""
        return bool(self.clustered_epoch >= 0)

    @torch.no_grad()
    def update(self, batch: Tensor, epoch: int = 0, classes: Tensor | None = None) -> Tensor:
        """Write a batch over the oldest rows, and move the clusters.

        Args:
            batch: ``(R, D)`` embeddings of all processes, the same on each.
            epoch: the present epoch, counted from 0.
            classes: ``(R,)`` true classes, for :meth:`purity`.

        Returns:
            ``(R,)`` where each row was written, -1 for a row that was not.

        Raises:
            FloatingPointError: for embeddings that are not finite; nothing is written then.
        """
        batch = batch.to(self.rows.dtype)
        if not bool(torch.isfinite(batch).all()):
            raise NotFinite(f"{type(self).__name__}: the batch has embeddings that are not finite.")
        started = self.started
        labels = self.assign(batch).argmax(1) if started else self.labels.new_zeros(len(batch))
        full = int(self.position) + len(batch) >= self.size
        places = self._write(batch, labels, classes)
        if started and not self._outdated(epoch):
            means = cluster_means(self.rows, self.labels, self.prototypes)
            self.prototypes = means.lerp(self.prototypes, self.momentum)
        elif started or full:
            self.labels, self.prototypes = kmeans(F.normalize(self.rows), self.num_clusters)
            self.clustered_epoch.fill_(max(epoch, 0))
        return places

    def assign(self, batch: Tensor) -> Tensor:
        """Plan ``(R, K)`` that assigns rows ``(R, D)`` to clusters; a row's cluster is where it is largest."""
        if self.metric == "distance":
            scores = -torch.cdist(batch, self.prototypes)
        else:
            scores = F.normalize(batch) @ F.normalize(self.prototypes).T
        if self.metric == "euclidean":
            scores = -(2 - 2 * scores).clamp(min=0).sqrt()
        epsilon = self.epsilon
        if self.variant == "released":
            scores = scores if self.metric == "cosine" else -scores
            while bool(torch.isinf((scores.float() / epsilon).exp()).any()):
                epsilon += 0.1
        return assignment_plan(scores, epsilon, self.iterations)

    @torch.no_grad()
    def nearest(self, queries: Tensor, k: int) -> Tensor:
        """Positions in the memory of each query's k most similar rows of its own cluster.

        A query's own cluster is that of the most similar prototype. Where it has fewer than k rows, the whole memory is
        searched. A row that was just written may be found by itself and by its other view, as published.

        Args:
            queries: ``(2, B, D)``, two views.
            k: rows to find for each, below M.

        Returns:
            ``(2, B, k)``, the most similar first.
        """
        views, batch, _ = queries.shape
        unit = F.normalize(queries.flatten(0, 1).to(self.rows.dtype))
        order, starts, counts = sort_by_cluster(self.labels, self.num_clusters)
        own = (unit @ F.normalize(self.prototypes).T).argmax(1)
        enough = counts[own] >= k
        if self.variant == "released":
            enough[:batch] = counts[own[:batch]] > k
        first = torch.where(enough, starts[own], 0)
        last = torch.where(enough, starts[own] + counts[own], self.size)
        found = nearest_in_ranges(unit, F.normalize(self.rows[order]), first, last, k)
        positions = order[found]
        if self.variant == "released":
            positions = torch.where(enough[:, None], found - first[:, None], positions)
        return positions.view(views, batch, k)

    def purity(self) -> Tensor | None:
        """Share of the rows of known class that belong to their cluster's most frequent class; None without any."""
        known = self.classes != _NO_CLASS
        if not self.started or not bool(known.any()):
            return None
        width = int(self.classes.max()) + 1
        cells = self.labels[known] * width + self.classes[known]
        table = torch.bincount(cells, minlength=self.num_clusters * width).view(-1, width)
        return table.max(1).values.sum() / known.sum()

    def _outdated(self, epoch: int) -> bool:
        """Whether to cluster anew: it is time, or one cluster has all rows; then once an epoch at most."""
        age = epoch - int(self.clustered_epoch)
        one_left = age > 0 and self.num_clusters > 1 and bool((self.labels == self.labels[0]).all())
        return 0 < self.recluster_epochs <= age or one_left

    def _write(self, batch: Tensor, labels: Tensor, classes: Tensor | None) -> Tensor:
        start = int(self.position)
        places = (start + torch.arange(len(batch), device=batch.device)) % self.size
        written = slice(max(len(batch) - self.size, 0), None)  # of a batch larger than the memory, its end
        end = (start + len(batch)) % self.size
        if self.variant == "released" and start + len(batch) >= self.size:
            written, end = slice(0, self.size - start), 0
        kept = places[written]
        self.rows[kept] = batch[written]
        self.labels[kept] = labels[written]
        self.classes[kept] = _NO_CLASS if classes is None else classes[written].to(self.classes)
        self.position.fill_(end)
        result = torch.full_like(places, -1)
        result[written] = kept
        return result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ClusteredMemory":
        before = {name: self.get_buffer(name) for name in ("rows", "prototypes")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self.get_buffer(name)
            if new.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, old.to(new.device))
        return self
