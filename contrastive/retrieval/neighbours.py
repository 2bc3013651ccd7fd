"""Search among vectors in numbered slots: exactly, or by FAISS with a short list that is ranked by the vectors."""

import tempfile
import time
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from contrastive.errors import InvalidValue
from contrastive.retrieval import engine
from contrastive.retrieval.engine import NOTHING, Approximate, Array
from contrastive.retrieval.vectors import Metric, Store

BLOCK = 1 << 16  # rows that are handled at a time
PASSED_OVER = 256  # slots that exact search finds and leaves out, instead of copying all others
_TUNED_K = 10  # neighbours that candidates are taken for at least: what is tuned for ten must hold for one
RERANK = 8  # candidates a neighbour that are ranked by the vectors themselves
SURE = 1.645  # standard errors that a measured recall is to be above the wanted one: 95 % of a normal distribution
FLAT = 0.002  # gain of recall by two steps of effort below which more effort is not tried
VECTORS, SEARCH = "vectors.f32", "search.faiss"


class Neighbours:
    """Prepared rows in slots 0, 1, ..., and the closest of them to prepared queries.

    The vectors stand in a :class:`~contrastive.retrieval.vectors.Store`, or in a FAISS index that keeps them, or
    nowhere, if that has codes alone. Closeness: see :mod:`contrastive.retrieval.engine`.

    Args:
        dim: width of the vectors.
        metric: ``"cosine"`` (of rows of unit length), ``"dot"`` or ``"euclidean"``.
        factory: ``"Flat"``, or a factory string of FAISS.
        keep_vectors: keep the vectors of an index with codes in a file, for short lists to be ranked by.
    """

    def __init__(self, dim: int, metric: Metric, factory: str, keep_vectors: bool) -> None:
        self.dim, self.metric, self.factory = dim, metric, factory
        self.euclidean = metric == "euclidean"
        self.rerank = RERANK
        self.approximate = None if factory == "Flat" else Approximate(factory, dim, self.euclidean)
        self.store: Store | None = Store(dim) if self.approximate is None else None
        if self.approximate is not None and keep_vectors and not self.approximate.keeps_vectors:
            self.store = Store(dim, spool=Path(tempfile.gettempdir()))
        self._mapped = False  # whether the approximate index is only mapped

    def __len__(self) -> int:
        """Number of slots."""
        return len(self.store) if self.approximate is None and self.store is not None else len(self._index)

    @property
    def _index(self) -> Approximate:
        assert self.approximate is not None
        return self.approximate

    @property
    def has_vectors(self) -> bool:
        """Whether the vectors themselves are here, and not only codes."""
        return self.store is not None or self._index.keeps_vectors

    @property
    def reranks(self) -> bool:
        """Whether short lists are ranked by the vectors."""
        return self.approximate is not None and self.store is not None

    @property
    def effort(self) -> int:
        """How hard an approximate search tries: ``efSearch`` of HNSW, ``nprobe`` of an inverted file; else 0."""
        return 0 if self.approximate is None else self.approximate.effort

    @property
    def training_rows(self) -> int:
        """Rows that training asks for; 0 if it needs none."""
        return 0 if self.approximate is None else self.approximate.training_rows

    def train(self, rows: Array, seed: int) -> None:
        """Learn lists and codes from a sample ``(n, D)``, if that is needed; of more rows than needed from some."""
        wanted = self.training_rows
        if not wanted:
            return
        if len(rows) > wanted:
            rows = rows[np.sort(np.random.default_rng(seed).choice(len(rows), wanted, replace=False))]
        self._index.train(rows, seed)

    def append(self, rows: Array) -> None:
        """Put rows ``(n, D)`` into the next slots.

        Whatever is raised, either all of them are here afterwards or none.
        """
        size = len(self)
        if self._mapped:
            self.approximate, self._mapped = self._index.owned(), False
        try:
            if self.store is not None:
                self.store.append(rows)
            if self.approximate is not None:
                self.approximate.add(rows)
        except BaseException:
            if self.store is not None and (self.approximate is None or len(self.approximate) == size):
                self.store.truncate(size)
            raise

    def keep(self, slots: Array) -> None:
        """Keep only these slots, in this order; an approximate index is built anew from their vectors.

        Whatever is raised, all is as it was.
        """
        approximate = self.approximate
        if approximate is not None:
            fresh = approximate.emptied()
            for start in range(0, len(slots), BLOCK):
                fresh.add(self.rows(slots[start : start + BLOCK]))
            approximate = fresh
        if self.store is not None:
            self.store.keep(slots)
        if approximate is not self.approximate:
            self.approximate, self._mapped = approximate, False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": False}  # a copy is in memory

    def rows(self, slots: Array) -> Array:
        """Vectors ``(n, D)`` in these slots; of codes alone, what these say."""
        return self._index.reconstruct(slots) if self.store is None else self.store.rows[slots]

    # ------------------------------------------------------------------ searching

    def search(
        self, queries: Array, k: int, mask: Array | None, effort: int | None = None, spare: int = 0
    ) -> tuple[Array, Array]:
        """Closeness and slots ``(Q, k)`` among the slots in ``mask`` (bool, one for each slot; None for all).

        ``spare`` of the places are for what does not count: they bring no further candidates to rank again. Queries for
        which an approximate search leaves places empty that could be filled are compared with everything.
        Places that cannot be filled hold ``-inf`` and :data:`~contrastive.retrieval.engine.NOTHING`.
        """
        if self.approximate is None or not len(self):
            return self.exact(queries, k, mask)
        if mask is not None and not self.approximate.can_filter:
            return self.exact(queries, k, mask)
        if self.reranks:
            wanted = min(max(k - spare, _TUNED_K) * self.rerank + spare, max(len(self), k))
            slots = self.approximate.search(queries, wanted, mask, effort)[1]
            scores, slots = self._rank_again(queries, slots, k)
        else:
            scores, slots = self.approximate.search(queries, k, mask, effort)
        if (slots[:, -1] < 0).any():
            there = min(k, len(self) if mask is None else int(mask.sum()))
            short = np.flatnonzero(slots[:, there - 1] < 0) if there else ()
            if len(short):
                scores[short], slots[short] = self.exact(queries[short], k, mask)
        return scores, slots

    def exact(self, queries: Array, k: int, mask: Array | None) -> tuple[Array, Array]:
        """The same, by comparing all vectors in ``mask``."""
        best: tuple[Array, Array] | None = None
        passed, left_out = self._passed_over(mask)
        for slots, base in self._blocks(mask if passed is None else None):
            scores, found = engine.exact_search(base, queries, min(k + left_out, len(base)), self.euclidean)
            found = found if slots is None else slots[found]
            if passed is not None:
                out = ~passed[found]
                scores[out], found[out] = -np.inf, NOTHING
                scores, found = _best(scores, found, k)
            if best is not None:
                scores, found = np.concatenate([best[0], scores], 1), np.concatenate([best[1], found], 1)
                scores, found = _best(scores, found, k)
            best = scores, found
        if best is None:
            best = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        missing = ((0, 0), (0, k - best[0].shape[1]))
        if missing[1][1]:
            return np.pad(best[0], missing, constant_values=-np.inf), np.pad(
                best[1], missing, constant_values=NOTHING
            )
        return best

    def range_search(
        self, queries: Array, closeness: float, mask: Array | None
    ) -> tuple[list[Array], list[Array]]:
        """Closeness and slots of all vectors in ``mask`` that are at least so close, for each query, closest first."""
        scores: list[list[Array]] = [[] for _ in queries]
        slots: list[list[Array]] = [[] for _ in queries]
        if self.approximate is not None and len(self):
            bounds, close, found = self.approximate.range_search(queries, closeness, mask)
            for q, (a, b) in enumerate(pairwise(bounds.tolist())):
                scores[q].append(close[a:b])
                slots[q].append(found[a:b])
        else:
            passed, _ = self._passed_over(mask)
            for block, base in self._blocks(mask if passed is None else None):
                for q, close in enumerate(engine.all_scores(base, queries, self.euclidean)):
                    near = np.flatnonzero(close >= closeness)
                    if passed is not None:
                        near = near[passed[near]]
                    scores[q].append(close[near])
                    slots[q].append(near if block is None else block[near])
        result: tuple[list[Array], list[Array]] = ([], [])
        for parts, places in zip(scores, slots, strict=True):
            close = np.concatenate(parts) if parts else np.empty(0, np.float32)
            order = np.argsort(-close, kind="stable")
            result[0].append(close[order])
            result[1].append((np.concatenate(places) if places else np.empty(0, np.int64))[order])
        return result

    def tune(
        self, recall: float, k: int, queries: Array, mask: Array | None, own: Array | None
    ) -> dict[str, Any]:
        """Find the least effort with which so many of the ``k`` true neighbours are found, and keep it.

        Args:
            recall: share of the true neighbours.
            k: number of neighbours.
            queries: prepared queries ``(Q, D)``.
            mask: slots that may be found; None for all.
            own: ``(Q,)`` the slots that the queries were taken from and do not count; None if they are others.

        Returns:
            ``effort``, ``rerank``, ``recall``, ``recall_low``, ``queries_per_second``, ``k`` and what ``queries`` were:
            ``"given"``; ``"held out"`` of a graph that was built without them; or ``"stored"`` vectors.
        """
        if own is not None and self.approximate is not None and self.approximate.is_graph:
            twin, queries = self._without(own, mask), self.rows(own)
            found = twin.tune(recall, min(k, len(twin)), queries, None, None) | {"queries": "held out"}
            self.approximate.effort, self.rerank = twin.effort, twin.rerank
            return found
        wanted = k + (own is not None)
        truth = [] if self.approximate is None else list(self.exact(queries, wanted, mask)[1])
        if own is not None:
            truth = [slots[slots != itself][:k] for slots, itself in zip(truth, own, strict=False)]

        def measure() -> dict[str, Any]:
            start = time.perf_counter()
            found = self.search(queries, wanted, mask, spare=wanted - k)[1]
            seconds = time.perf_counter() - start
            both = [len(np.intersect1d(a, b)) for a, b in zip(truth, found, strict=False)]
            hits = np.array(both or [k]) / k
            return {
                "effort": self.effort,
                "rerank": self.rerank if self.reranks else None,
                "recall": float(hits.mean()),
                "recall_low": float(hits.mean() - SURE * hits.std() / len(hits) ** 0.5),
                "queries_per_second": len(queries) / seconds,
                "k": k,
                "queries": "given" if own is None else "stored",
            }

        if self.approximate is None:
            return measure()
        depth, tried = self.rerank, []
        for candidates in (2, 4, 8, 16, 32) if self.reranks else (depth,):
            recalls: list[float] = []
            for effort in self.approximate.efforts:
                self.approximate.effort, self.rerank = effort, candidates
                tried.append(measure())
                recalls.append(tried[-1]["recall"])
                # Two steps that bring next to nothing: the rest is lost to the codes, or to links that are missing.
                flat = len(recalls) > 2 and recalls[-1] - recalls[-3] < FLAT
                if tried[-1]["recall_low"] >= recall or flat:
                    break
        enough = [one for one in tried if one["recall_low"] >= recall]
        if enough:
            best = max(enough, key=lambda one: one["queries_per_second"])
        else:
            best = max(tried, key=lambda one: one["recall"])
        if best["recall"] < recall:
            warnings.warn(
                f"tune: a recall of {recall} was not reached, {best['recall']:.3f} at most; build the index with "
                f"larger codes or more links than factory={self.factory!r}.",
                stacklevel=3,
            )
        self.approximate.effort, self.rerank = best["effort"], best["rerank"] or depth
        return best

    def _passed_over(self, mask: Array | None) -> tuple[Array | None, int]:
        """``mask``, if it leaves out so few stored rows that all are compared, and how many; else None and 0."""
        left_out = 0 if mask is None else len(mask) - int(np.count_nonzero(mask))
        return (mask, left_out) if self.store is not None and 0 < left_out <= PASSED_OVER else (None, 0)

    def _without(self, own: Array, mask: Array | None) -> "Neighbours":
        """The same built without some slots.

        A vector of a graph is found by the links that were chosen for it, as new queries are not: what is measured with
        it is too good.
        """
        kept = np.ones(len(self), bool) if mask is None else mask.copy()
        kept[own] = False
        twin = Neighbours(self.dim, self.metric, "Flat", False)
        twin.factory, twin.rerank, twin.approximate = self.factory, self.rerank, self._index.emptied()
        twin.store = None if self.store is None else Store(self.dim, spool=Path(tempfile.gettempdir()))
        slots = np.flatnonzero(kept)
        for start in range(0, len(slots), BLOCK):
            twin.append(self.rows(slots[start : start + BLOCK]))
        return twin

    def _blocks(self, mask: Array | None) -> Iterator[tuple[Array | None, Array]]:
        """Slots in ``mask`` and their vectors: all at once (no slots) where they lie side by side, else in parts."""
        if mask is None and self.store is not None:
            if len(self.store):
                yield None, self.store.rows
            return
        wanted = np.arange(len(self)) if mask is None else np.flatnonzero(mask)
        for start in range(0, len(wanted), BLOCK):
            slots = wanted[start : start + BLOCK]
            yield slots, self.rows(slots)

    def _rank_again(self, queries: Array, slots: Array, k: int) -> tuple[Array, Array]:
        """The best ``k`` of each query's candidate slots ``(Q, c)``, by the vectors themselves."""
        assert self.store is not None
        return _best(engine.pairs(self.store.rows, queries, slots, self.euclidean), slots, k)

    # ------------------------------------------------------------------ on disk

    def detach(self) -> None:
        """Copy vectors that stand in a file of somebody else to a file of its own."""
        if self.store is not None and self.store.path is not None:
            copy = Store(self.dim, spool=Path(tempfile.gettempdir()))
            for start in range(0, len(self.store), BLOCK):
                copy.append(self.store.rows[start : start + BLOCK])
            self.store = copy

    def write(self, folder: Path) -> None:
        """Write the vectors, and what FAISS has, to files in a folder."""
        if self.store is not None:
            self.store.write(folder / VECTORS)
        if self.approximate is not None:
            self.approximate.write(folder / SEARCH)

    @classmethod
    def read(
        cls, folder: Path, dim: int, metric: Metric, factory: str, effort: int, rerank: int, *, mmap: bool
    ) -> "Neighbours":
        """Read them again, or with ``mmap`` map them into memory until something changes.

        Raises:
            ValueError: FAISS cannot read its file, or the files do not fit what they should hold.
        """
        found = cls(dim, metric, "Flat", False)
        found.factory, found.rerank, found.store = factory, rerank, None
        needed = VECTORS if factory == "Flat" else SEARCH
        if not (folder / needed).is_file():
            raise InvalidValue(
                f"{folder} has no {needed}, which factory={factory!r} needs; make the index again."
            )
        if (folder / VECTORS).is_file():
            found.store = Store(dim, folder / VECTORS)
            if factory == "Flat" and not mmap:
                found.store.keep(np.arange(len(found.store)))
        if factory != "Flat":
            found.approximate = Approximate.read(folder / SEARCH, factory, dim, found.euclidean, mmap)
            if found.approximate.index.d != dim:
                raise InvalidValue(
                    f"{folder / SEARCH} has vectors of width {found.approximate.index.d}, the manifest says {dim}; "
                    "make the index again."
                )
            found.approximate.effort = effort
            found._mapped = mmap
        return found


def _best(scores: Array, slots: Array, k: int) -> tuple[Array, Array]:
    """The ``k`` highest scores of each row, falling, and their slots."""
    if scores.shape[1] <= k and (len(scores) == 0 or bool((scores[:, 1:] <= scores[:, :-1]).all())):
        return scores, slots
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(slots, order, 1)
