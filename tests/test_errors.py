"""A user's mistake is an exception of our own, wherever it is noticed; anything else is a fault and shows its place."""

import ast
import pickle
from pathlib import Path

import pytest

import contrastive
import recsys
from contrastive import errors
from contrastive.cli import main

BUILT_IN = {"ValueError", "TypeError", "OSError", "ImportError", "FileNotFoundError", "FloatingPointError"}
OURS = [kind for kind in vars(errors).values() if isinstance(kind, type)]


def _raised(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    return {call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}


@pytest.mark.parametrize("package", [contrastive, recsys], ids=lambda package: package.__name__)
def test_no_file_raises_a_built_in_exception_at_a_user(package):
    found = {}
    for path in Path(package.__file__).parent.rglob("*.py"):
        if path.name != "testing.py" and (raised := _raised(path) & BUILT_IN):
            found[path.name] = raised
    assert not found


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_the_sentence_survives_print_and_pickle(kind):
    error = kind("k is 0; give 1 or more.")
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == "k is 0; give 1 or more."


def test_the_command_line_prints_the_sentence_of_a_mistake_and_the_traceback_of_a_fault(monkeypatch, capsys):
    from contrastive.cli import commands

    def mistake(*_):
        raise errors.InvalidValue("k is 0; give 1 or more.")

    def fault(*_):
        first, second = (1, 2, 3)
        return first, second

    monkeypatch.setattr(commands, "run_command", mistake)
    assert main(["list"]) == 1
    assert capsys.readouterr().err == "contrastive: error: k is 0; give 1 or more.\n"
    monkeypatch.setattr(commands, "run_command", fault)
    with pytest.raises(ValueError, match="too many values to unpack"):
        main(["list"])
