"""What comes from others is data: a run, a recommender or a checkpoint chooses no code, unless the user trusts it."""

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import contrastive
from contrastive import ConvEncoder, ImageData, save_encoder
from contrastive.building import build, refuse_foreign
from contrastive.cli import main
from contrastive.errors import FileMissing, InvalidType, InvalidValue
from contrastive.evaluation import load_run_encoder
from contrastive.evaluation.run import prepare_data
from contrastive.training import load_classifier

# Says that it was imported, and what was built or called, by what it leaves in the working directory.
MARKER = """
from pathlib import Path
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import Dataset
from contrastive import ConvEncoder
from contrastive.data import ImageData

Path("imported").touch()

def mark(path):
    Path("called").touch()

class Encoder(ConvEncoder):
    pass

class Data(ImageData):
    pass

class Model(LightningModule):
    pass

class Pictures(Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, row):
        return torch.full((1, 8, 8), row / 40), row % 2
"""
ENCODER = {"in_channels": 1, "widths": [4], "blocks": [0]}
DIGITS = {
    "class_path": "contrastive.data.ImageData",
    "init_args": {"source": "digits", "size": 8, "channels": 1},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the marker, which can be imported, and a picture."""
    (tmp_path / "marker_mod.py").write_text(MARKER)
    (tmp_path / "pics" / "a").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "pics" / "a" / "0.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("marker_mod", None)


def write_run(data=DIGITS, encoder="contrastive.encoders.ConvEncoder", name="run"):
    torch.manual_seed(0)
    save_encoder(ConvEncoder(**ENCODER), Path(name) / "encoder")
    described = {"class_path": encoder, "init_args": ENCODER}
    model = {"class_path": "contrastive.training.Pretrain", "init_args": {"encoder": described}}
    Path(name, "config.yaml").write_text(yaml.safe_dump({"data": data, "model": model}))
    return name


def nothing_ran():
    return "marker_mod" not in sys.modules and not Path("imported").exists() and not Path("called").exists()


def source(class_path, **init_args):
    described = {"class_path": class_path, "init_args": init_args}
    return {**DIGITS, "init_args": {**DIGITS["init_args"], "source": described}}


FOREIGN_RUNS = {
    "data": {"data": {"class_path": "marker_mod.Data", "init_args": {}}},
    "data set": {"data": source("marker_mod.Pictures")},
    "function of a data set": {
        "data": source("torchvision.datasets.ImageFolder", root="pics", loader="marker_mod.mark")
    },
    "encoder": {"encoder": "marker_mod.Encoder"},
    "wrong kind": {"data": {"class_path": "marker_mod.Model"}, "encoder": "marker_mod.Model"},
    "through a module of ours": {
        "data": {"class_path": "contrastive.cli.fit.LightningDataModule"},
        "encoder": "contrastive.training.pretrain.nn.Identity",
    },
}
COMMANDS = {
    "knn": ["--run", "run"],
    "probe": ["--run", "run"],
    "evaluate": ["--run", "run"],
    "few-shot": ["--run", "run"],
    "embed": ["--out", "out", "--run", "run"],
    "search": ["--index", "index", "--image", "pics/a/0.png", "--run", "run"],
    "export": ["--run", "run", "--out", "model.pt", "--format", "torchscript"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", FOREIGN_RUNS)
def test_no_command_imports_or_builds_what_a_run_names(folder, capsys, command, kind):
    write_run(**FOREIGN_RUNS[kind])
    assert main([command, *COMMANDS[command]]) == 1
    said = capsys.readouterr().err
    assert said.startswith("contrastive: error: ")
    assert said.count("\n") == 1
    assert "--trust_run" in said
    assert nothing_ran()


@pytest.mark.parametrize("kind", FOREIGN_RUNS)
def test_a_report_says_that_it_left_out_what_a_run_names(folder, capsys, kind):
    write_run(**FOREIGN_RUNS[kind])
    assert main(["report", "--run", "run"]) == 0
    assert "No pictures: " in Path("run/report.html").read_text()
    assert "--trust_run" in Path("run/report.html").read_text()
    assert nothing_ran()


def test_the_explorer_does_not_build_what_a_run_names(folder):
    pytest.importorskip("fastapi")
    from contrastive.retrieval.explorer.upload import ImageEncoder

    for kind in FOREIGN_RUNS.values():
        with pytest.raises(InvalidValue, match="--trust_run"):
            ImageEncoder(write_run(**kind))
    assert nothing_ran()


def test_a_trusted_run_is_built_whole(folder, capsys):
    write_run(source("marker_mod.Pictures"), "marker_mod.Encoder")
    assert main(["knn", "--run", "run", "--k", "1", "--trust_run"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert Path("imported").exists()
    assert type(load_run_encoder("run", trust=True)).__name__ == "Encoder"
    assert len(prepare_data("run", trust=True).known.train_labels) == 40


def test_the_sentence_names_the_class(folder, capsys):
    write_run(encoder="marker_mod.Encoder")
    assert main(["knn", "--run", "run"]) == 1
    assert "run/config.yaml names the class marker_mod.Encoder" in capsys.readouterr().err
    with pytest.raises(InvalidValue, match=r"marker_mod\.Encoder.*trust=True"):
        load_run_encoder("run")
    (folder / "run" / "classifier").mkdir()
    torch_file = folder / "run" / "classifier" / "classifier.safetensors"
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, torch_file)
    with pytest.raises(InvalidValue, match=r"marker_mod\.Encoder"):
        load_classifier("run")
    with pytest.raises(InvalidValue, match=r"marker_mod\.Encoder"):
        contrastive.FineTune("run")
    assert nothing_ran()


def test_a_registered_class_is_built(folder):
    class Own(ConvEncoder):
        pass

    write_run(encoder=f"{Own.__module__}.{Own.__qualname__}")
    with pytest.raises(InvalidValue, match="register"):
        load_run_encoder("run")
    assert contrastive.register(Own) is Own
    assert type(load_run_encoder("run")) is Own
    with pytest.raises(InvalidType, match="is no class"):
        contrastive.register("marker_mod.Encoder")


def test_files_of_arguments_are_not_followed(folder):
    """A text where a class or several options are expected could be the path of a file with more of the same."""
    Path("more.yaml").write_text(yaml.safe_dump({"class_path": "marker_mod.Encoder"}))
    write_run({**DIGITS, "init_args": {"source": "more.yaml"}}, "contrastive.encoders.ConvEncoder")
    with pytest.raises((InvalidValue, FileMissing)):
        prepare_data("run")
    for part in ({"encoder": "more.yaml"}, {"objective": "marker_mod.mark"}, {"optimizer": "more.yaml"}):
        for class_path in ({"class_path": "contrastive.training.Pretrain"}, {}):
            with pytest.raises(InvalidValue, match="plain value"):
                refuse_foreign({**class_path, "init_args": part}, "a.ckpt")
    assert nothing_ran()


PRETRAIN = {
    "encoder": {"class_path": "contrastive.encoders.ConvEncoder", "init_args": ENCODER},
    "objective": {"class_path": "contrastive.objectives.InfoNCE", "init_args": {}},
}
CHECKPOINTS = {
    "model": {"_class_path": "marker_mod.Model"},
    "encoder": {
        "_class_path": "contrastive.training.Pretrain",
        **PRETRAIN,
        "encoder": {"class_path": "marker_mod.Encoder"},
    },
    "encoder by text": {
        "_class_path": "contrastive.training.Pretrain",
        **PRETRAIN,
        "encoder": "marker_mod.Encoder",
    },
    "projector, no class": {**PRETRAIN, "projector": {"class_path": "marker_mod.Encoder"}},
    "encoder of FineTune": {"_class_path": "contrastive.training.FineTune", "encoder": "marker_mod.Encoder"},
    "head in a list": {
        "_class_path": "recsys.SequentialRecommender",
        "encoder": {"class_path": "recsys.SASRec"},
        "heads": [{"class_path": "marker_mod.Encoder"}],
    },
}


def write_checkpoint(arguments):
    torch.save(
        {"hyper_parameters": arguments, "state_dict": {}, "pytorch-lightning_version": "2.4.0"}, "a.ckpt"
    )


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_no_checkpoint_chooses_what_is_built(folder, capsys, command, kind):
    write_checkpoint(CHECKPOINTS[kind])
    words = ["--ckpt_path=a.ckpt", "--data.source=digits", "--trainer.accelerator=cpu"]
    assert main([command, *words]) == 1
    said = capsys.readouterr().err
    assert "marker_mod." in said
    assert "--trust_run" in said
    Path("own.yaml").write_text(yaml.safe_dump({"model": {"init_args": PRETRAIN}}))
    assert (
        main([command, "--config=own.yaml", *words]) == 1
    )  # a configuration of one's own makes it no better
    assert nothing_ran()
    assert not Path("runs").exists()


def test_what_the_user_names_may_stand_in_the_checkpoint(folder):
    described = {"class_path": "mine.Encoder", "init_args": {}}
    refuse_foreign(
        {"class_path": "contrastive.Pretrain", "init_args": {**PRETRAIN, "projector": None}}, "a.ckpt"
    )
    with pytest.raises(InvalidValue, match=r"mine\.Encoder"):
        refuse_foreign({"init_args": {"encoder": described}}, "a.ckpt", {"mine.py", "other.Encoder"})
    (folder / "mine.py").write_text("from contrastive import ConvEncoder\nclass Encoder(ConvEncoder): pass\n")
    refuse_foreign({"init_args": {"encoder": described}}, "a.ckpt", {"mine.Objective"})
    assert sys.modules.pop("mine")


def test_a_recommender_is_not_made_of_a_run_unasked(folder, capsys):
    from recsys import Recommender

    write_run({"class_path": "marker_mod.Data"})
    with pytest.raises(FileMissing, match="from_run"):
        Recommender.load("run")
    with pytest.raises(InvalidValue, match=r"marker_mod\.Data"):
        Recommender.from_run("run")
    assert main(["recommend", "--model", "run", "--history", "1"]) == 1
    assert "marker_mod.Data" in capsys.readouterr().err
    assert nothing_ran()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system [echo]", "!!python/name:marker_mod.mark ''"]
)
def test_tags_in_a_configuration_are_refused_in_a_sentence(folder, tag):
    write_run()
    Path("run/config.yaml").write_text(f"data: {tag}\n")
    for read in (prepare_data, load_run_encoder):
        with pytest.raises(InvalidValue, match=r"config\.yaml is damaged"):
            read("run")
    assert nothing_ran()


class Bomb:
    def __reduce__(self):
        return (exec, ("from pathlib import Path; Path('called').touch()",))


def test_pickles_are_refused_without_advice_to_load_them_all_the_same(folder, capsys):
    from contrastive.data import PairData

    torch.save({"hyper_parameters": {}, "state_dict": Bomb()}, "a.ckpt")
    torch.save([Bomb()], "rows.pt")
    Path("rows.npy").write_bytes(
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128)
        + pickle.dumps(Bomb())
    )
    assert main(["fit", "--ckpt_path=a.ckpt"]) == 1
    said = [capsys.readouterr().err]
    for file in ("rows.pt", "rows.npy"):
        with pytest.raises(InvalidValue, match=file) as refused:
            PairData(file, file).setup()
        said.append(str(refused.value))
    assert not any("weights_only" in one or "allow_pickle" in one for one in said)
    assert nothing_ran()


def test_a_folder_of_sentence_transformers_brings_no_classes(folder):
    pytest.importorskip("sentence_transformers")
    Path("modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "marker_mod.Encoder"}])
    )
    with pytest.raises(InvalidValue, match=r"marker_mod\.Encoder"):
        contrastive.TextEncoder(".")
    Path("modules.json").write_text("[1]")
    with pytest.raises(InvalidValue, match="damaged"):
        contrastive.TextEncoder(".")
    assert nothing_ran()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (5, "5 where class_path"),
        ({"class_path": ["a"]}, "names the class"),
        ({"class_path": "contrastive.data.ImageData", "init_args": [1]}, "have no names"),
        ({"class_path": "contrastive.data.ImageData", "init_args": {"colour": 3}}, "takes no colour"),
        ({"class_path": "contrastive.data.ImageData", "init_args": {"size": "x"}}, "ImageData.size is 'x'"),
        ({"class_path": "contrastive.data.ImageData", "more": 3}, "where class_path"),
        ({"class_path": "contrastive.encoders.ConvEncoder"}, "no LightningDataModule"),
        (source("contrastive.encoders.ConvEncoder"), "no Dataset"),
        (source("torchvision.datasets.LSUN", root="."), "names the class torchvision.datasets.LSUN"),
        (source("torchvision.datasets.ImageFolder"), "needs root"),
    ],
)
def test_a_description_that_cannot_be_built_is_explained(part, message):
    from lightning.pytorch import LightningDataModule

    with pytest.raises(InvalidValue, match=message):
        build(part, LightningDataModule, "config.yaml")


def test_plain_descriptions_are_built_as_they_are_written():
    from lightning.pytorch import LightningDataModule

    data = build(source("torchvision.datasets.FakeData", size=4), LightningDataModule, "config.yaml")
    assert isinstance(data, ImageData)
    assert len(data.source) == 4
    views = build(
        {"class_path": "SimCLRViews", "init_args": {"size": 8, "crop_scale": [0.5, 1]}}, nn.Module, ""
    )
    assert views.recipes[0].crop_scale == (0.5, 1.0)
