"""Columns of times as numbers: numbers stay what they are, dates and datetimes become seconds since 1970.

Also whether a column that nobody named looks like one, so that it is not passed over.
"""

import re
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from contrastive.errors import InvalidValue

Array: TypeAlias = NDArray[Any]
Where: TypeAlias = Callable[[int], str]  # row from 0 -> "line 7 of x.csv"

_UNIX = (631_152_000, 4_102_444_800)  # seconds from 1970 to 1990 and to 2100
_UNITS = (1, 10**3, 10**6, 10**9)  # of a second
_MOST = 0.9  # of the values have to look like times: some mark what is missing in their own way
_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_YEAR = r"(19|20)\d\d"
_CLOCK = r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?\s*([ap]\.?m\.?)?\s*(z|utc|gmt|[+-]\d{2}:?\d{2})?"
_DATE = re.compile(
    rf"([a-z]{{3,9}}\.?,?\s+)?("  # a day of the week
    rf"{_YEAR}[-/.]\d{{1,2}}([-/.]\d{{1,2}})?|\d{{1,2}}[-/.]\d{{1,2}}[-/.]{_YEAR}|\d{{1,2}}/\d{{1,2}}/\d\d|"
    rf"\d{{1,2}}(st|nd|rd|th|\.)?[\s-]+{_MONTH},?[\s-]+({_YEAR}|\d\d)|{_MONTH}\s+\d{{1,2}}(st|nd|rd|th)?,?\s+{_YEAR}|"
    rf"{_YEAR}-w\d{{1,2}}(-\d)?|{_MONTH}\s+\d{{1,2}}\s+{_CLOCK}\s+{_YEAR})"
    rf"([t,\s]+{_CLOCK})?",
    re.IGNORECASE,
)


def read_times(column: Any, where: Where, call: str) -> Array:
    """Times ``(N,)``: int64 of integers, else float64.

    Args:
        column: Arrow array of numbers, dates, datetimes, or texts of one of them, as ISO 8601 writes dates.
        where: tells the place of a row.
        call: for errors.

    Raises:
        ValueError: one is missing, not finite, or no time; names the row.
    """
    column = _plain_array(column)
    if _is_text(column.type):
        column = _from_text(column, where, call)
    if column.null_count:
        row = int(pc.index(column.is_null(), True).as_py())
        raise InvalidValue(
            f"{call}: the time is missing in {where(row)} ({column.null_count} missing in all)."
        )
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        zone = kind.tz if pa.types.is_timestamp(kind) else None
        micro = column.cast(pa.timestamp("us", tz=zone), safe=False).cast(pa.int64()).to_numpy()
        return np.asarray(micro / 1e6)
    if pa.types.is_integer(kind):
        try:
            return np.asarray(column.cast(pa.int64()).to_numpy())
        except pa.ArrowInvalid as error:
            raise InvalidValue(
                f"{call}: a time is beyond 64 bits ({error}); give smaller numbers."
            ) from error
    if not (pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        texts = [str(value) for value in column.to_pylist()]
        row = next((at for at, text in enumerate(texts) if not _is_number(text)), 0)
        raise _refusal(texts[row], where(row), str(kind), call)
    times = np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False))
    if not np.isfinite(times).all():
        row = int((~np.isfinite(times)).argmax())
        raise InvalidValue(f"{call}: the time in {where(row)} is {times[row]}; give a finite number.")
    return times


def _from_text(column: Any, where: Where, call: str) -> Any:
    """Numbers or datetimes that are written out; empty cells are missing."""
    text = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.large_string()), text)
    for kind in (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", tz="UTC")):
        try:
            return text.cast(kind)
        except pa.ArrowInvalid:
            continue
    return _datetimes(text.to_pylist(), where, call)


def _datetimes(texts: list[str | None], where: Where, call: str) -> Any:
    """What Arrow does not read as one: forms of ISO 8601 beside each other, and zones."""
    found: list[datetime | None] = []
    numbers: list[int] = []
    for row, text in enumerate(texts):
        if text is not None and _is_number(text):  # 20200131 beside dates: which of both it is cannot be told
            numbers.append(row)
            text = None
        try:
            found.append(None if text is None else _iso(text))
        except ValueError:
            raise _refusal(str(text), where(row), "text", call) from None
    zoned = [moment.tzinfo is not None for moment in found if moment is not None]
    if numbers:
        row = numbers[0]
        raise InvalidValue(
            f"{call}: the time {texts[row]!r} in {where(row)} is a number, and others are dates; give one kind."
        )
    if any(zoned) and not all(zoned):
        row = next(at for at, moment in enumerate(found) if moment is not None and moment.tzinfo is None)
        raise InvalidValue(
            f"{call}: the time {texts[row]!r} in {where(row)} has no zone, and others have; give all or none one."
        )
    return pa.array(
        [
            None if moment is None else moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp()
            for moment in found
        ],
        pa.float64(),
    )


def _iso(text: str) -> datetime:
    return datetime.fromisoformat(f"{text[:-1]}+00:00" if text[-1] in "zZ" else text)


def _refusal(text: str, place: str, kind: str, call: str) -> InvalidValue:
    return InvalidValue(
        f"{call}: the time {text!r} in {place} is no number and no date as 2020-01-31 or 2020-01-31 12:30:00 ({kind} "
        "given); give numbers, or dates so written. time= names another column."
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def looks_like_times(column: Any) -> bool:
    """Whether values look like times: dates, or numbers as clocks of computers count them since 1970.

    These count seconds, or thousandths, millionths or billionths of one; times from 1990 to 2100 are known. Numbers may
    also be dates written without signs, as 20200131.

    Args:
        column: Arrow array, some rows of a column.
    """
    column = _plain_array(column).drop_null()
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return True
    if _is_text(column.type):
        texts = [text for text in map(str.strip, column.to_pylist()) if text]
        if not texts:
            return False
        if sum(map(_is_number, texts)) < _MOST * len(texts):
            return sum(_DATE.fullmatch(text) is not None for text in texts) >= _MOST * len(texts)
        column = pa.array([float(text) for text in texts if _is_number(text)])
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)) or not len(column):
        return False
    numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    numbers = numbers[np.isfinite(numbers)]
    units = (((numbers >= _UNIX[0] * unit) & (numbers <= _UNIX[1] * unit)).mean() for unit in _UNITS)
    return len(numbers) > 0 and (any(share >= _MOST for share in units) or _calendar(numbers))


def _calendar(numbers: Array) -> bool:
    """Whether numbers are dates, or dates with the time of day, written without signs."""
    for digits in (8, 12, 14):
        dates = numbers // 10 ** (digits - 8)
        year, month, day = dates // 10_000, dates // 100 % 100, dates % 100
        fits = (year >= 1990) & (year < 2100) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
        if fits.mean() >= _MOST:
            return True
    return False


def counts_rows(column: Any) -> bool:
    """Whether values tell no times for sure: truth values, or whole numbers that rise by one from row to row."""
    column = _plain_array(column)
    if pa.types.is_boolean(column.type):
        return True
    if not pa.types.is_integer(column.type) or column.null_count:
        return False
    return bool((np.diff(column.to_numpy()) == 1).all())


def _plain_array(column: Any) -> Any:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of no chunk, in some versions of Arrow
        column = pa.array([], column.type)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view())
