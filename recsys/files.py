"""Interactions and item descriptions from files and tables: columns with ids counted out, every error with its line.

Text is split by hand or by Arrow's CSV reader; ids are numbered by Arrow's hash tables. There is no loop over
interactions in Python except where a text line is cut into words.
"""

import csv
import gzip
import io
import os
import secrets
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from contrastive.errors import FileMissing, InvalidType, InvalidValue

Array: TypeAlias = NDArray[Any]
ItemSource: TypeAlias = str | Path | Mapping[Any, Any] | Any  # or a table: pandas, polars, Arrow
Where: TypeAlias = Callable[[int], str]  # row from 0 -> "line 7 of x.csv"

FORMATS = {
    "seq": (".seq.tsv",),
    "words": (),
    "pairs": (),
    "inter": (".inter",),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
}
# What a table's column may be called when the caller does not say.
_USER, _ITEM, _TIME = ("user_id", "user"), ("item_id", "item"), ("timestamp", "time")


@dataclass(frozen=True)
class Log:
    """Interactions in the order of their source.

    Args:
        users: ``(N,)`` int64, places in ``user_ids``.
        user_ids: int64 or objects of type str, ascending.
        items: ``(N,)`` int64, places in ``item_ids``.
        item_ids: int64 or objects of type str, ascending.
        times: ``(N,)`` int64 or float64, or None.
    """

    users: Array
    user_ids: Array
    items: Array
    item_ids: Array
    times: Array | None = None


def read_log(path: Path, format: str, user: str | None, item: str | None, time: str | None) -> Log:
    """Read interactions; see :meth:`recsys.SequenceData.read`."""
    call = f"SequenceData.read({str(path)!r})"
    found = _format(path, format, call)
    if found in ("seq", "words", "pairs"):
        if user or item or time:
            raise InvalidValue(f"{call}: user=, item= and time= name columns, and format {found!r} has none.")
        lines = read_lines(path, call)
        if format == "auto" and found == "words" and all(len(line.split()) in (0, 2) for line in lines):
            found = "pairs"
        users, items, numbers = {"seq": _seq, "words": _words, "pairs": _pairs}[found](lines, path, call)
        where = _at_line(path, numbers)
        columns = {"user": pa.array(users, pa.large_string()), "item": pa.array(items, pa.large_string())}
    else:
        names = {"user": (user, _USER), "item": (item, _ITEM), "time": (time, _TIME)}
        columns, where = _file_columns(path, found, names, ("user", "item"), call)
    return _log(columns, where, call, read_numbers=found != "parquet")


def frame_log(frame: Any, user: str, item: str, time: str | None) -> Log:
    """Interactions of a table in memory; see :meth:`recsys.SequenceData.from_dataframe`."""
    call = "SequenceData.from_dataframe"
    names = {"user": (user, ()), "item": (item, ())} | ({"time": (time, ())} if time else {})
    columns = _frame_columns(frame, names, ("user", "item"), call)
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        raise InvalidValue(f"{call}: the columns have different lengths: {sizes}.")
    return _log(columns, lambda row: f"row {row} (the first is 0)", call, read_numbers=False)


def item_texts(source: ItemSource, integers: bool) -> dict[Any, str]:
    """Texts of items by id; see :meth:`recsys.SequenceData.join`.

    Args:
        source: mapping, file or table.
        integers: whether the data's item ids are integers, so that whole numbers in a text file are.
    """
    call = "SequenceData.join(items=...)"
    if isinstance(source, Mapping):
        for key, text in source.items():
            if text is not None and not isinstance(text, str):
                raise InvalidValue(f"{call}: item {key!r} has {text!r} for a text; give strings.")
        return {key: text for key, text in source.items() if text}
    if isinstance(source, str | Path) and _plain_name(Path(source)).endswith(".items.tsv"):
        path = Path(source)
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
        numbers, ids, titles, years, genres = zip(*rows, strict=True) if rows else [()] * 5
        texts = [item_text(*cells) for cells in zip(titles, years, genres, strict=True)]
        where = _at_line(path, numbers)
    else:
        names = {
            "item": (None, _ITEM),
            "text": (None, ("text",)),
            "title": (None, ("title", "movie_title", "name")),
            "year": (None, ("year", "release_year")),
            "genres": (None, ("genres", "genre", "class", "categories")),
        }
        columns, where = _table_columns(source, names, ("item",), call)
        if "text" not in columns and "title" not in columns:
            raise InvalidValue(
                f"{call}: the table has neither a column 'text' nor a column 'title'; add one."
            )
        cells_of = {name: [_cell(value) for value in column.to_pylist()] for name, column in columns.items()}
        ids = columns["item"].to_pylist()
        blank = [""] * len(ids)
        texts = cells_of.get("text") or [
            item_text(*cells)
            for cells in zip(
                cells_of["title"], cells_of.get("year", blank), cells_of.get("genres", blank), strict=True
            )
        ]
    found: dict[Any, str] = {}
    for row, (key, text) in enumerate(zip(_read_ids(ids, integers), texts, strict=True)):
        if key is None or key == "":
            raise InvalidValue(f"{call}: {where(row)} has no item id.")
        if key in found:
            raise InvalidValue(f"{call}: {where(row)} tells of item {key!r} again; give one row for each.")
        found[key] = text
    return {key: text for key, text in found.items() if text}


def item_text(title: str, year: str = "", genres: str = "") -> str:
    """A sentence for a text encoder: ``Title (year). Genres: a b c``, without the parts that are empty."""
    title, year, genres = title.strip(), year.strip(), genres.strip()
    head = f"{title} ({year})" if title and year else title or year
    return ". ".join(part for part in (head, f"Genres: {genres}" if genres else "") if part)


def attribute_pairs(source: ItemSource, integers: bool) -> tuple[list[Any], Array, Array]:
    """Pairs of an item and an attribute; see :meth:`recsys.SequenceData.join`.

    Args:
        source: mapping, file or table.
        integers: whether the data's item ids are integers, so that whole numbers in a text file are.

    Returns:
        The item id of each pair, the attribute's place in the list of attributes, and that list, ascending.
    """
    call = "SequenceData.join(attributes=...)"
    ids: list[Any]
    in_text = True
    if isinstance(source, Mapping):
        ids = [key for key, values in source.items() for _ in values]
        column = _arrow(list(chain.from_iterable(source.values())), "attributes", call)
        in_text = False
        where = _at_item(ids)
    elif isinstance(source, str | Path) and _plain_name(Path(source)).endswith(".attr.tsv"):
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
        columns, where = _table_columns(
            source,
            {"item": (None, _ITEM), "attribute": (None, ("attribute",))},
            ("item", "attribute"),
            call,
        )
        ids, column = columns["item"].to_pylist(), columns["attribute"]
    codes, names = _number(column, "attribute", where, call, read_numbers=in_text)
    return _read_ids(ids, integers), codes, names


def read_lines(path: Path, call: str) -> list[str]:
    """Lines of a text file, plain or gzipped, without their ends.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or no UTF-8 text; names the line.
    """
    content = _content(path, call)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidValue(f"{call}: line {line} of {path} is no UTF-8 text; convert the file.") from error
    return [line.removesuffix("\r") for line in text.split("\n")]


def _content(path: Path, call: str) -> bytes:
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise FileMissing(f"{call}: {path.resolve()} {kind}; give a file.")
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise InvalidValue(
                f"{call}: {path} is a damaged gzip file ({error}); copy or make it again."
            ) from error
    return content.removeprefix(b"\xef\xbb\xbf")


def _plain_name(path: Path) -> str:
    return path.name.removesuffix(".gz")


def _format(path: Path, format: str, call: str) -> str:
    if format != "auto":
        if format not in FORMATS:
            raise InvalidValue(f"{call}: format {format!r} is none of auto, {', '.join(FORMATS)}.")
        return format
    name = _plain_name(path)
    for known, ends in FORMATS.items():
        if name.endswith(ends):
            return known
    if name.endswith(".txt"):
        return "words"
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


def _table_columns(
    source: Any,
    names: Mapping[str, tuple[str | None, tuple[str, ...]]],
    required: Iterable[str],
    call: str,
) -> tuple[dict[str, Any], Where]:
    """Columns of a file or of a table in memory."""
    if not isinstance(source, str | Path):
        return _frame_columns(source, names, required, call), lambda row: f"row {row} (the first is 0)"
    path = Path(source)
    name = _plain_name(path)
    if not name.endswith((".item", ".csv", ".tsv", ".parquet")):
        raise InvalidValue(
            f"{call}: {path} is no file of a known kind; give a table (.csv, .tsv, .item, .parquet), or a file in "
            "the form that is described under SequenceData.join."
        )
    kind = "parquet" if name.endswith(".parquet") else "inter" if name.endswith(".item") else "csv"
    return _file_columns(path, kind, names, required, call)


def _frame_columns(
    frame: Any,
    names: Mapping[str, tuple[str | None, tuple[str, ...]]],
    required: Iterable[str],
    call: str,
) -> dict[str, Any]:
    has = getattr(frame, "column_names", None)
    if has is None:
        has = list(frame) if isinstance(frame, Mapping) else getattr(frame, "columns", None)
    if has is None:
        raise InvalidType(
            f"{call}: {type(frame).__name__} is no table; give a data frame of pandas or polars, or an Arrow table."
        )
    chosen = _choose(list(has), names, required, "the table", call)
    return {role: _arrow(frame[name], name, call) for role, name in chosen.items()}


def _arrow(values: Any, name: str, call: str) -> Any:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if hasattr(values, "to_arrow"):
        return values.to_arrow()
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        raise InvalidValue(f"{call}: {name} mixes types or has one of no use here ({error}).") from error


def _file_columns(
    path: Path,
    format: str,
    names: Mapping[str, tuple[str | None, tuple[str, ...]]],
    required: Iterable[str],
    call: str,
) -> tuple[dict[str, Any], Where]:
    if format == "parquet":
        return _parquet_columns(path, names, required, call)
    import pyarrow.csv as arrow_csv

    content = _content(path, call)
    heading = next((line for line in content.split(b"\n") if line.strip()), b"").decode("utf-8", "replace")
    tabs = format == "inter" or _plain_name(path).endswith(".tsv") or "\t" in heading
    quote: Any = False if format == "inter" else '"'
    given = (
        heading.rstrip("\r").split("\t")
        if format == "inter"
        else next(csv.reader(io.StringIO(heading), delimiter="\t" if tabs else ","), [])
    )
    # RecBole puts a type behind each name; the caller says user_id for user_id:token.
    bare = [name.split(":")[0] for name in given] if format == "inter" else given
    chosen = _choose(bare, names, required, str(path), call)
    full = {role: given[bare.index(name)] for role, name in chosen.items()}

    def where(row: int) -> str:
        text = io.StringIO(content.decode("utf-8", "replace"), newline="")
        if format == "inter":
            reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(text, delimiter="\t" if tabs else ",")
        begin, at = 1, -1  # the heading is row -1
        for cells in reader:
            if cells and at == row:
                break
            at += bool(cells)
            begin = reader.line_num + 1
        return f"line {begin} of {path}"

    bad_rows: list[Any] = []

    def refuse(row: Any) -> str:
        bad_rows.append(row)
        return "error"

    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(content),
            arrow_csv.ReadOptions(use_threads=False),
            arrow_csv.ParseOptions(
                delimiter="\t" if tabs else ",",
                quote_char=quote,
                newlines_in_values=format != "inter",
                invalid_row_handler=refuse,
            ),
            arrow_csv.ConvertOptions(
                include_columns=list(full.values()),
                column_types={name: pa.large_string() for role, name in full.items() if role != "time"},
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        if bad_rows:
            row = bad_rows[0]
            raise InvalidValue(
                f"{call}: {where(row.number - 2)} has {row.actual_columns} columns, the heading "
                f"{row.expected_columns}: {row.text[:80]!r}."
            ) from error
        raise InvalidValue(f"{call}: {path} cannot be read as a table with a heading: {error}") from error
    return {role: table.column(name) for role, name in full.items()}, where


def _parquet_columns(
    path: Path,
    names: Mapping[str, tuple[str | None, tuple[str, ...]]],
    required: Iterable[str],
    call: str,
) -> tuple[dict[str, Any], Where]:
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileMissing(f"{call}: {path.resolve()} does not exist or is a folder; give a file.")
    try:
        chosen = _choose(pq.read_schema(path).names, names, required, str(path), call)
        table = pq.read_table(path, columns=list(chosen.values()))
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidValue(f"{call}: {path} cannot be read as Parquet: {error}") from error
    return {role: table.column(name) for role, name in chosen.items()}, lambda row: f"row {row} of {path}"


def _choose(
    has: list[str],
    names: Mapping[str, tuple[str | None, tuple[str, ...]]],
    required: Iterable[str],
    where: str,
    call: str,
) -> dict[str, str]:
    """The column for each role: the one that was named, or the first of the usual names that is there."""
    chosen = {}
    for role, (given, usual) in names.items():
        name = given or next((name for name in usual if name in has), None)
        if name is not None and has.count(name) == 1:
            chosen[role] = name
        elif given is not None or role in required or name is not None:
            wanted = repr(name) if name else " or ".join(map(repr, usual))
            raise InvalidValue(
                f"{call}: {where} has {has.count(name) if name else 'no'} columns {wanted} for the {role}; it has "
                f"{', '.join(map(str, has)) or 'none'}. Name the column with {role}=, or rename it."
            )
    return chosen


def _log(columns: Mapping[str, Any], where: Where, call: str, read_numbers: bool) -> Log:
    users, user_ids = _number(columns["user"], "user id", where, call, read_numbers)
    items, item_ids = _number(columns["item"], "item id", where, call, read_numbers)
    if not len(users):
        raise InvalidValue(f"{call}: there are no interactions.")
    times = _times(columns["time"], where, call) if "time" in columns else None
    return Log(users, user_ids, items, item_ids, times)


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


def _times(column: Any, where: Where, call: str) -> Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
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
        return np.asarray(column.cast(pa.int64()).to_numpy())
    if not pa.types.is_floating(kind):
        texts = [str(value) for value in column.to_pylist()]
        row = next((at for at, text in enumerate(texts) if not _is_number(text)), 0)
        raise InvalidValue(
            f"{call}: the time {texts[row]!r} in {where(row)} is no number; give numbers or datetimes ({kind} given)."
        )
    times = np.asarray(column.cast(pa.float64()).to_numpy())
    if not np.isfinite(times).all():
        row = int((~np.isfinite(times)).argmax())
        raise InvalidValue(f"{call}: the time in {where(row)} is {times[row]}; give a finite number.")
    return times


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
