"""Where a resumed run stands, and what is still to come of it under the options of today.

A run may go on with another batch size, accumulation or length. It then has taken the steps that it has taken, and
takes as many more as what is left of its epochs holds: the schedule ends where these end.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer

from contrastive.reading import entry


@dataclass(frozen=True)
class Place:
    """A place in a run, read from a checkpoint.

    Args:
        steps: Optimiser steps taken.
        epoch: Epochs that are over.
        batches: Batches of the next epoch that are over.
        samples: The samples in these over all processes; None if the loader did not tell.
        planned: Optimiser steps that the run was planned for; None if unknown.
    """

    steps: int
    epoch: int
    batches: int
    samples: int | None
    planned: int | None

    @classmethod
    def read(cls, checkpoint: Mapping[str, Any]) -> "Place":
        """The place at which a checkpoint of Lightning was written."""
        loop = entry(checkpoint, "loops", "fit_loop")
        progress = entry(loop, "epoch_loop.batch_progress") or {}
        epoch, batches = int(checkpoint["epoch"]), int(entry(progress, "current", "processed") or 0)
        loaders = entry(loop, "state_dict", "combined_loader") or [{}]
        position, pass_ = entry(loaders[0], "position"), entry(loaders[0], "epoch")
        over = bool(progress.get("is_last_batch"))  # also of an epoch that a limit cut short, amid the data
        if epoch == entry(loop, "epoch_progress", "current", "ready"):
            batches = 0  # the epoch's end has been counted already
        elif over:
            epoch, batches = epoch + 1, 0
        known = position if batches and pass_ == epoch else None
        planned = entry(checkpoint, "contrastive", "total_steps")
        return cls(int(checkpoint["global_step"]), epoch, batches, known, planned)

    def batches_over(self, trainer: Trainer) -> int:
        """Batches of the epoch under way that are over, in batches of this run's size."""
        if math.isinf(trainer.num_training_batches):  # of a stream of unknown length
            return self.batches
        loader: Any = trainer.train_dataloader
        size: int | None = getattr(loader, "batch_size", None)
        number = int(trainer.num_training_batches)
        if self.samples is None or not size:
            return min(self.batches, number)
        step = size * trainer.world_size
        over, whole = -(-self.samples // step), len(loader)
        if number < whole:  # of an epoch that is cut short
            return min(over, number)
        left, rest = divmod(int(getattr(loader, "num_samples", 0)) - self.samples, step)
        return max(0, whole - left - (rest > 0 and not getattr(loader, "drop_last", False)))

    def steps_to_come(self, trainer: Trainer) -> float:
        """Optimiser steps from here to the end of ``max_epochs``; infinite without an end."""
        epochs = trainer.max_epochs
        if epochs is None or epochs < 0 or math.isinf(trainer.num_training_batches):
            return float("inf")
        window = trainer.accumulate_grad_batches
        an_epoch = -(-int(trainer.num_training_batches) // window)
        begun = self.batches_over(trainer) // window if self.batches else 0
        return max(0, (epochs - self.epoch) * an_epoch - begun)

    def total_steps(self, trainer: Trainer) -> float:
        """Optimiser steps of the whole run: those taken and those to come, ``max_steps`` at most."""
        total = self.steps + self.steps_to_come(trainer)
        return total if trainer.max_steps < 0 else min(total, trainer.max_steps)


def continue_epoch(trainer: Trainer, place: Place) -> None:
    """Put the loader back to its place within the epoch, and the count of batches to what that is today.

    To count the steps, the loader was made before the checkpoint was read; Lightning then forgets to put it back. And
    it ends the epoch by the number of batches that were over when the checkpoint was written, of whatever size.
    """
    # Lightning has no public way to the loader's state and to the place in an epoch.
    loop = trainer.fit_loop
    current: Any = loop.epoch_loop.batch_progress.current
    epoch: Any = loop.epoch_progress.current
    number = trainer.num_training_batches
    # Of an epoch that is over by now the loader, asked for one more batch, says so itself.
    over = min(place.batches_over(trainer), number - 1) if place.batches else number
    if current.processed and current.processed != over and epoch.processed <= place.epoch:
        late = current.processed - current.completed  # written before the batch was counted as completed
        current.ready = current.started = current.processed = over
        current.completed = over - late
    if loop._combined_loader_states_to_load:
        loop._load_combined_loader_states()
        iter(loop._data_fetcher)  # type: ignore[arg-type]
