"""Options are checked the same way everywhere, and numbers come back as Python's own."""

import re

import numpy as np
import pytest
import torch

from contrastive.checks import check_choice, check_flag, check_number, check_whole

NO_NUMBERS = [None, "3", b"3", True, np.True_, torch.tensor(True), [3], torch.ones(2), {}, 1j]


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_whole_numbers_of_any_type(value):
    number = check_whole("f", "k", value)
    assert number == 3
    assert type(number) is int
    assert type(check_number("f", "k", value)) is float


@pytest.mark.parametrize("value", [*NO_NUMBERS, 3.0, np.float32(3), float("nan")])
def test_what_is_no_whole_number(value):
    with pytest.raises(TypeError, match=r"^f: k is .*; give a whole number of 1 or more\.$"):
        check_whole("f", "k", value)


@pytest.mark.parametrize(
    ("value", "least", "most", "said"),
    [
        (0, 1, 2**63 - 1, "f: k is 0; give a whole number of 1 or more."),
        (np.int8(-1), 0, 2**63 - 1, "f: k is -1; give a whole number of 0 or more."),
        (7, 1, 6, "f: k is 7; give a whole number from 1 to 6."),
        (2**70, 0, 2**63 - 1, f"f: k is {2**70}; give a whole number from 0 to 2^63 - 1."),
        (10**5000, 0, 9, "f: k is a number of thousands of digits; give a whole number from 0 to 2^63 - 1."),
    ],
    ids=range(5),
)
def test_whole_numbers_outside(value, least, most, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        check_whole("f", "k", value, least, most)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number(value):
    with pytest.raises(TypeError, match=r"^f: x is .*; give a finite number\.$"):
        check_number("f", "x", value)


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "said"),
    [
        ("[0, 1)", [0, 0.5], [-1e-9, 1, np.nan], "number in [0, 1)"),
        ("(0, 1]", [1e-9, np.float32(1)], [0, 1.5], "number in (0, 1]"),
        ("(0, inf)", [1e-300, 1e300], [0, -1, np.inf, 10**400], "number above 0"),
        ("[0, inf)", [0, 7], [-1e-9, np.nan, torch.tensor(-1.0)], "number of 0 or more"),
        ("(-inf, inf)", [-1e300], [np.inf, -np.inf, np.nan], "finite number"),
    ],
)
def test_numbers_of_an_interval(interval, inside, outside, said):
    for value in inside:
        assert check_number("f", "x", value, interval) == value
    for value in outside:
        with pytest.raises(ValueError, match=f"; give a {re.escape(said)}\\.$"):
            check_number("f", "x", value, interval)


def test_choices_and_flags():
    check_choice("f", "mode", "cos", ("dot", "cos"))
    check_choice("f", "mode", None, ("dot", None))
    for wrong in ("cosine", None, 0, np.array(["cos"]), ["cos"]):
        with pytest.raises(ValueError, match=r"^f: mode is .*; give one of 'dot', 'cos'\.$"):
            check_choice("f", "mode", wrong, ("dot", "cos"))
    assert check_flag("f", "on", np.True_) is True
    for wrong in (1, None, "yes"):
        with pytest.raises(TypeError, match=r"on is .*; give True or False"):
            check_flag("f", "on", wrong)


def test_a_long_value_is_cut():
    with pytest.raises(ValueError, match=r"^f: mode is .{77}\.\.\.; give"):
        check_choice("f", "mode", "x" * 1000, ("dot", "cos"))
