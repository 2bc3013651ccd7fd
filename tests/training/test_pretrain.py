import math
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from contrastive.data import Loader
from contrastive.encoders import ConvEncoder, ProjectionHead
from contrastive.objectives import BECLR, InfoNCE, Objective
from contrastive.training import OptimizerConfig, Pretrain
from contrastive.training.optim import warmup_cosine
from contrastive.views import MultiCrop

# Lightning rebuilds modules through a method that new versions of jsonargparse deprecate.
LIGHTNING_CALLS_JSONARGPARSE = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)
pytestmark = pytest.mark.usefixtures("seeded")


def build(parts, **options):
    """A Pretrain of small parts; ``options`` replace some."""
    settings = {
        "encoder": parts.TinyEncoder(),
        "objective": parts.TinyNCE(),
        "projector": ProjectionHead(hidden_dim=16, dim=8),
        "views": parts.Noise(),
        "optimizer": OptimizerConfig(learning_rate=0.01),
    }
    return Pretrain(**settings | options)


class Untold(Objective):
    """An objective that wants something that no batch has."""

    requires = ("is_target",)


# ---------------------------------------------------------------------- construction


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"encoder": nn.Linear(2, 2)}, TypeError, "encoder of Pretrain is a Linear whose dim is None"),
        ({"momentum": 1.0}, ValueError, "momentum of Pretrain is 1.0"),
        ({"momentum_final": 1.0}, ValueError, "momentum_final of Pretrain is 1.0 and momentum is 0.0"),
        ({"momentum": 0.9, "momentum_final": 0.8}, ValueError, "momentum_final of Pretrain is 0.8"),
        ({"cache_chunk_size": -1}, ValueError, "cache_chunk_size of Pretrain is -1"),
        ({"seed": -1}, ValueError, "seed of Pretrain is -1"),
    ],
)
def test_refuses_wrong_arguments(parts, wrong, error, message):
    with pytest.raises(error, match=message):
        build(parts, **wrong)


def test_momentum_needs_two_views(parts):
    with pytest.raises(ValueError, match="Noise makes 3 views"):
        build(parts, momentum=0.9, views=parts.Noise(views=3))


def test_builds_the_projector_for_the_encoder(parts):
    assert build(parts, projector=None).projector.in_dim == 16
    assert isinstance(build(parts, projector=nn.Identity()).projector, nn.Identity)


# ---------------------------------------------------------------------- what the objective is given


def test_names_what_the_objective_requires_and_nobody_passes(parts, trainer):
    with pytest.raises(ValueError, match="Untold requires is_target"):
        trainer().fit(build(parts, objective=Untold()), datamodule=parts.Vectors())


@pytest.mark.parametrize("options", [{"use_labels": True}, {"requires": ("labels",)}])
def test_refuses_unlabelled_data_before_the_first_batch(parts, trainer, options):
    use_labels = options.get("use_labels", False)
    objective = parts.TinyNCE(requires=options.get("requires", ()))
    module = build(parts, objective=objective, use_labels=use_labels)
    with pytest.raises(ValueError, match=r"needs labels, but the data has none .* choose a labelled"):
        trainer().fit(module, datamodule=parts.Vectors(labelled=False))
    assert objective.calls == []
    loader = Loader(torch.randn(24, 6), batch_size=24)  # without a data module only the batch can tell
    with pytest.raises(ValueError, match="is to be given labels, but the batch has none"):
        trainer().fit(module, loader)


@pytest.mark.parametrize(
    ("requires", "use_labels", "given"), [((), False, False), ((), True, True), (("labels",), False, True)]
)
def test_labels_are_passed_only_on_request(parts, trainer, requires, use_labels, given):
    objective = parts.TinyNCE(requires=requires)
    data = parts.Vectors()
    trainer().fit(build(parts, objective=objective, use_labels=use_labels), datamodule=data)
    for call in objective.calls:
        assert (call["labels"] is not None) == given
        assert not given or torch.equal(call["labels"], data.labels[call["index"]])


def test_sizes_the_objective_before_training(parts, trainer):
    objective = parts.TinyNCE()
    trainer(max_epochs=2).fit(build(parts, objective=objective), datamodule=parts.Vectors())
    assert torch.equal(objective.seen, torch.full((96,), 2.0))  # every sample once an epoch, by its own index


def test_held_out_loss_is_the_same_every_time_and_touches_no_state(parts, trainer):
    module = build(parts, objective=parts.TinyNCE(queue_size=32))
    loader = Loader(torch.randn(24, 6), batch_size=24)
    queue = module.objective.queue.clone()
    first, second = (trainer().validate(module, loader, verbose=False)[0]["val_loss"] for _ in range(2))
    assert first == second > 0
    assert trainer().test(module, loader, verbose=False)[0]["test_loss"] == first
    assert torch.equal(module.objective.queue, queue)


def test_predicts_features_of_the_encoder(parts, trainer):
    module = build(parts)
    inputs = torch.randn(10, 6)
    (features,) = trainer().predict(module, Loader(inputs, batch_size=10))
    torch.testing.assert_close(features, module.encoder(inputs))
    assert features.shape == (10, module.encoder.dim)


# ---------------------------------------------------------------------- views and passes


def test_views_are_a_function_of_seed_epoch_batch_and_rank(parts):
    module, inputs = build(parts), torch.zeros(4, 6)

    def views(seed, *place):
        module.seed = seed
        return torch.stack(module.make_views(inputs, module._seeds(*place)[0]))

    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    drawn = [views(*place) for place in places]
    assert torch.equal(drawn[0], views(*places[0]))
    for one in range(len(places)):
        for other in range(one):
            assert not torch.equal(drawn[one], drawn[other]), (places[one], places[other])


def test_views_of_one_shape_share_a_pass_and_keep_their_places(parts):
    module = build(parts, encoder=Pool())
    views = [torch.randn(4, 6, size) for size in (8, 3, 8, 3, 3)]
    embeddings = module.eval().embed(views)
    assert module.encoder.shapes == [(8, 6, 8), (12, 6, 3)]
    for view, embedding in zip(views, embeddings, strict=True):
        torch.testing.assert_close(embedding, module.projector(module.encoder(view)))


class Pool(nn.Module):
    """Takes (B, 6, any length) and remembers what it was given."""

    dim = 6

    def __init__(self):
        super().__init__()
        self.shapes = []
        self.gain = nn.Parameter(torch.ones(6))

    def forward(self, inputs):
        self.shapes.append(tuple(inputs.shape))
        return inputs.mean(2) * self.gain


# ---------------------------------------------------------------------- momentum


def test_keys_follow_as_a_moving_average_once_a_step(parts, trainer):
    module = build(parts, momentum=0.9, encoder=parts.TinyEncoder())
    weight = module.encoder.net[0].weight
    history = [weight.detach().clone()]

    class Record(pl.Callback):
        def on_before_zero_grad(self, *_):  # after each optimiser step
            history.append(weight.detach().clone())

    run = trainer(accumulate_grad_batches=2, callbacks=[Record()])
    run.fit(module, datamodule=parts.Vectors())  # 4 batches, 2 steps
    assert run.global_step == 2
    start = history[0]
    first = next(state for state in history if not state.equal(start))
    average = 0.9 * start + 0.1 * first  # updated before step 2; the update before step 1 changed nothing
    torch.testing.assert_close(module.key_network.module[0].net[0].weight, average)
    assert not any(parameter.requires_grad for parameter in module.key_network.parameters())


def test_keys_carry_no_gradient_and_both_directions_are_averaged(parts, trainer):
    objective = parts.TinyNCE()
    module = build(
        parts,
        momentum=0.9,
        symmetric=True,
        objective=objective,
        views=parts.Noise(1.0),
        projector=nn.Identity(),
    )
    trainer(max_steps=1).fit(module, datamodule=parts.Vectors())
    (query, key), (other_query, other_key) = (call["views"] for call in objective.calls)
    assert query.requires_grad
    assert other_query.requires_grad
    assert not key.requires_grad
    assert not other_key.requires_grad
    # At first the copy equals the original, so the keys of one direction are the queries of the other.
    torch.testing.assert_close(key, other_query.detach())
    torch.testing.assert_close(other_key, query.detach())
    assert not torch.allclose(key, other_key)


def test_momentum_rises_to_its_final_value_over_the_steps_of_the_run(parts, trainer):
    module = build(parts, momentum=0.6, momentum_final=0.9)
    rates, update = [], module.key_network.update

    def record(progress):
        before = module.key_network.module[0].net[0].bias.clone()
        original = module.encoder.net[0].bias.detach()
        moved, update_result = original - before, update(progress)
        after = module.key_network.module[0].net[0].bias
        rates.append(float(((after - before) / moved).nanmedian()))
        return update_result

    module.key_network.update = record
    trainer(max_epochs=2, accumulate_grad_batches=2).fit(module, datamodule=parts.Vectors())  # 4 steps
    momenta = [0.9 - 0.3 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert rates[1:] == pytest.approx(
        [1 - momentum for momentum in momenta[1:]], rel=1e-3
    )  # at first both are equal


# ---------------------------------------------------------------------- a teacher


class Taught(Objective):
    """Agrees with the teacher's embedding of the same view, and remembers what it was called with."""

    requires = ("teacher",)

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, *views, index=None, labels=None, teacher=None):
        self.calls.append({"views": views, "index": index, "labels": labels, "teacher": teacher})
        return torch.stack([(v - t).square().mean() for v, t in zip(views, teacher, strict=True)]).mean()


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "symmetric": True}])
def test_an_objective_with_a_teacher_needs_momentum(parts, options):
    with pytest.raises(
        ValueError, match=r"Taught requires a teacher.*Pretrain\(momentum=0.99, symmetric=False\)"
    ):
        build(parts, objective=Taught(), **options)


def test_the_teacher_embeds_all_views_without_gradient(parts, trainer):
    objective = Taught()
    module = build(parts, momentum=0.9, objective=objective, views=parts.Noise(1.0, views=3), use_labels=True)
    data = parts.Vectors()
    trainer(max_steps=2).fit(module, datamodule=data)
    first, second = objective.calls
    for view, teacher in zip(first["views"], first["teacher"], strict=True):
        torch.testing.assert_close(teacher, view.detach())  # at first the copy equals the original
        assert view.requires_grad
        assert not teacher.requires_grad
    assert not torch.allclose(second["teacher"][0], second["views"][0])
    assert torch.equal(first["labels"], data.labels[first["index"]])
    assert len(module.embeddings) == 3


def test_a_held_out_loss_has_a_teacher_too(parts, trainer):
    objective = Taught()
    module = build(parts, momentum=0.9, objective=objective)
    loader = Loader(torch.randn(24, 6), batch_size=24)
    assert (
        trainer().validate(module, loader, verbose=False)[0]["val_loss"] == 0
    )  # the copy still equals the original
    assert len(objective.calls[0]["teacher"]) == 2


def test_trains_with_clustered_memories(parts, trainer):
    objective = BECLR(num_neighbours=2, num_clusters=4, memory_size=100, memory_start_epoch=1)
    module = build(parts, momentum=0.9, momentum_final=1.0, objective=objective, use_labels=True)
    run = trainer(max_epochs=4)
    run.fit(module, datamodule=parts.Vectors())
    assert objective.predictor.layers[0].out_features == 2
    assert {"cluster_purity", "neighbour_precision", "std"} <= run.callback_metrics.keys()
    assert "loss_over_chance" not in run.callback_metrics


# ---------------------------------------------------------------------- resuming


def tiny_nce(parts):
    return parts.TinyNCE(queue_size=32)


def clustered(parts):
    return BECLR(8, num_neighbours=2, num_clusters=4, memory_size=100, memory_start_epoch=1)


@pytest.mark.parametrize(
    ("options", "make_objective"),
    [
        ({}, tiny_nce),
        ({"momentum": 0.9}, tiny_nce),
        ({"cache_chunk_size": 10}, tiny_nce),
        ({"momentum": 0.9, "momentum_final": 1.0}, clustered),
    ],
    ids=["plain", "momentum", "cached", "teacher"],
)
def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(
    parts, trainer, tmp_path, options, make_objective
):
    def module():
        torch.manual_seed(0)
        encoder = parts.TinyEncoder(dropout=0.2)
        return build(parts, encoder=encoder, objective=make_objective(parts), **options)

    def train(name, stop=4, **fit):
        new = module()
        # A limit on batches stops a run in the middle of its schedule without changing the schedule.
        run = trainer(name, max_epochs=4, callbacks=[StopAfter(stop)])
        torch.manual_seed(len(name))  # the state of the global generator must not matter
        run.fit(new, datamodule=parts.Vectors(), **fit)
        run.save_checkpoint(tmp_path / f"{name}.ckpt")
        return {key: value.clone() for key, value in new.state_dict().items()}

    straight = train("straight")
    half = train("half", stop=2)
    resumed = train("resumed", ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert straight.keys() == resumed.keys()
    for key, value in straight.items():
        assert torch.equal(value, resumed[key]), key
    weight = "encoder.net.0.weight"
    assert not torch.equal(half[weight], straight[weight])  # control: the second half did something


class StopAfter(pl.Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def test_another_seed_gives_another_run(parts, trainer):
    """Control of the test above: the comparison sees a difference in the views alone."""

    def train(seed):
        torch.manual_seed(0)
        module = build(parts, seed=seed)
        trainer().fit(module, datamodule=parts.Vectors())
        return module.encoder.net[0].weight.detach()

    assert torch.equal(train(0), train(0))
    assert not torch.equal(train(0), train(1))


def test_a_resumed_run_takes_the_options_asked_for_and_keeps_its_place(parts, trainer, tmp_path):
    run = trainer(max_epochs=2, callbacks=[StopAfter(1)])
    run.fit(build(parts), datamodule=parts.Vectors())
    run.save_checkpoint(tmp_path / "half.ckpt")
    options = OptimizerConfig(learning_rate=0.5, weight_decay=0.3, warmup_steps=0)
    rates = []

    class Record(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]))

    resumed = trainer(max_epochs=2, callbacks=[Record()])
    resumed.fit(build(parts, optimizer=options), datamodule=parts.Vectors(), ckpt_path=tmp_path / "half.ckpt")
    share = warmup_cosine(total_steps=8, warmup_steps=0)
    assert [rate for rate, _ in rates] == pytest.approx([0.5 * share(step) for step in range(4, 8)])
    assert {decay for _, decay in rates} == {0.3}


def test_refuses_to_resume_on_other_data(parts, trainer, tmp_path):
    run = trainer()
    run.fit(build(parts), datamodule=parts.Vectors())
    run.save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match=r"trained on 96 samples.*, the data given has 48"):
        trainer(max_epochs=2).fit(
            build(parts), datamodule=parts.Vectors(num_samples=48), ckpt_path=tmp_path / "run.ckpt"
        )


# ---------------------------------------------------------------------- checkpoints


@LIGHTNING_CALLS_JSONARGPARSE
def test_a_checkpoint_made_in_python_is_plain_data_and_loads(parts, trainer, tmp_path):
    objective = parts.TinyNCE(queue_size=32)
    optimizer = OptimizerConfig(name="lars", trust=0.02)
    module = build(parts, objective=objective, momentum=0.9, optimizer=optimizer)
    run = trainer()
    run.fit(module, datamodule=parts.Vectors())
    run.save_checkpoint(path := tmp_path / "run.ckpt")

    saved = torch.load(path, weights_only=True)
    assert saved["hyper_parameters"]["encoder"]["init_args"] == {"in_dim": 6, "dim": 16, "dropout": 0.0}
    assert saved["hyper_parameters"]["optimizer"]["trust"] == 0.02
    loaded = Pretrain.load_from_checkpoint(
        path,
        weights_only=True,
        encoder=parts.TinyEncoder(),
        objective=parts.TinyNCE(queue_size=32),
        projector=ProjectionHead(hidden_dim=16, dim=8),
        views=parts.Noise(),
    )
    assert loaded.optimizer_config == module.optimizer_config
    assert loaded.hparams["momentum"] == 0.9
    for key, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert not any(key.startswith("encoder.") and "projector" in key for key in saved["state_dict"])


@LIGHTNING_CALLS_JSONARGPARSE
def test_a_checkpoint_made_from_a_configuration_rebuilds_every_part(tmp_path, monkeypatch):
    from lightning.pytorch.cli import LightningCLI

    arguments = [
        "--model.encoder=contrastive.encoders.MLPEncoder",
        "--model.encoder.in_dim=6",
        "--model.objective=contrastive.objectives.InfoNCE",
        "--model.objective.temperature=0.3",
        "--model.projector=contrastive.encoders.ProjectionHead",
        "--model.projector.dim=8",
        "--model.optimizer.name=sgd",
        "--model.optimizer.learning_rate=0.25",
    ]
    monkeypatch.setattr(sys, "argv", ["train"])  # Lightning warns of arguments beside those of the process
    cli = LightningCLI(
        Pretrain,
        args=arguments,
        run=False,
        seed_everything_default=0,
        save_config_callback=None,
        trainer_defaults={"accelerator": "cpu", "logger": False, "enable_checkpointing": False},
    )
    cli.trainer.strategy.connect(cli.model)
    cli.trainer.save_checkpoint(path := tmp_path / "cli.ckpt")
    loaded = Pretrain.load_from_checkpoint(path, weights_only=True)
    assert loaded.objective.temperature == 0.3
    assert loaded.optimizer_config == OptimizerConfig(name="sgd", learning_rate=0.25)
    for key, value in cli.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


# ---------------------------------------------------------------------- Lightning's features


@pytest.mark.parametrize("chunk", [0, 16])
def test_trains_in_bfloat16_with_accumulation_clipping_and_chunks(parts, trainer, chunk):
    objective = parts.TinyNCE()
    module = build(parts, objective=objective, cache_chunk_size=chunk)
    run = trainer(precision="bf16-mixed", accumulate_grad_batches=2, gradient_clip_val=1.0, max_epochs=8)
    run.fit(module, datamodule=parts.Vectors())
    assert run.global_step == 16  # 8 epochs of 4 batches
    assert objective.calls[0]["views"][0].dtype == torch.bfloat16
    assert run.callback_metrics["loss_epoch"] < 1.0  # log 24 = 3.18 by chance


def test_trains_with_the_schedule_reaching_its_end(parts, trainer):
    rates = []

    class Record(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    config = OptimizerConfig(learning_rate=0.5, warmup_steps=1, reference_batch=24)
    run = trainer(max_epochs=3, accumulate_grad_batches=2, callbacks=[Record()])
    run.fit(build(parts, optimizer=config), datamodule=parts.Vectors())
    share = warmup_cosine(total_steps=6, warmup_steps=1)
    assert rates == pytest.approx([0.5 * 2 * share(step) for step in range(6)])  # 2 batches of 24 a step


def test_refuses_a_run_without_end(parts, trainer):
    with pytest.raises(ValueError, match="neither max_epochs nor max_steps"):
        trainer(max_epochs=-1).fit(build(parts), datamodule=parts.Vectors())


def test_refuses_to_scale_by_an_unknown_batch(parts, trainer):
    module = build(parts, optimizer=OptimizerConfig(reference_batch=256))
    with pytest.raises(ValueError, match="has no batch_size to scale"):
        trainer().fit(module, parts.Stream())


def test_trains_on_multi_crop(trainer):
    images = torch.randint(0, 256, (24, 3, 16, 16), dtype=torch.uint8)
    module = Pretrain(
        ConvEncoder(widths=[8, 8], blocks=[0, 0]),
        InfoNCE(),
        views=MultiCrop(global_size=16, local_size=8, local_views=3),
        cache_chunk_size=20,
    )
    run = trainer()
    run.fit(module, Loader(images, batch_size=12))
    assert [len(view) for view in module.embeddings] == [12] * 5
    assert torch.isfinite(run.callback_metrics["loss"])


def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    script = Path(__file__).with_name("two_processes.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"{devices}.pt", weights_only=True) for devices in (1, 2))
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-9, atol=1e-12, msg=key)
    assert (one["after/encoder.net.0.weight"] - one["before/encoder.net.0.weight"]).abs().max() > 1e-3


# ---------------------------------------------------------------------- losses that are not finite


class Bad(nn.Module):
    """An encoder that gives one sample, number 17, features that are not finite from the third step on."""

    dim = 6

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(6))
        self.steps = 0

    def forward(self, inputs):
        self.steps += 1
        bad = (inputs[:, :1] == 17) & (self.steps > 2)
        return torch.where(bad, torch.nan, inputs * self.gain)


def test_a_loss_that_is_not_finite_names_objective_step_and_sample(parts, trainer):
    data = parts.Vectors()
    data.inputs[:, 0] = torch.arange(96)
    data.batch_size = 96  # one batch an epoch, sample 17 is in each
    module = build(parts, encoder=Bad(), projector=nn.Linear(6, 8), views=parts.Noise(0.0))
    with pytest.raises(FloatingPointError, match=r"step 2 was not taken: TinyNCE.* nan.*sample 17 of"):
        trainer(max_epochs=5).fit(module, datamodule=data)
    assert torch.isfinite(module.projector.weight).all()  # the bad step was not taken
