"""The database behind a :class:`~contrastive.retrieval.milvus.MilvusIndex`: what it takes, and how it is written to."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from contrastive.checks import shown
from contrastive.errors import ExtraMissing, FileTrouble, InvalidType, InvalidValue, install
from contrastive.retrieval.ids import Array
from contrastive.retrieval.index import Index
from contrastive.retrieval.milvus_columns import as_cells

BATCH = 1000  # rows a request
LARGEST_K = 16_384  # neighbours that a cluster gives at most
STRONG = "Strong"  # consistency: a search sees all that was written before it

_METRICS = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2"}
_NUMBERS = 1 << 21  # of vectors a request, 8 MB of the 64 that a cluster takes
_WIDEST, _LONGEST_ID = 32_768, 65_535  # what a cluster takes
_ABOUT = "contrastive.index"  # property of a collection that tells metric, width, encoder and columns


def check_sizes(index: Index, call: str) -> None:
    """Refuse vectors or ids that are larger than Milvus takes.

    Raises:
        ValueError: says which and what it takes.
    """
    if index.dim > _WIDEST:
        raise InvalidValue(f"{call}: vectors are {index.dim} wide; Milvus takes {_WIDEST} at most.")
    check_ids(index.ids, call)


def check_ids(items: Array, call: str) -> Array:
    """The ids, of which none is longer than Milvus takes.

    Raises:
        ValueError: names the first that is.
    """
    if items.dtype == object:
        for item in items.tolist():
            if len(item) * 4 > _LONGEST_ID and len(item.encode()) > _LONGEST_ID:
                raise InvalidValue(
                    f"{call}: the id {item[:20]!r}... has {len(item.encode())} bytes; Milvus takes {_LONGEST_ID} at "
                    "most."
                )
    return items


def rows_a_request(dim: int) -> int:
    """How many rows go in one request."""
    return max(1, min(BATCH, _NUMBERS // dim))


def batches(count: int, dim: int) -> Iterator[tuple[int, int]]:
    """Start and stop of the rows of each request."""
    size = rows_a_request(dim)
    for start in range(0, count, size):
        yield start, min(start + size, count)


def create(client: Any, collection: str, about: dict[str, Any], index_type: str) -> None:
    """Make an empty collection for vectors, with columns as dynamic fields, and what is to be known ``about`` it."""
    from pymilvus import DataType

    strings = about["id"] == "string"
    schema = client.create_schema(enable_dynamic_field=True)
    schema.add_field(
        "id",
        DataType.VARCHAR if strings else DataType.INT64,
        is_primary=True,
        max_length=_LONGEST_ID if strings else None,
    )
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=about["dim"])
    parameters = client.prepare_index_params()
    parameters.add_index("vector", index_type=index_type, metric_type=_METRICS[about["metric"]])
    client.create_collection(
        collection,
        schema=schema,
        index_params=parameters,
        properties={_ABOUT: json.dumps(about)},
        consistency_level=STRONG,
    )


def insert(client: Any, collection: str, rows: Array, ids: Array, table: pa.Table | None) -> None:
    """Insert vectors ``(n, D)`` under their ids ``(n,)``, with their columns."""
    cells: list[dict[str, Any]] = [{} for _ in ids] if table is None else as_cells(table)
    for cell, item, row in zip(cells, ids.tolist(), rows, strict=True):
        cell |= {"id": item, "vector": row.tolist()}
    client.insert(collection, cells)


def drop(client: Any, collection: str, about: dict[str, Any]) -> None:
    """Drop the collection that a failed export made; never one that somebody else made in the same moment."""
    with contextlib.suppress(*failures(), ValueError, KeyError, TypeError):
        if read_about(client, collection)["export"] == about["export"]:
            client.drop_collection(collection)


def read_about(client: Any, collection: str) -> dict[str, Any]:
    """What :func:`create` was given.

    Raises:
        KeyError, TypeError, ValueError: the collection was made by something else.
    """
    found: dict[str, Any] = json.loads(client.describe_collection(collection)["properties"][_ABOUT])
    return found


def failures() -> tuple[type[Exception], ...]:
    """What the database raises."""
    from pymilvus import MilvusException

    return (MilvusException,)


def connect(uri: str | os.PathLike[str], token: str, collection: str) -> Any:
    """A client of the database; the name of the collection is checked beside.

    Raises:
        ImportError: the extra ``milvus`` is not installed.
        OSError: it cannot be opened.
        TypeError, ValueError: an address or a name that cannot be one.
    """
    if not isinstance(uri, str | os.PathLike):
        raise InvalidType(f"Milvus: uri is {shown(uri)}; give a file ending in .db, or an address.")
    if not isinstance(collection, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", collection):
        raise InvalidValue(
            f"Milvus: collection is {shown(collection)}; give a name of letters, digits and underscores."
        )
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise ExtraMissing(f"Milvus needs the extra 'milvus': {install('milvus')}.") from error
    try:
        return MilvusClient(uri=os.fspath(uri), token=token)
    except failures() as error:
        raise FileTrouble(
            f"Milvus: {uri} cannot be opened ({error}); give a file ending in .db in a folder that is there, which no "
            "other process has open, or the address of a cluster that answers."
        ) from error
