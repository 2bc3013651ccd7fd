"""The Lightning data module of images."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from contrastive.arguments import checked
from contrastive.checks import check_whole, shown
from contrastive.data.base import DataModule, Inputs, Known, add_to_digest
from contrastive.data.images import ImageStream, JoinedImages, Source, Split
from contrastive.data.levels import Levels, are_deep, percentiles_of, spread
from contrastive.data.pixels import Colour, Window, check_window
from contrastive.data.sources import Columns, open_source, stratified_split
from contrastive.errors import InvalidValue

MEMORY_BUDGET = 4 << 30
"""Bytes of decoded images up to which ``in_memory="auto"`` holds them all in memory."""

_LARGEST_SIDE = 1 << 14  # pixels: one image of twice that is beyond what Pillow decodes

COLOURS: dict[str, Colour] = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}


class ImageData(DataModule):
    """Images of many kinds of sources, as batches ``(B, C, H, W)`` of uint8, or of float32 where 8 bits are not enough.

    Images that fit are decoded once into memory, where a batch is one indexing operation; others are read and
    decoded when their turn comes. The constructor reads nothing.

    Args:
        source: the training images, and others that the source may have:

            - ``"digits"``: 1,797 handwritten digits that come with scikit-learn;
            - ``"textures"``: 3,500 generated images of coloured stripes in ten classes;
            - ``"CIFAR10"`` or ``"torchvision:CIFAR10"``: a data set of torchvision, by the name of its class;
            - a folder: ``train/CLASS/...`` and ``test/CLASS/...`` (in any usual spelling), or class folders, or
              unlabelled images;
            - a list of files, ``.csv``, ``.tsv`` or ``.txt``: ``path[,label]`` a line, or more columns with a heading;
            - a ``.parquet`` file or a folder with ``train*.parquet`` and ``test*.parquet``, with the columns
              ``image`` and ``label`` of Hugging Face's image data sets;
            - a map-style ``Dataset`` that gives images or ``(image, label)``; in YAML by its ``class_path``. It
              should not augment: in memory, every image would stay as it is drawn first.
        test: the test images, any of the above, in place of those of ``source``; if it has a test split, that one. Its
            classes are those of ``source`` by name.
        root: folder that paths are relative to; for torchvision the folder of the data, by default ``data``.
        batch_size: images in a batch of one process.
        validation_fraction: part of the training images held out for validation, in every class alike; not
            used where the source has a validation split.
        seed: seed of the held-out part, of the order of training and of the images that ``imbalance`` keeps.
        size: height and width (one number for a square) that images are scaled to, so that they cover it, and
            cut to; by default 32 for ``digits``, and otherwise their own, which must then be one for all.
        channels: 3 for RGB, 1 for grey; images are converted.
        in_memory: hold the decoded images in memory; ``"auto"`` does so up to 4 GiB.
        num_workers: processes that read images, once if they are held in memory and all the time if not; 0 reads
            in this process. By default one for each processor core, shared out over the training processes.
        download: let torchvision fetch a data set that is missing.
        imbalance: train on a long tail of classes: the size of the last class over that of the first. With a
            ratio ``r``, class ``c`` of ``C`` keeps ``n_max * r**(c / (C - 1))`` of its training images, where
            ``n_max`` is the size of the largest class; 1 keeps all. The validation part and whatever is
            evaluated on, the training set of :meth:`evaluation_loaders` included, stay as they are.
        imbalance_profile: ``"exponential"`` as above, or ``"linear"``: ``n_max * (1 - (1 - r) * c / (C - 1))``.
        labels_per_class: train on so many images of each class, drawn at random, as when more labels cost too much;
            None trains on all. As with ``imbalance``, whatever is evaluated on stays as it is.
        labels: False reads no labels: all images below a folder belong to it, as where folders are dates.
        image_column: name of the column of paths in a list, or of images in Parquet; the usual names are found.
        label_column: name of the column of labels, likewise.
        window: stored values ``(low, high)`` that become 0 and 1, others are cut, as ``(900, 1300)`` of an X-ray;
            images are float32 then. Without one, 8 bits stay uint8, and what has more (16-bit PNG, TIFF, PGM, arrays of
            uint16 or floats) becomes float32 by the range of its type; files without such a range need a window.
        percentiles: the window by percentiles of the values in the training images, as ``(1, 99)``; taken of at most
            256 images. A saved configuration holds the window that came of it.
        background: colour to put under transparent pixels, ``"white"``, ``"black"``, ``"grey"`` or three numbers from 0
            to 255; None drops the alpha channel and shows what colours lie under it.

    Raises:
        ValueError: if an argument is out of its range. The source is looked at when it is first needed, and
            what is wrong with it raises ValueError or FileNotFoundError then.
    """

    @checked
    def __init__(
        self,
        # Dataset without its parameter: jsonargparse cannot build subclasses of Dataset[Any].
        source: str | Dataset = "digits",  # type: ignore[type-arg]
        test: str | Dataset | None = None,  # type: ignore[type-arg]
        root: str | None = None,
        batch_size: int = 256,
        validation_fraction: float = 0.1,
        seed: int = 0,
        size: int | tuple[int, int] | None = None,
        channels: Literal[1, 3] = 3,
        in_memory: bool | Literal["auto"] = "auto",
        num_workers: int | None = None,
        download: bool = False,
        imbalance: float = 1.0,
        imbalance_profile: Literal["exponential", "linear"] = "exponential",
        labels_per_class: int | None = None,
        labels: bool = True,
        image_column: str | None = None,
        label_column: str | None = None,
        window: tuple[float, float] | None = None,
        percentiles: tuple[float, float] | None = None,
        background: Literal["white", "black", "grey"] | tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__(
            batch_size, validation_fraction, seed, num_workers, imbalance, imbalance_profile, labels_per_class
        )
        if channels not in (1, 3):
            raise InvalidValue(f"ImageData(channels={channels}): set 1 (grey) or 3 (RGB).")
        if size is not None and min((size, size) if isinstance(size, int) else size) < 1:
            raise InvalidValue(
                f"ImageData(size={size}): set at least one pixel, or None to keep the images' own."
            )
        if size is not None and max((size, size) if isinstance(size, int) else size) > _LARGEST_SIDE:
            raise InvalidValue(f"ImageData(size={size}): set at most {_LARGEST_SIDE:,} pixels a side.")
        self.source = source
        self.test = test
        self.root = root
        self.size = size
        self.channels = channels
        self.in_memory = in_memory
        self.download = download
        self.columns = Columns(labels, image_column, label_column)
        self.window = check_window("ImageData: window", window)
        self.percentiles = check_window("ImageData: percentiles", percentiles)
        if self.percentiles is not None and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise InvalidValue(f"ImageData(percentiles={percentiles}): give two numbers from 0 to 100.")
        if window is not None and percentiles is not None:
            raise InvalidValue(f"ImageData(window={window}, percentiles={percentiles}): give one of the two.")
        self.background = background
        self._under = None if background is None else _colour(background)

    def prepare_data(self) -> None:
        """Fetch missing data, if asked to; called by Lightning in one process."""
        if self.download:
            open_source(self.source, self.test, self.root, True, self.columns)

    @cached_property
    def opened(self) -> Source:
        """The source: labels, and images that are not read yet."""
        return open_source(self.source, self.test, self.root, False, self.columns)

    @property
    def notes(self) -> dict[str, str]:
        """What there is to say of the source, by topic: columns that were used, what was passed over, warnings."""
        found = self.notes_of_source
        said = [text for text in (found.pop("warning", ""), self._few_levels) if text]
        return {**found, "warning": "; ".join(said)} if said else found

    @property
    def notes_of_source(self) -> dict[str, str]:
        """The notes without a look at the levels that images use."""
        found = dict(self.opened.summary)
        window = self.decoding["window"]
        if isinstance(window, tuple):
            by = (
                f" ({self.percentiles[0]:g} and {self.percentiles[1]:g} % of the values)"
                if self.percentiles
                else ""
            )
            found["window"] = f"{window[0]:g} to {window[1]:g}{by}"
        return found

    @cached_property
    def decoding(self) -> dict[str, Any]:
        """How the files are decoded: the arguments ``window`` and ``background`` of ``data.pixels.decode``."""
        images = self.opened.train.images
        window: Window = self.window or ("own" if are_deep(images) else "bytes")
        if self.percentiles is not None:
            low, high = percentiles_of(images, self.percentiles)
            if low == high:
                raise InvalidValue(
                    f"ImageData(percentiles={self.percentiles}): both are the value {low:g} in the training images; "
                    "set them wider apart, or give window=(min, max)."
                )
            window = low, high
        return {"window": window, "background": self._under}

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments by which another ImageData reads its files in the same way."""
        window = self.decoding["window"]
        return {"window": window if isinstance(window, tuple) else None, "background": self.background}

    @cached_property
    def _few_levels(self) -> str | None:
        """What to say if the training images use few grey levels, by a look at some of them."""
        found, images = Levels(), self.inputs.train
        rows = spread(self.known.train_size, 64)
        if isinstance(images, Tensor):
            found.add(images[rows])
            return self.advise(found)
        for i in rows:
            with suppress(InvalidValue):  # the loader says so when its turn comes
                found.add(images.read(i))
        return self.advise(found)

    def advise(self, found: Levels) -> str | None:
        """What to say of the levels that images use, and the window that they would fill."""
        images = self.opened.train.images
        said = found.few(deep=are_deep(images))
        if said is None:
            return None
        low, high = percentiles_of(images, (0.1, 99.9))
        if low == high:
            return f"{said}: nearly every value is {low:g}, so there is nothing to tell the images by"
        return (
            f"{said}, so the images look nearly of one tone; values go from {low:g} to {high:g}: set window=[{low:g}, "
            f"{high:g}] or percentiles=[0.1, 99.9]"
        )

    @cached_property
    def _train(self) -> Split:
        """Training images, followed by the validation images if the source has a split of them."""
        train, validation = self.opened.train, self.opened.validation
        if validation is None:
            return train
        images = JoinedImages([train.images, validation.images])
        if train.labels is None or validation.labels is None:
            return Split(images, None, [])
        return Split(images, torch.cat([train.labels, validation.labels]), train.class_names)

    @cached_property
    def known(self) -> Known:
        """Labels, sizes and class names."""
        train, test = self._train, self.opened.test
        test_size, test_labels = (0, None) if test is None else (len(test.images), test.labels)
        return Known(len(train.images), train.labels, test_size, test_labels, train.class_names)

    @cached_property
    def parts(self) -> tuple[Tensor, Tensor]:
        """Rows of the training part, before it is thinned, and of the validation part; int64, sorted."""
        if self.opened.validation is None:
            return stratified_split(
                self.known.train_size, self.known.train_labels, self.validation_fraction, self.seed
            )
        every = torch.arange(self.known.train_size)
        return every[: len(self.opened.train.images)], every[len(self.opened.train.images) :]

    @property
    def target_size(self) -> tuple[int, int] | None:
        """Height and width that images are scaled to; None if they are left as they are."""
        size = self.opened.size if self.size is None else self.size
        return (size, size) if isinstance(size, int) else size

    @cached_property
    def _streams(self) -> list[ImageStream]:
        """The training set and, if there is one, the test set."""
        splits = [self._train] if self.opened.test is None else [self._train, self.opened.test]
        return [
            ImageStream(split.images, self.channels, self.target_size, **self.decoding) for split in splits
        ]

    def file_names(self, split: Literal["train", "test"]) -> list[str | None] | None:
        """The file of every image of a split, relative to the folder of the source.

        Of lists it is the folder that the list is in, of Parquet files what they say; None if no image has a name.
        """
        images = self._train.images
        if split == "test":
            if self.opened.test is None:
                return None
            images = self.opened.test.images
        names = [images.file_name(i) for i in range(len(images))]
        return names if any(name is not None for name in names) else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of every image."""
        return self._streams[0].shape

    @cached_property
    def inputs(self) -> Inputs:
        """Inputs of both splits: tensors if they are held in memory, else streams.

        The fingerprint covers class names, labels and pixels in memory, or names and file sizes of a stream.
        """
        bytes_needed = sum(len(stream) * stream.bytes_each for stream in self._streams)
        keep = bytes_needed <= MEMORY_BUDGET if self.in_memory == "auto" else self.in_memory
        digest = hashlib.sha256(repr(self.class_names).encode())
        inputs: list[Tensor | ImageStream] = []
        for stream, labels in zip(
            self._streams, (self.known.train_labels, self.known.test_labels), strict=False
        ):
            content: Tensor | ImageStream = stream.load(self.num_workers) if keep else stream
            inputs.append(content)
            add_to_digest(digest, labels)
            if isinstance(content, Tensor):
                add_to_digest(digest, content)
            else:
                digest.update("\n".join(map(stream.images.stamp, range(len(stream)))).encode())
                if (stream.window, stream.background) != ("bytes", None):
                    digest.update(f"{stream.window} {stream.background}".encode())
        return Inputs(inputs[0], inputs[1] if len(inputs) > 1 else None, digest.hexdigest()[:16])


def _colour(background: Any) -> Colour:
    given = COLOURS.get(background, background) if isinstance(background, str) else background
    if not isinstance(given, str) and isinstance(given, Sequence) and len(given) == 3:
        red, green, blue = (check_whole("ImageData", "background", part, 0, 255) for part in given)
        return red, green, blue
    raise InvalidValue(
        f"ImageData(background={shown(background)}): give {', '.join(map(repr, COLOURS))} or three numbers from 0 to "
        "255."
    )
