"""Classes: those that exist, by name; their labels 0, 1, ... are places in the list of names.

Whatever a source calls its classes, in texts or in numbers of any size, the name is what it says: the number 205 names
the class ``"205"``. So nothing grows with the largest number, and classes of several splits are the same where their
names are.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contrastive.data.images import Images, Split
from contrastive.errors import InvalidValue


def integer_classes(values: Sequence[int] | NDArray[Any]) -> tuple[Tensor, list[str]]:
    """Classes called by whole numbers, in the order of the numbers.

    Args:
        values: ``(N,)`` whole numbers of any size, at least 0.

    Returns:
        Labels ``(N,)`` int64, and the names of the classes.
    """
    numbers, labels = np.unique(as_integers(values), return_inverse=True)
    return torch.from_numpy(labels.reshape(-1)).long(), [str(number) for number in numbers.tolist()]


def as_integers(values: Sequence[int] | NDArray[Any]) -> NDArray[Any]:
    """Whole numbers as an array, of Python's own integers where 64 bits do not hold them."""
    if isinstance(values, np.ndarray):
        return values
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        return np.array(values, dtype=object)


def text_classes(values: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Classes called by texts, in alphabetical order, or in that of the numbers if all of them are whole numbers.

    Args:
        values: ``(N,)`` texts. Different texts are different classes: ``007`` and ``7`` too.

    Returns:
        Labels ``(N,)`` int64, and the names of the classes.
    """
    names = list(set(values))
    names.sort(key=_size if all(map(is_whole, names)) else None)
    places = {name: place for place, name in enumerate(names)}
    return torch.tensor([places[value] for value in values], dtype=torch.int64), names


def is_whole(text: str) -> bool:
    """Whether a text is a whole number, written in digits."""
    return re.fullmatch("-?[0-9]+", text) is not None


def _value(text: str) -> str:
    """A whole number without leading zeros; as a text, as it may have more digits than Python converts."""
    return text.lstrip("0") or "0"


def _size(text: str) -> tuple[int, str, str]:
    return len(_value(text)), _value(text), text


def labelled(images: Images, values: Sequence[int] | NDArray[Any], names: Sequence[Any] | None) -> Split:
    """A split whose source gives whole numbers, and perhaps a name for each number 0, 1, ...

    Of classes with the same name, each is told from the others by its number.

    Raises:
        ValueError: if a label is negative, or is beyond the names.
    """
    given = as_integers(values)
    bad = given < 0
    if names:
        bad = bad | (given >= len(names))
    if bad.any():
        row = int(bad.nonzero()[0][0])
        accepted = f"from 0 to {len(names) - 1}" if names else "from 0 up"
        raise InvalidValue(
            f"ImageData: {images.where(row)} has the label {given[row]}, and {int(bad.sum())} of {len(given)} labels "
            f"are not in the accepted range, {accepted}. Correct them; images without a label belong into a source "
            "without labels."
        )
    if not names:
        return Split(images, *integer_classes(given))
    return Split(images, torch.from_numpy(given.astype(np.int64)), _told_apart([str(name) for name in names]))


def _told_apart(names: list[str]) -> list[str]:
    counts = Counter(names)
    return [f"{name} (label {number})" if counts[name] > 1 else name for number, name in enumerate(names)]


def align(split: Split, train: Split, what: str) -> Split:
    """Number the classes of another split as in the training split, see :func:`align_labels`."""
    if train.labels is None or split.labels is None:
        return replace(split, labels=None, class_names=[])
    labels = align_labels(
        split.labels, split.class_names, train.class_names, f"ImageData: {{}} of the {what} split"
    )
    return replace(split, labels=labels, class_names=train.class_names)


def align_labels(labels: Tensor, names: list[str], known: list[str], what: str) -> Tensor:
    """Number classes as another list of names does, which may have more of them.

    Classes are the same where their names are. A whole number is also the class whose name has zeros before it (7 the
    class ``007``), if there is just one.

    Args:
        labels: ``(N,)`` places in ``names``.
        names: of the classes.
        known: the other list.
        what: beginning of a message, with ``{}`` for the classes.

    Returns:
        ``(N,)`` places in ``known``.

    Raises:
        ValueError: if a class is not among those that are known.
    """
    if names == known:
        return labels
    places = {name: place for place, name in enumerate(known)}
    padded: dict[str, list[int]] = {}
    for name, place in places.items():
        if is_whole(name):
            padded.setdefault(_value(name), []).append(place)
    found: list[int | None] = []
    for name in names:
        alike = padded.get(_value(name), []) if is_whole(name) else []
        found.append(places.get(name, alike[0] if len(alike) == 1 else None))
    unknown = [name for name, place in zip(names, found, strict=True) if place is None]
    if unknown:
        raise InvalidValue(
            f"{what.format(f'{len(unknown)} classes')}, {unknown[0]!r} for one, are not among the {len(places)} of the "
            f"training split ({_few(known)}). {_advice(unknown, known)}"
        )
    if len(set(found)) < len(found):
        raise InvalidValue(
            f"{what.format('two classes')} ({_few(names)}) are one of the training split ({_few(known)}): their names "
            "differ in zeros only. Write them as in the training split."
        )
    return torch.tensor(found, dtype=torch.int64)[labels]


def _advice(unknown: list[str], known: list[str]) -> str:
    if all(map(is_whole, unknown)) and not any(map(is_whole, known)):
        return (
            "Classes are matched by name, and numbers name no positions: write the names in place of the numbers (a "
            "data set names its classes by an attribute `classes`)."
        )
    return "Give splits of different classes to one ImageData each, as a source of its own."


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
