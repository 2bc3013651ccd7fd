"""The ``contrastive`` command.

This module finds the subcommand and answers everything that needs no tensors, so that ``--help`` and ``--version``
are instant; PyTorch and Lightning are imported by the module that carries the subcommand out.
"""

import os
import sys
from collections.abc import Sequence

from contrastive import __version__
from contrastive.errors import InputError, disk_trouble

TRAINER_COMMANDS = {
    "fit": "train a model, evaluate its encoder and write a report",
    "validate": "one pass over the validation data",
    "test": "one pass over the test data",
    "predict": "one pass that returns features",
}
PLAIN_COMMANDS = {
    "probe": "linear probe on the frozen encoder of a run",
    "knn": "k-nearest-neighbour accuracy of the frozen encoder of a run",
    "evaluate": "probe and kNN at few and at all labels, beside raw pixels and an untrained encoder; a recommender "
    "beside floors",
    "few-shot": "N-way K-shot accuracy of the frozen encoder of a run, inductive and transductive heads apart",
    "embed": "write the vectors of a data set to disk, going on where it was stopped",
    "index": "build a searchable index of vectors on disk",
    "search": "what is closest to an item of an index, or to an image",
    "recommend": "what comes next after a history of items, by a trained recommender",
    "explore": "a local page over an index: neighbours, a map, two encoders side by side",
    "export": "the encoder of a run as ONNX, TorchScript or safetensors, compared with the original",
    "report": "write report.html into a run folder",
    "list": "objectives, encoders, views, data sources and parts of recommenders that can be named",
    "check-data": "read every sample once and name the first bad one",
}
INTERRUPTED, TERMINATED = 130, 143  # what shells report after Ctrl-C and after a termination signal


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Args:
        argv: Words after ``contrastive``; the process's own by default. A run on several devices that starts its
            processes by itself repeats the command line of this process, so give ``argv`` for one process only.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words else "--help"
    if command in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if command == "--version":
        print(f"contrastive {__version__}")
        return 0
    if command in TRAINER_COMMANDS and not {"-h", "--help"}.isdisjoint(words[1:]):
        print(_trainer_help(command))
        return 0
    if command not in TRAINER_COMMANDS | PLAIN_COMMANDS:
        from contrastive.cli.errors import suggestion

        hint = suggestion(command, TRAINER_COMMANDS | PLAIN_COMMANDS)
        print(f"contrastive: error: there is no command {command}; {hint}", file=sys.stderr)
        return 2

    if os.getcwd() not in sys.path:
        sys.path.insert(
            0, os.getcwd()
        )  # so that my_file.MyObjective is found: a console script leaves this out
    # Threads that wait for each other sleep instead of spinning: on two cores of which another process holds one,
    # the quickstart trains ten times as fast. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if command in TRAINER_COMMANDS:
            from contrastive.cli.fit import run_trainer

            return run_trainer(
                [command, *("--help" if word == "--help.full" else word for word in words[1:])]
            )
        from contrastive.cli.commands import run_command

        return run_command(command, words[1:])
    except KeyboardInterrupt:
        print("\ncontrastive: interrupted", file=sys.stderr)
        return INTERRUPTED
    except InputError as mistake:
        print(f"contrastive: error: {mistake}", file=sys.stderr)
        return 1
    except Exception as fault:
        trouble = disk_trouble(fault)
        if trouble is None:
            raise  # in someone's code: the traceback is what they need
        print(f"contrastive: error: {trouble}", file=sys.stderr)
        return 1


def _overview() -> str:
    lines = ["usage: contrastive COMMAND [options]", ""]
    for title, commands in {"train": TRAINER_COMMANDS, "use what was trained": PLAIN_COMMANDS}.items():
        lines += [f"{title}:", *(f"  {name:<12}{about}" for name, about in commands.items()), ""]
    lines += [
        "start here:   contrastive fit --config quickstart",
        "more:         contrastive COMMAND --help",
        "version:      contrastive --version",
    ]
    return "\n".join(lines)


def _trainer_help(command: str) -> str:
    return f"""usage: contrastive {command} [--config FILE] [options]

{TRAINER_COMMANDS[command]}. A value on the command line wins over the configuration, that over the
checkpoint of --ckpt_path, and that over the default. Any option of the configuration can be given as --a.b=value.

  --config FILE               YAML, or the name of one that comes with the library, as quickstart; several are merged
                              in order
  --model.objective=InfoNCE   the loss; then --model.objective.temperature=0.2 and so on
  --model.encoder=ConvEncoder, --model.views=SimCLRViews, --model.projector=ProjectionHead
  --model.optimizer.learning_rate=0.001
  --data.source=digits        and --data.batch_size=256
  --model=FILE.CLASS          a LightningModule of your own; parts likewise, from FILE.py in the working directory
  --trainer.max_epochs=50     and every other argument of Lightning's Trainer
  --seed_everything=0         seed of everything random
  --name=NAME, --run_dir=DIR  the run folder: runs/NAME/0, 1, ... or DIR itself
  --ckpt_path=last            or best (newest run of this name), or a file; goes on from there
  --trust_run                 build classes of others that a checkpoint or another run names
  --print_config              print the resolved configuration and leave

what a class accepts:         contrastive {command} --model.objective.help=InfoNCE
what can be named:            contrastive list
every option:                 contrastive {command} --help.full"""
