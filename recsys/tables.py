"""Tables from files, folders of files and memory: the columns that are asked for, each row with its place."""

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from contrastive.errors import FileMissing, InvalidType, InvalidValue
from recsys.columns import Role, choose
from recsys.content import no_text, read_content
from recsys.times import Where

_TABLES = {".parquet": "parquet", ".inter": "inter", ".item": "inter", ".csv": "csv", ".tsv": "csv"}
_SAMPLE = 1 << 16  # bytes by which columns are judged that are not read
_SAMPLE_ROWS = 1000  # of a table that is no text
# RecBole's types, written behind the names.
_RECBOLE = {
    "token": pa.string(),
    "float": pa.float64(),
    "token_seq": pa.list_(pa.string()),
    "float_seq": pa.list_(pa.float64()),
}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Table:
    """Columns of a table.

    Attributes:
        columns: Arrow array of each role.
        names: what these columns are called in the source.
        where: tells the place of a row.
        rest: if asked for, all columns but that of the items, typed, under their own names.
    """

    columns: Mapping[str, Any]
    names: Mapping[str, str]
    where: Where
    rest: Mapping[str, Any] = field(default_factory=dict)


def plain_name(path: Path) -> str:
    """Name of a file without ``.gz``."""
    return path.name.removesuffix(".gz")


def table_kind(path: Path, call: str) -> str | None:
    """``"csv"``, ``"inter"`` or ``"parquet"`` by the name, of a folder by its files' names; None if it is another."""
    found = {table_kind(part, call) for part in _parts(path, call)} if path.is_dir() else set()
    if len(found) > 1:
        raise InvalidValue(f"{call}: the folder {path} holds files of several kinds; give one kind.")
    if found and (kind := found.pop()) is not None:
        return kind
    return _TABLES.get(Path(plain_name(path)).suffix)


def _parts(folder: Path, call: str) -> list[Path]:
    """Files of a folder as Spark and others write it; what begins with ``_`` or ``.`` is a note of theirs."""
    entries = sorted(entry for entry in folder.iterdir() if entry.name[0] not in "_.")
    below = next((entry for entry in entries if entry.is_dir()), None)
    if below is not None:
        raise FileMissing(
            f"{call}: {folder.resolve()} is a folder with further folders, as {below.name}; give a file, or a folder "
            "whose own files are parts of one table."
        )
    return entries


def file_table(path: Path, kind: str, roles: Mapping[str, Role], call: str, rest: bool = False) -> Table:
    """Columns of a file, or of the files of a folder in the order of their names.

    Args:
        path: file or folder.
        kind: ``"csv"``, ``"inter"`` or ``"parquet"``.
        roles: the columns that are looked for.
        call: for errors.
        rest: whether to read all other columns too.
    """
    if not path.is_dir():
        return _read(path, kind, roles, call, rest)
    parts = [_read(part, kind, roles, call, rest) for part in _parts(path, call)]
    if not parts:
        raise FileMissing(f"{call}: {path.resolve()} is a folder without files; give a file.")
    for part, table in zip(_parts(path, call), parts, strict=True):
        if table.names != parts[0].names:
            raise InvalidValue(
                f"{call}: {part} has other columns than the first file of its folder ({dict(table.names)}, there "
                f"{dict(parts[0].names)}); give files of one table."
            )
    ends = [0]
    for table in parts:
        ends.append(ends[-1] + len(table.columns[next(iter(table.columns))]))

    def where(row: int) -> str:
        at = next(at for at in range(len(parts)) if row < ends[at + 1])
        return parts[at].where(row - ends[at])

    try:
        columns = _joined([table.columns for table in parts])
        return Table(columns, parts[0].names, where, _joined([table.rest for table in parts]))
    except pa.ArrowException as error:
        raise InvalidValue(f"{call}: the files of {path} do not fit together ({error}).") from error


def _joined(parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    tables = [pa.table(dict(part)) for part in parts]
    whole = pa.concat_tables(tables, promote_options="permissive")
    return dict(zip(whole.column_names, whole.columns, strict=True))


def _read(path: Path, kind: str, roles: Mapping[str, Role], call: str, rest: bool) -> Table:
    return (_parquet if kind == "parquet" else _text)(path, kind, roles, call, rest)


def frame_table(frame: Any, roles: Mapping[str, Role], call: str, rest: bool = False) -> Table:
    """Columns of a table in memory: of Arrow, pandas or polars, or a mapping."""
    has = getattr(frame, "column_names", None)
    if has is None:
        has = list(frame) if isinstance(frame, Mapping) else getattr(frame, "columns", None)
    if has is None:
        raise InvalidType(
            f"{call}: {type(frame).__name__} is no table; give a data frame of pandas or polars, or an Arrow table."
        )
    has = list(has)
    chosen = choose(has, roles, "the table", call, lambda: _frame_sample(frame, has, call))
    columns = {role: arrow_column(frame[name], name, call) for role, name in chosen.items()}
    sizes = {name: len(columns[role]) for role, name in chosen.items()}
    if len(set(sizes.values())) > 1:
        raise InvalidValue(f"{call}: the columns have different lengths: {sizes}.")
    further = [name for name in has if rest and name != chosen.get("item")]
    return Table(
        columns,
        chosen,
        lambda row: f"row {row} (the first is 0)",
        {str(name): arrow_column(frame[name], name, call) for name in further if has.count(name) == 1},
    )


def _frame_sample(frame: Any, names: list[Any], call: str) -> dict[Any, Any]:
    """The first rows of the columns, of those that Arrow can hold."""
    found = {}
    for name in names:
        if names.count(name) > 1:
            continue
        column = frame[name]
        try:
            first = column.head(_SAMPLE_ROWS) if hasattr(column, "head") else column[:_SAMPLE_ROWS]
            found[name] = arrow_column(first, name, call)
        except (InvalidValue, TypeError):
            continue  # of mixed types, or no sequence
    return found


def arrow_column(values: Any, name: Any, call: str) -> Any:
    """Values as an Arrow array.

    Raises:
        ValueError: they are of several types, or of one of no use here.
    """
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if hasattr(values, "to_arrow"):
        return values.to_arrow()
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        raise InvalidValue(f"{call}: {name} mixes types or has one of no use here ({error}).") from error


def _parquet(path: Path, kind: str, roles: Mapping[str, Role], call: str, rest: bool) -> Table:
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileMissing(f"{call}: {path.resolve()} does not exist or is a folder; give a file.")
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        chosen = choose(names, roles, str(path), call, lambda: _parquet_sample(file))
        wanted = names if rest else list(chosen.values())
        table = file.read(columns=wanted)
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidValue(f"{call}: {path} cannot be read as Parquet: {error}") from error
    further = {name: table.column(name) for name in table.column_names if rest and name != chosen.get("item")}
    columns = {role: table.column(name) for role, name in chosen.items()}
    return Table(columns, chosen, lambda row: f"row {row} of {path}", further)


def _parquet_sample(file: Any) -> dict[str, Any]:
    """The first rows of the columns, but for pictures and alike."""
    names = [
        field.name
        for field in file.schema_arrow
        if not (pa.types.is_binary(field.type) or pa.types.is_nested(field.type))
    ]
    first = next(file.iter_batches(_SAMPLE_ROWS, columns=names), None)
    return {} if first is None else dict(zip(first.schema.names, first.columns, strict=True))


def _text(path: Path, kind: str, roles: Mapping[str, Role], call: str, rest: bool) -> Table:
    """A text file with a heading: commas, semicolons or tabs between cells; of RecBole if ``kind`` is ``"inter"``."""
    import pyarrow.csv as arrow_csv

    content = read_content(path, call)
    recbole = kind == "inter"
    heading = next((line for line in content.split(b"\n", 32) if line.strip()), b"").decode(
        "utf-8", "replace"
    )
    heading = heading.rstrip("\r")
    delimiter = "\t" if recbole or plain_name(path).endswith(".tsv") or "\t" in heading else ","
    if delimiter == "," and "," not in heading and ";" in heading:
        delimiter = ";"
    given = (
        heading.split("\t")
        if recbole
        else next(csv.reader(io.StringIO(heading), delimiter=delimiter, skipinitialspace=True), [])
    )
    # RecBole puts a type behind each name; the caller says user_id for user_id:token.
    bare = [name.split(":")[0] for name in given] if recbole else [name.strip() for name in given]
    if rest and (twice := next((name for name in bare if bare.count(name) > 1), None)) is not None:
        raise InvalidValue(f"{call}: {path} has two columns {twice!r}; rename one.")
    if not content.endswith(b"\n"):
        content += b"\n"  # or Arrow would not pass over a heading without rows
    places = _places(content, path, delimiter, recbole)
    parse = arrow_csv.ParseOptions(
        delimiter=delimiter, quote_char=False if recbole else '"', newlines_in_values=not recbole
    )
    chosen = choose(bare, roles, str(path), call, lambda: _text_sample(content, bare, parse))
    wanted = [name for name in bare if rest or name in chosen.values()]
    texts = set(wanted if rest else chosen.values()) - {chosen.get("time")}
    bad_rows: list[Any] = []

    def refuse(row: Any) -> str:
        bad_rows.append(row)
        return "error"

    parse.invalid_row_handler = refuse
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(content),
            arrow_csv.ReadOptions(use_threads=False, **_named(content, bare)),
            parse,
            arrow_csv.ConvertOptions(
                include_columns=list(dict.fromkeys(wanted)),
                column_types=dict.fromkeys(texts, pa.large_string()),
                strings_can_be_null=False,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        if bad_rows:
            row = bad_rows[0]
            raise InvalidValue(
                f"{call}: {places(row.number - 2)} has {row.actual_columns} columns, the heading "
                f"{row.expected_columns}: {row.text[:80]!r}."
            ) from error
        if "utf8" in str(error).lower():
            raise no_text(path, content, call) from error
        raise InvalidValue(f"{call}: {path} cannot be read as a table with a heading: {error}") from error
    columns = {
        role: table.column(name) if role == "time" or recbole else _trimmed(table.column(name))
        for role, name in chosen.items()
    }
    hints = dict(zip(bare, (name.partition(":")[2] for name in given), strict=True)) if recbole else {}
    further = {
        name: typed(table.column(name), hints.get(name))
        for name in table.column_names
        if rest and name != chosen.get("item") and name
    }
    return Table(columns, chosen, places, further)


def _named(content: bytes, names: list[str]) -> dict[str, Any]:
    """Options by which Arrow calls the columns as we do, and passes over the heading."""
    blank = 0
    for line in content.split(b"\n", 32):
        if line.strip():
            break
        blank += 1
    return {"column_names": names, "skip_rows": blank + 1} if names else {}


def _places(content: bytes, path: Path, delimiter: str, recbole: bool) -> Where:
    """Tell the line of a row, read anew from the text: an error has the time."""

    def where(row: int) -> str:
        text = io.StringIO(content.decode("utf-8", "replace"), newline="")
        quoting: Any = csv.QUOTE_NONE if recbole else csv.QUOTE_MINIMAL
        begin, at = 1, -1  # the heading is row -1
        reader = csv.reader(text, delimiter=delimiter, quoting=quoting)
        for cells in reader:
            if cells and at == row:
                break
            at += bool(cells)
            begin = reader.line_num + 1
        return f"line {begin} of {path}"

    return where


def _text_sample(content: bytes, names: list[str], parse: Any) -> dict[str, Any]:
    """The first rows of the columns of a text; nothing if these cannot be read."""
    import pyarrow.csv as arrow_csv

    sample = content[:_SAMPLE]
    sample = sample if len(sample) == len(content) else sample[: sample.rfind(b"\n") + 1]
    try:
        read = arrow_csv.ReadOptions(use_threads=False, **_named(content, names))
        table = arrow_csv.read_csv(pa.BufferReader(sample), read, parse)
    except pa.ArrowInvalid:
        return {}
    return dict(zip(table.column_names, table.columns, strict=True))


def _trimmed(column: Any) -> Any:
    """Texts without blanks around them, which people put behind commas, nor the quotes that then are left."""
    trimmed = pc.utf8_trim_whitespace(column)
    if not pc.any(pc.and_(pc.starts_with(column, " "), pc.starts_with(trimmed, '"'))).as_py():
        return trimmed
    return pc.replace_substring_regex(trimmed, '^"(.*)"$', r"\1")


def typed(column: Any, recbole: str | None = None) -> Any:
    """Texts as what they are: whole numbers, numbers, truth values, or texts; empty cells are missing.

    Numbers that would lose zeros (``007``) stay texts, and so do dates, which are in order as texts too.

    Args:
        column: of texts.
        recbole: type that RecBole's heading tells.
    """
    texts = _trimmed(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, texts.type), texts)
    wanted = _RECBOLE.get(recbole or "")
    if wanted is not None and pa.types.is_list(wanted):
        words = [None if text is None else text.split() for text in texts.to_pylist()]
        texts, wanted = pa.array(words, pa.list_(pa.string())), wanted
    if wanted is not None:
        try:
            return texts.cast(wanted)
        except pa.ArrowInvalid:
            return texts
    known = texts.drop_null().unique().to_pylist()
    if not known:
        return texts.cast(pa.string())
    if {text.lower() for text in known} <= {"true", "false"}:
        return pc.equal(pc.utf8_lower(texts), "true")
    if all(_NUMBER.fullmatch(text) and not re.match(r"[+-]?0\d", text) for text in known):
        for kind in (pa.int64(), pa.float64()):
            try:
                return texts.cast(kind)
            except pa.ArrowInvalid:
                continue
    return texts.cast(pa.string())
