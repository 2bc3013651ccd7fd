"""Interactions and item descriptions from files and tables: columns with ids counted out, every error with its line.

Text is split by hand or by Arrow's CSV reader; ids are numbered by Arrow's hash tables. There is no loop over
interactions in Python except where a text line is cut into words.
"""

import gzip
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from contrastive.errors import InvalidValue
from recsys.columns import AUTO, Role, described_role, item_role, time_role, user_role
from recsys.content import read_lines
from recsys.tables import Table, arrow_column, file_table, frame_table, plain_name, table_kind, typed
from recsys.times import Where, read_times

Array: TypeAlias = NDArray[Any]
ItemSource: TypeAlias = str | Path | Mapping[Any, Any] | Any  # or a table: pandas, polars, Arrow

FORMATS = {
    "seq": (".seq.tsv",),
    "words": (),
    "pairs": (),
    "inter": (".inter",),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
}


@dataclass(frozen=True)
class Log:
    """Interactions in the order of their source.

    Args:
        users: ``(N,)`` int64, places in ``user_ids``.
        user_ids: int64 or objects of type str, ascending.
        items: ``(N,)`` int64, places in ``item_ids``.
        item_ids: int64 or objects of type str, ascending.
        times: ``(N,)`` int64 or float64, or None.
        columns: what the columns are called that users, items and times were read from, where columns have names.
    """

    users: Array
    user_ids: Array
    items: Array
    item_ids: Array
    times: Array | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def read_log(path: Path, format: str, user: str | None, item: str | None, time: str | None) -> Log:
    """Read interactions; see :meth:`recsys.SequenceData.read`."""
    call = f"SequenceData.read({str(path)!r})"
    found = _format(path, format, call)
    if found in ("seq", "words", "pairs"):
        if user or item or time not in (None, AUTO):
            raise InvalidValue(f"{call}: user=, item= and time= name columns, and format {found!r} has none.")
        lines = read_lines(path, call)
        if format == "auto" and found == "words":
            _refuse_commas(lines, path, call)
            if all(len(line.split()) in (0, 2) for line in lines):
                found = "pairs"
        users, items, numbers = {"seq": _seq, "words": _words, "pairs": _pairs}[found](lines, path, call)
        columns = {"user": pa.array(users, pa.large_string()), "item": pa.array(items, pa.large_string())}
        return _log(Table(columns, {}, _at_line(path, numbers)), call, read_numbers=True)
    table = file_table(path, found, _roles(user, item, time), call)
    return _log(table, call, read_numbers=found != "parquet")


def frame_log(frame: Any, user: str | None, item: str | None, time: str | None) -> Log:
    """Interactions of a table in memory; see :meth:`recsys.SequenceData.from_dataframe`."""
    call = "SequenceData.from_dataframe"
    return _log(frame_table(frame, _roles(user, item, time), call), call, read_numbers=False)


def _roles(user: str | None, item: str | None, time: str | None) -> dict[str, Role]:
    roles = {"user": user_role(user), "item": item_role(item)}
    return roles if time is None else roles | {"time": time_role(time)}


def _refuse_commas(lines: list[str], path: Path, call: str) -> None:
    """Refuse ``1 10,11,12``, which would be one item called ``10,11,12``."""
    for number, line in enumerate(lines, 1):
        if "," in line:
            raise InvalidValue(
                f"{call}: line {number} of {path} is {line[:80]!r}; in a .txt file blanks stand between ids. Put "
                "them in the place of the commas; call a table with a heading .csv; or give format='words' or "
                "format='pairs' if the commas belong to the ids."
            )


@dataclass(frozen=True)
class ItemFacts:
    """What is known of items.

    Attributes:
        ids: of the items, one for each row of ``columns``.
        texts: by id, of the items that have one; None if the source has no texts.
        columns: further columns, a value for each of ``ids``; None if there are none.
    """

    ids: list[Any]
    texts: dict[Any, str] | None
    columns: Any = None


def item_facts(source: ItemSource, integers: bool, like: str | None = None) -> ItemFacts:
    """Texts and further columns of items; see :meth:`recsys.SequenceData.join`.

    Args:
        source: mapping, file or table.
        integers: whether the data's item ids are integers, so that whole numbers in a text file are.
        like: what the column of the items is called in the interactions.
    """
    call = "SequenceData.join(items=...)"
    if isinstance(source, Mapping) and not _has_columns(source):
        for key, text in source.items():
            if text is not None and not isinstance(text, str):
                raise InvalidValue(f"{call}: item {key!r} has {text!r} for a text; give strings.")
        texts = {key: text for key, text in source.items() if text}
        return ItemFacts(list(texts), texts)
    if isinstance(source, str | Path) and plain_name(Path(source)).endswith(".items.tsv"):
        table = _titles(Path(source), call)
    else:
        names = {
            "item": described_role(like),
            "text": Role(None, (("text",),)),
            "title": Role(None, (("title",), ("movie_title",), ("name",))),
            "year": Role(None, (("year",), ("release_year",))),
            "genres": Role(None, (("genres",), ("genre",), ("class",), ("categories",))),
        }
        table = _table(source, names, call, rest=True)
    ids = _read_ids(table.columns["item"].to_pylist(), integers)
    seen = set()
    for row, key in enumerate(ids):
        if key is None or key == "":
            raise InvalidValue(f"{call}: {table.where(row)} has no item id.")
        if key in seen:
            raise InvalidValue(
                f"{call}: {table.where(row)} tells of item {key!r} again; give one row for each."
            )
        seen.add(key)
    further = _further(table)
    named = {role for role in ("text", "title") if role in table.columns}
    if not named and not further:
        raise InvalidValue(
            f"{call}: the table has neither a column 'text' nor a column 'title', nor any other beside the items' ids; "
            "add one."
        )
    columns = pa.table(further) if further else None
    if not named:
        return ItemFacts(ids, None, columns)
    cells_of = {
        role: [_cell(value) for value in column.to_pylist()]
        for role, column in table.columns.items()
        if role != "item"
    }
    blank = [""] * len(ids)
    titles = (cells_of.get("title", blank), cells_of.get("year", blank), cells_of.get("genres", blank))
    told = cells_of.get("text") or [item_text(*cells) for cells in zip(*titles, strict=True)]
    return ItemFacts(ids, {key: text for key, text in zip(ids, told, strict=True) if text}, columns)


def _has_columns(source: Mapping[Any, Any]) -> bool:
    """Whether a mapping is a table, names with columns, and not ids with texts."""
    return bool(source) and all(
        isinstance(values, list | tuple | np.ndarray | pa.Array | pa.ChunkedArray)
        for values in source.values()
    )


def _titles(path: Path, call: str) -> Table:
    """``.items.tsv``: item, title, year and genres, without a heading."""
    rows = []
    for number, line in enumerate(read_lines(path, call), 1):
        cells = line.split("\t")
        if line and len(cells) != 4:
            raise InvalidValue(
                f"{call}: line {number} of {path} has {len(cells)} columns: {line[:80]!r}; it must be item, title, "
                "year and genres with tabs between them (empty where unknown)."
            )
        if line:
            rows.append((number, *cells))
    numbers, *cells_of = zip(*rows, strict=True) if rows else [()] * 5
    columns = {
        role: pa.array(cells, pa.large_string())
        for role, cells in zip(("item", "title", "year", "genres"), cells_of, strict=True)
    }
    kinds = {"title": "token", "year": None, "genres": "token_seq"}
    rest = {role: typed(columns[role], kind) for role, kind in kinds.items()}
    return Table(columns, {role: role for role in columns}, _at_line(path, numbers), rest)


def _further(table: Table) -> dict[str, Any]:
    """The columns to keep."""
    found = {}
    for name, column in table.rest.items():
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            continue  # pictures and alike: nothing to filter by
        found[name] = column.cast(pa.string()) if pa.types.is_null(column.type) else column
    return found


def item_text(title: str, year: str = "", genres: str = "") -> str:
    """A sentence for a text encoder: ``Title (year). Genres: a b c``, without the parts that are empty."""
    title, year, genres = title.strip(), year.strip(), genres.strip()
    head = f"{title} ({year})" if title and year else title or year
    return ". ".join(part for part in (head, f"Genres: {genres}" if genres else "") if part)


def attribute_pairs(
    source: ItemSource, integers: bool, like: str | None = None
) -> tuple[list[Any], Array, Array]:
    """Pairs of an item and an attribute; see :meth:`recsys.SequenceData.join`.

    Args:
        source: mapping, file or table.
        integers: whether the data's item ids are integers, so that whole numbers in a text file are.
        like: what the column of the items is called in the interactions.

    Returns:
        The item id of each pair, the attribute's place in the list of attributes, and that list, ascending.
    """
    call = "SequenceData.join(attributes=...)"
    ids: list[Any]
    in_text = True
    if isinstance(source, Mapping):
        ids = [key for key, values in source.items() for _ in values]
        column = arrow_column(list(chain.from_iterable(source.values())), "attributes", call)
        in_text = False
        where = _at_item(ids)
    elif isinstance(source, str | Path) and plain_name(Path(source)).endswith(".attr.tsv"):
        path = Path(source)
        ids, words, numbers = [], [], []
        seen: dict[str, int] = {}
        for number, line in enumerate(read_lines(path, call), 1):
            key, tab, rest = line.partition("\t")
            if line and (not key or not tab or "\t" in rest):
                raise InvalidValue(
                    f"{call}: line {number} of {path} is {line[:80]!r}; it must be an item, a tab, and attributes with "
                    "spaces between them."
                )
            if line and seen.setdefault(key, number) != number:
                raise InvalidValue(
                    f"{call}: item {key!r} stands on lines {seen[key]} and {number} of {path}; give one line for each."
                )
            values = rest.split()
            ids += [key] * len(values)
            words += values
            numbers += [number] * len(values)
        column = pa.array(words, pa.large_string())
        where = _at_line(path, numbers)
    else:
        roles = {
            "item": described_role(like),
            "attribute": Role(None, (("attribute",),), required=True, option=False),
        }
        table = _table(source, roles, call)
        ids, column, where = table.columns["item"].to_pylist(), table.columns["attribute"], table.where
    codes, names = _number(column, "attribute", where, call, read_numbers=in_text)
    return _read_ids(ids, integers), codes, names


def _format(path: Path, format: str, call: str) -> str:
    if format != "auto":
        if format not in FORMATS:
            raise InvalidValue(f"{call}: format {format!r} is none of auto, {', '.join(FORMATS)}.")
        return format
    name = plain_name(path)
    if name.endswith(FORMATS["seq"]):
        return "seq"
    if name.endswith(".txt"):
        return "words"
    if (kind := table_kind(path, call)) is not None:
        return kind
    endings = ", ".join(chain(*FORMATS.values(), [".txt"]))
    raise InvalidValue(
        f"{call}: the name does not tell the format; known are {endings}, each also with .gz. Give format=, one of "
        f"{', '.join(FORMATS)}."
    )


def _at_line(path: Path, numbers: Sequence[int]) -> Where:
    return lambda row: f"line {numbers[row]} of {path}"


def _at_item(ids: Sequence[Any]) -> Where:
    return lambda row: f"item {ids[row]!r}"


def _seq(lines: list[str], path: Path, call: str) -> tuple[list[str], list[str], list[int]]:
    rows = []
    for number, line in enumerate(lines, 1):
        user, _, rest = line.partition("\t")
        items = rest.split(" ")
        if line and (not user or "" in items or "\t" in rest):
            raise InvalidValue(
                f"{call}: line {number} of {path} is {line[:80]!r}; it must be a user, a tab, and items with one space "
                "between them."
            )
        if line:
            rows.append((number, user, items))
    return _one_line_a_user(rows, path, call)


def _words(lines: list[str], path: Path, call: str) -> tuple[list[str], list[str], list[int]]:
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if len(words) == 1:
            raise InvalidValue(
                f"{call}: line {number} of {path} is {line[:80]!r}; it must be a user and at least one item."
            )
        if words:
            rows.append((number, words[0], words[1:]))
    return _one_line_a_user(rows, path, call)


def _one_line_a_user(
    rows: list[tuple[int, str, list[str]]], path: Path, call: str
) -> tuple[list[str], list[str], list[int]]:
    seen: dict[str, int] = {}
    for number, user, _ in rows:
        if seen.setdefault(user, number) != number:
            raise InvalidValue(
                f"{call}: user {user!r} stands on lines {seen[user]} and {number} of {path}; give one line a user. "
                "If each line is one interaction, 'user item', give format='pairs'."
            )
    users = list(chain.from_iterable([user] * len(items) for _, user, items in rows))
    numbers = list(chain.from_iterable([number] * len(items) for number, _, items in rows))
    return users, list(chain.from_iterable(items for _, _, items in rows)), numbers


def _pairs(lines: list[str], path: Path, call: str) -> tuple[list[str], list[str], Sequence[int]]:
    rows = [line.split() for line in lines]
    for number, words in enumerate(rows, 1):
        if len(words) not in (0, 2):
            raise InvalidValue(
                f"{call}: line {number} of {path} is {lines[number - 1][:80]!r}; it must be a user and an item."
            )
    numbers: Sequence[int] = range(1, len(rows) + 1)
    if not all(rows):
        numbers = [number for number in numbers if rows[number - 1]]
        rows = [words for words in rows if words]
    return [user for user, _ in rows], [item for _, item in rows], numbers


def _table(source: Any, roles: Mapping[str, Role], call: str, rest: bool = False) -> Table:
    """Columns of a file or of a table in memory."""
    if not isinstance(source, str | Path):
        return frame_table(source, roles, call, rest)
    path = Path(source)
    kind = table_kind(path, call)
    if kind is None:
        raise InvalidValue(
            f"{call}: {path} is no file of a known kind; give a table (.csv, .tsv, .item, .parquet), or a file in "
            "the form that is described under SequenceData.join."
        )
    return file_table(path, kind, roles, call, rest)


def _log(table: Table, call: str, read_numbers: bool) -> Log:
    columns, where = table.columns, table.where
    users, user_ids = _number(columns["user"], "user id", where, call, read_numbers)
    items, item_ids = _number(columns["item"], "item id", where, call, read_numbers)
    if not len(users):
        raise InvalidValue(f"{call}: there are no interactions.")
    times = read_times(columns["time"], where, call) if "time" in columns else None
    return Log(users, user_ids, items, item_ids, times, dict(table.names))


def _number(column: Any, what: str, where: Where, call: str, read_numbers: bool) -> tuple[Array, Array]:
    """Number ids from 0 in ascending order.

    Args:
        column: Arrow array of integers or strings.
        what: what the ids are, for errors.
        where: tells the place of a row.
        call: for errors.
        read_numbers: turn strings into integers if all are whole numbers as one writes them.

    Returns:
        The number of each row's id ``(N,)`` int64, and the ids, int64 or objects of type str.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        row = int(pc.index(column.is_null(), True).as_py())
        raise InvalidValue(
            f"{call}: the {what} is missing in {where(row)} ({column.null_count} missing in all)."
        )
    if pa.types.is_null(column.type):
        column = column.cast(pa.int64())
    if (
        pa.types.is_string(column.type)
        or pa.types.is_large_string(column.type)
        or column.type == pa.string_view()
    ):
        column = column.cast(pa.large_string())
    elif not pa.types.is_integer(column.type):
        raise InvalidValue(f"{call}: the {what} has the type {column.type}; give integers or strings.")
    encoded = column.dictionary_encode()
    ids, places = encoded.dictionary, encoded.indices.to_numpy()
    if pa.types.is_integer(ids.type):
        values = ids.cast(pa.int64()).to_numpy()
    else:
        empty = pc.index(ids, "").as_py()
        if empty >= 0:
            raise InvalidValue(f"{call}: the {what} is empty in {where(int((places == empty).argmax()))}.")
        whole = _whole_numbers(ids) if read_numbers else None
        values = np.array(ids.to_pylist(), object) if whole is None else whole
    order = np.argsort(values)
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values))
    return rank[places], values[order]


def _whole_numbers(strings: Any) -> Array | None:
    """Strings as int64 if every one is what the number would be written as, so that nothing is lost; else None."""
    try:
        numbers = strings.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    found: Array = numbers.to_numpy()
    return found if numbers.cast(strings.type).equals(strings) else None


def _read_ids(ids: Sequence[Any], integers: bool) -> list[Any]:
    """Ids from a description of items, strings among them as integers if the data's are."""
    if not integers:
        return list(ids)
    return [
        int(i) if isinstance(i, str) and i.removeprefix("-").isdecimal() and str(int(i)) == i else i
        for i in ids
    ]


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step, gzipped (without a date) if its name ends in ``.gz``."""
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
