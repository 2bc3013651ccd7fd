"""Short error messages for the command line: one line that names the mistake and the nearest right name.

jsonargparse explains a mistake as a tree of everything it tried. The readers below look for the deepest cause in that
tree and say it in one line; a message that none of them knows is passed on, shortened.
"""

import argparse
import difflib
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jsonargparse

LONGEST = 500
"""Characters of a message at most: the text of a file may stand in one where its path was meant."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return the member of ``choices`` that is spelt most like ``name``, or an empty string."""
    lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return lower[found[0]] if found else ""


def suggestion(name: str, choices: Iterable[str]) -> str:
    """Return ``did you mean X?``, or the choices themselves if none is close (or if there are only a few)."""
    choices = sorted(set(choices))
    close = nearest(name, choices)
    if close:
        return f"did you mean {close}?"
    return f"choose from {', '.join(choices)}" if choices else "see --help.full"


class ShortErrors(jsonargparse.ArgumentParser):
    """Parser that answers a mistake with one short line and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and leave; a parser that must not exit raises, as in the base class."""
        if not self.exit_on_error:
            super().error(message, ex)
        sys.stderr.write(f"contrastive: error: {explain(message, self._options())}\n")
        sys.exit(2)

    def _options(self) -> list[str]:
        """Return the options of the subcommand that is being parsed, or of this parser if it has none."""
        words = list(getattr(self, "args", ()))
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and words and words[0] in action.choices:
                return option_names(action.choices[words[0]])
        return option_names(self)


def explain(message: str, options: Sequence[str] = ()) -> str:
    """Shorten a message of jsonargparse to its cause.

    Args:
        message: The message.
        options: Dotted names of the options of the command, to look up what was misspelt.
    """
    keys = [key for key in re.findall(r'Parser key "([^"]+)"', message) if key != "config"]
    path = ".".join(keys)  # of the argument that was being read, model.objective for example
    owner = (["", *re.findall(r"Problem with given class_path '([^']+)'", message)])[-1]
    for pattern, reader in READERS.items():
        if found := re.search(pattern, message, re.MULTILINE):
            place = Place(path, owner, options_of(owner) if owner else list(options), message)
            return _cut(reader(found, place), LONGEST)
    return _cut(_compressed(message), LONGEST)


@dataclass(frozen=True)
class Place:
    """Where a message points: dotted path, import path of the class whose argument it is, that class's options."""

    path: str
    owner: str
    options: list[str]
    message: str

    @property
    def classes(self) -> str:
        """Names of the classes that fit here, in words; empty if there are none to name."""
        return ", ".join(sorted(class_names(self.owner, self.path)))


def _unknown_option(found: re.Match[str], place: Place) -> str:
    wrong = [word.split("=")[0].lstrip("-") for word in found[1].split() if word.startswith("-")]
    if found[0].startswith("unrecognized") and not wrong:
        return f"unexpected {found[1]!r}; options are written --name=value"
    if place.owner.startswith("torch."):
        return f"{place.path} has no class yet: name one with --{place.path}=... before its options"
    said = []
    for name in wrong or [re.sub(r"\.(init_args|class_path).*", "", found[1])]:
        if group := re.search(rf"Group '([^']+)' does not accept option '{re.escape(name)}'", place.message):
            name = f"{group[1]}.{name}"
        who = f"{short(place.owner)} has" if place.owner else "there is"
        said.append(f"{who} no option {join(place.path, name)}; {_nearest_option(name, place)}")
    return "; ".join(said)


def _nearest_option(name: str, place: Place) -> str:
    """Suggest an option; ``a.b`` is compared with what is below ``a``, if there is an ``a``."""
    parent, _, last = name.rpartition(".")
    below = [option for option in place.options if option.rpartition(".")[0] == parent]
    if near := nearest(last, [option.rpartition(".")[2] for option in below]):
        return f"did you mean {join(place.path, parent, near)}?"
    tops = sorted({option.split(".")[0] for option in place.options})
    if (near := nearest(name.split(".")[0], tops)) and near != name.split(".")[0]:
        return f"did you mean {join(place.path, near, *name.split('.')[1:])}?"
    return f"choose from {', '.join(option.rpartition('.')[2] for option in below) or ', '.join(tops)}"


def _missing(found: re.Match[str], place: Place) -> str:
    said = []
    for name in found[1].split(","):
        path = join(place.path, name.strip())
        names = ", ".join(sorted(class_names(place.owner, path)))
        choices = f" with one of {names}" if names else ""
        said.append(f"{short(place.owner) or 'this command'} needs {path}: give --{path}=...{choices}")
    return "; ".join(said)


# Methods that are looked for by name and are not here, or under another name: no guess from the spelling.
ELSEWHERE = {
    **dict.fromkeys(("vicreg", "byol", "dino", "mae", "barlowtwins", "swav", "simsiam"), ""),
    **dict.fromkeys(("triplet", "tripletloss", "tripletmarginloss", "arcface", "circleloss"), "SupCon"),
    **dict.fromkeys(("simclr", "ntxent", "moco", "clip", "dcl"), "InfoNCE"),
}


def _unknown_class(found: re.Match[str], place: Place) -> str:
    name = found[1].replace("-", "").replace("_", "").lower()
    if name in ELSEWHERE:
        names = ", ".join(sorted(class_names(place.owner, place.path)))
        near = f"nearest is {ELSEWHERE[name]}" if ELSEWHERE[name] else f"choose from {names}"
        return f"there is no {place.path} called {found[1]} here; {near}"
    return f"there is no {place.path} called {found[1]}; {suggestion(found[1], class_names(place.owner, place.path))}"


def _unknown_module(found: re.Match[str], place: Place) -> str:
    names = ", ".join(sorted(class_names("", place.path)))
    return (
        f"{place.path}: there is no module {found[1]} in the working directory or among the installed packages; "
        "a class of your own is given as FILE.CLASS" + (f", one of ours as {names}" if names else "")
    )


def _wrong_class(found: re.Match[str], place: Place) -> str:
    return (
        f"{place.path}: {short(found[1])} is no {found[2]}; choose from {place.classes or 'its subclasses'}"
    )


def _wrong_value(found: re.Match[str], place: Place) -> str:
    kinds = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text"}
    value = re.search(
        r"(?:Got value|Given value): (?:NestedArg\(key='[^']*', val=)?'?(.*?)'?\)?$", place.message, re.M
    )
    choices = re.fullmatch(r"typing\.Literal\[(.+)\]", found[1])
    expected = f"one of {choices[1]}" if choices else kinds.get(found[1], found[1])
    return f"{place.path} must be {expected}" + (f", not {_cut(value[1], 80)!r}" if value else "")


def _no_file(found: re.Match[str], place: Place) -> str:
    return f"there is no file {found[1]}"


# What a message contains -> who puts it into words. The first that fits is taken: causes stand before consequences.
READERS: dict[str, Callable[[re.Match[str], Place], str]] = {
    r"File does not exist: '([^']+)'": _no_file,
    r"unrecognized arguments: (.+)": _unknown_option,
    r"Option '([^']+)' is not accepted": _unknown_option,
    r"does not accept option '([^']+)'": _unknown_option,
    r"the following arguments are required: (.+)": _missing,
    r"Expected a dot import path string: (.+)": _unknown_class,
    r"No module named '([^']+)'": _unknown_module,
    r"Import path (\S+) does not correspond to a subclass of (\w+)": _wrong_class,
    r"Expected a (typing\.Literal\[.+?\])\.": _wrong_value,
    r"Expected a <class '(\w+)'>": _wrong_value,
}


def options_of(class_path: str) -> list[str]:
    """Return the dotted names of the options of a class, or nothing if it cannot be looked up."""
    try:
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(_find(class_path), fail_untyped=False)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
    return option_names(parser)


def option_names(parser: Any) -> list[str]:
    """Return the long options of a parser without their dashes; helpers and groups are left out."""
    names = [
        option[2:]
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    ]
    return [name for name in names if not re.search(r"(^|\.)help$|^print_|\+$", name)]


def class_names(owner: str, path: str) -> set[str]:
    """Return the short names of the classes that fit an argument.

    Args:
        owner: Import path of the class that takes the argument; empty for ``model`` and ``data`` themselves.
        path: Dotted path of the argument; its last part is the name.
    """
    try:
        if owner:
            base = typing.get_type_hints(_find(owner).__init__).get(path.rpartition(".")[2])
        else:
            lightning = importlib.import_module("lightning.pytorch")
            base = {"model": lightning.LightningModule, "data": lightning.LightningDataModule}.get(path)
    except (ImportError, AttributeError, NameError, TypeError):
        return set()
    kinds = [
        kind
        for kind in (typing.get_args(base) or (base,))
        if inspect.isclass(kind) and kind is not type(None)
    ]
    return {kind.__name__ for base in kinds for kind in _subclasses(base) if _presentable(kind)}


def _find(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _subclasses(kind: type) -> Iterable[type]:
    child: type
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def _presentable(kind: type) -> bool:
    """Leave out private classes and the hundreds that torch and Lightning define for themselves."""
    package = kind.__module__.split(".")[0]
    builtin = package in ("torch", "torchvision", "timm", "torchmetrics", "builtins")
    return not (builtin or kind.__name__.startswith("_") or "._" in kind.__module__)


def short(class_path: str) -> str:
    """Return the last part of an import path."""
    return class_path.rpartition(".")[2]


def join(*parts: str) -> str:
    """Join the parts of a dotted name that are not empty."""
    return ".".join(part for part in parts if part)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _compressed(message: str) -> str:
    """Keep the lines of a message that say something, as one line."""
    noise = (
        "Does not validate against",
        "Subtypes:",
        "Errors:",
        "Given value",
        "- Expected a <class 'NoneType'>",
    )
    lines = [line.strip() for line in message.splitlines()]
    return "; ".join(line.removeprefix("- ") for line in lines if line and not line.startswith(noise))
