"""What the data modules share: what is known of their samples, splits, loaders and the fingerprint."""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from contrastive.data.images import ImageStream
from contrastive.data.loader import Loader
from contrastive.data.sources import few_of_each, long_tail, stratified_split
from contrastive.errors import InvalidValue


@dataclass(frozen=True)
class Known:
    """What is known of the data before any input is read: labels ``(N,)`` or None, sizes and class names."""

    train_size: int
    train_labels: Tensor | None
    test_size: int  # 0 without a test set
    test_labels: Tensor | None
    class_names: list[str]


@dataclass(frozen=True)
class Inputs:
    """The inputs of both splits, each a tensor ``(N, ...)`` or a stream, and the fingerprint of the data."""

    train: Tensor | ImageStream
    test: Tensor | ImageStream | None
    fingerprint: str


class DataModule(LightningDataModule):
    """Splits and loaders of :class:`ImageData` and :class:`TensorData`, which tell what is known and loaded.

    Properties read what they need when they are first asked for, so they can be used before ``setup()``.
    """

    def __init__(
        self,
        batch_size: int,
        validation_fraction: float,
        seed: int,
        num_workers: int | None,
        imbalance: float,
        imbalance_profile: Literal["exponential", "linear"],
        labels_per_class: int | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if batch_size < 1:
            raise InvalidValue(f"{name}(batch_size={batch_size}): set at least one sample a batch.")
        if not 0 <= validation_fraction < 1:
            raise InvalidValue(
                f"{name}(validation_fraction={validation_fraction}): set a part of the training set, at least 0 (to "
                "hold out nothing) and less than 1."
            )
        if num_workers is not None and num_workers < 0:
            raise InvalidValue(f"{name}(num_workers={num_workers}): set 0 (to read in this process) or more.")
        if not 0 < imbalance <= 1:
            raise InvalidValue(
                f"{name}(imbalance={imbalance}): set the size of the smallest class over that of the largest, above 0 "
                "and at most 1 (to train on every sample)."
            )
        if imbalance_profile not in ("exponential", "linear"):
            raise InvalidValue(
                f"{name}(imbalance_profile={imbalance_profile!r}): set 'exponential' or 'linear'."
            )
        if labels_per_class is not None and labels_per_class < 1:
            raise InvalidValue(
                f"{name}(labels_per_class={labels_per_class}): set the number of training samples of each class, at "
                "least 1, or None for all."
            )
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.imbalance = imbalance
        self.imbalance_profile = imbalance_profile
        self.labels_per_class = labels_per_class
        self.num_workers = _cores() if num_workers is None else num_workers

    def __str__(self) -> str:
        """Name the class; Lightning's text would pass over every loader."""
        return f"{type(self).__name__}(batch_size={self.batch_size})"

    @cached_property
    def known(self) -> Known:
        """Labels, sizes and class names."""
        raise NotImplementedError

    @cached_property
    def inputs(self) -> Inputs:
        """Inputs of both splits."""
        raise NotImplementedError

    @cached_property
    def parts(self) -> tuple[Tensor, Tensor]:
        """Rows of the training part, before it is thinned, and of the validation part; int64, sorted."""
        return stratified_split(
            self.known.train_size, self.known.train_labels, self.validation_fraction, self.seed
        )

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Rows of the training set that are trained on, and those held out for validation; int64, sorted.

        Raises:
            ValueError: if ``imbalance`` or ``labels_per_class`` is set and the data have no labels, or a class has too
                few of them.
        """
        train, validation = self.parts
        labels = self.known.train_labels
        if self.imbalance == 1 and self.labels_per_class is None:
            return train, validation
        if labels is None:
            option = (
                f"imbalance={self.imbalance}"
                if self.imbalance != 1
                else f"labels_per_class={self.labels_per_class}"
            )
            raise InvalidValue(
                f"{type(self).__name__}({option}) thins out classes, but the data have no labels; choose a labelled "
                "source, or leave the option at its default."
            )
        # A class may be named, as by a Parquet schema, and have no sample: it takes no part.
        present, labels = torch.unique(labels, return_inverse=True)
        classes, names = len(present), [self.class_names[label] for label in present.tolist()]
        if self.imbalance != 1:
            train = train[
                long_tail(labels[train], classes, self.imbalance, self.imbalance_profile, self.seed)
            ]
        if self.labels_per_class is not None:
            train = train[few_of_each(labels[train], classes, self.labels_per_class, self.seed, names)]
        return train, validation

    @property
    def notes(self) -> dict[str, str]:
        """What there is to say of the data before training, by topic."""
        return {}

    @property
    def decoding(self) -> dict[str, Any]:
        """How image files are decoded: arguments of ``data.pixels.decode``."""
        return {}

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments by which an ImageData reads other files in the same way."""
        return {}

    def file_names(self, split: Literal["train", "test"]) -> list[str | None] | None:
        """The file of every input of a split, in its order and relative to the source; None if they are in none."""
        return None

    @property
    def num_samples(self) -> int:
        """Samples that are trained on: the training part, thinned if ``imbalance`` or ``labels_per_class`` is set."""
        return len(self.rows[0])

    @property
    def class_names(self) -> list[str]:
        """Names of the classes 0, 1, ...; empty without labels."""
        return self.known.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.class_names)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that are the same wherever and however often the same data are loaded."""
        return self.inputs.fingerprint

    @property
    def evaluation_split(self) -> Literal["test", "validation"]:
        """What is evaluated on: the test set, or in a source without one the validation part."""
        return "test" if self.known.test_size else "validation"

    def setup(self, stage: str | None = None) -> None:
        """Load the data; called by Lightning in every process."""
        self.inputs  # noqa: B018

    def train_dataloader(self) -> Loader:
        """Batches of the training part, in an order of their own every epoch; the last, short one is left out.

        Raises:
            ValueError: if there is no full batch for every process.
        """
        loader = self._loader("train", self.rows[0], shuffle=True, drop_last=True)
        if len(loader) == 0:
            raise InvalidValue(
                f"{type(self).__name__}(batch_size={self.batch_size}): the {self.num_samples} samples to train on "
                f"(validation_fraction={self.validation_fraction}) do not make one full batch for every process. "
                "Set a smaller batch_size."
            )
        return loader

    def val_dataloader(self) -> Loader | list[Loader]:
        """The validation part in order; no loader if nothing is held out."""
        return self._loader("train", self.rows[1]) if len(self.rows[1]) else []

    def test_dataloader(self) -> Loader:
        """The test set in order, or in a source without one the validation part."""
        return self._evaluation(sharded=True)[1]

    def predict_dataloader(self) -> list[Loader]:
        """The evaluation loaders, shared out over the processes."""
        return list(self._evaluation(sharded=True))

    def evaluation_loaders(self) -> tuple[Loader, Loader]:
        """Passes in order for evaluation: the whole training set (validation part included) and the test set.

        In a source without a test set: the training part and the validation part. Every process passes over
        all samples, those too that ``imbalance`` or ``labels_per_class`` keep from training.

        Raises:
            ValueError: if there is neither a test set nor a validation part.
        """
        return self._evaluation(sharded=False)

    def _evaluation(self, sharded: bool) -> tuple[Loader, Loader]:
        if self.known.test_size:
            return self._loader("train", None, sharded=sharded), self._loader("test", None, sharded=sharded)
        train, validation = self.parts
        if not len(validation):
            raise InvalidValue(
                f"{type(self).__name__}(validation_fraction={self.validation_fraction}) has nothing to evaluate on: "
                "the data have no test set, and nothing is held out. Give a test set, or set validation_fraction "
                "to 0.1, say."
            )
        return self._loader("train", train, sharded=sharded), self._loader(
            "train", validation, sharded=sharded
        )

    def _loader(self, split: Literal["train", "test"], rows: Tensor | None, **options: bool) -> Loader:
        inputs = self.inputs.train if split == "train" else self.inputs.test
        labels = self.known.train_labels if split == "train" else self.known.test_labels
        assert inputs is not None
        return Loader(
            inputs,
            labels,
            rows,
            batch_size=self.batch_size,
            seed=self.seed,
            num_workers=self.num_workers,
            **options,
        )


def add_to_digest(digest: "hashlib._Hash", tensor: Tensor | None) -> None:
    """Add type, shape and content of a tensor to a hash."""
    if tensor is not None:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)


def _cores() -> int:
    """Processor cores for this process, if there are several training processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
