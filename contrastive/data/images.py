"""Images that are not read yet, and the ways to read them: one, all into a tensor, or batch by batch."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image


class Images(Protocol):
    """Random access to the images of one source."""

    threads: bool
    """Whether several threads may read at once."""

    def __len__(self) -> int: ...

    def read(self, i: int, channels: int) -> Tensor:
        """Image ``i`` as uint8 ``(channels, H, W)``, in its stored size."""
        ...

    def where(self, i: int) -> str:
        """The place of image ``i``, for messages."""
        ...

    def stamp(self, i: int) -> str:
        """Name and size of image ``i``, told without decoding it: what a stream's fingerprint is made of."""
        ...


@dataclass(frozen=True)
class Split:
    """The images of one split.

    Attributes:
        images: N images.
        labels: ``(N,)`` int64 or None.
        class_names: a name for each label 0, 1, ...; empty where the source gives none.
    """

    images: Images
    labels: Tensor | None
    class_names: list[str]


@dataclass(frozen=True)
class Source:
    """Training images and, where the source has them, validation and test images."""

    train: Split
    validation: Split | None = None
    test: Split | None = None
    size: int | None = None
    """Height and width to scale to where the user does not say; None leaves images as they are."""


class JoinedImages:
    """Several collections of images one after the other."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self.parts = parts
        self.ends = list(accumulate(len(part) for part in parts))
        self.threads = all(part.threads for part in parts)

    def __len__(self) -> int:
        return self.ends[-1]

    def _part(self, i: int) -> tuple[Images, int]:
        number = int(np.searchsorted(self.ends, i, side="right"))
        return self.parts[number], i - (self.ends[number] - len(self.parts[number]))

    def read(self, i: int, channels: int) -> Tensor:
        """Image ``i``, counted over all parts."""
        part, place = self._part(i)
        return part.read(place, channels)

    def where(self, i: int) -> str:
        """The place within its part."""
        part, place = self._part(i)
        return part.where(place)

    def stamp(self, i: int) -> str:
        """The stamp within its part."""
        part, place = self._part(i)
        return part.stamp(place)


def decode(content: bytes, channels: int) -> Tensor:
    """Decode an image file: uint8 ``(channels, H, W)``, turned upright where its metadata say so.

    JPEG and PNG are decoded by torchvision, in less than half of Pillow's time for 32-pixel JPEG, and all
    other formats by Pillow. 16-bit PNG is cut to its upper 8 bits.

    Raises:
        ValueError: if the bytes are no complete image.
    """
    if content.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        try:
            image: Tensor = decode_image(encoded, mode=mode, apply_exif_orientation=True)
        except RuntimeError as error:
            raise ValueError(str(error).splitlines()[0]) from error
        return image if image.dtype == torch.uint8 else (image.to(torch.int32) >> 8).to(torch.uint8)
    try:
        with Image.open(BytesIO(content)) as picture:
            return as_image(ImageOps.exif_transpose(picture), channels)
    except OSError as error:  # Pillow's own errors are kinds of OSError
        raise ValueError(f"its {len(content)} bytes are no readable image") from error


def as_image(value: Any, channels: int) -> Tensor:
    """Turn an image in memory into a uint8 tensor.

    Integers are taken as 0 to 255 and floats as 0 to 1. Grey becomes RGB by repetition, RGB becomes grey by
    the weights of ITU-R BT.601, and an alpha channel is dropped.

    Args:
        value: PIL image, array ``(H, W)`` or ``(H, W, C)``, or tensor ``(H, W)`` or ``(C, H, W)``.
        channels: 1 or 3.

    Returns:
        uint8 ``(channels, H, W)``.

    Raises:
        ValueError: if the value is no such image.
    """
    if isinstance(value, Image.Image):
        if value.mode[0] in "IF":
            raise ValueError(
                f"PIL mode {value.mode!r} has more than 8 bits; convert the image to 'L' or 'RGB'"
            )
        value = np.array(value.convert("RGB" if channels == 3 else "L"))
    if isinstance(value, np.ndarray):
        tensor = torch.from_numpy(value.copy())
        tensor = tensor.movedim(-1, 0) if tensor.ndim == 3 else tensor
    elif isinstance(value, Tensor):
        tensor = value
    else:
        raise ValueError(f"a {type(value).__name__} is no image; use a PIL image, an array or a tensor")
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.is_floating_point() and tensor.min() >= 0 and tensor.max() <= 1:
        tensor = (tensor * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or not 1 <= tensor.shape[0] <= 4:
        shape = tuple(np.shape(value))
        raise ValueError(
            f"a {type(value).__name__} of shape {shape} and type {value.dtype} is no image; use uint8, or floats from "
            "0 to 1, of shape (H, W) or with 1 to 4 channels, last in an array and first in a tensor"
        )
    if tensor.shape[0] in (2, 4):
        tensor = tensor[:-1]
    if tensor.shape[0] == channels:
        return tensor
    if channels == 3:
        return tensor.expand(3, -1, -1)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (tensor * weights).sum(0, keepdim=True).round().to(torch.uint8)


def scale(image: Tensor, size: tuple[int, int]) -> Tensor:
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
    factor = max(size[0] / height, size[1] / width)
    inner = (max(size[0], round(height * factor)), max(size[1], round(width * factor)))
    scaled = interpolate(image[None].float(), inner, mode="bilinear", antialias=True)[0]
    top, left = (inner[0] - size[0]) // 2, (inner[1] - size[1]) // 2
    return scaled[:, top : top + size[0], left : left + size[1]].round().clamp(0, 255).to(torch.uint8)


class ImageStream(Dataset[Tensor]):
    """Images read anew whenever they are asked for.

    ``stream[rows]``, for the numbers of B images, is uint8 ``(B, C, H, W)``.

    Args:
        images: where they are read from.
        channels: 1 or 3.
        size: height and width they are scaled to; None needs images that all have the size of the first.

    Raises:
        ValueError: if an image cannot be read (its place and the reason are named), or differs in size.
    """

    def __init__(self, images: Images, channels: int, size: tuple[int, int] | None) -> None:
        self.images = images
        self.channels = channels
        self.size = size
        channels, height, width = self.read(0).shape
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int) -> Tensor:
        """Image ``i``: uint8 ``(C, H, W)``, scaled if a size is set."""
        try:
            image = self.images.read(i, self.channels)
        except Exception as error:
            raise ValueError(
                f"ImageData cannot read the image at {self.images.where(i)}: {error}. Repair or remove it; "
                "contrastive.data.check_data(data) looks through all images and counts the bad ones."
            ) from error
        return image if self.size is None else scale(image, self.size)

    def fill(self, out: Tensor, rows: Sequence[int]) -> None:
        """Read the images ``rows`` into ``out``, uint8 ``(len(rows), C, H, W)``."""
        batch = [self.read(row) for row in rows]
        for row, image in zip(rows, batch, strict=True):
            if image.shape != self.shape:
                raise ValueError(
                    f"ImageData(size=None) needs images of one size: {self.images.where(0)} has (C, H, W) = "
                    f"{self.shape} and {self.images.where(row)} has {tuple(image.shape)}. Set size=..., to which "
                    "every image is then scaled and cut."
                )
        torch.stack(batch, out=out)

    def __getitem__(self, rows: Tensor) -> Tensor:
        batch = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        self.fill(batch, rows.tolist())
        return batch

    def load(self) -> Tensor:
        """Read all images at once: uint8 ``(N, C, H, W)``."""
        out = torch.empty((len(self), *self.shape), dtype=torch.uint8)
        blocks = [range(begin, min(begin + 256, len(self))) for begin in range(0, len(self), 256)]
        with ThreadPoolExecutor((os.cpu_count() or 1) if self.images.threads else 1) as pool:
            for _ in pool.map(lambda rows: self.fill(out[rows.start : rows.stop], rows), blocks):
                pass  # raises here what a thread has raised, and drops the blocks not begun
        return out
