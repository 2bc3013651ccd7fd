import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from contrastive.cli import main
from contrastive.data import Loader, TensorData
from contrastive.encoders import ConvEncoder, MLPEncoder, ProjectionHead, TimmEncoder, save_encoder
from contrastive.objectives import CoreTuning, CrossEntropy, Objective, SupCon
from contrastive.training import ExportEncoder, FineTune, OptimizerConfig, Pretrain, load_classifier
from contrastive.training import finetune as module_under_test
from contrastive.training.finetune import find_encoder, layer_depths
from contrastive.views import AsTheyAre

LIGHTNING_CALLS_JSONARGPARSE = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)
CONFIGS = Path(__file__).parents[2] / "configs"
pytestmark = pytest.mark.usefixtures("seeded")
FAST = OptimizerConfig(learning_rate=0.02)


def three_classes(per_class=32, **options):
    """Three well separated classes of vectors of six numbers, with a test set."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(per_class)
    inputs, test = (
        4 * torch.eye(6)[labels] + torch.randn(len(labels), 6, generator=generator) for _ in range(2)
    )
    settings = {"batch_size": 24, "class_names": ["red", "green", "blue"], **options}
    return TensorData(inputs, labels, test, labels, **settings)


def build(objective=None, **options):
    settings = {"encoder": MLPEncoder(in_dim=6, hidden_dims=[16], dim=8), "optimizer": FAST}
    return FineTune(objective=objective, **settings | options)


# ---------------------------------------------------------------------- what a run leaves


@pytest.mark.parametrize(
    "objective", [CrossEntropy(), CoreTuning(), SupCon()], ids=lambda o: type(o).__name__
)
def test_a_run_learns_and_leaves_encoder_classifier_and_results(trainer, tmp_path, objective):
    module, data = build(objective, projector=ProjectionHead(16, 8)), three_classes()
    run = trainer(max_epochs=8, callbacks=[ExportEncoder()])
    run.fit(module, datamodule=data)
    folder = Path(module_under_test.run_folder(run))
    result = json.loads((folder / "results" / "fine_tuning.json").read_text())
    assert result["metrics"]["accuracy"] > 0.9
    assert set(result["metrics"]["recall"]) == {"red", "green", "blue"}
    assert result["split"] == "test"
    assert result["protocol"]["objective"] == type(objective).__name__
    assert result["encoder"]["class"] == "MLPEncoder"
    assert result["data"]["fingerprint"] == data.fingerprint

    network = load_classifier(folder)
    logits = network(data.inputs.test)
    torch.testing.assert_close(logits, module.eval().classify(data.inputs.test))
    assert (logits.argmax(1) == data.known.test_labels).double().mean() == result["metrics"]["accuracy"]
    names = json.loads((folder / "classifier" / "classifier.json").read_text())
    assert names == {"class_names": ["red", "green", "blue"]}

    (tested,) = run.test(module, datamodule=data, verbose=False)
    assert tested["test_accuracy"] == pytest.approx(result["metrics"]["accuracy"])
    (validated,) = run.validate(module, datamodule=data, verbose=False)
    assert validated.keys() == {"val_loss", "val_accuracy"}


def test_no_classifier_is_exported_where_no_encoder_is(trainer, tmp_path):
    run = trainer()
    run.fit(build(), datamodule=three_classes())
    assert not list(tmp_path.rglob("classifier*"))
    with pytest.raises(FileNotFoundError, match="folder of a finished run of FineTune"):
        load_classifier(tmp_path)


# ---------------------------------------------------------------------- the loss


def first_loss(module, data, trainer):
    """The loss of the first step, and the batch it was computed on."""
    seen = {}

    class Record(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.setdefault("batch", batch)
            seen.setdefault("weights", {k: v.clone() for k, v in pl_module.state_dict().items()})

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.setdefault("loss", outputs["loss"].detach())

    trainer(max_steps=1, callbacks=[Record()]).fit(module, datamodule=data)
    module.load_state_dict(seen["weights"])
    return seen["loss"], seen["batch"]


def test_cross_entropy_of_the_images_as_they_are(trainer):
    module = build()
    assert isinstance(module.views, AsTheyAre)
    loss, batch = first_loss(module, three_classes(), trainer)
    expected = F.cross_entropy(module.train().classify(batch.inputs), batch.labels)
    torch.testing.assert_close(loss, expected.detach())


def test_an_objective_without_a_classifier_is_added(parts, trainer):
    module = build(SupCon(temperature=0.5), weight=0.3, views=parts.Noise(0.0, views=2))
    loss, batch = first_loss(module, three_classes(), trainer)
    features = module.train().encoder(torch.cat([batch.inputs, batch.inputs]))
    both = batch.labels.repeat(2)
    added = SupCon(temperature=0.5)(*module.head(features).chunk(2), labels=batch.labels)
    expected = F.cross_entropy(module.classifier(features), both) + 0.3 * added
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-5)


def test_each_step_encodes_each_sample_once_and_a_whole_loss_needs_no_projector(parts, trainer):
    module = build(CoreTuning(), encoder=parts.TinyEncoder(), projector=ProjectionHead())
    sizes = []
    module.encoder.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    trainer().fit(module, datamodule=parts.Vectors())
    assert sizes == [24] * 4
    assert isinstance(module.head, nn.Identity)
    assert module.objective.classifier is None
    assert not any(parameter.grad is None for parameter in module.parameters())


def test_a_loaded_encoder_is_trained_in_training_mode(trainer, tmp_path):
    save_encoder(MLPEncoder(in_dim=6, hidden_dims=[8], dim=4), tmp_path / "encoder")
    module = build(encoder=str(tmp_path))
    assert all(part.training for part in module.encoder.modules())


# ---------------------------------------------------------------------- where to start from


def test_finds_encoders_of_runs_folders_and_timm(tmp_path, monkeypatch):
    encoder = MLPEncoder(in_dim=6, hidden_dims=[8], dim=4)
    save_encoder(encoder, tmp_path / "run" / "encoder")
    for folder in (tmp_path / "run", tmp_path / "run" / "encoder"):
        found = find_encoder(str(folder))
        for name, value in encoder.state_dict().items():
            assert torch.equal(found.state_dict()[name], value)
    asked = {}
    monkeypatch.setattr(
        module_under_test, "TimmEncoder", lambda name, **options: asked.update(options, name=name)
    )
    find_encoder("resnet18")
    assert asked == {"name": "resnet18", "pretrained": True}
    with pytest.raises(ValueError, match="'runs/none/0', which is no folder here and no model of timm"):
        find_encoder("runs/none/0")
    with pytest.raises(FileNotFoundError):
        find_encoder(str(tmp_path))


@LIGHTNING_CALLS_JSONARGPARSE
def test_a_checkpoint_rebuilds_classifier_and_head(trainer, tmp_path):
    save_encoder(MLPEncoder(in_dim=6, hidden_dims=[8], dim=4), tmp_path / "encoder")
    module = build(CoreTuning(), encoder=str(tmp_path), layer_decay=0.5)
    run = trainer()
    run.fit(module, datamodule=three_classes())
    run.save_checkpoint(path := tmp_path / "run.ckpt")
    loaded = FineTune.load_from_checkpoint(path, weights_only=True, objective=CoreTuning())
    assert loaded.layer_decay == 0.5
    assert loaded.state_dict().keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(parts, trainer, tmp_path):
    class StopAfter(pl.Callback):
        def __init__(self, epochs):
            self.epochs = epochs

        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch + 1 >= self.epochs

    def train(name, stop=4, **fit):
        torch.manual_seed(0)
        module = build(CoreTuning(), encoder=parts.TinyEncoder(dropout=0.2), views=parts.Noise(views=1))
        run = trainer(name, max_epochs=4, callbacks=[StopAfter(stop)])
        run.fit(module, datamodule=three_classes(), **fit)
        run.save_checkpoint(tmp_path / f"{name}.ckpt")
        return {key: value.clone() for key, value in module.state_dict().items()}

    straight, half = train("straight"), train("half", stop=2)
    resumed = train("resumed", ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for key, value in straight.items():
        assert torch.equal(value, resumed[key]), key
    assert not torch.equal(half["classifier.weight"], straight["classifier.weight"])


def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    script = Path(__file__).with_name("finetune_two_processes.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"{devices}.pt", weights_only=True) for devices in (1, 2))
    assert one.keys() == two.keys() > {"classifier.weight", "objective.head.0.weight"}
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-9, atol=1e-12, msg=key)


# ---------------------------------------------------------------------- layer-wise learning rates


def test_depths_of_layers():
    depths = layer_depths(ConvEncoder(widths=(4, 4, 4), blocks=(0, 1, 0)))
    assert {name.split(".")[1]: depth for name, depth in depths.items()} == {"0": 0, "1": 1, "2": 2}
    depths = layer_depths(TimmEncoder("resnet18", image_size=32))
    assert depths["network.conv1.weight"] == depths["network.bn1.weight"] == 0
    assert depths["network.layer1.0.conv1.weight"] == depths["network.layer1.0.bn2.bias"] == 1
    assert max(depths.values()) == depths["network.layer4.1.conv2.weight"] == 8


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_lower_layers_learn_more_slowly(trainer, name):
    rates = {}

    class Record(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            names = {parameter: name for name, parameter in pl_module.named_parameters()}
            for group in optimizer.param_groups:
                rates.update({names[parameter]: group["lr"] for parameter in group["params"]})

    optimizer = OptimizerConfig(name=name, learning_rate=0.1, warmup_steps=0)
    module = build(CoreTuning(), layer_decay=0.5, optimizer=optimizer)
    run = trainer(max_steps=1, callbacks=[Record()])
    run.fit(module, datamodule=three_classes())
    assert rates["classifier.weight"] == rates["objective.head.0.bias"] == 0.1
    first, *_, last = (f"encoder.{name}" for name in layer_depths(module.encoder))
    assert rates[last] == 0.05
    assert rates[first] == 0.025
    assert run.callback_metrics["learning_rate"] == pytest.approx(0.1)


# ---------------------------------------------------------------------- mistakes


class Untold(Objective):
    requires = ("is_target",)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer_decay": 0}, r"layer_decay of FineTune is 0; give a number in \(0, 1\]"),
        ({"weight": -1}, "weight of FineTune is -1"),
        ({"encoder": "nowhere"}, "encoder of FineTune is 'nowhere'"),
    ],
)
def test_refuses_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        build(**wrong)


def test_refuses_data_without_labels_and_objectives_that_want_more(parts, trainer):
    with pytest.raises(ValueError, match="labels of two classes or more, but Vectors has none"):
        trainer().fit(build(), datamodule=parts.Vectors(labelled=False))
    with pytest.raises(ValueError, match="but there is no data module"):
        trainer().fit(build(), Loader(torch.zeros(8, 6), torch.zeros(8).long(), batch_size=4))
    with pytest.raises(ValueError, match="Untold requires is_target, but FineTune can pass classifier"):
        trainer().fit(build(Untold()), datamodule=parts.Vectors())
    pretrain = Pretrain(parts.TinyEncoder(), CrossEntropy(), views=parts.Noise())
    with pytest.raises(ValueError, match="CrossEntropy requires classifier, but Pretrain can pass"):
        trainer().fit(pretrain, datamodule=parts.Vectors())


# ---------------------------------------------------------------------- from the command line


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A working directory with the run that the configuration starts from."""
    folder = tmp_path_factory.mktemp("finetune")
    encoder = ConvEncoder(1, widths=(8, 8, 8), blocks=(0, 0, 0))
    save_encoder(encoder, folder / "runs" / "quickstart" / "0" / "encoder")
    return folder


@pytest.mark.parametrize("objective", ["CoreTuning", "CrossEntropy", "SupCon"])
def test_the_configuration_runs(pretrained, tmp_path, monkeypatch, capsys, objective):
    shutil.copytree(pretrained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    handler = signal.getsignal(signal.SIGINT)
    words = ["--trainer.max_steps=3", "--extras.evaluate=false", "--extras.report=false"]
    words += ["--data.num_workers=0", f"--model.objective={objective}"]
    assert main(["fit", f"--config={CONFIGS / 'vision' / 'finetune_digits.yaml'}", *words]) == 0
    signal.signal(signal.SIGINT, handler)
    said = capsys.readouterr().out
    assert "50 samples" in said
    assert "fine-tuned classifier: accuracy" in said
    run = Path("runs/finetune_digits/0")
    found = {str(path.relative_to(run)) for path in run.rglob("*.*")}
    assert found >= {"results/fine_tuning.json", "encoder/encoder.json", "classifier/classifier.safetensors"}
    recorded = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert recorded["class_path"].endswith("FineTune")
    assert recorded["init_args"]["objective"]["class_path"].endswith(objective)
    words = ["--data=ImageData", "--data.size=16", "--data.channels=1", "--data.labels_per_class=5"]
    words += ["--data.num_workers=0"]
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    assert main(["test", *words, checkpoint, "--trainer.accelerator=cpu"]) == 0
    assert "test_accuracy" in capsys.readouterr().out
