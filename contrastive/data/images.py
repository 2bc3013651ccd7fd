"""Collections of images behind one small interface: read number i, say where it is stored."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


class Images(Protocol):
    """Random access to encoded images."""

    def __len__(self) -> int: ...

    def read(self, i: int, channels: int) -> Tensor:
        """Image ``i`` as uint8 ``(channels, H, W)``, in its stored size."""
        ...

    def where(self, i: int) -> str:
        """Where image ``i`` is stored, for messages."""
        ...

    def stamp(self, i: int) -> str:
        """Name and size of image ``i`` without reading it: the content of a stream's fingerprint."""
        ...

    threads: bool
    """Whether several threads may read at once."""


class FileImages:
    """Images in files.

    Args:
        paths: the files.
        root: their common folder; the fingerprint holds names relative to it, so a moved folder keeps its own.
    """

    threads = True

    def __init__(self, paths: Sequence[Path], root: Path) -> None:
        self.paths = paths
        self.root = root

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int, channels: int) -> Tensor:
        """Decode file ``i``."""
        return decode(self.paths[i].read_bytes(), channels)

    def where(self, i: int) -> str:
        """The path."""
        return str(self.paths[i])

    def stamp(self, i: int) -> str:
        """Relative path and size in bytes."""
        return f"{os.path.relpath(self.paths[i], self.root)} {self.paths[i].stat().st_size}"


class ParquetImages:
    """Encoded images in a binary column of Parquet files; the encoded bytes are held in memory.

    Args:
        columns: the column of each file, an Arrow chunked array of binary values.
        files: the files.
    """

    threads = True

    def __init__(self, columns: Sequence[Any], files: Sequence[Path]) -> None:
        self.chunks = [chunk for column in columns for chunk in column.chunks]
        self.starts = np.cumsum([0] + [len(chunk) for chunk in self.chunks])
        self.files = files
        self.file_starts = np.cumsum([0] + [len(column) for column in columns])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _bytes(self, i: int) -> bytes | None:
        chunk = int(np.searchsorted(self.starts, i, side="right")) - 1
        content: bytes | None = self.chunks[chunk][i - int(self.starts[chunk])].as_py()
        return content

    def read(self, i: int, channels: int) -> Tensor:
        """Decode row ``i``."""
        content = self._bytes(i)
        if content is None:
            raise ValueError("the row holds no image bytes")
        return decode(content, channels)

    def where(self, i: int) -> str:
        """File and row within it."""
        file = int(np.searchsorted(self.file_starts, i, side="right")) - 1
        return f"{self.files[file]}, row {i - int(self.file_starts[file])}"

    def stamp(self, i: int) -> str:
        """Row and size in bytes."""
        return f"{i} {len(self._bytes(i) or b'')}"


class DatasetImages:
    """Images of a map-style data set: PIL images, arrays or tensors, alone or first in a tuple.

    Args:
        dataset: ``dataset[i]`` is an image, ``(image, label, ...)`` or a dict with a key ``image`` or ``img``.
    """

    threads = False  # nobody promised that a user's data set may be read by several threads

    def __init__(self, dataset: Dataset[Any] | Sequence[Any]) -> None:
        self.dataset = dataset
        self.name = type(dataset).__name__

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def read(self, i: int, channels: int) -> Tensor:
        """Image of item ``i``."""
        return as_image(split_item(self.dataset[i])[0], channels)

    def where(self, i: int) -> str:
        """Number of the item."""
        return f"{self.name}[{i}]"

    def stamp(self, i: int) -> str:
        """Number of the item: a data set says nothing about its items before they are read."""
        return f"{self.name} {i}"


def split_item(item: Any) -> tuple[Any, Any]:
    """The image and the label (or None) of a data set's item."""
    if isinstance(item, dict):
        return item["image"] if "image" in item else item["img"], item.get("label")
    if isinstance(item, (tuple, list)):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def decode(content: bytes, channels: int) -> Tensor:
    """Decode an image file: uint8 ``(channels, H, W)``, turned upright if its metadata say so.

    JPEG and PNG are decoded by torchvision, which took a third of Pillow's time for 32-pixel JPEG;
    every other format by Pillow.

    Raises:
        ValueError: if the bytes are no image.
    """
    if content[:3] == b"\xff\xd8\xff" or content[:4] == b"\x89PNG":
        from torchvision.io import ImageReadMode, decode_image

        mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        try:
            image = decode_image(encoded, mode=mode, apply_exif_orientation=True)
        except RuntimeError as error:
            raise ValueError(str(error).splitlines()[0]) from error
        if image.dtype == torch.uint16:
            image = (image.to(torch.int32) >> 8).to(torch.uint8)
        return image
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(BytesIO(content)) as picture:
            return as_image(ImageOps.exif_transpose(picture), channels)
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{len(content)} bytes that are no readable image") from error


def as_image(value: Any, channels: int) -> Tensor:
    """Turn a PIL image, array ``(H, W)`` or ``(H, W, C)``, or tensor ``(H, W)`` or ``(C, H, W)`` into uint8.

    Integers are taken as 0..255 and floats as 0..1. Grey becomes RGB by repetition, RGB becomes grey by
    the ITU-R 601 weights, and an alpha channel is dropped.

    Returns:
        uint8 ``(channels, H, W)``.

    Raises:
        ValueError: if the value is no image of 8-bit integers or floats in [0, 1].
    """
    from PIL import Image

    if isinstance(value, Image.Image):
        if value.mode[0] in "IF":
            raise ValueError(f"a PIL image of mode {value.mode!r}; 8-bit images are accepted: convert it to 'L' first")
        value = np.array(value.convert("RGB" if channels == 3 else "L"))
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
        value = value.movedim(-1, 0) if value.ndim == 3 else value
    if not isinstance(value, Tensor) or value.ndim not in (2, 3):
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise ValueError(f"a {type(value).__name__}{shape}; a PIL image, (H, W[, C]) array or ([C, ]H, W) tensor is needed")
    value = value[None] if value.ndim == 2 else value
    if value.dtype.is_floating_point and 0 <= value.min() and value.max() <= 1:
        value = (value * 255).round().to(torch.uint8)
    if value.dtype != torch.uint8 or value.shape[0] not in (1, 2, 3, 4):
        raise ValueError(
            f"a {value.dtype} image with {value.shape[0]} channels and values {value.min():g} to {value.max():g}; "
            "uint8 or floats in [0, 1] with 1 to 4 channels are needed"
        )
    if value.shape[0] in (2, 4):
        value = value[:-1]
    if value.shape[0] == channels:
        return value.contiguous()
    if channels == 3:
        return value.repeat(3, 1, 1)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (value * weights).sum(0, keepdim=True).round().to(torch.uint8)


def fit(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale an image until it covers ``size``, keeping its aspect, and cut out the centre.

    Args:
        image: uint8 ``(C, H, W)``.
        size: height and width of the result.

    Returns:
        uint8 ``(C, *size)``.
    """
    height, width = image.shape[1:]
    if (height, width) == size:
        return image
    scale = max(size[0] / height, size[1] / width)
    inner = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    scaled = interpolate(image[None].float(), inner, mode="bilinear", antialias=True)[0]
    top, left = (inner[0] - size[0]) // 2, (inner[1] - size[1]) // 2
    return scaled[:, top : top + size[0], left : left + size[1]].round().clamp(0, 255).to(torch.uint8)


def read_image(images: Images, i: int, channels: int, size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Image ``i`` as stored, and scaled to ``size`` (if one is given); an unreadable one is named.

    Raises:
        ValueError: if it cannot be read, with the place where it is stored and the reason.
    """
    try:
        image = images.read(i, channels)
    except Exception as error:
        raise ValueError(
            f"ImageData cannot read the image at {images.where(i)}: {error}. "
            "Repair or remove it; contrastive.data.check_data(data) looks through all images and counts the bad ones."
        ) from error
    return image, image if size is None else fit(image, size)


def load_images(images: Images, channels: int, size: tuple[int, int] | None) -> tuple[Tensor, str]:
    """Read all images into one tensor.

    Returns:
        uint8 ``(N, C, H, W)``, and a hash of the stored pixels (taken before scaling).

    Raises:
        ValueError: if an image cannot be read, or, without ``size``, if not all have the size of the first.
    """
    shape = read_image(images, 0, channels, size)[1].shape
    out = torch.empty((len(images), *shape), dtype=torch.uint8)
    block = 256

    def fill(begin: int) -> bytes:
        digest = hashlib.sha256()
        for i in range(begin, min(begin + block, len(images))):
            stored, image = read_image(images, i, channels, size)
            if image.shape != shape:
                raise ValueError(
                    f"ImageData(size=None) needs images of one size: {images.where(0)} has {tuple(shape[1:])} and "
                    f"{images.where(i)} has {tuple(image.shape[1:])} pixels. Set size=..., to which every image "
                    "is scaled and cut."
                )
            out[i] = image
            digest.update(str(tuple(stored.shape)).encode())
            digest.update(stored.contiguous().numpy())
        return digest.digest()

    with ThreadPoolExecutor((os.cpu_count() or 1) if images.threads else 1) as pool:
        digests = list(pool.map(fill, range(0, len(images), block)))
    return out, hashlib.sha256(b"".join(digests)).hexdigest()


class ImageStream(Dataset[Tensor]):
    """Images read anew for every batch.

    ``stream[rows]`` for B row numbers is uint8 ``(B, C, H, W)``.
    """

    def __init__(self, images: Images, channels: int, size: tuple[int, int] | None) -> None:
        self.images = images
        self.channels = channels
        self.size = size
        self.shape = read_image(images, 0, channels, size)[1].shape

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor) -> Tensor:
        batch = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        for place, row in enumerate(rows.tolist()):
            image = read_image(self.images, row, self.channels, self.size)[1]
            if image.shape != self.shape:
                raise ValueError(
                    f"ImageData(size=None) needs images of one size: {self.images.where(0)} has "
                    f"{tuple(self.shape[1:])} and {self.images.where(row)} has {tuple(image.shape[1:])} pixels. "
                    "Set size=..., to which every image is scaled and cut."
                )
            batch[place] = image
        return batch

    def fingerprint(self) -> str:
        """Hash of all names and sizes in bytes."""
        digest = hashlib.sha256()
        for i in range(len(self.images)):
            digest.update(self.images.stamp(i).encode() + b"\n")
        return digest.hexdigest()
