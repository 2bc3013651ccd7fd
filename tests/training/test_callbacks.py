import os
import signal

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from contrastive import load_encoder
from contrastive.data import Loader, TensorData
from contrastive.encoders import MLPEncoder, ProjectionHead
from contrastive.training import (
    CollapseMonitor,
    ExportEncoder,
    OptimizerConfig,
    Pretrain,
    RunPlan,
    SaveOnStop,
)
from contrastive.training.callbacks import run_folder


def build(parts, **options):
    torch.manual_seed(0)
    projector = ProjectionHead(hidden_dim=16, dim=8)
    return Pretrain(
        MLPEncoder(6, dim=16), parts.TinyNCE(), projector=projector, views=parts.Noise(), **options
    )


class At(pl.Callback):
    """Do something when a batch begins."""

    def __init__(self, epoch, batch, action):
        self.place, self.action = (epoch, batch), action

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.place:
            self.action()


def throw(error):
    def action():
        raise error

    return action


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_the_plan_names_what_will_happen(parts, trainer, tmp_path, capsys):
    config = OptimizerConfig(
        name="sgd", learning_rate=0.5, warmup_steps=3, reference_batch=96, final_fraction=0.1
    )
    run = trainer(
        max_epochs=7, accumulate_grad_batches=2, callbacks=[At(0, 0, throw(RuntimeError("enough")))]
    )
    with pytest.raises(RuntimeError, match="enough"):
        run.fit(build(parts, optimizer=config, cache_chunk_size=16), datamodule=parts.Vectors())
    plan = capsys.readouterr().out
    for expected in (
        "vectors, 96 samples",
        "48 samples a step = 24 x 1 process x 2 accumulated",
        "23 per anchor",
        "14 = 7 epochs of 4 batches",
        "sgd, 3 warm-up steps to 0.25, cosine to 0.025",
        "MLPEncoder (",
        "ProjectionHead (416 parameters)",  # 16 x 16 and 16 x 8 weights, 2 x 16 of batch norm
        "16 features",
        "TinyNCE",
        "1 x cpu, precision 32-true, 16 rows encoded at a time",
        str(tmp_path / "run"),
    ):
        assert expected in plan, plan


def test_the_plan_admits_what_it_cannot_know(parts, trainer, capsys):
    trainer().fit(build(parts), parts.Stream())
    plan = capsys.readouterr().out
    assert "batch         of unknown size" in plan
    assert "negatives     not known" in plan


@pytest.mark.parametrize("logger", [True, False])
def test_the_run_folder_is_that_of_the_logger(trainer, tmp_path, logger):
    run = trainer() if logger else trainer(logger=False, default_root_dir=tmp_path / "root")
    assert run_folder(run) == tmp_path / ("run" if logger else "root")


def test_every_run_has_the_callbacks_once(parts, trainer):
    mine = CollapseMonitor(min_spread=0.0)
    run = trainer(callbacks=[mine])
    run.fit(build(parts), datamodule=parts.Vectors())
    for kind in (RunPlan, SaveOnStop, CollapseMonitor):
        assert sum(isinstance(callback, kind) for callback in run.callbacks) == 1
    assert mine in run.callbacks


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(parts, trainer, tmp_path):
    straight = build(parts)
    trainer("straight", max_epochs=3).fit(straight, datamodule=parts.Vectors())

    stopped = build(parts)
    run = trainer("stopped", max_epochs=3, callbacks=[At(1, 2, press_ctrl_c)])
    with pytest.raises(SystemExit):
        run.fit(stopped, datamodule=parts.Vectors())
    assert run.global_step == 7  # the batch under way was finished
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning has left it ignored

    resumed = build(parts)
    run = trainer("resumed", max_epochs=3)
    path = tmp_path / "stopped" / "checkpoints" / "interrupted.ckpt"
    run.fit(resumed, datamodule=parts.Vectors(), ckpt_path=path, weights_only=True)
    assert run.global_step == 12
    for key, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
    assert not torch.equal(stopped.projector.layers[0].weight, straight.projector.layers[0].weight)  # control


class InValidation(At):
    """The same when a batch of validation begins."""

    def on_train_batch_start(self, *_):
        pass

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking and (trainer.current_epoch, batch_idx) == self.place:
            self.action()


class Seen(pl.Callback):
    """Held-out losses and ends of epochs, as they come."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append(trainer.current_epoch)

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.seen.append(float(trainer.callback_metrics["val_loss"]))


@pytest.mark.parametrize(
    ("place", "options"),
    [
        (InValidation(1, 1, press_ctrl_c), {}),  # of 2 batches
        (
            InValidation(1, 0, press_ctrl_c),
            {"val_check_interval": 2},
        ),  # the first of 2 validations in the epoch
        (At(1, 3, press_ctrl_c), {}),  # the last batch of 4
        (At(2, 3, press_ctrl_c), {}),  # the last batch of all
        (At(1, 3, press_ctrl_c), {"limit_val_batches": 0}),
    ],
)
def test_a_run_stopped_at_an_epochs_end_goes_on_with_all_that_belongs_there(
    parts, trainer, tmp_path, place, options
):
    data = TensorData(torch.randn(96, 6), batch_size=16, validation_fraction=0.3)

    def run(name, callback, **resume):
        module, seen = build(parts), Seen()
        run = trainer(name, max_epochs=3, callbacks=[seen, callback], **options)
        try:
            run.fit(module, datamodule=data, **resume)
        except SystemExit:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return module.state_dict(), seen.seen

    weights, whole = run("straight", pl.Callback())
    _, before = run("stopped", place)
    path = tmp_path / "stopped" / "checkpoints" / "interrupted.ckpt"
    resumed, after = run("resumed", pl.Callback(), ckpt_path=path, weights_only=True)
    assert before + after == whole
    assert before
    assert after
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())


def test_a_second_ctrl_c_stops_at_once(parts, trainer, tmp_path):
    def twice():
        press_ctrl_c()
        press_ctrl_c()

    run = trainer(max_epochs=3, callbacks=[At(1, 2, twice)])
    with pytest.raises(SystemExit):
        run.fit(build(parts), datamodule=parts.Vectors())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert run.global_step == 6
    assert (tmp_path / "run" / "checkpoints" / "interrupted.ckpt").exists()


def test_ctrl_c_is_given_back(parts, trainer):
    trainer().fit(build(parts), datamodule=parts.Vectors())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(RuntimeError, match="mine"):
        trainer(callbacks=[At(0, 1, throw(RuntimeError("mine")))]).fit(
            build(parts), datamodule=parts.Vectors()
        )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_loss_that_is_not_finite_leaves_a_checkpoint_that_passes_over_the_batch(parts, trainer, tmp_path):
    stopped = build(parts)
    with pytest.raises(FloatingPointError):
        trainer(max_epochs=3, callbacks=[At(1, 2, throw(FloatingPointError("nan")))]).fit(
            stopped, datamodule=parts.Vectors()
        )
    path = tmp_path / "run" / "checkpoints" / "not_finite.ckpt"
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == 6
    assert all(torch.equal(saved["state_dict"][key], value) for key, value in stopped.state_dict().items())
    resumed = trainer("resumed", max_epochs=3)
    resumed.fit(build(parts), datamodule=parts.Vectors(), ckpt_path=path, weights_only=True)
    assert resumed.global_step == 11


def test_other_errors_and_errors_before_training_save_nothing(parts, trainer, tmp_path):
    for callback in (At(0, 1, throw(RuntimeError("mine"))), StopEarly()):
        with pytest.raises((RuntimeError, SystemExit)):
            trainer(callbacks=[callback]).fit(build(parts), datamodule=parts.Vectors())
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert not list(tmp_path.rglob("*.ckpt"))


class StopEarly(pl.Callback):
    def setup(self, trainer, pl_module, stage):
        raise KeyboardInterrupt


# ---------------------------------------------------------------------- export


def test_exports_the_encoder_without_its_projector(parts, trainer, tmp_path):
    module = build(parts)
    trainer(callbacks=[ExportEncoder()]).fit(module, datamodule=parts.Vectors())
    loaded = load_encoder(tmp_path / "run")
    assert loaded.state_dict().keys() == module.encoder.state_dict().keys()
    inputs = torch.randn(5, 6)
    torch.testing.assert_close(loaded(inputs), module.encoder.eval()(inputs))


def test_exports_when_interrupted(parts, trainer, tmp_path):
    with pytest.raises(SystemExit):
        trainer(callbacks=[ExportEncoder(evaluate=True), At(0, 2, throw(KeyboardInterrupt))]).fit(
            build(parts), datamodule=parts.Vectors()
        )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    load_encoder(tmp_path / "run")


def test_evaluates_and_reports_on_the_run_folder(parts, trainer, tmp_path, monkeypatch):
    from contrastive import evaluation
    from contrastive.evaluation import report

    calls = []

    def evaluate(folder, data, trust):
        load_encoder(folder)  # is there already
        assert data.source == "vectors"
        calls.append(("evaluate", folder))

    monkeypatch.setattr(evaluation, "evaluate_run", evaluate, raising=False)
    monkeypatch.setattr(report, "write_report", lambda folder, trust: calls.append(("report", folder)))
    trainer("none", callbacks=[ExportEncoder()]).fit(build(parts), datamodule=parts.Vectors())
    assert calls == []
    trainer(callbacks=[ExportEncoder(evaluate=True, report=True)]).fit(
        build(parts), datamodule=parts.Vectors()
    )
    assert calls == [("evaluate", tmp_path / "run"), ("report", tmp_path / "run")]


def test_warns_of_a_module_without_encoder(trainer):
    class Other(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 1)

        def training_step(self, batch, batch_idx):
            return self.net(batch.inputs).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.warns(UserWarning, match="Other has no attribute `encoder`"):
        trainer(callbacks=[ExportEncoder(), RunPlan(), CollapseMonitor()]).fit(
            Other(), Loader(torch.randn(8, 6), batch_size=4)
        )


def test_a_dry_run_leaves_nothing(parts, trainer, tmp_path):
    run = trainer(
        fast_dev_run=True, callbacks=[ExportEncoder(evaluate=True)], default_root_dir=tmp_path / "dry"
    )
    run.fit(build(parts), datamodule=parts.Vectors())
    assert not (tmp_path / "dry").exists()
