"""Images in Parquet files, in the layout of Hugging Face's image data sets."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from contrastive.checks import shown
from contrastive.data.images import Images, JoinedImages, Note, Source, Split
from contrastive.data.labels import labelled, text_classes
from contrastive.data.lists import LABEL_COLUMNS, PATH_COLUMNS, column_of, unused_columns
from contrastive.data.splits import split_of
from contrastive.errors import FileMissing, InvalidValue

IMAGE_COLUMNS = ("image", "img", "image_bytes")


class ParquetImages(Images):
    """Encoded images in a column of one Parquet file; the encoded bytes are held in memory.

    Args:
        column: Arrow chunked array of binary values.
        file: the file.
        names: Arrow chunked array of the names that the images had as files; None if they had none.
    """

    def __init__(self, column: Any, file: Path, names: Any = None) -> None:
        self.names = names
        self.chunks = column.chunks
        self.starts = np.cumsum([0, *(len(chunk) for chunk in self.chunks)])
        self.file = file

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _content(self, i: int) -> bytes | None:
        number = int(np.searchsorted(self.starts, i, side="right")) - 1
        content: bytes | None = self.chunks[number][i - int(self.starts[number])].as_py()
        return content

    def content(self, i: int) -> bytes:
        """The bytes in row ``i``."""
        content = self._content(i)
        if content is None:
            raise InvalidValue("the row holds no bytes")
        return content

    def where(self, i: int) -> str:
        """File and row, counted from 0."""
        return f"{self.file}, row {i}"

    def stamp(self, i: int) -> str:
        """File name, row and size in bytes."""
        return f"{self.file.name} {i} {len(self._content(i) or b'')}"

    def file_name(self, i: int) -> str | None:
        """The name that the file gives."""
        return None if self.names is None else self.names[i].as_py()


def parquet_folder(
    root: Path, labels: bool = True, image_column: str | None = None, label_column: str | None = None
) -> Source:
    """A folder with Parquet files of splits, or a folder of one split as Spark writes it.

    A file belongs to the split that its name, or that of a folder on the way to it, begins with: ``train-0.parquet``,
    ``Test/part-0.parquet``, ``dev.parquet/part-0.snappy.parquet``. Without a test split, the validation split takes its
    place. Files ``part-...`` in a folder of any name, or in one that is itself called ``.parquet``, are one split.

    Args:
        root: the folder.
        labels: whether to read labels.
        image_column: see :func:`parquet_split`, as for ``label_column``.
        label_column: likewise.

    Raises:
        FileNotFoundError: if no name begins with ``train``.
    """
    files = parquet_files(root)
    splits: dict[str | None, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(root)), []).append(file)

    def read(split: str | None) -> Split | None:
        return parquet_split(splits[split], labels, image_column, label_column) if split in splits else None

    rest = splits.get(None, [])
    whole = root.suffix == ".parquet" or all(file.name.startswith("part-") for file in files)
    train = read(None if len(rest) == len(files) and whole else "train")
    if train is None:
        raise FileMissing(
            f"ImageData finds {len(files)} Parquet files in {root} ({files[0].name} and so on), and none whose name "
            "begins with 'train'. Rename them, or name one of them as the source."
        )
    if len(rest) == len(files):
        return Source(train)
    note = (
        Note("passed over", f"{len(rest)} Parquet files of no split in {root} ({rest[0].name})")
        if rest
        else None
    )
    validation, test = read("validation"), read("test")
    if test is None:
        validation, test = None, validation
    return Source(train, validation, test, notes=(note,) if note else ())


def parquet_files(root: Path) -> list[Path]:
    """The Parquet files in a folder and below; what is hidden, or begins with an underscore as Spark's own, is left."""
    found = root.rglob("*.parquet")
    return sorted(
        file
        for file in found
        if file.is_file() and not any(part.startswith((".", "_")) for part in file.relative_to(root).parts)
    )


def _split_of(path: Path) -> str | None:
    for part in path.parts:
        word = re.split(r"[\W_]", part, maxsplit=1)[0]
        prefix = re.match("train|val|test", part.casefold())
        if split := split_of(word) or (prefix and split_of(prefix[0])):
            return split
    return None


def parquet_split(
    files: Sequence[Path],
    labels: bool = True,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Split:
    """Parquet files with a column ``image`` (or ``img``) of encoded images and a column of labels.

    The image column holds bytes, or structs with a field ``bytes``. Names of images are the structs' field ``path``,
    or a column of texts that is called like one of :data:`contrastive.data.lists.PATH_COLUMNS`. The column of labels
    is one of :data:`contrastive.data.lists.LABEL_COLUMNS`, in that order; without one the images are unlabelled. It
    holds integers, or names. Names of integers come from the schema's metadata: the key ``classes`` (names with commas
    between them, or a JSON list) or Hugging Face's features.

    Args:
        files: the files of the split.
        labels: whether to read labels.
        image_column: name of the column of images, if it is none of the usual ones.
        label_column: name of the column of labels, likewise.

    Raises:
        ValueError: if a file cannot be read, or a column is missing or of the wrong type.
    """
    parts = [_read_file(file, labels, image_column, label_column) for file in files]
    first = parts[0]
    if any((part.values is None, part.names) != (first.values is None, first.names) for part in parts) or (
        first.values is not None and len({part.values.dtype.kind == "O" for part in parts}) > 1
    ):
        raise InvalidValue(
            f"ImageData finds different labels or class names in {shown(', '.join(map(str, files)))}, which make up "
            "one split."
        )
    images: Images = JoinedImages([part.images for part in parts])
    notes = tuple(dict.fromkeys(part.note for part in parts))[:1]
    if first.values is None:
        return Split(images, None, [], notes)
    if first.values.dtype.kind == "O":
        texts = [text for part in parts for text in part.values.tolist()]
        return Split(images, *text_classes(texts), notes)
    wide = np.result_type(*(part.values for part in parts))
    kind = wide if wide.kind in "iu" else object  # int64 and uint64 have no common integer type
    values = np.concatenate([part.values.astype(kind) for part in parts])
    return replace(labelled(images, values, first.names), notes=notes)


class _Part(NamedTuple):
    """What one file holds: images, labels as they are written, names of the labels 0, 1, ... if it gives any."""

    images: ParquetImages
    values: Any
    names: list[str]
    note: Note


def _read_file(file: Path, labels: bool, image_column: str | None, label_column: str | None) -> _Part:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise InvalidValue(f"ImageData cannot read {file} as Parquet: {error}") from error
    names = [str(name) for name in schema.names]
    image = column_of(image_column, IMAGE_COLUMNS, names)
    label = column_of(label_column, LABEL_COLUMNS, names) if labels else None
    if image is None:
        raise InvalidValue(
            f"ImageData finds no column {image_column or 'image'!r}{'' if image_column else ' (or img)'} in {file}; it "
            f"has {', '.join(names)}. Name the column that holds the encoded images: image_column=..."
        )
    if labels and label_column is not None and label is None:
        raise InvalidValue(
            f"ImageData finds no column {label_column!r} in {file}; it has {', '.join(names)}. Name the column of the "
            "labels: label_column=..."
        )
    used = [names[image]] + ([] if label is None else [names[label]])
    texts = [name for name in names if name not in used and _is_text(schema.field(names.index(name)).type)]
    path = column_of(None, PATH_COLUMNS, texts)
    used += [] if path is None else [texts[path]]
    try:
        table = pq.read_table(file, columns=used, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise InvalidValue(f"ImageData cannot read {file} as Parquet: {error}") from error
    column = table.column(names[image])
    called = None if path is None else table.column(texts[path])
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        within = column.type.get_field_index("path")
        if called is None and within >= 0 and _is_text(column.type.field(within).type):
            called = pc.struct_field(column, "path")
        column = pc.struct_field(column, "bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise InvalidValue(
            f"ImageData finds the type {column.type} in the column {names[image]!r} of {file}. It needs encoded "
            "images: binary, or struct<bytes: binary, path: string>."
        )
    images = ParquetImages(column, file, called)
    note = Note("columns", f"{', '.join(used)} of {file.name}{unused_columns(names, used)}")
    if label is None:
        return _Part(images, None, [], note)
    values = table.column(names[label])
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    is_text = _is_text(values.type)
    if not (is_text or pa.types.is_integer(values.type)) or values.null_count:
        raise InvalidValue(
            f"ImageData finds the type {values.type} and {values.null_count} missing values in the column "
            f"{names[label]!r} of {file}. It needs an integer or a name in every row; name another column "
            "(label_column=...), or set labels=False if the images are unlabelled."
        )
    if is_text:
        return _Part(images, np.array(values.to_pylist(), dtype=object), [], note)
    return _Part(images, values.to_numpy(), _class_names(schema.metadata or {}, names[label], file), note)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _class_names(metadata: dict[bytes, bytes], label: str, file: Path) -> list[str]:
    try:
        if b"classes" in metadata:
            text = metadata[b"classes"].decode()
            found = json.loads(text) if text.startswith("[") else text.split(",")
        else:
            found = json.loads(metadata.get(b"huggingface", b"null"))
            for key in ("info", "features", label, "names"):
                found = found.get(key) if isinstance(found, dict) else None
    except ValueError as error:
        raise InvalidValue(
            f"ImageData cannot read the class names in the metadata of {file} ({error}); write them as a JSON list "
            "under the key 'classes', or leave them out."
        ) from error
    return [str(name) for name in found] if isinstance(found, list) else []
