"""Batches that read every target once, training that resumes bit for bit, and the command line."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer

from recsys import (
    SRACL,
    CL4SRec,
    DuoRec,
    GRU4Rec,
    MCLRec,
    RecommenderData,
    SASRec,
    Sequences,
    SequentialRecommender,
    rank_targets,
    ranking_metrics,
)
from recsys.batches import HeldOutBatches, TrainingBatches, training_prefixes
from recsys.data import Cases, SequenceData
from recsys.encoders import SequenceEncoder
from recsys.training import Part

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*treespec, LeafSpec", "ignore:.*smaller than the logging"
)
SIZES = {"users": 80, "items": 40}


def read(batches):
    """(history, target) of every place that is read."""
    return sorted(
        (tuple(batch.items[row, : place + 1].tolist()), int(target))
        for batch in batches
        for row, place, target in zip(batch.rows, batch.places, batch.targets, strict=True)
    )


def expected(rows, length):
    return sorted(
        (tuple(row[max(0, end - length) : end]), row[end]) for row in rows for end in range(1, len(row))
    )


@given(
    rows=st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=8).filter(
        lambda rows: any(len(row) > 1 for row in rows)
    ),
    length=st.integers(1, 6),
    targets=st.integers(1, 7),
    shared=st.booleans(),
)
@example(rows=[list(range(1, 13))], length=6, targets=1, shared=True)
@settings(max_examples=60, deadline=None)
def test_every_target_is_read_once_with_its_history(rows, length, targets, shared):
    batches = TrainingBatches(
        Sequences.from_lists(rows), max_length=length, batch_targets=targets, shared=shared
    )
    assert read(batches) == expected(rows, length)


def test_windows_that_share_a_pass_read_every_target_once():
    rows = [list(range(1, 30)), [1, 2, 3]]
    batches = TrainingBatches(Sequences.from_lists(rows), max_length=8, stride=3)
    pairs = read(batches)
    assert sorted(target for _, target in pairs) == sorted(
        row[end] for row in rows for end in range(1, len(row))
    )
    for history, target in pairs:
        full = rows[0] if target > 3 or len(history) > 2 else rows[1]
        end = full.index(target)
        assert list(history) == full[end - len(history) : end]
        assert len(history) >= min(end, 8 - 3 + 1)


@pytest.mark.parametrize("stride", [1, 3, 5])
def test_prefixes_beyond_the_window_begin_where_their_pass_does(stride):
    data = RecommenderData(synthetic=SIZES, max_length=5, stride=stride)
    table = training_prefixes(data.split, 5, stride)
    items, lengths = table.gather(torch.arange(len(table)))
    prefixes = [tuple(row[:length].tolist()) for row, length in zip(items, lengths, strict=True)]
    passes = data.train_dataloader()
    assert sorted(zip(prefixes, table.targets.tolist(), strict=True)) == read(passes)
    assert len(set(table.starts.tolist())) == sum(len(batch.items) for batch in passes)
    for wrong in (0, 6):
        with pytest.raises(ValueError, match=f"stride is {wrong}"):
            training_prefixes(data.split, 5, wrong)


def test_batches_follow_seed_and_epoch_and_resume():
    train = Sequences.from_lists([list(range(1, 2 + n % 9)) for n in range(60)])
    make = lambda seed: TrainingBatches(train, batch_targets=16, samples=16, seed=seed)  # noqa: E731
    first = [batch.targets.tolist() for batch in make(0)]
    assert first == [batch.targets.tolist() for batch in make(0)]
    assert first != [batch.targets.tolist() for batch in make(1)]
    loader, resumed = make(0), make(0)
    whole = [[part.tolist() for part in batch] for batch in loader]
    assert len(whole) == len(make(0))
    again = make(0)
    passing = iter(again)
    for _ in range(3):
        next(passing)
    resumed.load_state_dict(again.state_dict())
    assert [[part.tolist() for part in batch] for batch in resumed] == whole[3:]
    assert loader.epoch == 1
    assert [batch.targets.tolist() for batch in loader] != first
    with pytest.raises(ValueError, match="same data and seed"):
        make(1).load_state_dict(again.state_dict())
    samples = torch.cat([batch.samples for batch in make(0)])
    assert sorted(set(samples.tolist())) == list(range(make(0).num_targets))


def test_held_out_cases_come_once():
    histories = Sequences.from_lists([[1] * n for n in (3, 9, 1, 5, 7)])
    cases = Cases(histories, np.arange(1, 6), np.arange(5))
    batches = list(HeldOutBatches(cases, max_length=6, batch_size=2))
    assert torch.cat([batch.index for batch in batches]).tolist() == [2, 0, 3, 1, 4]
    assert torch.cat([batch.targets for batch in batches]).tolist() == [3, 1, 4, 2, 5]
    assert [batch.items.shape[1] for batch in batches] == [3, 6, 6]


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(ValueError, match="no user has two training items"):
        TrainingBatches(Sequences.from_lists([[1], []]))
    with pytest.raises(ValueError, match="stride is 9; give a whole number from 1 to 8"):
        TrainingBatches(Sequences.from_lists([[1, 2]]), max_length=8, stride=9)


def trainer(folder, **options):
    return Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": folder,
            "enable_checkpointing": False,
            **options,
        }
    )


def recommender(heads=(), encoder=SASRec, **options):
    torch.manual_seed(0)
    return SequentialRecommender(encoder(dim=16, dropout=0.2), heads=list(heads), **options)


def every_head():
    return [
        [CL4SRec()],
        [DuoRec()],
        [MCLRec()],
        [MCLRec(update="released", data_weight=0.1)],
        [MCLRec(update="joint", margins="set")],
        [SRACL()],
        [DuoRec(), MCLRec(), SRACL(semantics="interactions", symmetric=False)],
    ]


class SaveMidway(Callback):
    """A checkpoint after the third batch of the second epoch."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 2):
            trainer.save_checkpoint(self.path)
            self.saved = pl_module.encoder.item_vectors().detach().clone()


@pytest.mark.parametrize(
    "heads", every_head(), ids=lambda heads: "+".join(type(head).__name__ for head in heads)
)
def test_heads_train_and_resume_bit_for_bit(heads, tmp_path):
    fresh, save = copy.deepcopy(heads), SaveMidway(tmp_path / "midway.ckpt")
    whole, resumed = recommender(heads), recommender(fresh)
    options = {"max_epochs": 2, "limit_val_batches": 0}
    data = lambda: RecommenderData(synthetic=SIZES, batch_targets=64)  # noqa: E731
    trainer(tmp_path, callbacks=[save], **options).fit(whole, data())
    trainer(tmp_path, **options).fit(resumed, data(), ckpt_path=save.path, weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert not torch.equal(save.saved, whole.encoder.item_vectors())


@pytest.mark.parametrize("history", ["keep", "mask"])
def test_training_helps_and_metrics_are_those_of_full_ranking(history, tmp_path):
    data = RecommenderData(synthetic={"users": 300, "items": 60}, eval_batch=64)
    model = recommender(history=history, learning_rate=5e-3)
    run = trainer(tmp_path, max_epochs=8)
    run.fit(model, data)
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    model.eval()

    def score(histories):
        items, lengths = (torch.from_numpy(array) for array in histories.padded(50))
        with torch.no_grad():
            return model(items, lengths)

    ranks = rank_targets(score, data.split.valid, history=history)
    assert (ranks == model.ranks["valid"]).all()
    for name, value in ranking_metrics(ranks).items():
        assert logged[f"val_{name}"] == pytest.approx(value, abs=1e-6)
    assert logged["val_HR@10"] > 0.4  # a popular item alone gives about 0.2


@pytest.mark.parametrize("encoder", [SASRec, GRU4Rec])
def test_training_in_bfloat16(encoder, tmp_path):
    model = recommender([DuoRec(), MCLRec()] if encoder is SASRec else [], encoder)
    run = trainer(tmp_path, max_epochs=1, precision="bf16-mixed")
    run.fit(model, RecommenderData(synthetic={"users": 40, "items": 40}))
    assert 0 <= run.callback_metrics["val_HR@10"] <= 1
    assert model.encoder.item_vectors().dtype == torch.float32


def test_separate_prefixes_give_the_loss_of_shared_ones():
    totals = []
    for shared in (True, False):
        data = RecommenderData(synthetic=SIZES, shared=shared)
        model = recommender().eval()
        model.encoder.setup(data.num_items)
        torch.manual_seed(1)
        torch.nn.init.normal_(model.encoder.item_embedding.weight)
        with torch.no_grad():
            losses = [
                model._losses(Part(batch, None, torch.Generator()))[0] * len(batch.targets)
                for batch in data.train_dataloader()
            ]
        totals.append(torch.stack(losses).sum())
    torch.testing.assert_close(*totals)


def test_what_does_not_fit_is_refused_before_training(tmp_path):
    data = RecommenderData(synthetic=SIZES, max_length=60)
    with pytest.raises(ValueError, match="max_length is 60, but the encoder reads 50"):
        trainer(tmp_path, max_epochs=1).fit(recommender(), data)
    ends = SequentialRecommender(SASRec(dim=16, positions="end"))
    with pytest.raises(ValueError, match=r"data\.shared=false"):
        trainer(tmp_path, max_epochs=1).fit(ends, RecommenderData(synthetic=SIZES))


def test_an_infinite_loss_stops_the_run(tmp_path):
    model = recommender(learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        trainer(tmp_path, max_epochs=1).fit(model, RecommenderData(synthetic=SIZES, batch_targets=32))


def twin(model, data, count, clip):
    """An epoch with the definition of a step over ``count`` batches, in plain torch."""
    optimizers = model.configure_optimizers()
    batches = list(data.train_dataloader())

    def step(optimizer, losses):
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        for group in optimizer.param_groups:
            clip(group["params"])
        optimizer.step()

    for start in range(0, len(batches), count):
        parts = [model._part(batch, start + i) for i, batch in enumerate(batches[start : start + count])]
        total = sum(len(part.batch.targets) for part in parts)
        views = [{head: head.views(part.samples) for head in model.mclrec} for part in parts]

        def encoder_losses(parts=parts, total=total, views=views):
            losses = []
            for part, seen in zip(parts, views, strict=True):
                batch = part.batch
                states = model.encoder(batch.items, batch.lengths)[batch.rows, batch.places]
                vectors = model.encoder.item_vectors()
                losses.append(
                    model.loss(states, batch.targets, vectors, part.generator) * len(batch.targets) / total
                )
                losses += [head.encoder_loss(model.encoder, seen[head]) / len(parts) for head in model.mclrec]
            return losses

        step(optimizers[0], encoder_losses())
        for head in model.mclrec:
            step(
                optimizers[1],
                [head.augmenter_loss(model.encoder, seen[head]) / len(parts) for seen in views],
            )
            step(optimizers[0], encoder_losses())


NORM = {"gradient_clip_val": 0.02}, lambda weights: torch.nn.utils.clip_grad_norm_(weights, 0.02)
VALUE = (
    {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value"},
    lambda weights: torch.nn.utils.clip_grad_value_(weights, 1e-4),
)


@pytest.mark.parametrize(
    ("released", "count", "options", "clip"),
    [(False, 3, {}, lambda weights: None), (False, 1, *VALUE), (True, 3, *NORM)],
    ids=["accumulated", "clipped", "in turn"],
)
def test_accumulation_and_clipping_are_those_of_one_larger_batch(released, count, options, clip, tmp_path):
    data = RecommenderData(synthetic={"users": 40, "items": 40}, batch_targets=100)
    torch.manual_seed(0)
    heads = [MCLRec(update="released", model_weight=0.5)] if released else []
    encoder = SASRec(data.num_items, 16, dropout=0.0, attention_dropout=0.0)
    model = SequentialRecommender(encoder, heads=heads, weight_decay=0.01)
    data.needs_samples, model.prefixes = released, training_prefixes(data.split, 50)
    for head in heads:
        head.setup(encoder, data.split, model.prefixes)
    model.double()
    expected, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    expected.mclrec = list(expected.heads)
    torch.set_default_dtype(torch.float64)  # of what is drawn, as the trainer has it in this precision
    try:
        twin(expected, data, count, clip)
    finally:
        torch.set_default_dtype(torch.float32)
    run = trainer(tmp_path, max_epochs=1, accumulate_grad_batches=count, precision="64-true", **options)
    run.fit(model, data)
    assert len(data.train_dataloader()) % 3  # so that the last step of an epoch is over fewer
    assert run.global_step == -(-len(data.train_dataloader()) // count) * (3 if released else 1)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-9, atol=1e-9, msg=name)
        assert not torch.equal(value, before[name])


def test_a_checkpoint_between_the_batches_of_a_step_resumes_bit_for_bit(tmp_path):
    heads = lambda: [MCLRec(update="released")]  # noqa: E731
    save = SaveMidway(tmp_path / "midway.ckpt")
    whole, resumed = recommender(heads()), recommender(heads())
    options = {
        "max_epochs": 2,
        "limit_val_batches": 0,
        "accumulate_grad_batches": 4,
        "gradient_clip_val": 0.1,
    }
    data = lambda: RecommenderData(synthetic={"users": 40, "items": 40}, batch_targets=64)  # noqa: E731
    run = trainer(tmp_path, callbacks=[save], **options)
    run.fit(whole, data())
    assert torch.load(save.path, weights_only=True)["recsys"]["waiting"] == 3
    trainer(tmp_path, **options).fit(resumed, data(), ckpt_path=save.path, weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    run.fit_loop.max_epochs = 3  # the same trainer and module once more
    run.fit(whole, data())
    assert run.current_epoch == 3


@pytest.mark.parametrize("world", [1, 2, 3, 4, 9])
def test_processes_share_held_out_cases_in_as_many_batches_each(monkeypatch, world):
    cases = SequenceData.generate(users=7, items=40).split("leave-last-out").valid
    shares = []
    for rank in range(world):
        monkeypatch.setattr("recsys.batches._process", lambda rank=rank: (rank, world))
        shares.append(list(HeldOutBatches(cases, batch_size=2)))
        assert len(HeldOutBatches(cases, batch_size=2)) == len(shares[-1]) == -(-len(cases) // (2 * world))
    index = torch.cat([batch.index for share in shares for batch in share])
    assert sorted(index.tolist()) == list(range(len(cases)))
    model = SequentialRecommender(SASRec(dim=8))
    model.encoder.setup(40)
    for batch in (share[-1] for share in shares):  # some are empty
        assert model(batch.items, batch.lengths).shape == (len(batch.index), 41)


def test_two_processes_are_one_that_accumulates(tmp_path):
    script = Path(__file__).with_name("two_processes.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two, *others = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for name in ("one.0", "two.0", "heads.0", "heads.1")
    )
    assert one.keys() == two.keys() > {"loss", "val_NDCG@10", "valid"}
    for name, value in one.items():
        tolerance = 1e-6 if name.startswith("val_") else 1e-9  # these are logged in float32
        torch.testing.assert_close(two[name], value, rtol=tolerance, atol=1e-12, msg=name)
    assert (two["valid"] >= 0).all()  # ranks of the cases of both processes
    for name, value in others[0].items():
        assert torch.equal(value, others[1][name]), name
    assert sorted(path.name for path in tmp_path.glob("stopped.*")) == ["stopped.0", "stopped.1"], done.stdout


class Mean(SequenceEncoder):
    """The least that an encoder of one's own needs: states are running means of item vectors."""

    def forward(self, items, lengths):
        vectors = self.item_embedding(items)
        return vectors.cumsum(1) / torch.arange(1, items.shape[1] + 1)[:, None]


def test_an_encoder_of_ones_own_needs_a_forward_only(tmp_path):
    def model():
        torch.manual_seed(0)
        heads = [DuoRec(), MCLRec(), SRACL(semantics="interactions")]
        return SequentialRecommender(Mean(None, 16, 50), heads=heads)

    save = SaveMidway(tmp_path / "midway.ckpt")
    whole, resumed, data = model(), model(), RecommenderData(synthetic=SIZES, batch_targets=64)
    trainer(tmp_path, callbacks=[save], max_epochs=2).fit(whole, data)
    run = trainer(tmp_path, max_epochs=2)
    run.fit(resumed, data, ckpt_path=save.path, weights_only=True)
    assert torch.equal(whole.encoder.item_vectors(), resumed.encoder.item_vectors())
    (metrics,) = run.test(model(), data, ckpt_path=save.path, weights_only=True, verbose=False)
    assert 0 < metrics["test_HR@20"] <= 1
    with pytest.raises(TypeError, match=r"encoder is a Linear; give a recsys\.encoders\.SequenceEncoder"):
        SequentialRecommender(torch.nn.Linear(2, 2))


def test_gru(tmp_path):
    model = recommender(encoder=GRU4Rec)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, RecommenderData(synthetic=SIZES))
    (metrics,) = run.test(model, RecommenderData(synthetic=SIZES), verbose=False)
    assert 0 < metrics["test_HR@20"] <= 1


def test_quickstart_trains_from_the_command_line(tmp_path):
    root = Path(__file__).parents[2]
    words = ["fit", "--config", "configs/recsys/quickstart.yaml", f"--run_dir={tmp_path / 'run'}"]
    words += [
        "--trainer.max_epochs=1",
        "--data.synthetic={users: 120, items: 40}",
        "--trainer.enable_progress_bar=false",
    ]
    script = "import sys; from contrastive.cli import main; sys.exit(main())"
    recommend = ["recommend", "--model", str(tmp_path / "run"), "--history", "3", "7", "12", "--k", "4"]
    for command in (words, recommend):
        done = subprocess.run(
            [sys.executable, "-c", script, *command], cwd=root, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run/checkpoints/best.ckpt").is_file()
    assert len(done.stdout.strip().splitlines()) >= 4
