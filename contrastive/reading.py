"""JSON and YAML files that may be damaged or come from anybody: their content as a dictionary, or a sentence."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contrastive.errors import FileMissing, FileTrouble, InvalidValue

_MOST_NODES = 200_000
"""Values in a file. A few hundred are usual; by anchors, YAML can name the same value so often that walking never ends."""


def read_mapping(path: str | os.PathLike[str], remedy: str = "copy it again, or restore it") -> dict[str, Any]:
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
