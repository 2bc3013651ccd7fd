"""Command lines that ask for what cannot be: one sentence, nothing written."""

from pathlib import Path

import pytest
import torch

from contrastive.cli import main
from contrastive.cli.errors import Place, _unknown_class
from contrastive.cli.request import run_name
from contrastive.errors import InvalidValue
from contrastive.retrieval import Index


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Index.build(torch.randn(9, 4)).save("index")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "--index", "index", "--id", "7", "--k", "0"], "k is 0"),
        (["search", "--index", "index", "--id", "7", "--k", "9" * 20], "k is"),
        (["index", "--embeddings", "none", "--out", "o", "--recall", "2"], "recall is 2"),
        (["index", "--embeddings", "none", "--out", "o", "--recall", "-1"], "recall is -1"),
        (["index", "--embeddings", "none", "--out", "o", "--memory_budget_gb", "-1"], "memory_budget_gb is -1"),
        (["index", "--embeddings", "none", "--out", "o", "--seed", "-1"], "seed is -1"),
        (["few-shot", "--run", "none", "--way", "1"], "way is 1"),
        (["embed", "--run", "none", "--out", ""], "out is empty"),
        (["embed", "--encoder", "timm/resnet10t", "--pretrained", "false", "--source", "digits", "--out", "o",
          "--device", "nope"], "device is 'nope'"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_refused(folder, capsys, words, message):
    before = sorted(path.name for path in folder.iterdir())
    assert main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("contrastive: error: ")
    assert message in said
    assert sorted(path.name for path in folder.iterdir()) == before


def test_more_neighbours_than_there_are_items_are_all_of_them(folder, capsys):
    assert main(["search", "--index", "index", "--id", "7", "--k", "1000000000"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9  # the heading, and all but the item itself


@pytest.mark.parametrize("name", ["../../x", "/x", "a/../../b"])
def test_a_name_of_a_run_leads_out_of_no_folder(name):
    with pytest.raises(InvalidValue, match="no name of a run"):
        run_name([f"--name={name}"])
    assert run_name(["--name=a/b"]) == str(Path("a/b"))


def test_methods_that_are_not_here_are_not_guessed_from_their_spelling():
    import re

    place = Place("model.objective", "contrastive.training.Pretrain", [], "")
    said = _unknown_class(re.match("(.*)", "VICReg"), place)
    assert "no model.objective called VICReg here; choose from" in said
    assert "did you mean" not in said
    assert _unknown_class(re.match("(.*)", "SimCLR"), place).endswith("nearest is InfoNCE")
