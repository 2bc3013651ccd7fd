"""Crop, resize, flip and rotation against torchvision's operations on the same parameters."""

import pytest
import torch
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from contrastive.views import sampling
from contrastive.views.sampling import RATIO, TRIES, Boxes, Scratch, random_boxes, resample_rotated


def draw_boxes(count, shape, scale, seed=0):
    uniform = torch.rand(2 * TRIES + 2, count, generator=torch.Generator().manual_seed(seed))
    return random_boxes(uniform, shape, scale)


def resample(images, boxes, flip, size):
    return sampling.resample(images, boxes, flip, size, Scratch())


def random_images(count, channels, height, width):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def torchvision_crops(images, boxes, flip, size, shift=0):
    crops = []
    for image, box, mirrored in zip(images, torch.stack(boxes, 1).int().tolist(), flip.tolist(), strict=True):
        top, left, height, width = box
        crop = TF.resized_crop(image, top + shift, left, height, width, [size, size], antialias=True)
        crops.append(TF.hflip(crop) if mirrored else crop)
    return torch.stack(crops)


SHAPES = [
    pytest.param(3, 32, 32, 32, id="same"),
    pytest.param(1, 28, 28, 32, id="grey-grows"),
    pytest.param(3, 24, 30, 40, id="rectangle-grows"),
    pytest.param(3, 40, 52, 17, id="rectangle-shrinks"),
    pytest.param(3, 60, 20, 32, id="shrinks-and-grows"),
    pytest.param(3, 9, 7, 1, id="one-pixel"),
    pytest.param(3, 100, 140, 96, id="large"),
]


@pytest.mark.parametrize(("channels", "height", "width", "size"), SHAPES)
def test_resample_equals_torchvision(channels, height, width, size):
    images = random_images(12, channels, height, width)
    boxes = draw_boxes(12, (height, width), (0.1, 1.0))
    flip = torch.arange(12) % 3 == 0
    result = resample(images, boxes, flip, size)
    torch.testing.assert_close(result, torchvision_crops(images, boxes, flip, size), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [20, 48])
def test_both_ways_of_resampling_agree(monkeypatch, size):
    images, boxes = random_images(8, 3, 33, 47), draw_boxes(8, (33, 47), (0.1, 1.0))
    flip = torch.arange(8) % 2 == 0
    by_matrices = resample(images, boxes, flip, size)
    monkeypatch.setattr(sampling, "_MATRIX_LIMIT", 0)
    torch.testing.assert_close(resample(images, boxes, flip, size), by_matrices, atol=1e-5, rtol=0)


def test_comparison_with_torchvision_notices_a_box_off_by_one_pixel_and_a_missed_flip():
    images, boxes = random_images(4, 3, 32, 32), draw_boxes(4, (32, 32), (0.2, 0.5))
    flip = torch.zeros(4, dtype=torch.bool)
    boxes = boxes._replace(top=boxes.top.clamp(max=31 - boxes.height))  # leave room for the shift
    result = resample(images, boxes, flip, 32)
    assert (result - torchvision_crops(images, boxes, flip, 32, shift=1)).abs().amax((1, 2, 3)).min() > 0.1
    assert (result - torchvision_crops(images, boxes, ~flip, 32)).abs().amax((1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("size", [4, 16])
def test_pixels_outside_the_box_have_no_influence(size):
    images = random_images(1, 3, 12, 12)
    box = Boxes(*(torch.tensor([float(x)]) for x in (3, 2, 6, 7)))
    changed = 1 - images
    changed[:, :, 3:9, 2:9] = images[:, :, 3:9, 2:9]
    flip = torch.zeros(1, dtype=torch.bool)
    assert torch.equal(resample(images, box, flip, size), resample(changed, box, flip, size))


def test_resample_by_hand():
    row = torch.tensor([0.0, 0.2, 0.4, 1.0]).expand(1, 1, 4, 4)
    box = Boxes(*(torch.tensor([float(x)]) for x in (0, 1, 2, 2)))  # columns 0.2 and 0.4
    result = resample(row, box, torch.tensor([False]), 4)
    # Centres of four pixels over two: 1/4 before the first, 1/4 and 3/4 between them, 1/4 after the second.
    expected = torch.tensor([0.2, 0.2 + 0.2 / 4, 0.2 + 0.2 * 3 / 4, 0.4])
    torch.testing.assert_close(result[0, 0], expected.expand(4, 4))
    torch.testing.assert_close(
        resample(row, box, torch.tensor([True]), 4)[0, 0], expected.flip(0).expand(4, 4)
    )


def torchvision_boxes(count, shape, scale):
    torch.manual_seed(0)
    image = torch.empty(1, *shape)
    return [RandomResizedCrop.get_params(image, list(scale), list(RATIO)) for _ in range(count)]


@pytest.mark.parametrize(
    ("shape", "scale"), [((32, 32), (0.2, 1.0)), ((24, 60), (0.08, 1.0)), ((300, 200), (0.5, 0.9))]
)
def test_boxes_are_distributed_as_in_torchvision(shape, scale):
    expected = torch.tensor(torchvision_boxes(4000, shape, scale)).T
    for name, ours, theirs in zip(Boxes._fields, draw_boxes(40_000, shape, scale), expected, strict=True):
        assert ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 0.005, name


def test_comparison_of_distributions_notices_another_scale():
    expected = torch.tensor(torchvision_boxes(4000, (32, 32), (0.2, 1.0))).T
    ours = draw_boxes(40_000, (32, 32), (0.25, 1.0))
    assert ks_2samp(ours.height.numpy(), expected[2].numpy()).pvalue < 1e-6


@pytest.mark.parametrize("shape", [(4, 40), (40, 4), (5, 31)], ids=["wide", "tall", "odd"])
def test_box_falls_back_to_the_centre_as_in_torchvision(shape):
    expected = torchvision_boxes(1, shape, (1.0, 1.0))[0]  # the whole area never fits into an allowed ratio
    boxes = torch.stack(draw_boxes(50, shape, (1.0, 1.0)), 1)
    assert torch.equal(boxes, torch.tensor(expected).float().expand(50, 4))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: tuple(sorted(pair))),
)
def test_boxes_lie_inside_the_image(shape, scale):
    boxes = draw_boxes(64, shape, scale)
    assert torch.stack(boxes).frac().eq(0).all()
    assert (boxes.top >= 0).all()
    assert (boxes.left >= 0).all()
    assert (boxes.height >= 1).all()
    assert (boxes.width >= 1).all()
    assert (boxes.top + boxes.height <= shape[0]).all()
    assert (boxes.left + boxes.width <= shape[1]).all()


def test_boxes_lie_inside_the_image_for_the_largest_random_number():
    nearly_one = torch.full((2 * TRIES + 2, 1), 1 - 2**-24)
    boxes = random_boxes(nearly_one, (32, 32), (0.2, 0.5))
    assert boxes.top + boxes.height == 32
    assert boxes.left + boxes.width == 32


def whole(images):
    count, _, height, width = images.shape
    return Boxes(*(torch.full((count,), float(x)) for x in (0, 0, height, width)))


@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_equals_torchvision(mirrored):
    images = torch.zeros(5, 3, 32, 32)
    images[:, :, 10:22, 10:22] = random_images(5, 3, 12, 12)  # torchvision fills with zeros, and so does this
    degrees = torch.tensor([-30.0, -7.0, 0.0, 12.0, 45.0])
    result = resample_rotated(images, whole(images), torch.full((5,), mirrored), degrees, 32)
    for image, angle, rotated in zip(images, degrees.tolist(), result, strict=True):
        expected = TF.rotate(image, angle, InterpolationMode.BILINEAR)
        torch.testing.assert_close(rotated, TF.hflip(expected) if mirrored else expected, atol=1e-4, rtol=0)


def test_rotation_by_a_right_angle_is_counter_clockwise():
    images = random_images(2, 1, 8, 8)
    flip = torch.zeros(2, dtype=torch.bool)
    result = resample_rotated(images, whole(images), flip, torch.full((2,), 90.0), 8)
    torch.testing.assert_close(result, images.rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_rotation_by_nothing_is_the_plain_crop():
    images = random_images(6, 3, 20, 28)
    boxes = Boxes(*(torch.full((6,), float(x)) for x in (2, 3, 15, 16)))
    flip = torch.arange(6) % 2 == 0
    inner = (
        ...,
        slice(2, -2),
        slice(2, -2),
    )  # at the rim of its box the rotated crop also sees the image around
    result = resample_rotated(images, boxes, flip, torch.zeros(6), 32)
    torch.testing.assert_close(result[inner], resample(images, boxes, flip, 32)[inner], atol=1e-5, rtol=0)
