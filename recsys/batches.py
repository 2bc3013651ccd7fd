"""Training batches: a user's targets from one pass, and random prefixes for contrastive terms.

A training sample is a prefix of a history and the item that followed. A causal encoder gives the states of all
prefixes of a history at once, so a batch holds whole histories and the places to read, some 256 targets in all, and
an epoch has as many steps as one of 256 separate prefixes. A prefix longer than the encoder's window loses its first
items, and so has a pass of its own. Histories of a batch are of similar length, and nothing is padded further than
to the longest of them.

Contrastive terms need prefixes that are independent: of one user they would be each other's negatives. They are drawn
apart, in a random order of all prefixes, as many a step.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from contrastive.checks import check_flag, check_whole
from contrastive.errors import InvalidValue
from recsys.data import Array, Cases, Sequences, Split

_SORTED_TOGETHER = 64  # batches whose histories are sorted by length before they are cut


class Batch(NamedTuple):
    """One training step.

    Attributes:
        items: ``(R, T)`` int64 histories, right-padded with 0.
        lengths: ``(R,)`` int64.
        rows: ``(N,)`` int64, of each target the row of ``items`` ...
        places: ``(N,)`` int64, ... and the position whose state is to tell it.
        targets: ``(N,)`` int64.
        samples: ``(B,)`` int64, random rows of the :class:`PrefixTable`; empty if no head asks for them.
    """

    items: Tensor
    lengths: Tensor
    rows: Tensor
    places: Tensor
    targets: Tensor
    samples: Tensor


class Held(NamedTuple):
    """Held-out cases: histories ``(B, T)``, lengths ``(B,)`` and targets ``(B,)``; ``index`` ``(B,)`` tells which."""

    items: Tensor
    lengths: Tensor
    targets: Tensor
    index: Tensor  # type: ignore[assignment]  # takes the place of tuple.index, which nobody needs here


class PrefixTable(nn.Module):
    """Prefixes of histories as places in one array of items; moves between devices with the module that holds it.

    Args:
        items: ``(N,)`` int64, histories one after another.
        starts: ``(P,)`` int64, where each prefix begins.
        lengths: ``(P,)`` int64, its number of items.
        targets: ``(P,)`` int64, the item that followed; needed for training prefixes only.
    """

    items: Tensor
    starts: Tensor
    lengths: Tensor
    targets: Tensor

    def __init__(self, items: Array, starts: Array, lengths: Array, targets: Array | None = None) -> None:
        super().__init__()
        arrays = {"items": items, "starts": starts, "lengths": lengths}
        arrays["targets"] = np.zeros_like(starts) if targets is None else targets
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)), persistent=False)

    def __len__(self) -> int:
        """Number of prefixes."""
        return len(self.starts)

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prefixes ``rows`` ``(B,)``: items ``(B, T)``, right-padded with 0, and lengths ``(B,)``."""
        return gather_windows(self.items, self.starts[rows], self.lengths[rows])


def gather_windows(flat: Tensor, starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return windows ``flat[starts : starts + lengths]`` as ``(B, T)``, right-padded with 0, and their lengths."""
    steps = torch.arange(int(lengths.max()) if len(lengths) else 1, device=flat.device)
    places = (starts[:, None] + steps).clamp_(max=len(flat) - 1)
    return flat[places].masked_fill_(steps >= lengths[:, None], 0), lengths


class TrainingBatches:
    """The batches of an epoch, shuffled by ``(seed, epoch)``, shared out over processes, resumable in mid-epoch.

    Of W processes, each takes every W-th batch of the same order.

    Args:
        train: training items of each user.
        max_length: window of the encoder.
        batch_targets: about so many targets a batch.
        shared: read all prefixes of a window from one pass; otherwise each has a row of its own.
        stride: prefixes beyond the window: how many share a pass. 1 gives each its full window; with more, a prefix
            sees as few as ``max_length - stride + 1`` items.
        samples: random prefixes to add to each batch, for heads.
        seed: of the order.

    Raises:
        ValueError: a number out of range, or no user with two training items.
    """

    batch_sampler = None  # Lightning looks for `loader.sampler.set_epoch` and expects this name beside it

    def __init__(
        self,
        train: Sequences,
        *,
        max_length: int = 50,
        batch_targets: int = 256,
        shared: bool = True,
        stride: int = 1,
        samples: int = 0,
        seed: int = 0,
    ) -> None:
        name = "TrainingBatches"
        max_length = check_whole(name, "max_length", max_length)
        stride = check_whole(name, "stride", stride, 1, max_length)
        check_flag(name, "shared", shared)
        self.seed, self.samples = check_whole(name, "seed", seed, 0), check_whole(name, "samples", samples, 0)
        self.batch_targets = batch_targets = check_whole(name, "batch_targets", batch_targets)
        self.epoch, self._position, self._resuming = 0, 0, False
        self.flat = torch.from_numpy(train.items)
        starts, lengths, reads = windows(train, max_length, stride) if shared else separate(train, max_length)
        if not len(starts):
            raise InvalidValue(
                "TrainingBatches: no user has two training items, so there is nothing to learn from."
            )
        self._starts, self._lengths, self._reads = (torch.from_numpy(a) for a in (starts, lengths, reads))
        self.num_targets = int(self._reads.sum())
        self._num_batches = min(-(-self.num_targets // batch_targets), len(starts))

    @property
    def sampler(self) -> "TrainingBatches":
        """This object: Lightning announces every epoch by ``loader.sampler.set_epoch(epoch)``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of epoch ``epoch``; a restored place within another epoch is forgotten."""
        if epoch != self.epoch:
            self.epoch, self._position, self._resuming = epoch, 0, False

    def __len__(self) -> int:
        """Steps of an epoch."""
        return -(-self._num_batches // _process()[1])

    def __iter__(self) -> Iterator[Batch]:
        if not self._resuming:
            self._position = 0
        self._resuming = False
        order, steps = self._order(self.epoch), len(self)
        for step in range(self._position, steps):
            self._position = step + 1
            if step == steps - 1:  # the next pass, or a resumed run, begins the next epoch
                self.epoch, self._position = self.epoch + 1, 0
            yield self._at(order, step)

    def at(self, epoch: int, steps: Iterable[int]) -> list[Batch]:
        """Return the batches of some steps of an epoch; the place in the present one stays."""
        order = self._order(epoch)
        return [self._at(order, step) for step in steps]

    def _order(self, epoch: int) -> tuple[list[Tensor], Tensor]:
        """Windows of each batch of an epoch, and the order of its random prefixes."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return self._cut(generator), torch.randperm(self.num_targets, generator=generator)

    def _at(self, order: tuple[list[Tensor], Tensor], step: int) -> Batch:
        batches, prefixes = order
        rank, world = _process()
        number = step * world + rank
        chosen = torch.arange(number * self.samples, (number + 1) * self.samples) % self.num_targets
        return self._batch(batches[number % len(batches)], prefixes[chosen])

    def _cut(self, generator: torch.Generator) -> list[Tensor]:
        """Windows of each batch: random ones, near each other in length, cut where another batch is full."""
        order = torch.randperm(len(self._starts), generator=generator)
        chunk = torch.cumsum(self._reads[order], 0) // (self.batch_targets * _SORTED_TOGETHER)
        key = chunk * (int(self._lengths.max()) + 1) + self._lengths[order]
        order = order[torch.argsort(key, stable=True)]
        ends = torch.cumsum(self._reads[order], 0)
        number = torch.arange(1, self._num_batches)
        # The window that crosses the boundary is not cut in two; a batch has at least one.
        cuts = torch.searchsorted(ends, number * self.num_targets / self._num_batches) + 1
        cuts = torch.minimum(
            (cuts - number).cummax(0).values + number, len(order) - self._num_batches + number
        )
        parts = torch.tensor_split(order, cuts)
        return [parts[i] for i in torch.randperm(len(parts), generator=generator).tolist()]

    def _batch(self, windows: Tensor, samples: Tensor) -> Batch:
        lengths, reads = self._lengths[windows], self._reads[windows]
        starts = self._starts[windows]
        items, _ = gather_windows(self.flat, starts, lengths)
        rows = torch.repeat_interleave(torch.arange(len(windows)), reads)
        before = torch.cumsum(reads, 0) - reads
        places = torch.arange(len(rows)) - before[rows] + (lengths - reads)[rows]
        return Batch(items, lengths, rows, places, self.flat[starts[rows] + places + 1], samples)

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch."""
        return {
            "epoch": self.epoch,
            "position": self._position,
            "seed": self.seed,
            "targets": self.num_targets,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass start where the saved one stood.

        Raises:
            ValueError: the place is within an epoch, and data or seed are not the same.
        """
        if state["position"] and (state["seed"], state["targets"]) != (self.seed, self.num_targets):
            raise InvalidValue(
                f"Cannot resume in the middle of epoch {state['epoch']}: the checkpoint was written with seed "
                f"{state['seed']} and {state['targets']} targets, now they are {self.seed} and {self.num_targets}. Use "
                "the same data and seed, or a checkpoint from the end of an epoch."
            )
        self.epoch, self._position, self._resuming = state["epoch"], state["position"], True


def windows(train: Sequences, max_length: int, stride: int = 1) -> tuple[Array, ...]:
    """Cut histories so that every target is read once: start in ``train.items``, length and number of reads of each.

    A window of ``length`` items reads its last ``reads`` states. The first of a history reads all of its states; the
    following ones take ``stride`` further targets each.

    Args:
        train: training items of each user; the last is a target only.
        max_length: longest window.
        stride: targets of a window that is not the first.

    Returns:
        Three ``(R,)`` int64 arrays.
    """
    inputs = np.maximum(train.lengths - 1, 0)
    first = np.minimum(inputs, max_length)
    more = -(-(inputs - first) // stride)  # windows after the first
    users = np.repeat(np.arange(len(train)), more + (first > 0))
    number = np.arange(len(users)) - np.repeat(
        np.cumsum(more + (first > 0)) - (more + (first > 0)), more + (first > 0)
    )
    ends = np.minimum(first[users] + number * stride, inputs[users])
    previous = np.where(number > 0, np.minimum(first[users] + (number - 1) * stride, inputs[users]), 0)
    lengths = np.minimum(ends, max_length)
    return train.offsets[users] + ends - lengths, lengths, ends - previous


def separate(train: Sequences, max_length: int) -> tuple[Array, ...]:
    """As :func:`windows`, one for each prefix, reading its last state."""
    inputs = np.maximum(train.lengths - 1, 0)
    users = np.repeat(np.arange(len(train)), inputs)
    ends = np.arange(len(users)) - np.repeat(np.cumsum(inputs) - inputs, inputs) + 1
    lengths = np.minimum(ends, max_length)
    return train.offsets[users] + ends - lengths, lengths, np.ones_like(lengths)


def training_prefixes(split: Split, max_length: int, stride: int = 1) -> PrefixTable:
    """All training prefixes of a split, in the order of ``split.samples()``; of each the last ``max_length`` items.

    Args:
        split: whose training items are cut.
        max_length: longest prefix.
        stride: as in :func:`windows`: a prefix beyond the window begins where the pass does that reads it.

    Raises:
        ValueError: a stride outside 1 to ``max_length``.
    """
    max_length = check_whole("training_prefixes", "max_length", max_length)
    stride = check_whole("training_prefixes", "stride", stride, 1, max_length)
    rows, ends = split.samples()
    first = split.train.offsets[rows]
    more = -(-np.maximum(ends - max_length, 0) // stride)  # windows after the first
    passed = np.minimum(max_length + more * stride, split.train.lengths[rows] - 1)
    starts = np.maximum(passed - max_length, 0)
    places = first + ends
    return PrefixTable(split.train.items, first + starts, ends - starts, split.train.items[places])


class HeldOutBatches:
    """Held-out cases in order of length, each on one process; every pass gives the same batches.

    All processes have as many batches; the last of one may be empty.

    Args:
        cases: histories and targets.
        max_length: window of the encoder.
        batch_size: cases in a batch.

    Raises:
        ValueError: a number below 1.
    """

    sampler = batch_sampler = None

    def __init__(self, cases: Cases, *, max_length: int = 50, batch_size: int = 512) -> None:
        self.cases, self.batch_size = cases, check_whole("HeldOutBatches", "batch_size", batch_size)
        max_length = check_whole("HeldOutBatches", "max_length", max_length)
        lengths = np.minimum(cases.histories.lengths, max_length)
        starts = cases.histories.offsets[1:] - lengths
        self._flat, self._starts, self._lengths, self._targets = (
            torch.from_numpy(np.ascontiguousarray(a))
            for a in (cases.histories.items, starts, lengths, cases.targets)
        )
        self._order = torch.argsort(self._lengths, stable=True)

    def __len__(self) -> int:
        """Batches of a process."""
        return -(-len(self._order) // (_process()[1] * self.batch_size))

    def __iter__(self) -> Iterator[Held]:
        rank, world = _process()
        own = self._order[rank::world]
        for number in range(len(self)):
            rows = own[number * self.batch_size : (number + 1) * self.batch_size]
            windows = gather_windows(self._flat, self._starts[rows], self._lengths[rows])
            yield Held(*windows, self._targets[rows], rows)


def _process() -> tuple[int, int]:
    """This process's rank and the number of processes that share the data."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
