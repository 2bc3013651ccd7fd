"""Nearest-neighbour search by FAISS, which is imported here and nowhere else, and exactly without it by PyTorch.

Everything here speaks of slots (row numbers) and of float32 rows that were checked and normalised before. Closeness is
the inner product, or minus the Euclidean distance; larger is closer.
"""

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from contrastive.errors import ExtraMissing, FileTrouble, InvalidValue

Array = NDArray[Any]
NOTHING = -1
"""Slot of a place that could not be filled; its closeness is ``-inf``."""

EXACT_UP_TO = 50_000  # vectors that are searched exactly by "auto"
GRAPH_UP_TO = 2_000_000  # vectors beyond which a graph takes too long to build
BUILD_EFFORT = 100  # candidates for the links of a graph; with FAISS's own 40, clustered rows lose each other
TRAINING_ROWS = 50  # for each list of an inverted file
PRODUCTS_FROM = 2048  # numbers in queries from which products beat pairs; 5 times at FAISS's own 128,000

MARGIN = 8  # candidates beyond those asked for that exact search scores again
_PRODUCTS = 1 << 24  # of a block of queries with all rows, that are held at a time
_PAIRS = 1 << 22  # scores, or numbers in rows gathered for them, that are handled at a time


def faiss() -> Any:
    """The package ``faiss``, or None where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    settings = faiss.cvar  # of older versions 20, in queries
    settings.distance_compute_blas_threshold = min(settings.distance_compute_blas_threshold, PRODUCTS_FROM)
    return faiss


def set_threads(number: int) -> None:
    """Let FAISS use so many threads for building and searching (all processor cores by default)."""
    if number < 1:
        raise InvalidValue(f"set_threads({number}): give at least one thread.")
    if (library := faiss()) is not None:
        library.omp_set_num_threads(number)


def choose_factory(count: int, dim: int, memory_budget: int) -> str:
    """What ``factory="auto"`` means for so many vectors.

    Exact search of up to 50,000 vectors; a graph (HNSW) of up to 2 million, if vectors and links fit the budget; else
    an inverted file with codes of one byte for four numbers, whose short list is ranked by the vectors themselves.

    Args:
        count: number of vectors.
        dim: their width.
        memory_budget: bytes.
    """
    if count <= EXACT_UP_TO or faiss() is None:
        return "Flat"
    if count <= GRAPH_UP_TO and count * (4 * dim + 300) <= memory_budget:
        return "HNSW32"
    lists = 2 ** round(np.log2(4 * np.sqrt(count)))
    parts = max(part for part in range(1, max(dim // 4, 1) + 1) if dim % part == 0)
    return f"IVF{min(lists, 65536)},PQ{parts}x8"


def exact_search(base: Array | torch.Tensor, queries: Array, k: int, euclidean: bool) -> tuple[Array, Array]:
    """The ``k`` closest rows of ``base`` ``(n, D)`` for each query ``(Q, D)``; ``k`` is at most ``n``.

    By FAISS on arrays, by PyTorch on tensors (on their device) and where FAISS is not installed. Products of whole
    blocks are rounded in ways that depend on their sizes. They find candidates, which are then scored pair by pair;
    queries for which rounding may have cost a neighbour are compared with all rows pair by pair. Scores and order are
    therefore the same however queries and rows are cut into blocks, and of equally close rows the first comes first.

    Returns:
        Closeness ``(Q, k)`` float32, falling along each row, and slots ``(Q, k)``.
    """
    wanted, library = min(k + MARGIN, len(base)), faiss()
    if library is None or isinstance(base, torch.Tensor):
        rough, slots = _torch_search(torch.as_tensor(base), queries, wanted, euclidean)
    else:
        metric = library.METRIC_L2 if euclidean else library.METRIC_INNER_PRODUCT
        rough, slots = library.knn(queries, base, wanted, metric=metric)
        rough = _closeness(rough, euclidean)
        # FAISS itself multiplies few queries pair by pair; older versions compare the queries' number alone.
        if queries.size < library.cvar.distance_compute_blas_threshold and _is_falling(rough[:, : k + 1]):
            return rough[:, :k], slots[:, :k]
    scores = pairs(base, queries, slots, euclidean)
    order = np.lexsort((slots, -scores))[:, :k]
    best = np.take_along_axis(scores, order, 1), np.take_along_axis(slots, order, 1)
    if wanted < len(base):
        unsure = np.flatnonzero(_may_have_missed(scores, rough, best[0][:, -1], euclidean))
        best[0][unsure], best[1][unsure] = _compare_all(base, queries[unsure], k, euclidean)
    return best


def _is_falling(values: Array) -> bool:
    """Whether values fall along each row, no two being equal."""
    return bool((values[:, 1:] < values[:, :-1]).all())


def _may_have_missed(scores: Array, rough: Array, last: Array, euclidean: bool) -> Array:
    """For which queries a row that is no candidate may be as close as the last neighbour, bool ``(Q,)``.

    By the products that found the candidates it is at most as close as each of them. It may be wrong by a few times
    what they are wrong by, and at least in its last digits.

    Args:
        scores: closeness of the candidates ``(Q, C)``.
        rough: the same as it was when they were found, falling.
        last: ``(Q,)`` closeness of the last neighbour.
        euclidean: metric; what is wrong are then the squares.
    """
    if euclidean:
        scores, rough, last = (-(one.astype(np.float64) ** 2) for one in (scores, rough, last))
    error = 8 * np.abs(scores - rough).max(axis=1) + 2.0**-22 * np.abs(rough[:, -1])
    missed: Array = last <= rough[:, -1] + error
    return missed


def _compare_all(base: Array | torch.Tensor, queries: Array, k: int, euclidean: bool) -> tuple[Array, Array]:
    """What :func:`exact_search` returns, by scoring all pairs."""
    scores, slots = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for q, close in enumerate(all_scores(base, queries, euclidean)):
        last = np.partition(close, -k)[-k]
        closer = np.flatnonzero(close > last)
        closer = closer[np.argsort(-close[closer], kind="stable")]
        slots[q] = np.concatenate([closer, np.flatnonzero(close == last)[: k - len(closer)]])
        scores[q] = close[slots[q]]
    return scores, slots


def all_scores(base: Array | torch.Tensor, queries: Array, euclidean: bool) -> Iterator[Array]:
    """Closeness ``(n,)`` of every row of ``base`` ``(n, D)``, query by query, as :func:`exact_search` scores them."""
    step = max(1, _PAIRS // max(len(base), 1))
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        every = np.broadcast_to(np.arange(len(base)), (len(block), len(base)))
        yield from pairs(base, block, every, euclidean)


def pairs(base: Array | torch.Tensor, queries: Array, slots: Array, euclidean: bool) -> Array:
    """Closeness ``(Q, C)`` of each query ``(Q, D)`` to rows ``(Q, C)`` of its own, each pair by itself.

    The closeness to a slot of :data:`NOTHING` is ``-inf``.
    """
    library, scores = faiss(), np.empty(slots.shape, np.float32)
    if library is not None and not isinstance(base, torch.Tensor):
        function = library.fvec_L2sqr_by_idx if euclidean else library.fvec_inner_products_by_idx
        arrays = (scores, queries, base, np.ascontiguousarray(slots))
        function(*map(library.swig_ptr, arrays), base.shape[1], *slots.shape)
        return _closeness(scores, euclidean)
    step = max(1, _PAIRS // max(1, slots.shape[1] * queries.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        rows = torch.as_tensor(base)[torch.tensor(slots[part])].cpu().numpy()
        scores[part] = _closeness_in_double(rows, queries[part, None], euclidean)
    scores[slots < 0] = -np.inf
    return scores


def _closeness_in_double(rows: Array, queries: Array, euclidean: bool) -> Array:
    """Closeness ``(Q, C)`` of rows ``(Q, C, D)`` and queries ``(Q, 1, D)``, summed in float64."""
    if euclidean:
        return cast(Array, -np.sqrt(((rows - queries.astype(np.float64)) ** 2).sum(axis=2)))
    return cast(Array, np.multiply(rows, queries, dtype=np.float64).sum(axis=2))


def _torch_search(base: torch.Tensor, queries: Array, k: int, euclidean: bool) -> tuple[Array, Array]:
    parts = []
    for block in torch.split(torch.as_tensor(queries), max(1, _PRODUCTS // len(base))):
        block = block.to(base.device)
        close = -torch.cdist(block, base) if euclidean else block @ base.T
        parts.append(close.topk(k, dim=1))
    values, slots = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return values, slots


def _closeness(values: Array, euclidean: bool) -> Array:
    """From what FAISS calls distances: squares of Euclidean ones, inner products as they are."""
    return -np.sqrt(np.maximum(values, 0, out=values), out=values) if euclidean else values


def check_factory(factory: str) -> None:
    """Refuse factory strings that FAISS would take for more than it can do, or that cannot do what an index must.

    Raises:
        ValueError: a number in it is out of range, or it keeps ids of its own, or has codes for fast scanning, which
            can neither be filtered nor searched after a removal.
    """
    largest = {"HNSW": 512, "NSG": 512, "x": 16, "": 1 << 20}
    for name, digits in re.findall(r"([A-Za-z]*)(\d+)", factory):
        most = largest.get(name, largest[""])
        if len(digits) > 9 or not 1 <= int(digits) <= most:
            raise InvalidValue(
                f"factory={factory!r} has the number {name}{digits[:20]}; give one from 1 to {most:,} there."
            )
    if "IDMap" in factory:
        raise InvalidValue(f"factory={factory!r}: ids are kept beside FAISS; leave IDMap out.")
    if re.search(r"\dfs", factory):
        raise InvalidValue(
            f"factory={factory!r}: codes for fast scanning can neither be filtered nor searched after a removal; leave "
            "out what begins with 'fs'."
        )


class Approximate:
    """A FAISS index of any factory string, whose rows are slots 0, 1, ... in the order of adding.

    Args:
        factory: as for ``faiss.index_factory``.
        dim: width of vectors.
        euclidean: metric; the inner product otherwise.
        index: one that was read from a file, instead of a new one.

    Raises:
        ImportError: FAISS is not installed.
        ValueError: FAISS does not understand the factory string.
    """

    def __init__(self, factory: str, dim: int, euclidean: bool, index: Any = None) -> None:
        library = faiss()
        if library is None:
            raise ExtraMissing(
                f"factory={factory!r} needs FAISS, which is not installed (pip install faiss-cpu); without it "
                "factory='Flat' searches exactly by PyTorch."
            )
        self.factory, self.euclidean, self._faiss = factory, euclidean, library
        self._mapping = threading.Lock()
        if index is None:
            check_factory(factory)
            metric = library.METRIC_L2 if euclidean else library.METRIC_INNER_PRODUCT
            try:
                index = library.index_factory(dim, factory, metric)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise InvalidValue(
                    f"factory={factory!r} is no index that FAISS can make for width {dim} ({reason}); give 'auto', "
                    "'Flat', 'HNSW32', 'IVF1024,PQ32x8' or another factory string of FAISS."
                ) from error
        self.index = index
        self._inner = library.downcast_index(index)
        self._inverted = library.try_extract_index_ivf(index)
        while isinstance(self._inner, library.IndexPreTransform):
            self._inner = library.downcast_index(self._inner.index)
        self.is_graph = isinstance(self._inner, library.IndexHNSW)
        if self.is_graph:
            self._inner.hnsw.efConstruction = BUILD_EFFORT
        self.can_filter = not isinstance(self._inner, library.IndexPQ)  # FAISS has no masks for these codes
        kinds = library.IndexHNSWFlat | library.IndexFlat | library.IndexIVFFlat
        self.keeps_vectors = isinstance(library.downcast_index(self.index), kinds)
        if self._inverted is not None:  # one that was read may lack what was added after it was made
            self._inverted.set_direct_map_type(library.DirectMap.NoMap)

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.index.ntotal)

    @property
    def training_rows(self) -> int:
        """Rows that training asks for; 0 if it needs no training."""
        if self.index.is_trained:
            return 0
        return 10_000 if self._inverted is None else max(TRAINING_ROWS * self._inverted.nlist, 10_000)

    def train(self, rows: Array, seed: int) -> None:
        """Learn lists and codes from a sample ``(n, D)``.

        Raises:
            ValueError: the sample is too small for the factory.
        """
        if self._inverted is not None:
            self._inverted.cp.seed, self._inverted.cp.max_points_per_centroid = seed, 256
            # The smallest number of points only decides on a warning on standard error.
            self._inverted.cp.min_points_per_centroid = 1
            if (codes := getattr(self._faiss.downcast_index(self._inverted), "pq", None)) is not None:
                codes.cp.min_points_per_centroid = 1
        storage = self._inner.storage if self.is_graph else self._inner
        for part in (self._inverted, storage):
            coded: Any = self._faiss.downcast_index(part) if part is not None else None
            if hasattr(coded, "do_polysemous_training"):
                # Orders the codes for a filter that no search here uses: most of the time of training, no result.
                coded.do_polysemous_training = False
        try:
            self.index.train(rows)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InvalidValue(
                f"factory={self.factory!r} cannot be trained on {len(rows)} vectors ({reason}); use a smaller one, or "
                "'Flat'."
            ) from error

    def add(self, rows: Array) -> None:
        """Append rows ``(n, D)``."""
        if self._inverted is not None:  # FAISS adds to no table of places; the next reconstruct makes it anew
            self._inverted.set_direct_map_type(self._faiss.DirectMap.NoMap)
        self.index.add(rows)

    def emptied(self) -> "Approximate":
        """The same without rows; what was learned from a sample stays."""
        fresh = None
        if self._inverted is not None or not isinstance(self._inner, self._faiss.IndexHNSWFlat):
            fresh = self._faiss.clone_index(self.index)
            fresh.reset()
        found = Approximate(self.factory, int(self.index.d), self.euclidean, fresh)
        found.effort = self.effort
        return found

    def search(
        self, queries: Array, k: int, mask: Array | None, effort: int | None = None
    ) -> tuple[Array, Array]:
        """Closeness and slots ``(Q, k)`` among the slots in ``mask`` (bool, one for each; None for all)."""
        parameters = None
        if mask is not None or effort is not None:
            selector = None if mask is None else self._selector(mask)
            parameters = self._parameters(self.index, selector, self.effort if effort is None else effort)
        values, slots = self.index.search(queries, k, params=parameters)
        close = _closeness(values, self.euclidean)
        if (slots[:, -1] < 0).any():  # places that could not be filled stand last
            close[slots < 0] = -np.inf
        return close, slots

    def range_search(
        self, queries: Array, closeness: float, mask: Array | None
    ) -> tuple[Array, Array, Array]:
        """Offsets ``(Q + 1,)``, closeness and slots of the rows at least so close to each query, unordered."""
        # FAISS leaves out what lies on the radius, and rounds: a little wider, and compared again below.
        step = max(abs(closeness), 1e-3) * 1e-6
        radius = max(-closeness + step, step) ** 2 if self.euclidean else closeness - step
        try:
            offsets, values, slots = self.index.range_search(queries, radius)
        except RuntimeError as error:
            raise InvalidValue(
                f"range_search: FAISS has none for factory={self.factory!r}; use search with a large k, or 'Flat'."
            ) from error
        values = _closeness(values, self.euclidean)
        kept = values >= closeness
        if mask is not None:
            kept &= mask[slots]
        return np.concatenate([[0], np.cumsum(kept)])[offsets.astype(np.int64)], values[kept], slots[kept]

    def reconstruct(self, slots: Array) -> Array:
        """Rows ``(n, D)`` as the index holds them, which codes do only roughly."""
        if self._inverted is not None:
            with self._mapping:  # several threads may read at a time
                self._inverted.set_direct_map_type(self._faiss.DirectMap.Hashtable)
        return cast(Array, self.index.reconstruct_batch(slots))

    @property
    def effort(self) -> int:
        """How hard a search tries: ``efSearch`` of a graph, ``nprobe`` of an inverted file; 0 for others."""
        if self._inverted is not None:
            return int(self._inverted.nprobe)
        return int(self._inner.hnsw.efSearch) if self.is_graph else 0

    @effort.setter
    def effort(self, value: int) -> None:
        if self._inverted is not None:
            self._inverted.nprobe = value
        elif self.is_graph:
            self._inner.hnsw.efSearch = value

    @property
    def efforts(self) -> list[int]:
        """Values of :attr:`effort` to choose from, cheapest first."""
        if self._inverted is not None:
            return [2**i for i in range(self._inverted.nlist.bit_length())]
        return [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024] if self.is_graph else [0]

    def __getstate__(self) -> dict[str, Any]:
        state = {"factory": self.factory, "euclidean": self.euclidean, "effort": self.effort}
        return state | {"index": self._faiss.serialize_index(self.index)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        library = faiss()
        if library is None:
            raise ExtraMissing(
                f"an index of factory={state['factory']!r} needs FAISS: pip install faiss-cpu."
            )
        index = library.deserialize_index(state["index"])
        Approximate.__init__(self, state["factory"], int(index.d), state["euclidean"], index)
        self.effort = state["effort"]

    def owned(self) -> "Approximate":
        """The same index in memory of its own, for one that was mapped and is to change."""
        copy = self._faiss.deserialize_index(self._faiss.serialize_index(self.index))
        found = Approximate(self.factory, int(self.index.d), self.euclidean, copy)
        found.effort = self.effort
        return found

    def write(self, path: Path) -> None:
        """Write to a file."""
        try:
            self._faiss.write_index(self.index, str(path))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise FileTrouble(f"{path} cannot be written by FAISS ({reason}).") from error

    @classmethod
    def read(cls, path: Path, factory: str, dim: int, euclidean: bool, mapped: bool) -> "Approximate":
        """Read from a file, or map it into memory.

        Raises:
            ValueError: FAISS cannot read it.
        """
        library = faiss()
        if library is None:
            raise ExtraMissing(f"{path} needs FAISS, which is not installed: pip install faiss-cpu.")
        try:
            flag = getattr(library, "IO_FLAG_MMAP_IFC", 0)  # before version 1.11 everything is read
            index = library.read_index(str(path), flag if mapped else 0)
            return cls(factory, dim, euclidean, index)
        # What a damaged file says may be of another class, or need more memory than there is.
        except (RuntimeError, MemoryError, AttributeError, TypeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise InvalidValue(
                f"{path} cannot be read by FAISS {library.__version__} ({reason}): it is damaged, or of a newer "
                "version; copy it or make the index again."
            ) from error

    def _selector(self, mask: Array) -> Any:
        bits = np.packbits(mask, bitorder="little")
        selector = self._faiss.IDSelectorBitmap(len(mask), self._faiss.swig_ptr(bits))
        selector.bits = bits  # lives as long as the selector
        return selector

    def _parameters(self, index: Any, selector: Any, effort: int) -> Any:
        """Search parameters of FAISS that hold the selector, if there is one, and the effort."""
        library, inner = self._faiss, self._faiss.downcast_index(index)
        chosen = {} if selector is None else {"sel": selector}
        if isinstance(inner, library.IndexPreTransform):
            within = self._parameters(inner.index, selector, effort)
            return library.SearchParametersPreTransform(index_params=within)
        if isinstance(inner, library.IndexIVF):
            return library.SearchParametersIVF(nprobe=effort, **chosen)
        if isinstance(inner, library.IndexHNSW):
            return library.SearchParametersHNSW(efSearch=effort, **chosen)
        return library.SearchParameters(**chosen)
