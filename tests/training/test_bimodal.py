import pytest
import torch
from lightning.pytorch import Callback

from contrastive import InfoNCE, ISogCLR, PairData, Pretrain, PretrainPairs, ProjectionHead, load_encoder
from contrastive.encoders import MLPEncoder
from contrastive.objectives.base import Objective
from contrastive.training import ExportEncoder
from contrastive.training.optim import OptimizerConfig


def networks():
    return MLPEncoder(6, (16,), 12), MLPEncoder(4, (16,), 8)


def pairs(**options):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(96, 3, generator=generator)
    first, second = torch.randn(3, 6, generator=generator), torch.randn(3, 4, generator=generator)
    return PairData(hidden @ first, hidden @ second, batch_size=16, validation_fraction=0.25, **options)


def module(objective=None, **options):
    torch.manual_seed(0)
    first, second = networks()
    heads = ProjectionHead(16, 8), ProjectionHead(16, 8)
    return PretrainPairs(
        first, second, objective, *heads, optimizer=OptimizerConfig(learning_rate=0.01), **options
    )


def recall(model, data):
    """How often the nearest second of a held-out first is its own."""
    rows = data.rows[1]
    with torch.no_grad():
        a, b = model.eval().embed([x[rows] for x in data.train_pairs])
    model.train()
    a, b = (torch.nn.functional.normalize(x, dim=1) for x in (a, b))
    return float(((a @ b.T).argmax(1) == torch.arange(len(a))).float().mean())


@pytest.mark.parametrize("kind", ["default", "isogclr"])
def test_pairs_find_each_other_after_training(trainer, kind):
    data, model = (
        pairs(),
        module(ISogCLR(temperature_init=0.1, rho=0.5, negatives="cross") if kind == "isogclr" else None),
    )
    before = recall(model, data)
    trainer(max_epochs=40).fit(model, datamodule=data)
    assert before < 0.2
    assert recall(model, data) > 0.5
    if kind == "isogclr":
        table = model.objective.state_table()
        assert table["visited"].all()
        assert table["second_temperature"].std() > 0


def test_both_encoders_are_exported(trainer, tmp_path):
    model, data = module(), pairs()
    trainer(callbacks=[ExportEncoder()]).fit(model, datamodule=data)
    for folder, encoder, inputs in (
        ("encoder", model.encoder, data.train_pairs[0]),
        ("second_encoder", model.second_encoder, data.train_pairs[1]),
    ):
        loaded = load_encoder(tmp_path / "run" / folder)
        torch.testing.assert_close(loaded.eval()(inputs), encoder.eval()(inputs))


def test_a_resumed_run_repeats_an_uninterrupted_one(trainer, tmp_path):
    saved = tmp_path / "half.ckpt"

    class Save(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 5:  # in the middle of the second epoch
                trainer.save_checkpoint(saved)

    def train(name, **options):
        model = module(ISogCLR(temperature_init=0.1, rho=0.5, negatives="cross"))
        trainer(name, max_epochs=3, callbacks=[Save()]).fit(model, datamodule=pairs(), **options)
        return model.state_dict()

    straight = train("straight")
    resumed = train("resumed", ckpt_path=saved, weights_only=True)
    assert len(straight) == len(resumed) > 20
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name


class Epochs(Objective):
    """Remembers what it is told of epochs."""

    def __init__(self):
        super().__init__()
        self.told = []

    def set_epoch(self, epoch, num_epochs):
        self.told.append((epoch, num_epochs))

    def forward(self, *views, index=None, labels=None):
        return sum(view.square().mean() for view in views)


@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 7}])
def test_objectives_are_told_the_epoch(trainer, parts, limit):
    objective = Epochs()
    trainer(**limit, accumulate_grad_batches=2 if "max_steps" not in limit else 1).fit(
        Pretrain(parts.TinyEncoder(), objective, views=parts.Noise()), datamodule=parts.Vectors(batch_size=32)
    )
    assert objective.told == [(0, 3), (1, 3), (2, 3)]


def test_what_does_not_fit_is_named():
    first, second = networks()
    with pytest.raises(ValueError, match="are one module"):
        PretrainPairs(first, first)
    with pytest.raises(ValueError, match="end in widths 8 and 4"):
        PretrainPairs(first, second, None, ProjectionHead(16, 8), ProjectionHead(16, 4))
    with pytest.raises(ValueError, match="second_views of PretrainPairs makes 2 views"):
        PretrainPairs(first, second, second_views=type("Two", (torch.nn.Module,), {"num_views": 2})())
    with pytest.raises(TypeError, match=r"second_encoder of PretrainPairs is a Linear whose dim is None"):
        PretrainPairs(first, torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"inputs are \(first, second\)"):
        PretrainPairs(first, second, InfoNCE(negatives="cross")).make_views(torch.rand(3, 6), 0)
