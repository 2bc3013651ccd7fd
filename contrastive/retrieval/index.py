"""A searchable set of vectors under the callers' own ids: built, changed, tuned, saved and merged."""

import copy
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from contrastive.checks import LARGEST, check_number, check_whole, shown
from contrastive.encoders.fingerprint import same_encoder
from contrastive.errors import InvalidType, InvalidValue, UnknownKey
from contrastive.retrieval.engine import choose_factory
from contrastive.retrieval.filters import check_filter
from contrastive.retrieval.folder import Check, read_folder, text_or_none, whole, write_folder
from contrastive.retrieval.ids import Array, Ids, IdTable
from contrastive.retrieval.metadata import ALIVE, Columns, Filter, Metadata
from contrastive.retrieval.neighbours import BLOCK, PASSED_OVER, Neighbours
from contrastive.retrieval.tables import read_table, write_table
from contrastive.retrieval.threads import ReadersWriter, changes, reads
from contrastive.retrieval.vectors import METRICS, Metric, Vectors, as_rows

KIND, VERSION, ITEMS = "contrastive index", 1, "items.parquet"
Folder = str | os.PathLike[str]

_SMALL = 1 << 20  # numbers in the vectors of an exact index that are copied in about a millisecond
_FEW = 20_000  # vectors that pass a filter and are then all compared, which takes milliseconds
_WIDEST = 2**24
_LARGEST_K = 2**31 - 1  # what FAISS takes

_FIELDS: dict[str, Check] = {
    "metric": (lambda value: value in METRICS, f"one of {', '.join(METRICS)}"),
    "dim": whole(1),
    "id": (lambda value: value in ("integer", "string"), "'integer' or 'string'"),
    "factory": (lambda value: isinstance(value, str) and value != "", "a factory string"),
    "effort": whole(0),
    "rerank": whole(1),
    "tuned": (lambda value: value is None or isinstance(value, dict), "what tune found, or null"),
    "fingerprint": (text_or_none, "a text or null"),
}

_ROOM = (
    0.3  # removed vectors, as a share of those that are there, at which an approximate index is built anew
)
_FEW_HOLES = 64  # that may be there in any case
_HELD_OUT = 0.1  # share of the vectors that a graph is tuned without
_MOST_EFFORT = 2**31 - 1
RECALL = 0.95  # share of the true neighbours that an approximate index is tuned to find where nobody asks for another


class Index:
    """Nearest neighbours of vectors, under integer or string ids, with columns to filter by.

    Made by :meth:`build`, :meth:`from_embeddings`, :meth:`load` or :meth:`merge`. Vectors of ``metric="cosine"`` are
    brought to unit length, those of queries too. Scores are cosines, inner products (``"dot"``) or minus Euclidean
    distances: larger is closer. Everything that is refused is refused before anything has changed.

    Any number of threads may use one index at a time. Those that search, look up or save do so beside each other; one
    that changes it (:meth:`add`, :meth:`remove`, :meth:`update`, :meth:`compact`, :meth:`tune`) waits until they have
    ended and works alone, so each search sees all of a change or nothing of it. Several calls are several steps,
    between which others may change it. An index can be copied and pickled; one that is mapped, or keeps vectors in a
    file, is then in memory.

    Args:
        dim: width of the vectors.
        metric: ``"cosine"``, ``"dot"`` or ``"euclidean"``.
        factory: ``"Flat"`` for exact search, or a factory string of FAISS.
        keep_vectors: keep the vectors themselves in a file beside a FAISS index, to rank short lists by them and to
            give them back; exact search and HNSW keep them anyway.
        fingerprint: of the encoder that the vectors are from.

    Raises:
        ValueError: an unknown metric, a width below 1, or a factory that FAISS does not understand.
        ImportError: another factory than ``"Flat"``, and FAISS is not installed.
    """

    def __init__(
        self,
        dim: int,
        metric: Metric = "cosine",
        factory: str = "Flat",
        *,
        keep_vectors: bool = False,
        fingerprint: str | None = None,
    ) -> None:
        if not isinstance(metric, str) or metric not in METRICS:
            raise InvalidValue(f"Index: metric is {shown(metric)}; choose one of {', '.join(METRICS)}.")
        if (dim := check_whole("Index", "dim", dim, -LARGEST)) < 1 or dim > _WIDEST:
            raise InvalidValue(f"Index: dim is {dim}; give the width of the vectors.")
        if not isinstance(factory, str):
            raise InvalidType(f"Index: factory is {shown(factory)}; give a text, as 'Flat' or 'HNSW32'.")
        self._lock = ReadersWriter()
        self.fingerprint = fingerprint
        self.tuned: dict[str, Any] | None = None
        """What :meth:`tune` found: effort, re-ranking, recall and speed."""
        self._ids, self._metadata = IdTable(), Metadata()
        self._next_id = 0  # that is given where nobody gives one: above all that ever were
        self._neighbours = Neighbours(dim, metric, factory, keep_vectors)

    # ------------------------------------------------------------------ making one

    @classmethod
    def build(
        cls,
        vectors: Vectors,
        ids: Ids | None = None,
        *,
        metric: Metric = "cosine",
        factory: str = "auto",
        metadata: Columns = None,
        memory_budget: int | None = None,
        keep_vectors: bool | None = None,
        fingerprint: str | None = None,
        recall: float | None = RECALL,
        seed: int = 0,
    ) -> "Index":
        """Build an index of vectors in memory.

        Args:
            vectors: ``(N, D)`` floating point, tensor or array.
            ids: ``(N,)`` integers or strings, each once; 0 to N - 1 by default.
            metric: see :class:`Index`.
            factory: ``"auto"`` (:func:`~contrastive.retrieval.engine.choose_factory`), ``"Flat"``, or a factory string
                of FAISS.
            metadata: a column each, N values; or a table.
            memory_budget: bytes that ``"auto"`` may use; half of what is free by default.
            keep_vectors: see :class:`Index`; by default, if ``"auto"`` chose codes.
            fingerprint: of the encoder.
            recall: share of the true neighbours that an approximate index is to find, see :meth:`tune`; None leaves it
                at FAISS's own effort. Codes without the vectors cannot be tuned.
            seed: of the samples that lists and codes are learned from, and that it is tuned by.

        Raises:
            TypeError: vectors or ids of a wrong type.
            ValueError: shapes that do not fit, vectors or ids that are not valid.
        """
        rows = as_rows(vectors, metric, None, "Index.build")
        index = cls._sized(
            len(rows), rows.shape[1], metric, factory, memory_budget, keep_vectors, fingerprint
        )
        prepared = index._check_new(rows, ids, metadata, "Index.build")
        index._neighbours.train(rows, seed)
        index._append(rows, *prepared)
        index._tune_if_it_can(recall, seed)
        return index

    @classmethod
    def from_embeddings(
        cls,
        folder: Folder,
        *,
        metric: Metric = "cosine",
        factory: str = "auto",
        columns: Sequence[str] | None = None,
        memory_budget: int | None = None,
        keep_vectors: bool | None = None,
        recall: float | None = RECALL,
        seed: int = 0,
    ) -> "Index":
        """Build an index of embeddings on disk, a part at a time.

        With ``"auto"`` and more vectors than fit the budget, only codes and ids are in memory.

        Args:
            folder: written by :func:`contrastive.retrieval.embed`.
            columns: the columns to take over; all by default.
            metric, factory, memory_budget, keep_vectors, recall, seed: see :meth:`build`.

        Raises:
            FileNotFoundError: the folder holds no finished embeddings.
            ValueError: a damaged shard, or one that does not fit.
        """
        from contrastive.retrieval.shards import Embeddings

        source = Embeddings(folder)  # compares the checksum of each shard when it is first read
        index = cls._sized(
            len(source),
            source.dim,
            metric,
            factory,
            memory_budget,
            keep_vectors,
            source.manifest["fingerprint"],
        )
        if wanted := index._neighbours.training_rows:
            sample = source.sample(wanted, seed)
            for start in range(0, len(sample), BLOCK):  # in place: nothing larger is in memory until then
                part = slice(start, start + BLOCK)
                sample[part] = as_rows(sample[part], metric, None, "Index.from_embeddings")
            index._neighbours.train(sample, seed)
            del sample
        for vectors, ids, table in source.batches(columns=columns):
            index.add(vectors, ids, table)
        index._tune_if_it_can(recall, seed)
        return index

    def _tune_if_it_can(self, recall: float | None, seed: int) -> None:
        if recall is not None and not self.exact and len(self) and self._neighbours.has_vectors:
            self.tune(recall, seed=seed)

    @classmethod
    def _sized(
        cls,
        count: int,
        dim: int,
        metric: Metric,
        factory: str,
        memory_budget: int | None,
        keep_vectors: bool | None,
        fingerprint: str | None,
    ) -> "Index":
        if memory_budget is not None:
            memory_budget = check_whole("Index", "memory_budget", memory_budget)
        chosen = factory
        if isinstance(factory, str) and factory == "auto":
            chosen = choose_factory(count, dim, memory_budget or _free_memory() // 2)
        keep = factory == "auto" if keep_vectors is None else keep_vectors
        return cls(dim, metric, chosen, keep_vectors=keep, fingerprint=fingerprint)

    # ------------------------------------------------------------------ what is in it

    @reads
    def __len__(self) -> int:
        """Number of vectors."""
        return self._ids.num_alive

    @reads
    def __contains__(self, item: int | str) -> bool:
        """Whether there is a vector of this id."""
        return bool(self._ids.find(self._ids.check([item], "in"))[0] >= 0)  # type: ignore[arg-type]

    @property
    @reads
    def ids(self) -> Array:
        """All ids ``(N,)``: ``int64``, or an object array of ``str``."""
        return self._ids.values[self._ids.alive]

    @property
    @reads
    def metadata(self) -> pa.Table | None:
        """The columns, a row for each of :attr:`ids` in the same order; None if there are none."""
        table = self._metadata.table
        return (
            table if table is None or len(self) == len(self._ids) else table.filter(pa.array(self._ids.alive))
        )

    @reads
    def columns(self, ids: Ids) -> pa.Table | None:
        """The columns of these ids, a row each; None if there are no columns.

        Raises:
            KeyError: an id is not here.
        """
        slots = self._slots(ids, "columns", unique=False)
        return None if self._metadata.table is None else self._metadata.table.take(pa.array(slots))

    @property
    @reads
    def manifest(self) -> dict[str, Any]:
        """What describes the index; stands in ``manifest.json`` of a saved one."""
        return {
            "metric": self.metric,
            "normalised": self.metric == "cosine",
            "dim": self.dim,
            "count": len(self),
            "id": "string" if self._ids.strings else "integer",
            "columns": [] if self._metadata.table is None else self._metadata.table.column_names,
            "factory": self.factory,
            "effort": self._neighbours.effort,
            "rerank": self._neighbours.rerank,
            "tuned": self.tuned,
            "fingerprint": self.fingerprint,
            "next_id": self._next_id,
        }

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._neighbours.dim

    @property
    def metric(self) -> Metric:
        """``"cosine"``, ``"dot"`` or ``"euclidean"``."""
        return self._neighbours.metric

    @property
    def factory(self) -> str:
        """``"Flat"``, or the factory string of FAISS."""
        return self._neighbours.factory

    @property
    def exact(self) -> bool:
        """Whether every vector is compared, so that neighbours are right for certain."""
        return self._neighbours.approximate is None

    @reads
    def reconstruct(self, ids: Ids) -> Array:
        """Vectors ``(n, D)`` of these ids, of unit length for ``"cosine"``.

        They are those that were given, but for codes without ``keep_vectors``.

        Raises:
            KeyError: an id is not here.
        """
        return self._neighbours.rows(self._slots(ids, "reconstruct", unique=False))

    # ------------------------------------------------------------------ changing it

    @changes
    def add(self, vectors: Vectors, ids: Ids | None = None, metadata: Columns = None) -> None:
        """Add vectors.

        Args:
            vectors: ``(n, D)``.
            ids: ``(n,)``, none of which is here; the integers after the largest one by default.
            metadata: the columns that the index has.

        Raises:
            TypeError: vectors or ids of a wrong type.
            ValueError: a vector, id or column that is not valid, or an id that is here.
        """
        rows = as_rows(vectors, self.metric, self.dim, "add")
        prepared = self._check_new(rows, ids, metadata, "add")
        if self._neighbours.training_rows:
            raise InvalidValue(
                f"add: factory={self.factory!r} must be trained first; make the index by Index.build(vectors)."
            )
        self._append(rows, *prepared)

    @changes
    def remove(self, ids: Ids) -> None:
        """Remove vectors.

        Raises:
            KeyError: an id is not here; then nothing is removed.
        """
        self._ids.remove(self._slots(ids, "remove"))
        self._close_holes()

    @changes
    def update(self, vectors: Vectors, ids: Ids, metadata: Columns = None) -> None:
        """Give new vectors, and new values in the columns, to ids that are here.

        Raises:
            KeyError: an id is not here.
            TypeError, ValueError: see :meth:`add`.
        """
        slots = self._slots(ids, "update")
        rows = as_rows(vectors, self.metric, self.dim, "update")
        if len(rows) != len(slots):
            raise InvalidValue(f"update: got {len(rows)} vectors for {len(slots)} ids; give one for each.")
        table = metadata
        if metadata is None and self._metadata.table is not None:
            table = self._metadata.table.take(pa.array(slots))
        table = self._metadata.check(table, len(rows), False, "update")
        self._append(rows, self._ids.check(ids, "update"), table, replaced=slots)
        self._close_holes()

    @changes
    def compact(self) -> None:
        """Give back the room of removed vectors; an approximate index is built anew for that.

        Raises:
            ValueError: the vectors themselves are not kept.
        """
        if len(self) == len(self._ids):
            return
        self._require_vectors("compact")
        alive = np.flatnonzero(self._ids.alive)
        ids, metadata = self._ids.kept(alive), self._metadata.kept(alive)
        self._neighbours.keep(alive)  # all that can fail comes before: the three change together
        self._ids, self._metadata = ids, metadata

    def _close_holes(self) -> None:
        """Compact an index that holds many removed vectors, or is so small that this costs next to nothing.

        A few may stay: a search passes them over. So each of many single removals is cheap, and no search pays. A graph
        finds fewer true neighbours the more of its links lead to what was removed.
        """
        holes = len(self._ids) - len(self)
        if not self.exact:
            if holes > _FEW_HOLES + _ROOM * len(self) and self._neighbours.has_vectors:
                self.compact()
        elif holes and (holes > PASSED_OVER or len(self._ids) * self.dim <= _SMALL):
            self.compact()

    def _check_new(
        self, rows: Array, ids: Ids | None, metadata: Columns, call: str
    ) -> tuple[Array, pa.Table | None]:
        if ids is None:
            if self._ids.strings:
                raise InvalidType(f"{call}: the ids here are strings; give ids.")
            ids = np.arange(self._next_id, self._next_id + len(rows))
        found = self._ids.check(ids, call)
        if len(found) != len(rows):
            raise InvalidValue(f"{call}: got {len(found)} ids for {len(rows)} vectors; give one for each.")
        here = self._ids.find(found) >= 0
        if here.any():
            raise InvalidValue(
                f"{call}: {int(here.sum())} of {len(found)} ids are in the index, as {found[here].tolist()[0]!r}; "
                "use update for these."
            )
        return found, self._metadata.check(metadata, len(rows), not len(self._ids), call)

    def _append(self, rows: Array, ids: Array, table: pa.Table | None, replaced: Array | None = None) -> None:
        if not len(rows):
            return
        size = len(self._ids)
        slots = self._ids.reserve(ids)
        try:
            self._metadata.append(table)
            self._neighbours.append(rows)
        except BaseException:
            if len(self._neighbours) == size:  # once they are there, they stay in empty slots
                self._ids.truncate(size)
                self._metadata.truncate(size)
            raise
        if replaced is not None:
            self._ids.remove(replaced)
        self._ids.fill(slots)
        if not self._ids.strings:
            self._next_id = max(self._next_id, int(ids.max()) + 1)

    # ------------------------------------------------------------------ searching

    @reads
    def search(
        self, queries: Vectors, k: int = 10, filter: Filter = None, effort: int | None = None
    ) -> tuple[Array, Array]:
        """The ``k`` closest vectors of each query.

        Args:
            queries: ``(Q, D)`` floating point.
            k: number of neighbours.
            filter: only among vectors whose columns meet these conditions: column -> a value, a list of values, or
                ``slice(low, high)``, both included.
            effort: how hard an approximate index is to try: ``efSearch`` of a graph, ``nprobe`` of an inverted file;
                what :meth:`tune` found by default. An exact one has none.

        Returns:
            Scores ``(Q, k)`` float32, falling along each row, and ids ``(Q, k)``. Where there are fewer, the score
            is ``-inf`` and the id -1 or None.

        Raises:
            TypeError, ValueError: queries that are not valid, k below 1, or a filter that does not fit the columns.
        """
        k = check_whole("search", "k", k, 1, _LARGEST_K)
        rows = as_rows(queries, self.metric, self.dim, "search")
        mask = self._mask(filter, "search")
        few = bool(filter) and mask is not None and int(mask.sum()) <= _FEW and self._neighbours.has_vectors
        if few:
            scores, slots = self._neighbours.exact(rows, k, mask)
        else:
            effort = None if effort is None else check_whole("search", "effort", effort, 1, _MOST_EFFORT)
            scores, slots = self._neighbours.search(rows, k, mask, effort)
        return scores, self._ids.named(slots)

    @reads
    def range_search(
        self, queries: Vectors, score: float, filter: Filter = None
    ) -> tuple[list[Array], list[Array]]:
        """All vectors whose score is at least ``score``, closest first.

        Args:
            queries: ``(Q, D)``.
            score: a cosine, an inner product, or minus a Euclidean distance.
            filter: see :meth:`search`.

        Returns:
            For each query its scores and its ids, ``(n_q,)`` each. Of an approximate index some may be missing.
        """
        rows = as_rows(queries, self.metric, self.dim, "range_search")
        score = check_number("range_search", "score", score)
        if self.metric == "euclidean" and score > 0:
            raise InvalidValue(f"range_search: score is {score}; give minus the largest distance, 0 or less.")
        scores, slots = self._neighbours.range_search(rows, score, self._mask(filter, "range_search"))
        return scores, [self._ids.named(found) for found in slots]

    @changes
    def tune(
        self,
        recall: float = 0.95,
        k: int = 10,
        *,
        queries: Vectors | None = None,
        sample: int = 1000,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Search with the least effort that finds so many of the true neighbours, measured on a sample.

        What is measured is above ``recall`` by its own uncertainty, so that other queries find as many with a
        probability of about 95 %.

        Args:
            recall: share of the ``k`` true neighbours that must be found, in (0, 1].
            k: number of neighbours.
            queries: ``(Q, D)`` like those to come; by default vectors of the index. A graph is built a second time
                without them to be measured, as it finds what it holds more easily than what it does not; an inverted
                file is measured as it is, and they do not find themselves.
            sample: how many of these to take, a tenth of the index at most.
            seed: of the sample.

        Returns:
            Effort, candidates a neighbour that are ranked again (``rerank``), measured recall, its lower bound
            (``recall_low``), queries per second, and what the ``queries`` were: ``"given"``, ``"held out"`` or
            ``"stored"``; also in :attr:`tuned`. Where no effort suffices there is a
            warning, and the one that found most is chosen.

        Raises:
            ValueError: an empty index, a recall out of range, or codes without the vectors to compare with.
        """
        if not 0 < recall <= 1 or k < 1 or not len(self):
            raise InvalidValue(
                f"tune: recall={recall}, k={k}, {len(self)} vectors; give a recall in (0, 1], k of 1 or more, and an "
                "index that is not empty."
            )
        self._require_vectors("tune")
        mask, own = self._mask(None, "tune"), None
        if queries is None:
            alive = np.flatnonzero(self._ids.alive)
            most = max(1, int(_HELD_OUT * len(alive))) if len(alive) > 1 else 1
            own = np.random.default_rng(seed).choice(alive, min(sample, most), replace=False)
            rows = self._neighbours.rows(own)
        else:
            rows = as_rows(queries, self.metric, self.dim, "tune")
        k = min(k, max(len(self) - (own is not None), 1))
        self.tuned = self._neighbours.tune(recall, k, rows, mask, own)
        return self.tuned

    def _mask(self, filter: Filter, call: str) -> Array | None:
        """Slots that may be found; None for all."""
        check_filter(filter, call)
        if filter:
            return self._metadata.mask(filter, call) & self._ids.alive
        return None if self._ids.num_alive == len(self._ids) else self._ids.alive

    def _slots(self, ids: Ids, call: str, *, unique: bool = True) -> Array:
        found = self._ids.check(ids, call, unique=unique)
        slots = self._ids.find(found)
        if (slots < 0).any():
            missing = found[slots < 0]
            raise UnknownKey(
                f"{call}: {len(missing)} of {len(found)} ids are not in the index, as {missing.tolist()[0]!r}."
            )
        return slots

    def _require_vectors(self, call: str) -> None:
        if not self._neighbours.has_vectors:
            raise InvalidValue(
                f"{call}: factory={self.factory!r} keeps codes, not vectors; build the index with keep_vectors=True."
            )

    # ------------------------------------------------------------------ on disk

    def save(self, folder: Folder) -> Path:
        """Write the index to a folder, in place of one that is there.

        Whatever happens meanwhile, the folder holds the old index or the new one. Several processes may write one
        folder: each waits for the one before, and the last one's index stays. Without pickle: ids and columns as
        Parquet, vectors as plain float32, the rest in FAISS's own format, and a manifest with checksums.

        Raises:
            FileExistsError: the folder holds something else.
            OSError: it cannot be written.
        """
        path = Path(folder)
        if self.exact:
            self.compact()  # so that what was removed is not in the files
        with self._lock.reading:
            self._write(path)
        return path

    def _write(self, path: Path) -> None:
        def write(files: Path) -> None:
            self._neighbours.write(files)
            ids = pa.array(self._ids.values, pa.string() if self._ids.strings else pa.int64())
            table = pa.table({"id": ids, ALIVE: pa.array(self._ids.alive)})
            if self._metadata.table is not None:
                for name in self._metadata.table.column_names:
                    table = table.append_column(name, self._metadata.table.column(name))
            write_table(table, files / ITEMS)

        write_folder(path, KIND, VERSION, self.manifest, write)

    @classmethod
    def load(
        cls,
        folder: Folder,
        *,
        mmap: bool = False,
        fingerprint: str | None = None,
        check: bool = True,
    ) -> "Index":
        """Read a saved index.

        Args:
            folder: where it was saved.
            mmap: map vectors into memory instead of reading them, so that only what is looked at is read. The first
                change reads everything.
            fingerprint: of the encoder that queries will come from; an index of another encoder's vectors is refused.
                None accepts any.
            check: compare the checksums of all files, which reads them once. Without it, vectors and FAISS's file of
                more than 64 MB are taken as they are, if their sizes are right; manifest, ids, columns and smaller
                files are compared in any case.

        Another process may replace the index meanwhile: the old one or the new one is read.

        Raises:
            FileNotFoundError: there is no index.
            ValueError: it is damaged, of another kind or version, or from another encoder.
        """
        path = Path(folder)

        def read(manifest: dict[str, Any], files: Path) -> "Index":
            made_with = manifest["fingerprint"]
            if None not in (fingerprint, made_with) and not same_encoder(fingerprint, made_with):
                raise InvalidValue(
                    f"{path} holds vectors of the encoder {str(made_with)[:12]}, queries come from "
                    f"{str(fingerprint)[:12]}; their distances mean nothing: use that encoder, build the index anew, "
                    "or pass fingerprint=None if you know better."
                )
            return cls._read(manifest, files, mmap)

        return read_folder(path, KIND, VERSION, read, checksums=check, fields=_FIELDS)

    @classmethod
    def _read(cls, manifest: dict[str, Any], files: Path, mmap: bool) -> "Index":
        width, metric = manifest["dim"], manifest["metric"]
        index = cls(width, metric, fingerprint=manifest["fingerprint"])
        index.tuned = manifest["tuned"]
        settings = (manifest[name] for name in ("factory", "effort", "rerank"))
        index._neighbours = Neighbours.read(files, width, metric, *settings, mmap=mmap)
        table = read_table(files / ITEMS, memory_map=mmap)
        kind = pa.int64() if manifest["id"] == "integer" else pa.string()
        expected = {"id": kind, ALIVE: pa.bool_()}
        if any(
            table.schema.field(name).type != of for name, of in expected.items() if name in table.column_names
        ) or (not expected.keys() <= set(table.column_names)):
            raise InvalidValue(
                f"{files / ITEMS} does not hold ids of the type that the manifest names, {manifest['id']}; make the "
                "index again."
            )
        ids, alive = table.column("id"), table.column(ALIVE)
        values = ids.to_numpy() if manifest["id"] == "integer" else np.array(ids.to_pylist(), object)
        index._ids = IdTable(np.array(values), np.array(alive.to_numpy()))
        if kind == pa.int64() and len(values):
            index._next_id = int(values.max()) + 1
        if isinstance(known := manifest.get("next_id"), int):  # not in indexes of earlier versions
            index._next_id = max(index._next_id, known)
        rest = table.drop_columns(["id", ALIVE])
        index._metadata = Metadata(rest if rest.num_columns else None)
        if len(index._neighbours) != len(index._ids):
            raise InvalidValue(
                f"{files} holds {len(index._ids)} ids and {len(index._neighbours)} vectors; make the index again."
            )
        return index

    @classmethod
    def merge(cls, indexes: "Sequence[Index | Folder]") -> "Index":
        """One index of all vectors of several, which stay as they are.

        The first one's metric, factory and training are kept and the others' vectors added to it, so of exact indexes
        the result is exactly the index of all their vectors.

        Args:
            indexes: indexes, or folders of saved ones, without common ids.

        Raises:
            ValueError: there are none; widths, metrics, encoders, kinds of ids or columns differ; an id stands in two;
                or codes have no vectors to take over.
        """
        opened = [one if isinstance(one, Index) else cls.load(one, mmap=True) for one in indexes]
        check_alike(opened, "merge")
        first = opened[0]
        with tempfile.TemporaryDirectory() as folder:  # a copy; its files live on as long as it needs them
            merged = cls.load(first.save(Path(folder) / "first"), check=False)
            merged._neighbours.detach()
        for other in opened[1:]:
            with other._lock.reading:
                merged._take_over(other)
        return merged

    def _take_over(self, other: "Index") -> None:
        """Add all that is in another index."""
        other._require_vectors("merge")
        alive = np.flatnonzero(other._ids.alive)
        table = other._metadata.table
        for start in range(0, len(alive), BLOCK):
            slots = alive[start : start + BLOCK]
            part = None if table is None else table.take(pa.array(slots))
            # As prepared: a second division by the length would round.
            rows = other._neighbours.rows(slots)
            self._append(rows, *self._check_new(rows, other._ids.values[slots], part, "merge"))

    def __getstate__(self) -> dict[str, Any]:
        with self._lock.reading:  # what pickles it does so later, when others may be changing this one
            return {name: copy.deepcopy(value) for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=ReadersWriter())

    @reads
    def holds(self, ids: Array) -> Array:
        """Which of these ids ``(n,)``, as :attr:`ids` gives them, are here: bool ``(n,)``."""
        return self._ids.find(ids) >= 0


def check_alike(indexes: Sequence[Index], call: str) -> None:
    """Refuse indexes whose scores cannot be compared with each other.

    Raises:
        ValueError: there are none, or widths, metrics or encoders differ.
    """
    if not indexes:
        raise InvalidValue(f"{call}: got no index; give one or more.")
    for other in indexes[1:]:
        for name in ("dim", "metric", "fingerprint"):
            mine, theirs = getattr(indexes[0], name), getattr(other, name)
            if mine != theirs and not (name == "fingerprint" and same_encoder(mine, theirs)):
                if name == "fingerprint":
                    mine, theirs = (None if one is None else one[:12] for one in (mine, theirs))
                raise InvalidValue(
                    f"{call}: {name} is {mine!r} in the first index and {theirs!r} in another."
                )


def _free_memory() -> int:
    """Bytes of memory that are free for new use."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 8 << 30  # not Linux: a laptop's worth
