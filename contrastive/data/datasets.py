"""Images of map-style data sets: the user's own, and torchvision's by name."""

import inspect
from collections.abc import Callable, Sequence
from operator import index
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset

from contrastive.data.images import Images, Source, Split
from contrastive.data.labels import labelled
from contrastive.errors import FileMissing, InvalidValue


class DatasetImages(Images):
    """Images of a map-style data set.

    Args:
        dataset: ``dataset[i]`` is an image (PIL image, array or tensor), a tuple ``(image, label, ...)``, or a
            dict with the keys ``image`` (or ``img``) and, for labelled images, ``label``.
    """

    def __init__(self, dataset: Dataset[Any] | Sequence[Any]) -> None:
        self.dataset = dataset
        self.name = type(dataset).__name__

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def content(self, i: int) -> Any:
        """The image of item ``i``."""
        return self.item(i)[0]

    def where(self, i: int) -> str:
        """The item's number."""
        return f"{self.name}[{i}]"

    def stamp(self, i: int) -> str:
        """The item's number; more is not known without reading it."""
        return self.where(i)

    def item(self, i: int) -> tuple[Any, Any]:
        """Image and label (or None) of item ``i``."""
        item = self.dataset[i]
        if isinstance(item, dict):
            return item["image"] if "image" in item else item["img"], item.get("label")
        if isinstance(item, (tuple, list)):
            return item[0], item[1] if len(item) > 1 else None
        return item, None


def dataset_split(dataset: Dataset[Any], labels: bool = True) -> Split:
    """A map-style data set as a split.

    Labels are taken from ``dataset.targets`` or ``dataset.labels`` where there is one, and otherwise from the
    items, each of which is then read once; class names from ``dataset.classes`` (of a ``Subset``, from its whole).

    Args:
        dataset: the data set.
        labels: whether to read labels.

    Raises:
        ValueError: if it has no length, or labels that are not integers.
    """
    images = DatasetImages(dataset)
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InvalidValue(
            f"ImageData needs a data set with a length and items by number; {images.name} is not one. Write its "
            "images to files or Parquet, or give it __len__ and __getitem__."
        )
    if not labels:
        return Split(images, None, [])
    found = (getattr(dataset, name, None) for name in ("targets", "labels", "_labels"))
    listed = [list(values) for values in found if values is not None and len(values) == len(images)]
    if listed and getattr(dataset, "target_transform", None) is None:
        given = listed[0]
    else:
        given = [images.item(i)[1] for i in range(len(images))]
    values = []
    for i, label in enumerate(given):
        if label is None:
            return Split(images, None, [])
        try:
            values.append(index(label))
        except TypeError as error:
            raise InvalidValue(
                f"ImageData finds the label {label!r} at {images.where(i)}; labels must be integers. Return "
                "(image, integer), or the image alone."
            ) from error
    whole: Any = dataset
    while isinstance(whole, Subset):
        whole = whole.dataset
    names = getattr(whole, "classes", None)
    return labelled(images, values, names if names is None else list(names))


def torchvision_names() -> list[str]:
    """The data sets of torchvision."""
    from torchvision import datasets

    folders = {"ImageFolder", "DatasetFolder", "VisionDataset"}  # these have no data of their own
    unpickled = {"LSUN"}  # from files that anybody may have written; as an object it is the user's choice
    return [name for name in datasets.__all__ if name not in folders | unpickled and name[0].isupper()]


def torchvision_source(name: str, root: str, download: bool) -> Source:
    """A data set of torchvision: its training and its test split.

    Where there is no test split, the validation split takes its place. A data set that needs more arguments
    can be built by the user and passed as an object.

    Args:
        name: name of the class.
        root: folder of the data.
        download: fetch the data if they are missing.

    Raises:
        FileNotFoundError: if the data are not (completely) there.
    """
    from torchvision import datasets

    build = getattr(datasets, name)
    parameters = inspect.signature(build).parameters
    options = {"root": root, "download": download} if "download" in parameters else {"root": root}

    def split(**which: Any) -> Split:
        try:
            return dataset_split(build(**options, **which))
        except (RuntimeError, OSError) as error:
            raise FileMissing(
                f"ImageData(source={name!r}, root={root!r}) finds no complete copy of {name} in "
                f"{Path(root).resolve()}: {error} Set download=True once, or root to the folder that holds it."
            ) from error

    if "train" in parameters:
        return Source(split(train=True), test=split(train=False))
    if "split" in parameters:
        return Source(_first(split, "train", "trainval"), test=_first(split, "test", "val", "valid"))
    return Source(split())


def _first(split: Callable[..., Split], *names: str) -> Split:
    """The first of several splits that the data set knows; torchvision answers others with a ValueError."""
    for name in names[:-1]:
        try:
            return split(split=name)
        except ValueError:
            continue
    return split(split=names[-1])
