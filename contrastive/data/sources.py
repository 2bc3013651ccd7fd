"""From a name, path or object to training, validation and test images with one set of classes."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from contrastive.data.datasets import DatasetImages, dataset_split, torchvision_names, torchvision_source
from contrastive.data.files import image_folder
from contrastive.data.images import Source, Split
from contrastive.data.labels import align
from contrastive.data.lists import ENDINGS as LISTS
from contrastive.data.lists import list_split
from contrastive.data.parquet import parquet_files, parquet_folder, parquet_split
from contrastive.data.textures import textures
from contrastive.errors import FileMissing, InvalidValue


@dataclass(frozen=True)
class Columns:
    """What to read of lists and of Parquet files: names of columns, None for the usual ones; and whether of labels."""

    labels: bool = True
    image_column: str | None = None
    label_column: str | None = None


def open_source(
    source: str | Dataset[Any],
    test: str | Dataset[Any] | None,
    root: str | None,
    download: bool,
    columns: Columns = Columns(),
) -> Source:
    """Find the images and check their labels; no image is decoded.

    Args:
        source: see :class:`contrastive.data.ImageData`.
        test: source of the test images, in place of those that ``source`` may have.
        root: folder that paths are relative to; for torchvision, the folder of the data.
        download: let torchvision fetch missing data.
        columns: which columns to read, and whether labels.

    Returns:
        The source, with the same class names in all splits.

    Raises:
        FileNotFoundError: if data are missing.
        ValueError: for an unknown name, labels out of range, or splits with different classes.
    """
    found = _find("source", source, root, download, columns)
    if test is not None:
        other = _find("test", test, root, download, columns)
        found = replace(found, test=other.test or other.train, notes=(*found.notes, *other.notes))
    for split in (found.train, found.validation, found.test):
        if split is not None and len(split.images) == 0:
            raise InvalidValue("ImageData: the source holds no images; it needs at least one.")
    if not columns.labels:
        found = replace(found, train=replace(found.train, labels=None, class_names=[]))
    return replace(
        found,
        validation=found.validation and align(found.validation, found.train, "validation"),
        test=found.test and align(found.test, found.train, "test"),
    )


def _find(
    argument: str, source: str | Dataset[Any], root: str | None, download: bool, columns: Columns
) -> Source:
    if not isinstance(source, str):
        return Source(dataset_split(source, columns.labels))
    if source == "digits":
        return digits()
    if source == "textures":
        return textures()
    name = source.removeprefix("torchvision:")
    if name in torchvision_names():
        return torchvision_source(name, root or "data", download)
    path = Path(root or "") / source
    of_tables = (columns.labels, columns.image_column, columns.label_column)
    if path.is_dir():
        return parquet_folder(path, *of_tables) if parquet_files(path) else image_folder(path, columns.labels)
    if path.is_file() and path.suffix == ".parquet":
        return Source(parquet_split([path], *of_tables))
    if path.is_file() and path.suffix in LISTS:
        return Source(list_split(path, *of_tables))
    raise (InvalidValue if path.exists() else FileMissing)(
        f"ImageData({argument}={source!r}): {path.resolve()} "
        + (f"is a file of kind {path.suffix!r}." if path.exists() else f"does not exist.{_suggestion(name)}")
        + " Accepted are 'digits', 'textures', the name of a torchvision data set such as 'CIFAR10', a folder of "
        f"images or of Parquet files, a .parquet file, a list of files ({', '.join(LISTS)}), or a Dataset object."
    )


def _suggestion(name: str) -> str:
    known = {known.lower(): known for known in ["digits", "textures", *torchvision_names()]}
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f" Did you mean {known[near[0]]!r}?" if near else ""


def digits() -> Source:
    """1,797 handwritten digits of 8x8 pixels that come with scikit-learn; one in five is kept for testing."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images * (255 / 16)).round().astype("uint8")
    labels = torch.from_numpy(data.target).long()
    names = [str(name) for name in data.target_names]
    train, test = (
        Split(DatasetImages(list(images[rows])), labels[rows], names)
        for rows in stratified_split(len(labels), labels, fraction=0.2, seed=0)
    )
    return Source(train, test=test, size=32)


def stratified_split(
    num_samples: int, labels: Tensor | None, fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Divide rows at random into a large and a small part with the same proportions of classes.

    The rows are put in a random order, sorted by class, and taken at even steps: every class gives its share
    to within one sample.

    Args:
        num_samples: number of rows.
        labels: ``(num_samples,)``, or None for a plain random division.
        fraction: size of the small part, as a fraction of all.
        seed: seed of the random order.

    Returns:
        The rows of the large part and the ``round(fraction * num_samples)`` rows of the small one, sorted.
    """
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
    if labels is not None:
        order = order[labels[order].argsort(stable=True)]
    count = round(fraction * num_samples)
    small = torch.zeros(num_samples, dtype=torch.bool)
    small[order[((torch.arange(count) + 0.5) * (num_samples / max(count, 1))).long()]] = True
    return (~small).nonzero().flatten(), small.nonzero().flatten()


def long_tail(
    labels: Tensor, num_classes: int, ratio: float, profile: Literal["exponential", "linear"], seed: int
) -> Tensor:
    """Choose rows at random so that classes grow rarer with their number.

    With ``n_max`` the size of the largest class, class ``c`` keeps ``n_max * ratio**(c / (C - 1))`` rows, or
    ``n_max * (1 - (1 - ratio) * c / (C - 1))`` if linear: rounded, at least one, at most what it has. The
    rows kept for a ratio are among those kept for any larger one.

    Args:
        labels: ``(N,)`` integers below ``num_classes``.
        num_classes: ``C``.
        ratio: size of the last class over that of the first, in ``(0, 1]``.
        profile: how sizes fall in between.
        seed: seed of the choice.

    Returns:
        The rows kept, sorted.
    """
    order, rank, sizes = _ranks(labels, num_classes, seed)
    place = torch.arange(num_classes, dtype=torch.float64) / max(num_classes - 1, 1)
    fraction = ratio**place if profile == "exponential" else 1 - (1 - ratio) * place
    wanted = (fraction * sizes.max()).round().clamp(min=1)
    return order[rank < wanted[labels[order]]].sort().values


def few_of_each(labels: Tensor, num_classes: int, count: int, seed: int, names: Sequence[str] = ()) -> Tensor:
    """Choose ``count`` rows of every class at random; those of a smaller count are among those of a larger one.

    Args:
        labels: ``(N,)`` integers below ``num_classes``.
        num_classes: number of classes.
        count: rows to keep of each.
        seed: seed of the choice.
        names: of the classes, for the message; their numbers by default.

    Returns:
        The rows kept, sorted.

    Raises:
        ValueError: if a class has fewer rows.
    """
    order, rank, sizes = _ranks(labels, num_classes, seed)
    smallest = int(sizes.argmin())
    if int(sizes[smallest]) < count:
        raise InvalidValue(
            f"labels_per_class={count}, but class {names[smallest] if names else smallest} has only "
            f"{int(sizes[smallest])} samples to train on; ask for that many at most."
        )
    return order[rank < count].sort().values


def _ranks(labels: Tensor, num_classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows sorted by class and within it at random, the place of each within its class, and the classes' sizes."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    sizes = labels.bincount(minlength=num_classes)
    return order, torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]], sizes
