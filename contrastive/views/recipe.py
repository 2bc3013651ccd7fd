"""What is done to the images of one view, with which strength and how often."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from contrastive.arguments import checked_fields
from contrastive.errors import InvalidValue
from contrastive.views.colour import apply_colour, colour_map, gaussian_blur, solarise
from contrastive.views.sampling import TRIES, Boxes, Scratch, random_boxes, resample, resample_rotated

BLUR_SIGMA = (0.1, 2.0)
"""Range of the blur's standard deviation in pixels: SimCLR (arXiv 2002.05709), appendix A."""


class Parameters(NamedTuple):
    """What one recipe does to each image of a batch, all ``(B, ...)``."""

    boxes: Boxes
    flip: Tensor  # bool
    degrees: Tensor
    matrix: Tensor  # (B, C, C)
    mean_gain: Tensor
    sigma: Tensor  # 0: no blur
    solarise: Tensor  # bool

    def slice(self, rows: slice) -> "Parameters":
        """Return the parameters of some of the images."""
        boxes, *others = self
        return Parameters(Boxes(*(x[rows] for x in boxes)), *(x[rows] for x in others))


@checked_fields
@dataclass(frozen=True)
class Recipe:
    """One random view: crop, resize, flip, rotate, colour jitter, grey, blur, solarise, in this order.

    Every probability is tossed per image. A recipe always consumes the same random numbers, so changing
    one option leaves the draws of all others as they were.

    Attributes:
        size: side of the view in pixels.
        crop_scale: smallest and largest area of the random crop, as a fraction of the image's. The aspect
            ratio lies in 3/4 to 4/3.
        flip: probability of mirroring left to right. Zero for digits and letters.
        rotation: largest angle of a random rotation, in degrees, either way; for handwriting, say, 15.
        jitter: strengths of brightness, contrast, saturation and hue. A factor is uniform in
            [max(0, 1 - strength), 1 + strength]; the hue shift is uniform in [-strength, strength] turns.
        jitter_probability: probability of the colour jitter.
        grey: probability of a grey image.
        blur: probability of a Gaussian blur of standard deviation uniform in :data:`BLUR_SIGMA`.
        solarise: probability of inverting the values of at least one half.

    Raises:
        ValueError: an option is out of its range.
    """

    size: int
    crop_scale: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.5
    rotation: float = 0.0
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    solarise: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InvalidValue(
                f"size of a view is {self.size}: it is a side in pixels; give at least 1, for example 32"
            )
        if self.size < 2 and self.blur > 0:
            raise InvalidValue(
                "blur needs views of size at least 2, but size is 1: set blur=0 or a larger size"
            )
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise InvalidValue(
                f"crop scale of a view is {self.crop_scale}: expected (smallest, largest) fractions of the "
                "image's area with 0 < smallest <= largest <= 1, for example (0.2, 1.0)"
            )
        for name in ("flip", "jitter_probability", "grey", "blur", "solarise"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidValue(
                    f"{name} of a view is {getattr(self, name)}: it is a probability; "
                    "give a value from 0 (never) to 1 (always)"
                )
        if not 0 <= self.rotation <= 180:
            raise InvalidValue(
                f"rotation of a view is {self.rotation}: it is the largest angle either way; "
                "give degrees from 0 to 180"
            )
        if len(self.jitter) != 4 or min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise InvalidValue(
                f"jitter of a view is {self.jitter}: expected four strengths (brightness, contrast, "
                "saturation, hue), none negative and hue at most 0.5, for example (0.4, 0.4, 0.4, 0.1)"
            )

    def draw(self, images: Tensor, generator: torch.Generator | None = None) -> Parameters:
        """Draw what happens to each of ``images`` ``(B, C, H, W)``; see :class:`Views` for the generator."""
        batch, channels, height, width = images.shape
        source = images.device if generator is None else generator.device
        uniform = torch.rand(2 * TRIES + 13, batch, generator=generator, device=source).to(images.device)
        box, (flip, angle, jitter, *factors, grey, blur, sigma, solarised) = uniform[:-11], uniform[-11:]

        jittered = jitter < self.jitter_probability
        brightness, contrast, saturation = (
            torch.where(jittered, between(max(0.0, 1 - strength), 1 + strength, u), 1.0)
            for strength, u in zip(self.jitter[:3], factors[:3], strict=True)
        )
        hue = torch.where(jittered, between(-self.jitter[3], self.jitter[3], factors[3]), 0.0)
        saturation = torch.where(grey < self.grey, 0.0, saturation)
        matrix, mean_gain = colour_map(brightness, contrast, saturation, hue, channels)
        return Parameters(
            random_boxes(box, (height, width), self.crop_scale),
            flip < self.flip,
            between(-self.rotation, self.rotation, angle),
            matrix,
            mean_gain,
            torch.where(blur < self.blur, between(*BLUR_SIGMA, sigma), 0.0),
            solarised < self.solarise,
        )

    def apply(self, images: Tensor, parameters: Parameters, out: Tensor, scratch: Scratch) -> None:
        """Write the views of float32 ``images`` ``(B, C, H, W)`` to ``out`` ``(B, C, size, size)``."""
        boxes, flip, degrees, matrix, mean_gain, sigma, solarised = parameters
        if self.rotation:
            views = resample_rotated(images, boxes, flip, degrees, self.size)
        else:
            views = resample(images, boxes, flip, self.size, scratch)
        apply_colour(views, matrix, mean_gain, out)
        if self.blur:
            blurred = sigma > 0
            out[blurred] = gaussian_blur(out[blurred], sigma[blurred])
        if self.solarise:
            out[solarised] = solarise(out[solarised])


def between(low: float, high: float, uniform: Tensor) -> Tensor:
    """Stretch random numbers from [0, 1) to [low, high)."""
    return low + (high - low) * uniform
