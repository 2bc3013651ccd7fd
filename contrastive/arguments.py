"""Arguments against the types that a signature says: refused in a sentence, numbers of NumPy and torch made plain.

What a type cannot say, as an interval, the function checks itself, and can rely on the types when it does.
"""

import collections.abc
import functools
import inspect
import math
import operator
import os
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from contrastive.checks import LARGEST, shown
from contrastive.errors import InvalidType, InvalidValue

_NO = object()  # a value that is not of a kind
FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool})
_SEQUENCES = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)

Class = TypeVar("Class", bound=type)
Function = TypeVar("Function", bound=Callable[..., Any])
# What a type accepts: the value as it is handed on, or _NO; and the type in words.
Kind = tuple[Callable[[Any], Any], str]


def checked(function: Function) -> Function:
    """Check the arguments of a function, or of a constructor, by its annotations.

    Whole numbers fit an int64, texts have no NUL byte, tensors are dense and hold data. An argument that was left out,
    or whose annotation says nothing, is not looked at; intervals and choices are left to the function.

    Raises:
        TypeError: an argument is of another type.
        ValueError: it is of the type and cannot be used.
    """
    signature = inspect.signature(function)
    parameters = signature.parameters
    is_method = next(iter(parameters), "") == "self"

    @functools.cache
    def kinds() -> dict[str, list[Kind]]:
        hints = typing.get_type_hints(function)
        return {name: found for name in parameters if (found := _kinds(hints.get(name, Any)))}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        who = type(args[0]).__name__ if is_method and args else function.__name__
        known = kinds()
        for name, value in bound.arguments.items():
            parameter = parameters[name]
            if name not in known or value is parameter.default:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(
                    _checked(who, f"{name}[{place}]", one, known[name]) for place, one in enumerate(value)
                )
            elif parameter.kind is not parameter.VAR_KEYWORD:
                bound.arguments[name] = _checked(who, name, value, known[name])
        return function(*bound.args, **bound.kwargs)

    # Lightning asks by inspect.getfullargspec, which looks at no wrapped function, for what a checkpoint may give.
    call.__signature__ = signature  # type: ignore[attr-defined]
    return typing.cast(Function, call)


def checked_fields(kind: Class) -> Class:
    """Check the fields of a dataclass as :func:`checked` does the arguments of a constructor."""
    kind.__init__ = checked(kind.__init__)  # type: ignore[misc]
    return kind


def usable(value: Any) -> bool:
    """Whether a value is a tensor that computations take: dense, with data, of a type with arithmetic."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type != "meta"
        and (value.dtype in FLOATS or value.dtype in _INTEGERS)
    )


def _checked(who: str, name: str, value: Any, kinds: list[Kind]) -> Any:
    for accept, _ in kinds:
        found = accept(value)
        if found is not _NO:
            return found
    expected = ", or ".join(dict.fromkeys(words for _, words in kinds))
    advice = ""
    if any(words == _TENSOR for _, words in kinds) and isinstance(value, np.ndarray | list | tuple):
        advice = ", as torch.as_tensor(...) makes one"
    number = isinstance(value, int | np.integer | Tensor) and not isinstance(value, bool)
    number = number or (
        isinstance(value, float) and _PLAIN[int] not in kinds
    )  # 1.5 is no whole number at all
    text = isinstance(value, str) and any(accept("") == "" for accept, _ in kinds)  # with a NUL byte
    kind = InvalidValue if number or text else InvalidType
    raise kind(f"{who}: {name} is {_what(value)}; give {expected}{advice}.")


def _what(value: Any) -> str:
    if isinstance(value, Tensor):
        layout = "" if value.layout is torch.strided else f" {value.layout}"
        return f"a tensor {tuple(value.shape)} of {value.dtype} on {value.device}{layout}"
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} of {value.dtype}"
    return shown(value)


def _kinds(hint: Any) -> list[Kind]:
    """What a type accepts, one alternative after the other; nothing if it accepts anything."""
    if hint is Any:
        return []
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [_kinds(part) for part in typing.get_args(hint)]
        return [kind for part in parts for kind in part] if all(parts) else []
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in _PLAIN:
        return [_PLAIN[origin]]
    if origin is Literal:
        words = f"one of {', '.join(map(repr, inner))}"
        return [(lambda value: _choice(value, inner), words)]
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        each = [_kinds(one) for one in inner]
        if not all(each):
            return []
        words = f"{len(inner)} values, each {each[0][0][1]}"
        return [(lambda value: _row(value, _as_many(value, each)), words)]
    if origin in (tuple, *_SEQUENCES) and inner and (one := _kinds(inner[0])):
        words = f"a list, each {one[0][1]}"
        return [(lambda value: _list(value, one, tuple if origin is tuple else list), words)]
    if origin is Dataset:  # also a list, or what else has samples by number: torch asks for no more
        return [(lambda value: value if _has_samples(value) else _NO, "a Dataset")]
    if origin is np.ndarray:
        return [(lambda value: value if isinstance(value, np.ndarray | list | tuple) else _NO, "an array")]
    if origin is collections.abc.Callable:
        return [
            (lambda value: value if callable(value) and not isinstance(value, type) else _NO, "a function")
        ]
    if isinstance(origin, type) and origin not in (object, tuple, *_SEQUENCES):
        article = "an" if origin.__name__[0] in "AEIOU" else "a"
        return [(lambda value: value if isinstance(value, origin) else _NO, f"{article} {origin.__name__}")]
    return []


def _whole(value: Any) -> Any:
    if isinstance(value, bool | np.bool_) or (isinstance(value, Tensor) and value.dtype not in _INTEGERS):
        return _NO
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor without data
        return _NO
    return number if -LARGEST <= number <= LARGEST else _NO


def _number(value: Any) -> Any:
    if type(value) in (int, float) and -LARGEST <= value <= LARGEST:
        return value
    if type(value) is float:  # not finite, or larger: functions say themselves which numbers they take
        return value
    if isinstance(value, bool | np.bool_ | str | bytes) or not hasattr(value, "__float__"):
        return _NO
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        return _NO
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return _NO
    return number if math.isfinite(number) else _NO


def _flag(value: Any) -> Any:
    return bool(value) if isinstance(value, bool | np.bool_) else _NO


def _text(value: Any) -> Any:
    if isinstance(value, os.PathLike):  # of a folder or file, where a configuration gives its name
        value = os.fspath(value)
    return value if isinstance(value, str) and "\0" not in value else _NO


def _path(value: Any) -> Any:
    return value if isinstance(value, str | os.PathLike) and "\0" not in os.fspath(value) else _NO


def _tensor(value: Any) -> Any:
    return value if usable(value) else _NO


def _has_samples(value: Any) -> bool:
    wrong = (str, bytes, collections.abc.Mapping, np.generic, type)
    return hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, wrong)


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
    if isinstance(value, np.integer | np.bool_):
        value = value.item()
    # Another text than the choices is for the function to refuse, which may know more of them.
    return value if any(type(value) is type(one) for one in choices) else _NO


def _list(value: Any, one: list[Kind], kind: type) -> Any:
    if isinstance(value, np.ndarray) or (usable(value) and not value.requires_grad):
        value = value.tolist() if value.ndim == 1 else None
    if not isinstance(value, list | tuple | range):
        return _NO
    return _row(value, [one] * len(value), kind)


def _as_many(value: Any, each: list[list[Kind]]) -> list[list[Kind]]:
    """What the values of a row are compared with; a row of another length is for the function to refuse."""
    fits = not isinstance(value, list | tuple) or len(value) == len(each)
    return each if fits else [each[0]] * len(value)


def _row(value: Any, each: list[list[Kind]], kind: type = tuple) -> Any:
    if not isinstance(value, list | tuple | range) or len(value) != len(each):
        return _NO
    found = [_first(one, kinds) for one, kinds in zip(value, each, strict=True)]
    return _NO if any(one is _NO for one in found) else kind(found)


def _first(value: Any, kinds: list[Kind]) -> Any:
    return next((found for accept, _ in kinds if (found := accept(value)) is not _NO), _NO)


_TENSOR = "a dense tensor"
_PLAIN: dict[Any, Kind] = {
    int: (_whole, "a whole number"),
    float: (_number, "a finite number"),
    bool: (_flag, "True or False"),
    str: (_text, "a text"),
    type(None): (lambda value: None if value is None else _NO, "None"),
    os.PathLike: (_path, "a path"),
    Tensor: (_tensor, _TENSOR),
}
