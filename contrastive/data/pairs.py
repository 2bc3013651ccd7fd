"""Pairs of two modalities: images and vectors, or any two aligned sources."""

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrastive.arguments import checked
from contrastive.data.base import DataModule, Inputs, Known, add_to_digest
from contrastive.data.images import ImageStream, Split
from contrastive.data.labels import align_labels, integer_classes
from contrastive.data.loader import Loader
from contrastive.data.sources import open_source
from contrastive.errors import FileMissing, InvalidValue
from contrastive.reading import read_array, read_tensors

Classes = tuple[Tensor, list[str]]  # labels (N,), and the names of the classes


def projections(images: Tensor) -> Tensor:
    """The mean of every row and of every column of images, as a second modality that tells of the first.

    Args:
        images: uint8 ``(N, C, H, W)``.

    Returns:
        float32 ``(N, H + W)`` in [0, 1].
    """
    grey = images.float().mean(1) / 255
    return torch.cat([grey.mean(2), grey.mean(1)], 1)


class PairLoader(Loader):
    """A :class:`Loader` whose ``batch.inputs`` are ``(first, second)``, row ``b`` of both from pair ``b``.

    Args:
        first: ``(N, ...)``.
        second: ``(N, ...)``.
        **options: see :class:`Loader`.
    """

    def __init__(self, first: Tensor, second: Tensor, **options: Any) -> None:
        super().__init__(first, **options)
        self.second = second

    def _fetch(self, batches: list[Tensor]) -> Iterable[Any]:
        seconds = (self.second.index_select(0, rows) for rows in batches)
        return zip(super()._fetch(batches), seconds, strict=True)


class PairData(DataModule):
    """Pairs of two modalities. Batches for training are pairs; evaluation is of the first modality.

    Each modality is a tensor or array ``(N, ...)``, a file of one (``.npy``, ``.pt``), or images: any source of
    :class:`contrastive.data.ImageData`, which are held in memory in the order of the source. The two are aligned row
    by row. Text enters as vectors, computed beforehand by any text encoder, or as a tensor of tokens.

    Args:
        first: the first modality, whose encoder is what a run is evaluated by; usually images.
        second: the second one, or ``"projections"``: the means of the rows and of the columns of the first.
        labels: ``(N,)`` integers from 0 up or a file of them, for evaluation only; by default those of an image source.
        test_first: the first modality of the test pairs; by default the test set of an image source, if there is one.
        test_second: the second one.
        test_labels: ``(M,)`` labels of the test pairs.
        root: folder that paths are relative to.
        batch_size: pairs in a batch of one process.
        validation_fraction: part of the training pairs held out for validation, in every class alike.
        seed: seed of the held-out part and of the order of training.
        size: height and width that images are scaled to.
        channels: 3 for RGB, 1 for grey; images are converted.

    Raises:
        ValueError: if an argument is out of its range. Sources are looked at when they are first needed, and raise
            ValueError or FileNotFoundError then.
    """

    @checked
    def __init__(
        self,
        first: Any = "digits",
        second: Any = "projections",
        labels: Any = None,
        test_first: Any = None,
        test_second: Any = None,
        test_labels: Any = None,
        root: str | None = None,
        batch_size: int = 256,
        validation_fraction: float = 0.1,
        seed: int = 0,
        size: int | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__(
            batch_size,
            validation_fraction,
            seed,
            num_workers=0,
            imbalance=1.0,
            imbalance_profile="exponential",
            labels_per_class=None,
        )
        if channels not in (1, 3):
            raise InvalidValue(f"PairData(channels={channels}): set 1 (grey) or 3 (RGB).")
        self.first, self.second, self.labels = first, second, labels
        self.test_first, self.test_second, self.test_labels = test_first, test_second, test_labels
        self.root, self.size, self.channels = root, size, channels

    @property
    def source(self) -> str:
        """What the data are, in a few words."""
        names = (x if isinstance(x, str) else type(x).__name__ for x in (self.first, self.second))
        return " and ".join(names)

    @cached_property
    def train_pairs(self) -> tuple[Tensor, Tensor]:
        """Both modalities of the training pairs, the validation part included."""
        return self._train[0], self._train[1]

    @cached_property
    def test_pairs(self) -> tuple[Tensor, Tensor] | None:
        """Both modalities of the test pairs, None without a test set."""
        return None if self._test is None else self._test[:2]

    @cached_property
    def _train(self) -> tuple[Tensor, Tensor, Classes | None]:
        return self._read("", self.first, self.second, self.labels, of_test=False)

    @cached_property
    def _test(self) -> tuple[Tensor, Tensor, Classes | None] | None:
        first = self.test_first
        if first is None and _is_images(self.first) and self._open(self.first).test is not None:
            first = self.first
        if first is None:
            return None
        second = self.second if self.test_second is None else self.test_second
        return self._read("test_", first, second, self.test_labels, of_test=self.test_first is None)

    def _read(
        self, prefix: str, first: Any, second: Any, labels: Any, *, of_test: bool
    ) -> tuple[Tensor, Tensor, Classes | None]:
        a, found = self._modality(f"{prefix}first", first, of_test)
        if isinstance(second, str) and second == "projections":
            if a.ndim != 4:
                raise InvalidValue(
                    f"PairData({prefix}second='projections') is computed from images, and {prefix}first has the shape "
                    f"{tuple(a.shape)}; give the second modality as a tensor, a file or a source of images."
                )
            b = projections(a)
        else:
            b = self._modality(f"{prefix}second", second, of_test)[0]
        if len(a) != len(b) or not len(a):
            raise InvalidValue(
                f"PairData: {prefix}first has {len(a)} rows and {prefix}second {len(b)}; give two aligned sources, row "
                "i of both from pair i."
            )
        if labels is not None:
            given = self._tensor(f"{prefix}labels", labels)
            if given.shape != (len(a),) or given.is_floating_point() or given.min() < 0:
                raise InvalidValue(
                    f"PairData({prefix}labels=...) has the shape {tuple(given.shape)} and the type {given.dtype}; give "
                    f"an integer from 0 up for each of the {len(a)} pairs."
                )
            found = integer_classes(given.cpu().numpy())
        return a, b, found

    def _modality(self, argument: str, source: Any, of_test: bool) -> tuple[Tensor, Classes | None]:
        """Rows of one modality, and the classes that an image source may have."""
        if not _is_images(source):
            return self._tensor(argument, source), None
        opened = self._open(source)
        split: Split | None = opened.test if of_test else opened.train
        assert split is not None
        size = opened.size if self.size is None else self.size
        images = ImageStream(split.images, self.channels, None if size is None else (size, size)).load()
        return images, None if split.labels is None else (split.labels, split.class_names)

    def _tensor(self, argument: str, source: Any) -> Tensor:
        if not isinstance(source, str):
            return torch.as_tensor(source)
        path = Path(self.root or ".") / source
        if not path.is_file():
            raise FileMissing(f"PairData({argument}={source!r}): there is no file {path.resolve()}.")
        if path.suffix == ".npy":
            return torch.from_numpy(read_array(path))
        return torch.as_tensor(read_tensors(path))

    def _open(self, source: str) -> Any:
        return open_source(source, None, self.root, download=False)

    @cached_property
    def known(self) -> Known:
        """Labels and sizes."""
        labels, names = self._train[2] or (None, [])
        if self._test is None:
            return Known(len(self._train[0]), labels, 0, None, names)
        found = self._test[2]
        test_labels = (
            None
            if found is None or labels is None
            else align_labels(*found, names, "PairData: {} of the test pairs")
        )
        return Known(len(self._train[0]), labels, len(self._test[0]), test_labels, names)

    @cached_property
    def inputs(self) -> Inputs:
        """The first modality of both splits; the fingerprint covers labels and both modalities."""
        digest = hashlib.sha256()
        for part in (
            *self._train[:2],
            self.known.train_labels,
            *(self._test or ())[:2],
            self.known.test_labels,
        ):
            add_to_digest(digest, part)
        return Inputs(self._train[0], None if self._test is None else self._test[0], digest.hexdigest()[:16])

    def train_dataloader(self) -> PairLoader:
        """Batches of pairs, in an order of their own every epoch; the last, short one is left out."""
        return _paired(super().train_dataloader(), self._train[1])

    def val_dataloader(self) -> PairLoader | list[Loader]:
        """The validation part in order; no loader if nothing is held out."""
        loader = super().val_dataloader()
        return loader if isinstance(loader, list) else _paired(loader, self._train[1])

    def test_dataloader(self) -> PairLoader:
        """The test pairs in order, or without a test set the validation part."""
        second = self._train[1] if self._test is None else self._test[1]
        return _paired(super().test_dataloader(), second)


def _is_images(source: Any) -> bool:
    return isinstance(source, str) and Path(source).suffix not in (".npy", ".pt")


def _paired(loader: Loader, second: Tensor) -> PairLoader:
    assert isinstance(loader.inputs, Tensor)
    return PairLoader(
        loader.inputs,
        second,
        labels=loader.labels,
        rows=loader.rows,
        batch_size=loader.batch_size,
        shuffle=loader.shuffle,
        seed=loader.seed,
        drop_last=loader.drop_last,
        sharded=loader.sharded,
    )
