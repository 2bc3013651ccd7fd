"""From the content of a file, or a picture in memory, to a tensor: range, transparency, channels, size."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from contrastive.checks import shown
from contrastive.errors import InvalidValue

Window = Literal["bytes", "own"] | tuple[float, float]
"""What becomes of stored values: ``"bytes"`` gives uint8, of 16 bits the upper 8; ``"own"`` float32 in [0, 1], each
image by the range of its own type; ``(low, high)`` float32 too, where ``low`` becomes 0 and ``high`` 1."""

Colour = tuple[int, int, int]


def decode(
    content: bytes, channels: int, window: Window = "bytes", background: Colour | None = None
) -> Tensor:
    """Decode an image file, turned upright where its metadata say so.

    Args:
        content: of the file.
        channels: see :func:`as_image`, as for all further arguments.
        window: likewise.
        background: likewise.

    Returns:
        uint8 or float32 ``(channels, H, W)``.

    Raises:
        ValueError: if the bytes are no complete image, or one without a range of its own.
    """
    try:
        with Image.open(BytesIO(content)) as picture:
            top = _top(picture)
            return _of_picture(ImageOps.exif_transpose(picture), channels, window, background, top)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow's decoders raise
        raise InvalidValue(f"its {len(content)} bytes are no complete image ({error})") from error


def as_image(value: Any, channels: int, window: Window = "bytes", background: Colour | None = None) -> Tensor:
    """Turn an image in memory into a tensor.

    Without a window, integers of 8 bits are taken as 0 to 255, of 16 bits as 0 to 65535 and floats as 0 to 1. Grey
    becomes RGB by repetition, RGB becomes grey by the weights of ITU-R BT.601.

    Args:
        value: PIL image, array ``(H, W)`` or ``(H, W, C)``, or tensor ``(H, W)`` or ``(C, H, W)``.
        channels: 1 or 3.
        window: what becomes of the values, see :data:`Window`.
        background: colour to put under transparent pixels; None drops the alpha channel, which shows what colours
            lie under it.

    Returns:
        uint8 or float32 ``(channels, H, W)``.

    Raises:
        ValueError: if the value is no such image.
    """
    if isinstance(value, Image.Image):
        return _of_picture(value, channels, window, background, _top(value))
    if isinstance(value, np.ndarray):
        tensor = torch.from_numpy(value.copy())
        tensor = tensor.movedim(-1, 0) if tensor.ndim == 3 else tensor
    elif isinstance(value, Tensor):
        tensor = value
    else:
        raise InvalidValue(f"a {type(value).__name__} is no image; use a PIL image, an array or a tensor")
    return _of_tensor(tensor, channels, window, background, value)


def is_deep(value: Any) -> bool:
    """Whether 8 bits lose something of an image file or an image in memory; of a broken file they do not."""
    if isinstance(value, bytes):
        try:
            with Image.open(BytesIO(value)) as picture:
                return is_deep(picture)
        except (OSError, SyntaxError, Image.DecompressionBombError):
            return False
    if isinstance(value, Image.Image):
        return value.mode.startswith("I") or value.mode == "F"
    values = torch.as_tensor(value)
    if values.is_floating_point():
        return not bool(((values * 255) == (values * 255).round()).all())
    return values.dtype not in (torch.uint8, torch.bool)


def stored_values(value: Any) -> NDArray[Any]:
    """The values of an image file or an image in memory, as they are stored, in any order; alpha is left out."""
    if isinstance(value, bytes):
        with Image.open(BytesIO(value)) as picture:
            return stored_values(picture)
    if isinstance(value, Image.Image):
        grey = value.mode in ("1", "L", "LA", "La") or is_deep(value)
        return np.asarray(value if is_deep(value) else value.convert("L" if grey else "RGB"))
    return np.asarray(value)


@dataclass(frozen=True)
class Facts:
    """What a look at an image tells beside its pixels."""

    transparent: bool  # in parts at least
    frames: int  # of which the first is read
    cut: bool  # whether Pillow reads 8 of 16 bits, as of all colour pictures


def facts(value: Any) -> Facts:
    """Look at an image file or an image in memory."""
    if isinstance(value, bytes):
        with Image.open(BytesIO(value)) as picture:
            return facts(picture)
    if not isinstance(value, Image.Image):
        return Facts(False, 1, False)
    tiles = " ".join(str(tile[3]) for tile in getattr(value, "tile", []))
    several = value.format in ("GIF", "PNG", "TIFF", "WEBP")
    frames = getattr(value, "n_frames", 1) if several else 1
    alpha = _has_alpha(value) and np.asarray(value.convert("RGBA").getchannel("A")).min() < 255
    return Facts(bool(alpha), frames, ";16" in tiles and not is_deep(value))


def scale(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale an image until it covers ``size``, keeping its aspect, and cut out the centre.

    Args:
        image: uint8 ``(C, H, W)``, or floating point in [0, 1].
        size: height and width of the result.

    Returns:
        ``(C, *size)`` of the same type.
    """
    height, width = image.shape[1:]
    if (height, width) == size:
        return image
    factor = max(size[0] / height, size[1] / width)
    inner = (max(size[0], round(height * factor)), max(size[1], round(width * factor)))
    scaled = interpolate(image[None].float(), inner, mode="bilinear", antialias=True)[0]
    top, left = (inner[0] - size[0]) // 2, (inner[1] - size[1]) // 2
    cut = scaled[:, top : top + size[0], left : left + size[1]]
    return cut.clamp(0, 1) if image.is_floating_point() else cut.round().clamp(0, 255).to(torch.uint8)


def _top(picture: Image.Image) -> float | None:
    """The largest value that the format of a deep picture can hold, None where it does not say."""
    if picture.mode.startswith("I;16"):
        return 65535.0
    # Pillow holds 16 bits of PGM, scaled up to all of them, and those of PNG in older versions, in 32.
    return 65535.0 if picture.mode == "I" and picture.format in ("PPM", "PNG") else None


def _has_alpha(picture: Image.Image) -> bool:
    return picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info


def _of_picture(
    picture: Image.Image, channels: int, window: Window, background: Colour | None, top: float | None
) -> Tensor:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = torch.from_numpy(np.array(picture).astype(np.float32))[None]
        if isinstance(window, str) and top is None:
            raise InvalidValue(
                f"PIL mode {picture.mode!r} has no fixed range; set window=(min, max) or percentiles=(1, 99), or "
                "convert the image to 'L' or 'RGB'"
            )
        if window == "bytes":
            return (values / 256).clamp(0, 255).to(torch.uint8).expand(channels, -1, -1)
        return _windowed(values, window, top or 1.0).expand(channels, -1, -1)
    if background is not None and _has_alpha(picture):
        under = Image.new("RGBA", picture.size, (*background, 255))
        under.alpha_composite(picture.convert("RGBA"))
        picture = under
    tensor = torch.from_numpy(np.array(picture.convert("RGB" if channels == 3 else "L")))
    tensor = tensor[None] if tensor.ndim == 2 else tensor.movedim(-1, 0)
    return tensor if window == "bytes" else _windowed(tensor, window, 255.0)


def _windowed(values: Tensor, window: Window, top: float) -> Tensor:
    """Values as float32 in [0, 1]; those that are no number become the lower end."""
    low, high = (0.0, top) if isinstance(window, str) else window
    # In double precision, as float32 does not hold integers of more than 24 bits.
    scaled = (values.double() - low) / (high - low)
    return scaled.nan_to_num(nan=0.0).clamp(0, 1).float()


def _of_tensor(
    tensor: Tensor, channels: int, window: Window, background: Colour | None, value: Any
) -> Tensor:
    if tensor.ndim == 2:
        tensor = tensor[None]
    top = {torch.uint8: 255.0, torch.uint16: 65535.0}.get(tensor.dtype)
    if tensor.is_floating_point() and tensor.min() >= 0 and tensor.max() <= 1:
        top = 1.0
    if (top is None and isinstance(window, str)) or tensor.ndim != 3 or not 1 <= tensor.shape[0] <= 4:
        shape = tuple(np.shape(value))
        raise InvalidValue(
            f"a {type(value).__name__} of shape {shape} and type {value.dtype} is no image; use uint8, uint16, or "
            "floats from 0 to 1, of shape (H, W) or with 1 to 4 channels, last in an array and first in a tensor; "
            "values of another range need window=(min, max)"
        )
    if window == "bytes" and top == 1.0 and tensor.is_floating_point():
        tensor, top = (tensor * 255).round().to(torch.uint8), 255.0
    elif window == "bytes" and top == 65535.0:
        tensor, top = (tensor.float() / 256).to(torch.uint8), 255.0
    if tensor.shape[0] in (2, 4):
        tensor = _over(tensor, background, top or 1.0)
    pixels = tensor if window == "bytes" else _windowed(tensor, window, top or 1.0)
    if pixels.shape[0] == channels:
        return pixels
    if channels == 3:
        return pixels.expand(3, -1, -1)
    grey = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    return grey.round().to(torch.uint8) if window == "bytes" else grey.clamp(0, 1)


def _over(tensor: Tensor, background: Colour | None, top: float) -> Tensor:
    """Drop the alpha channel, or put a colour under it."""
    if background is None:
        return tensor[:-1]
    colour = torch.tensor(background).double().view(3, 1, 1) / 255 * top
    below = colour if len(tensor) == 4 else colour.mean(0, keepdim=True)
    alpha = tensor[-1:].double() / top
    mixed = alpha * tensor[:-1].double() + (1 - alpha) * below
    return (mixed if tensor.is_floating_point() else mixed.round()).to(tensor.dtype)


def read_any(value: Any, channels: int, window: Window = "bytes", background: Colour | None = None) -> Tensor:
    """An image file's content, or an image in memory, as :func:`decode` or :func:`as_image` reads it."""
    reads = decode if isinstance(value, bytes) else as_image
    return reads(value, channels, window, background)


def check_window(name: str, window: Any) -> tuple[float, float] | None:
    """A window as two floats.

    Raises:
        ValueError: if it is not two finite numbers, the second above the first.
    """
    if window is None:
        return None
    try:
        low, high = (float(end) for end in window)
    except (TypeError, ValueError):
        low = high = float("nan")
    if not (np.isfinite([low, high]).all() and low < high):
        raise InvalidValue(
            f"{name} is {shown(window)}; give two finite numbers, the second above the first, as stored in the files."
        )
    return low, high
