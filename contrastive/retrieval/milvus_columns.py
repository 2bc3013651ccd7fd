"""Columns in Milvus: which it can hold, how their types are kept beside a collection, and its language of filters."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contrastive.errors import InvalidValue
from contrastive.retrieval.filters import Condition, check_filter, conditions, is_text, kind_of_cells
from contrastive.retrieval.metadata import Filter

_OWN = ("id", "vector", "$meta")  # fields of the collection itself
# Words of Milvus's language of filters (its Plan.g4), none of which can name a column in a condition.
# fmt: off
_WORDS = frozenset((
    "and", "or", "not", "in", "like", "is", "null", "isnull", "isnotnull", "exists", "true", "false",
    "interval", "iso", "text_match", "phrase_match", "random_sample", "minimum_should_match", "array_contains",
    "array_contains_all", "array_contains_any", "array_length", "json_contains", "json_contains_all",
    "json_contains_any", "st_equals", "st_touches", "st_overlaps", "st_crosses", "st_contains", "st_intersects",
    "st_within", "st_dwithin", "st_isvalid",
))
# fmt: on
_LISTS = "list of "
_LARGEST_INT, _LARGEST_FLOAT = 2**63 - 1, sys.float_info.max


def _is_bytes(kind: pa.DataType) -> bool:
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(check(kind) for check in checks)


def exported(schema: pa.Schema, names: list[str] | None, call: str) -> dict[str, str]:
    """The columns that go along and their types in words, as they are kept beside the collection.

    Args:
        schema: all columns.
        names: those that are wanted; None for all but columns of bytes.
        call: for errors.

    Raises:
        ValueError: there is no such column; or it has a name or a type that Milvus cannot hold and filter by.
    """
    if unknown := [name for name in names or () if name not in schema.names]:
        raise InvalidValue(f"{call}: there is no column {unknown[0]!r}; there are: {schema.names or 'none'}.")
    kinds = {}
    for field in schema:
        kind, lists = kind_of_cells(field.type)
        if _is_bytes(kind) if names is None else field.name not in names:
            continue
        if field.name in _OWN or field.name.lower() in _WORDS or not field.name.isidentifier():
            reason = "is no name of letters, digits and underscores"
            if field.name in _OWN:
                reason = "is a field of every collection itself"
            elif field.name.lower() in _WORDS:
                reason = "is a word of Milvus's filters"
            raise InvalidValue(
                f"{call}: the column {field.name!r} cannot go along, as {field.name!r} {reason}; rename it, or leave "
                "it out by columns=[...]."
            )
        held = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
        if not (held or is_text(kind) or pa.types.is_null(kind)):
            raise InvalidValue(
                f"{call}: the column {field.name!r} of type {field.type} cannot go along, Milvus holds numbers, texts, "
                "truth values and lists of these; make it texts or numbers, or leave it out by columns=[...]."
            )
        kinds[field.name] = _LISTS * lists + str(kind)
    return kinds


def read_kinds(kinds: Mapping[str, str]) -> pa.Schema:
    """The columns of a collection, from what :func:`exported` said of them.

    Raises:
        ValueError: they are not from there.
    """
    fields = []
    for name, words in kinds.items():
        kind = pa.type_for_alias(words.removeprefix(_LISTS))
        fields.append((name, pa.list_(kind) if words.startswith(_LISTS) else kind))
    return pa.schema(fields)


def check_cells(table: pa.Table, call: str) -> None:
    """Refuse values that would be changed or lost on the way.

    Raises:
        ValueError: an infinite number, or a whole one of 2^63 or more.
    """
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind, lists = kind_of_cells(column.type)
        cells = (pc.list_flatten(column) if lists else column).cast(kind)
        bad, what = None, ""
        if pa.types.is_floating(kind):
            bad, what = pc.is_inf(cells.cast(pa.float64())), "infinite values, which Milvus drops"
        elif pa.types.is_uint64(kind):
            bad, what = (
                pc.greater(cells, pa.scalar(_LARGEST_INT, kind)),
                "numbers of 2^63 or more, which Milvus cannot compare",
            )
        if bad is not None and (count := pc.sum(bad).as_py()):
            raise InvalidValue(
                f"{call}: the column {name!r} holds {count} {what}; replace them, or leave the column out."
            )


def as_cells(table: pa.Table) -> list[dict[str, Any]]:
    """Rows for Milvus, whose JSON has no NaN: it becomes an empty cell, as which it filters."""
    rows: list[dict[str, Any]] = table.to_pylist()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_floating(kind_of_cells(column.type)[0]):
            for row in rows:
                cell = row[name]
                row[name] = [_number(entry) for entry in cell] if isinstance(cell, list) else _number(cell)
    return rows


def _number(cell: Any) -> float | None:
    return None if cell is None or cell != cell else float(cell)


def expression(filter: Filter, schema: pa.Schema | None = None, call: str = "search") -> str | None:
    """A filter of :meth:`Index.search` in the language of Milvus; None where no row can meet it.

    Args:
        filter: column -> a value, a list of values, or ``slice(low, high)``.
        schema: names and types of the columns; None takes the types from the values, for collections that say nothing
            of their columns.
        call: for errors.

    Raises:
        TypeError: no dictionary.
        ValueError: a column or a value does not fit the columns, a column's name is no identifier, or the range is one
            of the entries of lists.
    """
    check_filter(filter, call)
    if not filter:
        return ""
    if schema is None:
        filter = {name: wanted for name, wanted in filter.items() if wanted != slice(None)}
        schema = _guessed(filter, call)
    words = []
    for condition in conditions(schema, filter, call):
        if not condition.name.isidentifier():
            raise InvalidValue(
                f"{call}: a column {condition.name!r} cannot be named in a filter of Milvus; use letters and digits."
            )
        if (part := _words(condition, call)) is None:
            return None
        words += [part] if part else []
    return " and ".join(words)


def _words(condition: Condition, call: str) -> str | None:
    name, kind, values = condition.name, condition.kind, condition.values
    low, high = condition.low, condition.high
    if pa.types.is_null(kind) or low == math.inf or high == -math.inf:
        return None
    if values is None and condition.lists:
        raise InvalidValue(
            f"{call}: Milvus compares no range with the entries of lists, as {name!r} holds; give the values."
        )
    if values is None and pa.types.is_boolean(kind):  # which Milvus has no order of
        values = tuple(v for v in (False, True) if (low is None or v >= low) and (high is None or v <= high))
    if values is not None:
        literals = [_literal(value) for value in values if value not in (math.inf, -math.inf)]
        if not literals:
            return None
        if condition.lists:
            return f"json_contains_any({name}, [{', '.join(literals)}])"
        if len(literals) == 1:
            return f"{name} == {literals[0]}"
        either = f"{name} in [{', '.join(literals)}]"
        # == takes -0.0 for 0.0, in does not.
        return f"({either} or {name} == 0.0)" if pa.types.is_floating(kind) and 0.0 in values else either
    if low is None and high is None:  # any that is not empty
        low = "" if is_text(kind) else -_LARGEST_FLOAT
    ends = [f"{name} >= {_literal(low)}"] if low is not None else []
    ends += [f"{name} <= {_literal(high)}"] if high is not None else []
    return " and ".join(ends)


def _guessed(filter: Mapping[str, Any], call: str) -> pa.Schema:
    """Columns of the types of what they are compared with."""
    fields = []
    for name, wanted in filter.items():
        several = isinstance(wanted, list | tuple | set | frozenset | np.ndarray)
        values = [wanted.start, wanted.stop] if isinstance(wanted, slice) else wanted if several else [wanted]
        try:
            fields.append((str(name), pa.array(list(values)).type))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise InvalidValue(f"{call}: {name!r} cannot be compared with {wanted!r} ({error}).") from error
    return pa.schema(fields)


def _literal(value: Any) -> str:
    if isinstance(value, str):
        # As Milvus reads it: JSON without the escapes for single characters, which it does not know.
        for character, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
            value = value.replace(character, escape)
        return f'"{value}"'
    if isinstance(value, float):
        value = min(max(value, -_LARGEST_FLOAT), _LARGEST_FLOAT)  # there are no infinite cells
    return json.dumps(value)
