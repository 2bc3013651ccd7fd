"""Colour operations against torchvision's on the same parameters."""

from itertools import permutations

import pytest
import torch
import torchvision.transforms.functional as TF

from contrastive.views.colour import GREY, apply_colour, colour_map, gaussian_blur, solarise

COUNT = 6


@pytest.fixture
def images():
    """Values between 0.3 and 0.6, which no operation below takes out of [0, 1]."""
    return 0.3 + 0.3 * torch.rand(COUNT, 3, 9, 11, generator=torch.Generator().manual_seed(0))


def adjust(images, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0):
    factors = (torch.as_tensor(x).expand(len(images)) for x in (brightness, contrast, saturation, hue))
    matrix, mean_gain = colour_map(*factors, channels=images.shape[1])
    return apply_colour(images, matrix, mean_gain, torch.empty_like(images))


def chroma(images):
    return images - images.mean(1, keepdim=True)


def grey(images):
    return torch.einsum("bchw,c->bhw", images, torch.tensor(GREY))


def test_nothing_to_do_leaves_images_unchanged(images):
    torch.testing.assert_close(adjust(images), images, atol=1e-6, rtol=0)
    torch.testing.assert_close(adjust(images[:, :1]), images[:, :1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_factors_equal_torchvision(images, name, channels):
    images = images[:, :channels]
    factors = torch.linspace(0.5, 1.5, COUNT)
    expected = [getattr(TF, f"adjust_{name}")(x, f) for x, f in zip(images, factors.tolist(), strict=True)]
    torch.testing.assert_close(adjust(images, **{name: factors}), torch.stack(expected), atol=1e-5, rtol=0)


def test_saturation_zero_is_torchvisions_grey(images):
    expected = TF.rgb_to_grayscale(images, num_output_channels=3)
    torch.testing.assert_close(adjust(images, saturation=0.0), expected, atol=1e-5, rtol=0)
    # also when other operations come before
    jittered = adjust(images, 1.1, 0.8, 1.2, 0.05)
    expected = TF.rgb_to_grayscale(jittered, num_output_channels=3)
    torch.testing.assert_close(adjust(images, 1.1, 0.8, 0.0, 0.05), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("order", list(permutations(["brightness", "contrast", "saturation"])), ids="-".join)
def test_every_order_of_torchvisions_operations_gives_the_same(images, order):
    factors = {"brightness": 1.2, "contrast": 0.7, "saturation": 1.3}
    expected = images
    for name in order:
        expected = getattr(TF, f"adjust_{name}")(expected, factors[name])
    # GREY sums to 0.9999, so grey of grey is off by 1e-4 of itself and orders differ by as little
    torch.testing.assert_close(adjust(images, **factors), expected, atol=1e-4, rtol=0)
    assert (adjust(images, **factors) - images).abs().max() > 0.05


def test_hue_commutes_with_the_other_operations(images):
    before = adjust(adjust(images, hue=0.1), brightness=1.2, contrast=0.7, saturation=0.8)
    after = adjust(adjust(images, brightness=1.2, contrast=0.7, saturation=0.8), hue=0.1)
    torch.testing.assert_close(before, after, atol=1e-4, rtol=0)
    torch.testing.assert_close(before, adjust(images, 1.2, 0.7, 0.8, 0.1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("hue", [-0.5, -0.1, 0.02, 0.1, 0.25])
def test_hue_keeps_grey_values_and_grey_images(images, hue):
    shifted = adjust(images, hue=hue)
    torch.testing.assert_close(grey(shifted), grey(images), atol=2e-4, rtol=0)  # GREY sums to 0.9999
    assert (shifted - images).abs().max() > 0.01
    flat = images[:, :1].expand(-1, 3, -1, -1).contiguous()
    torch.testing.assert_close(adjust(flat, hue=hue), flat, atol=2e-4, rtol=0)


@pytest.mark.parametrize("turns", [-1 / 3, 1 / 3, 2 / 3])
def test_hue_by_a_third_of_a_turn_is_torchvisions_but_for_a_grey_shift(images, turns):
    expected = TF.adjust_hue(images, turns if turns < 0.5 else turns - 1)
    torch.testing.assert_close(chroma(adjust(images, hue=turns)), chroma(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("hue", [-0.1, -0.02, 0.02, 0.1])
def test_hue_is_close_to_torchvisions_in_chroma(images, hue):
    expected = chroma(TF.adjust_hue(images, hue))
    change = (expected - chroma(images)).abs().mean()
    assert (chroma(adjust(images, hue=hue)) - expected).abs().mean() < 0.4 * change
    assert (
        chroma(adjust(images, hue=-hue)) - expected
    ).abs().mean() > change  # the other way round is far off


def test_values_are_clamped_once_at_the_end():
    images = torch.tensor([0.9, 0.4, 0.1]).view(1, 3, 1, 1)
    # Brightness 2 alone saturates red; contrast 0.5 afterwards would see it at 1, here it sees 1.8.
    mean = 2 * sum(weight * value for weight, value in zip(GREY, (0.9, 0.4, 0.1), strict=True))
    expected = [0.5 * 2 * value + 0.5 * mean for value in (0.9, 0.4, 0.1)]
    result = adjust(images, brightness=2.0, contrast=0.5).flatten()
    torch.testing.assert_close(result, torch.tensor(expected).clamp(max=1), atol=1e-6, rtol=0)
    assert result[0] == 1


@pytest.mark.parametrize(("channels", "size", "width"), [(1, 8, 3), (3, 32, 3), (3, 64, 7), (3, 224, 23)])
def test_blur_equals_torchvision(channels, size, width):
    images = torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 0.7, 1.3, 2.0])
    expected = [
        TF.gaussian_blur(x, [width, width], [s, s]) for x, s in zip(images, sigma.tolist(), strict=True)
    ]
    torch.testing.assert_close(gaussian_blur(images, sigma), torch.stack(expected), atol=1e-5, rtol=0)


def test_solarise_equals_torchvision():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    floats = images / 255
    torch.testing.assert_close(solarise(floats), TF.solarize(floats, 0.5), atol=1e-7, rtol=0)
    torch.testing.assert_close(solarise(floats), TF.solarize(images, 128) / 255, atol=1e-6, rtol=0)
