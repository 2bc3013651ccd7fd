"""Where images come from: one function a kind of source, each returning splits of images and labels."""

import csv
import difflib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from contrastive.data.images import SUFFIXES, DatasetImages, FileImages, Images, ParquetImages, split_item


@dataclass(frozen=True)
class Split:
    """Images of one split, not yet read.

    Attributes:
        images: the images, N of them.
        labels: ``(N,)`` int64 or None.
        class_names: a name for each label 0, 1, ...; empty if the labels have none (yet).
    """

    images: Images
    labels: Tensor | None
    class_names: list[str]


@dataclass(frozen=True)
class Source:
    """A training split and, if there is one, a test split with the same classes."""

    train: Split
    test: Split | None
    size: int | None = None  # scale to this unless the user asks for another size


def open_source(
    source: str | Dataset[Any], test: str | Dataset[Any] | None, root: str | None, download: bool
) -> Source:
    """Find a source by name or path, and check labels and classes; no image is read.

    Raises:
        ValueError: for an unknown name, an empty source, or labels that do not fit.
        FileNotFoundError: for data that are not there.
    """
    opened = _open(source, root, download, "source")
    if test is not None:
        opened = replace(opened, test=_open(test, root, download, "test").train)
    _check(opened.train)
    if opened.test is None:
        return replace(opened, train=_named(opened.train))
    _check(opened.test)
    train = _named(opened.train)
    return replace(opened, train=train, test=_with_classes(opened.test, train))


def _open(source: str | Dataset[Any], root: str | None, download: bool, argument: str) -> Source:
    if not isinstance(source, str):
        return Source(dataset_split(source), None)
    if source == "digits":
        return digits()
    kind, _, name = source.rpartition(":")
    if kind == "torchvision" or (not kind and name in torchvision_names()):
        return torchvision_source(name, root or "data", download)
    path = Path(root or "") / source
    if path.is_file() and path.suffix == ".parquet":
        return Source(parquet_split([path]), None)
    if path.is_file() and path.suffix in (".csv", ".tsv", ".txt"):
        return Source(list_split(path), None)
    if path.is_dir():
        return parquet_folder(path) if any(path.rglob("*.parquet")) else image_folder(path)
    if path.exists():
        raise ValueError(
            f"ImageData({argument}={source!r}): the file {path} is of no known kind. Accepted are .parquet, "
            "lists in .csv, .tsv or .txt, folders, 'digits' and names of torchvision data sets."
        )
    near = difflib.get_close_matches(name.lower(), {"digits": 0} | {n.lower(): 0 for n in torchvision_names()}, n=1)
    real = [n for n in ["digits", *torchvision_names()] if near and n.lower() == near[0]]
    raise ValueError(
        f"ImageData({argument}={source!r}) is neither a known name nor a path that exists ({path.resolve()})."
        + (f" Did you mean {real[0]!r}?" if real else "")
        + " Accepted are 'digits', a torchvision data set ('CIFAR10'), a folder of images or Parquet files, a "
        ".parquet file, a list of files (.csv, .tsv, .txt) or a Dataset object."
    )


def digits() -> Source:
    """The 1,797 handwritten 8x8 digits that come with scikit-learn, one in five kept for testing."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images / 16 * 255).round().to(torch.uint8)
    labels = torch.from_numpy(data.target).long()
    train, test = stratified_split(len(labels), labels, 0.2, seed=0)
    names = [str(name) for name in data.target_names]

    def part(rows: Tensor) -> Split:
        return Split(DatasetImages(list(images[rows])), labels[rows], names)

    return Source(part(train), part(test), size=32)


def torchvision_names() -> list[str]:
    """Names of torchvision's data sets."""
    from torchvision import datasets

    return [name for name in datasets.__all__ if name not in ("ImageFolder", "DatasetFolder", "VisionDataset")]


def torchvision_source(name: str, root: str, download: bool) -> Source:
    """A torchvision data set by the name of its class: its training and its test split."""
    from torchvision import datasets

    if name not in torchvision_names():
        near = difflib.get_close_matches(name, torchvision_names(), n=1)
        raise ValueError(
            f"ImageData(source='torchvision:{name}'): torchvision has no such data set."
            + (f" Did you mean {near[0]!r}?" if near else "")
        )
    build = getattr(datasets, name)
    parameters = inspect.signature(build).parameters
    options: dict[str, Any] = {"root": root} | ({"download": download} if "download" in parameters else {})

    def split(which: dict[str, Any]) -> Split:
        try:
            return dataset_split(build(**options, **which))
        except (RuntimeError, FileNotFoundError) as error:
            raise FileNotFoundError(
                f"ImageData(source={name!r}, root={root!r}): torchvision finds no complete copy of {name} in "
                f"{Path(root).resolve()} ({error}). Set download=True once, or root to the folder that holds it."
            ) from error

    if "train" in parameters:
        return Source(split({"train": True}), split({"train": False}))
    if "split" in parameters:
        return Source(_first_valid(split, "train", "trainval"), _first_valid(split, "test", "val", "valid"))
    return Source(split({}), None)


def _first_valid(split: Any, *names: str) -> Split:
    for name in names[:-1]:
        try:
            found: Split = split({"split": name})
        except ValueError:  # torchvision refuses a split that the data set does not have
            continue
        return found
    last: Split = split({"split": names[-1]})
    return last


def dataset_split(dataset: Dataset[Any]) -> Split:
    """A map-style data set. Its labels are ``dataset.targets`` or ``.labels`` if it has them, else read one by one."""
    images = DatasetImages(dataset)
    names = getattr(dataset, "classes", None)
    class_names = [str(name) for name in names] if isinstance(names, (list, tuple)) else []
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(images) and getattr(dataset, "target_transform", None) is None:
            return Split(images, torch.as_tensor(np.asarray(values)).long(), class_names)
    labels = [split_item(dataset[i])[1] for i in range(len(images))]
    if not labels or labels[0] is None:
        return Split(images, None, [])
    try:
        return Split(images, torch.tensor([int(label) for label in labels]), class_names)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"ImageData: the labels of {images.name} are not integers ({labels[0]!r} comes first). Return "
            "(image, integer label) or the image alone."
        ) from error


def image_folder(root: Path) -> Source:
    """A folder of images: ``train/`` and ``test/`` (or ``val/``) inside it, or all of it for training.

    Below that, one folder a class, or the images themselves without labels.
    """
    if not (root / "train").is_dir():
        return Source(_folder_split(root), None)
    held_out = [root / name for name in ("test", "val", "valid", "validation") if (root / name).is_dir()]
    return Source(_folder_split(root / "train"), _folder_split(held_out[0]) if held_out else None)


def _folder_split(root: Path) -> Split:
    flat = _image_paths(root.iterdir())
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = {folder.name: found for folder in folders if (found := _image_paths(folder.rglob("*")))}
    if flat and classes:
        raise ValueError(
            f"ImageData: {root} holds images ({flat[0].name}) and class folders ({next(iter(classes))}/) side by "
            "side. Put every image in the folder of its class, or all images in one folder without labels."
        )
    if classes:
        labels = torch.tensor([label for label, paths in enumerate(classes.values()) for _ in paths])
        return Split(FileImages([p for paths in classes.values() for p in paths], root), labels, list(classes))
    if not flat:
        raise FileNotFoundError(
            f"ImageData: there are no images in {root}. Files ending in {', '.join(sorted(SUFFIXES))} are read, "
            "directly in the folder or in one folder a class."
        )
    return Split(FileImages(flat, root), None, [])


def _image_paths(paths: Any) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())


def list_split(path: Path) -> Split:
    """A text, CSV or TSV file with ``path[,label]`` a line; paths are relative to the file.

    A first line whose first cell is ``path``, ``file``, ``filename`` or ``image`` is a heading.
    """
    text = path.read_text(encoding="utf-8-sig")
    delimiter = "\t" if path.suffix == ".tsv" or (path.suffix == ".txt" and "\t" in text) else ","
    rows = [(n, row) for n, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), 1) if any(row)]
    if rows and rows[0][1][0].strip().lower() in ("path", "file", "filename", "image"):
        rows = rows[1:]
    if not rows:
        raise ValueError(f"ImageData: the list {path} names no files. Write one path[,label] a line.")
    width = len(rows[0][1])
    for number, row in rows:
        if len(row) != width or width > 2 or not all(cell.strip() for cell in row):
            raise ValueError(
                f"ImageData: line {number} of {path} is {delimiter.join(row)!r}; every line must be "
                f"{'path' + delimiter + 'label' if width == 2 else 'path'}, like the first."
            )
    paths = [path.parent / row[0].strip() for _, row in rows]
    for (number, _), image in zip(rows, paths, strict=True):
        if not image.is_file():
            raise FileNotFoundError(
                f"ImageData: line {number} of {path} names {image}, which does not exist. Paths are relative to "
                "the folder of the list."
            )
    if width == 1:
        return Split(FileImages(paths, path.parent), None, [])
    given = [row[1].strip() for _, row in rows]
    if all(label.lstrip("-").isdigit() for label in given):
        return Split(FileImages(paths, path.parent), torch.tensor([int(label) for label in given]), [])
    names = sorted(set(given))
    number_of = {name: i for i, name in enumerate(names)}
    return Split(FileImages(paths, path.parent), torch.tensor([number_of[label] for label in given]), names)


def parquet_folder(root: Path) -> Source:
    """A folder with Parquet files named ``train*.parquet`` and ``test*.parquet`` (or ``val*.parquet``)."""
    files = sorted(root.rglob("*.parquet"))
    train = [file for file in files if file.name.startswith("train")]
    test = [file for file in files if file.name.startswith("test")]
    test = test or [file for file in files if file.name.startswith("val")]
    if not train:
        raise FileNotFoundError(
            f"ImageData: none of the {len(files)} Parquet files in {root} has a name that starts with 'train' "
            f"({files[0].name} comes first). Rename them, or name one file as the source."
        )
    return Source(parquet_split(train), parquet_split(test) if test else None)


def parquet_split(files: Sequence[Path]) -> Split:
    """Parquet files with a column ``image`` (or ``img``) of encoded images and an integer column ``label``.

    The image column holds bytes, or structs with a field ``bytes`` as Hugging Face data sets have.
    Class names are read from the schema's metadata.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    columns, labels = [], []
    names: list[str] = []
    for file in files:
        try:
            schema = pq.read_schema(file)
        except pa.ArrowInvalid as error:
            raise ValueError(f"ImageData: {file} is no readable Parquet file ({error}).") from error
        image = next((name for name in ("image", "img") if name in schema.names), None)
        if image is None:
            raise ValueError(
                f"ImageData: {file} has no column 'image' (or 'img'); its columns are {', '.join(schema.names)}. "
                "Name the column of encoded images 'image'."
            )
        label = next((name for name in ("label", "labels", "fine_label") if name in schema.names), None)
        table = pq.read_table(file, columns=[image] if label is None else [image, label])
        column = table.column(image)
        if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
            column = pc.struct_field(column, "bytes")
        if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
            raise ValueError(
                f"ImageData: column {image!r} of {file} has type {column.type}; encoded images are needed, as "
                "binary or as struct<bytes: binary, path: string>."
            )
        columns.append(column)
        if label is not None:
            names = names or _parquet_class_names(schema.metadata or {}, label)
            labels.append(_parquet_labels(table.column(label), label, file))
    if labels and len(labels) != len(files):
        raise ValueError(f"ImageData: some of {', '.join(map(str, files))} have a column of labels and some have none.")
    return Split(ParquetImages(columns, files), torch.cat(labels) if labels else None, names)


def _parquet_labels(column: Any, name: str, file: Path) -> Tensor:
    import pyarrow as pa

    if not pa.types.is_integer(column.type):
        raise ValueError(f"ImageData: column {name!r} of {file} has type {column.type}; labels must be integers.")
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise ValueError(f"ImageData: {file}, row {row} has no {name}. Give every row one, or leave the column out.")
    return torch.from_numpy(column.to_numpy().astype(np.int64))


def _parquet_class_names(metadata: dict[bytes, bytes], label: str) -> list[str]:
    if b"classes" in metadata:
        text = metadata[b"classes"].decode()
        return [str(name) for name in json.loads(text)] if text.startswith("[") else text.split(",")
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return [str(name) for name in features.get(label, {}).get("names", [])]


def _check(split: Split) -> None:
    """Refuse an empty split and labels that are negative, missing or beyond the named classes."""
    if not len(split.images):
        raise ValueError("ImageData: the source holds no images; at least one is needed.")
    if split.labels is None:
        return
    if split.labels.shape != (len(split.images),):
        raise ValueError(f"ImageData: {len(split.images)} images have labels of shape {tuple(split.labels.shape)}.")
    bad = split.labels < 0
    if split.class_names:
        bad |= split.labels >= len(split.class_names)
    if bad.any():
        row = int(bad.nonzero()[0])
        accepted = f"0 to {len(split.class_names) - 1}" if split.class_names else "0 and above"
        raise ValueError(
            f"ImageData: {split.images.where(row)} has label {int(split.labels[row])}, and {int(bad.sum())} of "
            f"{len(bad)} labels are outside the accepted range ({accepted}). Correct them; images without a label "
            "belong in a source of their own."
        )


def _named(split: Split) -> Split:
    """Name the classes by their numbers where the source gives no names."""
    if split.labels is None or split.class_names:
        return split
    return replace(split, class_names=[str(i) for i in range(int(split.labels.max()) + 1)])


def _with_classes(test: Split, train: Split) -> Split:
    """Express the test labels in the classes of the training split (those may be more)."""
    if test.labels is None or train.labels is None:
        return test
    names = test.class_names or [str(i) for i in range(int(test.labels.max()) + 1)]
    unknown = [name for name in names if name not in train.class_names]
    if not test.class_names and len(names) <= len(train.class_names):
        return replace(test, class_names=train.class_names)
    if unknown:
        raise ValueError(
            f"ImageData: the test split has {len(names)} classes and the training split {len(train.class_names)}; "
            f"{len(unknown)} of the test classes, such as {unknown[0]!r}, are not in the training split. Load splits "
            "with different classes (few-shot sets) as two sources, one ImageData each."
        )
    lookup = torch.tensor([train.class_names.index(name) for name in names])
    return replace(test, labels=lookup[test.labels], class_names=train.class_names)


def stratified_split(
    num_samples: int, labels: Tensor | None, fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Divide rows at random into a large and a small part with the same proportions of classes.

    All rows are put in a random order, sorted by class, and every ``1/fraction``-th is taken: each class
    gives its share to within one sample.

    Returns:
        The rows that stay and the ``round(fraction * num_samples)`` rows held out, both sorted, int64.
    """
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
    if labels is not None:
        order = order[labels[order].argsort(stable=True)]
    count = round(fraction * num_samples)
    picks = ((torch.arange(count, dtype=torch.float64) + 0.5) * num_samples / max(count, 1)).long()
    held_out = torch.zeros(num_samples, dtype=torch.bool)
    held_out[order[picks]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
