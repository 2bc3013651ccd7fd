"""Image encoders: shapes, inputs, normalisation, stems, configuration."""

import json
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from contrastive.encoders import ConvEncoder, MLPEncoder, TimmEncoder, TorchvisionEncoder
from contrastive.encoders.normalise import Normalise

SMALL = (8, 8, 8)


def images(batch: int = 2, channels: int = 3, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, channels, size, size), dtype=torch.uint8, generator=generator)


ENCODERS = {
    "conv": lambda: ConvEncoder(widths=SMALL),
    "mlp": lambda: MLPEncoder(3 * 32 * 32, hidden_dims=(16,), dim=8),
    "timm": lambda: TimmEncoder("resnet10t", image_size=32),
    "timm-transformer": lambda: TimmEncoder("vit_tiny_patch16_224", image_size=32),
    "torchvision": lambda: TorchvisionEncoder("mobilenet_v3_small"),
}


@pytest.fixture(scope="module", params=ENCODERS, ids=str)
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    built: nn.Module = ENCODERS[request.param]()
    return built.eval()


def test_uint8_and_floats_give_the_same_features_of_the_promised_width(encoder: nn.Module) -> None:
    from_bytes, from_floats = encoder(images()), encoder(images().float() / 255)
    assert from_bytes.shape == (2, encoder.dim)
    assert from_bytes.dtype == torch.float32
    torch.testing.assert_close(from_bytes, from_floats)
    assert not torch.equal(from_bytes[0], from_bytes[1])


def test_config_is_json_and_rebuilds_the_same_architecture(encoder: nn.Module) -> None:
    again = type(encoder)(**json.loads(json.dumps(encoder.config)))
    again.load_state_dict(encoder.state_dict())
    assert again.config == encoder.config
    torch.testing.assert_close(again.eval()(images()), encoder(images()), rtol=0, atol=0)


def test_frozen_encoder_records_no_graph(encoder: nn.Module) -> None:
    assert encoder(images()).requires_grad
    encoder.requires_grad_(False)
    assert not encoder(images()).requires_grad
    encoder.requires_grad_(True)


def test_every_parameter_gets_a_gradient() -> None:
    encoder = ConvEncoder(widths=SMALL)
    encoder(images(4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


@settings(max_examples=15, deadline=None)
@given(size=st.integers(8, 64), channels=st.sampled_from([1, 3]), batch=st.integers(1, 3))
def test_conv_encoder_takes_any_small_image(size: int, channels: int, batch: int) -> None:
    encoder = ConvEncoder(in_channels=channels, widths=SMALL).eval()
    assert encoder(images(batch, channels, size)).shape == (batch, encoder.dim)


def test_conv_encoder_pools_its_last_two_stages_over_the_grid() -> None:
    encoder = ConvEncoder(widths=(4, 5, 6), blocks=(0, 0, 2), grid=2).eval()
    maps = []
    for stage in encoder.stages:
        stage.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    features = encoder(images())
    assert encoder.dim == 4 * (5 + 6)
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 16, 16), (5, 8, 8), (6, 4, 4)]
    upper_left_of_the_first_channel = maps[1][:, 0, :4, :4].mean(dim=(1, 2))
    torch.testing.assert_close(features[:, 0], upper_left_of_the_first_channel)
    torch.testing.assert_close(features[:, 20 + 3], maps[2][:, 0, 2:, 2:].mean(dim=(1, 2)))  # lower right


@pytest.mark.parametrize("channels", [1, 3])
def test_first_filters_whiten_smooth_images(channels: int) -> None:
    filters = ConvEncoder(in_channels=channels, widths=(64, 8, 8)).stages[0][0][0].weight.detach()
    basis = filters[0 : 2 * 9 * channels : 2].flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(9 * channels))
    assert torch.equal(filters[1 : 2 * 9 * channels : 2].flatten(1), -basis)

    # Pixels of a first-order Markov field, colours alike: strongly correlated patches, uncorrelated responses.
    position = torch.arange(3.0)
    smooth = 0.9 ** (position[:, None] - position).abs()
    colours = 0.9 * torch.ones(channels, channels) + 0.1 * torch.eye(channels)
    covariance = torch.kron(colours, torch.kron(smooth, smooth))
    assert _largest_correlation(covariance) > 0.8
    assert _largest_correlation(basis @ covariance @ basis.T) < 0.2


def _largest_correlation(covariance: Tensor) -> float:
    scale = covariance.diagonal().sqrt()
    return ((covariance / scale / scale[:, None]).abs() - torch.eye(len(covariance))).max().item()


def test_grey_images_through_timm() -> None:
    encoder = TimmEncoder("resnet10t", image_size=32, in_channels=1).eval()
    assert encoder.config["mean"] == [0.5]
    assert encoder(images(channels=1)).shape == (2, encoder.dim)


def test_normalise_by_hand() -> None:
    normalise = Normalise([0.5, 0.0], [0.25, 2.0])
    pixel = torch.tensor([[[[255]], [[51]]]], dtype=torch.uint8)
    torch.testing.assert_close(normalise(pixel).flatten(), torch.tensor([2.0, 0.1]))
    assert normalise.half()(pixel).dtype == torch.float16


def test_normalise_is_not_in_the_state_dict() -> None:
    assert not any("mean" in name or "std" in name for name in Normalise([0.5], [1.0]).state_dict())


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(3, 32, 32), ValueError, r"\(3, 32, 32\).*\(B, 3, H, W\)"),
        (torch.zeros(2, 1, 32, 32), ValueError, r"\(2, 1, 32, 32\).*channels"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int64), TypeError, "torch.int64.*uint8"),
    ],
)
def test_bad_images_are_refused(bad: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ConvEncoder(widths=SMALL)(bad)


@pytest.mark.parametrize("build", [TimmEncoder, TorchvisionEncoder])
def test_auto_stem_keeps_the_resolution_of_small_images_only(build: type[TimmEncoder]) -> None:
    small, standard = build("resnet18", image_size=64), build("resnet18", image_size=65)
    assert small.config["stem"] == "small"
    assert standard.config["stem"] == "standard"
    stem = [small.network.conv1, small.network.maxpool]
    assert nn.Sequential(*stem)(torch.zeros(1, 3, 32, 32)).shape[2:] == (32, 32)
    stem = [standard.network.conv1, standard.network.maxpool]
    assert nn.Sequential(*stem)(torch.zeros(1, 3, 32, 32)).shape[2:] == (8, 8)


def test_deep_stem_keeps_the_resolution_too() -> None:
    encoder = TimmEncoder("resnet18d", image_size=32)
    assert encoder.network.conv1(torch.zeros(1, 3, 32, 32)).shape[2:] == (32, 32)


def test_a_guessed_standard_stem_warns_once_about_small_images() -> None:
    encoder = TimmEncoder("resnet10t").eval()
    with pytest.warns(UserWarning, match="image_size=32"):
        encoder(images())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(images())
        TimmEncoder("resnet10t", stem="standard").eval()(images())


def test_torchvision_head_is_replaced_in_nested_classifiers() -> None:
    encoder = TorchvisionEncoder("mobilenet_v3_small")
    assert encoder.dim == 1024
    assert isinstance(encoder.network.classifier[-1], nn.Identity)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TimmEncoder("resnet81"), "resnet81.*did you mean resnet18"),
        (lambda: TimmEncoder("resnet18", stem="tiny"), "'tiny'.*'auto', 'small' or 'standard'"),
        (lambda: TimmEncoder("vit_tiny_patch16_224", stem="small"), "only ResNets"),
        (lambda: TimmEncoder("resnet18", mean=[0.5], std=[0.5]), "1 values for in_channels=3"),
        (lambda: TorchvisionEncoder("resnet"), "'resnet'.*did you mean"),
        (lambda: TorchvisionEncoder("resnet18", weights="imagenet"), "DEFAULT, IMAGENET1K_V1"),
        (lambda: TorchvisionEncoder("squeezenet1_0"), "one linear layer"),
        (lambda: TorchvisionEncoder("googlenet", weights=None), "one linear layer"),
        (lambda: ConvEncoder(widths=(8, 8)), r"\[8, 8\] and \[0, 1, 1\].*each stage"),
        (lambda: ConvEncoder(widths=(8, 0, 8)), "one width of 1 or more"),
        (lambda: ConvEncoder(grid=0), "grid.*1 or more"),
        (lambda: ConvEncoder(in_channels=0), "in_channels.*1 or more"),
        (lambda: ConvEncoder(mean=[0.5], std=[0.5]), "1 values for in_channels=3"),
        (lambda: ConvEncoder(std=[0.2, 0.0, 0.2]), "above 0"),
        (lambda: Normalise([0.5], [0.5, 0.5]), "1 and 2 values"),
        (lambda: MLPEncoder(0), "1 or more"),
        (lambda: MLPEncoder(8, mean=[0.0, 0.0]), "2 values; give 1 or in_dim=8"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torchvision's googlenet announces a new initialisation
def test_bad_arguments_are_refused(build: type[nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_mlp_encoder_standardises_vectors_and_flattens_images() -> None:
    encoder = MLPEncoder(2, hidden_dims=(), dim=2, mean=[1.0, 2.0], std=[0.5, 4.0])
    with torch.no_grad():
        encoder.layers[0].weight.copy_(torch.eye(2))
        encoder.layers[0].bias.zero_()
    torch.testing.assert_close(encoder(torch.tensor([[2.0, 6.0]])), torch.tensor([[2.0, 1.0]]))
    assert MLPEncoder(48, dim=5).eval()(images(size=4)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"\(2, 48\).*\(B, 2\)"):
        encoder(images(size=4))
