"""A resumed run ends where its schedule ends, whatever its batch size, accumulation and length are now."""

import lightning.pytorch as pl
import pytest
import torch

from contrastive.reading import read_tensors
from contrastive.training import Pretrain
from contrastive.training.checkpoints import LastCheckpoint
from contrastive.training.optim import OptimizerConfig, warmup_cosine
from contrastive.training.resume import Place

RATE = OptimizerConfig(learning_rate=1e-3, warmup_steps=0)


class Watch(pl.Callback):
    """Note the rates of steps, the epochs and samples of batches; save after some, and stop."""

    def __init__(self, path=None, save_after: int | None = None) -> None:
        self.path, self.save_after, self.rates, self.epochs, self.samples = path, save_after, [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.epochs.append(trainer.current_epoch)
        self.samples += batch.index.tolist()
        if len(self.epochs) == self.save_after:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def module(parts) -> Pretrain:
    torch.manual_seed(0)
    return Pretrain(parts.TinyEncoder(), parts.TinyNCE(), views=parts.Noise(), optimizer=RATE)


def first_run(parts, trainer, path, stop_after, **options) -> None:
    run = trainer("first", max_epochs=2, callbacks=[Watch(path, stop_after)], **options)
    run.fit(module(parts), datamodule=parts.Vectors())  # 96 samples in 4 batches of 24


GRID = """
8 1 24, 8 1 48, 8 2 12, 8 3 20, 8 1 96, 4 1 40, 4 1 12, 2 1 24, 2 1 48, 2 1 12, 2 1 40, 2 2 20, 2 2 24,
3 1 24, 3 1 20, 3 1 48, 3 2 24, 3 3 12, 5 1 96
"""


@pytest.mark.parametrize(
    ("stop_after", "window", "batch_size"), [tuple(map(int, case.split())) for case in GRID.split(",")]
)
def test_the_cosine_ends_with_the_run(parts, trainer, tmp_path, stop_after, window, batch_size):
    first_run(parts, trainer, tmp_path / "first.ckpt", stop_after)
    watch, resumed = Watch(), module(parts)
    run = trainer("second", max_epochs=4, callbacks=[watch], accumulate_grad_batches=window)
    run.fit(
        resumed, datamodule=parts.Vectors(batch_size), ckpt_path=tmp_path / "first.ckpt", weights_only=True
    )
    share = warmup_cosine(resumed.total_steps, 0)
    assert run.global_step == resumed.total_steps == stop_after + len(watch.rates)
    assert watch.rates == pytest.approx([1e-3 * share(step) for step in range(stop_after, run.global_step)])
    assert resumed.total_epochs == 4
    # What is left of the epoch that was interrupted is trained on once, but for a last batch that is not full.
    left = (96 - 24 * stop_after % 96) % 96
    rest = watch.samples[: left // batch_size * batch_size]
    assert len(set(rest)) == len(rest)
    an_epoch = 96 // batch_size
    assert len(watch.epochs) == left // batch_size + an_epoch * (4 - -(-stop_after // 4))


@pytest.mark.parametrize("batch_size", [12, 24, 48])
def test_an_epoch_that_was_cut_short_is_over(parts, trainer, tmp_path, batch_size):
    last = LastCheckpoint(tmp_path)
    run = trainer("first", max_epochs=2, callbacks=[last], enable_checkpointing=True, limit_train_batches=2)
    run.fit(module(parts), datamodule=parts.Vectors())
    place = Place.read(read_tensors(last.path))
    assert (place.steps, place.epoch, place.batches) == (4, 2, 0)

    watch, resumed = Watch(), module(parts)
    run = trainer("second", max_epochs=4, callbacks=[watch], limit_train_batches=2)
    run.fit(resumed, datamodule=parts.Vectors(batch_size), ckpt_path=last.path, weights_only=True)
    share = warmup_cosine(8, 0)
    assert run.global_step == resumed.total_steps == 8
    assert watch.rates == pytest.approx([1e-3 * share(step) for step in range(4, 8)])
    assert watch.epochs == [2, 2, 3, 3]


def test_max_steps_ends_a_resumed_run_where_its_schedule_ends(parts, trainer, tmp_path):
    first_run(parts, trainer, tmp_path / "first.ckpt", 3)
    watch, resumed = Watch(), module(parts)
    run = trainer("second", max_epochs=-1, max_steps=7, callbacks=[watch])
    run.fit(resumed, datamodule=parts.Vectors(12), ckpt_path=tmp_path / "first.ckpt", weights_only=True)
    share = warmup_cosine(7, 0)
    assert watch.rates == pytest.approx([1e-3 * share(step) for step in range(3, 7)])


def test_the_plan_says_from_where_to_where(parts, trainer, tmp_path, capsys):
    first_run(parts, trainer, tmp_path / "first.ckpt", 8)
    assert "resumed" not in capsys.readouterr().out
    run = trainer("second", max_epochs=3)
    run.fit(module(parts), datamodule=parts.Vectors(48), ckpt_path=tmp_path / "first.ckpt", weights_only=True)
    plan = capsys.readouterr().out
    assert "steps         10 = 3 epochs of 2 batches" in plan
    rate = 1e-3 * warmup_cosine(10, 0)(8)
    assert (
        f"resumed       in epoch 3 after step 8, to step 10 (planned before: 8); learning rate from {rate:.3g} to 0\n"
        in plan
    )


@pytest.mark.parametrize("window", [2, 3, 4, 8])
def test_the_plan_counts_epochs_with_accumulation(parts, trainer, capsys, window):
    trainer(max_epochs=2, accumulate_grad_batches=window).fit(module(parts), datamodule=parts.Vectors(19))
    steps = 2 * -(-5 // window)  # 5 batches an epoch
    assert f"{steps} = 2 epochs of 5 batches" in capsys.readouterr().out


def test_the_last_window_of_accumulation_is_the_mean_of_its_batches(parts, trainer):
    """Five batches in windows of 4: the last step has the whole gradient of the one batch in it."""

    class Gradients(pl.Callback):
        def __init__(self):
            self.norms, self.batch = [], None

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.batch = batch

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.norms.append(
                torch.cat([p.grad.flatten() for p in pl_module.parameters() if p.grad is not None])
            )

    seen = Gradients()
    plain = module(parts)
    plain.optimizer_config = OptimizerConfig(learning_rate=1e-12, warmup_steps=0)  # stays where it is
    run = trainer(max_epochs=1, accumulate_grad_batches=4, callbacks=[seen], max_steps=-1)
    run.fit(plain, datamodule=parts.Vectors(19))
    alone = Gradients()
    again = module(parts)
    again.optimizer_config = plain.optimizer_config
    run = trainer(max_epochs=1, callbacks=[alone])
    run.fit(again, datamodule=parts.Vectors(19))
    torch.testing.assert_close(seen.norms[1], alone.norms[4])
    torch.testing.assert_close(seen.norms[0], torch.stack(alone.norms[:4]).mean(0))


def test_a_place_is_read_from_an_older_checkpoint_too(parts, trainer, tmp_path):
    first_run(parts, trainer, tmp_path / "first.ckpt", 6)
    content = torch.load(tmp_path / "first.ckpt", weights_only=True)
    assert Place.read(content) == Place(steps=6, epoch=1, batches=2, samples=48, planned=8)
    del content["contrastive"], content["loops"]["fit_loop"]["state_dict"]
    assert Place.read(content) == Place(steps=6, epoch=1, batches=2, samples=None, planned=None)
