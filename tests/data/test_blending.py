import numpy as np
import pytest
import torch

from contrastive.data import BlendedData, ImageData, blend

REFERENCE = "tests/reference/sepclr-data-blend.npz"


@pytest.fixture(scope="module")
def data() -> BlendedData:
    data = BlendedData(batch_size=100)
    data.setup()
    return data


def overlay_shown(images):
    """Whether the middle of a blended image is brighter than a dimmed background can be."""
    return images.amax((1, 2, 3)) > 0.5


def test_official_images(pytestconfig):
    with np.load(pytestconfig.rootpath / REFERENCE) as arrays:
        photos, digits, images = (torch.from_numpy(arrays[k]) for k in ("cifar", "digits", "images"))
    photos = photos.permute(0, 3, 1, 2)
    blended = torch.cat([blend(photos[:3]), blend(photos[3:], digits[3:])])
    torch.testing.assert_close(blended, images, rtol=0, atol=1e-7)


def test_weight_of_the_background():
    background, overlay = torch.full((1, 3, 4, 4), 200).byte(), torch.full((1, 2, 2), 100).byte()
    image = blend(background, overlay, weight=0.75)
    assert image[0, :, 0, 0].tolist() == pytest.approx([150 / 255] * 3)
    assert image[0, :, 2, 2].tolist() == pytest.approx([175 / 255] * 3)


@pytest.mark.parametrize("shape", [(2, 3, 3), (1, 5, 3)])
def test_overlays_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="one overlay for each background"):
        blend(torch.zeros(1, 3, 4, 4).byte(), torch.zeros(shape).byte())


def test_half_are_targets_and_the_factors_do_not_tell_of_each_other(data):
    for factors, images in zip(data.factors, (data.inputs.train, data.inputs.test), strict=True):
        count = len(images)
        assert int((factors.overlay < 0).sum()) == count // 2
        assert torch.equal(overlay_shown(images), factors.overlay >= 0)
        for of_split in (factors.overlay < 0, factors.overlay >= 0):
            share = factors.background[of_split].bincount(minlength=10) / of_split.sum()
            assert share.tolist() == pytest.approx([0.1] * 10, abs=0.002)
        targets = factors.overlay >= 0
        pairs = (factors.overlay[targets] * 10 + factors.background[targets]).bincount(minlength=100).double()
        expected = pairs.sum() / 100
        assert float(((pairs - expected) ** 2 / expected).sum()) < 145  # chi-squared, 99 degrees: p > 0.001


def test_labels_are_zero_for_background_and_name_the_overlay(data):
    train, _ = data.factors
    assert torch.equal(data.known.train_labels, train.overlay + 1)
    assert data.class_names == ["background", *map(str, range(10))]
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs.shape == (100, 3, 32, 32)
    assert batch.inputs.dtype == torch.float32
    assert torch.equal(overlay_shown(batch.inputs), batch.labels > 0)
    for batch in data.test_dataloader():  # in order, but mixed
        assert 0.3 < float((batch.labels > 0).double().mean()) < 0.7


def test_overlays_are_those_of_the_same_split_and_used_equally_often(data):
    overlays = data.opened[1]
    for plan, split in zip(data._plan, (overlays.train, overlays.test), strict=True):
        targets = plan.factors.overlay >= 0
        rows = plan.overlay_rows[targets]
        assert torch.equal(split.labels[rows], plan.factors.overlay[targets])
        uses = rows.bincount(minlength=len(split.labels))
        assert int(uses.max()) - int(uses.min()) <= 1


def test_the_same_seed_blends_the_same_and_another_does_not(data):
    assert BlendedData().fingerprint == data.fingerprint
    assert BlendedData(seed=1).fingerprint != data.fingerprint


def test_a_limit_keeps_the_share_of_every_class():
    data = BlendedData(limit=400)
    train, test = data.factors
    assert train.background.bincount().tolist() == [40] * 10
    assert len(test.background) == 400
    assert data.num_samples == 360


def test_textures_are_a_source_of_images_too():
    data = ImageData("textures", size=16)
    assert data.num_classes == 10
    assert data.image_shape == (3, 16, 16)
    assert data.known.test_size == 700
    assert torch.equal(data.inputs.train, ImageData("textures", size=16).inputs.train)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"overlay_size": 40}, "an overlay of at least one pixel that is not larger"),
        ({"background_weight": 1.0}, "a share above 0 and below 1"),
        ({"limit": -1}, "limit=-1"),
    ],
)
def test_wrong_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        BlendedData(**wrong)


def test_a_source_without_test_set_or_labels_is_refused(write_images):
    folder = write_images({"cat/1.png": 10, "dog/2.png": 20})
    with pytest.raises(ValueError, match="the source has no test set"):
        BlendedData(background=str(folder)).setup()
    folder = write_images({"plain/train/1.png": 10, "plain/test/2.png": 20}) / "plain"
    with pytest.raises(ValueError, match=r"overlay=.*the source has no labels"):
        BlendedData(overlay=str(folder)).setup()
