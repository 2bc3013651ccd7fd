"""What stands around a run: the plan before it, a saved state when it stops early, the encoder at its end."""

import math
import signal
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from contrastive.encoders import save_encoder
from contrastive.training.pretrain import Pretrain


def run_folder(trainer: Trainer) -> Path:
    """Folder of a run: that of its first logger, or the trainer's root folder without one."""
    folder = trainer.logger.log_dir if trainer.logger is not None else None
    return Path(folder or trainer.default_root_dir)


class RunPlan(Callback):
    """Print what is about to happen, before the first step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the plan on the first process."""
        if isinstance(pl_module, Pretrain):
            trainer.print(describe_run(trainer, pl_module))


def describe_run(trainer: Trainer, module: Pretrain) -> str:
    """Describe a run in a few lines: data, batch, negatives, steps, learning rate, network, machine.

    Args:
        trainer: A trainer whose training is about to start, so that its loaders are there.
        module: What it trains.
    """
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
    epochs = math.ceil(steps * accumulated / trainer.num_training_batches)
    warmup, peak = config.warmup(steps), config.peak((together or 0) * accumulated)
    rows = {
        "data": f"{source}, {samples:,} samples" if samples else f"{source}",
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
        "encoder": f"{_named(module.encoder)}, {module.encoder.dim} features",
        **{name.replace("_", " "): _named(encoder) for name, encoder in module.further_encoders.items()},
        "projector": _named(module.projector),
        "objective": type(module.objective).__name__,
        "machine": (
            f"{trainer.num_devices} x {module.device.type}, precision {trainer.precision}"
            + (f", {module.cache_chunk_size:,} rows encoded at a time" if module.cache_chunk_size else "")
        ),
        "run folder": str(run_folder(trainer)),
    }
    width = max(14, 1 + max(map(len, rows)))
    return "Run plan\n" + "\n".join(f"  {name:<{width}}{value}" for name, value in rows.items())


def _named(module: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in module.parameters())
    return f"{type(module).__name__} ({count:,} parameters)"


class SaveOnStop(Callback):
    """Save a checkpoint when training is stopped from outside, or by a loss that is not finite.

    Ctrl-C lets the batch under way finish and then ends the run, leaving ``checkpoints/interrupted.ckpt`` in
    the run folder; the resumed run (``trainer.fit(..., ckpt_path=...)``) repeats an uninterrupted one
    exactly. A second Ctrl-C ends it at once, as does the first where several processes train together; so
    does a termination signal, at the next batch. Then the batch under way is lost.

    A ``FloatingPointError`` leaves ``checkpoints/not_finite.ckpt``, with the weights before the bad step; a
    run resumed from it passes over the bad batch. Other errors save nothing: with several processes they may
    have struck one alone, and saving together would hang.
    """

    def __init__(self) -> None:
        self._asked_to_stop = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over Ctrl-C, unless someone else has, or several processes would have to agree."""
        main = threading.current_thread() is threading.main_thread()
        if main and trainer.world_size == 1 and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._ask_to_stop)

    def _ask_to_stop(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._asked_to_stop = True
        rank_zero_info("\nStopping after this batch; press Ctrl-C again to stop at once.")

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop here if asked to."""
        if self._asked_to_stop:
            raise KeyboardInterrupt

    def on_validation_batch_end(self, *_: Any) -> None:
        """Stop here if asked to."""
        if self._asked_to_stop:
            raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give Ctrl-C back."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, if there is anything to save."""
        self._release()
        if isinstance(exception, KeyboardInterrupt | SIGTERMException):
            name = "interrupted.ckpt"
        elif isinstance(exception, FloatingPointError):
            name = "not_finite.ckpt"
        else:
            return
        started = trainer.optimizers and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if started:
            path = run_folder(trainer) / "checkpoints" / name
            trainer.save_checkpoint(path)
            rank_zero_info(f"Saved {path} at step {trainer.global_step}; resume with ckpt_path={path}")

    def _release(self) -> None:
        if signal.getsignal(signal.SIGINT) == self._ask_to_stop:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._asked_to_stop = False


class ExportEncoder(Callback):
    """Leave the trained encoder, without its projector, in ``encoder/`` of the run folder.

    A module that has more than one names the others in ``further_encoders``; they go to folders of these names.

    Exports at the end of training, and when it is interrupted.

    Args:
        evaluate: After training, evaluate the run (:func:`contrastive.evaluation.evaluate_run`).
        report: After that, write ``report.html`` (:func:`contrastive.evaluation.report.write_report`).
    """

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

            evaluate_run(run_folder(trainer), data=getattr(trainer, "datamodule", None))
        if self.report:
            from contrastive.evaluation.report import write_report

            print(f"Report: {write_report(run_folder(trainer))}")

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
