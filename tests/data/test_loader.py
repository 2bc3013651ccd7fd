import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset

from contrastive.data import Batch, Loader


def numbers(loader: Loader) -> list[list[int]]:
    return [batch.index.tolist() for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


def pretend(monkeypatch, rank: int, world: int) -> None:
    """Make the loader believe that it runs in process `rank` of `world`."""
    fake = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_rank=lambda: rank,
        get_world_size=lambda: world,
    )
    monkeypatch.setattr("contrastive.data.loader.torch.distributed", fake)


class Stream(Dataset):
    """Row numbers times ten, as a stream."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[:, None] * 10


def test_batches_in_order_hold_the_rows_asked_for():
    inputs, labels, rows = torch.arange(10)[:, None] * 10, torch.arange(10) + 100, torch.tensor([8, 1, 5])
    first, last = list(Loader(inputs, labels, rows, batch_size=2))
    assert isinstance(first, Batch)
    assert first.inputs.tolist() == [[80], [10]]
    assert first.labels.tolist() == [108, 101]
    assert first.index.tolist() == [0, 1]  # positions in the split, not rows of the inputs
    assert (last.inputs.tolist(), last.labels.tolist(), last.index.tolist()) == ([[50]], [105], [2])


def test_no_labels_stay_none():
    (batch,) = Loader(torch.zeros(3, 1), batch_size=3)
    assert batch.labels is None


def test_shuffle_is_a_permutation_that_depends_on_seed_and_epoch_only():
    def order(seed: int, epoch: int) -> list[int]:
        loader = Loader(torch.zeros(50, 1), batch_size=7, shuffle=True, seed=seed)
        loader.set_epoch(epoch)
        return flat(numbers(loader))

    orders = {pair: order(*pair) for pair in itertools.product((0, 1), (0, 1))}
    assert all(sorted(o) == list(range(50)) for o in orders.values())
    assert order(0, 1) == orders[0, 1]
    assert len({tuple(o) for o in orders.values()}) == 4


def test_inputs_and_labels_follow_the_shuffled_index():
    inputs, labels = torch.arange(20)[:, None] * 10, torch.arange(20) + 100
    for batch in Loader(inputs, labels, batch_size=6, shuffle=True):
        assert torch.equal(batch.inputs[:, 0], batch.index * 10)
        assert torch.equal(batch.labels, batch.index + 100)


def test_every_complete_pass_is_a_new_epoch_and_a_broken_one_is_repeated():
    loader = Loader(torch.zeros(20, 1), batch_size=5, shuffle=True)
    first, second = numbers(loader), numbers(loader)
    assert first != second
    third = next(iter(loader)).index.tolist()
    assert numbers(loader)[0] == third


def test_global_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(Loader(torch.zeros(20, 1), batch_size=5, shuffle=True))
    list(Loader(Stream(20), batch_size=5, shuffle=True))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(("drop_last", "expected"), [(True, 3), (False, 4)])
def test_length_counts_the_short_batch_or_not(drop_last, expected):
    loader = Loader(torch.zeros(10, 1), batch_size=3, drop_last=drop_last)
    assert len(loader) == len(list(loader)) == expected


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    world=st.integers(1, 5),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
)
def test_processes_share_the_samples(n, batch_size, world, drop_last, shuffle):
    def batches(rank: int, world: int, size: int) -> list[list[int]]:
        with pytest.MonkeyPatch.context() as monkeypatch:
            pretend(monkeypatch, rank, world)
            loader = Loader(torch.zeros(n, 1), batch_size=size, shuffle=shuffle, seed=3, drop_last=drop_last)
            result = numbers(loader)
            assert len(loader) == len(result)
            return result

    def counted(rank: int, part: list[list[int]]) -> list[int]:
        with pytest.MonkeyPatch.context() as monkeypatch:
            pretend(monkeypatch, rank, world)
            loader = Loader(torch.zeros(n, 1), batch_size=batch_size)
            return [
                sample
                for number, batch in enumerate(part)
                for sample, repeated in zip(batch, loader.repeated(number, len(batch)).tolist(), strict=True)
                if not repeated
            ]

    parts = [batches(rank, world, batch_size) for rank in range(world)]
    alone = batches(0, 1, batch_size * world)
    for step, together in enumerate(alone):
        shares = [part[step] for part in parts]
        assert len({len(share) for share in shares}) == 1
        joined = flat(shares)
        assert joined[: len(together)] == together  # what one process with a larger batch sees
        assert len(joined) - len(together) < world  # and the fewest repeats that even it out
    assert all(len(part) == len(alone) for part in parts)
    if not drop_last:
        assert {i for part in parts for batch in part for i in batch} == set(range(n))
        once = [sample for rank, part in enumerate(parts) for sample in counted(rank, part)]
        assert sorted(once) == list(range(n))


def test_unsharded_loader_passes_over_everything_in_every_process(monkeypatch):
    pretend(monkeypatch, 1, 2)
    assert numbers(Loader(torch.zeros(4, 1), batch_size=3, sharded=False)) == [[0, 1, 2], [3]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stream_gives_the_batches_of_a_tensor(num_workers):
    options = {"batch_size": 4, "shuffle": True, "seed": 5, "drop_last": True}
    rows = torch.arange(1, 12, 1)
    stream = Loader(Stream(20), torch.arange(20), rows, num_workers=num_workers, **options)
    tensor = Loader(torch.arange(20)[:, None] * 10, torch.arange(20), rows, **options)
    for _ in range(2):  # the second pass reuses the workers
        for a, b in zip(stream, tensor, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("inputs", [torch.arange(30)[:, None] * 10, Stream(30)], ids=["tensor", "stream"])
@pytest.mark.parametrize("done", [0, 2, 6])
def test_state_continues_with_the_next_batch(inputs, done):
    def make() -> Loader:
        return Loader(inputs, batch_size=5, shuffle=True, seed=1)

    whole = make()
    expected = numbers(whole) + numbers(whole)
    stopped = make()
    list(itertools.islice(stopped, done))
    resumed = make()
    resumed.load_state_dict(stopped.state_dict())
    assert (numbers(resumed) + numbers(resumed))[: 12 - done][:6] == expected[done : done + 6]


def test_state_counts_samples_so_another_batch_size_goes_on_too():
    stopped = Loader(torch.zeros(24, 1), batch_size=4, shuffle=True)
    seen = [batch.index.tolist() for batch in itertools.islice(stopped, 3)]
    resumed = Loader(torch.zeros(24, 1), batch_size=6, shuffle=True)
    resumed.load_state_dict(stopped.state_dict())
    rest = numbers(resumed)
    assert len(rest) == 2
    assert sorted(flat(seen + rest)) == list(range(24))


@pytest.mark.parametrize(("change", "name"), [({"seed": 1}, "seed"), ({"n": 25}, "num_samples")])
def test_state_of_other_data_is_refused_within_an_epoch_only(change, name):
    def make(n: int = 24, seed: int = 0) -> Loader:
        return Loader(torch.zeros(n, 1), batch_size=4, shuffle=True, seed=seed)

    stopped = make()
    passes = iter(stopped)
    next(passes)
    with pytest.raises(ValueError, match=f"middle of epoch 0.*{name}="):
        make(**change).load_state_dict(stopped.state_dict())
    list(passes)
    other = make(**change)
    other.load_state_dict(stopped.state_dict())
    assert other.epoch == 1


def test_set_epoch_forgets_a_place_in_another_epoch():
    stopped = Loader(torch.zeros(24, 1), batch_size=4)
    next(iter(stopped))
    state = stopped.state_dict()
    resumed = Loader(torch.zeros(24, 1), batch_size=4)
    resumed.load_state_dict(state)
    resumed.set_epoch(0)
    assert len(numbers(resumed)) == 5
    resumed.load_state_dict(state)
    resumed.set_epoch(3)
    assert len(numbers(resumed)) == 6


# What Lightning says about short runs, and about its own use of newer PyTorch.
lightning = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*LeafSpec:FutureWarning")


class Recorder(LightningModule):
    """Records which samples it is trained on."""

    def __init__(self, loader: Loader, stop_after: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.loader, self.stop_after, self.seen = loader, stop_after, []

    def train_dataloader(self) -> Loader:
        return self.loader

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        if len(self.seen) == self.stop_after:
            raise InterruptedError
        self.seen.append((self.current_epoch, batch.index.tolist()))
        return self.layer(batch.inputs.float()).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: Recorder, folder, checkpoint=None, **options) -> None:
    saver = ModelCheckpoint(
        folder, filename="every", every_n_train_steps=1, save_top_k=1, enable_version_counter=False
    )
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        callbacks=[saver],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, ckpt_path=checkpoint)


@lightning
@pytest.mark.parametrize("stop_after", [1, 3, 5, 8, 10])
def test_lightning_resumes_with_the_exact_next_batch(tmp_path, stop_after):
    def make(stop_after: int | None = None) -> Recorder:
        return Recorder(Loader(torch.zeros(21, 1), batch_size=4, shuffle=True, drop_last=True), stop_after)

    whole = make()
    fit(whole, tmp_path / "whole")
    assert [epoch for epoch, _ in whole.seen] == [0] * 5 + [1] * 5 + [2] * 5
    assert len({tuple(index) for _, index in whole.seen}) == 15  # every epoch has an order of its own

    broken = make(stop_after)
    with pytest.raises(InterruptedError):
        fit(broken, tmp_path / "broken")
    resumed = make()
    fit(resumed, tmp_path / "resumed", tmp_path / "broken" / "every.ckpt")
    assert broken.seen + resumed.seen == whole.seen


@lightning
def test_lightning_reshuffles_when_it_takes_part_of_every_epoch(tmp_path):
    module = Recorder(Loader(torch.zeros(40, 1), batch_size=4, shuffle=True))
    fit(module, tmp_path, limit_train_batches=2)
    assert len({tuple(index) for _, index in module.seen}) == 6
