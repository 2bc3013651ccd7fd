"""Geometry: random crop, flip and rotation, resized to a square in one sampling step.

Crop, resize and flip act on rows and columns separately, so an image is resampled by two small matrix
products, ``rows @ image @ columns``, whose weights are those of (antialiased) bilinear interpolation. That
runs on any device and, for small images, a little faster than ``grid_sample``, which cannot antialias. The
products grow with the cube of the side, so large images on a CPU go through ``interpolate`` one at a time
instead: same result, less work. Rotation is not separable and goes through ``grid_sample``.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RATIO = (3 / 4, 4 / 3)
"""Range of the aspect ratio (width over height) of a random crop, as in torchvision."""

TRIES = 10
"""Boxes tried per image before the crop falls back to the centre of the image, as in torchvision."""

# A CPU resamples by matrix products while size * longest input side stays below this.
_MATRIX_LIMIT = 64 * 64


class Boxes(NamedTuple):
    """Crops in whole pixels: four float tensors ``(B,)``."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


class Scratch:
    """Memory for intermediate results, kept from one chunk of images to the next.

    Fresh memory costs a page fault every 4 KiB, which for small images can be as much as the arithmetic.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return a float32 tensor with arbitrary content; it is overwritten after the next call of that name."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = torch.empty(size, device=device)
        return self._buffers[name][:size].view(shape)


def random_boxes(uniform: Tensor, shape: tuple[int, int], scale: tuple[float, float]) -> Boxes:
    """Draw one crop per image, distributed as in torchvision's ``RandomResizedCrop``.

    Area uniform in ``scale`` times the image's, aspect ratio log-uniform in :data:`RATIO`, position
    uniform. The first of :data:`TRIES` draws that fits is taken; if none fits, the largest centred box
    with an allowed aspect ratio.

    Args:
        uniform: ``(2 * TRIES + 2, B)`` random numbers in [0, 1).
        shape: ``(H, W)`` of the images.
        scale: smallest and largest area of the crop, as a fraction of the image's.
    """
    full_height, full_width = shape
    area = full_height * full_width * (scale[0] + (scale[1] - scale[0]) * uniform[:TRIES])
    log_ratio = torch.tensor(RATIO).log().tolist()
    ratio = torch.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * uniform[TRIES : 2 * TRIES])
    widths, heights = (area * ratio).sqrt_().round_(), (area / ratio).sqrt_().round_()

    fits = (widths > 0) & (widths <= full_width) & (heights > 0) & (heights <= full_height)
    found, first = fits.max(0)
    width = widths.gather(0, first[None])[0]
    height = heights.gather(0, first[None])[0]
    # floor(u * n) can round up to n in float32
    top = torch.minimum((uniform[-2] * (full_height - height + 1)).floor_(), full_height - height)
    left = torch.minimum((uniform[-1] * (full_width - width + 1)).floor_(), full_width - width)

    central_width = min(full_width, round(full_height * RATIO[1]))
    central_height = min(full_height, round(full_width / RATIO[0]))
    return Boxes(
        top.where(found, (full_height - central_height) // 2),
        left.where(found, (full_width - central_width) // 2),
        height.where(found, central_height),
        width.where(found, central_width),
    )


def resample(images: Tensor, boxes: Boxes, flip: Tensor, size: int, scratch: Scratch) -> Tensor:
    """Crop each image to its box, resize it to ``size`` and mirror it where asked.

    Bilinear interpolation with antialiasing where a crop shrinks, as torchvision's ``resized_crop`` does by
    default. Pixels outside the box have no influence.

    Args:
        images: ``(B, C, H, W)`` float32, contiguous.
        boxes: the crops, ``(B,)`` each.
        flip: ``(B,)`` bool, true where the crop is mirrored left to right.
        size: side of the result.
        scratch: where intermediate results and the result lie.

    Returns:
        ``(B, C, size, size)`` float32, overwritten by the next call with the same ``scratch``.
    """
    batch, channels, height, width = images.shape
    views = scratch.take("views", (batch, channels, size, size), images.device)
    if images.device.type == "cpu" and size * max(height, width) > _MATRIX_LIMIT:
        return _resample_one_by_one(images, boxes, flip, views)
    # Both axes at once: rows for the first half, columns for the second. A mirrored axis runs backwards.
    start, length = torch.cat((boxes.top, boxes.left)), torch.cat((boxes.height, boxes.width))
    backwards = torch.cat((torch.zeros_like(flip), flip))
    weights = scratch.take("weights", (2 * batch, size, max(height, width)), images.device)
    _fill_weights(start[:, None], length[:, None], backwards[:, None], out=weights)
    rows, columns = weights[:batch, :, :height], weights[batch:, :, :width]

    narrow = scratch.take("narrow", (batch, channels * height, size), images.device)
    torch.bmm(images.view(batch, channels * height, width), columns.transpose(1, 2), out=narrow)
    rows_per_channel = scratch.take("rows", (batch, channels, size, height), images.device).copy_(
        rows[:, None]
    )
    torch.bmm(rows_per_channel.flatten(0, 1), narrow.view(-1, height, size), out=views.flatten(0, 1))
    return views


def _fill_weights(start: Tensor, length: Tensor, backwards: Tensor, out: Tensor) -> None:
    """Write the matrices ``(N, size, full)`` that resize pixels [start, start + length) of an axis to ``out``.

    ``start``, ``length`` and ``backwards`` are ``(N, 1)``.
    """
    _, size, full = out.shape
    fraction = (torch.arange(size, device=out.device) + 0.5) / size
    step = torch.where(backwards, -length, length)
    centre = torch.addcmul(torch.where(backwards, start + length, start) - 0.5, step, fraction)
    pixel = torch.arange(full, device=out.device, dtype=torch.float32)
    if full <= size:
        # No crop shrinks: the two taps around each centre, the border pixel standing in for those outside.
        centre = centre.clamp(start, start + length - 1)
        torch.sub(centre[:, :, None], pixel, out=out).abs_()
        torch.sub(1, out, out=out).relu_()
        return
    shrink = (length / size).clamp(min=1)
    torch.sub(centre[:, :, None], pixel, out=out).div_(shrink[:, :, None]).abs_()
    torch.sub(1, out, out=out).relu_()
    out *= ((pixel >= start) & (pixel < start + length))[:, None]
    out /= out.sum(-1, keepdim=True)


def _resample_one_by_one(images: Tensor, boxes: Boxes, flip: Tensor, out: Tensor) -> Tensor:
    """Do the work of :func:`resample` image by image, each reading only its own crop."""
    size = out.shape[-1]
    corners = torch.stack(boxes, 1).to(torch.int64).tolist()
    for image, (top, left, height, width), mirrored, view in zip(
        images, corners, flip.tolist(), out, strict=True
    ):
        (crop,) = F.interpolate(
            image[None, :, top : top + height, left : left + width],
            size=(size, size),
            mode="bilinear",
            align_corners=False,
            antialias=max(height, width) > size,  # changes nothing where the crop grows, but costs time
        )
        view.copy_(crop.flip(-1) if mirrored else crop)
    return out


def resample_rotated(images: Tensor, boxes: Boxes, flip: Tensor, degrees: Tensor, size: int) -> Tensor:
    """As :func:`resample`, with each box turned counter-clockwise about its centre.

    The corners of a turned box show the image around it and, beyond the image, its nearest edge pixels.
    Plain bilinear interpolation, without antialiasing.

    Args:
        images: ``(B, C, H, W)`` float32.
        boxes: the crops, ``(B,)`` each.
        flip: ``(B,)`` bool, true where the crop is mirrored left to right.
        degrees: ``(B,)`` angles by which the content turns counter-clockwise.
        size: side of the result.

    Returns:
        ``(B, C, size, size)`` float32.
    """
    height, width = images.shape[-2:]
    radians = torch.deg2rad(degrees)[:, None]
    cos, sin = radians.cos(), radians.sin()
    position = (torch.arange(size, device=images.device) + 0.5) / size - 0.5
    across = position * torch.where(flip, -boxes.width, boxes.width)[:, None]
    down = position * boxes.height[:, None]
    # Continuous coordinates, then grid_sample's, in which the image spans [-1, 1].
    x = (boxes.left + boxes.width / 2)[:, None, None] + (cos * across)[:, None, :] - (sin * down)[:, :, None]
    y = (boxes.top + boxes.height / 2)[:, None, None] + (sin * across)[:, None, :] + (cos * down)[:, :, None]
    grid = torch.stack((x * (2 / width) - 1, y * (2 / height) - 1), -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
