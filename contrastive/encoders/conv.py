"""A small residual network for small images, shaped so that a few CPU cores keep up with it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive.arguments import checked
from contrastive.encoders.normalise import Normalise, channel_statistics
from contrastive.errors import InvalidValue


class ConvEncoder(nn.Module):
    """A small residual network for images of 8 to 64 pixels on CPUs.

    Each stage halves the resolution with a 3x3 convolution, then adds residual blocks of one 3x3 convolution
    each. The features are the maps of the last two stages, averaged over the cells of a small grid and
    joined: for a linear classifier coarse position and the finer stage are worth several points of accuracy.

    The first convolution starts as a cosine basis of its 3x3 patches, each filter with both signs. That basis
    all but decorrelates neighbouring pixels and colours, so with the batch norm behind it the network starts
    from whitened patches and need not spend its first steps on finding them. The filters are trained like all
    others.

    Why it is fast: the first convolution already strides, so nothing runs at full resolution; every later
    product is at least 64 channels wide; all of it runs in the channels-last layout, in which a CPU's 3x3
    convolutions reach the rate of its plain matrix products.

    Args:
        in_channels: Channels of the images.
        widths: Channels of each stage.
        blocks: Residual blocks of each stage.
        grid: Cells along each side of the pooled maps; 1 is plain global average pooling.
        out_dim: Width of a linear layer behind the pooled maps, for narrow features; ``None`` for no such layer.
        mean: Per-channel mean of the data on the [0, 1] scale; 0.5 by default.
        std: Per-channel standard deviation on the same scale; 0.25 by default.

    Attributes:
        dim: Width of the features: ``out_dim``, or ``grid**2 * sum(widths[-2:])`` without it.
        config: The constructor arguments, JSON-able.

    Raises:
        ValueError: If ``widths`` and ``blocks`` differ in length or hold impossible values, ``grid`` is below
            1, or the statistics do not fit ``in_channels``.
    """

    @checked
    def __init__(
        self,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 256),
        blocks: Sequence[int] = (0, 1, 1),
        grid: int = 2,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        out_dim: int | None = None,
    ) -> None:
        super().__init__()
        mean, std = channel_statistics(in_channels, mean, std)
        if not widths or len(widths) != len(blocks) or min(widths) < 1 or min(blocks) < 0:
            raise InvalidValue(
                f"widths and blocks of ConvEncoder are {list(widths)} and {list(blocks)}; give one width of "
                "1 or more and one number of blocks of 0 or more for each stage."
            )
        if grid < 1:
            raise InvalidValue(f"grid of ConvEncoder is {grid}; give an integer of 1 or more.")
        if out_dim is not None and out_dim < 1:
            raise InvalidValue(f"out_dim of ConvEncoder is {out_dim}; give an integer of 1 or more, or None.")
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "widths": list(widths),
            "blocks": list(blocks),
            "grid": grid,
            "mean": mean,
            "std": std,
            "out_dim": out_dim,
        }
        self.grid = grid
        pooled = grid**2 * sum(widths[-2:])
        self.dim = pooled if out_dim is None else out_dim
        self.last = nn.Identity() if out_dim is None else nn.Linear(pooled, out_dim)
        self.normalise = Normalise(mean, std)
        self.stages = nn.ModuleList(
            nn.Sequential(_Conv(left, right, stride=2), *(_Residual(right) for _ in range(depth)))
            for left, right, depth in zip([in_channels, *widths], widths, blocks, strict=False)
        )
        _start_decorrelated(next(self.stages.parameters()))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images ``(B, in_channels, H, W)``, uint8 or [0, 1] floats, to features ``(B, dim)``."""
        current = self.normalise(images).contiguous(memory_format=torch.channels_last)
        maps = []
        for stage in self.stages:
            current = stage(current)
            maps.append(current)
        pooled = [F.adaptive_avg_pool2d(m, self.grid).flatten(1) for m in maps[-2:]]
        features: Tensor = self.last(torch.cat(pooled, dim=1))
        return features


class _Conv(nn.Sequential):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, width_in: int, width_out: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(width_in, width_out, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width_out),
            nn.ReLU(inplace=True),
        )


class _Residual(nn.Module):
    """A convolution that adds to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _Conv(width, width)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = maps + self.conv(maps)
        return result


@torch.no_grad()
def _start_decorrelated(kernel: Tensor) -> None:
    """Set the first filters of ``kernel`` ``(out, in, 3, 3)`` to a cosine basis and its negative.

    The basis is the DCT-II over colour, rows and columns, close to the principal components of image patches
    (Ahmed et al. 1974, "Discrete Cosine Transform"); over red, green, blue it is brightness and two opponent
    colours. Brightness comes first; filters beyond twice the size of a patch keep their random start.
    """
    colour, row, column = (_cosine_basis(size) for size in kernel.shape[1:])
    filters = torch.einsum("ci,uj,vk->cuvijk", colour, row, column).reshape(-1, *kernel.shape[1:])
    pairs = torch.stack([filters, -filters], dim=1).flatten(0, 1)[: len(kernel)]
    kernel[: len(pairs)] = pairs


def _cosine_basis(size: int) -> Tensor:
    """Orthonormal rows ``(size, size)``: cosines of rising frequency."""
    index = torch.arange(size)
    basis = torch.cos(math.pi / size * (index + 0.5) * index[:, None])
    return F.normalize(basis, dim=1)
