"""Images in Parquet files, in the layout of Hugging Face's image data sets."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contrastive.data.images import Images, JoinedImages, Source, Split, decode
from contrastive.errors import FileMissing, InvalidValue


class ParquetImages:
    """Encoded images in a column of one Parquet file; the encoded bytes are held in memory.

    Args:
        column: Arrow chunked array of binary values.
        file: the file.
    """

    def __init__(self, column: Any, file: Path) -> None:
        self.chunks = column.chunks
        self.starts = np.cumsum([0, *(len(chunk) for chunk in self.chunks)])
        self.file = file

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _content(self, i: int) -> bytes | None:
        number = int(np.searchsorted(self.starts, i, side="right")) - 1
        content: bytes | None = self.chunks[number][i - int(self.starts[number])].as_py()
        return content

    def read(self, i: int, channels: int) -> Tensor:
        """Decode row ``i``."""
        content = self._content(i)
        if content is None:
            raise InvalidValue("the row holds no bytes")
        return decode(content, channels)

    def where(self, i: int) -> str:
        """File and row, counted from 0."""
        return f"{self.file}, row {i}"

    def stamp(self, i: int) -> str:
        """File name, row and size in bytes."""
        return f"{self.file.name} {i} {len(self._content(i) or b'')}"


def parquet_folder(root: Path) -> Source:
    """A folder with Parquet files whose names begin with ``train``, ``val`` and ``test``.

    Without a test file, ``val`` is the test split.

    Raises:
        FileNotFoundError: if no name begins with ``train``.
    """
    files = sorted(root.rglob("*.parquet"))
    train, val, test = ([f for f in files if f.name.startswith(name)] for name in ("train", "val", "test"))
    if not train:
        raise FileMissing(
            f"ImageData finds {len(files)} Parquet files in {root} ({files[0].name} and so on), and none whose name "
            "begins with 'train'. Rename them, or name one of them as the source."
        )
    validation = parquet_split(val) if val else None
    if not test:
        return Source(parquet_split(train), test=validation)
    return Source(parquet_split(train), validation, parquet_split(test))


def parquet_split(files: Sequence[Path]) -> Split:
    """Parquet files with a column ``image`` (or ``img``) of encoded images and an integer column ``label``.

    The image column holds bytes, or structs with a field ``bytes``. The label column may also be called
    ``labels`` or ``fine_label``; without one the images are unlabelled. Class names come from the schema's
    metadata: the key ``classes`` (names with commas between them, or a JSON list) or Hugging Face's features.

    Raises:
        ValueError: if a file cannot be read, or a column is missing or of the wrong type.
    """
    parts = [_read_file(file) for file in files]
    labels = [part.labels for part in parts if part.labels is not None]
    if len(labels) not in (0, len(parts)) or any(part.class_names != parts[0].class_names for part in parts):
        raise InvalidValue(
            f"ImageData finds different labels or class names in {', '.join(map(str, files))}, which make up one split."
        )
    images: Images = JoinedImages([part.images for part in parts])
    return Split(images, torch.cat(labels) if labels else None, parts[0].class_names)


def _read_file(file: Path) -> Split:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
    except pa.ArrowInvalid as error:
        raise InvalidValue(f"ImageData cannot read {file} as Parquet: {error}") from error
    image = next((name for name in ("image", "img") if name in schema.names), None)
    label = next((name for name in ("label", "labels", "fine_label") if name in schema.names), None)
    if image is None:
        raise InvalidValue(
            f"ImageData finds no column 'image' (or 'img') in {file}; it has {', '.join(schema.names)}. Rename the "
            "column that holds the encoded images."
        )
    table = pq.read_table(file, columns=[image] if label is None else [image, label])
    column = table.column(image)
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pc.struct_field(column, "bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise InvalidValue(
            f"ImageData finds the type {column.type} in the column {image!r} of {file}. It needs encoded images: "
            "binary, or struct<bytes: binary, path: string>."
        )
    images = ParquetImages(column, file)
    if label is None:
        return Split(images, None, [])
    labels = table.column(label)
    if not pa.types.is_integer(labels.type) or labels.null_count:
        raise InvalidValue(
            f"ImageData finds the type {labels.type} and {labels.null_count} missing values in the column {label!r} "
            f"of {file}. It needs an integer in every row; leave the column out if the images are unlabelled."
        )
    values = torch.from_numpy(labels.to_numpy().astype(np.int64))
    return Split(images, values, _class_names(schema.metadata or {}, label))


def _class_names(metadata: dict[bytes, bytes], label: str) -> list[str]:
    if b"classes" in metadata:
        text = metadata[b"classes"].decode()
        return [str(name) for name in json.loads(text)] if text.startswith("[") else text.split(",")
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return [str(name) for name in features.get(label, {}).get("names", [])]
