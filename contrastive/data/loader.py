"""Batches of one split: shuffled by (seed, epoch), shared out over processes, resumable in mid-epoch."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from contrastive.checks import shown
from contrastive.errors import InvalidType, InvalidValue


class Batch(NamedTuple):
    """Some samples of one split.

    Attributes:
        inputs: ``(B, ...)``; images are uint8 ``(B, C, H, W)``.
        index: ``(B,)`` int64, each sample's position in its split: the key of per-sample state.
        labels: ``(B,)`` int64, or None for a data set without labels.
    """

    inputs: Tensor
    index: Tensor  # type: ignore[assignment]  # takes the place of tuple.index, which nobody needs here
    labels: Tensor | None


class Loader:
    """Batches of one split; every pass over the loader is one epoch.

    Inputs held in a tensor are served by one indexing operation a batch, with no worker processes. Any
    other inputs are a stream: a data set that returns the samples of a tensor of row numbers, read ahead by
    ``num_workers`` processes.

    With several processes, W of them, the W batches of one step together are the ``W * batch_size`` next
    samples of the epoch's order, so W processes see step by step what one process with a batch W times as
    large sees. All processes take the same number of steps, with batches of the same size: the last, short
    step is dropped (``drop_last``) or filled up with samples from the start; their ``index`` tells.

    The loader saves and restores its place (``state_dict``), which Lightning does in every checkpoint.
    A saved place counts samples and not batches, so it holds for another batch size or number of processes.

    Args:
        inputs: tensor ``(N, ...)``, or a data set that maps a tensor of B row numbers to ``(B, ...)``.
        labels: ``(N,)`` int64 or None.
        rows: ``(n,)`` rows of ``inputs`` that make up this split, in order; all of them by default.
        batch_size: samples in a batch of this process.
        shuffle: draw a new order from ``(seed, epoch)`` for every epoch.
        seed: seed of the order.
        drop_last: leave out the last, short batch.
        sharded: share the samples out over the processes; otherwise every process passes over all of them.
        num_workers: processes that read a stream ahead; 0 reads in this one.
    """

    # Lightning looks for `loader.sampler.set_epoch` (see below) and expects this name beside it.
    batch_sampler = None

    def __init__(
        self,
        inputs: Tensor | Dataset[Tensor],
        labels: Tensor | None = None,
        rows: Tensor | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        sharded: bool = True,
        num_workers: int = 0,
    ) -> None:
        for what, given in (("inputs", inputs), ("rows", inputs if rows is None else rows)):
            if not hasattr(given, "__len__") or getattr(given, "ndim", 1) == 0:
                raise InvalidType(
                    f"Loader: {what} is {shown(given)}; give a tensor, or for inputs a data set."
                )
        self.inputs = inputs
        self.labels = labels
        self.rows = rows
        self.num_samples = len(inputs) if rows is None else len(rows)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.sharded = sharded
        self.epoch = 0
        self._position = 0  # samples of this epoch that all processes together have been given
        self._resuming = False  # the next pass starts at the position instead of at the beginning
        self._stream: DataLoader[Tensor] | None = None
        if not isinstance(inputs, Tensor):
            self._pending: list[Tensor] = []
            self._stream = reader(inputs, self._pending, num_workers, keep=True)

    @property
    def sampler(self) -> "Loader":
        """This object: Lightning announces every epoch by ``loader.sampler.set_epoch(epoch)``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of epoch ``epoch``; a restored place within another epoch is forgotten."""
        if epoch != self.epoch:
            self.epoch, self._position, self._resuming = epoch, 0, False

    def __len__(self) -> int:
        """Batches of a whole epoch in this process."""
        step = self.batch_size * self._process()[1]
        return self.num_samples // step if self.drop_last else -(-self.num_samples // step)

    def __iter__(self) -> Iterator[Batch]:
        if not self._resuming:
            self._position = 0
        self._resuming = False
        step = self.batch_size * self._process()[1]
        steps = list(self._steps(self._position))
        rows = steps if self.rows is None else [self.rows[positions] for positions in steps]
        for positions, inputs, taken in zip(steps, self._fetch(rows), rows, strict=True):
            self._position += step
            if positions is steps[-1]:  # the next pass, or a resumed run, begins the next epoch
                self.epoch, self._position = self.epoch + 1, 0
            yield Batch(inputs, positions, None if self.labels is None else self.labels[taken])

    def _fetch(self, batches: list[Tensor]) -> Iterable[Tensor]:
        if isinstance(self.inputs, Tensor):
            return (self.inputs.index_select(0, rows) for rows in batches)  # 8 times faster than inputs[rows]
        assert self._stream is not None
        self._pending[:] = batches
        return in_workers(self._stream)

    def _steps(self, begin: int) -> Iterator[Tensor]:
        """Positions of this process's batches from the sample ``begin`` of the epoch on."""
        rank, world = self._process()
        n, step = self.num_samples, self.batch_size * world
        if self.shuffle:
            # The factor keeps pairs apart: with seed + epoch, (0, 1) and (1, 0) would give the same order.
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
            order = torch.randperm(n, generator=generator)
        else:
            order = torch.arange(n)
        for first in range(begin, n, step):
            share = self.batch_size
            if first + step > n:
                if self.drop_last:
                    return
                share = -(-(n - first) // world)
            places = torch.arange(first + rank * share, first + (rank + 1) * share)
            yield order[places % n]

    def repeated(self, number: int, rows: int) -> Tensor:
        """Tell which rows of a batch are there only to give every process as many: ``(rows,)`` bool.

        Args:
            number: of the batch in its epoch, from 0.
            rows: samples in it.
        """
        rank, world = self._process()
        first = number * self.batch_size * world + rank * rows
        return torch.arange(first, first + rows) >= self.num_samples

    def _process(self) -> tuple[int, int]:
        """This process's rank and the number of processes that share the samples."""
        distributed = torch.distributed
        if self.sharded and distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch: what :meth:`load_state_dict` needs to go on with the next batch."""
        return {
            "epoch": self.epoch,
            "position": self._position,
            "seed": self.seed,
            "num_samples": self.num_samples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass start where the saved one stood.

        Raises:
            ValueError: if the place is within an epoch and the data or the seed are not the same.
        """
        for name in ("seed", "num_samples"):
            if state["position"] and state[name] != getattr(self, name):
                raise InvalidValue(
                    f"Cannot resume in the middle of epoch {state['epoch']}: the checkpoint was written with "
                    f"{name}={state[name]} and the data have {name}={getattr(self, name)}, so the rest of the epoch is "
                    "not known. Use the same data and seed, or a checkpoint from the end of an epoch."
                )
        self.epoch, self._position = state["epoch"], state["position"]
        self._resuming = True


def reader(
    dataset: Dataset[Tensor], batches: Sequence[Tensor], num_workers: int, keep: bool = False
) -> "DataLoader[Tensor]":
    """A loader of ``dataset[rows]`` for each ``rows`` in ``batches``; ``keep`` lets the processes live on."""
    return DataLoader(
        dataset,
        sampler=batches,
        batch_size=None,  # an element of the sampler is a batch already
        num_workers=num_workers,
        persistent_workers=keep and num_workers > 0,
        pin_memory=keep and torch.cuda.is_available(),
        generator=torch.Generator(),  # spares the global random state
    )


def in_workers(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Pass batches on; an error from a worker process is raised without the traceback that it holds as text."""
    try:
        yield from batches
    except InvalidValue as error:
        raise InvalidValue(str(error).rpartition("InvalidValue: ")[2].strip()) from error
