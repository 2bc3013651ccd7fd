"""Short error messages for the command line: one line that names the mistake and the nearest right name.

jsonargparse explains a mistake as a tree of everything it tried. The readers below look for the deepest cause in that
tree and say it in one line; a message that none of them knows is passed on, shortened.
"""

import difflib
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Iterable
from typing import Any, NoReturn

import jsonargparse


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return the member of ``choices`` that is spelt most like ``name``, or an empty string."""
    lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return lower[found[0]] if found else ""


def suggestion(name: str, choices: Iterable[str]) -> str:
    """Return ``did you mean X?``, or the choices themselves if none is close (or if there are only a few)."""
    choices = sorted(set(choices))
    close = nearest(name, choices)
    if close:
        return f"did you mean {close}?"
    return f"choose from {', '.join(choices)}" if choices else "see --help.full"


class ShortErrors(jsonargparse.ArgumentParser):  # type: ignore[misc]
    """Parser that answers a mistake with one short line and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and leave; a parser that must not exit raises, as in the base class."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or getattr(self, "active", None) or self
        sys.stderr.write(f"{self.prog.split()[0]}: error: {explain(message, parser)}\n")
        self.exit(2)
        raise AssertionError  # not reached: exit does not return


def explain(message: str, parser: Any = None) -> str:
    """Shorten a message of jsonargparse to its cause.

    Args:
        message: The message.
        parser: The parser of the subcommand, to look option names up.
    """
    keys = [key for key in re.findall(r'Parser key "([^"]+)"', message) if key != "config"]
    path = ".".join(keys)
    owners = re.findall(r"Problem with given class_path '([^']+)'", message)
    owner = owners[-1] if owners else ""

    if found := re.search(r"Option '([^']+)' is not accepted", message):
        key = found[1].split(".init_args")[0].split(".class_path")[0]
        return f"{short(owner)} has no option {join(path, key)}; {_suggest_key(path, key, options_of(owner))}"
    if found := re.search(r"the following arguments are required: ([^\n]+)", message):
        return "; ".join(_required(owner, path, name.strip()) for name in found[1].split(","))
    if found := re.search(r"Expected a dot import path string: ([^\n]+)", message):
        names = class_names(owner, keys)
        return f"there is no {path} called {found[1]}; {suggestion(found[1], names)}"
    if found := re.search(r"No module named '([^']+)'", message):
        return (
            f"{path}: no module {found[1]!r} in the working directory or among the installed packages; "
            f"write FILE.CLASS for a class of your own, or one of {', '.join(sorted(class_names('', keys[:1])))}"
        )
    if found := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", message):
        names = ", ".join(sorted(class_names(owner, keys)))
        return f"{path}: {short(found[1])} is no {found[2]}" + (f"; choose from {names}" if names else "")
    if found := re.search(r"unrecognized arguments: (.+)", message):
        names = option_names(parser)
        wrong = [word.split("=")[0].lstrip("-") for word in found[1].split() if word.startswith("-")]
        if not wrong:
            return f"unexpected {found[1]!r}; options are written --name=value"
        return "; ".join(f"there is no option --{name}; {_suggest_key('', name, names)}" for name in wrong)
    if found := re.search(r"does not accept option '([^']+)'", message):
        return f"there is no option {found[1]}; {_suggest_key('', found[1], option_names(parser), prefix='')}"
    if found := re.search(r"(?:invalid choice|Expected .*subcommand).*", message):
        return re.sub(r"\s+", " ", message)
    if (found := re.search(r"Expected a <class '(\w+)'>", message)) and path:
        value = re.search(r"(?:Got value|Given value): (?:NestedArg\(key='[^']*', val=)?(.+?)\)?$", message, re.M)
        return f"{path} must be {_article(found[1])}" + (f", not {value[1]}" if value else "")
    return _compressed(message)


def _required(owner: str, path: str, name: str) -> str:
    """Say that a part is missing and what it can be."""
    names = class_names(owner, [*path.split("."), name])
    choices = f", one of {', '.join(sorted(names))}" if names else ""
    return f"{short(owner) or 'the command'} needs {join(path, name)}: give --{join(path, name)}=VALUE{choices}"


def _suggest_key(path: str, key: str, choices: Iterable[str], prefix: str = "--") -> str:
    """Suggest a dotted option; a name is first compared with those at the same depth below the same parent."""
    choices = list(choices)
    depth = key.count(".")
    near = nearest(key, [choice for choice in choices if choice.count(".") == depth]) or nearest(key, choices)
    head = key.split(".")[0]
    if not near and depth and (close := nearest(head, {choice.split(".")[0] for choice in choices})) != head:
        near = close
    if near:
        return f"did you mean {prefix}{join(path, near)}?"
    heads = sorted({choice.split(".")[0] for choice in choices})
    return f"it has {', '.join(heads)}" if heads else "it has none"


def options_of(class_path: str) -> list[str]:
    """Return the dotted names of the options of a class, or nothing if it cannot be looked up."""
    try:
        module, _, name = class_path.rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(kind, fail_untyped=False)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
    return option_names(parser)


def option_names(parser: Any) -> list[str]:
    """Return the long options of a parser without their dashes; helpers and groups are left out."""
    if parser is None:
        return []
    strings = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    return [name[2:] for name in strings if not re.search(r"\.help$|^print_|\+$", name)]


def class_names(owner: str, keys: list[str]) -> set[str]:
    """Return the short names of the classes that fit a part.

    Args:
        owner: Import path of the class that takes the part; empty for ``model`` and ``data`` themselves.
        keys: Path of the part; the last one is the name of the argument.
    """
    base: Any = None
    try:
        if owner:
            module, _, name = owner.rpartition(".")
            hints = typing.get_type_hints(getattr(importlib.import_module(module), name).__init__)
            base = hints.get(keys[-1])
        elif keys and keys[0] in ("model", "data"):
            lightning = importlib.import_module("lightning.pytorch")
            base = {"model": lightning.LightningModule, "data": lightning.LightningDataModule}[keys[0]]
    except (ImportError, AttributeError, NameError, TypeError):
        return set()
    kinds = [kind for kind in (typing.get_args(base) or (base,)) if inspect.isclass(kind) and kind is not type(None)]
    names = {kind.__name__ for base in kinds for kind in _subclasses(base) if _presentable(kind)}
    if "objective" in keys[-1:]:
        return names
    return {name for name in names if name}


def _subclasses(kind: type) -> Iterable[type]:
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


def _article(kind: str) -> str:
    return {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text"}.get(kind, f"a {kind}")


def _compressed(message: str) -> str:
    """Keep the lines of a message that say something, as one line."""
    noise = ("Does not validate against", "Subtypes:", "Errors:", "Given value", "- Expected a <class 'NoneType'>")
    lines = [line.strip() for line in message.splitlines()]
    return "; ".join(line.removeprefix("- ") for line in lines if line and not line.startswith(noise))
