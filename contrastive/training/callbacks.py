"""What stands around a run: the plan before it, a saved state when it stops early, the encoder at its end."""

import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from contrastive.arguments import checked
from contrastive.encoders import save_encoder
from contrastive.training.checkpoints import after_step
from contrastive.training.optim import warmup_cosine
from contrastive.training.pretrain import Pretrain
from contrastive.training.processes import Watch, agree
from contrastive.training.signals import Signals, stopped_by


def run_folder(trainer: Trainer) -> Path:
    """Folder of a run: that of its first logger, or the trainer's root folder without one."""
    folder = trainer.logger.log_dir if trainer.logger is not None else None
    return Path(folder or trainer.default_root_dir)


class RunPlan(Callback):
    """Print what is about to happen, before the first step: of :class:`Pretrain` and modules with ``run_plan()``."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the plan on the first process."""
        if isinstance(pl_module, Pretrain) or callable(getattr(pl_module, "run_plan", None)):
            trainer.print(describe_run(trainer, pl_module))


def describe_run(trainer: Trainer, module: LightningModule) -> str:
    """Describe a run in a few lines: data, batch, negatives, steps, learning rate, network, machine.

    Args:
        trainer: A trainer whose training is about to start, so that its loaders are there.
        module: What it trains: a :class:`Pretrain`, or a module with ``run_plan() -> {name: text}``.
    """
    chunk = getattr(module, "cache_chunk_size", 0)
    rows = {
        **(_pretraining(trainer, module) if isinstance(module, Pretrain) else module.run_plan()),  # type: ignore[operator]
        "machine": (
            f"{trainer.num_devices} x {module.device.type}, precision {trainer.precision}"
            + (f", {chunk:,} rows encoded at a time" if chunk else "")
        ),
        "run folder": str(run_folder(trainer)),
    }
    width = max(14, 1 + max(map(len, rows)))
    return "Run plan\n" + "\n".join(f"  {name:<{width}}{value}" for name, value in rows.items())


def _pretraining(trainer: Trainer, module: Pretrain) -> dict[str, str]:
    data = getattr(trainer, "datamodule", None)
    samples = getattr(data, "num_samples", None)
    source = getattr(data, "source", None) or type(data or trainer.train_dataloader).__name__
    together, accumulated, processes = (
        module.samples_per_loss,
        trainer.accumulate_grad_batches,
        trainer.world_size,
    )
    negatives = module.negatives_per_anchor
    config, steps = module.optimizer_config, module.total_steps
    epochs = module.total_epochs
    warmup, peak = config.warmup(steps), config.peak((together or 0) * accumulated)
    return {
        "data": f"{source}, {samples:,} samples" if samples else f"{source}",
        **getattr(data, "notes", {}),
        **module.describe(),
        "batch": (
            f"{together * accumulated:,} samples a step = {together // processes:,} x {processes} process"
            f"{'es' * (processes > 1)} x {accumulated} accumulated"
            if together
            else "of unknown size"
        ),
        "negatives": f"{negatives:,} per anchor" if negatives is not None else "not known",
        "steps": f"{steps:,} = {epochs:,} epoch{'s' * (epochs != 1)} of {trainer.num_training_batches:,} "
        "batches",
        "learning rate": (
            f"{config.name}, {warmup:,} warm-up steps to {peak:g}, cosine to {peak * config.final_fraction:g}"
        ),
        **_resumed(module, steps, warmup, peak),
        "encoder": f"{_named(module.encoder)}, {module.encoder.dim} features",
        **{name.replace("_", " "): _named(encoder) for name, encoder in module.further_encoders.items()},
        "projector": _named(module.projector),
        "objective": type(module.objective).__name__,
    }


def _resumed(module: Pretrain, steps: int, warmup: int, peak: float) -> dict[str, str]:
    """Where a resumed run goes on and ends, in steps and in learning rates."""
    if module.resumed is None:
        return {}
    taken = module.resumed.steps
    rate = warmup_cosine(steps, warmup, module.optimizer_config.final_fraction)
    planned = module.resumed.planned
    other = f" (planned before: {planned:,})" if planned not in (None, steps) else ""
    return {
        "resumed": f"in epoch {module.resumed.epoch + 1} after step {taken:,}, to step {steps:,}{other}; learning rate "
        f"from {peak * rate(taken):.3g} to {peak * rate(steps):.3g}"
    }


def _named(module: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in module.parameters())
    return f"{type(module).__name__} ({count:,} parameters)"


class SaveOnStop(Callback):
    """Save a checkpoint when training is stopped from outside, or by a loss that is not finite.

    Ctrl-C, a termination signal and a closed terminal (SIGHUP) let the batch under way finish and then end the run,
    leaving ``checkpoints/interrupted.ckpt`` in the run folder; the resumed run (``trainer.fit(..., ckpt_path=...)``)
    repeats an uninterrupted one exactly, and begins a validation anew that was stopped. After the last batch of an
    epoch, the run ends in the validation that follows, or else after the next batch. Where several processes train
    together, a signal in one of them stops all, after the same batch. A second Ctrl-C ends the process at once; then
    the batch under way is lost.

    A ``FloatingPointError`` leaves ``checkpoints/not_finite.ckpt``, with the weights before the bad step; a
    run resumed from it passes over the bad batch. Other errors save nothing: with several processes they have
    struck one alone, and saving together would hang. The other processes end then as well
    (:mod:`contrastive.training.processes`).
    """

    def __init__(self) -> None:
        self._signals = Signals()
        self._watch: Watch | None = None
        self._stopping = False  # all processes are about to stop here
        self._common_batches: list[int] = []  # of each validation loader, as many as every process has

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch over the other processes, if there are any."""
        self._stopping = False
        if stage == "fit" and trainer.world_size > 1:
            self._watch = Watch.over(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals."""
        self._signals.take_over(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if asked to, unless an epoch ends here: a resumed run would pass over what is done then.

        Nor while gradients are being gathered, which no checkpoint holds.
        """
        ends = trainer.is_last_batch or 0 <= trainer.max_steps <= trainer.global_step
        if not ends and after_step(trainer, batch_idx):
            self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the batches that all processes have: their shares of the data may differ."""
        if trainer.state.fn != "fit":
            return
        counts = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        known = [int(count) if math.isfinite(count) else 0 for count in counts]
        self._common_batches = [-most for most in agree(trainer, *(-count for count in known))]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop here if asked to."""
        if trainer.state.fn == "fit" and batch_idx < self._common_batches[dataloader_idx]:
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop here if asked to during the last validation, and give the signals back."""
        self._stop_if_asked(trainer)
        self._signals.give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, if there is anything to save and all processes are here."""
        self._signals.give_back()
        together = trainer.world_size == 1 or self._stopping or getattr(exception, "everywhere", False)
        if self._watch is not None:
            self._watch.stop()
            if not together:
                self._watch.end_children()
        if isinstance(exception, KeyboardInterrupt | SIGTERMException):
            name = "interrupted.ckpt"
        elif isinstance(exception, FloatingPointError):
            name = "not_finite.ckpt"
        else:
            return
        started = trainer.optimizers and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if started and together:
            path = run_folder(trainer) / "checkpoints" / name
            trainer.save_checkpoint(path, weights_only=False)
            rank_zero_info(f"Saved {path} at step {trainer.global_step}; resume with ckpt_path={path}")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a run that is stopped in validation begin this validation anew; Lightning would pass over it."""
        if self._stopping and trainer.validating:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress |= {"total": begun, "current": dict.fromkeys(begun, 0), "is_last_batch": False}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the watch."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _stop_if_asked(self, trainer: Trainer) -> None:
        (signum,) = agree(trainer, self._signals.asked)
        if signum:
            self._stopping = True
            raise stopped_by(signum)


class ExportEncoder(Callback):
    """Leave the trained encoder, without its projector, in ``encoder/`` of the run folder.

    A module that has more than one names the others in ``further_encoders``; they go to folders of these names.

    Exports at the end of training, and when it is interrupted.

    Args:
        evaluate: After training, evaluate the run (:func:`contrastive.evaluation.evaluate_run`).
        report: After that, write ``report.html`` (:func:`contrastive.evaluation.report.write_report`).
    """

    @checked
    def __init__(self, evaluate: bool = False, report: bool = False) -> None:
        self.evaluate, self.report = evaluate, report

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn about a module that has nothing to export."""
        if not isinstance(getattr(pl_module, "encoder", None), nn.Module):
            rank_zero_warn(
                f"{type(pl_module).__name__} has no attribute `encoder`, so no encoder is exported, "
                "evaluated or reported; name the network that is to be kept `self.encoder`."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export, evaluate and report, on the first process."""
        if not self._export(trainer, pl_module):
            return
        if self.evaluate:
            from contrastive.evaluation import evaluate_run

            evaluate_run(run_folder(trainer), data=getattr(trainer, "datamodule", None), trust=True)
        if self.report:
            from contrastive.evaluation.report import write_report

            print(f"Report: {write_report(run_folder(trainer), trust=True)}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Export if the run was interrupted after it had begun."""
        if isinstance(exception, KeyboardInterrupt | SIGTERMException) and trainer.global_step > 0:
            self._export(trainer, pl_module)

    def _export(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        encoder = getattr(pl_module, "encoder", None)
        dry = trainer.fast_dev_run  # type: ignore[attr-defined]
        if not isinstance(encoder, nn.Module) or not trainer.is_global_zero or dry:
            return False
        encoders = {"encoder": encoder, **getattr(pl_module, "further_encoders", {})}
        for name, module in encoders.items():
            save_encoder(module, run_folder(trainer) / name)
        return True
