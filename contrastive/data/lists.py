"""Lists of image files: text, CSV or TSV, with or without a heading."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from contrastive.checks import shown
from contrastive.data.files import FileImages
from contrastive.data.images import Note, Split
from contrastive.data.labels import is_whole, text_classes
from contrastive.errors import FileMissing, InvalidValue

ENDINGS = (".csv", ".tsv", ".txt")
PATH_COLUMNS = (
    *(
        "path",
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "image",
        "img",
        "image_path",
        "img_path",
    ),
    *("image_file", "image_name", "picture", "photo"),
)
LABEL_COLUMNS = (
    *("label", "labels", "fine_label", "class", "classes", "class_name", "class_label", "class_id", "target"),
    *("targets", "category", "category_id"),
)


def column_of(name: str | None, usual: Sequence[str], names: Sequence[str]) -> int | None:
    """The place of a column among ``names``: the one that was asked for, else the first of the usual ones.

    Capitals, blanks and hyphens make no difference to the usual ones.
    """
    if name is not None:
        return names.index(name) if name in names else None
    plain = [known.casefold().replace(" ", "_").replace("-", "_") for known in names]
    return next((plain.index(one) for one in usual if one in plain), None)


def list_split(
    file: Path, labels: bool = True, image_column: str | None = None, label_column: str | None = None
) -> Split:
    """A list of images, ``path[,label]`` a line, in text, CSV or TSV (tabs instead of commas).

    Paths are relative to the list. A label names its class: different texts are different classes. A first line with
    one of :data:`PATH_COLUMNS` is a heading; then there may be more columns, and the label is that of
    :data:`LABEL_COLUMNS`. The list is UTF-8, or UTF-16 with a byte order mark; lines end in LF, CRLF or CR.

    Args:
        file: the list.
        labels: whether to read labels.
        image_column: name of the column of paths, if it is none of the usual ones.
        label_column: name of the column of labels, likewise.

    Raises:
        FileNotFoundError: if a listed image does not exist.
        ValueError: if the file is no such list, a line has not the form of the first, or one image has two labels.
    """
    rows = _rows(file)
    path, label = 0, 1 if rows and len(rows[0][1]) == 2 else None
    notes: list[Note] = []
    names = rows[0][1] if rows else []
    headed = bool(rows) and bool(
        image_column or label_column or column_of(None, PATH_COLUMNS, names) is not None
    )
    if headed:
        path, label = _columns(file, names, labels, image_column, label_column)
        rows = rows[1:]
        used = [names[path]] + ([] if label is None or not labels else [names[label]])
        notes.append(Note("columns", f"{', '.join(used)} of {file.name}{unused_columns(names, used)}"))
    elif len(names) > 2:
        raise InvalidValue(
            f"ImageData cannot use line 1 of {file}: {shown(','.join(names))}. Every line must be a path, or every "
            "line a path and a label; more columns need a heading (path,label,...)."
        )
    if not rows:
        raise InvalidValue(f"ImageData finds no image in the list {file}. It needs path[,label] a line.")
    if not labels:
        label = None
    needed = [path] if label is None else [path, label]
    width = len(names)
    for number, row in rows:
        if len(row) != width or not all(row[place] for place in needed):
            raise InvalidValue(
                f"ImageData cannot use line {number} of {file}: {shown(','.join(row))}. Every line must be a path, or "
                "every line a path and a label, as the first one is."
            )
        if not (file.parent / row[path]).is_file():
            raise FileMissing(
                f"ImageData does not find {file.parent / row[path][:200]}, which line {number} of {file} names. "
                "Paths are relative to the folder of the list."
                + (" If this line is a heading, name its column: image_column=..." if number == 1 else "")
            )
    values = None if label is None else [row[label] for _, row in rows]
    if values is not None:
        _refuse_negative(file, rows, values)
    repeated = _repeated(file, rows, path, label)
    if repeated:
        notes.append(Note("repeated", f"{repeated} lines of {file.name} name an image for a second time"))
    images = FileImages([file.parent / row[path] for _, row in rows], file.parent)
    if values is None:
        return Split(images, None, [], tuple(notes))
    return Split(images, *text_classes(values), tuple(notes))


def _refuse_negative(file: Path, rows: list[tuple[int, list[str]]], values: list[str]) -> None:
    """Numbers below 0 stand for a missing label; a name may begin with a hyphen."""
    negative = [place for place, value in enumerate(values) if value.startswith("-") and is_whole(value)]
    if negative and all(map(is_whole, values)):
        raise InvalidValue(
            f"ImageData: line {rows[negative[0]][0]} of {file} has the label {values[negative[0]]}, and "
            f"{len(negative)} of {len(values)} labels are not in the accepted range, from 0 up. Correct them; images "
            "without a label belong into a list without labels."
        )


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """Lines that are not empty, by their numbers, cut into cells."""
    text = _text(file)
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = (
        "\t" if file.suffix == ".tsv" or "\t" in first else ";" if ";" in first and "," not in first else ","
    )
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter, strict=True)
    rows = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise InvalidValue(
            f"ImageData cannot read line {reader.line_num} of {file} ({error}). A cell with a quote or a delimiter in "
            'it must stand in quotes, as "a, b".'
        ) from error
    return rows


def _text(file: Path) -> str:
    """The content of a text file of one of the encodings that can be told apart."""
    content = file.read_bytes()
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InvalidValue(
            f"ImageData cannot read line {line} of {file}: its byte 0x{content[error.start]:02x} is not "
            f"{encoding[:6].upper().rstrip('-')}. Save the list in the encoding UTF-8."
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InvalidValue(
            f"ImageData cannot read line {line} of {file}: it holds a null character, as UTF-16 without a mark or a "
            "binary file does. Save the list in the encoding UTF-8."
        )
    return text


def _columns(
    file: Path, names: list[str], labels: bool, image_column: str | None, label_column: str | None
) -> tuple[int, int | None]:
    """Places of the columns of paths and of labels among the names of a heading."""
    path = column_of(image_column, PATH_COLUMNS, names)
    if path is None:
        raise InvalidValue(
            f"ImageData finds no column {image_column or 'path'!r} in {file}; its first line has "
            f"{shown(', '.join(names))}. Name the column of the images: image_column=..."
        )
    label = column_of(label_column, LABEL_COLUMNS, names) if labels else None
    if label is None and label_column is None and len(names) == 2:
        label = 1 - path
    if labels and len(names) > 1 and label is None:
        raise InvalidValue(
            f"ImageData finds no column {label_column or 'label'!r} in {file}; its first line has "
            f"{shown(', '.join(names))}. Name the column of the labels: label_column=...; without labels, set "
            "labels=False."
        )
    return path, label


def unused_columns(names: list[str], used: list[str]) -> str:
    """What a note says of further columns."""
    unused = [name for name in names if name not in used]
    more = f" and {len(unused) - 6} more" if len(unused) > 6 else ""
    return f" (not used: {', '.join(unused[:6])}{more})" if unused else ""


def _repeated(file: Path, rows: list[tuple[int, list[str]]], path: int, label: int | None) -> int:
    """How many lines name an image that a line before has named, with the same label."""
    seen: dict[str, tuple[int, str]] = {}
    for number, row in rows:
        name, value = os.path.normpath(row[path]), "" if label is None else row[label]
        line, before = seen.setdefault(name, (number, value))
        if before != value:
            raise InvalidValue(
                f"ImageData: line {number} of {file} gives {shown(row[path])} the label {value!r}, and line {line} "
                f"gave it {before!r}. An image has one label: remove one of the lines."
            )
    return len(rows) - len(seen)
