"""From an index to a vector database that several machines share: Milvus, embedded in this process or a cluster.

Where vectors outgrow one machine, or many programs change them, export them once and search with the same call:

    export_to_milvus(index, uri="http://cluster:19530", collection="photos")
    scores, ids = MilvusIndex(uri="http://cluster:19530", collection="photos").search(queries, k=10)

A ``uri`` that is a file path runs the database in this process (milvus-lite). Needs the extra ``milvus``.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from contrastive.errors import ExtraMissing, FileInTheWay, FileMissing, InvalidValue, install
from contrastive.retrieval.ids import Array
from contrastive.retrieval.index import Index
from contrastive.retrieval.metadata import Filter
from contrastive.retrieval.vectors import Vectors, as_rows

_METRICS = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2"}
_BATCH = 1000  # rows a request
_ABOUT = "contrastive.index"  # property of a collection that tells metric, width and encoder


def export_to_milvus(
    index: Index,
    *,
    uri: str = "milvus.db",
    collection: str = "contrastive",
    token: str = "",
    index_type: str = "AUTOINDEX",
) -> "MilvusIndex":
    """Copy the vectors, ids and columns of an index to a new collection.

    Columns of bytes, as thumbnails, stay behind.

    Args:
        index: what to copy; it must have the vectors themselves.
        uri: a file for the embedded database, or the address of a cluster.
        collection: name of the collection.
        token: user and password of a cluster, ``user:password``.
        index_type: of Milvus: approximate as it sees fit by default, ``"FLAT"`` for exact results.

    Raises:
        ImportError: the extra ``milvus`` is not installed.
        FileExistsError: there is such a collection.
        ValueError: the index holds codes only.
    """
    from pymilvus import DataType

    client = _client(uri, token)
    if client.has_collection(collection):
        raise FileInTheWay(f"{uri} has a collection {collection!r}; drop it there, or give another name.")
    manifest = index.manifest
    strings = manifest["id"] == "string"
    about = {name: manifest[name] for name in ("metric", "dim", "fingerprint", "id")}
    schema = client.create_schema(enable_dynamic_field=True)
    schema.add_field(
        "id",
        DataType.VARCHAR if strings else DataType.INT64,
        is_primary=True,
        max_length=65_535 if strings else None,
    )
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=index.dim)
    parameters = client.prepare_index_params()
    parameters.add_index("vector", index_type=index_type, metric_type=_METRICS[index.metric])
    client.create_collection(
        collection, schema=schema, index_params=parameters, properties={_ABOUT: json.dumps(about)}
    )
    ids = index.ids
    for start in range(0, len(ids), _BATCH):
        block = ids[start : start + _BATCH]
        table = index.columns(block)
        rows: list[dict[str, Any]] = [{} for _ in block]
        if table is not None:
            import pyarrow as pa

            rows = table.select(
                [field.name for field in table.schema if not pa.types.is_binary(field.type)]
            ).to_pylist()
        for row, item, vector in zip(rows, block.tolist(), index.reconstruct(block), strict=True):
            row |= {"id": item, "vector": vector.tolist()}
        client.insert(collection, rows)
    client.flush(collection)
    return MilvusIndex(uri=uri, collection=collection, token=token)


class MilvusIndex:
    """A collection that :func:`export_to_milvus` made, searched as an :class:`Index` is.

    Args:
        uri: file of the embedded database, or address of a cluster.
        collection: its name.
        token: user and password of a cluster.

    Raises:
        ImportError: the extra ``milvus`` is not installed.
        FileNotFoundError: there is no such collection.
        ValueError: it was made by something else.
    """

    def __init__(self, *, uri: str = "milvus.db", collection: str = "contrastive", token: str = "") -> None:
        self.client, self.collection = _client(uri, token), collection
        if not self.client.has_collection(collection):
            raise FileMissing(
                f"{uri} has no collection {collection!r}; there are: {self.client.list_collections() or 'none'}."
            )
        try:
            about = json.loads(self.client.describe_collection(collection)["properties"][_ABOUT])
            self.metric, self.dim, self.fingerprint = about["metric"], about["dim"], about["fingerprint"]
            self._strings = about["id"] == "string"
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidValue(
                f"collection {collection!r} of {uri} was not made by export_to_milvus; export an index to a new one."
            ) from error
        self.client.load_collection(collection)

    def __len__(self) -> int:
        """Number of vectors."""
        return int(self.client.get_collection_stats(self.collection)["row_count"])

    def search(self, queries: Vectors, k: int = 10, filter: Filter = None) -> tuple[Array, Array]:
        """The ``k`` closest vectors of each query; arguments and results as :meth:`Index.search`.

        Raises:
            TypeError, ValueError: queries that are not valid, k below 1, or a column that cannot be named.
        """
        if k < 1:
            raise InvalidValue(f"search: k is {k}; give the number of neighbours, 1 or more.")
        rows = as_rows(queries, self.metric, self.dim, "search")
        scores = np.full((len(rows), k), -np.inf, np.float32)
        ids = np.full((len(rows), k), None if self._strings else -1, object if self._strings else np.int64)
        found = self.client.search(
            self.collection,
            data=rows.tolist(),
            limit=k,
            filter=expression(filter or {}),
            output_fields=["id"],
        )
        for q, hits in enumerate(found):
            for place, hit in enumerate(hits):
                close = hit["distance"]
                scores[q, place] = -np.sqrt(max(close, 0.0)) if self.metric == "euclidean" else close
                ids[q, place] = hit["id"]
        return scores, ids


def expression(filter: Mapping[str, Any]) -> str:
    """A filter of :meth:`Index.search` in the language of Milvus.

    Raises:
        ValueError: a column's name is no identifier.
    """
    conditions = []
    for name, wanted in filter.items():
        if not name.isidentifier():
            raise InvalidValue(
                f"search: a column {name!r} cannot be named in a filter of Milvus; use letters and digits."
            )
        if isinstance(wanted, slice):
            conditions += [f"{name} >= {_literal(wanted.start)}"] if wanted.start is not None else []
            conditions += [f"{name} <= {_literal(wanted.stop)}"] if wanted.stop is not None else []
        elif isinstance(wanted, list | tuple | set | np.ndarray):
            conditions.append(f"{name} in [{', '.join(map(_literal, wanted))}]")
        else:
            conditions.append(f"{name} == {_literal(wanted)}")
    return " and ".join(conditions)


def _literal(value: Any) -> str:
    return json.dumps(value.item() if isinstance(value, np.generic) else value, ensure_ascii=False)


def _client(uri: str, token: str) -> Any:
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise ExtraMissing(f"Milvus needs the extra 'milvus': {install('milvus')}.") from error
    return MilvusClient(uri=uri, token=token)
