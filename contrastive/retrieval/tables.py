"""Parquet files whose pages carry checksums, and what pyarrow says of damaged ones in a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contrastive.errors import InvalidValue


def write_table(table: pa.Table, where: Any) -> None:
    """Write a table to a path or an open file, with a checksum in every page."""
    pq.write_table(table, where, write_page_checksum=True)


def read_table(path: Path, *, memory_map: bool = False) -> pa.Table:
    """Read a table; checksums of its pages, if there are any, are compared.

    Raises:
        ValueError: it is damaged.
    """
    with damaged(path):
        return pq.read_table(path, memory_map=memory_map, page_checksum_verification=True)


def open_table(path: Path) -> pq.ParquetFile:
    """Open a table to be read in parts; read them in :func:`damaged`.

    Raises:
        ValueError: it is damaged.
    """
    with damaged(path):
        return pq.ParquetFile(path, page_checksum_verification=True)


@contextmanager
def damaged(path: Path, remedy: str = "copy it or make it again") -> Iterator[None]:
    """Say of which file it is that pyarrow cannot make sense of.

    Raises:
        ValueError: it cannot.
    """
    try:
        yield
    except InvalidValue:
        raise
    # pyarrow raises its own errors, OSError for contents, and what Python makes of text that is no UTF-8.
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidValue(f"{path} is damaged ({reason}); {remedy}.") from error
