import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive.views import PatchMask


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(0, 4),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    patch=st.integers(1, 20),
    ratio=st.sampled_from([0.0, 0.15, 0.6]),
)
def test_hides_whole_patches_and_no_more_than_their_share(batch, channels, height, width, patch, ratio):
    images = 0.6 + torch.rand(batch, channels, height, width, generator=seeded(1))
    before = images.clone()
    spread = min(ratio, 0.1)
    result = PatchMask(patch, ratio, spread)(images, seeded())
    assert torch.equal(images, before)
    assert result.shape == images.shape
    hidden = result == 0.5
    assert torch.equal(result[~hidden], images[~hidden])
    assert (hidden == hidden[:, :1]).all()  # all channels alike
    rows, columns = -(-height // patch), -(-width // patch)
    for one in hidden[:, 0]:
        patches = [part for row in one.split(patch) for part in row.split(patch, 1)]
        assert all(part.all() or not part.any() for part in patches)
        share = (ratio + spread) * rows * columns
        assert sum(bool(part.all()) for part in patches) <= round(share + 1e-6)


def test_the_share_is_that_asked_for():
    shares = PatchMask(ratio=0.3, spread=0.1).draw(2000, (14, 14), torch.device("cpu"), seeded())
    shares = shares.double().mean((1, 2))
    assert 0.24 < float(shares.mean()) <= 0.3
    assert float(shares.max()) == pytest.approx(0.4, abs=0.01)
    assert float(shares.min()) < 0.21
    fixed = PatchMask(ratio=0.3, spread=0.0).draw(200, (14, 14), torch.device("cpu"), seeded())
    assert int(fixed.sum((1, 2)).max()) == round(0.3 * 14 * 14)


def test_patches_are_hidden_in_blocks_of_any_shape():
    hidden = PatchMask(ratio=0.3, spread=0.0).draw(500, (14, 14), torch.device("cpu"), seeded())
    # Control: as many patches, each drawn by itself.
    scattered = torch.rand(500, 196, generator=seeded(1)).argsort(1).view(500, 14, 14) < 59

    def pairs(mask):
        return (mask[:, 1:] & mask[:, :-1]).sum() / mask.sum()

    assert pairs(hidden) > 2 * pairs(scattered)
    heights, widths = hidden.any(2).sum(1), hidden.any(1).sum(1)
    assert (heights > 2 * widths).any()
    assert (widths > 2 * heights).any()
    assert hidden.any(0).all()  # anywhere in the image


def test_randomness_comes_from_the_generator():
    images = torch.rand(6, 1, 32, 32)
    mask = PatchMask(4, 0.3)
    assert torch.equal(mask(images, seeded(3)), mask(images, seeded(3)))
    assert not torch.equal(mask(images, seeded(3)), mask(images, seeded(4)))
    torch.manual_seed(5)
    first = mask(images)
    torch.manual_seed(5)
    assert torch.equal(mask(images), first)


def test_fills_with_one_value_a_channel():
    images = torch.rand(8, 3, 32, 32)
    result = PatchMask(8, 0.5, fill=(-1.0, 2.0, 3.0))(images, seeded())
    hidden = result[:, 0] == -1
    assert hidden.any()
    assert (result[:, 1][hidden] == 2).all()
    assert (result[:, 2][hidden] == 3).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: PatchMask(0), "side of a patch"),
        (lambda: PatchMask(ratio=0.1, spread=0.2), r"must lie in \[0, 1\)"),
        (lambda: PatchMask(ratio=0.9, spread=0.1), r"must lie in \[0, 1\)"),
        (lambda: PatchMask(aspect=0), "above 0 and at most 1"),
        (lambda: PatchMask()(torch.rand(3, 32, 32)), r"floating-point batch \(B, C, H, W\)"),
        (lambda: PatchMask()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), "torch.uint8"),
        (lambda: PatchMask(fill=(0.1, 0.2))(torch.rand(1, 3, 8, 8)), "fill has 2 values"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
