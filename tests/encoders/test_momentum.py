"""The momentum encoder."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from contrastive.encoders import ConvEncoder, MomentumEncoder, ProjectionHead

SMALL = (8, 8, 8)


def linear(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 0.9 * 1 + 0.1 * 3), (0.5, 0.95 * 1 + 0.05 * 3), (1.0, 1.0)],  # momentum 0.9, 0.95, 1
)
def test_one_update_by_hand(progress: float, expected: float) -> None:
    original = linear(1.0)
    follower = MomentumEncoder(original, momentum=0.9)
    nn.init.constant_(original.weight, 3.0)
    follower.update(progress)
    assert follower.module.weight.item() == pytest.approx(expected)
    assert original.weight.item() == 3.0


def test_buffers_are_copied_not_averaged() -> None:
    original = ConvEncoder(widths=SMALL)
    follower = MomentumEncoder(original, momentum=1.0)
    original(torch.rand(4, 3, 16, 16))  # moves the running statistics of batch norm
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(1.0)
    follower.update()
    for own, theirs in zip(follower.module.buffers(), original.buffers(), strict=True):
        assert torch.equal(own, theirs)
    for own, theirs in zip(follower.module.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(own + 1.0, theirs)


def test_no_graph_no_gradient_and_the_original_is_untouched() -> None:
    original = ConvEncoder(widths=SMALL)
    follower = MomentumEncoder(original)
    assert not follower(torch.rand(2, 3, 16, 16)).requires_grad
    assert not any(parameter.requires_grad for parameter in follower.parameters())
    assert all(parameter.requires_grad for parameter in original.parameters())
    assert follower.dim == original.dim


def test_the_original_is_not_registered() -> None:
    original = linear(1.0)
    follower = MomentumEncoder(original)
    assert list(follower.state_dict()) == ["module.weight"]
    assert len(list(follower.parameters())) == 1
    assert original.weight is not follower.module.weight


def test_copies_of_a_pair_stay_a_pair() -> None:
    original = linear(1.0)
    pair = nn.ModuleList([original, MomentumEncoder(original, momentum=0.0)])
    twin_original, twin = deepcopy(pair)
    nn.init.constant_(twin_original.weight, 5.0)
    twin.update()
    assert twin.module.weight.item() == 5.0


def test_training_mode_uses_the_statistics_of_the_batch() -> None:
    follower = MomentumEncoder(ConvEncoder(widths=SMALL))
    images = torch.rand(4, 3, 16, 16)
    trained, evaluated = follower.train()(images), follower.eval()(images)
    assert not torch.allclose(trained, evaluated)


def test_layers_built_after_wrapping_are_reported() -> None:
    head = ProjectionHead()
    follower = MomentumEncoder(head)
    head.setup(4)
    with pytest.raises(ValueError, match="build all layers"):
        follower.update()


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_values_outside_the_unit_interval_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="momentum"):
        MomentumEncoder(linear(1.0), momentum=value)
    with pytest.raises(ValueError, match="progress"):
        MomentumEncoder(linear(1.0)).update(value)
