import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from contrastive.data import TensorData
from contrastive.evaluation import OnlineKNN, OnlineLinearProbe

# Lightning's own, on the newest torch.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"
)


class Encoder(nn.Module):
    dim = 8

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU())

    def forward(self, x):
        return self.body(x)


class Module(LightningModule):
    """Trains the encoder on something that has nothing to do with labels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = Encoder()

    def training_step(self, batch, batch_idx):
        return (self.encoder(batch.inputs) - batch.inputs.sum(1, keepdim=True)).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


@pytest.fixture
def data(blobs):
    (x, y), (q, t) = blobs
    return TensorData(
        x, torch.unique(y, return_inverse=True)[1], q, torch.unique(t, return_inverse=True)[1], batch_size=16
    )


def fit(data, folder, *callbacks, epochs=3, **options):
    module = Module()
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"enable_checkpointing": False, **options},
    )
    torch.manual_seed(1)
    trainer.fit(module, datamodule=data)
    return module, trainer


def test_training_does_not_feel_the_callbacks(data, tmp_path):
    plain, _ = fit(data, tmp_path)
    watched, trainer = fit(data, tmp_path, OnlineLinearProbe(), OnlineKNN())
    for (name, first), second in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(first, second), name
    assert trainer.callback_metrics["probe/accuracy"] > 0.8
    assert trainer.callback_metrics["knn/accuracy"] > 0.8


def test_the_probe_learns_from_labels(blobs, tmp_path):
    """The same inputs with labels drawn at random: both stay near chance."""
    labels = torch.arange(120)[torch.randperm(120, generator=torch.Generator().manual_seed(0))] % 3
    noise = TensorData(blobs[0][0], labels, batch_size=16, validation_fraction=0.3)
    _, trainer = fit(noise, tmp_path, OnlineLinearProbe(), OnlineKNN())
    assert trainer.callback_metrics["probe/accuracy"] < 0.7
    assert trainer.callback_metrics["knn/accuracy"] < 0.7


def test_the_probe_is_saved_and_goes_on(data, tmp_path):
    whole = OnlineLinearProbe()
    fit(data, tmp_path, whole, epochs=4)
    first, second = OnlineLinearProbe(), OnlineLinearProbe()
    _, trainer = fit(data, tmp_path, first, epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    module = Module()
    resumed = Trainer(
        default_root_dir=tmp_path, max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[second],
    )  # fmt: skip
    resumed.fit(module, datamodule=data, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert torch.equal(first.head.weight, second.head.weight)
    momentum = [
        callback.optimizer.state_dict()["state"][0]["momentum_buffer"] for callback in (first, second)
    ]
    assert torch.equal(*momentum)
    assert not torch.equal(first.head.weight, whole.head.weight)


def test_every_n(data, tmp_path):
    class Count(OnlineKNN):
        seen = ()

        def on_validation_epoch_end(self, trainer, pl_module):
            super().on_validation_epoch_end(trainer, pl_module)
            self.seen = (*self.seen, "knn/accuracy" in trainer.callback_metrics)

    count = Count(every_n_epochs=2)
    _, trainer = fit(data, tmp_path, count, epochs=2, num_sanity_val_steps=0)
    assert count.seen[0] is False
    assert "knn/accuracy" in trainer.callback_metrics
    lazy, eager = OnlineLinearProbe(every_n_batches=100), OnlineLinearProbe()
    fit(data, tmp_path, lazy, epochs=1)
    fit(data, tmp_path, eager, epochs=1)
    assert 0 < lazy.head.weight.abs().max() < eager.head.weight.abs().max()


@pytest.mark.parametrize("callback", [OnlineLinearProbe, OnlineKNN])
def test_unlabelled_data_are_refused_before_training(callback, tmp_path):
    data = TensorData(torch.randn(40, 4), batch_size=8)
    with pytest.raises(ValueError, match=f"{callback.__name__} needs the labels.*num_classes is 0"):
        fit(data, tmp_path, callback())


@pytest.mark.parametrize(
    "make",
    [lambda: OnlineLinearProbe(learning_rate=0), lambda: OnlineKNN(every_n_epochs=0), lambda: OnlineKNN(k=0)],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(ValueError, match="must be positive"):
        make()
