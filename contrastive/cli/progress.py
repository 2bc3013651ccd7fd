"""The progress of a whole run on one line: epoch, metrics, time left."""

import io
import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class RunProgress(TQDMProgressBar):
    """One bar for all of training, so that the time left is that of the run and not of the epoch.

    Where the output is no terminal (a file, a log) training writes a line for each tenth of the run instead.
    """

    BAR_FORMAT = "{desc} |{bar:24}| {percentage:3.0f}% [{elapsed}, {remaining} left{postfix}]"

    def __init__(self) -> None:
        super().__init__()
        self.terminal = sys.stdout.isatty()
        self._reported = 0

    def init_train_tqdm(self) -> Tqdm:
        """Make the bar of the run, which starts where a resumed run does."""
        silent = Tqdm(file=io.StringIO(), bar_format=self.BAR_FORMAT)
        bar = super().init_train_tqdm() if self.terminal else silent
        bar.total = self._total()
        bar.initial = bar.n = self._done()
        return bar

    def init_sanity_tqdm(self) -> Tqdm:
        """Show nothing during the sanity check."""
        return Tqdm(disable=True)

    def init_validation_tqdm(self) -> Tqdm:
        """Show nothing during validation inside of training."""
        shown = self.terminal and self.trainer.state.fn != "fit"
        return super().init_validation_tqdm() if shown else Tqdm(disable=True)

    def init_test_tqdm(self) -> Tqdm:
        """Show a bar to a terminal only."""
        return super().init_test_tqdm() if self.terminal else Tqdm(disable=True)

    def init_predict_tqdm(self) -> Tqdm:
        """Show a bar to a terminal only."""
        return super().init_predict_tqdm() if self.terminal else Tqdm(disable=True)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Name the epoch; the bar goes on."""
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else "?"
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}/{epochs}", refresh=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar by one batch."""
        if self.is_disabled:
            return
        bar = self.train_progress_bar
        bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
        bar.update(self._done() - bar.n)
        if not self.terminal and bar.total and bar.n * 10 // bar.total > self._reported:
            self._reported = bar.n * 10 // bar.total
            print(str(bar), flush=True)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what the bar shows, without the number of the logger's version."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def _done(self) -> int:
        return self.trainer.fit_loop.total_batch_idx + 1

    def _total(self) -> int | None:
        steps = self.trainer.estimated_stepping_batches
        return None if steps == float("inf") else int(steps) * self.trainer.accumulate_grad_batches
