"""Texts to embed: a file of lines, or a column of a Parquet, CSV or TSV file, with ids and other columns beside it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from contrastive.errors import FileMissing, InvalidValue
from contrastive.retrieval.folder import checksum
from contrastive.retrieval.ids import Array

SUFFIXES = (".txt", ".parquet", ".csv", ".tsv")


class Texts(Sequence[str]):
    """A column of texts, held as Arrow holds it.

    Args:
        column: of strings.
        ids: ``(N,)`` integers or strings; None for row numbers.
        columns: what else is known of each text.
        fingerprint: of the file.
    """

    def __init__(
        self, column: pa.ChunkedArray, ids: Array | None, columns: pa.Table, fingerprint: str
    ) -> None:
        self._column, self.ids, self.columns, self.fingerprint = column, ids, columns, fingerprint

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._column)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        """A text, or a list of some."""
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            found: list[str] = self._column.slice(start, max(stop - start, 0)).to_pylist()
            return found[::step]
        return str(self._column[place].as_py())

    def __iter__(self) -> Iterator[str]:
        """All texts in order."""
        for chunk in self._column.chunks:
            yield from chunk.to_pylist()


def read_texts(source: str | os.PathLike[str], column: str = "text", id_column: str | None = None) -> Texts:
    """Read texts from a file.

    Args:
        source: ``.txt`` with a text a line, or ``.parquet``, ``.csv`` (commas) or ``.tsv`` (tabs) with a heading.
        column: of the texts.
        id_column: of the ids, integers or strings; row numbers are ids without it. All other columns, and the texts
            themselves, stand beside the vectors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another kind, cannot be read, has no such column, or a text or an id is missing.
    """
    path = Path(source)
    if not path.is_file():
        raise FileMissing(f"texts: there is no file {path}; give one of {', '.join(SUFFIXES)}.")
    if path.suffix == ".txt":
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        if lines[-1] == "":
            lines.pop()
        table = pa.table({column: pa.array(lines, pa.string())})
    elif path.suffix in SUFFIXES:
        table = _read_table(path, column)
    else:
        raise InvalidValue(f"texts: {path} is of a kind that is not read; give one of {', '.join(SUFFIXES)}.")
    for name in (column, id_column):
        if name is not None and name not in table.column_names:
            raise InvalidValue(
                f"texts: {path} has no column {name!r}; there are: {', '.join(table.column_names)}. Name the column of "
                "the texts as column, that of the ids as id_column."
            )
    texts = table.column(column)
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise InvalidValue(f"texts: column {column!r} of {path} holds {texts.type}; give one of strings.")
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), True).to_numpy()
    if blank.any() or not len(texts):
        rows = np.flatnonzero(blank)
        raise InvalidValue(
            f"texts: {len(rows)} of {len(texts)} texts of {path} are empty"
            + (f", the first in row {rows[0]} (from 0); remove them." if len(rows) else "; give some.")
        )
    ids = None
    if id_column is not None:
        values = table.column(id_column)
        if values.null_count:
            raise InvalidValue(
                f"texts: {values.null_count} ids in {id_column!r} of {path} are missing; fill them in."
            )
        ids = values.to_numpy() if pa.types.is_integer(values.type) else np.array(values.to_pylist(), object)
        table = table.drop_columns([id_column])
    for name in ("id", "vector"):
        if name in table.column_names:
            raise InvalidValue(
                f"texts: {path} has a column {name!r}, a name that embeddings need for themselves; rename it"
                + (", or name it as id_column." if name == "id" else ".")
            )
    return Texts(texts, ids, table, f"{checksum(path)[:16]}-{column}-{id_column}")


def _read_table(path: Path, column: str) -> pa.Table:
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        return pa.csv.read_csv(
            path,
            parse_options=pa.csv.ParseOptions(
                delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True
            ),
            convert_options=pa.csv.ConvertOptions(column_types={column: pa.string()}),
        )
    except pa.ArrowException as error:
        raise InvalidValue(f"texts: {path} cannot be read ({error}); repair it.") from error
