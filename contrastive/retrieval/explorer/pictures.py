"""Image files that nobody vouches for: decoded within limits, or refused."""

import io
import math

from PIL import Image, ImageOps

from contrastive.errors import InvalidValue

MOST_PIXELS = 50_000_000
KEPT_PIXELS = 16_000_000  # what is larger is made smaller while it is decoded, or at once after that
MOST_THUMBNAIL_PIXELS = 1 << 22
FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "GIF",
)  # decoders of rare formats are where Pillow's faults are found
PNG = b"\x89PNG\r\n\x1a\n"


class TooLarge(InvalidValue):
    """More pixels than are accepted."""


def decode(content: bytes) -> Image.Image:
    """Decode an image file, upright, to at most about :data:`KEPT_PIXELS`.

    Raises:
        TooLarge: it has more than :data:`MOST_PIXELS`, as its header says: nothing is decoded then.
        ValueError: it is no image of a supported format, or is damaged.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            count = picture.width * picture.height
            if count > MOST_PIXELS:
                raise TooLarge(
                    f"the image has {picture.width} x {picture.height} pixels; at most {MOST_PIXELS:,} are accepted; "
                    "scale it down"
                )
            factor = math.ceil(math.sqrt(count / KEPT_PIXELS))
            if factor > 1:  # a JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, without ever being whole
                picture.draft(None, (max(1, picture.width // factor), max(1, picture.height // factor)))
                count = picture.width * picture.height
            if count <= KEPT_PIXELS:
                return ImageOps.exif_transpose(picture)
            smaller = _reduced(picture, factor)
            smaller.getexif().update(picture.getexif())  # which says where the top is
            return ImageOps.exif_transpose(smaller)
    except InvalidValue:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # by the header, too
        raise TooLarge(f"the image has too many pixels ({error}); scale it down") from error
    except Exception as error:  # whatever a decoder makes of bytes that somebody thought out
        raise InvalidValue(
            f"the file is not an image that can be read ({error}); send one of {', '.join(FORMATS)}"
        ) from error


def _reduced(picture: Image.Image, factor: int) -> Image.Image:
    """The means of squares of pixels; images of a mode that has no means, of 16 bits, stay as they are."""
    if picture.mode == "1":
        picture = picture.convert("L")
    elif picture.mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode.startswith("I;"):
        return picture
    # Band by band: colours under transparent pixels are kept, as where images are read whole.
    return Image.merge(picture.mode, [band.reduce(factor) for band in picture.split()])


def is_whole_png(content: bytes) -> bool:
    """Whether this is one PNG from the first byte to the last, of bounded size, that can be decoded."""
    place, kind = len(PNG), b""
    while kind != b"IEND" and place + 12 <= len(content):
        kind = content[place + 4 : place + 8]
        place += 12 + int.from_bytes(content[place : place + 4], "big")
    if not content.startswith(PNG) or kind != b"IEND" or place != len(content):
        return False
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            if picture.width * picture.height > MOST_THUMBNAIL_PIXELS:
                return False
            picture.load()
    except Exception:  # whatever a decoder makes of bytes that somebody thought out
        return False
    return True
