"""What every encoder does first: check its input, scale it, shift it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contrastive.errors import InvalidType, InvalidValue

# Where nothing is known about the images: centred, with the spread of a typical photograph.
IMAGE_MEAN, IMAGE_STD = 0.5, 0.25


class Normalise(nn.Module):
    """Turn uint8 or floating-point inputs into standardised floats: ``(inputs - mean) / std`` per channel.

    The statistics are buffers that follow the module to its device and dtype. They are not part of the
    ``state_dict``, because the constructor arguments of the encoder already record them.

    Args:
        mean: One value for each channel; for uint8 inputs in units of the [0, 1] scale.
        std: One positive value for each channel, in the same units.
        spatial: ``True`` for images ``(B, C, H, W)``, ``False`` for vectors ``(B, C)``.

    Raises:
        ValueError: If ``mean`` and ``std`` differ in length, or a ``std`` is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], spatial: bool = True) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise InvalidValue(
                f"mean and std of an encoder have {len(mean)} and {len(std)} values; "
                "both need one value for each input channel: give lists of that length."
            )
        if not all(value > 0 for value in std):
            raise InvalidValue(f"std of an encoder is {list(std)}; every value must be above 0: correct it.")
        shape = (1, len(mean), 1, 1) if spatial else (1, len(mean))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(shape), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Standardise a batch.

        Args:
            inputs: ``(B, C, H, W)`` or ``(B, C)``; uint8 in 0..255 is divided by 255 first, floats are
                taken as they are (images: in [0, 1]).

        Returns:
            The same shape in the dtype of the module.

        Raises:
            TypeError: If ``inputs`` is neither uint8 nor floating point.
            ValueError: If ``inputs`` does not have the right number of dimensions or channels.
        """
        channels = self.mean.shape[1]
        if inputs.dim() != self.mean.dim() or inputs.shape[1] != channels:
            accepted = f"(B, {channels}, H, W)" if self.mean.dim() == 4 else f"(B, {channels})"
            raise InvalidValue(
                f"the input of an encoder has shape {tuple(inputs.shape)}; {accepted} is needed: "
                "reshape it, or build the encoder for the channels of your data."
            )
        if inputs.dtype == torch.uint8:
            return (inputs.to(self.mean.dtype) / 255 - self.mean) / self.std
        if not inputs.is_floating_point():
            raise InvalidType(
                f"the input of an encoder is {inputs.dtype}; uint8 (0..255) or floating point is accepted: "
                "convert it with .to(torch.uint8) or .float()."
            )
        return (inputs.to(self.mean.dtype) - self.mean) / self.std


def channel_statistics(
    channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    """Fill in the statistics that the caller of an image encoder left out.

    Returns:
        ``mean`` and ``std`` as lists; 0.5 and 0.25 for each channel where they were ``None``.

    Raises:
        ValueError: If ``channels`` is below 1, or a given list does not have ``channels`` values.
    """
    if channels < 1:
        raise InvalidValue(f"in_channels of an encoder is {channels}; give an integer of 1 or more.")
    for name, values in {"mean": mean, "std": std}.items():
        if values is not None and len(values) != channels:
            raise InvalidValue(
                f"{name} of an encoder has {len(values)} values for in_channels={channels}; "
                "give one value for each channel."
            )
    return list(mean or [IMAGE_MEAN] * channels), list(std or [IMAGE_STD] * channels)
