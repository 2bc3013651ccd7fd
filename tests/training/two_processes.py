"""Two training steps and a validation on DEVICES processes; writes the weights before and after to FOLDER/DEVICES.pt.

    python two_processes.py DEVICES FOLDER

Everything but the number of processes is the same: the samples of the step, the start, no randomness in the
views (their generators differ from rank to rank), no batch norm, float64.
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from contrastive.data import Loader
from contrastive.objectives import InfoNCE
from contrastive.training import OptimizerConfig, Pretrain


class Encoder(nn.Module):
    dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8))

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.net(inputs)
        return features


class Halves(nn.Module):
    """The first half of a vector and the second."""

    num_views = 2

    def forward(self, inputs: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        return list(inputs.chunk(2, dim=1))


class Data(pl.LightningDataModule):
    def __init__(self, batch_size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(32, 12, dtype=torch.float64, generator=generator)
        self.batch_size, self.num_samples, self.num_classes = batch_size, 32, 0

    def train_dataloader(self) -> Loader:
        return Loader(self.inputs, batch_size=self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> Loader:
        """A step of 16 samples and one of 5, which two processes cannot share evenly."""
        return Loader(self.inputs[:21], batch_size=self.batch_size)


def main(devices: int, folder: Path) -> None:
    torch.manual_seed(0)
    module = Pretrain(
        Encoder(),
        InfoNCE(learnable_temperature=True),
        projector=nn.Linear(8, 8),
        views=Halves(),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, warmup_steps=0),
        cache_chunk_size=5,  # gradients must be synchronised when the last chunk is done, and not before
    )
    states = {f"before/{name}": value.clone() for name, value in module.double().state_dict().items()}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        max_steps=2,
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=Data(batch_size=16 // devices))
    states |= {f"after/{name}": value for name, value in module.state_dict().items()}
    states |= {name: trainer.callback_metrics[name] for name in ("loss_epoch", "val_loss")}
    torch.save(states, folder / f"{devices}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for devices in (2, 1):
        main(devices, Path(sys.argv[1]))
