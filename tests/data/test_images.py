import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from contrastive.data.datasets import DatasetImages
from contrastive.data.images import ImageStream, JoinedImages, as_image, decode, scale

GRADIENT = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3) * 2


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_exactly(kind):
    image = decode(encoded(Image.fromarray(GRADIENT), kind), 3)
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0), GRADIENT)


def test_jpeg_agrees_with_pillow():
    smooth = Image.fromarray(GRADIENT).resize((40, 48), Image.Resampling.BILINEAR)
    content = encoded(smooth, "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    assert np.abs(decode(content, 3).permute(1, 2, 0).numpy() - expected).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_grey_weights_of_both_decoders(kind):
    image = decode(encoded(Image.fromarray(GRADIENT), kind), 1)
    expected = GRADIENT @ [0.299, 0.587, 0.114]
    assert image.shape == (1, 6, 5)
    assert np.abs(image[0].numpy() - expected).max() <= 1


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (4, 3), 1), [255, 255, 255]),
        (Image.new("L", (4, 3), 7), [7, 7, 7]),
        (Image.new("LA", (4, 3), (7, 100)), [7, 7, 7]),
        (Image.new("RGBA", (4, 3), (1, 2, 3, 100)), [1, 2, 3]),
        (Image.fromarray(np.full((3, 4), 0x1234, dtype=np.uint16)), [0x12, 0x12, 0x12]),
    ],
    ids=["1 bit", "grey", "grey and alpha", "RGBA", "16 bits"],
)
def test_png_modes_become_rgb(image, expected):
    decoded = decode(encoded(image, "PNG"), 3)
    assert decoded.shape == (3, 3, 4)
    assert decoded.dtype == torch.uint8
    assert decoded[:, 0, 0].tolist() == expected


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_rotated_photographs_are_turned_upright(kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert decode(encoded(Image.new("RGB", (4, 2)), kind, exif=exif), 3).shape == (3, 4, 2)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff broken", b"\x89PNG broken"])
def test_broken_bytes_are_refused(content):
    with pytest.raises(ValueError, match=r"."):
        decode(content, 3)


def test_truncated_files_are_refused():
    for kind in ("PNG", "JPEG", "BMP"):
        content = encoded(
            Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)), kind
        )
        with pytest.raises(ValueError, match=r"."):
            decode(content[: len(content) // 2], 3)


@settings(deadline=None)
@given(
    height=st.integers(1, 5),
    width=st.integers(5, 9),
    channels=st.integers(1, 4),
    wanted=st.sampled_from([1, 3]),
)
def test_arrays_tensors_and_floats_agree(height, width, channels, wanted):
    generator = np.random.default_rng(height * width)
    array = generator.integers(0, 256, (height, width, channels), dtype=np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    image = as_image(array, wanted)
    assert image.shape == (wanted, height, width)
    assert image.dtype == torch.uint8
    assert torch.equal(image, as_image(tensor, wanted))
    assert torch.equal(image, as_image(tensor / 255, wanted))
    if channels == 1:
        assert torch.equal(image, as_image(array[..., 0], wanted))


def test_a_read_only_array_is_accepted():
    array = np.zeros((2, 2), np.uint8)
    array.flags.writeable = False
    assert as_image(array, 1).shape == (1, 2, 2)


@pytest.mark.parametrize(
    "value",
    [
        "cat.png",
        np.zeros((2, 2, 5), np.uint8),
        np.zeros((2, 2), np.int64),
        torch.full((3, 2, 2), 255.0),
        torch.zeros(2),
        Image.new("F", (2, 2)),
    ],
    ids=["text", "5 channels", "int64", "floats to 255", "1-D", "PIL float"],
)
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match=r"use|convert"):
        as_image(value, 3)


def test_scale_keeps_the_aspect_and_cuts_the_centre():
    image = torch.zeros(1, 4, 12, dtype=torch.uint8)
    image[:, :, 4:8] = 200
    assert torch.equal(scale(image, (4, 4)), torch.full((1, 4, 4), 200, dtype=torch.uint8))
    assert scale(image, (4, 12)) is image


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 4))
def test_scale_gives_the_size_and_keeps_a_plain_colour(sizes):
    image = torch.full((3, *sizes[:2]), 77, dtype=torch.uint8)
    assert torch.equal(scale(image, sizes[2:]), torch.full((3, *sizes[2:]), 77, dtype=torch.uint8))


def test_stream_and_memory_hold_the_same_images():
    arrays = [np.full((4, 4), i % 256, np.uint8) for i in range(600)]  # more than two blocks
    stream = ImageStream(DatasetImages(arrays), 3, (2, 2))
    loaded = stream.load()
    assert loaded.shape == (600, 3, 2, 2)
    assert loaded[:, 1, 1, 1].tolist() == [i % 256 for i in range(600)]
    rows = torch.tensor([599, 3, 3])
    assert torch.equal(stream[rows], loaded[rows])


@pytest.mark.parametrize(
    "read", [lambda stream: stream.load(), lambda stream: stream[torch.tensor([0, 300])]]
)
def test_images_of_different_sizes_are_named(read):
    arrays = [np.zeros((4, 4), np.uint8)] * 300 + [np.zeros((4, 5), np.uint8)]
    with pytest.raises(ValueError, match=r"list\[300\] has \(3, 4, 5\).*size=") as caught:
        read(ImageStream(DatasetImages(arrays), 3, None))
    assert "list[0] has (C, H, W) = (3, 4, 4)" in str(caught.value)
    assert read(ImageStream(DatasetImages(arrays), 3, (4, 4))).shape[1:] == (3, 4, 4)


def test_joined_images_keep_their_places():
    parts = [
        DatasetImages([np.full((1, 1), value, np.uint8) for value in values]) for values in ([1], [2, 3], [4])
    ]
    joined = JoinedImages(parts)
    assert len(joined) == 4
    assert [int(joined.read(i, 1)) for i in range(4)] == [1, 2, 3, 4]
    assert [joined.where(i) for i in range(4)] == ["list[0]", "list[0]", "list[1]", "list[0]"]
    assert joined.stamp(2) == "list[1]"
