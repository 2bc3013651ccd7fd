"""What a command line asks for, read from its words and configuration files before anything is parsed.

A checkpoint has to be known before parsing, as its values stand below all others.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contrastive.cli.errors import short
from contrastive.errors import FileMissing, InvalidValue
from contrastive.reading import read_mapping


def typed(words: Sequence[str], *options: str) -> list[str]:
    """Return the values of options, given as ``--option=value`` or ``--option value``, in order."""
    values = []
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in options and (equals or position + 1 < len(words)):
            values.append(value if equals else words[position + 1])
    return values


SHIPPED = Path(__file__).parents[1] / "configs"


def shipped_configurations() -> list[str]:
    """Names of the configurations that come with the library, as ``quickstart`` and ``vision/beclr_digits``."""
    return sorted(path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.yaml"))


def with_shipped(words: Sequence[str]) -> list[str]:
    """Put the file in the place of the name of a configuration that comes with the library.

    A file of the user's of that name goes first.

    Raises:
        FileNotFoundError: If there is neither.
    """
    found = list(words)
    for position, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option not in ("--config", "-c"):
            continue
        place = position
        if not equals and (place := position + 1) < len(words):
            value = words[place]
        name = Path(value)
        if not value or name.suffix or name.exists() or value[0] in "-{[":
            continue  # a file, or the configuration itself; the parser says what is wrong with it
        names = shipped_configurations()
        if name.as_posix() not in names:
            raise FileMissing(
                f"--config {value} is no file, and no configuration that comes with the library: {', '.join(names)}."
            )
        path = str(SHIPPED / f"{name.as_posix()}.yaml")
        found[place] = f"{option}={path}" if equals else path
    return found


def files(words: Sequence[str]) -> list[dict[str, Any]]:
    """Read the configuration files of a command line, in order.

    Raises:
        ValueError: If one is no valid YAML.
    """
    contents = []
    for path in typed(words, "--config", "-c"):
        if not Path(path).is_file():
            continue  # the parser says so
        contents.append(read_mapping(path, "correct it"))
    return contents


def texts(words: Sequence[str]) -> set[str]:
    """Return every text of a command line and its configuration files: what the user has named."""
    found = {word.partition("=")[2] or word for word in words}
    left: list[Any] = list(files(words))
    while left:
        part = left.pop()
        if isinstance(part, dict):
            left.extend(part.values())
        elif isinstance(part, list):
            left.extend(part)
        elif isinstance(part, str):
            found.add(part)
    return found


def given(words: Sequence[str], option: str) -> str | None:
    """Return the value of an option: from the command line, else from the last configuration file that has it."""
    values = [content[option] for content in files(words) if option in content] + typed(words, f"--{option}")
    return values[-1] if values and values[-1] != "null" else None


def has_own_seed(words: Sequence[str], part: str) -> bool:
    """Whether the model or the data were given a seed of their own, rather than that of everything.

    A configuration that a run has written names all seeds; those that are alike there were not chosen apart.
    """
    if typed(words, f"--{part}.seed", f"--{part}.init_args.seed"):
        return True
    for content in files(words):
        section = content.get(part)
        arguments = section.get("init_args", section) if isinstance(section, dict) else {}
        seed = arguments.get("seed") if isinstance(arguments, dict) else None
        if seed is not None and seed != content.get("seed_everything"):
            return True
    return False


def run_name(words: Sequence[str]) -> str:
    """Return the name of the run: as given, else that of the last configuration file, else ``run``."""
    paths = typed(words, "--config", "-c")
    name = given(words, "name") or (Path(paths[-1]).stem if paths else "run")
    if ".." in Path(name).parts or Path(name).is_absolute() or "\0" in name:
        raise InvalidValue(
            f"--name={name!r} is no name of a run; give letters, or --run_dir for another folder."
        )
    return name


def kept(words: Sequence[str], model: Any) -> list[str]:
    """Name the values that a class typed on the command line takes over from another in the configuration.

    If both have an argument of one name, the parser keeps its value although the class has changed.

    Args:
        words: The command line.
        model: The resolved model.

    Returns:
        One line for each part of the model whose class was replaced and that kept something.
    """
    notes = []
    for content in files(words):
        written = content.get("model") or {}
        parts = written.get("init_args", written) if isinstance(written, dict) else {}
        for part, description in parts.items():
            classes = typed(words, f"--model.{part}")
            if not classes or not isinstance(description, dict) or "class_path" not in description:
                continue
            new, old = short(classes[-1]), short(description["class_path"])
            now = (model["init_args"].get(part) or {}).get("init_args") or {}
            same = [
                f"{name}={value}"
                for name, value in (description.get("init_args") or {}).items()
                if now.get(name) == value and not typed(words, f"--model.{part}.{name}")
            ]
            if new != old and same:
                notes.append(
                    f"model.{part}: {new} keeps {', '.join(same)}, which the configuration gave to {old}"
                )
    return notes
