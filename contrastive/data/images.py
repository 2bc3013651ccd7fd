"""Images that are not read yet, and the ways to read them: one, all into a tensor, or batch by batch."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from contrastive.data.loader import in_workers, reader
from contrastive.data.pixels import Colour, Window, as_image, decode, read_any, scale
from contrastive.errors import InvalidValue

__all__ = ["ImageStream", "Images", "JoinedImages", "Note", "Source", "Split", "as_image", "decode", "scale"]

MANY = 5000
"""Images for which reading by several processes is worth starting them."""


class Images(ABC):
    """Random access to the images of one source."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def content(self, i: int) -> Any:
        """Image ``i`` as it is stored: the bytes of a file, or an image in memory."""

    @abstractmethod
    def where(self, i: int) -> str:
        """The place of image ``i``, for messages."""

    @abstractmethod
    def stamp(self, i: int) -> str:
        """Name and size of image ``i``, told without decoding it: what a stream's fingerprint is made of."""

    def file_name(self, i: int) -> str | None:
        """The file of image ``i``, relative to the source and with ``/`` between folders; None if it is in none."""
        return None

    def read(
        self, i: int, channels: int, window: Window = "bytes", background: Colour | None = None
    ) -> Tensor:
        """Image ``i`` as ``(channels, H, W)``, in its stored size, see :func:`contrastive.data.pixels.as_image`."""
        return read_any(self.content(i), channels, window, background)


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


class JoinedImages(Images):
    """Several collections of images one after the other."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self.parts = parts
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def _part(self, i: int) -> tuple[Images, int]:
        number = int(np.searchsorted(self.ends, i, side="right"))
        return self.parts[number], i - (self.ends[number] - len(self.parts[number]))

    def content(self, i: int) -> Any:
        """Image ``i``, counted over all parts."""
        part, place = self._part(i)
        return part.content(place)

    def where(self, i: int) -> str:
        """The place within its part."""
        part, place = self._part(i)
        return part.where(place)

    def stamp(self, i: int) -> str:
        """The stamp within its part."""
        part, place = self._part(i)
        return part.stamp(place)

    def file_name(self, i: int) -> str | None:
        """The file name within its part."""
        part, place = self._part(i)
        return part.file_name(place)


class ImageStream(Dataset[Tensor]):
    """Images read anew whenever they are asked for.

    ``stream[rows]``, for the numbers of B images, is ``(B, C, H, W)``: uint8, or with a window float32 in [0, 1].

    Args:
        images: where they are read from.
        channels: 1 or 3.
        size: height and width they are scaled to; None needs images that all have the size of the first.
        window: see :func:`contrastive.data.pixels.as_image`.
        background: likewise.

    Raises:
        ValueError: if an image cannot be read (its place and the reason are named), or differs in size.
    """

    def __init__(
        self,
        images: Images,
        channels: int,
        size: tuple[int, int] | None,
        window: Window = "bytes",
        background: Colour | None = None,
    ) -> None:
        self.images = images
        self.channels = channels
        self.size = size
        self.window: Window = window
        self.background = background
        self.dtype = torch.uint8 if window == "bytes" else torch.float32
        channels, height, width = self.read(0).shape
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def bytes_each(self) -> int:
        """Bytes that one image takes in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, i: int) -> Tensor:
        """Image ``i``: ``(C, H, W)``, scaled if a size is set."""
        try:
            image = self.images.read(i, self.channels, self.window, self.background)
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
        """Read all images at once, by ``num_workers`` processes if there are many: ``(N, C, H, W)``."""
        out = torch.empty((len(self), *self.shape), dtype=self.dtype)
        # Blocks of about 1 MB pass through shared memory, of which containers have little.
        blocks = torch.arange(len(self)).split(max(1, (1 << 20) // self.bytes_each))  # type: ignore[no-untyped-call]
        workers = num_workers if len(self) >= MANY else 0
        for rows, images in zip(blocks, in_workers(reader(self, blocks, workers)), strict=True):
            out[rows[0] : rows[-1] + 1] = images
        return out
