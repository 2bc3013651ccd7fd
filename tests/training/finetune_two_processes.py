"""Two steps of Core-tuning on one process and on two; writes the weights after them to FOLDER/DEVICES.pt.

    python finetune_two_processes.py FOLDER

The draws are fixed, as processes draw for their own samples from generators of their own.
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

from contrastive.data import TensorData
from contrastive.encoders import MLPEncoder
from contrastive.objectives import CoreTuning
from contrastive.objectives.mixing import Draws
from contrastive.similarity import gather
from contrastive.training import FineTune, OptimizerConfig


class Drawn(CoreTuning):
    """The partner is the first sample of another class, the shares depend on the class."""

    def forward(self, *views, index=None, labels=None, classifier=None, draws=None):
        others = labels[:, None] != gather(labels).all
        draws = Draws(others.int().argmax(1), 0.8 + 0.05 * labels, 0.3 + 0.1 * labels)
        return super().forward(*views, labels=labels, classifier=classifier, draws=draws)


class Save(pl.Callback):
    """Save in the process that trained: only there the module was sized."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            self.state = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def on_fit_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            metrics = ("loss_epoch", "val_loss", "val_accuracy")
            torch.save(
                {**self.state, **{name: trainer.callback_metrics[name] for name in metrics}}, self.path
            )


def main(devices: int, folder: Path) -> None:
    torch.manual_seed(0)
    inputs, labels = torch.randn(51, 6, dtype=torch.float64), torch.arange(51) % 3
    data = TensorData(inputs, labels, batch_size=16 // devices, validation_fraction=1 / 3)
    assert len(data.val_dataloader().rows) == 17  # two processes have one sample between them at the end
    module = FineTune(
        MLPEncoder(6, [], 8),
        Drawn(contrast_dim=4),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, warmup_steps=0),
        layer_decay=0.5,
    )
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
        callbacks=[Save(folder / f"{devices}.pt")],
    )
    trainer.fit(module, datamodule=data)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for devices in (2, 1):
        main(devices, Path(sys.argv[1]))
