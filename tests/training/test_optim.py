import math

import pytest
import torch
from torch import nn

from contrastive.training.optim import LARS, OptimizerConfig, build_optimizer, parameter_groups, warmup_cosine


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "adam"}, "choose 'adamw', 'sgd' or 'lars'"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; give a number above 0"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"trust": 0.0}, "trust"),
        ({"warmup_fraction": 10}, "for steps use warmup_steps"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"final_fraction": 1.5}, "final_fraction"),
        ({"reference_batch": -256}, "reference_batch"),
    ],
)
def test_refuses_numbers_outside_their_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**wrong)


def test_schedule_by_hand():
    share = warmup_cosine(total_steps=8, warmup_steps=4, final_fraction=0.5)
    cosine = [0.5 + 0.25 * (1 + math.sqrt(0.5)), 0.75, 0.5 + 0.25 * (1 - math.sqrt(0.5))]
    assert [share(step) for step in range(8)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, *cosine])
    assert share(8) == share(100) == 0.5  # after the end


def test_peak_follows_the_global_batch():
    assert OptimizerConfig(learning_rate=0.3).peak(4096) == 0.3
    assert OptimizerConfig(learning_rate=0.3, reference_batch=256).peak(4096) == pytest.approx(4.8)


def test_warmup_in_steps_overrules_the_fraction():
    assert OptimizerConfig(warmup_fraction=0.1).warmup(200) == 20
    assert OptimizerConfig(warmup_fraction=0.1, warmup_steps=3).warmup(200) == 3


def test_biases_norms_and_temperatures_do_not_decay():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5))
    network.register_parameter("log_temperature", nn.Parameter(torch.tensor(0.1)))
    network[0].bias.requires_grad_(False)
    weights, others = parameter_groups(network, 0.1)
    assert {id(p) for p in weights["params"]} == {id(network[0].weight), id(network[2].weight)}
    assert {id(p) for p in others["params"]} == {
        id(p) for p in (network[1].weight, network[1].bias, network[2].bias, network.log_temperature)
    }
    assert (weights["weight_decay"], weights["adapt"]) == (0.1, True)
    assert (others["weight_decay"], others["adapt"]) == (0.0, False)


def test_refuses_a_module_without_anything_to_train():
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.0)


def test_refuses_a_warmup_longer_than_the_run():
    with pytest.raises(ValueError, match="warmup_steps is 10, but the run has only 10 steps"):
        build_optimizer(OptimizerConfig(warmup_steps=10), nn.Linear(2, 2), 10, 1)


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("lars", LARS)]
)
def test_builds_what_was_named(name, kind):
    config = OptimizerConfig(name=name, learning_rate=2.0, warmup_steps=3, reference_batch=4, momentum=0.7)
    optimizer, scheduler = build_optimizer(config, nn.Linear(2, 2), total_steps=10, global_batch=2)
    assert type(optimizer) is kind
    assert scheduler.get_last_lr() == pytest.approx([1 / 4, 1 / 4])  # peak 2 * 2/4, first of 3 warm-up steps
    assert name == "adamw" or all(group["momentum"] == 0.7 for group in optimizer.param_groups)


def test_lars_by_hand():
    weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))  # norm 5
    optimizer = LARS([weight], lr=2.0, momentum=0.5, weight_decay=0.1, trust=0.01)
    weight.grad = torch.tensor([0.0, 2.0], dtype=torch.float64)  # norm 2
    optimizer.step()
    rate = 0.01 * 5 / (2 + 0.1 * 5)
    velocity = 2.0 * rate * torch.tensor([0.3, 2.4], dtype=torch.float64)
    first = torch.tensor([3.0, 4.0], dtype=torch.float64) - velocity
    torch.testing.assert_close(weight.detach(), first)

    weight.grad = torch.zeros(2, dtype=torch.float64)  # no slope: the rate is 1
    optimizer.step()
    velocity = 0.5 * velocity + 2.0 * 0.1 * first
    torch.testing.assert_close(weight.detach(), first - velocity)


@pytest.mark.parametrize(("start", "adapt"), [(0.0, True), (3.0, False)])
def test_lars_takes_plain_steps_at_zero_weights_and_in_exempt_groups(start, adapt):
    weight = nn.Parameter(torch.full((2,), start))
    optimizer = LARS([{"params": [weight], "adapt": adapt}], lr=0.5, momentum=0.0)
    weight.grad = torch.tensor([1.0, -2.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([start - 0.5, start + 1.0]))


def test_lars_does_not_depend_on_the_scale_of_the_gradient():
    def step(scale):
        weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        weight.grad = scale * torch.tensor([1.0, -1.0])
        LARS([weight], lr=1.0).step()
        return weight.detach()

    torch.testing.assert_close(step(1.0), step(1000.0))
    assert not torch.equal(step(1.0), step(-1.0))


def test_lars_calls_the_closure_with_gradients_on():
    weight = nn.Parameter(torch.ones(2))

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert LARS([weight], lr=0.1).step(closure) == 2.0
    assert weight.detach()[0] < 1
