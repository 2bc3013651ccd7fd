"""Encoders on disk: one file of weights, one of JSON, nothing that can execute."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from contrastive import __version__
from contrastive.encoders.backbones import TimmEncoder, TorchvisionEncoder
from contrastive.encoders.conv import ConvEncoder
from contrastive.encoders.fingerprint import weights_fingerprint, weights_part, whole_fingerprint
from contrastive.encoders.mlp import MLPEncoder
from contrastive.encoders.momentum import MomentumEncoder
from contrastive.errors import FileMissing, FileTrouble, InvalidType, InvalidValue
from contrastive.reading import read_mapping

WEIGHTS_FILE, DESCRIPTION_FILE = "encoder.safetensors", "encoder.json"

# The only classes that a file may ask for by name.
_REBUILDABLE: dict[str, type[nn.Module]] = {
    encoder.__name__: encoder for encoder in (ConvEncoder, MLPEncoder, TimmEncoder, TorchvisionEncoder)
}


def save_encoder(encoder: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write an encoder, and nothing that stood on it, to a folder.

    The folder gets ``encoder.safetensors`` (the ``state_dict``) and ``encoder.json`` (class name, arguments,
    width, library version, a fingerprint of the encoder and a checksum of the file). Each file is written under
    another name and renamed; a crash between the two renames leaves a pair that :func:`load_encoder` refuses.

    Args:
        encoder: Any module with an integer ``dim``. What it keeps in ``config`` is recorded and must be
            JSON-able; our own classes are rebuilt from it. Of a :class:`MomentumEncoder` the copy is saved.
        folder: Where to write; made if missing.

    Returns:
        The folder.

    Raises:
        TypeError: If ``encoder`` has no integer ``dim`` or its ``config`` is not JSON-able.
        OSError: If the folder cannot be written.
    """
    if isinstance(encoder, MomentumEncoder):
        encoder = encoder.module
    dim = getattr(encoder, "dim", None)
    if not isinstance(dim, int):
        raise InvalidType(
            f"encoder of save_encoder is a {type(encoder).__name__} whose dim is {dim!r}; "
            "an integer is needed: set self.dim to the width of its features."
        )
    weights = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    description = {
        "class": type(encoder).__name__,
        "config": getattr(encoder, "config", None),
        "dim": dim,
        "version": __version__,
    }
    try:
        recorded = json.loads(json.dumps(description, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidType(
            f"encoder.config of save_encoder cannot be written as JSON ({error}); "
            "keep only numbers, strings, booleans, lists and dictionaries in it."
        ) from error

    recorded["fingerprint"] = whole_fingerprint(recorded, weights_fingerprint(weights))
    recorded["checksum"] = _checksum(recorded)
    folder = Path(folder)
    parts = {name: folder / f"{name}.{os.getpid()}.part" for name in (WEIGHTS_FILE, DESCRIPTION_FILE)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Tensors that share memory are written once each: safetensors refuses aliases.
        save_file({name: value.clone() for name, value in weights.items()}, parts[WEIGHTS_FILE])
        parts[DESCRIPTION_FILE].write_text(_as_text(recorded), encoding="utf-8")
        for name, part in parts.items():
            os.replace(part, folder / name)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileTrouble(
            f"folder {folder} of save_encoder cannot be written ({reason}); make room, or name another folder."
        ) from error
    finally:
        for part in parts.values():
            with suppress(OSError):
                part.unlink(missing_ok=True)
    return folder


def load_encoder(path: str | os.PathLike[str], encoder: nn.Module | None = None) -> nn.Module:
    """Rebuild a saved encoder, on the CPU and in evaluation mode.

    Args:
        path: A folder written by :func:`save_encoder`, or that of a run, which holds one as ``encoder/``.
        encoder: An encoder to load the weights into. Needed for classes that are not ours, which are never
            looked up by the name in a file; without it the recorded arguments build the encoder.

    Returns:
        ``encoder``, or the one that was built.

    Raises:
        FileNotFoundError: If ``path`` does not hold a saved encoder.
        ValueError: If a file is damaged, the two files do not belong together, the class is unknown, or
            names or shapes of the weights do not fit the encoder.
    """
    folder = _find(Path(path))
    description = _read_description(folder / DESCRIPTION_FILE)
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise InvalidValue(
            f"path of load_encoder holds a damaged {folder / WEIGHTS_FILE} ({error}); copy or save it again."
        ) from error
    found, recorded = weights_fingerprint(weights), description["fingerprint"]
    if recorded not in (found, whole_fingerprint(description, found)):
        raise InvalidValue(
            f"path of load_encoder is {folder}, whose weights or arguments do not have the fingerprint recorded in "
            f"its {DESCRIPTION_FILE}: one of the two files was changed or replaced; save the encoder again."
        )
    if encoder is None:
        encoder = _rebuild(description, folder)
    _load_weights(encoder, weights, folder)
    return encoder.eval()


def _find(path: Path) -> Path:
    candidates = (path, path / "encoder")
    for folder in candidates:
        if (folder / DESCRIPTION_FILE).is_file() and (folder / WEIGHTS_FILE).is_file():
            return folder
    found = sorted(entry.name for entry in path.iterdir())[:8] if path.is_dir() else "no such folder"
    raise FileMissing(
        f"path of load_encoder is {path} ({found}); a folder with {WEIGHTS_FILE} and {DESCRIPTION_FILE}, "
        "directly or in encoder/, is needed: give the folder of a finished run or of save_encoder."
    )


def _read_description(file: Path) -> dict[str, Any]:
    description = read_mapping(file, "save the encoder again")
    needed = {"class", "config", "dim", "version", "fingerprint"}
    if not needed <= description.keys():
        raise InvalidValue(
            f"path of load_encoder holds {file}, which lacks some of {sorted(needed)}: "
            "it was not written by save_encoder; give another folder."
        )
    # Files of earlier versions have a shorter fingerprint and no checksum.
    recorded = str(description["fingerprint"])
    whole = description.get("checksum") == _checksum(description)
    if recorded != weights_part(recorded) and not (
        whole and _as_text(description) == file.read_text("utf-8")
    ):
        raise InvalidValue(
            f"path of load_encoder holds {file}, which was changed after it was written; save the encoder again."
        )
    return description


def _checksum(description: dict[str, Any]) -> str:
    rest = {name: value for name, value in description.items() if name != "checksum"}
    return hashlib.sha256(_as_text(rest).encode()).hexdigest()


def _as_text(description: dict[str, Any]) -> str:
    return json.dumps(description, indent=2) + "\n"


def _rebuild(description: dict[str, Any], folder: Path) -> nn.Module:
    name = description["class"]
    if not isinstance(name, str) or name not in _REBUILDABLE:
        raise InvalidValue(
            f"path of load_encoder is {folder}, which holds a {name!r}; only {', '.join(_REBUILDABLE)} are "
            f"built by name: make yours and call load_encoder(path, encoder={name}(...))."
        )
    try:
        return _REBUILDABLE[name](**description["config"])
    except (TypeError, ValueError) as error:
        raise InvalidValue(
            f"path of load_encoder is {folder}, whose recorded arguments do not build a {name} ({error}); "
            f"it was saved by version {description['version']}, this is {__version__}: use that version, "
            "or pass encoder=..."
        ) from error


def _load_weights(encoder: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    own = encoder.state_dict()
    problems = [f"{name} is missing" for name in sorted(own.keys() - weights.keys())]
    problems += [f"{name} is unexpected" for name in sorted(weights.keys() - own.keys())]
    problems += [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & weights.keys())
        if own[name].shape != weights[name].shape
    ]
    if problems:
        raise InvalidValue(
            f"path of load_encoder is {folder}, whose weights do not fit the {type(encoder).__name__}: "
            f"{'; '.join(problems[:5])} ({len(problems)} in all); build it with the arguments "
            f"recorded in {DESCRIPTION_FILE}."
        )
    encoder.load_state_dict(weights)
