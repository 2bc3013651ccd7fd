"""Checks of options: whole numbers, numbers of an interval, choices, and flags.

Each refuses in one sentence that names the caller, the option, what was given and what is expected. The checks of
numbers return a plain `int` or `float`, whatever number type of NumPy's or torch's was given, so that it can be written
into a configuration; a Boolean is no number.
"""

import math
import operator
from typing import Any

import numpy as np
import torch

from contrastive.errors import InvalidType, InvalidValue

LARGEST = 2**63 - 1  # what an int64 holds


def check_whole(name: str, option: str, value: Any, least: int = 1, most: int = LARGEST) -> int:
    """Return a whole number from ``least`` to ``most`` as an `int`.

    Args:
        name: of the function or class that was called.
        option: of its argument.
        value: what was given.
        least: the smallest that is allowed.
        most: the largest.

    Raises:
        TypeError: it is no whole number; 3.0 and True are none.
        ValueError: it lies outside.
    """
    span = f"of {least} or more" if most == LARGEST else f"from {least} to {most}"
    try:
        number = None if _is_flag(value) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise InvalidType(f"{name}: {option} is {shown(value)}; give a whole number {span}.")
    if not least <= number <= most:
        span = f"from {least} to 2^63 - 1" if number > LARGEST else span
        raise InvalidValue(f"{name}: {option} is {shown(number)}; give a whole number {span}.")
    return number


def check_number(name: str, option: str, value: Any, interval: str = "(-inf, inf)") -> float:
    """Return a finite number of an interval as a `float`.

    Args:
        name: of the function or class that was called.
        option: of its argument.
        value: what was given.
        interval: as ``"[0, 1)"``, 0 allowed and 1 not, or ``"(0, inf)"``.

    Raises:
        TypeError: it is no number; True is none.
        ValueError: it lies outside, or is NaN or infinite.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    try:
        number = None if _is_flag(value) or isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several elements
        number = None
    except OverflowError:
        number = math.inf
    if number is None:
        raise InvalidType(f"{name}: {option} is {shown(value)}; give a {_describe(interval, low, high)}.")
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    if not (math.isfinite(number) and above and below):
        raise InvalidValue(f"{name}: {option} is {shown(value)}; give a {_describe(interval, low, high)}.")
    return number


def _describe(interval: str, low: float, high: float) -> str:
    if math.isfinite(low) and math.isfinite(high):
        return f"number in {interval}"
    if math.isfinite(low):
        return f"number of {low:g} or more" if interval[0] == "[" else f"number above {low:g}"
    return "finite number"


def check_choice(name: str, option: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse a value of ``option`` that is none of ``choices``.

    Raises:
        ValueError: names the choices.
    """
    if type(value) in (str, bool) and value in choices:
        return
    # An array would compare element by element.
    if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
        raise InvalidValue(
            f"{name}: {option} is {shown(value)}; give one of {', '.join(map(repr, choices))}."
        )


def check_flag(name: str, option: str, value: Any) -> bool:
    """Return True or False.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise InvalidType(f"{name}: {option} is {shown(value)}; give True or False.")
    return bool(value)


def shown(value: Any) -> str:
    """Return what a message says of a value: its `repr`, cut after 80 characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool | np.bool_) or (
        isinstance(value, torch.Tensor) and value.dtype == torch.bool
    )
