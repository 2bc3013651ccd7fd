"""Results on disk: one JSON document beside every number, with all it takes to know where the number comes from."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from contrastive import __version__
from contrastive.encoders.fingerprint import weights_part, whole_fingerprint
from contrastive.errors import InvalidValue
from contrastive.reading import read_mapping

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "faiss-cpu",
    "lightning",
    "torchmetrics",
    "torchvision",
    "timm",
    "jsonargparse",
)


def write_result(
    folder: str | os.PathLike[str],
    name: str,
    *,
    protocol: Mapping[str, Any],
    metrics: Mapping[str, Any],
    split: str,
    seed: int,
    data: Mapping[str, Any],
    encoder: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Write ``folder/name.json`` and return its content. A reader never sees half a file.

    Args:
        folder: made if missing.
        name: file name without ending; an existing file is replaced.
        protocol: what was done, with every setting that matters to the number.
        metrics: the numbers, as fractions.
        split: which part of the data was judged: ``"test"`` or ``"validation"``.
        seed: of everything random in the evaluation.
        data: what was evaluated on: see :func:`describe_data`.
        encoder: what was evaluated: see :func:`describe_encoder`.
        seconds: wall-clock time of the evaluation.

    Raises:
        ValueError: a metric is NaN or infinite, which JSON cannot hold.
    """
    document = {
        "protocol": dict(protocol),
        "metrics": dict(metrics),
        "split": split,
        "seed": seed,
        "versions": installed_versions(),
        "data": dict(data),
        "encoder": dict(encoder),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seconds": round(seconds, 2),
    }
    try:
        text = json.dumps(document, indent=2, allow_nan=False)
    except ValueError as error:
        raise InvalidValue(
            f"write_result({name!r}): a number is NaN or infinite ({dict(metrics)}); results hold finite numbers only"
        ) from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.json.{os.getpid()}"
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(folder / f"{name}.json")
    return document


def describe_data(data: Any) -> dict[str, Any]:
    """Class, source and fingerprint of a data module."""
    source = getattr(data, "source", None)
    return {
        "class": type(data).__name__,
        "source": source
        if isinstance(source, str)
        else type(source).__name__
        if source is not None
        else None,
        "fingerprint": getattr(data, "fingerprint", None),
    }


def describe_encoder(run: str | os.PathLike[str]) -> dict[str, Any]:
    """Class, arguments, width and fingerprint of the encoder saved in the folder of a run; empty if there is none.

    Of an encoder that an earlier version saved, the fingerprint is completed with what the file says of its arguments.

    Raises:
        ValueError: ``encoder.json`` is damaged.
    """
    for folder in (Path(run) / "encoder", Path(run)):
        if (folder / "encoder.json").is_file():
            found = read_mapping(folder / "encoder.json", "save the encoder again")
            description = {name: found.get(name) for name in ("class", "config", "dim", "fingerprint")}
            if isinstance(recorded := found.get("fingerprint"), str):
                description["fingerprint"] = whole_fingerprint(description, weights_part(recorded))
            return description
    return {}


def format_result(document: Mapping[str, Any]) -> str:
    """A result as a few lines of text: the protocol, then its numbers in percent."""
    protocol = ", ".join(f"{key} {value}" for key, value in document["protocol"].items() if key != "name")
    lines = [f"{document['protocol']['name']} on the {document['split']} set ({protocol})"]
    for name, value in document["metrics"].items():
        if isinstance(value, float):
            lines.append(f"  {name.replace('_', ' '):<20}{100 * value:6.2f} %")
    return "\n".join(lines)


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that results depend on."""
    found = {"python": platform.python_version(), "contrastive": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
