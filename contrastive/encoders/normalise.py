"""What every image encoder does first: check the images, scale them, shift them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalise(nn.Module):
    """Turn uint8 or [0, 1] images into standardised floats: ``(images - mean) / std`` per channel.

    The statistics are buffers that follow the module to its device and dtype. They are not part of the
    ``state_dict``, because the constructor arguments of the encoder already record them.

    Args:
        mean: One value for each channel, in units of the [0, 1] scale.
        std: One positive value for each channel, in the same units.

    Raises:
        ValueError: If ``mean`` and ``std`` differ in length, or a ``std`` is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ValueError(
                f"mean and std of an encoder have {len(mean)} and {len(std)} values; "
                "both need one value for each image channel: give lists of the same length."
            )
        if any(value <= 0 for value in std):
            raise ValueError(f"std of an encoder is {list(std)}; every value must be above 0: correct it.")
        self.register_buffer(
            "mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False
        )

    def forward(self, images: Tensor) -> Tensor:
        """Standardise a batch.

        Args:
            images: ``(B, C, H, W)``, uint8 in 0..255 or floating point in [0, 1].

        Returns:
            ``(B, C, H, W)`` in the dtype of the module.

        Raises:
            TypeError: If ``images`` is neither uint8 nor floating point.
            ValueError: If ``images`` does not have four dimensions or the right number of channels.
        """
        channels = self.mean.shape[1]
        if images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(
                f"images given to an encoder have shape {tuple(images.shape)}; (B, {channels}, H, W) is needed: "
                "add the missing dimension, or build the encoder with the in_channels of your images."
            )
        if images.dtype == torch.uint8:
            return (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        if not images.is_floating_point():
            raise TypeError(
                f"images given to an encoder are {images.dtype}; uint8 (0..255) or floats in [0, 1] are accepted: "
                "convert them with .to(torch.uint8) if they hold 0..255."
            )
        return (images.to(self.mean.dtype) - self.mean) / self.std
