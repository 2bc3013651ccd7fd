"""The folder of one training run: where it is, and the record of how the run was started."""

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only

from contrastive.errors import FileMissing, FileTrouble, InvalidValue
from contrastive.evaluation.results import installed_versions

RUNS = Path("runs")


def new_run_folder(name: str, run_dir: str | None) -> Path:
    """Choose the folder of a new run: ``run_dir`` if given, else the next free ``runs/<name>/<number>``.

    Only the first process makes it. The others never write into it, so it does no harm if they see another number.

    Raises:
        ValueError: If ``run_dir`` holds a run already.
    """
    first = getattr(rank_zero_only, "rank", 0) == 0
    if run_dir is not None:
        folder = Path(run_dir)
        if first and (folder / "run.json").exists():
            raise InvalidValue(
                f"--run_dir={run_dir} holds a run already, which would be overwritten: name another folder, or leave "
                "the option out to get the next free one (a run that goes on with --ckpt_path has its own folder too)."
            )
        if first:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as problem:
                raise FileTrouble(
                    f"--run_dir={run_dir} cannot be made ({problem.strerror}); name a folder that you can write."
                ) from problem
        return folder
    number = max(_numbers(RUNS / name), default=-1) + 1
    while first:
        try:
            (RUNS / name / str(number)).mkdir(parents=True)
            break
        except FileExistsError:  # another run was started in the same moment
            number += 1
    return RUNS / name / str(number)


def newest_checkpoint(name: str, kind: str) -> Path:
    """Return ``last`` or ``best`` of the newest run called ``name`` that has it.

    Raises:
        FileNotFoundError: If no run of that name has such a checkpoint.
    """
    for number in sorted(_numbers(RUNS / name), reverse=True):
        path = RUNS / name / str(number) / "checkpoints" / f"{kind}.ckpt"
        if path.is_file():
            return path
    raise FileMissing(
        f"--ckpt_path={kind}: no run in {RUNS / name} has checkpoints/{kind}.ckpt; give --name of the run that you "
        "mean, or the path of a checkpoint."
    )


def _numbers(folder: Path) -> list[int]:
    return [int(entry.name) for entry in folder.glob("*") if entry.name.isdigit() and entry.is_dir()]


class SaveRun(SaveConfigCallback):
    """Write ``config.yaml`` (every value, resolved) and ``run.json`` (how the run came about) when training starts.

    Args:
        parser: Parser of the subcommand.
        config: The resolved configuration.
        folder: The run folder.
        words: The command line after ``contrastive``.
        checkpoint: The checkpoint that the run goes on from.
    """

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Any,
        folder: Path,
        words: Sequence[str] = (),
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(parser, config, overwrite=True, save_to_log_dir=False)
        self.folder, self.words, self.checkpoint = folder, list(words), checkpoint
        self.trained = False  # on one batch or more

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Note that the run has begun."""
        self.trained = True

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write both files."""
        data = getattr(trainer, "datamodule", None)
        fix_window(self.config, data)
        write_text(self.folder / "config.yaml", self.parser.dump(self.config, skip_none=False))
        record = {
            "command": shlex.join(["contrastive", *self.words]),
            "checkpoint": self.checkpoint,
            "seed": self.config.get("seed_everything"),
            "data": {name: getattr(data, name, None) for name in ("source", "fingerprint")},
            "git": git_commit(),
            "versions": installed_versions(),
            "devices": trainer.world_size,
        }
        write_text(self.folder / "run.json", json.dumps(record, indent=2, default=str) + "\n")


def fix_window(config: Any, data: Any) -> None:
    """Write the window that percentiles came to into a configuration, so that whoever reads it reads alike.

    Args:
        config: The resolved configuration.
        data: The data module.
    """
    arguments = (config.get("data") or {}).get("init_args")
    if arguments is not None and arguments.get("percentiles") is not None and hasattr(data, "reading"):
        arguments["window"], arguments["percentiles"] = list(data.reading["window"]), None


def git_commit() -> str | None:
    """Return the commit of the working directory, with ``+changes`` if it has any; ``None`` outside a repository."""
    try:
        git = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so that it is never half there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
