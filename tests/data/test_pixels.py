"""Range, transparency and what check_data says of both."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from contrastive.data import ImageData, check_data
from contrastive.data.images import as_image, decode
from contrastive.data.pixels import scale
from contrastive.errors import InvalidValue


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def ramp(low: int, high: int, side: int = 64, kind=np.uint16) -> np.ndarray:
    return np.linspace(low, high, side * side).astype(kind).reshape(side, side)


def data_of(folder, arrays, kind="PNG", ending="png", **options) -> ImageData:
    for i, array in enumerate(arrays):
        (folder / f"{i}.{ending}").write_bytes(encoded(Image.fromarray(array), kind))
    return ImageData(str(folder), channels=1, validation_fraction=0.0, **options)


# ------------------------------------------------------------------ range


@pytest.mark.parametrize(("kind", "ending"), [("PNG", "png"), ("TIFF", "tif"), ("PPM", "pgm")])
def test_16_bits_keep_their_levels(tmp_path, kind, ending):
    data = data_of(tmp_path, [ramp(0, 65535)] * 2, kind, ending)
    images = data.inputs.train
    assert images.dtype == torch.float32
    assert images[0].unique().numel() == 4096
    assert torch.allclose(
        images[0, 0], torch.from_numpy(ramp(0, 65535).astype(np.float32)) / 65535, atol=1e-7
    )
    assert check_data(data).warnings == []


def test_12_bits_in_16_are_warned_of_and_fill_a_window(tmp_path):
    data = data_of(tmp_path, [ramp(0, 4095)] * 2)
    assert data.inputs.train.unique().numel() == 4096  # dark, and nothing is lost
    report = check_data(data)
    assert report.ok
    assert "17 of 256 grey levels are used, from 0 to 16" in str(report)
    assert "values go from 4 to 4091: set window=[4, 4091]" in str(report)
    assert "fine" not in str(report)
    assert "grey levels" in data.notes["warning"]
    wide = ImageData(str(tmp_path), channels=1, validation_fraction=0.0, window=(0, 4095))
    assert torch.allclose(wide.inputs.train[0, 0], torch.from_numpy(ramp(0, 4095).astype(np.float32)) / 4095)
    assert check_data(wide).warnings == []
    assert "warning" not in wide.notes
    assert wide.notes["window"] == "0 to 4095"


def test_a_window_cuts_at_both_ends_and_percentiles_find_it(tmp_path):
    data = data_of(tmp_path, [ramp(900, 1300), ramp(900, 1300)], window=(1000, 1200))
    values = data.inputs.train[0, 0]
    expected = ((ramp(900, 1300).astype(np.float32) - 1000) / 200).clip(0, 1)
    assert torch.allclose(values, torch.from_numpy(expected))
    assert (values.min(), values.max()) == (0, 1)
    found = ImageData(str(tmp_path), channels=1, validation_fraction=0.0, percentiles=(1, 99))
    assert found.decoding["window"] == pytest.approx((904, 1296), abs=2)
    assert found.inputs.train.unique().numel() > 300
    assert found.reading == {"window": found.decoding["window"], "background": None}
    assert found.fingerprint not in (data.fingerprint, ImageData(str(tmp_path), channels=1).fingerprint)


def test_float_pictures_need_a_window_and_keep_their_values(tmp_path):
    values = np.linspace(-1000, 1000, 4096, dtype=np.float32).reshape(64, 64)
    values[0, 0] = np.nan
    data = data_of(tmp_path, [values], "TIFF", "tif")
    with pytest.raises(
        InvalidValue, match=r"0\.tif: PIL mode 'F' has no fixed range; set window=\(min, max\)"
    ):
        _ = data.inputs
    assert not check_data(data).ok
    found = data_of(tmp_path, [values], "TIFF", "tif", percentiles=(0, 100)).inputs.train[0, 0]
    assert found.flatten()[1:].diff().min() > 0
    assert (found[0, 0], found.max()) == (0, 1)


def test_arrays_of_16_bits_and_floats_keep_their_values():
    deep = [ramp(0, 65535, 8), ramp(100, 60000, 8)]
    images = ImageData([*deep], channels=3, validation_fraction=0.0).inputs.train
    assert images.shape == (2, 3, 8, 8)
    assert torch.allclose(images[1, 2], torch.from_numpy(deep[1].astype(np.float32)) / 65535)
    floats = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ImageData(list(floats), channels=1, validation_fraction=0.0).inputs.train, floats)
    bytes_as_floats = (floats * 255).round() / 255
    assert ImageData(list(bytes_as_floats), channels=1).inputs.train.dtype == torch.uint8


@pytest.mark.parametrize("channels", [1, 3])
def test_8_bits_stay_bytes_and_follow_a_window(tmp_path, channels):
    array = ramp(0, 255, 16, np.uint8)
    (tmp_path / "1.png").write_bytes(encoded(Image.fromarray(array)))
    plain = ImageData(str(tmp_path), channels=channels)
    assert plain.inputs.train.dtype == torch.uint8
    wide = ImageData(str(tmp_path), channels=channels, window=(0, 255))
    assert torch.allclose(wide.inputs.train, plain.inputs.train / 255, atol=1e-6)


def test_streams_read_through_the_window_too(tmp_path):
    options = {"window": (0, 4095), "size": 16, "batch_size": 2}
    data = data_of(tmp_path, [ramp(0, 4095)] * 2, in_memory=False, **options)
    batch = next(iter(data.train_dataloader())).inputs
    assert (batch.dtype, batch.shape) == (torch.float32, (2, 1, 16, 16))
    assert torch.equal(batch[0], data_of(tmp_path, [ramp(0, 4095)] * 2, **options).inputs.train[0])
    other = data_of(tmp_path, [ramp(0, 4095)] * 2, in_memory=False, **options | {"window": (0, 4000)})
    assert other.fingerprint != data.fingerprint


def test_scale_of_floats_is_not_rounded():
    image = torch.rand(1, 9, 7, generator=torch.Generator().manual_seed(0))
    assert scale(image, (3, 3)).unique().numel() == 9
    assert scale(image, (3, 3)).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": (1, 1)}, "window is"),
        ({"window": (0, float("nan"))}, "window is"),
        ({"window": 7}, "window is"),
        ({"percentiles": (1, 101)}, "percentiles"),
        ({"window": (0, 1), "percentiles": (1, 99)}, "give one of the two"),
        ({"background": "textures"}, "give 'white', 'black', 'grey' or three numbers"),
        ({"background": (0, 0, 256)}, "background is 256"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InvalidValue, match=message):
        ImageData(**options)


# ------------------------------------------------------------------ few levels


def test_drawings_in_few_levels_of_the_whole_range_are_fine(tmp_path):
    drawing = np.where(np.eye(16, dtype=bool), 255, 0).astype(np.uint8)
    assert check_data(data_of(tmp_path, [drawing])).warnings == []
    assert check_data(ImageData("digits", size=8)).warnings == []


def test_pictures_of_one_tone_are_warned_of(tmp_path):
    (warning,) = check_data(data_of(tmp_path, [ramp(3, 15, 16, np.uint8)])).warnings
    assert "13 of 256 grey levels are used, from 3 to 15" in warning


def test_burnt_in_letters_do_not_hide_dark_pictures(tmp_path):
    scan = ramp(900, 1300)
    scan[:4, :20] = 65535  # two in a hundred values
    (warning,) = check_data(data_of(tmp_path, [scan])).warnings
    assert "of 256 grey levels" in warning


# ------------------------------------------------------------------ transparency


HOLE = np.zeros((4, 4, 4), np.uint8)
HOLE[..., :3], HOLE[:2, :, 3] = (10, 200, 30), 255  # the lower half is transparent, green under it


def palette() -> bytes:
    image = Image.fromarray(HOLE[..., :3]).convert("P", palette=Image.Palette.ADAPTIVE)
    pixels = np.array(image)
    pixels[2:] = 200
    image = Image.fromarray(pixels)
    image.putpalette([10, 200, 30] * 256)
    return encoded(image, transparency=200)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "array", "tensor"])
def test_a_background_stands_under_transparent_pixels(kind):
    image = Image.fromarray(HOLE)
    value = {
        "RGBA": lambda: encoded(image),
        "LA": lambda: encoded(image.convert("LA")),
        "P": palette,
        "array": lambda: HOLE,
        "tensor": lambda: torch.from_numpy(HOLE).movedim(-1, 0),
    }[kind]()
    read = decode if isinstance(value, bytes) else as_image
    plain, white = read(value, 3), read(value, 3, background=(255, 255, 255))
    assert torch.equal(plain[:, 0], white[:, 0])
    assert plain[:, 3].float().mean() < 160
    assert (white[:, 3] == 255).all()
    grey = read(value, 1, "own", (128, 128, 128))
    assert grey[0, 3].tolist() == pytest.approx([128 / 255] * 4, abs=1e-6)


def test_half_transparent_pixels_are_mixed():
    half = np.full((2, 2, 4), (0, 0, 200, 128), np.uint8)
    for value in (encoded(Image.fromarray(half)), half):
        read = decode if isinstance(value, bytes) else as_image
        assert read(value, 3, background=(255, 255, 255))[:, 0, 0].tolist() == [127, 127, 227]


def test_transparent_pictures_are_told(tmp_path):
    (tmp_path / "1.png").write_bytes(encoded(Image.fromarray(HOLE)))
    (tmp_path / "2.png").write_bytes(encoded(Image.fromarray(ramp(0, 255, 8, np.uint8)).convert("RGBA")))
    text = str(check_data(ImageData(str(tmp_path), size=4)))
    assert "train: 1 images are transparent in parts" in text
    assert "background=white" in text
    shown = ImageData(str(tmp_path), size=4, background="white")
    assert "transparent" not in str(check_data(shown))
    assert (shown.inputs.train[0, :, 3] == 255).all()


# ------------------------------------------------------------------ further words of check_data


def test_the_same_pixels_with_two_labels_are_told(write_images):
    root = write_images({"cat/1.png": 9, "dog/2.png": 9, "dog/3.png": 9, "dog/4.png": 200})
    text = str(check_data(ImageData(str(root))))
    assert "2 images have the pixels of another one with another label" in text
    assert "1.png (cat) and " in text


def test_frames_and_colours_of_16_bits_are_told(tmp_path):
    frames = [Image.new("RGB", (4, 4), (i, 0, 255)) for i in range(3)]
    frames[0].save(tmp_path / "1.tif", save_all=True, append_images=frames[1:])
    (tmp_path / "2.png").write_bytes(PNG_48)
    text = str(check_data(ImageData(str(tmp_path), size=1)))
    assert "1 images have several frames or pages" in text
    assert "1 images have 16 bits a colour" in text


def _png_48() -> bytes:
    """One pixel of three times 16 bits, which Pillow does not write."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">HHH", 1000, 30000, 60000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


PNG_48 = _png_48()


def test_images_of_one_value_get_no_advice_of_a_window(tmp_path):
    (warning,) = check_data(data_of(tmp_path, [np.full((4, 4), 7, np.uint8)])).warnings
    assert "nearly every value is 7" in warning
    assert "window" not in warning
