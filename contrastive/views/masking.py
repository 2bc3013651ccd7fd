"""Random blocks of patches that a view does not show."""

import math

import torch
from torch import Tensor, nn

from contrastive.arguments import checked
from contrastive.errors import InvalidValue

TRIES = 10
"""Blocks tried per image; what is then missing of its share stays visible."""


class PatchMask(nn.Module):
    """Hide blocks of patches, as BECLR (arXiv 2402.02444) does in what its student sees and its teacher does not.

    The share of hidden patches is drawn for each image. Blocks, rectangles of patches with an aspect ratio
    log-uniform between ``aspect`` and its reciprocal and an area from a ninth of the image up, are laid one after the
    other as long as they fit into that share (Bao et al. 2022, "BEiT", arXiv 2106.08254, algorithm 1); the blocks of
    one image may overlap.

    Called as ``mask(images, generator=None)``, with ``images`` ``(B, C, H, W)`` floating point; returns a copy. All
    images take equally many random numbers, from ``generator`` or, where it is None, the global one of its device.

    Args:
        patch: side of a patch in pixels; those at the right and lower edge may be cut off.
        ratio: mean share of hidden patches; the authors' 0.15 to 0.3.
        spread: the share is uniform in ``ratio`` ± ``spread``.
        aspect: smallest ratio of a block's height to its width.
        fill: value of hidden pixels, one for all channels or one for each. What encoders normalise to 0 is the mean of
            the data, 0.5 for :class:`~contrastive.encoders.ConvEncoder` unless told otherwise.

    Raises:
        ValueError: an option is out of its range; called with other than ``(B, C, H, W)`` floats, or with another
            number of channels than ``fill`` has.
    """

    @checked
    def __init__(
        self,
        patch: int = 16,
        ratio: float = 0.15,
        spread: float = 0.1,
        aspect: float = 0.3,
        fill: float | tuple[float, ...] = 0.5,
    ) -> None:
        super().__init__()
        if patch < 1:
            raise InvalidValue(f"PatchMask: patch is {patch}; give the side of a patch in pixels, as 16")
        if not 0 <= spread <= ratio or ratio + spread >= 1:
            raise InvalidValue(
                f"PatchMask: ratio is {ratio} and spread is {spread}; shares from ratio - spread to ratio + spread "
                "must lie in [0, 1), as those of 0.15 and 0.1"
            )
        if not 0 < aspect <= 1:
            raise InvalidValue(f"PatchMask: aspect is {aspect}; give a ratio above 0 and at most 1, as 0.3")
        self.patch, self.ratio, self.spread, self.aspect = patch, ratio, spread, aspect
        self.fill = (fill,) if isinstance(fill, (int, float)) else tuple(fill)

    @torch.no_grad()
    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return ``(B, C, H, W)`` with hidden patches; see the class."""
        if images.ndim != 4 or not images.is_floating_point() or len(self.fill) not in (1, images.shape[1]):
            raise InvalidValue(
                f"PatchMask: images have shape {tuple(images.shape)} and type {images.dtype}, and fill has "
                f"{len(self.fill)} values; give a floating-point batch (B, C, H, W) and one value, or one a channel"
            )
        height, width = images.shape[2:]
        grid = (math.ceil(height / self.patch), math.ceil(width / self.patch))
        hidden = self.draw(len(images), grid, images.device, generator)
        for axis in (1, 2):
            hidden = hidden.repeat_interleave(self.patch, axis)
        return torch.where(
            hidden[:, None, :height, :width], images.new_tensor(self.fill)[:, None, None], images
        )

    def draw(
        self,
        batch: int,
        grid: tuple[int, int],
        device: torch.device,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Which patches of ``grid`` (rows, columns) are hidden, ``(batch, rows, columns)`` bool."""
        source = device if generator is None else generator.device
        share, *tries = torch.rand(1 + 4 * TRIES, batch, generator=generator, device=source).to(device)
        share = self.ratio + self.spread * (2 * share - 1)
        room = (share * grid[0] * grid[1]).round()
        smallest = max(min(grid) // 3, 1) ** 2
        row, column = (torch.arange(size, device=device) for size in grid)
        hidden = torch.zeros(batch, *grid, dtype=torch.bool, device=device)
        for area, aspect, top, left in zip(*(tries[i::4] for i in range(4)), strict=True):
            area = smallest + area * (room - smallest).clamp(min=0)
            aspect = (math.log(self.aspect) * (2 * aspect - 1)).exp()
            sides = [(area * aspect).sqrt().round(), (area / aspect).sqrt().round()]
            spans = []
            for place, start, side in zip((row, column), (top, left), sides, strict=True):
                side = side.clamp(1, len(place))
                first = (start * (len(place) - side + 1)).floor()
                spans.append((place >= first[:, None]) & (place < (first + side)[:, None]))
            block = spans[0][:, :, None] & spans[1][:, None, :] & ~hidden
            count = block.sum((1, 2))
            fits = count <= room
            hidden |= block & fits[:, None, None]
            room = room - count * fits
        return hidden
