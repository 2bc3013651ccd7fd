"""Images in files: a folder, or a list of paths."""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from contrastive.data.images import Source, Split, decode
from contrastive.errors import FileMissing, InvalidValue

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class FileImages:
    """Images in files of their own.

    Args:
        paths: the files.
        root: their common folder. The fingerprint holds paths relative to it, so it survives a move.
    """

    def __init__(self, paths: Sequence[Path], root: Path) -> None:
        self.paths = paths
        self.root = root

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int, channels: int) -> Tensor:
        """Decode file ``i``."""
        return decode(self.paths[i].read_bytes(), channels)

    def where(self, i: int) -> str:
        """Its path."""
        return str(self.paths[i])

    def stamp(self, i: int) -> str:
        """Its path below the root and its size in bytes."""
        return f"{os.path.relpath(self.paths[i], self.root)} {self.paths[i].stat().st_size}"


def image_folder(root: Path) -> Source:
    """A folder of images.

    With a subfolder ``train``, the subfolders ``test`` and ``val`` (or ``valid``, ``validation``) are the other
    splits, and ``val`` alone is the test split. Without it, everything is for training. Within a split there is
    one folder a class, in alphabetical order, or unlabelled images.

    Raises:
        FileNotFoundError: if there are no images.
        ValueError: if images lie beside class folders.
    """
    if not (root / "train").is_dir():
        return Source(_folder_split(root))
    held_out = (root / name for name in ("val", "valid", "validation"))
    validation = next((_folder_split(folder) for folder in held_out if folder.is_dir()), None)
    if not (root / "test").is_dir():
        return Source(_folder_split(root / "train"), test=validation)
    return Source(_folder_split(root / "train"), validation, _folder_split(root / "test"))


def _folder_split(root: Path) -> Split:
    unlabelled = _image_paths(root.iterdir())
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = {folder.name: _image_paths(folder.rglob("*")) for folder in folders}
    if not unlabelled and not any(classes.values()):
        raise FileMissing(
            f"ImageData finds no images in {root}. It reads files ending in {', '.join(SUFFIXES)}, directly in "
            "the folder or in one folder a class."
        )
    for name, paths in classes.items():
        if unlabelled:
            raise InvalidValue(
                f"ImageData finds images ({unlabelled[0].name}) and folders ({name}) side by side in {root}. Put "
                "every image into the folder of its class, or all into one folder, without labels."
            )
        if not paths:
            raise InvalidValue(
                f"ImageData finds no images in the class folder {root / name}. It reads files ending in "
                f"{', '.join(SUFFIXES)}. Remove the folder if there is no such class."
            )
    if unlabelled:
        return Split(FileImages(unlabelled, root), None, [])
    labels = torch.tensor([label for label, paths in enumerate(classes.values()) for _ in paths])
    return Split(
        FileImages([path for paths in classes.values() for path in paths], root), labels, list(classes)
    )


def _image_paths(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        p for p in paths if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


def list_split(file: Path) -> Split:
    """A list of images, ``path[,label]`` a line, in text, CSV or TSV (tabs instead of commas).

    Paths are relative to the list. Labels are integers or names; names are numbered in alphabetical order. A
    first line that starts with ``path``, ``file``, ``filename`` or ``image`` is a heading.

    Raises:
        FileNotFoundError: if a listed image does not exist.
        ValueError: if a line has not the form of the first, or there is none.
    """
    text = file.read_text(encoding="utf-8-sig")
    delimiter = "\t" if file.suffix == ".tsv" or "\t" in text else ","
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    lines = [(number, [cell.strip() for cell in row]) for number, row in enumerate(reader, 1) if row]
    if lines and lines[0][1][0].lower() in ("path", "file", "filename", "image"):
        lines = lines[1:]
    if not lines:
        raise InvalidValue(
            f"ImageData finds no image in the list {file}. It needs path[{delimiter}label] a line."
        )
    width = len(lines[0][1])
    for number, row in lines:
        if len(row) != width or width > 2 or not all(row):
            raise InvalidValue(
                f"ImageData cannot use line {number} of {file}: {delimiter.join(row)!r}. Every line must be a path, "
                f"or every line a path and a label ({delimiter!r} between them)."
            )
        if not (file.parent / row[0]).is_file():
            raise FileMissing(
                f"ImageData does not find {file.parent / row[0]}, which line {number} of {file} names. Paths are "
                "relative to the folder of the list."
            )
    images = FileImages([file.parent / row[0] for _, row in lines], file.parent)
    if width == 1:
        return Split(images, None, [])
    labels = [row[1] for _, row in lines]
    if all(label.removeprefix("-").isdigit() for label in labels):
        return Split(images, torch.tensor([int(label) for label in labels]), [])
    names = sorted(set(labels))
    numbers = {name: number for number, name in enumerate(names)}
    return Split(images, torch.tensor([numbers[label] for label in labels]), names)
