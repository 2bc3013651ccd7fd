"""Lightning data modules: images from many kinds of sources, and plain tensors of feature vectors."""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from contrastive.data.images import ImageStream, load_images, read_image
from contrastive.data.loader import Loader
from contrastive.data.sources import Source, open_source, stratified_split

MEMORY_BUDGET = 4 << 30
"""Bytes of decoded images up to which ``in_memory="auto"`` keeps them all in memory."""

Inputs = Tensor | Dataset[Tensor]


@dataclass(frozen=True)
class Labels:
    """What is known of the two splits before their inputs are read: labels ``(N,)`` or None, and lengths."""

    train_size: int
    train: Tensor | None
    test_size: int
    test: Tensor | None
    class_names: list[str]


@dataclass(frozen=True)
class Contents:
    """The inputs of the two splits, and the hash of all that was loaded."""

    train: Inputs
    test: Inputs | None
    fingerprint: str


class _Data(LightningDataModule):
    """Splits and loaders of :class:`ImageData` and :class:`TensorData`, which say what to load.

    Nothing is read by the constructor: properties read what they need when they are first asked for.
    """

    def __init__(self, batch_size: int, validation_fraction: float, seed: int, num_workers: int) -> None:
        super().__init__()
        name = type(self).__name__
        if batch_size < 1:
            raise ValueError(f"{name}(batch_size={batch_size}): at least one sample a batch is needed.")
        if not 0 <= validation_fraction < 1:
            raise ValueError(
                f"{name}(validation_fraction={validation_fraction}): a fraction from 0 up to, but not including, 1 "
                "of the training split is accepted, for example 0.1."
            )
        if num_workers < 0:
            raise ValueError(f"{name}(num_workers={num_workers}): 0 or more processes are accepted.")
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.num_workers = num_workers

    @cached_property
    def labels(self) -> Labels:
        """Labels and sizes of the splits."""
        raise NotImplementedError

    @cached_property
    def contents(self) -> Contents:
        """Inputs of the splits."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read the data; Lightning calls this in every process."""
        self.contents  # noqa: B018

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor]:
        """Rows of the training set used for training and held out for validation."""
        return stratified_split(self.labels.train_size, self.labels.train, self.validation_fraction, self.seed)

    @property
    def num_samples(self) -> int:
        """Samples that are trained on: the training set without the validation part."""
        return len(self._rows[0])

    @property
    def class_names(self) -> list[str]:
        """Names of the classes 0, 1, ...; empty without labels."""
        return self.labels.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.class_names)

    @property
    def fingerprint(self) -> str:
        """Short hash of the data, the same wherever and however often they are loaded."""
        return self.contents.fingerprint

    @property
    def evaluation_split(self) -> Literal["test", "validation"]:
        """What stands for unseen data: the test set, or without one the validation part."""
        return "test" if self.labels.test_size else "validation"

    def _loader(self, rows: Tensor | None, *, test: bool = False, train: bool = False, sharded: bool = True) -> Loader:
        inputs = self.contents.test if test else self.contents.train
        assert inputs is not None
        return Loader(
            inputs,
            self.labels.test if test else self.labels.train,
            rows,
            batch_size=self.batch_size,
            shuffle=train,
            seed=self.seed,
            drop_last=train,
            sharded=sharded,
            num_workers=self.num_workers,
        )

    def train_dataloader(self) -> Loader:
        """Shuffled batches of the training part; a last, short batch is left out.

        Raises:
            ValueError: if there is not one full batch for every process.
        """
        loader = self._loader(self._rows[0], train=True)
        if len(loader) == 0:
            raise ValueError(
                f"{type(self).__name__}(batch_size={self.batch_size}) leaves no full batch: there are "
                f"{self.num_samples} samples to train on (validation_fraction={self.validation_fraction}), shared by "
                "all processes. Lower batch_size."
            )
        return loader

    def val_dataloader(self) -> Loader | list[Loader]:
        """The held-out validation part in order; no loader if nothing is held out."""
        return self._loader(self._rows[1]) if len(self._rows[1]) else []

    def test_dataloader(self) -> Loader:
        """The test set in order, or without one the validation part (see :attr:`evaluation_split`)."""
        return self._evaluation_loaders(sharded=True)[1]

    def predict_dataloader(self) -> list[Loader]:
        """The two evaluation loaders, shared out over the processes."""
        return list(self._evaluation_loaders(sharded=True))

    def evaluation_loaders(self) -> tuple[Loader, Loader]:
        """Clean passes in order for evaluation: the whole training set (validation included) and the test set.

        Without a test set: the training part and the validation part. Every process passes over everything.

        Raises:
            ValueError: if there is neither a test set nor a validation part.
        """
        return self._evaluation_loaders(sharded=False)

    def _evaluation_loaders(self, sharded: bool) -> tuple[Loader, Loader]:
        if self.labels.test_size:
            return self._loader(None, sharded=sharded), self._loader(None, test=True, sharded=sharded)
        train, validation = self._rows
        if not len(validation):
            raise ValueError(
                f"{type(self).__name__} has nothing to evaluate on: the source has no test set and "
                f"validation_fraction={self.validation_fraction} holds nothing out. Give test=... or set "
                "validation_fraction, for example to 0.1."
            )
        return self._loader(train, sharded=sharded), self._loader(validation, sharded=sharded)


class ImageData(_Data):
    """Images as uint8 batches ``(B, C, H, W)``, from many kinds of sources.

    Images that fit are decoded once into memory, where a batch is one indexing operation; others are read by
    worker processes as they are needed. Nothing is read by the constructor.

    Args:
        source: the training images, and the test images where the source has both:

            - ``"digits"``: 1,797 handwritten digits that come with scikit-learn;
            - ``"CIFAR10"`` or ``"torchvision:CIFAR10"``: a torchvision data set (write ``./CIFAR10`` for a folder);
            - a folder with ``train/CLASS/...`` and ``test/CLASS/...``, class folders alone, or unlabelled images;
            - a list of files: ``.csv``, ``.tsv`` or ``.txt`` with ``path[,label]`` a line;
            - a Parquet file, or a folder with ``train*.parquet`` and ``test*.parquet``: Hugging Face's image layout;
            - a map-style ``Dataset`` of images or ``(image, label)``; in YAML by ``class_path``.
        test: the test images, any of the above; by default those that ``source`` has.
        root: folder that paths are relative to; for torchvision, where the data lie (by default ``data``).
        batch_size: images in a batch of one process.
        validation_fraction: part of the training images held out for validation, in every class alike.
        seed: seed of the validation part and of the order of training batches.
        size: height and width (or the one side of a square) that images are scaled to and cut; by default their
            own, and 32 for ``digits``.
        channels: 3 for RGB or 1 for grey; images are converted.
        in_memory: hold decoded images in memory; ``"auto"`` does up to 4 GiB.
        num_workers: processes that read images which are not in memory; 0 reads in the training process.
        download: let torchvision download a data set that is missing.

    Raises:
        ValueError: for an argument outside its range; the source itself is looked at on first use.
    """

    def __init__(
        self,
        source: str | Dataset[Any] = "digits",
        test: str | Dataset[Any] | None = None,
        root: str | None = None,
        batch_size: int = 256,
        validation_fraction: float = 0.1,
        seed: int = 0,
        size: int | tuple[int, int] | None = None,
        channels: Literal[1, 3] = 3,
        in_memory: bool | Literal["auto"] = "auto",
        num_workers: int = 2,
        download: bool = False,
    ) -> None:
        super().__init__(batch_size, validation_fraction, seed, num_workers)
        if channels not in (1, 3):
            raise ValueError(f"ImageData(channels={channels}): 1 (grey) or 3 (RGB) are accepted.")
        if size is not None and min((size,) if isinstance(size, int) else size) < 1:
            raise ValueError(f"ImageData(size={size}): at least one pixel is needed.")
        self.source = source
        self.test = test
        self.root = root
        self.size = size
        self.channels = channels
        self.in_memory = in_memory
        self.download = download

    def prepare_data(self) -> None:
        """Download what is to be downloaded; Lightning calls this in one process."""
        if self.download:
            open_source(self.source, self.test, self.root, download=True)

    @cached_property
    def opened(self) -> Source:
        """The source: labels and places of images, before any image is read."""
        return open_source(self.source, self.test, self.root, download=False)

    @cached_property
    def labels(self) -> Labels:
        """Labels and sizes of the splits."""
        train, test = self.opened.train, self.opened.test
        test_size, test_labels = (len(test.images), test.labels) if test else (0, None)
        return Labels(len(train.images), train.labels, test_size, test_labels, train.class_names)

    @property
    def target_size(self) -> tuple[int, int] | None:
        """Height and width that images are scaled to; None leaves them as they are."""
        size = self.opened.size if self.size is None else self.size
        return (size, size) if isinstance(size, int) else size

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of every image."""
        channels, height, width = read_image(self.opened.train.images, 0, self.channels, self.target_size)[1].shape
        return channels, height, width

    @cached_property
    def contents(self) -> Contents:
        """Inputs of the splits: tensors if they fit in memory, else streams."""
        keep = self.in_memory
        if keep == "auto":
            keep = (self.labels.train_size + self.labels.test_size) * math.prod(self.image_shape) <= MEMORY_BUDGET
        digest = hashlib.sha256(repr(self.class_names).encode())
        inputs: list[Inputs] = []
        for split in (self.opened.train, self.opened.test):
            if split is None:
                continue
            if keep:
                images, content = load_images(split.images, self.channels, self.target_size)
                inputs.append(images)
            else:
                stream = ImageStream(split.images, self.channels, self.target_size)
                content = stream.fingerprint()
                inputs.append(stream)
            digest.update(content.encode())
            if split.labels is not None:
                digest.update(split.labels.numpy())
        return Contents(inputs[0], inputs[1] if len(inputs) > 1 else None, digest.hexdigest()[:16])


class TensorData(_Data):
    """Feature vectors (or any tensors) held in memory, with the loaders of :class:`ImageData`.

    Args:
        train_inputs: ``(N, ...)`` tensor or array.
        train_labels: ``(N,)`` integers from 0, or None.
        test_inputs: ``(M, ...)`` or None.
        test_labels: ``(M,)`` or None.
        class_names: a name for each class; by default their numbers.
        batch_size: samples in a batch of one process.
        validation_fraction: part of the training samples held out for validation, in every class alike.
        seed: seed of the validation part and of the order of training batches.

    Raises:
        ValueError: if shapes or labels do not fit together.
    """

    def __init__(
        self,
        train_inputs: Tensor | np.ndarray[Any, Any],
        train_labels: Tensor | np.ndarray[Any, Any] | None = None,
        test_inputs: Tensor | np.ndarray[Any, Any] | None = None,
        test_labels: Tensor | np.ndarray[Any, Any] | None = None,
        class_names: list[str] | None = None,
        batch_size: int = 256,
        validation_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, validation_fraction, seed, num_workers=0)
        train, test = torch.as_tensor(train_inputs), None if test_inputs is None else torch.as_tensor(test_inputs)
        if test is not None and test.shape[1:] != train.shape[1:]:
            raise ValueError(
                f"TensorData: test_inputs have shape {tuple(test.shape)} and train_inputs {tuple(train.shape)}; all "
                "but the first dimension must agree."
            )
        labels = [self._labels(train, train_labels, "train"), self._labels(test, test_labels, "test")]
        highest = max((int(part.max()) for part in labels if part is not None and len(part)), default=-1)
        names = [str(i) for i in range(highest + 1)] if class_names is None else class_names
        if highest >= len(names):
            raise ValueError(f"TensorData: label {highest} has no name among {len(names)} class_names.")
        self.tensors = (train, test)
        self.labels = Labels(len(train), labels[0], 0 if test is None else len(test), labels[1], names)

    @staticmethod
    def _labels(inputs: Tensor | None, labels: Any, part: str) -> Tensor | None:
        if labels is None:
            return None
        values = torch.as_tensor(labels)
        if inputs is None or values.shape != inputs.shape[:1] or values.is_floating_point() or (values < 0).any():
            raise ValueError(
                f"TensorData({part}_labels=...) has shape {tuple(values.shape)} and type {values.dtype}; one integer "
                f"from 0 for each of the {0 if inputs is None else len(inputs)} {part}_inputs is needed."
            )
        return values.long()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.tensors[0].shape[1:])

    @cached_property
    def contents(self) -> Contents:
        """Inputs of the splits."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for part in (*self.tensors, self.labels.train, self.labels.test):
            if part is not None:
                digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
                digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy())
        return Contents(*self.tensors, fingerprint=digest.hexdigest()[:16])
