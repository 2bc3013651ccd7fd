"""Columns beside the vectors, and filters on them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from contrastive.checks import shown
from contrastive.errors import InvalidType, InvalidValue
from contrastive.retrieval.filters import conditions

Columns: TypeAlias = pa.Table | Mapping[str, Sequence[Any]] | None
Filter: TypeAlias = Mapping[str, Any] | None

ALIVE = "__alive"  # column of a saved index, beside the ids
RESERVED = ("id", ALIVE, "__place")
"""Names that columns of an index cannot have."""


class Metadata:
    """A table with one row for each slot.

    Args:
        table: the rows so far; None for no columns.
    """

    def __init__(self, table: pa.Table | None = None) -> None:
        self.table = table

    def check(self, columns: Columns, count: int, empty: bool, call: str) -> pa.Table | None:
        """``columns`` as a table that can be appended here.

        Raises:
            ValueError: another number of rows, or other columns than there are here.
        """
        table: Any = columns
        if columns is not None and not isinstance(columns, pa.Table):
            table = pa.table(as_columns(columns))
        if table is not None and table.num_rows != count:
            raise InvalidValue(
                f"{call}: metadata has {table.num_rows} rows for {count} vectors; give one for each."
            )
        if table is not None:
            check_names(table.column_names, RESERVED, call)
        if empty:
            if table is not None:
                _check_writable(table.schema, call)
            return table
        own = [] if self.table is None else self.table.column_names
        given = [] if table is None else table.column_names
        if set(own) != set(given):
            raise InvalidValue(
                f"{call}: metadata has the columns {given or 'none'}, the index has {own or 'none'}; give the same."
            )
        if table is None or self.table is None:
            return None
        try:
            return table.select(own).cast(self.table.schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InvalidValue(f"{call}: metadata does not have the types of the index: {error}.") from error

    def append(self, table: pa.Table | None) -> None:
        """Add rows that were checked."""
        if table is not None:
            self.table = table if self.table is None else pa.concat_tables([self.table, table])

    def truncate(self, size: int) -> None:
        """Forget the rows from ``size`` on."""
        if self.table is not None:
            self.table = self.table.slice(0, size) if size else None

    def kept(self, slots: NDArray[Any]) -> "Metadata":
        """These rows alone, in this order."""
        return Metadata(None if self.table is None else self.table.take(pa.array(slots)))

    def mask(self, filter: Mapping[str, Any], call: str) -> NDArray[Any]:
        """Which rows meet all conditions, bool ``(n,)``.

        Args:
            filter: column -> a value; a list of values, any of which will do; or ``slice(low, high)``, both included
                and either None. Empty cells meet no condition. A cell that holds a list meets one if any of its
                entries does.
            call: for errors.

        Raises:
            ValueError: there is no such column, or a value does not have the column's type.
        """
        schema = pa.schema([]) if self.table is None else self.table.schema
        found = np.ones(0 if self.table is None else self.table.num_rows, bool)
        for condition in conditions(schema, filter, call):
            assert self.table is not None
            column, rows = self.table.column(condition.name), None
            if condition.lists:
                column = column.combine_chunks()
                rows = pc.list_parent_indices(column).to_numpy()
                column = pa.chunked_array([pc.list_flatten(column)])
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            met = condition.met(column).to_numpy()
            found &= met if rows is None else np.bincount(rows[met], minlength=len(found)) > 0
        return found


def check_names(names: Sequence[str], reserved: Sequence[str], call: str) -> None:
    """Refuse columns that would clash with others when they are saved.

    Raises:
        ValueError: a reserved name, or one that stands twice.
    """
    for name in names:
        if name in reserved:
            hint = "give ids as ids, and rename the column" if name == "id" else "rename it"
            raise InvalidValue(f"{call}: metadata has a column {name!r}, which is a name of our own; {hint}.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise InvalidValue(f"{call}: metadata has two columns {twice!r}; rename one.")


def _check_writable(schema: pa.Schema, call: str) -> None:
    """Refuse columns that could not be saved, before anything is built with them."""
    for field in schema:
        try:
            pq.write_table(pa.schema([field]).empty_table(), pa.BufferOutputStream())
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise InvalidValue(
                f"{call}: metadata has a column {field.name!r} of type {field.type}, which cannot be saved as Parquet "
                f"({error}); give it another type."
            ) from error


def as_columns(columns: Columns) -> dict[str, Any]:
    """Columns as Arrow arrays under their names.

    Raises:
        TypeError: neither a table nor columns under their names.
        ValueError: a name stands twice, or a column does not hold one value of one kind a row.
    """
    if isinstance(columns, pa.Table):
        names = columns.column_names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InvalidValue(f"metadata has two columns {twice[0]!r}; rename one.")
        return dict(zip(names, columns.columns, strict=True))
    if columns is None:
        return {}
    if not isinstance(columns, Mapping) or not all(isinstance(name, str) for name in columns):
        raise InvalidType(
            f"metadata is {shown(columns)}; give a table of Arrow, or names with a list of values each."
        )
    return {name: _as_column(name, values) for name, values in columns.items()}


def _as_column(name: str, values: Any) -> Any:
    kinds = list | tuple | range | np.ndarray | pa.Array | pa.ChunkedArray
    if not isinstance(values, kinds) and not hasattr(values, "__array__"):
        raise InvalidType(
            f"metadata: column {name!r} is {shown(values)}; give a list of values, one for each vector."
        )
    try:
        return pa.array(values.cpu().numpy() if hasattr(values, "cpu") else values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InvalidValue(
            f"metadata: column {name!r} cannot be kept ({' '.join(str(error).split())[:150]}); give one value a "
            "row, all of one kind: numbers, texts, dates, or lists of these."
        ) from error
