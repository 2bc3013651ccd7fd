"""From an index to a vector database that several machines share: Milvus, embedded in this process or a cluster.

Where vectors outgrow one machine, or many programs change them, export them once and go on with the same calls:

    export_to_milvus(index, uri="http://cluster:19530", collection="photos")
    scores, ids = MilvusIndex(uri="http://cluster:19530", collection="photos").search(queries, k=10)

A ``uri`` that is a file path ending in ``.db`` runs the database in this process (milvus-lite). Needs the extra
``milvus``.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from contrastive.checks import check_number, check_whole, shown
from contrastive.errors import FileInTheWay, FileMissing, FileTrouble, InvalidType, InvalidValue, UnknownKey
from contrastive.retrieval import engine
from contrastive.retrieval.ids import Array, Ids, as_ids
from contrastive.retrieval.index import Index
from contrastive.retrieval.metadata import Columns, Filter, Metadata
from contrastive.retrieval.milvus_columns import as_cells, check_cells, exported, expression, read_kinds
from contrastive.retrieval.milvus_database import (
    BATCH,
    LARGEST_K,
    STRONG,
    batches,
    check_ids,
    check_sizes,
    connect,
    create,
    drop,
    failures,
    insert,
    read_about,
    rows_a_request,
)
from contrastive.retrieval.vectors import METRICS, Vectors, as_rows

__all__ = ["MilvusIndex", "export_to_milvus", "expression"]


def export_to_milvus(
    index: Index,
    *,
    uri: str | os.PathLike[str] = "milvus.db",
    collection: str = "contrastive",
    token: str = "",
    index_type: str = "AUTOINDEX",
    columns: Sequence[str] | None = None,
) -> "MilvusIndex":
    """Copy the vectors, ids and columns of an index to a new collection.

    All is checked before the collection is made; if the database then fails, the collection is dropped again.

    Args:
        index: what to copy; it must have the vectors themselves.
        uri: a file for the embedded database, or the address of a cluster.
        collection: name of the collection.
        token: user and password of a cluster, ``user:password``.
        index_type: of Milvus: approximate as it sees fit by default, ``"FLAT"`` for exact results.
        columns: the columns that go along; by default all but those of bytes, as thumbnails.

    Raises:
        ImportError: the extra ``milvus`` is not installed.
        FileExistsError: there is such a collection.
        OSError: the database cannot be opened, or does not take the rows.
        ValueError: the index holds codes only, or a column has a name, a type or values that Milvus cannot hold.
    """
    call = "export_to_milvus"
    if not isinstance(index, Index):
        raise InvalidType(f"{call}: index is {shown(index)}; give an Index.")
    with index._lock.reading:  # so that all of it is copied as it is now
        index._require_vectors(call)
        check_sizes(index, call)
        table = index.metadata
        names = None if columns is None else list(columns)
        kinds = exported(pa.schema([]) if table is None else table.schema, names, call)
        if table is not None:
            table = table.select(list(kinds))
            check_cells(table, call)
        client = connect(uri, token, collection)
        if client.has_collection(collection):
            raise FileInTheWay(f"{uri} has a collection {collection!r}; drop it there, or give another name.")
        about = {name: index.manifest[name] for name in ("metric", "dim", "fingerprint", "id")}
        about |= {"columns": kinds, "export": uuid.uuid4().hex}
        try:
            create(client, collection, about, index_type)
            ids = index.ids
            for start, stop in batches(len(ids), index.dim):
                part = None if table is None else table.slice(start, stop - start)
                insert(client, collection, index.reconstruct(ids[start:stop]), ids[start:stop], part)
            client.flush(collection)
        except BaseException as error:
            drop(client, collection, about)
            if not isinstance(error, failures()):
                raise
            raise FileTrouble(
                f"{call}: {uri} does not take the rows ({error}); nothing of them was left there, mend what it names "
                "and export once more."
            ) from error
    return MilvusIndex(uri=uri, collection=collection, token=token)


class MilvusIndex:
    """A collection that :func:`export_to_milvus` made, searched and changed as an :class:`Index` is.

    Ids are given by the caller. Several programs may change a collection; that two add one id at the same moment
    is not noticed.

    Args:
        uri: file of the embedded database, or address of a cluster.
        collection: its name.
        token: user and password of a cluster.

    Raises:
        ImportError: the extra ``milvus`` is not installed.
        FileNotFoundError: there is no such collection.
        OSError: the database cannot be opened.
        ValueError: it was made by something else.
    """

    def __init__(
        self, *, uri: str | os.PathLike[str] = "milvus.db", collection: str = "contrastive", token: str = ""
    ) -> None:
        self.client, self.collection = connect(uri, token, collection), collection
        if not self.client.has_collection(collection):
            raise FileMissing(
                f"{uri} has no collection {collection!r}; there are: {self.client.list_collections() or 'none'}."
            )
        try:
            about = read_about(self.client, collection)
            self.metric, self.dim, self.fingerprint = about["metric"], about["dim"], about["fingerprint"]
            self._strings = about["id"] == "string"
            # Collections of earlier versions say nothing of their columns.
            self._schema = read_kinds(about["columns"]) if "columns" in about else None
            if self.metric not in METRICS:
                raise InvalidValue(self.metric)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidValue(
                f"collection {collection!r} of {uri} was not made by export_to_milvus; export an index to a new one."
            ) from error
        self.client.load_collection(collection)

    def __len__(self) -> int:
        """Number of vectors."""
        return self._count("")

    def search(self, queries: Vectors, k: int = 10, filter: Filter = None) -> tuple[Array, Array]:
        """The ``k`` closest vectors of each query; arguments and results as :meth:`Index.search`.

        Raises:
            TypeError, ValueError: queries that are not valid, k below 1, or a filter that does not fit the columns.
        """
        k = check_whole("search", "k", k, 1, 2**31 - 1)
        rows = as_rows(queries, self.metric, self.dim, "search")
        words = expression(filter, self._schema, "search")
        scores = np.full((len(rows), k), -np.inf, np.float32)
        ids = np.full((len(rows), k), None if self._strings else -1, object if self._strings else np.int64)
        if words is None or not len(rows):
            return scores, ids
        found = list(self._ask(rows, min(k, LARGEST_K), words))
        # An approximate search leaves places empty that can be filled.
        there = k if all(len(items) == k for _, items in found) else min(k, self._count(words))
        for q, (close, items) in enumerate(found):
            if len(items) < there:
                close, items = self._compare_all(rows[q : q + 1], there, words)
            scores[q, : len(items)], ids[q, : len(items)] = close, items
        return scores, ids

    def range_search(
        self, queries: Vectors, score: float, filter: Filter = None
    ) -> tuple[list[Array], list[Array]]:
        """All vectors whose score is at least ``score``; arguments and results as :meth:`Index.range_search`.

        Raises:
            TypeError, ValueError: queries or a filter that are not valid, or 16,384 vectors or more in the range, of
                which Milvus gives no more.
        """
        rows = as_rows(queries, self.metric, self.dim, "range_search")
        score = check_number("range_search", "score", score)
        if self.metric == "euclidean" and score > 0:
            raise InvalidValue(f"range_search: score is {score}; give minus the largest distance, 0 or less.")
        words = expression(filter, self._schema, "range_search")
        if words is None or not len(rows) or not (there := self._count(words)):
            return [np.empty(0, np.float32) for _ in rows], [self._named([]) for _ in rows]
        # Milvus leaves out what is just at the bound, which belongs to the range, so it is asked for a little more.
        bound = score * score if self.metric == "euclidean" else score
        slack = 1e-5 * max(1.0, abs(bound))
        radius = bound + slack if self.metric == "euclidean" else bound - slack
        found = self._ask(rows, min(there, LARGEST_K), words, {"params": {"radius": radius}})
        results: tuple[list[Array], list[Array]] = ([], [])
        for close, items in found:
            if len(items) == LARGEST_K < there:
                raise InvalidValue(
                    f"range_search: {LARGEST_K:,} vectors or more have a score of {score}, and Milvus gives no more "
                    "of them at a time; give a higher score, or a filter."
                )
            near = close >= np.float32(score)
            results[0].append(close[near])
            results[1].append(items[near])
        return results

    # ------------------------------------------------------------------ changing it

    def add(self, vectors: Vectors, ids: Ids, metadata: Columns = None) -> None:
        """Add vectors under ids that are not here, with a value in each column; as :meth:`Index.add`.

        Raises:
            TypeError, ValueError: a vector, id or column that is not valid, or an id that is here.
        """
        rows, items, table = self._checked(vectors, ids, metadata, "add")
        if here := self._here(items):
            raise InvalidValue(
                f"add: {len(here)} ids are here already, as {sorted(here)[0]!r}; give others, or use update."
            )
        try:
            for start, stop in batches(len(items), self.dim):
                part = None if table is None else table.slice(start, stop - start)
                insert(self.client, self.collection, rows[start:stop], items[start:stop], part)
        except BaseException:
            with contextlib.suppress(*failures()):
                self._delete(items)
            raise

    def update(self, vectors: Vectors, ids: Ids, metadata: Columns = None) -> None:
        """Give new vectors, and new values in the columns, to ids that are here; as :meth:`Index.update`.

        Raises:
            KeyError: an id is not here.
            TypeError, ValueError: see :meth:`add`.
        """
        items = self._items(ids, "update")
        self._require(items, "update")
        rows = as_rows(vectors, self.metric, self.dim, "update")
        if len(rows) != len(items):
            raise InvalidValue(f"update: got {len(rows)} vectors for {len(items)} ids; give one for each.")
        table = None if metadata is None else self._table(metadata, len(items), "update")
        for start, stop in batches(len(items), self.dim):
            block = items[start:stop].tolist()
            if table is None:
                old = {row["id"]: dict(row) for row in self._rows(block, ["*"])}
                cells = [old[item] for item in block]
            else:
                cells = as_cells(table.slice(start, stop - start))
            for cell, item, row in zip(cells, block, rows[start:stop], strict=True):
                cell |= {"id": item, "vector": row.tolist()}
            self.client.upsert(self.collection, cells)

    def remove(self, ids: Ids) -> None:
        """Remove vectors.

        Raises:
            KeyError: an id is not here; then nothing is removed.
        """
        items = self._items(ids, "remove")
        self._require(items, "remove")
        self._delete(items)

    def _checked(
        self, vectors: Vectors, ids: Ids, metadata: Columns, call: str
    ) -> tuple[Array, Array, pa.Table | None]:
        rows, items = as_rows(vectors, self.metric, self.dim, call), self._items(ids, call)
        if len(rows) != len(items):
            raise InvalidValue(f"{call}: got {len(rows)} vectors and {len(items)} ids; give one for each.")
        return rows, items, self._table(metadata, len(items), call)

    def _items(self, ids: Ids, call: str) -> Array:
        items = as_ids(ids, call)
        if len(items) and (items.dtype == object) != self._strings:
            kinds = "strings" if self._strings else "integers"
            raise InvalidType(
                f"{call}: the ids here are {kinds}, the first given is {items.tolist()[0]!r}; give {kinds}."
            )
        return check_ids(items, call)

    def _table(self, metadata: Columns, count: int, call: str) -> pa.Table | None:
        own = self._schema.empty_table() if self._schema else None
        table = Metadata(own).check(metadata, count, self._schema is None, call)
        if table is not None:
            exported(table.schema, None, call)
            check_cells(table, call)
        return table

    # ------------------------------------------------------------------ asking

    def _ask(
        self, rows: Array, limit: int, words: str, parameters: dict[str, Any] | None = None
    ) -> Iterator[tuple[Array, Array]]:
        """Scores and ids of each query, closest first."""
        found = self.client.search(
            self.collection,
            data=rows.tolist(),
            limit=limit,
            filter=words,
            output_fields=["id"],
            search_params=parameters or {},
            consistency_level=STRONG,
        )
        for hits in found:
            close = np.array([hit["distance"] for hit in hits], np.float32)
            if self.metric == "euclidean":
                close = -np.sqrt(np.maximum(close, 0))
            yield close, self._named([hit["id"] for hit in hits])

    def _compare_all(self, query: Array, k: int, words: str) -> tuple[Array, Array]:
        """The same for one query, by comparing all vectors that pass."""
        scores, items = np.empty(0, np.float32), self._named([])
        pages = self.client.query_iterator(
            self.collection,
            batch_size=rows_a_request(self.dim),
            filter=words,
            output_fields=["id", "vector"],
            consistency_level=STRONG,
        )
        while page := pages.next():
            base = np.array([row["vector"] for row in page], np.float32)
            close = next(engine.all_scores(base, query, self.metric == "euclidean"))
            scores = np.concatenate([scores, close])
            items = np.concatenate([items, self._named([row["id"] for row in page])])
            best = np.argsort(-scores, kind="stable")[:k]
            scores, items = scores[best], items[best]
        pages.close()
        return scores, items

    def _named(self, ids: list[Any]) -> Array:
        named = np.empty(len(ids), object if self._strings else np.int64)
        named[:] = ids
        return named

    def _count(self, words: str) -> int:
        found = self.client.query(
            self.collection, filter=words, output_fields=["count(*)"], consistency_level=STRONG
        )
        return int(found[0]["count(*)"])

    def _rows(self, ids: list[Any], fields: list[str]) -> list[dict[str, Any]]:
        words = expression({"id": ids}, pa.schema([("id", pa.string() if self._strings else pa.int64())]))
        found: list[dict[str, Any]] = self.client.query(
            self.collection, filter=words, output_fields=fields, consistency_level=STRONG
        )
        return found

    def _here(self, items: Array) -> set[Any]:
        """Those of these ids that are in the collection."""
        here: set[Any] = set()
        for start in range(0, len(items), BATCH):
            here |= {row["id"] for row in self._rows(items[start : start + BATCH].tolist(), ["id"])}
        return here

    def _require(self, items: Array, call: str) -> None:
        here = self._here(items)
        if missing := [item for item in items.tolist() if item not in here]:
            raise UnknownKey(
                f"{call}: {len(missing)} of {len(items)} ids are not in the collection, as {missing[0]!r}."
            )

    def _delete(self, items: Array) -> None:
        for start in range(0, len(items), BATCH):
            self.client.delete(self.collection, ids=items[start : start + BATCH].tolist())
