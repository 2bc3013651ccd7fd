"""Images that are not read yet, and the ways to read them: one, all into a tensor, or batch by batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from contrastive.data.loader import in_workers, reader
from contrastive.errors import InvalidValue

MANY = 5000
"""Images for which reading by several processes is worth starting them."""


class Images(Protocol):
    """Random access to the images of one source."""

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


class Note(NamedTuple):
    """What there is to say of a source before any image is read."""

    topic: str  # "columns", "passed over", "repeated" or "warning"
    text: str


@dataclass(frozen=True)
class Split:
    """The images of one split.

    Attributes:
        images: N images.
        labels: ``(N,)`` int64 or None.
        class_names: a name for each label 0, 1, ...; empty without labels.
        notes: which columns were used, what was passed over, and so on.
    """

    images: Images
    labels: Tensor | None
    class_names: list[str]
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Source:
    """Training images and, where the source has them, validation and test images."""

    train: Split
    validation: Split | None = None
    test: Split | None = None
    size: int | None = None
    """Height and width to scale to where the user does not say; None leaves images as they are."""
    notes: tuple[Note, ...] = ()
    """Of what belongs to no split."""

    @property
    def summary(self) -> dict[str, str]:
        """All notes by topic, those of a split with its name before them."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        found: dict[str, list[str]] = {}
        for split, notes in {"": self.notes, **{n: s.notes for n, s in splits.items() if s}}.items():
            for topic, text in notes:
                found.setdefault(topic, []).append(f"{split}: {text}" if split else text)
        return {topic: "; ".join(texts) for topic, texts in found.items()}


class JoinedImages:
    """Several collections of images one after the other."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self.parts = parts
        self.ends = list(accumulate(len(part) for part in parts))

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

    Raises:
        ValueError: if the bytes are no complete image.
    """
    try:
        with Image.open(BytesIO(content)) as picture:
            return as_image(ImageOps.exif_transpose(picture), channels)
    except (OSError, SyntaxError) as error:  # what Pillow's decoders raise
        raise InvalidValue(f"its {len(content)} bytes are no complete image ({error})") from error


def as_image(value: Any, channels: int) -> Tensor:
    """Turn an image in memory into a uint8 tensor.

    Integers are taken as 0 to 255 and floats as 0 to 1. Grey becomes RGB by repetition, RGB becomes grey by
    the weights of ITU-R BT.601, and an alpha channel is dropped. Of 16-bit PIL images the upper 8 bits remain.

    Args:
        value: PIL image, array ``(H, W)`` or ``(H, W, C)``, or tensor ``(H, W)`` or ``(C, H, W)``.
        channels: 1 or 3.

    Returns:
        uint8 ``(channels, H, W)``.

    Raises:
        ValueError: if the value is no such image.
    """
    if isinstance(value, Image.Image):
        if value.mode.startswith("I;16"):
            value = Image.fromarray((np.array(value) >> 8).astype(np.uint8))
        if value.mode in ("I", "F"):
            raise InvalidValue(
                f"PIL mode {value.mode!r} has no fixed range; convert the image to 'L' or 'RGB'"
            )
        value = np.array(value.convert("RGB" if channels == 3 else "L"))
    if isinstance(value, np.ndarray):
        tensor = torch.from_numpy(value.copy())
        tensor = tensor.movedim(-1, 0) if tensor.ndim == 3 else tensor
    elif isinstance(value, Tensor):
        tensor = value
    else:
        raise InvalidValue(f"a {type(value).__name__} is no image; use a PIL image, an array or a tensor")
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.is_floating_point() and tensor.min() >= 0 and tensor.max() <= 1:
        tensor = (tensor * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or not 1 <= tensor.shape[0] <= 4:
        shape = tuple(np.shape(value))
        raise InvalidValue(
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
            raise InvalidValue(
                f"ImageData cannot read the image at {self.images.where(i)}: {error}. Repair or remove it; "
                "contrastive.data.check_data(data) looks through all images and counts the bad ones."
            ) from error
        return image if self.size is None else scale(image, self.size)

    def __getitem__(self, rows: Tensor) -> Tensor:
        batch = [self.read(row) for row in rows.tolist()]
        for row, image in zip(rows.tolist(), batch, strict=True):
            if image.shape != self.shape:
                raise InvalidValue(
                    f"ImageData(size=None) needs images of one size: {self.images.where(0)} has (C, H, W) = "
                    f"{self.shape} and {self.images.where(row)} has {tuple(image.shape)}. Set size=..., to which "
                    "every image is then scaled and cut."
                )
        return torch.stack(batch)

    def load(self, num_workers: int = 0) -> Tensor:
        """Read all images at once, by ``num_workers`` processes if there are many: uint8 ``(N, C, H, W)``."""
        out = torch.empty((len(self), *self.shape), dtype=torch.uint8)
        # Blocks of about 1 MB pass through shared memory, of which containers have little.
        blocks = torch.arange(len(self)).split(max(1, (1 << 20) // math.prod(self.shape)))  # type: ignore[no-untyped-call]
        workers = num_workers if len(self) >= MANY else 0
        for rows, images in zip(blocks, in_workers(reader(self, blocks, workers)), strict=True):
            out[rows[0] : rows[-1] + 1] = images
        return out
