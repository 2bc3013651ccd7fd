"""Recipes and views: what comes out, how often, from which random numbers, and what is refused."""

from dataclasses import replace

import pytest
import torch
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

import contrastive
from contrastive.views import MultiCrop, Recipe, SimCLRViews, Views, views

PLAIN = Recipe(16, crop_scale=(1.0, 1.0), flip=0.0, jitter_probability=0.0, grey=0.0)
"""A recipe without randomness: square images are only resized."""

EVERYTHING = Recipe(16, rotation=20.0, blur=0.5, solarise=0.5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(count=8, channels=3, height=16, width=16):
    return torch.rand(count, channels, height, width, generator=seeded(1))


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(0, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(2, 40),
    rotation=st.sampled_from([0.0, 30.0]),
    dtype=st.sampled_from([torch.uint8, torch.float16, torch.float32, torch.float64]),
)
def test_shape_dtype_and_range(batch, channels, height, width, size, rotation, dtype):
    images = random_images(batch, channels, height, width)
    images = (images * 255).to(dtype) if dtype == torch.uint8 else images.to(dtype)
    make = SimCLRViews(size, views=3, rotation=rotation, blur=0.5, solarise=0.5)
    result = make(images, seeded())
    assert len(result) == make.num_views == 3
    for view in result:
        assert view.shape == (batch, channels, size, size)
        assert view.dtype == torch.float32
        assert view.is_contiguous()
        assert ((view >= 0) & (view <= 1)).all()


def test_crops_are_torchvisions():
    images = random_images(20, 3, 30, 40)
    recipe = replace(PLAIN, crop_scale=(0.2, 1.0), flip=0.5)
    boxes, flip, *_ = recipe.draw(images, seeded())
    (result,) = Views([recipe])(images, seeded())
    for image, box, mirrored, view in zip(
        images, torch.stack(boxes, 1).int().tolist(), flip, result, strict=True
    ):
        expected = TF.resized_crop(image, *box, [16, 16], antialias=True)
        torch.testing.assert_close(view, TF.hflip(expected) if mirrored else expected, atol=1e-5, rtol=0)


def test_without_randomness_the_image_comes_back():
    images = random_images()
    torch.testing.assert_close(Views([PLAIN])(images)[0], images, atol=1e-6, rtol=0)
    solarised = Views([replace(PLAIN, solarise=1.0)])(images)[0]
    torch.testing.assert_close(solarised, TF.solarize(images, 0.5), atol=1e-6, rtol=0)


def test_grey_images_are_a_channel_of_a_colour_image_without_colours():
    images = random_images(channels=1)
    make = SimCLRViews(16, rotation=15.0, blur=0.5, solarise=0.3)
    for one, three in zip(make(images, seeded()), make(images.expand(-1, 3, -1, -1), seeded()), strict=True):
        torch.testing.assert_close(one.expand(-1, 3, -1, -1), three, atol=1e-3, rtol=0)


def test_uint8_equals_float():
    images = (random_images() * 255).to(torch.uint8)
    make = Views([EVERYTHING, PLAIN])
    assert_same(make(images, seeded()), make(images / 255, seeded()))


def test_generator_alone_decides():
    images, make = random_images(), Views([EVERYTHING, EVERYTHING])
    before = torch.get_rng_state()
    first = make(images, seeded(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(17)
    assert_same(first, make(images, seeded(3)))
    assert not torch.equal(first[0], make(images, seeded(4))[0])
    assert not torch.equal(first[0], first[1])


def test_without_generator_the_global_one_decides():
    images, make = random_images(), Views([EVERYTHING])
    torch.manual_seed(5)
    first, second = make(images)[0], make(images)[0]
    torch.manual_seed(5)
    assert torch.equal(make(images)[0], first)
    assert not torch.equal(first, second)


def test_successive_calls_continue_the_generator():
    generator, images, make = seeded(), random_images(), Views([EVERYTHING])
    assert not torch.equal(make(images, generator)[0], make(images, generator)[0])


def test_chunks_do_not_matter(monkeypatch):
    images, make = random_images(11), Views([EVERYTHING, replace(EVERYTHING, size=9)])
    whole = make(images, seeded())
    monkeypatch.setattr(views, "_CHUNK", 4 * 3 * 16 * 16)
    for one, other in zip(whole, make(images, seeded()), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_images_are_left_alone_and_gradients_do_not_flow():
    images = random_images()
    copy = images.clone()
    result = Views([EVERYTHING])(images.requires_grad_(), seeded())[0]
    assert torch.equal(images, copy)
    assert not result.requires_grad


def test_autocast_does_not_coarsen_the_views():
    images, make = random_images(), Views([EVERYTHING])
    expected = make(images, seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(make(images, seeded()), expected)


def test_changing_one_option_keeps_the_draws_of_the_others():
    images = random_images(50)
    plain = EVERYTHING.draw(images, seeded())
    changed = replace(EVERYTHING, grey=0.0, blur=0.0, jitter_probability=0.0).draw(images, seeded())
    assert_same(plain.boxes, changed.boxes)
    assert torch.equal(plain.flip, changed.flip)
    assert torch.equal(plain.degrees, changed.degrees)
    assert torch.equal(plain.solarise, changed.solarise)
    assert not torch.equal(plain.matrix, changed.matrix)


def is_grey(matrices):
    return (matrices - matrices[:, :1]).abs().amax((1, 2)) < 1e-6  # all rows alike


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_probabilities_are_tossed_per_image(probability):
    images = torch.zeros(4000, 3, 1, 1)
    recipe = Recipe(
        8,
        flip=probability,
        jitter_probability=probability,
        grey=probability,
        blur=probability,
        solarise=probability,
    )
    drawn = recipe.draw(images, seeded())
    coins = torch.stack(
        [drawn.flip, is_grey(drawn.matrix), drawn.sigma > 0, drawn.solarise, drawn.mean_gain != 0]
    )
    share = coins.float().mean(1)
    # five standard deviations of the share of 4000 tosses
    tolerance = 5 * (probability * (1 - probability) / 4000) ** 0.5
    assert ((share - probability).abs() <= tolerance).all()
    if 0 < probability < 1:  # the tosses of one image are independent of each other
        assert torch.corrcoef(coins.float()).fill_diagonal_(0).abs().max() < 0.08


def test_strengths_are_uniform_in_their_ranges():
    images = torch.zeros(4000, 1, 1, 1)
    recipe = Recipe(8, jitter=(0.4, 0.0, 0.0, 0.0), jitter_probability=1.0, rotation=10.0, blur=1.0)
    drawn = recipe.draw(images, seeded())
    for values, low, high in (
        (drawn.matrix.flatten(), 0.6, 1.4),
        (drawn.degrees, -10.0, 10.0),
        (drawn.sigma, 0.1, 2.0),
    ):
        middle, width = (low + high) / 2, high - low
        assert low <= values.min() < low + 0.01 * width
        assert high - 0.01 * width < values.max() <= high
        assert abs(values.mean() - middle) < 0.03 * width
        assert abs(values.std() - width / 12**0.5) < 0.03 * width


def test_a_brightness_strength_above_one_never_inverts():
    recipe = Recipe(8, jitter=(3.0, 0.0, 0.0, 0.0), jitter_probability=1.0)
    assert recipe.draw(torch.zeros(1000, 1, 1, 1), seeded()).matrix.min() >= 0


def test_probabilities_per_view():
    pair = SimCLRViews(224, blur=(1.0, 0.1), solarise=[0.0, 0.2])
    assert [(recipe.blur, recipe.solarise) for recipe in pair.recipes] == [(1.0, 0.0), (0.1, 0.2)]
    assert [recipe.blur for recipe in SimCLRViews(views=3, blur=0.5).recipes] == [0.5] * 3


def test_multi_crop_gives_global_views_then_local_ones():
    make = MultiCrop(24, 10, global_views=2, local_views=3, blur=[1.0, 0.1, 0.5, 0.5, 0.5])
    images = random_images(6, 3, 32, 32)
    assert make.num_views == 5
    assert [view.shape[-1] for view in make(images, seeded())] == [24, 24, 10, 10, 10]
    assert [recipe.blur for recipe in make.recipes] == [1.0, 0.1, 0.5, 0.5, 0.5]
    boxes = make.recipes[-1].draw(random_images(500, 1, 64, 64), seeded()).boxes
    share = boxes.height * boxes.width / 64**2
    assert 0.04 < share.min() < share.max() < 0.15


def test_views_can_be_named_in_yaml():
    parser = ArgumentParser()
    parser.add_argument("--views", type=Views)
    config = parser.parse_object(
        {
            "views": {
                "class_path": "contrastive.views.SimCLRViews",
                "init_args": {"size": 28, "blur": [1.0, 0.1]},
            }
        }
    )
    made = parser.instantiate(config).views
    assert [(recipe.size, recipe.blur) for recipe in made.recipes] == [(28, 1.0), (28, 0.1)]


def test_public_names():
    assert contrastive.SimCLRViews is SimCLRViews
    assert contrastive.MultiCrop is MultiCrop
    assert "blur=0.25" in repr(SimCLRViews(blur=0.25))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size of a view is 0"),
        ({"size": 1, "blur": 0.5}, "blur needs views of size at least 2"),
        ({"crop_scale": (0.0, 1.0)}, r"crop scale of a view is \(0.0, 1.0\)"),
        ({"crop_scale": (0.8, 0.2)}, "smallest <= largest"),
        ({"crop_scale": (0.2, 1.5)}, "<= 1"),
        ({"crop_scale": (0.2,)}, "crop scale"),
        ({"flip": 1.5}, "flip of a view is 1.5: it is a probability"),
        ({"grey": -0.1}, "grey of a view is -0.1"),
        ({"jitter_probability": float("nan")}, "jitter_probability of a view is nan"),
        ({"blur": [0.5, 2.0]}, "blur of a view is 2.0"),
        ({"solarise": [0.5]}, "solarise lists 1 probabilities for 2 views"),
        ({"rotation": -1.0}, "rotation of a view is -1.0"),
        ({"jitter": (0.4, 0.4, 0.4)}, "jitter of a view is"),
        ({"jitter": (0.4, 0.4, -0.4, 0.1)}, "none negative"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "hue at most 0.5"),
        ({"views": 0}, "views of SimCLRViews is 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SimCLRViews(**options)


def test_bad_numbers_of_views_are_refused():
    with pytest.raises(ValueError, match="got no recipes"):
        Views([])
    with pytest.raises(ValueError, match="global_views=0"):
        MultiCrop(global_views=0)
    with pytest.raises(ValueError, match="blur lists 2 probabilities for 8 views"):
        MultiCrop(blur=[1.0, 0.1])


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([1, 2], TypeError, "are a list: expected a tensor"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), TypeError, "tensor of torch.int64"),
        (torch.zeros(3, 8, 8), ValueError, r"shape \(3, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3), ValueError, "permute"),
        (torch.zeros(2, 3, 0, 8), ValueError, "H, W >= 1"),
        (torch.full((2, 3, 8, 8), 1.5), ValueError, "values from 1.5 to 1.5"),
        (torch.full((2, 3, 8, 8), -0.5), ValueError, "divide by 255"),
        (torch.full((2, 3, 8, 8), torch.nan), ValueError, "values from nan"),
    ],
)
def test_bad_images_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        SimCLRViews(8)(images)
