"""Encoders of other collections, by name and without a connection."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from contrastive.data.images import as_image, scale
from contrastive.encoders import published
from contrastive.encoders.fingerprint import weights_fingerprint, weights_part
from contrastive.encoders.named import NamedEncoder


def images(count: int = 2, size: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ["timm/resnet10t", "torchvision/mobilenet_v3_small"])
def test_random_weights_are_the_same_every_time(name: str) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, other = (NamedEncoder(name, pretrained=False, image_size=40) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.fingerprint == other.fingerprint
    assert weights_part(one.fingerprint) == weights_fingerprint(one.encoder.state_dict())
    assert torch.equal(one(images()), other(images()))
    assert one.preprocessing["crop"] == one.preprocessing["resize"] == one.size == 40
    assert one.preprocessing["pretrained"] is False
    assert not one.training


def test_weights_change_the_fingerprint() -> None:
    encoder = NamedEncoder("timm/resnet10t", pretrained=False, image_size=40)
    with torch.no_grad():
        next(encoder.encoder.parameters())[0] += 1e-3
    assert weights_fingerprint(encoder.encoder.state_dict()) != weights_part(encoder.fingerprint)


def test_preprocessing_changes_the_fingerprint() -> None:
    one, other = (
        NamedEncoder("timm/resnet10t", pretrained=False, image_size=size).fingerprint for size in (40, 48)
    )
    assert one != other
    assert weights_part(one) == weights_part(other)


@pytest.mark.parametrize(
    ("name", "resize", "crop"), [("timm/resnet18", 235, 224), ("torchvision/resnet18", 256, 224)]
)
def test_preprocessing_is_the_published_one(name: str, resize: int, crop: int) -> None:
    """Our batch against the transforms of the two libraries, on one photo-like image."""
    encoder = NamedEncoder(name, pretrained=False)
    assert (encoder.preprocessing["resize"], encoder.preprocessing["crop"]) == (resize, crop)
    rows = np.linspace(0, 255, 300)[:, None] * np.ones((1, 340))
    picture = Image.fromarray(np.stack([rows, rows[::-1], rows.mean() + 0 * rows], 2).astype(np.uint8))
    batch = scale(as_image(picture, 3), (encoder.size, encoder.size))[None]
    if name.startswith("timm"):
        recipe = timm.data.create_transform(
            **timm.data.resolve_model_data_config(timm.create_model("resnet18")), is_training=False
        )
    else:
        recipe = torchvision.models.get_model_weights("resnet18").DEFAULT.transforms()
    start = (resize - crop) // 2
    ours = encoder.encoder.normalise(batch[..., start : start + crop, start : start + crop])
    torch.testing.assert_close(ours[0], recipe(picture), rtol=0, atol=0.05)  # of a range of about 4
    with torch.no_grad():
        torch.testing.assert_close(encoder(batch), encoder.encoder.network(ours))


def test_weights_that_cannot_be_fetched_are_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: object) -> nn.Module:
        if pretrained:
            raise ConnectionError("no route to host\nmore")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(published, "_reachable", lambda address: True)
    with pytest.raises(
        OSError, match=r"weights of timm/resnet10t cannot be fetched \(no route to host\); connect"
    ):
        NamedEncoder("timm/resnet10t")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet18", {}, "encoder is 'resnet18'; give timm/NAME, torchvision/NAME or sentence-transformers"),
        ("timm/", {}, "encoder is 'timm/'"),
        ("timm/resnt18", {}, "did you mean resnet18"),
        ("torchvision/resnt18", {}, "did you mean resnet18"),
        ("timm/resnet18", {"image_size": 0}, "image_size is 0"),
        ("sentence-transformers/x", {"pretrained": False}, "takes texts and has weights of its own"),
        ("sentence-transformers/x", {"image_size": 32}, "takes texts"),
    ],
)
def test_what_is_refused(name: str, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        NamedEncoder(name, **options)
