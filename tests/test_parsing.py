"""A file named where a text is accepted stays a path: on the command line, in YAML, and in the folder of a run."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import _typehints
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from contrastive import parsing
from contrastive.building import build
from contrastive.cli import main

TINY = """
model:
  encoder: {class_path: contrastive.encoders.ConvEncoder, init_args: {widths: [8], blocks: [0]}}
  views: {class_path: SimCLRViews, init_args: {size: 8}}
  objective: {class_path: InfoNCE}
data: {batch_size: 4, validation_fraction: 0.2}
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false}
extras: {evaluate: false, report: false}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a configuration and ten pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "pictures").mkdir()
    for i in range(10):
        Image.new("RGB", (8, 8), (25 * i, 0, 0)).save(tmp_path / f"pictures/{i}.png")
    yield tmp_path
    sys.modules.pop("mine", None)


def write_list(name: str, heading: bool, rows: int = 10) -> str:
    mark = "\t" if name.endswith("tsv") else ","
    lines = [f"{i}.png{mark}{'ab'[i % 2]}" for i in range(rows)]
    Path("pictures", name).write_text("\n".join([f"path{mark}label"] * heading + lines) + "\n")
    return f"pictures/{name}"


@pytest.mark.parametrize(("name", "heading"), [("l.csv", True), ("l.tsv", False), ("l.txt", False)])
@pytest.mark.parametrize("in_yaml", [False, True])
def test_fit_takes_lists_of_files(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, heading: bool, in_yaml: bool
) -> None:
    train, test = write_list(name, heading), write_list(f"test_{name}", heading, rows=4)
    options = [f"--data.source={train}", f"--data.test={test}"]
    if in_yaml:
        Path("mine.yaml").write_text(yaml.safe_dump({"data": {"source": train, "test": test}}))
        options = ["--config=mine.yaml"]
    assert main(["fit", "--config=tiny.yaml", *options, "--run_dir=run"]) == 0
    assert f"{train}, 8 samples" in capsys.readouterr().out
    saved = yaml.safe_load(Path("run/config.yaml").read_text())["data"]["init_args"]
    assert (saved["source"], saved["test"]) == (train, test)


def test_a_saved_run_names_the_list_and_not_its_lines(folder: Path) -> None:
    path = write_list("l.csv", heading=True)
    part = {"class_path": "contrastive.data.ImageData", "init_args": {"source": path, "test": path}}
    data = build(part, LightningDataModule, "config.yaml", trust=True)
    assert (data.source, data.test) == (path, path)


class Rows(LightningDataModule):
    """A user's data with texts beside classes, alone and in collections."""

    def __init__(
        self,
        where: str | Dataset,  # type: ignore[type-arg]
        several: list[str | Dataset] | None = None,  # type: ignore[type-arg]
        by_name: dict[str, Path | Dataset] | None = None,  # type: ignore[type-arg]
    ) -> None:
        super().__init__()
        print("texts:", where, several, {name: str(path) for name, path in (by_name or {}).items()})

    def train_dataloader(self) -> object:
        """Four rows of zeros."""
        return DataLoader(TensorDataset(torch.zeros(4, 3)), batch_size=2)


MINE = """
import torch
from lightning.pytorch import LightningModule

class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""


def test_options_of_a_users_class_are_spared_as_well(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine.py").write_text(MINE)
    Path("words.txt").write_text("one\ntwo\n")
    monkeypatch.syspath_prepend(folder)
    data = [f"--data={Rows.__module__}.Rows", "--data.where=words.txt"]
    more = ["--data.several=[words.txt,other]", '--data.by_name={"a": "words.txt"}']
    options = [
        "--trainer.fast_dev_run=true",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    assert main(["fit", "--model=mine.Line", *data, *more, *options]) == 0
    assert "texts: words.txt ['words.txt', 'other'] {'a': 'words.txt'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option", ["--data=l.csv", "--config=l.csv", "--model.views=l.csv", "--data.source=l.csv"]
)
def test_no_error_prints_a_list_back(folder: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    Path("l.csv").write_text("path,label\n" + "".join(f"absent{i}.png,{i % 3}\n" for i in range(2000)))
    assert main(["fit", "--config=tiny.yaml", option]) in (1, 2)
    said = capsys.readouterr().err
    assert len(said) < 600
    assert "absent900.png" not in said


def test_the_names_of_jsonargparse_are_as_they_were() -> None:
    """If this fails, jsonargparse has moved what ``contrastive/parsing.py`` replaces: find it, or the public way."""

    def parameters(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert parameters(parsing._among_all) == ["cls", "name"]
    assert parameters(parsing._discard_what_does_not_fit) == ["parser_or_action", "prev_val", "value"]
    assert parameters(_typehints.ActionTypeHint.get_class_parser)[:2] == ["val_class", "sub_add_kwargs"]
    assert {"kwargs", "enable_path"} <= set(parameters(parsing._prepare))
    for name in ("resolve_class_path_by_name", "discard_init_args_on_class_path_change"):
        assert f"{name}(" in inspect.getsource(_typehints)  # it is called by this name, so ours is
    assert callable(_typehints.get_import_path)
