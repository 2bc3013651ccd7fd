"""What a checkpoint says about the model, against what was asked for.

Order of precedence: command line, configuration, checkpoint, default. Lightning puts the values of a checkpoint file
above what was typed, and those of ``last`` and ``best`` nowhere; here they are a configuration that comes first and
that all others override.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contrastive.cli.errors import options_of
from contrastive.errors import FileMissing, InvalidValue
from contrastive.reading import entry, read_tensors


def read_model(path: Path) -> dict[str, Any]:
    """Return the model of a checkpoint as a configuration: ``{"class_path": ..., "init_args": ...}``.

    The weights are mapped, not read. A checkpoint that records no arguments gives an empty dictionary.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint.
    """
    if not path.is_file():
        raise FileMissing(f"--ckpt_path={path}: there is no such file; give a checkpoint, or last, or best.")
    try:
        content = read_tensors(path, mmap=True)
    except InvalidValue as problem:
        raise InvalidValue(f"--ckpt_path={path} cannot be read as a checkpoint: {problem}") from problem
    arguments = entry(content, "hyper_parameters") or {}
    if not isinstance(content, Mapping) or not isinstance(arguments, Mapping):
        raise InvalidValue(
            f"--ckpt_path={path} is no checkpoint of Lightning; give one of checkpoints/ in a run."
        )
    arguments = dict(arguments)
    arguments.pop("_instantiator", None)
    class_path = arguments.pop("_class_path", None)
    if not arguments and class_path is None:
        return {}
    return {"class_path": class_path, "init_args": arguments} if class_path else {"init_args": arguments}


def without_unknown(model: dict[str, Any], path: str = "model") -> tuple[dict[str, Any], list[str]]:
    """Leave out arguments that their classes do not take, or no longer; return the rest and a line on each.

    Args:
        model: A class with its arguments, as :func:`read_model` returns it.
        path: Where it stands in the configuration.
    """
    arguments, dropped = dict(model.get("init_args") or {}), []
    options = {option.split(".")[0] for option in options_of(model.get("class_path") or "")}
    for name in list(arguments):
        if options and name not in options:
            dropped.append(
                f"{path}.{name}={arguments.pop(name)} of the checkpoint is left out: there is no such option"
            )
        elif isinstance(arguments[name], Mapping) and "class_path" in arguments[name]:
            arguments[name], more = without_unknown(dict(arguments[name]), f"{path}.{name}")
            dropped += more
    return ({**model, "init_args": arguments} if arguments else model), dropped


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a configuration to ``{"objective": "InfoNCE", "objective.temperature": 0.1, ...}``."""
    if not isinstance(config, Mapping) or not config:
        return {prefix: config}
    if "class_path" in config:
        values = {prefix: str(config["class_path"]).rpartition(".")[2]}
        arguments = {**(config.get("init_args") or {}), **(config.get("dict_kwargs") or {})}
        return values | (flat(arguments, prefix) if arguments else {})
    values = {}
    for name, value in config.items():
        values |= flat(value, f"{prefix}.{name}" if prefix else str(name))
    return values


def differences(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> list[str]:
    """Name each value of ``requested`` that differs from the checkpoint's, one line each."""
    before, now = flat(stored, "model"), flat(requested, "model")
    missing = object()
    changed = [name for name in now if before.get(name, missing) is not missing and before[name] != now[name]]
    return [f"{name} is {now[name]}, in the checkpoint {before[name]}" for name in changed]


def explain_mismatch(problem: str, path: str, changed: list[str]) -> str | None:
    """Turn torch's list of mismatched shapes into sentences; ``None`` if ``problem`` is about something else."""
    if "loading state_dict" not in problem:
        return None
    shapes = re.findall(
        r"size mismatch for ([\w.]+):.*?torch\.Size\(\[(.*?)\]\) from checkpoint.*?torch\.Size\(\[(.*?)\]\)",
        problem,
    )
    parts = [f"{name} is ({now}) here and ({before}) in the checkpoint" for name, before, now in shapes[:3]]
    for what in ("Missing", "Unexpected"):
        if found := re.search(rf'{what} key\(s\) in state_dict: "([^"]+)"', problem):
            where = "the checkpoint lacks" if what == "Missing" else "only the checkpoint has"
            parts.append(f"{where} {found[1]}")
    reasons = f" What was asked for differs: {'; '.join(changed)}." if changed else ""
    return (
        f"--ckpt_path={path} does not fit the model: {'; '.join(parts)}.{reasons} "
        "Leave those options as they were, or train anew without --ckpt_path."
    )
