"""Nearest-neighbour search by FAISS, which is imported here and nowhere else, and exactly without it by PyTorch.

Everything here speaks of slots (row numbers) and of float32 rows that were checked and normalised before. Closeness is
the inner product, or minus the Euclidean distance; larger is closer.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
NOTHING = -1
"""Slot of a place that could not be filled; its closeness is ``-inf``."""

EXACT_UP_TO = 50_000  # vectors that are searched exactly by "auto"
GRAPH_UP_TO = 2_000_000  # vectors beyond which a graph takes too long to build
TRAINING_ROWS = 50  # for each list of an inverted file


def faiss() -> Any:
    """The package ``faiss``, or None where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def set_threads(number: int) -> None:
    """Let FAISS use so many threads for building and searching (all processor cores by default)."""
    if number < 1:
        raise ValueError(f"set_threads({number}): give at least one thread.")
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

    By FAISS on arrays, by PyTorch on tensors (on their device) and where FAISS is not installed.

    Returns:
        Closeness ``(Q, k)``, falling along each row, and slots ``(Q, k)``.
    """
    library = faiss()
    if library is None or isinstance(base, torch.Tensor):
        return _torch_search(torch.as_tensor(base), queries, k, euclidean)
    metric = library.METRIC_L2 if euclidean else library.METRIC_INNER_PRODUCT
    values, slots = library.knn(queries, base, k, metric=metric)
    return _closeness(values, euclidean), slots


def _torch_search(base: torch.Tensor, queries: Array, k: int, euclidean: bool) -> tuple[Array, Array]:
    parts = []
    for block in torch.split(torch.as_tensor(queries), max(1, (1 << 24) // max(len(base), 1))):
        block = block.to(base.device)
        close = -torch.cdist(block, base) if euclidean else block @ base.T
        parts.append(close.topk(k, dim=1))
    values, slots = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return values, slots


def _closeness(values: Array, euclidean: bool) -> Array:
    """From what FAISS calls distances: squares of Euclidean ones, inner products as they are."""
    return -np.sqrt(np.maximum(values, 0, out=values), out=values) if euclidean else values


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
            raise ImportError(
                f"factory={factory!r} needs FAISS, which is not installed (pip install faiss-cpu); without it "
                "factory='Flat' searches exactly by PyTorch."
            )
        self.factory, self.euclidean, self._faiss = factory, euclidean, library
        if index is None:
            metric = library.METRIC_L2 if euclidean else library.METRIC_INNER_PRODUCT
            try:
                index = library.index_factory(dim, factory, metric)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise ValueError(
                    f"factory={factory!r} is no index that FAISS can make for width {dim} ({reason}); give 'auto', "
                    "'Flat', 'HNSW32', 'IVF1024,PQ32x8' or another factory string of FAISS."
                ) from error
        self.index = index
        self._inner = library.downcast_index(index)
        self._inverted = library.try_extract_index_ivf(index)
        while isinstance(self._inner, library.IndexPreTransform):
            self._inner = library.downcast_index(self._inner.index)
        self.is_graph = isinstance(self._inner, library.IndexHNSW)
        self.keeps_vectors = isinstance(self.index, library.IndexHNSWFlat | library.IndexFlat)

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
        try:
            self.index.train(rows)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"factory={self.factory!r} cannot be trained on {len(rows)} vectors ({reason}); use a smaller one, or "
                "'Flat'."
            ) from error

    def add(self, rows: Array) -> None:
        """Append rows ``(n, D)``."""
        self.index.add(rows)

    def search(self, queries: Array, k: int, mask: Array | None) -> tuple[Array, Array]:
        """Closeness and slots ``(Q, k)`` among the slots in ``mask`` (bool, one for each; None for all)."""
        parameters = None if mask is None else self._parameters(self.index, self._selector(mask))
        values, slots = self.index.search(queries, k, params=parameters)
        close = _closeness(values, self.euclidean)
        close[slots < 0] = -np.inf
        return close, slots

    def range_search(
        self, queries: Array, closeness: float, mask: Array | None
    ) -> tuple[Array, Array, Array]:
        """Offsets ``(Q + 1,)``, closeness and slots of the rows at least so close to each query, unordered."""
        radius = closeness**2 if self.euclidean else closeness
        try:
            offsets, values, slots = self.index.range_search(queries, radius)
        except RuntimeError as error:
            raise ValueError(
                f"range_search: FAISS has none for factory={self.factory!r}; use search with a large k, or 'Flat'."
            ) from error
        values = _closeness(values, self.euclidean)
        if mask is None:
            return offsets, values, slots
        kept = mask[slots]
        return np.concatenate([[0], np.cumsum(kept)])[offsets.astype(np.int64)], values[kept], slots[kept]

    def reconstruct(self, slots: Array) -> Array:
        """Rows ``(n, D)`` as the index holds them, which codes do only roughly."""
        if self._inverted is not None:
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

    def owned(self) -> "Approximate":
        """The same index in memory of its own, for one that was mapped and is to change."""
        copy = self._faiss.deserialize_index(self._faiss.serialize_index(self.index))
        found = Approximate(self.factory, int(self.index.d), self.euclidean, copy)
        found.effort = self.effort
        return found

    def write(self, path: Path) -> None:
        """Write to a file."""
        self._faiss.write_index(self.index, str(path))

    @classmethod
    def read(cls, path: Path, factory: str, dim: int, euclidean: bool, mapped: bool) -> "Approximate":
        """Read from a file, or map it into memory.

        Raises:
            ValueError: FAISS cannot read it.
        """
        library = faiss()
        if library is None:
            raise ImportError(f"{path} needs FAISS, which is not installed: pip install faiss-cpu.")
        try:
            index = library.read_index(str(path), library.IO_FLAG_MMAP_IFC if mapped else 0)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"{path} cannot be read by FAISS {library.__version__} ({reason}).") from error
        return cls(factory, dim, euclidean, index)

    def _selector(self, mask: Array) -> Any:
        bits = np.packbits(mask, bitorder="little")
        selector = self._faiss.IDSelectorBitmap(len(mask), self._faiss.swig_ptr(bits))
        selector.bits = bits  # lives as long as the selector
        return selector

    def _parameters(self, index: Any, selector: Any) -> Any:
        """Search parameters of FAISS that hold the selector and change nothing else."""
        library, inner = self._faiss, self._faiss.downcast_index(index)
        if isinstance(inner, library.IndexPreTransform):
            return library.SearchParametersPreTransform(index_params=self._parameters(inner.index, selector))
        if isinstance(inner, library.IndexIVF):
            return library.SearchParametersIVF(sel=selector, nprobe=inner.nprobe)
        if isinstance(inner, library.IndexHNSW):
            return library.SearchParametersHNSW(sel=selector, efSearch=inner.hnsw.efSearch)
        return library.SearchParameters(sel=selector)
