"""How much of the range of grey levels a set of images uses, and the window that it would fill."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from contrastive.data.pixels import is_deep, stored_values
from contrastive.errors import InvalidValue

FEW = 64  # of 256 levels
SAMPLE = 256  # images that percentiles are taken of
PIXELS = 16_384  # values of each of them


class Contents(Protocol):
    """Images whose content can be had without decoding it."""

    def __len__(self) -> int: ...

    def content(self, i: int) -> Any:
        """An image file as bytes, or an image in memory."""
        ...


def spread(count: int, number: int) -> list[int]:
    """At most ``number`` places among ``count``, evenly."""
    return [round(place) for place in np.linspace(0, count - 1, min(count, number)).tolist()]


def are_deep(images: Contents, number: int = 8) -> bool:
    """Whether 8 bits lose something of the images, by a look at a few; those that cannot be read do not count."""
    for i in spread(len(images), number):
        try:
            if is_deep(images.content(i)):
                return True
        except Exception:  # whoever reads the image in earnest says what is wrong with it
            continue
    return False


def percentiles_of(images: Contents, wanted: Sequence[float]) -> tuple[float, ...]:
    """Percentiles of the stored values of the set, from at most :data:`SAMPLE` images, evenly spread.

    Args:
        images: the images.
        wanted: numbers from 0 to 100.

    Raises:
        ValueError: if no image can be read.
    """
    values = []
    for i in spread(len(images), SAMPLE):
        try:
            found = stored_values(images.content(i)).reshape(-1)
        except Exception:
            continue
        values.append(found[:: max(1, len(found) // PIXELS)].astype(np.float64))
    finite = [part[np.isfinite(part)] for part in values]
    if not sum(map(len, finite)):
        raise InvalidValue("ImageData: none of the images that percentiles are taken of can be read.")
    return tuple(float(end) for end in np.percentile(np.concatenate(finite), wanted))


class Levels:
    """Counts of the 256 levels that images use, as they are read."""

    def __init__(self) -> None:
        self.counts = torch.zeros(256, dtype=torch.int64)

    def add(self, image: Tensor) -> None:
        """Count an image, or a batch: uint8, or floating point in [0, 1]."""
        self.counts += levels(image)

    def few(self, deep: bool) -> str | None:
        """What to say if few levels are used; None if they are enough.

        A drawing in black and white uses two levels of the whole range and loses nothing. So few levels count where
        they lie close together, or where the files hold more than 8 bits.
        """
        total = int(self.counts.sum())
        if not total:
            return None
        used = int((self.counts >= max(1, total * 1e-4)).sum())
        below = self.counts.cumsum(0) / total
        first, last = int((below > 0.001).int().argmax()), int((below >= 0.999).int().argmax())
        if used >= FEW or not (deep or last - first < FEW):
            return None
        return f"{used} of 256 grey levels are used, from {first} to {last}"


def levels(image: Tensor) -> Tensor:
    """Counts ``(256,)`` of the levels of an image."""
    values = image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
    return values.flatten().int().bincount(minlength=256)
