"""Colour: jitter and grey as one affine map per image, Gaussian blur and solarisation.

Brightness, contrast, saturation, hue and grey are affine in the colours of an image and its mean colour, so
all five together are one 3 x 3 matrix and one shift per image. With P the projection of a colour on its
grey, K the quarter turn about the grey axis, and factors b, c, s and angle t, a colour x of an image with
mean colour m becomes

    b c [P + s cos(t) (I - P) + s sin(t) K] x + b (1 - c) P m.

The maps commute (each is built of P, K and the identity, and PK = KP = 0), so the random order in which
torchvision applies them makes no difference here. What does differ: the result is clamped to [0, 1] once at
the end, not after every operation, and hue is a rotation (see :func:`colour_map`).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in the grey value: torchvision's rounding of ITU-R BT.601."""


def colour_map(
    brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, channels: int
) -> tuple[Tensor, Tensor]:
    """Compose the colour operations of each image into one affine map.

    The factors mean what they mean to torchvision's ``adjust_*`` functions: 1 (hue: 0) changes nothing,
    saturation 0 gives a grey image. On images of one channel saturation and hue do nothing.

    Hue is a rotation of the colours about the grey axis that keeps their grey value, whereas torchvision
    shifts the hue coordinate of HSV, which keeps the largest and smallest channel and so changes the grey
    value. Apart from that grey shift, the two agree exactly at multiples of a third of a turn and closely
    between.

    Args:
        brightness: ``(B,)`` factors >= 0.
        contrast: ``(B,)`` factors >= 0.
        saturation: ``(B,)`` factors >= 0.
        hue: ``(B,)`` shifts, in turns of the colour circle.
        channels: 1 or 3.

    Returns:
        Matrices ``(B, C, C)``, and the gains ``(B,)`` by which the mean grey of an image is added to it.
    """
    gain, mean_gain = brightness * contrast, brightness * (1 - contrast)
    if channels == 1:
        return gain[:, None, None], mean_gain
    angle = 2 * math.pi * hue
    chroma = torch.stack((gain, gain * saturation * angle.cos(), gain * saturation * angle.sin()), 1)
    grey = torch.tensor(GREY).expand(3, 3)
    chromatic = torch.eye(3) - grey
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    quarter_turn = cross - grey @ cross / sum(GREY)
    basis = torch.stack((grey, chromatic, quarter_turn)).view(3, 9).to(gain.device)
    return (chroma @ basis).view(-1, 3, 3), mean_gain


def apply_colour(images: Tensor, matrix: Tensor, mean_gain: Tensor, out: Tensor) -> Tensor:
    """Apply the maps of :func:`colour_map` and clamp to [0, 1].

    Args:
        images: ``(B, C, H, W)`` float32.
        matrix: ``(B, C, C)``.
        mean_gain: ``(B,)``.
        out: ``(B, C, H, W)`` float32, contiguous; receives the result and is returned.
    """
    colours = images.flatten(2)
    mean = colours.mean(2)
    mean_grey = mean @ mean.new_tensor(GREY) if images.shape[1] == 3 else mean[:, 0]
    torch.baddbmm((mean_gain * mean_grey)[:, None, None], matrix, colours, out=out.view(colours.shape))
    return out.clamp_(0, 1)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own Gaussian: torchvision's ``gaussian_blur``, one tenth of the side wide.

    Args:
        images: ``(B, C, S, S)`` float32, S >= 2.
        sigma: ``(B,)`` standard deviations in pixels, > 0.

    Returns:
        ``(B, C, S, S)`` float32.
    """
    batch, channels, size, _ = images.shape
    if batch == 0:
        return images
    radius = blur_radius(size)
    offset = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.softmax(-0.5 * (offset / sigma[:, None]).square(), 1)
    kernel = kernel.repeat_interleave(channels, 0)[:, None, :, None]
    planes = images.reshape(1, batch * channels, size, size)
    for _ in range(2):  # down the columns, then down the columns of the transposed image
        padded = F.pad(planes, (0, 0, radius, radius), mode="reflect")
        planes = F.conv2d(padded, kernel, groups=batch * channels).transpose(2, 3)
    return planes.reshape(images.shape).clamp_(0, 1)  # rounding may leave the range of the images


def blur_radius(size: int) -> int:
    """Half-width of the blur kernel, which spans a tenth of the side, made odd, and at least 3 pixels."""
    return max(1, size // 10 // 2)


def solarise(images: Tensor) -> Tensor:
    """Invert the values of at least one half: torchvision's ``solarize`` with threshold 0.5.

    Since 1 - x <= 1/2 exactly where x >= 1/2, that is the smaller of x and 1 - x.
    """
    return torch.minimum(images, 1 - images)
