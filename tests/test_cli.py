"""The command line: instant help, short errors, precedence, run folders, user-defined classes, the whole quickstart."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import contrastive.cli.fit as fit
from contrastive.cli import INTERRUPTED, main
from contrastive.cli.errors import explain, nearest, suggestion
from contrastive.cli.request import kept, run_name
from contrastive.training.checkpoints import LastCheckpoint, WholeFiles

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"

# What a user has in a file of their own: an objective, and a LightningModule with data, independent of ours.
MINE = '''
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from contrastive import Objective

class Pull(Objective):
    """Squared distance between two views."""

    def __init__(self, strength: float = 1.0):
        super().__init__()
        self.strength = strength

    def forward(self, *views, index=None, labels=None):
        return self.strength * (views[0] - views[1]).pow(2).mean() + (views[0].std(dim=0) - 1).pow(2).mean()

class Regression(LightningModule):
    def __init__(self, width: int = 2, rate: float = 0.1, decay: float = 0.0, stop_at: int = -1, seed: int = 0):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(3, width)

    def training_step(self, batch, batch_idx):
        if self.global_step == self.hparams.stop_at:
            raise KeyboardInterrupt
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch[0]).pow(2).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.rate, weight_decay=self.hparams.decay)

class Numbers(LightningDataModule):
    def __init__(self, count: int = 4, seed: int = 0):
        super().__init__()
        self.rows = torch.arange(3.0 * count).reshape(count, 3)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(self.rows), batch_size=2)

    val_dataloader = train_dataloader
'''
TINY = [
    "--model=mine.Regression",
    "--data=mine.Numbers",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory with ``mine.py``; what a run changes in the process is undone."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    handler = signal.getsignal(signal.SIGINT)
    yield tmp_path
    signal.signal(signal.SIGINT, handler)
    sys.modules.pop("mine", None)


def resolved(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """Return the configuration that ``contrastive fit`` would run with."""
    capsys.readouterr()
    assert main(["fit", *words, "--print_config"]) == 0
    content: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return content


def recorded(run: str) -> dict[str, Any]:
    """Return the configuration in a run folder."""
    content: dict[str, Any] = yaml.safe_load(Path(run, "config.yaml").read_text())
    return content


# ---------------------------------------------------------------------- before torch


def test_help_version_list_and_a_wrong_command_import_neither_torch_nor_lightning() -> None:
    script = """
import sys
from contrastive.cli import main
assert main(["--help"]) == main([]) == main(["--version"]) == main(["fit", "--help"]) == main(["list"]) == 0
assert main(["ft"]) == 2
heavy = {"torch", "lightning", "numpy", "sklearn"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: contrastive COMMAND" in done.stdout
    assert "InfoNCE" in done.stdout
    assert done.stderr == "contrastive: error: there is no command ft; did you mean fit?\n"


def test_list_names_what_the_packages_export(capsys: pytest.CaptureFixture[str]) -> None:
    from contrastive import encoders, objectives

    assert main(["list", "--kind=objectives"]) == 0
    listed = capsys.readouterr().out
    public = [name for name in objectives.__all__ if isinstance(getattr(objectives, name), type)]
    assert all((name in listed) == (name != "Objective") for name in public)
    assert not any(name in listed for name in encoders.__all__)


def test_list_names_the_parts_of_recommenders(capsys: pytest.CaptureFixture[str]) -> None:
    import recsys
    from recsys.encoders import SequenceEncoder
    from recsys.objectives import Head

    assert main(["list", "--kind=recommenders"]) == 0
    listed = capsys.readouterr().out
    kinds = {name: getattr(recsys, name) for name in recsys.__all__}
    for name, kind in kinds.items():
        parts = {"encoder": SequenceEncoder, "head": Head, "data": recsys.RecommenderData}
        for part, base in parts.items():
            named = isinstance(kind, type) and issubclass(kind, base)
            assert bool(re.search(rf"  recsys\.{name} +{part}: \S", listed)) == named, (name, part)
    for loss in ("FullSoftmax", "SampledSoftmax", "BPR", "BCE"):
        assert re.search(rf"  recsys\.{loss} +loss: \S", listed)
    assert main(["list"]) == 0
    assert listed.strip() in capsys.readouterr().out


def test_the_guides_from_data_to_objective_leave_none_out() -> None:
    from contrastive import objectives
    from contrastive.cli.commands import GUIDE, NOT_TO_CHOOSE

    page = (Path(__file__).parents[1] / "docs" / "objectives.md").read_text(encoding="utf-8")
    named = {name.split("(")[0] for names in GUIDE.values() for name in names}
    public = {name for name in objectives.__all__ if isinstance(getattr(objectives, name), type)}
    assert named == public - NOT_TO_CHOOSE
    assert all(f"`{name}" in page for name in named)


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--model.objectve=InfoNCE", "Pretrain has no option model.objectve; did you mean model.objective?"),
        ("--model.objective=InfoNEC", "there is no model.objective called InfoNEC; did you mean InfoNCE?"),
        (
            "--model.objective=InfoNCE --model.objective.temprature=1",
            "InfoNCE has no option model.objective.temprature; did you mean model.objective.temperature?",
        ),
        ("--model.objective=ConvEncoder", "there is no model.objective called ConvEncoder; "),
        (
            "--model.encoder=ConvEncodr",
            "there is no model.encoder called ConvEncodr; did you mean ConvEncoder?",
        ),
        (
            "--model.optimizer.name=adam",
            "model.optimizer.name must be one of 'adamw', 'sgd', 'lars', not 'adam'",
        ),
        (
            "--model.optimizer.learning_rat=1",
            "Pretrain has no option model.optimizer.learning_rat; did you mean model.optimizer.learning_rate?",
        ),
        (
            "--model.encoder=null --model.encoder.width=3",
            "model.encoder has no class yet: name one with --model.encoder=",
        ),
        ("--model.momentum=much", "model.momentum must be a number, not 'much'"),
        ("--model=Pretrian", "there is no model called Pretrian; did you mean Pretrain?"),
        ("--model=nowhere.Mine", "there is no module nowhere in the working directory"),
        ("--data.sourc=digits", "ImageData has no option data.sourc; did you mean data.source?"),
        ("--trainer.max_epoch=3", "there is no option trainer.max_epoch; did you mean trainer.max_epochs?"),
        ("--trainer.max_epochs=many", "trainer.max_epochs must be an integer, not 'many'"),
        ("--sead_everything=3", "there is no option sead_everything; did you mean seed_everything?"),
        ("max_epochs=3", "unexpected 'max_epochs=3'; options are written --name=value"),
        ("--config=absent.yaml", "there is no file "),
    ],
)
def test_a_mistake_gives_one_short_line_with_the_nearest_name(
    folder: Path, capsys: pytest.CaptureFixture[str], words: str, line: str
) -> None:
    encoder = [] if "encoder" in words else ["--model.encoder=ConvEncoder"]
    assert main(["fit", *encoder, *words.split(), "--print_config"]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.startswith("contrastive: error: ")
    assert said.count("\n") == 1
    assert len(said) < 300


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"modle": {"momentum": 0.9}}, "there is no option modle.momentum; did you mean model.momentum?"),
        ({"model": {"objectve": "InfoNCE"}}, "Pretrain has no option model.objectve; did you mean"),
        (
            {"model": {"objective": {"class_path": "InfoNCE", "init_args": {"tau": 0.1}}}},
            "InfoNCE has no option model.objective.tau; choose from",
        ),
        (
            {"trainer": {"max_epoch": 3}},
            "there is no option trainer.max_epoch; did you mean trainer.max_epochs?",
        ),
    ],
)
def test_an_unknown_key_in_yaml_is_named_likewise(
    folder: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any], line: str
) -> None:
    Path("wrong.yaml").write_text(yaml.safe_dump(content))
    assert main(["fit", "--config=wrong.yaml", "--print_config"]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1


def test_a_missing_part_lists_the_choices(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model.encoder=ConvEncoder"]) == 2
    said = capsys.readouterr().err
    assert "Pretrain needs model.objective: give --model.objective=... with one of " in said
    assert "InfoNCE" in said
    assert not Path("runs").exists()


def test_what_a_class_says_about_its_arguments_is_passed_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model.encoder=ConvEncoder", "--model.objective=InfoNCE", "--model.objective.temperature=-1"]
    assert main(["fit", *words]) == 1
    said = capsys.readouterr().err
    assert said.startswith("contrastive: error: ")
    assert "temperature" in said
    assert "-1" in said
    assert not Path("runs").exists()


def test_a_fault_in_the_users_code_keeps_its_traceback(folder: Path) -> None:
    Path("broken.py").write_text(MINE.replace("self.layer = nn", "raise ValueError('mine')  # "))
    with pytest.raises(ValueError, match=r"^mine$"):
        main(["fit", "--model=broken.Regression", "--data=broken.Numbers"])


def test_messages_that_nobody_knows_are_kept_in_one_line() -> None:
    assert explain("Something new:\n  - went wrong\n  Given value type: int") == "Something new:; went wrong"
    assert nearest("tempreture", ["temperature", "negatives"]) == "temperature"
    assert nearest("zzz", ["temperature"]) == ""
    assert suggestion("zzz", ["b", "a"]) == "choose from a, b"


# ---------------------------------------------------------------------- configuration


def test_short_and_full_yaml_and_the_command_line_mean_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "encoder": {"class_path": "ConvEncoder"},
        "objective": {"class_path": "InfoNCE", "init_args": {"temperature": 0.3}},
        "momentum": 0.9,
    }
    Path("short.yaml").write_text(yaml.safe_dump({"model": arguments}))
    Path("full.yaml").write_text(
        yaml.safe_dump({"model": {"class_path": "Pretrain", "init_args": arguments}})
    )
    typed = ["--model=Pretrain", "--model.encoder=ConvEncoder", "--model.objective=InfoNCE"]
    typed += ["--model.objective.temperature=0.3", "--model.momentum=0.9"]
    models = [
        resolved(capsys, *words)["model"]
        for words in (["--config=short.yaml"], ["--config=full.yaml"], typed)
    ]
    assert models[0] == models[1] == models[2]
    assert models[0]["class_path"].endswith("Pretrain")
    assert models[0]["init_args"]["objective"]["init_args"]["temperature"] == 0.3


def test_the_command_line_wins_over_later_and_earlier_files(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"model": {"objective": {"init_args": {"temperature": 0.4}}}, "trainer": {"max_epochs": 7}}
    Path("other.yaml").write_text(yaml.safe_dump(other))
    content = resolved(
        capsys,
        f"--config={QUICKSTART}",
        "--config=other.yaml",
        "--trainer.max_epochs=9",
        "--data.batch_size=64",
    )
    assert content["model"]["init_args"]["objective"]["init_args"]["temperature"] == 0.4
    assert content["trainer"]["max_epochs"] == 9
    assert content["data"]["init_args"] == {
        **content["data"]["init_args"],
        "source": "digits",
        "batch_size": 64,
    }


def test_a_class_that_takes_over_values_of_another_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parser keeps an argument that both classes have."""
    said = []
    for more in ([], ["--model.objective.temperature=0.9"]):
        cli_words = ["fit", f"--config={QUICKSTART}", "--model.objective=SupCon", *more]
        parsed = {"init_args": {"objective": {"init_args": {"temperature": 0.9 if more else 0.5}}}}
        said.append(kept(cli_words, parsed))
    note = "model.objective: SupCon keeps temperature=0.5, which the configuration gave to InfoNCE"
    assert said == [[note], []]
    content = resolved(capsys, f"--config={QUICKSTART}", "--model.objective=SupCon")
    assert content["model"]["init_args"]["objective"]["init_args"]["temperature"] == 0.5


def test_a_class_that_was_named_has_its_own_defaults(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parser would hand on those of the class that nobody named: SGD at .01 became AdamW at .001."""
    assert resolved(capsys, "--data=PairData")["data"]["init_args"]["labels"] is None
    assert resolved(capsys, "--data=recsys.RecommenderData")["data"]["init_args"]["source"] == "synthetic"
    optimizer = resolved(capsys, "--model=FineTune")["model"]["init_args"]["optimizer"]
    assert (optimizer["name"], optimizer["learning_rate"]) == ("sgd", 0.01)
    chosen = ["--model.optimizer.weight_decay=0.5", "--model=FineTune", "--model.optimizer.momentum=0.3"]
    optimizer = resolved(capsys, *chosen)["model"]["init_args"]["optimizer"]
    assert [optimizer[name] for name in ("name", "weight_decay", "momentum")] == ["sgd", 0.5, 0.3]


def build(monkeypatch: pytest.MonkeyPatch, *words: str) -> fit.TrainerCLI:
    """Build everything that ``contrastive`` would run, without running it."""
    monkeypatch.setattr(fit.TrainerCLI, "_run_subcommand", lambda cli, command: None)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    fit.hush()
    return fit.TrainerCLI(list(words))


def test_one_seed_reaches_the_parts_that_were_given_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = build(monkeypatch, "fit", *TINY, "--seed_everything=3", "--data.seed=7")
    chosen = cli.config["fit"]
    assert (chosen.seed_everything, chosen.model.init_args.seed, chosen.data.init_args.seed) == (3, 3, 7)
    assert cli.model.hparams.seed == 3


@pytest.mark.parametrize(
    ("words", "content", "seed"),
    [
        (["--data.seed=0"], "", 0),
        (["--data.init_args.seed=0"], "", 0),
        ([], "data: {class_path: mine.Numbers, init_args: {seed: 0}}", 0),
        (
            [],
            "seed_everything: 0\ndata: {class_path: mine.Numbers, init_args: {seed: 0}}",
            5,
        ),  # as runs write it
        ([], "", 5),
    ],
)
def test_a_seed_of_0_that_was_given_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], content: str, seed: int
) -> None:
    Path("more.yaml").write_text(content or "trainer: {max_epochs: 1}")
    cli = build(monkeypatch, "fit", *TINY, "--config=more.yaml", *words, "--seed_everything=5")
    assert cli.config["fit"].data.init_args.seed == seed
    assert cli.model.hparams.seed == 5


def test_checkpoints_are_kept_whole_and_after_every_epoch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, words in {"a": TINY, "b": ["--config=recsys/quickstart"], "c": ["--config=quickstart"]}.items():
        cli = build(monkeypatch, "fit", *words, "--checkpoint_every=2.5", f"--run_dir={name}")
        (last,) = (one for one in cli.trainer.callbacks if isinstance(one, LastCheckpoint))
        assert last.minutes == 2.5
        assert last.path == Path(name, "checkpoints", "last.ckpt")
        assert isinstance(cli.trainer.strategy.checkpoint_io, WholeFiles)


def test_a_run_that_is_refused_leaves_no_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", f"--config={QUICKSTART}", "--data.source=nowhere", "--name=r"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert list(Path("runs/r").iterdir()) == []
    words = ["fit", f"--config={QUICKSTART}", "--data.batch_size=1", "--run_dir=ref"]
    for _ in range(2):  # nothing of the first is in the way of the second
        assert main(words) == 1
        assert "a batch of 1 leaves nothing to compare" in capsys.readouterr().err
        assert not Path("ref").exists()


def test_what_fails_after_a_batch_keeps_its_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("late.py").write_text(
        "import lightning.pytorch as pl\nfrom contrastive.errors import InvalidValue\n"
        "class Late(pl.Callback):\n"
        "    def on_train_epoch_end(self, trainer, pl_module):\n"
        "        raise InvalidValue('too late.')\n"
    )
    assert main(["fit", *TINY, "--trainer.callbacks=late.Late", "--run_dir=kept"]) == 1
    assert "too late." in capsys.readouterr().err
    assert {"config.yaml", "run.json"} <= {path.name for path in Path("kept").iterdir()}


def test_a_command_that_is_not_there_is_not_taken_for_one_that_is_unlike_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["compare", "a", "b"]) == 2
    said = capsys.readouterr().err
    assert "did you mean" not in said
    assert "choose from" in said
    assert main(["serch"]) == 2
    assert "did you mean search?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--trainer.devices=0", "devices"),
        ("--trainer.accelerator=tpu", "torch_xla"),
        ("--trainer.max_epochs=-5", "max_epochs"),
        ("--trainer.overfit_batches=0.1", "0.1"),
        ("--seed_everything=-1", "-1"),
        ("--trainer.precision=17", "17"),
    ],
)
def test_what_the_trainer_does_not_allow_is_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    assert main(["fit", *TINY, "--extras.report=false", word]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("contrastive")
    assert said in error
    assert "Traceback" not in error


def test_a_package_that_a_named_class_needs_is_a_sentence_and_a_failed_import_a_traceback(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    (folder / "needy.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Asks(Callback):\n"
        "    def __init__(self):\n"
        "        raise ModuleNotFoundError(\"Requirement 'abacus>=1' not met.\\n Try pip install abacus\")\n"
        "class Imports(Callback):\n"
        "    def __init__(self):\n"
        "        import no_such_package_here\n"
    )
    words = [*TINY, "--extras.report=false"]
    assert main(["fit", *words, "--trainer.callbacks+=needy.Asks"]) == 1
    assert "error: Requirement 'abacus>=1' not met. Try pip install abacus" in capsys.readouterr().err
    with pytest.raises((ValueError, ImportError), match="no_such_package_here"):
        main(["fit", *words, "--trainer.callbacks+=needy.Imports"])


def test_data_without_labels_are_told_in_words_of_the_user(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "plain").mkdir()
    for number in range(12):
        Image.new("L", (8, 8), 20 * number).save(folder / "plain" / f"{number}.png")
    words = [f"--config={QUICKSTART}", "--data.source=plain", "--data.batch_size=8", "--model.views.size=8"]
    assert main(["fit", *words, "--trainer.max_epochs=1", "--extras.report=false"]) == 0
    said = capsys.readouterr().out
    assert "not evaluated: the data have no labels; see the map" in said
    assert "Features(" not in said


def test_nothing_to_do_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *TINY, "--name=n", "--extras.report=false", "--trainer.max_epochs=2"]) == 0
    capsys.readouterr()
    for epochs in (2, 1):
        words = ["--name=n", "--ckpt_path=last", "--extras.report=false"]
        assert main(["fit", *TINY, *words, f"--trainer.max_epochs={epochs}"]) == 0
        said = capsys.readouterr().out
        assert (
            f"last.ckpt has 2 epochs, and trainer.max_epochs is {epochs}; ask for more with --trainer" in said
        )
    assert [path.name for path in Path("runs/n").iterdir()] == ["0"]


def test_two_configurations_called_quickstart_are_two_runs() -> None:
    names = {run_name([f"--config={path}"]) for path in QUICKSTART.parent.rglob("quickstart.yaml")}
    assert names == {"quickstart", "recommender"}


def test_callbacks_and_loggers_of_the_user_extend_ours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(things: list[Any]) -> list[str]:
        return [type(thing).__name__ for thing in things]

    plain = build(monkeypatch, "fit", *TINY).trainer
    assert names(plain.loggers) == ["CSVLogger", "TensorBoardLogger"]
    Path("more.yaml").write_text(
        yaml.safe_dump(
            {
                "trainer": {
                    "callbacks": [{"class_path": "LearningRateMonitor"}],
                    "logger": {"class_path": "mine.Quiet"},
                }
            }
        )
    )
    Path("mine.py").write_text(
        MINE + "\nfrom lightning.pytorch.loggers.logger import DummyLogger\nclass Quiet(DummyLogger): pass\n"
    )
    sys.modules.pop("mine")
    extended = build(monkeypatch, "fit", *TINY, "--config=more.yaml").trainer
    assert sorted(names(extended.callbacks)) == sorted([*names(plain.callbacks), "LearningRateMonitor"])
    assert names(extended.loggers) == ["CSVLogger", "Quiet"]
    assert "RunProgress" in names(plain.callbacks)


# ---------------------------------------------------------------------- runs


def test_a_class_of_the_user_trains_from_a_console_script(folder: Path) -> None:
    """A console script does not put the working directory on the path: ``-I`` leaves it out as well."""
    script = "import sys; from contrastive.cli import main; sys.exit(main())"
    words = [
        *(
            "fit",
            "--model.objective=mine.Pull",
            "--model.objective.strength=2",
            "--model.encoder=ConvEncoder",
        ),
        *(
            "--model.encoder.widths=[4,4]",
            "--model.encoder.blocks=[0,0]",
            "--model.views.size=8",
            "--data.size=8",
        ),
        *("--trainer.max_steps=2", "--trainer.accelerator=cpu", "--data.batch_size=512"),
        *("--extras.evaluate=false", "--extras.report=false", "--name=pull"),
    ]
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    run = Path("runs/pull/0")
    assert recorded(str(run))["model"]["init_args"]["objective"] == {
        "class_path": "mine.Pull",
        "init_args": {"strength": 2.0},
    }
    record = json.loads((run / "run.json").read_text())
    assert record["command"].startswith("contrastive fit --model.objective=mine.Pull")
    assert "--model.objective.strength=2" in record["command"]
    assert record["seed"] == 0
    assert record["data"]["source"] == "digits"
    assert record["data"]["fingerprint"]
    assert record["versions"]["contrastive"]
    for name in (
        "metrics.csv",
        "checkpoints/last.ckpt",
        "encoder/encoder.safetensors",
        "encoder/encoder.json",
    ):
        assert (run / name).is_file(), name


def test_each_run_has_its_own_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["fit", *TINY, "--name=a", "--extras.report=false"]) == 0
    assert main(["fit", *TINY, "--run_dir=there/b", "--extras.report=false"]) == 0
    for run in ("runs/a/0", "runs/a/1", "there/b"):
        assert {"config.yaml", "run.json", "metrics.csv", "checkpoints"} <= {
            file.name for file in Path(run).iterdir()
        }
    assert {file.name for file in Path("runs/a/0/checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    before = Path("there/b/run.json").read_text()
    assert main(["fit", *TINY, "--run_dir=there/b"]) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert Path("there/b/run.json").read_text() == before


def test_precedence_is_command_line_config_checkpoint_default(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = ["--extras.report=false"]
    first = ["--model.rate=0.3", "--model.decay=0.03", "--model.width=5"]
    assert main(["fit", *TINY, *first, "--name=p", *quiet]) == 0
    Path("p.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"decay": 0.2, "rate": 0.2}}}))
    for number, checkpoint in enumerate(["last", "runs/p/0/checkpoints/best.ckpt"], start=1):
        capsys.readouterr()
        words = ["--data=mine.Numbers", "--config=p.yaml", "--model.rate=0.9", f"--ckpt_path={checkpoint}"]
        assert main(["fit", *words, "--trainer.max_epochs=2", "--trainer.accelerator=cpu", *quiet]) == 0
        model = recorded(f"runs/p/{number}")["model"]
        assert model["class_path"] == "mine.Regression"  # the checkpoint over the default
        assert model["init_args"]["rate"] == 0.9  # command line over configuration
        assert model["init_args"]["decay"] == 0.2  # configuration over checkpoint
        assert model["init_args"]["width"] == 5  # checkpoint over default
        said = capsys.readouterr().out
        assert "model.rate is 0.9, in the checkpoint 0.3" in said
        assert "model.decay is 0.2, in the checkpoint 0.03" in said
        assert "model.width" not in said
        Path(f"runs/p/{number}/checkpoints/last.ckpt").unlink()  # so that the first run is asked again


def test_lightning_still_reads_checkpoints_where_it_is_overridden() -> None:
    """If this fails, Lightning has renamed the method that puts a checkpoint above what was typed: find it again."""
    from lightning.pytorch.cli import LightningCLI

    assert "hyper_parameters" in LightningCLI._parse_ckpt_path.__code__.co_consts
    assert fit.TrainerCLI._parse_ckpt_path is not LightningCLI._parse_ckpt_path


def test_a_checkpoint_of_another_shape_is_refused_in_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *TINY, "--name=s", "--extras.report=false"]) == 0
    assert (
        main(["fit", *TINY, "--name=s", "--model.width=9", "--ckpt_path=last", "--trainer.max_epochs=2"]) == 1
    )
    said = capsys.readouterr().err
    assert "layer.weight is (9, 3) here and (2, 3) in the checkpoint" in said
    assert "model.width is 9, in the checkpoint 2" in said
    assert said.count("\n") == 1


def test_what_a_checkpoint_has_and_the_class_no_longer_is_left_out_aloud(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *TINY, "--name=o", "--model.decay=0.5", "--extras.report=false"]) == 0
    Path("mine.py").write_text(
        MINE.replace("decay: float = 0.0, ", "").replace("hparams.decay", "hparams.rate")
    )
    sys.modules.pop("mine")
    words = ["--data=mine.Numbers", "--ckpt_path=last", "--name=o", "--trainer.accelerator=cpu"]
    assert main(["validate", *words]) == 0
    assert "model.decay=0.5 of the checkpoint is left out" in capsys.readouterr().out


def test_a_checkpoint_that_is_not_there_or_none_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.ckpt").write_text("no checkpoint")
    for path, line in (
        ("last", "no run in runs/run has checkpoints/last.ckpt"),
        ("absent.ckpt", "there is no such file"),
        ("text.ckpt", "cannot be read as a checkpoint"),
    ):
        assert main(["fit", *TINY, f"--ckpt_path={path}"]) == 1
        assert line in capsys.readouterr().err


def test_validate_and_predict_need_no_model_beside_a_checkpoint_and_leave_no_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *TINY, "--name=v", "--model.width=5", "--extras.report=false"]) == 0
    words = ["--data=mine.Numbers", "--ckpt_path=runs/v/0/checkpoints/last.ckpt", "--trainer.accelerator=cpu"]
    assert main(["validate", *words]) == 0
    assert "val_loss" in capsys.readouterr().out
    assert [path.name for path in Path("runs/v").iterdir()] == ["0"]
    assert not Path("lightning_logs").exists()


def test_ctrl_c_saves_and_reports_an_interruption(folder: Path) -> None:
    assert main(["fit", *TINY, "--model.stop_at=1", "--name=i"]) == INTERRUPTED
    assert Path("runs/i/0/checkpoints/interrupted.ckpt").is_file()


def test_a_disk_that_takes_nothing_is_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--extras.report=false", "--run_dir=/proc/run"]
    assert main(["fit", *TINY, *words]) == 1
    assert "contrastive: error: --run_dir=/proc/run cannot be made (" in capsys.readouterr().err
    assert main(["embed", "--run=mine.py", "--out=mine.py/x"]) == 1
    assert "Traceback" not in capsys.readouterr().err


# ---------------------------------------------------------------------- the whole path


def test_quickstart_trains_evaluates_and_reports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--trainer.max_epochs=1", "--model.encoder.widths=[8,8,8]", "--data.batch_size=512"]
    assert main(["fit", f"--config={QUICKSTART}", *small]) == 0
    said = capsys.readouterr().out
    for words in ("Run plan", "labels per class", "raw pixels", "untrained encoder", "trained encoder"):
        assert words in said
    run = Path("runs/quickstart/0")
    assert f"run folder: {run}" in said
    assert f"{run / 'report.html'}" in said
    found = {str(path.relative_to(run)) for path in run.rglob("*.*")}
    assert found >= {"config.yaml", "run.json", "metrics.csv", "report.html", "checkpoints/last.ckpt"}
    assert found >= {"encoder/encoder.safetensors", "encoder/encoder.json", "results/label_efficiency.json"}

    for command in ("probe", "knn"):
        assert main([command, f"--run={run}"]) == 0
        assert "accuracy" in capsys.readouterr().out
    (run / "report.html").unlink()
    assert main(["report", f"--run={run}", "--max_images=50"]) == 0
    assert (run / "report.html").is_file()
    assert main(["knn", "--run=nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert main(["knn", f"--rum={run}"]) == 2
    assert "did you mean run?" in capsys.readouterr().err


def test_check_data_says_whether_data_are_fine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", "--source=digits"]) == 0
    assert "1438 images" in capsys.readouterr().out
    assert main(["check-data", "--source=absent"]) == 1
    assert "absent" in capsys.readouterr().err
