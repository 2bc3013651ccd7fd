"""``contrastive fit|validate|test|predict``: Lightning's command line with this project's defaults.

Any LightningModule and LightningDataModule can be named; :class:`~contrastive.training.Pretrain` and
:class:`~contrastive.data.ImageData` are what is used if nobody names another.
"""

import json
import logging
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from contrastive import data, encoders, evaluation, objectives, training, views
from contrastive.building import refuse_foreign, trusting
from contrastive.checks import check_whole
from contrastive.cli import INTERRUPTED, TERMINATED
from contrastive.cli.checkpoint import differences, explain_mismatch, read_model, without_unknown
from contrastive.cli.errors import ShortErrors
from contrastive.cli.progress import RunProgress
from contrastive.cli.request import given, has_own_seed, kept, run_name, texts, with_shipped
from contrastive.cli.run_folder import SaveRun, new_run_folder, newest_checkpoint
from contrastive.errors import ExtraMissing, InputError, InvalidValue, ProcessLost
from contrastive.evaluation import evaluate_run
from contrastive.evaluation.report import write_report
from contrastive.parsing import keep_own_defaults, prefer, spare_files
from contrastive.reading import read_tensors
from contrastive.training import ExportEncoder, SaveOnStop
from contrastive.training.checkpoints import LastCheckpoint, WholeFiles
from contrastive.training.processes import end_with_parent, lost_process
from contrastive.training.resume import Place

# Short class names are found among the classes that are imported, and packages import some of theirs on first use.
OURS = {
    name: getattr(package, name)
    for package in (data, encoders, evaluation, objectives, training, views)
    for name in package.__all__
}
prefer(OURS)
keep_own_defaults()
spare_files()

# What Pretrain takes by itself if it is given none, named here so that --model.views.size=64 is enough.
PARTS = {"views": "contrastive.views.SimCLRViews", "projector": "contrastive.encoders.ProjectionHead"}
MODEL = {
    "class_path": "contrastive.training.Pretrain",
    "init_args": {part: {"class_path": class_path} for part, class_path in PARTS.items()},
}
SEED = 0
TRUST_RUN = "--trust_run"  # no option of the parser: a configuration cannot give it, and does not keep it


@dataclass(frozen=True)
class Extras:
    """What a run does besides training.

    Args:
        best: Name of the logged metric by which ``checkpoints/best.ckpt`` is kept. There is none if nothing logs it.
        best_mode: ``min`` or ``max``.
        evaluate: Evaluate the encoder when training is over.
        report: Write ``report.html`` after that.
    """

    best: str = "val_loss"
    best_mode: Literal["min", "max"] = "min"
    evaluate: bool = True
    report: bool = True


class BestCheckpoint(ModelCheckpoint):
    """Keep the best checkpoint if its metric is logged at all, as not every objective has a held-out loss."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after validation if the metric is there."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch if the metric is there."""
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)


class Parser(ShortErrors, LightningArgumentParser):
    """Lightning's parser with short errors and without abbreviated options, which would hide misspelt ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})


def _missing_package(problem: BaseException | None) -> str | None:
    """What a class that was named says of a package it needs; a failed import in the user's own file is none."""
    while problem is not None:
        if isinstance(problem, ModuleNotFoundError) and problem.name is None:  # raised by hand, with advice
            return " ".join(str(problem).split())
        problem = problem.__cause__ or problem.__context__
    return None


class TrainerCLI(LightningCLI):
    """Lightning's command line, except that a run has a folder and a checkpoint gives way to what was typed.

    Args:
        words: The command line after ``contrastive``.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.typed, self.words = list(words), with_shipped(words)
        self.trusts = TRUST_RUN in self.words
        self.changed: list[str] = []
        self.folder: Path | None = None
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveRun,
            trainer_defaults={"log_every_n_steps": 10, "enable_model_summary": False},
            seed_everything_default=SEED,
            parser_class=Parser,
            args=self.words,
            auto_configure_optimizers=False,  # or --optimizer would replace the schedule and parameter groups
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the default classes, the run folder and what a run does besides training."""
        parser.add_argument(
            "--name", type=str | None, help="Name of the run; that of the configuration by default."
        )
        parser.add_argument(
            "--run_dir", type=str | None, help="Folder of the run; runs/<name>/<number> by default."
        )
        parser.add_argument(
            "--checkpoint_every",
            type=float | None,
            help="Minutes after which last.ckpt is written within an epoch too; after every epoch it is in any case.",
        )
        parser.add_class_arguments(Extras, "extras")
        parser.set_defaults({"model": MODEL, "data": {"class_path": "contrastive.data.ImageData"}})

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the one that was asked for: each of them would build all options of Lightning's again."""
        return {self.words[0]: LightningCLI.subcommands()[self.words[0]]}

    # ------------------------------------------------------------------ what was asked for

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with the model of a checkpoint as a configuration below all others, and tell what came of it."""
        command, *words = (word for word in self.words if word != TRUST_RUN)
        checkpoint = given(words, "ckpt_path")
        stored: dict[str, Any] = {}
        notes: list[str] = []
        if checkpoint is None:
            if command != "fit":
                notes.append("no --ckpt_path: the weights are those that the model starts with")
        else:
            if checkpoint in ("last", "best"):
                checkpoint = str(newest_checkpoint(run_name(words), checkpoint))
            stored = read_model(Path(checkpoint))
            if not self.trusts:
                refuse_foreign(stored, f"--ckpt_path={checkpoint}", texts(words))
            stored, notes = without_unknown(stored)
            below = ["--config", json.dumps({"model": stored})] if stored else []
            words = [*below, *words, f"--ckpt_path={checkpoint}"]
        self.config = parser.parse_args([command, *words])
        seed = self.config[command].seed_everything
        if not isinstance(seed, bool) and seed is not None:
            check_whole(f"contrastive {command}", "--seed_everything", seed, 0, 2**32 - 1)
        requested = yaml.safe_load(parser.dump(self.config, skip_none=False))[command].get("model")
        if stored:
            self.changed = differences(stored, requested)
        for note in [*notes, *self.changed, *kept(self.words, requested)]:
            print(note)
        if "weights_only" in self.config[command]:  # not in all versions of Lightning
            self.config[command]["weights_only"] = True  # reading a checkpoint never runs code that is in it

    def _parse_ckpt_path(self) -> None:
        """Leave out what Lightning does here: it puts values of a checkpoint above those that were typed."""

    def before_instantiate_classes(self) -> None:
        """Let the parts that have a seed of their own, and were given none, follow ``--seed_everything``."""
        seed = self._get(self.config, "seed_everything")
        for part in ("model", "data"):
            arguments = (self._get(self.config, part) or {}).get("init_args") or {}
            follows = arguments.get("seed") == SEED and not has_own_seed(self.words, part)
            if follows and not isinstance(seed, bool):
                arguments["seed"] = seed

    def instantiate_classes(self) -> None:
        """Build everything; what a class says about its arguments is passed on in its own words."""
        try:
            super().instantiate_classes()
        except ValueError as problem:
            cause: BaseException = problem
            while str(cause).startswith("Does not validate") and cause.__cause__ is not None:
                cause = cause.__cause__
            package = _missing_package(cause)
            if package is not None:
                raise ExtraMissing(package) from None
            raise cause from None

    # ------------------------------------------------------------------ the trainer

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the run folder and a trainer with the default callbacks and loggers beside the user's."""
        config = {**self._get(self.config_init, "trainer"), **kwargs}
        config["callbacks"] = _as_list(config["callbacks"])
        has_bar = any(isinstance(callback, ProgressBar) for callback in config["callbacks"])
        if config["enable_progress_bar"] is not False and not has_bar:
            config["callbacks"].append(RunProgress())
        if self.subcommand != "fit" or config["fast_dev_run"]:
            self.save_config_callback = None
            config["logger"] = config["logger"] or False
        else:
            chosen = self.config["fit"]
            self._refuse_to_do_nothing(chosen["ckpt_path"], config)
            folder = new_run_folder(run_name(self.words), chosen["run_dir"])
            chosen["name"] = run_name(self.words)
            chosen["run_dir"] = None  # so that the saved configuration starts the next run
            self.folder = folder
            self.save_config_kwargs = {
                "folder": folder,
                "words": self.typed,
                "checkpoint": chosen["ckpt_path"],
            }
            config["default_root_dir"] = str(folder)
            config["logger"] = self._loggers(folder, config["logger"])
            config["callbacks"] += self._callbacks(folder, config)
        config["plugins"] = _as_list(config["plugins"])
        if not any(isinstance(plugin, CheckpointIO) for plugin in config["plugins"]):
            config["plugins"].append(WholeFiles())
        try:
            return self._instantiate_trainer(config, [])
        except ModuleNotFoundError as problem:  # of an accelerator or a logger that needs another package
            self._leave_no_empty_folder()
            raise ExtraMissing(" ".join(str(problem).split())) from None
        except BaseException:
            self._leave_no_empty_folder()
            raise

    def _leave_no_empty_folder(self) -> None:
        """Remove the folder of a run that was refused before it began."""
        if self.folder is None or (self.folder / "run.json").exists():
            return
        self._remove("events.out.tfevents.*")  # TensorBoard's, in which nothing stands yet

    def _leave_no_refused_folder(self) -> None:
        """The same once it had begun, if not one batch was trained on: what stands there says only what was asked."""
        trained = any(isinstance(one, SaveRun) and one.trained for one in self.trainer.callbacks)  # type: ignore[attr-defined]
        if self.folder is None or trained or not self.trainer.is_global_zero:
            return
        for logger in self.trainer.loggers:
            logger.finalize("failed")  # or it would write anew when the process ends
        self._remove("run.json", "config.yaml", "hparams.yaml", "metrics.csv", "events.out.tfevents.*")

    def _remove(self, *patterns: str) -> None:
        """Remove such files of the run folder, and the folder if nothing else is in it."""
        assert self.folder is not None
        for pattern in patterns:
            for file in self.folder.glob(pattern):
                file.unlink(missing_ok=True)
        with suppress(OSError):  # it holds something
            self.folder.rmdir()

    @staticmethod
    def _refuse_to_do_nothing(checkpoint: str | None, trainer: dict[str, Any]) -> None:
        """Say so, and leave, if a checkpoint has had all the epochs and steps that are asked for."""
        if checkpoint is None:
            return
        place = Place.read(read_tensors(checkpoint, mmap=True))
        for name, done in {"max_epochs": place.epoch, "max_steps": place.steps}.items():
            asked = trainer[name]
            if asked is not None and 0 <= asked <= done:
                print(
                    f"nothing to do: {checkpoint} has {done:,} {name[4:]}, and trainer.{name} is {asked:,}; ask for "
                    f"more with --trainer.{name}={done + 1} or above."
                )
                raise SystemExit(0)

    def _loggers(self, folder: Path, theirs: Any) -> list[Logger] | bool:
        """Return a CSV file and TensorBoard events in the run folder; a user's loggers replace TensorBoard."""
        if theirs is False:
            return False
        if theirs in (None, True):
            theirs = TensorBoardLogger(folder, name="", version="")
        return [CSVLogger(folder, name="", version=""), *_as_list(theirs)]

    def _callbacks(self, folder: Path, config: dict[str, Any]) -> list[Callback]:
        extras: Extras = self._get(self.config_init, "extras")
        callbacks: list[Callback] = []
        if config["enable_checkpointing"] is not False:
            checkpoints = folder / "checkpoints"
            minutes = self._get(self.config, "checkpoint_every")
            callbacks.append(LastCheckpoint(checkpoints, minutes))
            callbacks.append(
                BestCheckpoint(
                    checkpoints,
                    "best",
                    monitor=extras.best,
                    mode=extras.best_mode,
                    enable_version_counter=False,
                )
            )
            callbacks.append(SaveOnStop())
        if hasattr(getattr(self.model, "encoder", None), "dim"):
            callbacks.append(ExportEncoder())
        taken = {callback.state_key for callback in config["callbacks"]}  # of the user; no two may be alike
        return [callback for callback in callbacks if callback.state_key not in taken]

    def after_fit(self) -> None:
        """Evaluate the encoder and write the report, on the first process; the trained run stays if one fails."""
        if self.folder is None or not self.trainer.is_global_zero:
            return
        extras: Extras = self._get(self.config_init, "extras")
        if extras.evaluate and getattr(self.datamodule, "num_classes", None) == 0:
            print(
                "not evaluated: the data have no labels; see the map, the neighbours and the rank of the embeddings in "
                "the report"
            )
        elif extras.evaluate and (self.folder / "encoder").is_dir():
            try:
                evaluate_run(self.folder, data=self.datamodule, trust=True)
            except (ValueError, TypeError, OSError) as problem:
                print(f"not evaluated: {problem}")
        print(f"run folder: {self.folder}")
        if extras.report:
            print(f"report:     {write_report(self.folder, trust=True)}")

    def _run_subcommand(self, subcommand: str) -> None:
        """Run, and explain a checkpoint of another shape in a sentence."""
        try:
            super()._run_subcommand(subcommand)
        except RuntimeError as problem:
            explained = explain_mismatch(str(problem), self._get(self.config, "ckpt_path"), self.changed)
            if explained is not None:
                raise InvalidValue(explained) from None
            if (explained := lost_process(problem)) is not None:
                raise ProcessLost(explained) from None
            raise
        except InputError:
            self._leave_no_refused_folder()
            raise
        finally:
            self._leave_no_empty_folder()


def run_trainer(words: Sequence[str]) -> int:
    """Run ``fit``, ``validate``, ``test`` or ``predict`` and return the exit code."""
    hush()
    end_with_parent()
    try:
        with trusting(TRUST_RUN in words):
            TrainerCLI(words)
    except MisconfigurationException as problem:  # Lightning's, for options that do not go together
        raise InvalidValue(" ".join(str(problem).split())[:400]) from None
    except SIGTERMException as stop:
        return stop.code if isinstance(stop.code, int) else TERMINATED
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into this
            return INTERRUPTED
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def hush() -> None:
    """Keep away notes of Lightning and torch that ask a user of this command for nothing."""
    for message in (
        r"(?s).*(JsonargparseDeprecationWarning|deprecated in v4\.\d+\.\d+ and will be removed in).*",  # by Lightning
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*exists and is not empty.*",
        ".*dirpath has changed from.*",
        ".*callbacks used to create the checkpoint.*",
        ".*treespec, LeafSpec.*",
        ".*`configure_callbacks`.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(_asks_for_nothing)


def _asks_for_nothing(record: logging.LogRecord) -> bool:
    noise = (
        "Tip:",
        "to estimate number of stepping",
        "available: False",
        "Seed set to",
        "`Trainer.fit` stopped:",
        "callbacks returned from",
        "`weights_only` was not set",
    )
    return not any(part in record.getMessage() for part in noise)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
