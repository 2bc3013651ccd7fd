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
from recsys.data import Cases

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
    with pytest.raises(ValueError, match="stride=9"):
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
                model._losses(batch, None, {}, torch.Generator())[0] * len(batch.targets)
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
