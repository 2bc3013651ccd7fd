"""Files that may be damaged or come from anybody: what is in them as plain values, or a sentence."""

import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrastive.errors import FileMissing, FileTrouble, InvalidValue

if TYPE_CHECKING:  # commands that need no tensors import neither NumPy nor torch
    from numpy.typing import NDArray

_MOST_NODES = 200_000
"""Values in a file. Hundreds are usual; with anchors, YAML can name one value so often that walking never ends."""


def read_mapping(
    path: str | os.PathLike[str], remedy: str = "copy it again, or restore it"
) -> dict[str, Any]:
    """Content of a ``.json`` or ``.yaml`` file that holds names and values.

    Args:
        path: the file; YAML unless it ends in ``.json``.
        remedy: what to do about a damaged file, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is damaged, or holds something else than names and values.
    """
    import yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        _count(content, 0)
    except FileNotFoundError:
        raise FileMissing(f"there is no file {path}.") from None
    except OSError as problem:
        raise FileTrouble(f"{path} cannot be read ({problem.strerror or problem}).") from problem
    # ValueError: JSON, text that is no UTF-8, and dates and numbers that YAML recognises but Python does not.
    except (ValueError, yaml.YAMLError, RecursionError) as problem:
        reason = " ".join(str(problem).split())
        raise InvalidValue(f"{path} is damaged ({reason}); {remedy}.") from problem
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InvalidValue(
            f"{path} holds a {type(content).__name__} where names with values were expected; {remedy}."
        )
    return content


def check_undamaged(path: str | os.PathLike[str]) -> None:
    """Compare a file of ``torch.save`` with the checksums that it holds of its parts, which torch does not.

    Files of the oldest format, which has none, pass.

    Raises:
        ValueError: A part is not what was written.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        damaged = " ".join(str(error).split())
    if damaged is not None:
        raise InvalidValue(
            f"{os.fspath(path)} is damaged ({damaged}); copy it again, or go on from another checkpoint."
        )


def read_tensors(path: str | os.PathLike[str], *, mmap: bool = False) -> Any:
    """Content of a file of ``torch.save``: tensors and plain values, nothing that could run.

    Args:
        path: the file.
        mmap: map the tensors into memory instead of reading them.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is damaged, or holds more.
    """
    import torch

    if Path(path).is_file():
        check_undamaged(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise FileMissing(f"there is no file {path}.") from None
    except OSError as problem:
        raise FileTrouble(f"{path} cannot be read ({problem.strerror or problem}).") from problem
    except (
        Exception
    ) as problem:  # torch raises half a dozen kinds, with the advice to load the file all the same
        raise InvalidValue(
            f"{path} cannot be read ({_reason(problem)}); a file of torch.save that holds tensors and plain values, as "
            "a state_dict, is accepted."
        ) from None


def _reason(problem: Exception) -> str:
    if found := re.search(r"GLOBAL ([\w.]+)", str(problem)):
        return f"it holds an object, {found[1]}"
    if "weights_only" in str(problem):
        return "it holds more than tensors, or is damaged"
    return " ".join(str(problem).split())[:200] or type(problem).__name__


def read_array(path: str | os.PathLike[str]) -> "NDArray[Any]":
    """Content of a ``.npy`` file: numbers, no objects.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is damaged, or holds objects.
    """
    import numpy as np

    try:
        array: NDArray[Any] = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError:
        raise FileMissing(f"there is no file {path}.") from None
    except OSError as problem:
        raise FileTrouble(f"{path} cannot be read ({problem.strerror or problem}).") from problem
    except (ValueError, EOFError, OverflowError, TypeError, SyntaxError) as problem:
        reason = (
            "it holds objects" if "allow_pickle" in str(problem) else " ".join(str(problem).split())[:200]
        )
        raise InvalidValue(
            f"{path} cannot be read ({reason}); a file of numpy.save with numbers is accepted."
        ) from None
    return array


def entry(content: Any, *names: str) -> Any:
    """``content[names[0]][names[1]]...``; None where one of them is not there."""
    for name in names:
        content = content.get(name) if isinstance(content, Mapping) else None
    return content


def _count(value: Any, nodes: int) -> int:
    """Values in a tree, each as often as it is named; refuses what has no end."""
    nodes += 1
    if nodes > _MOST_NODES:
        raise InvalidValue(f"it holds more than {_MOST_NODES:,} values")
    if isinstance(value, Mapping):
        for part in value.values():
            nodes = _count(part, nodes)
    elif isinstance(value, list | tuple | set):
        for part in value:
            nodes = _count(part, nodes)
    return nodes
