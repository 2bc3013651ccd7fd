"""What jsonargparse does to classes and texts in a configuration, mended here and nowhere else.

It has no public way to any of this; the names used are asserted in ``tests/test_parsing.py``.

- A short class name means ours, though another library that was imported has a class of that name (:func:`prefer`).
- A class that takes the place of another has its own defaults (:func:`keep_own_defaults`): jsonargparse hands on every
  value that the new class would accept, be it chosen or a default of the old class.
- A text that names a file stays a text where an option takes texts (:func:`spare_files`): an option that may be a class
  can be given by a file that describes the class, so ``source: str | Dataset`` would be given the lines of a list.
"""

import os
import types
import typing
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace, _typehints

_action: Any = _typehints.ActionTypeHint
_prepare = _action.prepare_add_argument
_among_all = _typehints.resolve_class_path_by_name
_discard_what_does_not_fit: Any = _typehints.discard_init_args_on_class_path_change


def prefer(ours: Mapping[str, Any]) -> None:
    """Resolve short class names to these, by name, where the option takes them."""

    def resolve(base: Any, name: str) -> str:
        found, bases = ours.get(name), base if isinstance(base, tuple) else (base,)
        if isinstance(found, type) and any(isinstance(b, type) and issubclass(found, b) for b in bases):
            return str(_typehints.get_import_path(found))  # type: ignore[attr-defined]
        other: str = _among_all(base, name)
        return other

    _typehints.resolve_class_path_by_name = resolve  # type: ignore[assignment]


def keep_own_defaults() -> None:
    """Let a class that was named have its own defaults; may be repeated."""
    _typehints.discard_init_args_on_class_path_change = _discard_defaults


def _discard_defaults(parser_or_action: Any, before: Any, now: Any) -> None:
    if before and "init_args" in before and before["class_path"] != now["class_path"]:
        added = getattr(parser_or_action, "sub_add_kwargs", {})
        _leave_out(before["init_args"], _action.get_class_parser(before["class_path"], added).get_defaults())
    _discard_what_does_not_fit(parser_or_action, before, now)


def _leave_out(arguments: Namespace, defaults: Namespace) -> None:
    for name, value in list(vars(arguments).items()):
        if name not in defaults:
            continue
        if value == defaults[name]:
            arguments.pop(name)
        elif (
            isinstance(value, Namespace)
            and isinstance(defaults[name], Namespace)
            and "class_path" not in value
        ):
            _leave_out(value, defaults[name])  # the fields of a dataclass


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
