"""Paths of files that stay paths where jsonargparse would put the text of the file in their place.

An option that may be a class can be given by a file that describes the class, so jsonargparse reads any text that names
a file. Where the option may be a text as well, as ``source: str | Dataset``, the text *is* the value: a list of images
would be replaced by its lines.
"""

import os
import types
import typing
from typing import Any

from jsonargparse import _typehints

_action: Any = _typehints.ActionTypeHint
_prepare = _action.prepare_add_argument


def _takes_text(hint: Any) -> bool:
    """Whether a type takes a text or a path by itself, beside whatever else, or in a collection."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _takes_text(inner[0])
    if origin in (typing.Union, types.UnionType):
        return any(map(_takes_text, inner))
    if origin is not None and inner:  # items of a list, values of a mapping, if they may be classes as well
        return typing.get_origin(inner[-1]) in (typing.Union, types.UnionType) and _takes_text(inner[-1])
    return isinstance(hint, type) and issubclass(hint, str | os.PathLike)


def _prepare_sparing(*, kwargs: Any, enable_path: bool, **further: Any) -> Any:
    enable_path = enable_path and not _takes_text(kwargs.get("type"))
    return _prepare(kwargs=kwargs, enable_path=enable_path, **further)


def spare_files() -> None:
    """Let every parser made from now on leave the text of a file alone where an option takes texts; may be repeated."""
    _action.prepare_add_argument = staticmethod(_prepare_sparing)
