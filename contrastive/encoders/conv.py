"""A small convolutional network for small images on CPUs."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from contrastive.encoders.normalise import Normalise, channel_statistics


class ConvEncoder(nn.Module):
    """A small convolutional network for 8 to 64 pixel images.

    Args:
        in_channels: Channels of the images (1 or 3, usually).
        width: Channels of the first stage; each later stage has twice as many.
        stages: Number of stages; each halves the resolution.
        mean: Per-channel mean of the data on the [0, 1] scale; 0.5 by default.
        std: Per-channel standard deviation on the same scale; 0.25 by default.

    Attributes:
        dim: Width of the features.
        config: The constructor arguments, JSON-able.
    """

    def __init__(
        self,
        in_channels: int = 3,
        width: int = 64,
        stages: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        mean, std = channel_statistics(in_channels, mean, std)
        self.config: dict[str, Any] = {
            "in_channels": in_channels, "width": width, "stages": stages, "mean": mean, "std": std
        }  # fmt: skip
        self.normalise = Normalise(mean, std)
        layers: list[nn.Module] = []
        channels = in_channels
        for stage in range(stages):
            layers += [
                nn.Conv2d(channels, width << stage, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width << stage),
                nn.ReLU(inplace=True),
            ]
            channels = width << stage
        self.body = nn.Sequential(*layers)
        self.dim = channels

    def forward(self, images: Tensor) -> Tensor:
        """Encode images ``(B, in_channels, H, W)``, uint8 or [0, 1] floats, to features ``(B, dim)``."""
        features: Tensor = self.body(self.normalise(images)).mean(dim=(2, 3))
        return features
