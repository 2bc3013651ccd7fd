import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from PIL import Image
from torch import nn

from contrastive.cli import main
from contrastive.data import Loader, TensorData
from contrastive.encoders import load_encoder
from contrastive.objectives import InfoNCE, SepCLR, SupervisedSepCLR
from contrastive.training import ExportEncoder, OptimizerConfig, Separate

LIGHTNING_CALLS_JSONARGPARSE = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)
pytestmark = pytest.mark.usefixtures("seeded")


def build(parts, **options):
    """A Separate of small parts; ``options`` replace some."""
    settings = {
        "common_encoder": parts.TinyEncoder(dim=8),
        "salient_encoder": parts.TinyEncoder(dim=4),
        "views": parts.Noise(),
        "optimizer": OptimizerConfig(learning_rate=0.01),
    }
    return Separate(**settings | options)


class Recording(SepCLR):
    """Remembers what it is called with."""

    def __init__(self, **options):
        super().__init__(**options)
        self.calls = []

    def forward(self, common_views, salient_views, *, is_target, **inputs):
        self.calls.append((common_views, salient_views, is_target))
        return super().forward(common_views, salient_views, is_target=is_target, **inputs)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_both_codes_of_every_view_and_only_whether_it_is_a_target(parts, trainer):
    objective = Recording()
    data = parts.Vectors()
    module = build(parts, objective=objective, background=1)
    trainer().fit(module, datamodule=data)
    assert len(objective.calls) == 4
    for common, salient, is_target in objective.calls:
        assert [c.shape for c in common] == [(24, 8)] * 2
        assert [s.shape for s in salient] == [(24, 4)] * 2
        assert is_target.dtype == torch.bool
    batch = next(iter(data.train_dataloader()))
    objective.calls.clear()
    module._objective(module.embed(module.make_views(batch.inputs, 0)), batch)
    assert torch.equal(objective.calls[0][2], batch.labels != 1)


def test_trains_both_encoders(parts, trainer):
    module = build(parts)
    before = weights(module)
    trainer().fit(module, datamodule=parts.Vectors())
    for part in ("common_encoder", "encoder", "common_projector", "projector"):
        changed = [
            name
            for name, value in module.state_dict().items()
            if name.startswith(f"{part}.") and not torch.equal(value, before[name])
        ]
        assert changed, part
    assert module(torch.randn(3, 6)).shape == (3, 4)


@LIGHTNING_CALLS_JSONARGPARSE
@pytest.mark.parametrize("information", ["k-JEM", "vCLUB"])
def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(parts, trainer, tmp_path, information):
    class SaveHalf(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    def train(name, callbacks, **options):
        torch.manual_seed(1)
        module = build(parts, objective=SepCLR(information=information))
        run = trainer(name, max_epochs=3, callbacks=callbacks)
        run.fit(module, datamodule=parts.Vectors(), **options)
        return weights(module)

    straight = train("straight", [SaveHalf()])
    assert any(name.startswith("objective.network.") for name in straight) == (information == "vCLUB")
    resumed = train("resumed", [], ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert straight.keys() == resumed.keys()
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name


@LIGHTNING_CALLS_JSONARGPARSE
def test_a_checkpoint_is_loaded_without_its_data(parts, trainer, tmp_path):
    run = trainer()
    module = build(parts, objective=SepCLR(information="vCLUB"))
    run.fit(module, datamodule=parts.Vectors())
    run.save_checkpoint(tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert "momentum" not in stored
    assert stored["background"] == 0
    networks = {
        "common_encoder": parts.TinyEncoder(dim=8),
        "salient_encoder": parts.TinyEncoder(dim=4),
        "objective": SepCLR(information="vCLUB"),
        "views": parts.Noise(),
    }
    again = build(parts, **networks)
    again.on_load_checkpoint(torch.load(tmp_path / "last.ckpt", weights_only=True))
    again.load_state_dict(module.state_dict())


def test_exports_both_encoders(parts, trainer, tmp_path):
    module = build(parts)
    trainer(callbacks=[ExportEncoder()]).fit(module, datamodule=parts.Vectors())
    inputs = torch.randn(5, 6)
    for folder, encoder, width in (
        ("encoder", module.salient_encoder, 4),
        ("common_encoder", module.common_encoder, 8),
    ):
        loaded = load_encoder(tmp_path / "run" / folder, parts.TinyEncoder(dim=width))
        assert torch.equal(loaded(inputs), encoder.eval()(inputs))


def test_held_out_loss_is_logged(parts, trainer):
    module = build(parts)
    loader = Loader(torch.randn(24, 6), torch.arange(24) % 2, batch_size=24)
    first, second = (trainer().validate(module, loader, verbose=False)[0]["val_loss"] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"salient_encoder": nn.Linear(2, 2)}, TypeError, "salient_encoder of Separate is a Linear"),
        ({"common_encoder": nn.Linear(2, 2)}, TypeError, "common_encoder of Separate is a Linear"),
        ({"background": -1}, ValueError, "Separate: background is -1"),
    ],
)
def test_refuses_wrong_arguments(parts, wrong, error, message):
    with pytest.raises(error, match=message):
        build(parts, **wrong)


def test_refuses_one_encoder_for_both_spaces(parts):
    encoder = parts.TinyEncoder()
    with pytest.raises(ValueError, match="are one module"):
        Separate(encoder, encoder)


@pytest.mark.parametrize(
    ("options", "labelled", "message"),
    [
        (
            {"objective": SupervisedSepCLR()},
            True,
            "SupervisedSepCLR requires attributes, but Separate can pass",
        ),
        ({"background": 3}, True, "have the labels 0 to 2"),
        ({"objective": InfoNCE()}, True, "InfoNCE does not take two codes"),
        ({}, False, "Separate needs data with the labels of background and target"),
    ],
)
def test_refuses_what_does_not_fit_before_the_first_batch(parts, trainer, options, labelled, message):
    with pytest.raises(ValueError, match=message):
        trainer().fit(build(parts, **options), datamodule=parts.Vectors(labelled=labelled))


def test_refuses_a_batch_without_labels(parts, trainer):
    with pytest.raises(ValueError, match="the batch has no labels"):
        trainer().fit(build(parts), Loader(torch.randn(24, 6), batch_size=24))


@pytest.mark.filterwarnings("ignore")
def test_trains_from_the_command_line(tmp_path, monkeypatch, pytestconfig):
    config = pytestconfig.rootpath / "configs" / "vision" / "separate_digits.yaml"
    monkeypatch.chdir(tmp_path)
    small = ["--data.limit=200", "--data.batch_size=64", "--trainer.max_epochs=1"]
    quiet = ["--extras.evaluate=false", "--extras.report=false", "--trainer.enable_progress_bar=false"]
    choice = "--model.objective.information=vL1Out"
    assert main(["fit", f"--config={config}", *small, *quiet, choice, "--run_dir=run"]) == 0
    images = torch.rand(2, 3, 32, 32)
    codes = [load_encoder(tmp_path / "run" / name)(images) for name in ("encoder", "common_encoder")]
    assert [code.shape for code in codes] == [(2, 32), (2, 32)]
    assert not torch.equal(*codes)
    restored = Separate.load_from_checkpoint(
        tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True
    )
    assert torch.equal(restored.eval()(images), codes[0])
    assert restored.objective.network.kind == "vL1Out"


# ------------------------------------------------------------------ which class is the background


def patients(names):
    """Two features of 24 samples, whose classes have these names."""
    return TensorData(
        torch.randn(24, 6),
        torch.arange(24) % len(names),
        class_names=names,
        batch_size=8,
        validation_fraction=0,
    )


@pytest.mark.parametrize(
    ("background", "names", "label"),
    [
        ("control", ["case", "control"], 1),
        ("case", ["case", "control"], 0),
        (1, ["case", "control"], 1),
        (205, ["101", "205"], 1),
        ("205", ["101", "205"], 1),
        (2, ["0", "1", "10", "2"], 3),  # folders called by numbers, which sort as texts
    ],
)
def test_the_background_is_a_class_by_name(parts, trainer, capsys, background, names, label):
    objective = Recording()
    data = patients(names)
    run = trainer(limit_val_batches=0)
    run.fit(build(parts, objective=objective, background=background), datamodule=data)
    first = next(iter(data.train_dataloader()))
    assert len(objective.calls) == 3
    told = torch.cat([is_target for *_, is_target in objective.calls])
    assert int((~told).sum()) == int((data.known.train_labels == label).sum())
    plan = capsys.readouterr().out
    assert f"background     {names[label]} ({24 // len(names)})" in plan
    assert (
        f"targets        {', '.join(f'{n} ({24 // len(names)})' for n in names if n != names[label])}" in plan
    )
    assert first.labels.max() < len(names)


@pytest.mark.parametrize(
    ("background", "names"), [("ill", ["case", "control"]), (2, ["case", "control"]), (3, ["101", "205"])]
)
def test_a_background_that_is_no_class_is_refused(parts, trainer, background, names):
    with pytest.raises(
        ValueError, match=rf"background of Separate is {background!r}, but the classes.*{names[0]}"
    ):
        trainer().fit(build(parts, background=background), datamodule=patients(names))


def test_a_name_needs_data_that_name_their_classes(parts, trainer):
    with pytest.raises(ValueError, match="'control', but the data name no classes"):
        trainer().fit(build(parts, background="control"), datamodule=parts.Vectors())


def test_own_folders_take_the_place_of_blended_data(tmp_path, monkeypatch, capsys):
    """The configuration's background is a source there; it is not taken for the colour under transparent pixels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    for name, value in (("case", 0), ("control", 255)):
        (tmp_path / "two" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (16, 16), (value, 16 * i, 0)).save(tmp_path / "two" / name / f"{i}.png")
    config = Path(__file__).parents[2] / "configs" / "vision" / "separate_digits.yaml"
    data = ["--data=ImageData", "--data.source=two", "--data.batch_size=8", "--model.background=control"]
    short = [
        "--trainer.max_epochs=1",
        "--trainer.enable_progress_bar=false",
        "--data.validation_fraction=0.25",
    ]
    ends = ["--extras.evaluate=false", "--extras.report=false"]
    assert main(["fit", f"--config={config}", *data, *short, *ends]) == 0
    plan = capsys.readouterr().out
    assert "background     control (6)" in plan
    assert "targets        case (6)" in plan
