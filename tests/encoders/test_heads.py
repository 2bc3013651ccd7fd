"""Projection and prediction heads."""

import pytest
import torch
from torch import nn

from contrastive.encoders import PredictionHead, ProjectionHead


def test_late_and_early_building_give_the_same_layers() -> None:
    torch.manual_seed(0)
    early = ProjectionHead(hidden_dim=16, dim=4, layers=3, in_dim=8)
    torch.manual_seed(0)
    late = ProjectionHead(hidden_dim=16, dim=4, layers=3)
    late.setup(8)
    late.setup(8)  # a second call changes nothing
    features = torch.randn(5, 8)
    torch.testing.assert_close(late(features), early(features), rtol=0, atol=0)
    assert early(features).shape == (5, early.dim)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_number_of_linear_layers(layers: int) -> None:
    head = ProjectionHead(hidden_dim=16, dim=4, layers=layers, in_dim=8)
    linear = [module for module in head.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == layers
    assert all(module.bias is None for module in linear)
    assert (linear[0].in_features, linear[-1].out_features) == (8, 4)


def test_use_before_setup_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"setup\(encoder.dim\)"):
        ProjectionHead()(torch.zeros(2, 8))


def test_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"in_dim=9.*built for 8"):
        ProjectionHead(in_dim=8).setup(9)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ProjectionHead(dim=0),
        lambda: ProjectionHead(hidden_dim=-1),
        lambda: ProjectionHead(layers=0),
        lambda: ProjectionHead(in_dim=0),
        lambda: PredictionHead(dim=0),
    ],
)
def test_widths_below_one_are_refused(build: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        build()


def test_prediction_head_keeps_the_width() -> None:
    head = PredictionHead(dim=6, hidden_dim=12)
    assert head(torch.randn(4, 6)).shape == (4, 6)
    assert head.layers[-1].bias is not None
