"""Conditions on columns: checked, and brought to the columns' types, in one place for everything that is searched."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contrastive.checks import shown
from contrastive.errors import InvalidType, InvalidValue

Check = Callable[[pa.DataType], bool]
_TEXTS: tuple[Check, ...] = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_NUMBER = (int, float, np.integer, np.floating, Decimal)


@dataclass(frozen=True)
class Condition:
    """What a cell must be, or any entry of a cell that holds a list.

    Attributes:
        name: of the column.
        kind: type of a cell, or of an entry.
        lists: whether cells hold lists.
        values: any of which will do, none of them empty; with none at all nothing meets the condition. None: a range.
        low, high: ends of a range, both included; None where it is open.

    Values and ends are Python's own where the column holds numbers, truth values or texts, and Arrow's else.
    """

    name: str
    kind: pa.DataType
    lists: bool
    values: tuple[Any, ...] | None = None
    low: Any = None
    high: Any = None

    def met(self, column: pa.ChunkedArray) -> Any:
        """Which cells or entries of a column of this type meet it; empty ones and NaN do not."""
        kind = self.kind
        if self.values == () or pa.types.is_null(kind):
            return pa.chunked_array([np.zeros(len(column), bool)])
        if pa.types.is_float16(kind) or pa.types.is_string_view(kind):  # which Arrow does not compare
            kind = pa.float32() if pa.types.is_float16(kind) else pa.string()
            column = column.cast(kind)
        if self.values is None:
            met = pc.invert(pc.is_null(column, nan_is_null=True))
            if self.low is not None:
                met = pc.and_kleene(met, pc.greater_equal(column, _scalar(self.low, kind)))
            if self.high is not None:
                met = pc.and_kleene(met, pc.less_equal(column, _scalar(self.high, kind)))
        elif len(self.values) > 1 and _is_plain(kind):
            # Looked up by their bits, the two zeros are different.
            zeros = [0.0, -0.0] if pa.types.is_floating(kind) and 0.0 in self.values else []
            met = pc.is_in(column, value_set=pa.array([*self.values, *zeros], kind))
        else:
            met = pc.equal(column, _scalar(self.values[0], kind))
            for value in self.values[1:]:
                met = pc.or_kleene(met, pc.equal(column, value))
        return pc.fill_null(met, False)


def check_filter(filter: Any, call: str) -> None:
    """Refuse what is no filter.

    Raises:
        TypeError: it is neither a dictionary nor None.
    """
    if filter is not None and not isinstance(filter, Mapping):
        raise InvalidType(
            f"{call}: filter is {shown(filter)}; give a dictionary, column -> what is looked for."
        )


def conditions(schema: pa.Schema, filter: Mapping[str, Any], call: str) -> list[Condition]:
    """The conditions of a filter on columns of these types.

    Args:
        schema: names and types of the columns.
        filter: column -> a value; a list of values, any of which will do; or ``slice(low, high)``, both included and
            either None. Empty cells meet no condition, nor does any cell one of nothing but None and NaN.
        call: for errors.

    Raises:
        TypeError: no dictionary.
        ValueError: there is no such column, a range has a step, or a value does not have the column's type.
    """
    check_filter(filter, call)
    found = []
    for name, wanted in filter.items():
        if name not in schema.names:
            raise InvalidValue(
                f"{call}: there is no column {name!r} to filter by; there are: {schema.names or 'none'}."
            )
        if isinstance(wanted, slice) and wanted.step is not None:
            raise InvalidValue(f"{call}: the range for {name!r} has a step; give slice(low, high).")
        kind, lists = kind_of_cells(schema.field(name).type)
        try:
            found.append(_condition(name, kind, lists, wanted))
        # Not only pyarrow's own: what is no value of any column is refused by several parts of it.
        except (pa.ArrowException, TypeError, ValueError, ArithmeticError) as error:
            raise InvalidValue(
                f"{call}: column {name!r} of type {kind} cannot be compared with {shown(wanted)} ({error})."
            ) from error
    return found


def kind_of_cells(kind: pa.DataType) -> tuple[pa.DataType, bool]:
    """What a condition is compared with: the type of cells, or of the entries of cells that hold lists; and which."""
    lists = False
    while True:
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        elif not lists and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            kind, lists = kind.value_type, True
        else:
            return kind, lists


def is_text(kind: pa.DataType) -> bool:
    """Whether cells hold texts."""
    return any(check(kind) for check in _TEXTS)


def _is_plain(kind: pa.DataType) -> bool:
    checks: tuple[Check, ...] = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, is_text)
    return any(check(kind) for check in checks)


def _condition(name: str, kind: pa.DataType, lists: bool, wanted: Any) -> Condition:
    if isinstance(wanted, slice):
        return _range(name, kind, lists, wanted.start, wanted.stop)
    several = isinstance(wanted, list | tuple | set | frozenset | np.ndarray)
    return Condition(name, kind, lists, tuple(_values(wanted if several else [wanted], kind)))


def _values(wanted: Iterable[Any], kind: pa.DataType) -> list[Any]:
    """The values that a cell of this type can hold: no empty ones, and 1990.9 is no whole number."""
    present = wanted.tolist() if isinstance(wanted, np.ndarray) else wanted
    present = [value for value in present if value is not None and value == value]
    if pa.types.is_integer(kind):
        low, high = _limits(kind)
        numbers = [v if type(v) is int else _number(v) for v in present]
        # An infinite one leaves NaN, which is true.
        return [int(v) for v in numbers if low <= v <= high and (type(v) is int or not v % 1)]
    if pa.types.is_floating(kind):
        numbers = [v if type(v) is float else float(_number(v)) for v in present]
        with np.errstate(over="ignore"):
            near = np.array(numbers, np.float64).astype(kind.to_pandas_dtype()).tolist()
        return [n for n, v in zip(near, numbers, strict=True) if math.isfinite(n) or n == v]
    cell = _cell_of(kind)
    return [cell(value) for value in present]


def _range(name: str, kind: pa.DataType, lists: bool, low: Any, high: Any) -> Condition:
    nothing = Condition(name, kind, lists, ())
    for end in (low, high):
        if end is not None and end != end:  # nothing is above or below NaN
            return nothing
    if pa.types.is_integer(kind):
        least, most = _limits(kind)
        low = least if low is None or _number(low) == -math.inf else low
        high = most if high is None or _number(high) == math.inf else high
        if _number(low) > most or _number(high) < least:
            return nothing
        low, high = max(math.ceil(low), least), min(math.floor(high), most)
        if low > high:
            return nothing
        return Condition(
            name, kind, lists, low=None if low == least else low, high=None if high == most else high
        )
    if pa.types.is_floating(kind):
        # A finite end beyond what the type holds must not become infinite, as infinite cells lie beyond it.
        low, high = (None if end is None else _clipped(_number(end), kind) for end in (low, high))
    else:
        cell = _cell_of(kind)
        low, high = (None if end is None else cell(end) for end in (low, high))
    return Condition(name, kind, lists, low=low, high=high)


def _number(value: Any) -> Any:
    if not isinstance(value, _NUMBER) or isinstance(value, bool | np.bool_):
        raise InvalidType("the column holds numbers")
    return float(value) if isinstance(value, np.floating) else value


def _limits(kind: pa.DataType) -> tuple[int, int]:
    limits = np.iinfo(kind.to_pandas_dtype())
    return int(limits.min), int(limits.max)


def _clipped(value: Any, kind: pa.DataType) -> float:
    """A finite end as a cell of this type holds it, or the largest that one can hold."""
    of = np.dtype(kind.to_pandas_dtype())
    number = float(value)  # a whole number beyond any float raises OverflowError
    with np.errstate(over="ignore"):
        near = float(of.type(number))
    if math.isinf(near) and not math.isinf(number):
        near = math.copysign(float(np.finfo(of).max), near)
    return near


def _cell_of(kind: pa.DataType) -> Callable[[Any], Any]:
    """What makes other values comparable: Python's own of truth values and texts, Arrow's of what else there is."""
    if pa.types.is_boolean(kind):
        return _truth
    if is_text(kind):
        return _text
    nothing = pa.array([], kind)

    def comparable(value: Any) -> Any:
        scalar = pa.scalar(value)
        pc.equal(nothing, scalar)
        pc.greater_equal(nothing, scalar)
        return scalar

    return comparable


def _truth(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise InvalidType("the column holds truth values")
    return bool(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidType("the column holds texts")
    value.encode()  # half of a surrogate pair is no text
    return str(value)


def _scalar(value: Any, kind: pa.DataType) -> Any:
    return pa.scalar(value, kind) if _is_plain(kind) else value
