"""Objects that a file names: built if they are classes of this library with plain values, or if the file is trusted.

A run's ``config.yaml``, the folder of a recommender and a checkpoint describe objects by ``class_path`` and
``init_args``. Whoever wrote the file must not choose what runs here, so three things are decided on the text alone,
before anything is imported: the class is one of ``contrastive``, ``recsys``, a few data sets of torchvision, or was
registered; its arguments are plain values or again such descriptions; and every value fits the argument's type, so that
no text is ever taken for the name of a function or a class, or for a file with more of the same.

With ``trust`` a description is built by jsonargparse, as ``contrastive fit --config`` builds it.
"""

import dataclasses
import inspect
import os
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar

from contrastive.errors import InvalidType, InvalidValue

_PACKAGES = ("contrastive", "recsys")
_WITH_SHORT_NAMES = ("data", "encoders", "objectives", "training", "views")  # of contrastive
# Data sets of torchvision that read images, or files whose digest they check; LSUN, for one, unpickles what it finds.
# fmt: off
_TORCHVISION = {
    "CIFAR10", "CIFAR100", "Caltech101", "Caltech256", "Country211", "DTD", "EMNIST", "EuroSAT",
    "FGVCAircraft", "FakeData", "FashionMNIST", "Flowers102", "Food101", "GTSRB", "ImageFolder",
    "Imagenette", "KMNIST", "MNIST", "OxfordIIITPet", "PCAM", "QMNIST", "RenderedSST2", "STL10", "SUN397",
    "SVHN", "USPS",
}
# fmt: on
_DESCRIPTION = {"class_path", "init_args", "dict_kwargs"}
_registered: dict[str, type] = {}
_trusts: ContextVar[bool] = ContextVar("_trusts", default=False)

Class = TypeVar("Class", bound=type)


def register(kind: Class) -> Class:
    """Allow files to name a class of your own, in this process: encoders, data and data sets of runs that you load.

    Works as a decorator too. Without it, :func:`contrastive.evaluation.knn_run` and whatever else reads the folder of a
    run refuses to build ``kind``, unless ``trust=True``.

    Args:
        kind: the class. Its constructor gets what the file says, plain values of the annotated types.

    Returns:
        ``kind``.

    Raises:
        TypeError: it is not a class.
    """
    if not isinstance(kind, type):
        raise InvalidType(f"register: {kind!r} is no class; give the class itself.")
    _registered[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return kind


@contextmanager
def trusting(trust: bool) -> Iterator[None]:
    """Trust whatever is read inside, if ``trust``: for what reads a run deep inside something that was asked for."""
    before = _trusts.set(trust)
    try:
        yield
    finally:
        _trusts.reset(before)


def build(part: Any, base: type, where: str, *, trust: bool = False) -> Any:
    """Build the object that a file describes.

    Args:
        part: ``{"class_path": ..., "init_args": {...}}``; arguments may be descriptions themselves.
        base: class that the object must be an instance of.
        where: the file, for messages.
        trust: build whatever is named, as ``contrastive fit --config`` does; it can run any code.

    Raises:
        ValueError: the description names a class that is not ours (and ``trust`` is False), no class at all, one of
            another kind than ``base``, or arguments that do not fit it.
    """
    if trust or _trusts.get():
        return _by_jsonargparse(part, base, where)
    return _Reader(where, builds=True).object(part, base)


def refuse_foreign(part: Any, where: str, named: Collection[str] = ()) -> None:
    """Refuse a description that may not be handed to jsonargparse, which imports and calls what texts name.

    Args:
        part: the description; without a ``class_path`` nothing is known of its arguments, so none may look like the
            name of a class or of a file.
        where: the file, for messages.
        named: texts that the user typed. Classes of the modules that they name are imported anyhow, so these may occur.

    Raises:
        ValueError: it names a class that is neither ours nor ``named``, or an argument does not fit its type.
    """
    _Reader(where, builds=False, named=named).object(part, object)


class _Reader:
    """Goes through a description, and builds it or only checks it."""

    def __init__(self, where: str, builds: bool, named: Collection[str] = ()) -> None:
        self.where, self.builds, self.named = where, builds, frozenset(named)
        self.modules = {text.rpartition(".")[0] for text in self.named if _is_dotted(text)}

    def object(self, part: Any, base: type | tuple[Any, ...]) -> Any:
        """The object that ``part`` describes, or ``part`` itself."""
        if not isinstance(part, Mapping) or not part.keys() <= _DESCRIPTION:
            raise InvalidValue(
                f"{self.where} has {_shown(part)} where class_path and init_args were expected; restore the file."
            )
        path, given = part.get("class_path"), part.get("init_args")
        given = {} if given is None else given
        more = part.get("dict_kwargs") or {}
        if not isinstance(given, Mapping) or not isinstance(more, Mapping):
            raise InvalidValue(f"{self.where}: the arguments of {path} have no names; restore the file.")
        given = {**given, **more}
        if path is None and not self.builds:
            for name, value in given.items():
                self.argument(value, Any, str(name))
            return part
        kind = self.kind(path)
        if not issubclass(kind, base):
            wanted = " or ".join(one.__name__ for one in (base if isinstance(base, tuple) else (base,)))
            raise InvalidValue(
                f"{self.where} names {path}, which is no {wanted}; restore the file, or give the object itself."
            )
        hints = _hints(kind)
        unknown = sorted(str(name) for name in given if name not in hints)
        if self.builds and unknown:
            raise InvalidValue(
                f"{self.where}: {path} takes no {unknown[0]}; it was written by another version: use that, or give the "
                "object itself."
            )
        arguments = {
            name: self.argument(value, hints.get(name, Any), f"{kind.__name__}.{name}")
            for name, value in given.items()
        }
        if not self.builds:
            return part
        missing = [name for name in _required(kind) if name not in arguments]
        if missing:
            raise InvalidValue(
                f"{self.where}: {path} needs {missing[0]}, which is not given; restore the file."
            )
        return kind(**arguments)

    def kind(self, path: Any) -> type:
        """The class of this import path, if files may name it; nothing else is imported."""
        found = _find(path)
        if found is None and isinstance(path, str) and path.rpartition(".")[0] in self.modules:
            found = _member(path)
        if isinstance(found, type):
            return found
        raise InvalidValue(
            f"{self.where} names the class {path}, which belongs neither to contrastive nor to recsys: building it "
            "would run code that the author of the file has chosen. If you trust the author, use --trust_run (in "
            "Python trust=True); or name the class yourself, in a --config of your own or by contrastive.register."
        )

    def argument(self, value: Any, hint: Any, name: str) -> Any:
        """``value`` as an argument of the annotated type."""
        options = _alternatives(hint)
        if isinstance(value, Mapping) and "class_path" in value:
            bases = tuple(_class_of(option) for option in options if _class_of(option) not in _PLAIN)
            if bases:
                return self.object(value, bases)
        for option in options:
            try:
                return self.one(value, option, name, among=options)
            except _Unfit:
                continue
        expected = " or ".join(sorted({getattr(option, "__name__", str(option)) for option in options}))
        raise InvalidValue(
            f"{self.where}: {name} is {_shown(value)}, where {expected} was expected, as a plain value; restore the "
            "file, or use --trust_run (trust=True) if you trust its author."
        )

    def one(self, value: Any, hint: Any, name: str, among: Sequence[Any]) -> Any:
        """``value`` as one of the alternatives of a type.

        Raises:
            _Unfit: it is none.
        """
        origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
        if hint is Any:
            return self.plain(value, name)
        if origin is Literal:
            return _require(value, any(value == one and type(value) is type(one) for one in inner))
        if origin is float and type(value) is int:
            return float(value)
        if origin in (bool, int, float, type(None)):
            return _require(value, type(value) is origin or (value is None and hint is type(None)))
        if origin is str:
            text = isinstance(value, str) and (set(among) <= _WITHOUT_CLASSES or self.is_only_text(value))
            return _require(value, text)
        if origin in (os.PathLike, Path):
            return _require(value, isinstance(value, str))
        if origin is tuple:
            _require(value, isinstance(value, list | tuple))
            wanted = inner[:1] * len(value) if inner[1:] == (...,) or not inner else inner
            _require(value, not inner or len(wanted) == len(value))
            pairs = zip(value, wanted or [Any] * len(value), strict=True)
            return tuple(self.argument(one, kind, name) for one, kind in pairs)
        if origin in _LISTS:
            _require(value, isinstance(value, list | tuple))
            return [self.argument(one, inner[0] if inner else Any, name) for one in value]
        if origin in _MAPPINGS:
            _require(value, isinstance(value, Mapping) and all(isinstance(key, str) for key in value))
            kind = inner[1] if len(inner) == 2 else Any
            return {key: self.argument(one, kind, f"{name}.{key}") for key, one in value.items()}
        if dataclasses.is_dataclass(origin) and isinstance(origin, type):
            _require(value, isinstance(value, Mapping))
            return self.fields(value, origin, name)
        raise _Unfit

    def fields(self, value: Mapping[str, Any], kind: type, name: str) -> Any:
        """A dataclass of the library from its fields."""
        hints = _hints(kind)
        if not value.keys() <= hints.keys():
            raise _Unfit
        arguments = {key: self.argument(one, hints[key], f"{name}.{key}") for key, one in value.items()}
        return kind(**arguments) if self.builds else value

    def plain(self, value: Any, name: str) -> Any:
        """A plain value of which nothing is known."""
        if isinstance(value, Mapping):
            return {key: self.argument(one, Any, f"{name}.{key}") for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.argument(one, Any, name) for one in value]
        return _require(value, not isinstance(value, str) or self.is_only_text(value))

    def is_only_text(self, value: str) -> bool:
        """Whether nobody would take a text for the name of a class or of a file of arguments."""
        return self.builds or value in self.named or not (_is_dotted(value) or _is_file(value))


class _Unfit(Exception):
    """A value that does not fit one alternative of a type; tried for each of them."""


_LISTS = (list, Sequence, Iterable, Collection)
_MAPPINGS = (dict, Mapping)
_WITHOUT_CLASSES = {str, int, float, bool, type(None), Any}
_PLAIN = {str, int, float, bool, type(None), tuple, Literal, Path, os.PathLike, *_LISTS, *_MAPPINGS}


def _require(value: Any, fits: bool) -> Any:
    if not fits:
        raise _Unfit
    return value


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(one for part in typing.get_args(hint) for one in _alternatives(part))
    return (hint,)


def _class_of(hint: Any) -> Any:
    return object if hint is Any else typing.get_origin(hint) or hint


def _find(path: Any) -> type | None:
    """A class that any file may name."""
    if not isinstance(path, str):
        return None
    if path in _registered:
        return _registered[path]
    module, _, name = path.rpartition(".")
    if not all(part.isidentifier() for part in path.split(".")) or name.startswith("_"):
        return None
    if path.startswith("torchvision.datasets."):
        return getattr(import_module("torchvision.datasets"), name, None) if name in _TORCHVISION else None
    found: Any = None
    if not module:
        packages = (*(f"contrastive.{package}" for package in _WITH_SHORT_NAMES), "recsys")
        homes = (home for home in map(import_module, packages) if name in home.__all__)
        found = next((getattr(home, name) for home in homes), None)
    elif module.partition(".")[0] in _PACKAGES:
        found = _member(path)
    # A module of ours also holds what it imports.
    own = isinstance(found, type) and found.__module__.partition(".")[0] in _PACKAGES
    return found if own else None


def _member(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


def _hints(kind: type) -> dict[str, Any]:
    """Types of the arguments that a constructor takes by name, those that it hands on to its base included."""
    found: dict[str, Any] = {}
    for owner in kind.__mro__:
        if "__init__" not in vars(owner):
            continue
        constructor = vars(owner)["__init__"]
        try:
            hints = typing.get_type_hints(constructor)
            parameters = list(inspect.signature(constructor).parameters.values())[1:]
        except (NameError, TypeError, ValueError):  # names of types that exist for a type checker only
            break
        for one in parameters:
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
                found.setdefault(one.name, hints.get(one.name, Any))
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    return found


def _required(kind: type) -> list[str]:
    try:
        parameters = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):
        return []
    named = (one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY))
    return [one.name for one in named if one.default is one.empty]


def _is_dotted(text: str) -> bool:
    return "." in text and all(part.isidentifier() for part in text.split("."))


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than names may be, or with a NUL byte
        return False


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}..."


def _by_jsonargparse(part: Any, base: type, where: str) -> Any:
    from jsonargparse import ArgumentError, ArgumentParser

    from contrastive.parsing import spare_files

    if not isinstance(part, Mapping) or "class_path" not in part:
        raise InvalidValue(
            f"{where} has {_shown(part)} where class_path and init_args were expected; restore the file."
        )
    spare_files()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "part")
    # jsonargparse 4.49 renamed the method.
    construct = parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes
    try:
        return construct(parser.parse_object({"part": dict(part)})).part
    except ArgumentError as error:
        cause: BaseException = error  # the outermost message lists every type that was tried
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise InvalidValue(
            f"{where}: {part.get('class_path')} cannot be built from its init_args {_shown(part.get('init_args', {}))} "
            f"({cause}); make the configuration fit this version of the class, or give the object itself"
        ) from error
