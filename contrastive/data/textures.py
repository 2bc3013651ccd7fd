"""Generated images to try things on where there are no data: coloured stripes."""

import math

import torch
from torch import Tensor

from contrastive.data.datasets import DatasetImages
from contrastive.data.images import Source, Split

ANGLES = 5
WIDTHS = {"fine": 6.0, "coarse": 12.0}
"""Names and periods of the stripes, in pixels of a 32-pixel image."""


def textures(train: int = 2800, test: int = 700) -> Source:
    """Stripes in two colours with noise, in ten classes: five directions, fine or coarse, each with a hue of its own.

    The darker colour, brightness, phase, contrast, noise and deviations of hue, direction and width are each image's.

    Args:
        train: number of training images, the same ones in every call.
        test: number of test images.
    """
    names = [f"{width} at {180 * angle // ANGLES} degrees" for width in WIDTHS for angle in range(ANGLES)]
    splits = []
    for seed, count in enumerate((train, test)):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(count)[torch.randperm(count, generator=generator)] % len(names)
        images = stripes(labels, generator).permute(0, 2, 3, 1).contiguous().numpy()
        splits.append(Split(DatasetImages(list(images)), labels, names))
    return Source(splits[0], test=splits[1])


def stripes(labels: Tensor, generator: torch.Generator, size: int = 32) -> Tensor:
    """Draw one image for each label ``(N,)``; uint8 ``(N, 3, size, size)``."""
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *(shape or (1, 1)), generator=generator)

    periods = torch.tensor(list(WIDTHS.values()))[labels // ANGLES, None, None] * size / 32
    angles = (labels % ANGLES)[:, None, None] * math.pi / ANGLES + uniform(-0.12, 0.12)
    along = torch.arange(size) - size / 2
    distance = angles.cos() * along + angles.sin() * along[:, None]
    wave = torch.sin(2 * math.pi * (distance / (periods * uniform(0.85, 1.15)) + uniform(0, 1)))
    share = 0.5 + 0.5 * uniform(0.6, 1.0) * wave
    hue = (labels / (ANGLES * len(WIDTHS)))[:, None, None, None] + uniform(-0.06, 0.06, 1, 1, 1)
    first = 0.5 + 0.5 * torch.cos(2 * math.pi * (hue + torch.arange(3)[:, None, None] / 3))
    first, second = first * uniform(0.6, 1.0, 1, 1, 1), uniform(0.0, 0.5, 3, 1, 1)
    images = share[:, None] * first + (1 - share[:, None]) * second
    images += 0.08 * torch.randn(images.shape, generator=generator)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
