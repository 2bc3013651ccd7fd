"""Checkpoints that survive: the latest epoch's is always there, and none is ever half written."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from contrastive.errors import FileTrouble
from contrastive.reading import check_undamaged, read_tensors
from contrastive.training.processes import agree


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it; reads one only if every byte of it is as it was written."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint; one that is there stays until the new one is whole.

        Raises:
            OSError: The disk is full or cannot be written.
        """
        target = Path(path)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except (OSError, RuntimeError) as error:  # torch's own, where its writer of archives fails
            raise FileTrouble(
                f"the checkpoint {target} cannot be written ({_cause(error)}); make room, or give another folder with "
                f"--run_dir.{_whole_ones(target.parent)}"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is damaged, or with ``weights_only`` holds more than tensors and plain values.
        """
        content: dict[str, Any]
        if weights_only:
            content = read_tensors(path)
        else:
            check_undamaged(path)
            content = super().load_checkpoint(os.fspath(path), map_location, weights_only)
        return content


class LastCheckpoint(Checkpoint):
    """Keep ``last.ckpt`` of the latest epoch, from the first one on, whatever the objective logs.

    Args:
        folder: Where to.
        minutes: Also save within an epoch when so much time has passed since the last time.
    """

    def __init__(self, folder: str | os.PathLike[str], minutes: float | None = None) -> None:
        self.path, self.minutes = Path(folder) / "last.ckpt", minutes
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, between two optimiser steps: gradients that are being gathered are not saved."""
        if self.minutes is None or trainer.is_last_batch or not after_step(trainer, batch_idx):
            return  # the end of an epoch saves in any case
        due = time.monotonic() - self._saved >= 60 * self.minutes
        if agree(trainer, int(due))[0]:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved = time.monotonic()


def _cause(error: BaseException) -> str:
    """What the system said: torch's writer of archives, when it closes one, complains of what came of it instead."""
    met: BaseException | None = error
    while met is not None:
        if isinstance(met, OSError) and met.strerror:
            return met.strerror
        met = met.__cause__ or met.__context__
    return " ".join(str(error).split())[:200]


def _whole_ones(folder: Path) -> str:
    """What there is to go on from."""
    newest = max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)
    return f" What is there is whole: go on with --ckpt_path={newest}." if newest else ""


def after_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether an optimiser step was taken with this batch, so that no gradients are being gathered."""
    number, window = batch_idx + 1, trainer.accumulate_grad_batches
    return number % window == 0 or number == trainer.num_training_batches
