import math
import warnings

import pytest
import torch
from torch import nn

from contrastive.training import CollapseMonitor, OptimizerConfig, Pretrain
from contrastive.training.monitor import embedding_health


def test_health_of_directions_spread_evenly():
    z = torch.cat([torch.eye(4), -torch.eye(4)])  # 8 directions, mean 0, variance 1/4 a dimension
    health = embedding_health([3 * z, z])
    assert health["spread"] == pytest.approx(math.sqrt(8 / 7))  # 1 but for the unbiased estimate
    assert health["effective_rank"] == pytest.approx(4.0)
    assert health["positive_similarity"] == pytest.approx(1.0)
    assert health["negative_similarity"] == pytest.approx(-1 / 7)  # one opposite and six orthogonal


def test_health_of_a_point_and_of_a_line():
    point = embedding_health([torch.ones(8, 4), torch.ones(8, 4)])
    assert point["spread"] == pytest.approx(0.0, abs=1e-6)
    assert point["negative_similarity"] == pytest.approx(1.0)
    line = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]).repeat(4, 1)
    assert embedding_health([line, -line])["effective_rank"] == pytest.approx(1.0)
    assert embedding_health([line, -line])["positive_similarity"] == pytest.approx(-1.0)


class Collapsed(nn.Module):
    """Everything lands on one point, but for a hundred-thousandth."""

    dim = 6

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(6))

    def forward(self, inputs):
        return self.gain + 1e-5 * inputs


def fit(parts, trainer, encoder, epochs, **options):
    module = Pretrain(
        encoder,
        parts.TinyNCE(),
        projector=nn.Identity() if encoder.dim == 6 else nn.Linear(16, 8),
        views=parts.Noise(),
        optimizer=OptimizerConfig(learning_rate=1e-6 if encoder.dim == 6 else 0.01),
    )
    run = trainer(max_epochs=epochs, **options)
    run.fit(module, datamodule=parts.Vectors())
    return run


def test_warns_once_with_numbers_and_advice(parts, trainer):
    with pytest.warns(
        UserWarning, match=r"collapsing after epoch 0: spread .*loss_over_chance 1.*Try"
    ) as caught:
        run = fit(parts, trainer, Collapsed(), epochs=3)
    assert sum("collapsing" in str(warning.message) for warning in caught) == 1
    assert run.callback_metrics["spread"] < 0.1
    assert run.callback_metrics["loss_over_chance"] == pytest.approx(1.0, abs=1e-3)


def test_logs_every_epoch_and_is_silent_about_a_healthy_run(parts, trainer, tmp_path):
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit(parts, trainer, parts.TinyEncoder(), epochs=4)
    assert not [warning for warning in caught if "collapsing" in str(warning.message)]
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("spread")
    logged = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    assert len(logged) == 4
    assert all(value > 0.3 for value in logged)
    assert 0 < run.callback_metrics["loss_over_chance"] < 1
    assert run.callback_metrics["positive_similarity"] > run.callback_metrics["negative_similarity"]


def test_thresholds_are_options(parts, trainer):
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="effective_rank below 50"):
        fit(parts, trainer, parts.TinyEncoder(), epochs=1, callbacks=[CollapseMonitor(min_rank=50)])
