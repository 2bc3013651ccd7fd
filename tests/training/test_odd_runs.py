"""Sizes of data and batches that do not come out even, for every objective: finite losses, or one sentence."""

import math

import pytest
import torch
from lightning.pytorch import Callback

from contrastive import objectives
from contrastive.data import TensorData
from contrastive.encoders import MLPEncoder, ProjectionHead
from contrastive.errors import InvalidValue
from contrastive.training import FineTune, OptimizerConfig, Pretrain, Separate

RATE = OptimizerConfig(learning_rate=1e-3, warmup_steps=0)
NO_MODULE = {"SupervisedSepCLR"}  # trained in a loop of one's own
NAMES = sorted(
    name
    for name, found in vars(objectives).items()
    if isinstance(found, type)
    and issubclass(found, objectives.Objective)
    and found is not objectives.Objective
)
# Batch sizes for 29 training and 7 held-out samples: one or more are left over in one or in both.
SIZES = (2, 6, 14, 28)


class Losses(Callback):
    """Note every loss."""

    def __init__(self):
        self.train, self.held_out = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.train.append(float(outputs["loss"]))

    def on_validation_epoch_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.held_out += [float(v) for k, v in trainer.callback_metrics.items() if k == "val_loss"]


def module(name: str, noise):
    torch.manual_seed(0)
    encoder = MLPEncoder(6, [8], 8)
    if name in ("CoreTuning", "CrossEntropy"):
        return FineTune(encoder, getattr(objectives, name)(), views=noise(views=1), optimizer=RATE)
    if name == "SepCLR":
        return Separate(encoder, MLPEncoder(6, [8], 4), objectives.SepCLR(), views=noise(), optimizer=RATE)
    options = {"BECLR": {"num_clusters": 2, "num_neighbours": 1, "memory_size": 16, "memory_start_epoch": 0}}
    objective = getattr(objectives, name)(**options.get(name, {}))
    views = noise(views=3 if name == "GroCo" else 2)
    momentum = {"BECLR": {"momentum": 0.9}}.get(name, {})
    return Pretrain(encoder, objective, ProjectionHead(hidden_dim=8, dim=8), views, RATE, **momentum)


def data(batch_size: int, count: int = 36) -> TensorData:
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(1))
    return TensorData(inputs, torch.arange(count) % 3, batch_size=batch_size, validation_fraction=7 / 36)


ODD = pytest.mark.filterwarnings(
    "ignore:the embeddings are collapsing",
    r"ignore:(CACR|CoreTuning|GroCo|SepCLR): ",  # of the smallest batches
    "ignore:You requested to overfit",
)
EVERY = pytest.mark.parametrize("name", [name for name in NAMES if name not in NO_MODULE])


@ODD
@EVERY
def test_no_size_is_silently_wrong(parts, trainer, name):
    for size in (1, *SIZES, 30):
        losses = Losses()
        run = trainer(f"of-{size}", callbacks=[losses])
        if size in (1, 30):
            with pytest.raises(InvalidValue, match="batch"):
                run.fit(module(name, parts.Noise), datamodule=data(size))
            continue
        run.fit(module(name, parts.Noise), datamodule=data(size))
        assert len(losses.train) == 29 // size
        assert all(map(math.isfinite, losses.train + losses.held_out)), size
        assert any(losses.train), size


@ODD
@EVERY
def test_parts_of_the_data_and_other_batches_afterwards(parts, trainer, tmp_path, name):
    cut = {"two": {"overfit_batches": 2}, "share": {"overfit_batches": 0.6}, "one": {"fast_dev_run": True}}
    for what, options in cut.items():
        losses = Losses()
        trainer(what, callbacks=[losses], **options).fit(module(name, parts.Noise), datamodule=data(5))
        assert len(losses.train) == {"two": 2, "share": 3, "one": 1}[what]
        assert all(map(math.isfinite, losses.train + losses.held_out))
    first = trainer("first", max_epochs=1)
    first.fit(module(name, parts.Noise), datamodule=data(12))
    first.save_checkpoint(tmp_path / "first.ckpt")
    for size in (6, 24):
        losses, resumed = Losses(), module(name, parts.Noise)
        run = trainer(f"then-{size}", max_epochs=2, callbacks=[losses])
        run.fit(resumed, datamodule=data(size), ckpt_path=tmp_path / "first.ckpt", weights_only=True)
        assert len(losses.train) == 29 // size
        assert run.global_step == 2 + len(losses.train) == resumed.total_steps
        assert all(map(math.isfinite, losses.train + losses.held_out))
