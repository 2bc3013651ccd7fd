"""Generated images to try things on where there are no data: coloured stripes."""

import math

import torch
from torch import Tensor

from contrastive.data.datasets import DatasetImages
from contrastive.data.images import Source, Split

ANGLES = 5
WIDTHS = {"fine": 4.0, "coarse": 9.0}
"""Names and periods of the stripes, in pixels of a 32-pixel image."""


def textures(train: int = 2800, test: int = 700) -> Source:
    """Stripes in two colours with noise, in ten classes: five directions, fine or coarse.

    Colours, phase, contrast, noise and small deviations of direction and width are each image's own.

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
    first, second = uniform(0, 1, 3, 1, 1), uniform(0, 1, 3, 1, 1)
    images = share[:, None] * first + (1 - share[:, None]) * second
    images += 0.08 * torch.randn(images.shape, generator=generator)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
