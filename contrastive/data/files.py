"""Images in files of their own, in a folder."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, features

from contrastive.data.images import Images, Note, Source, Split
from contrastive.data.labels import labelled
from contrastive.data.splits import by_split, split_of
from contrastive.errors import FileMissing, InvalidValue

# What is a picture by its ending. A few need a plugin, or a Pillow that was built for them.
# fmt: off
PICTURES = {
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe",
    ".jpeg", ".jpf", ".jpg", ".jpx", ".jxl", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga",
    ".tif", ".tiff", ".webp",
}
# Pictures by their endings that are not read: of cameras, of programs, of medicine.
OTHER_PICTURES = {
    ".arw", ".cr2", ".cr3", ".dcm", ".dng", ".exr", ".ico", ".nef", ".nii", ".orf", ".psd", ".raf", ".rw2", ".svg",
}
# fmt: on
_BUILT_IN = {
    "AVIF": "avif",
    "JPEG2000": "jpg_2000",
    "WEBP": "webp",
}  # format -> feature of Pillow that reads it


@cache
def readable() -> frozenset[str]:
    """The endings of pictures that the installed Pillow reads, with the plugins that are registered by now."""
    Image.init()
    supported = features.get_supported()
    formats = {kind for kind in Image.OPEN if _BUILT_IN.get(kind, "pil") in supported}
    return frozenset(ending for ending, kind in Image.EXTENSION.items() if kind in formats) & PICTURES


class FileImages(Images):
    """Images in files of their own.

    Args:
        paths: the files.
        root: their common folder. The fingerprint holds paths relative to it, so it survives a move.
        source: the folder that their names are relative to; ``root`` by default. Of a split in a folder of its own it
            is the one above, so that ``train/1.png`` and ``test/1.png`` have two names.
    """

    def __init__(self, paths: Sequence[Path], root: Path, source: Path | None = None) -> None:
        self.paths = paths
        self.root = root
        self.source = root if source is None else source

    def __len__(self) -> int:
        return len(self.paths)

    def content(self, i: int) -> bytes:
        """The content of file ``i``."""
        return self.paths[i].read_bytes()

    def where(self, i: int) -> str:
        """Its path."""
        return str(self.paths[i])

    def stamp(self, i: int) -> str:
        """Its path below the root and its size in bytes."""
        return f"{os.path.relpath(self.paths[i], self.root)} {self.paths[i].stat().st_size}"

    def file_name(self, i: int) -> str:
        """Its path below the source; as it is if a list gives an absolute one that lies elsewhere."""
        path, source = self.paths[i], self.source
        if not path.is_relative_to(source):  # one of the two may be absolute
            path, source = path.absolute(), source.absolute()
        name = Path(os.path.relpath(path, source)) if path.is_relative_to(source) else path
        return name.as_posix().encode(errors="replace").decode()  # a name need not be UTF-8


def image_folder(root: Path, labels: bool = True) -> Source:
    """A folder of images.

    Subfolders that are called like splits, in any spelling (``train``, ``Training``, ``val``, ``dev``, ``Test``), are
    the splits; one for validation alone is the test split. Otherwise, everything is for training. Within a split
    there is one folder a class, in alphabetical order, or unlabelled images.

    Args:
        root: the folder.
        labels: whether folders are classes; otherwise, all images in and below a split belong to it, without labels.

    Raises:
        FileNotFoundError: if there are no images.
        ValueError: if images lie beside class folders, or it is not clear which folders are splits.
    """
    names = [folder.name for folder in _folders(root)]
    splits = by_split(names, str(root))
    if not splits:
        return Source(_folder_split(root, labels, root))
    others = {name: _Found(root / name) for name in names if name not in splits.values()}
    others = {name: found for name, found in others.items() if found.pictures}
    called = " and ".join(sorted(splits.values()))
    if "train" not in splits:
        raise InvalidValue(
            f"ImageData finds {called} in {root}, called like splits, and no folder to train on. Add one called train, "
            "or name the folder that is meant as the source itself; if these are classes, put the folders of all "
            f"classes into {root / 'train'}."
        )
    train = root / splits["train"]
    if others and labels and _Found(train, deep=False).pictures:
        raise InvalidValue(
            f"ImageData cannot tell whether {train} is a split or a class: it holds images without classes, and beside "
            f"it lies {next(iter(others))}, which is called like no split. If all of them are classes, put them into "
            f"one folder, {root / 'train'}; if it is a split, labels=False reads it without labels."
        )
    found = {split: _folder_split(root / name, labels, root) for split, name in splits.items()}
    beside = Counter({f"pictures in {name}": len(other.pictures) for name, other in others.items()})
    beside += _Found(root, deep=False).others
    validation, test = found.get("validation"), found.get("test")
    if test is None:
        validation, test = None, validation
    return Source(found["train"], validation, test, notes=_passed_over(beside))


def _folders(root: Path) -> list[Path]:
    return sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX"))
    )


class _Found:
    """The files in a folder: pictures that can be read, in order, and how many others there are, by their endings."""

    def __init__(self, folder: Path, deep: bool = True) -> None:
        self.others: Counter[str] = Counter()
        self.pictures: list[Path] = []
        for entry, hidden in _entries(str(folder), deep):
            if hidden:
                self.others["hidden pictures"] += _is_picture(entry)
            elif _is_picture(entry):
                self.pictures.append(Path(entry.path))
            else:
                self.others[os.path.splitext(entry.name)[1].lower() or "without an ending"] += 1
        self.pictures.sort()


def _entries(folder: str, deep: bool, hidden: bool = False) -> Iterator[tuple[Any, bool]]:
    """The files of a folder, and whether they are hidden, by their names or those of their folders."""
    with os.scandir(folder) as entries:
        for entry in entries:
            below = hidden or entry.name.startswith((".", "__MACOSX"))
            if entry.is_dir(follow_symlinks=False):
                if deep:
                    yield from _entries(entry.path, deep, below)
            elif entry.is_file():
                yield entry, below


def _is_picture(entry: "os.DirEntry[str]") -> bool:
    return os.path.splitext(entry.name)[1].lower() in readable() and entry.is_file()


def _passed_over(others: Counter[str]) -> tuple[Note, ...]:
    counts = dict(
        sorted(((ending, n) for ending, n in others.items() if n), key=lambda pair: (-pair[1], pair[0]))
    )
    if not counts:
        return ()
    text = ", ".join(f"{count} {ending}" for ending, count in counts.items())
    unread = [ending for ending in counts if ending in PICTURES | OTHER_PICTURES]
    if not unread:
        return (Note("passed over", text),)
    advice = f"Pillow {Image.__version__} does not read {', '.join(unread)} here: convert these pictures"  # type: ignore[attr-defined]
    return Note("passed over", text), Note("warning", advice)


def _folder_split(root: Path, labels: bool, source: Path) -> Split:
    """The images of one split in a folder of ``source``, and what else lies there."""
    here = _Found(root, deep=not labels)
    folders = _folders(root) if labels else []
    classes = {folder.name: _Found(folder) for folder in folders}
    others = here.others + sum((found.others for found in classes.values()), Counter())
    if not here.pictures and not any(found.pictures for found in classes.values()):
        raise FileMissing(
            f"ImageData finds no images in {root}{_instead(others)}. It reads files ending in "
            f"{', '.join(sorted(readable()))}, directly in the folder or in one folder a class."
        )
    for folder in folders:
        name, found = folder.name, classes[folder.name]
        if here.pictures:
            raise InvalidValue(
                f"ImageData finds images ({here.pictures[0].name}) and folders ({name}) side by side in {root}. Put "
                "every image into the folder of its class, or all into one folder, without labels; labels=False reads "
                "all of them without labels as they lie."
            )
        if not found.pictures:
            raise InvalidValue(
                f"ImageData finds no images in the class folder {folder}{_instead(found.others)}. It reads files "
                f"ending in {', '.join(sorted(readable()))}. Remove the folder if there is no such class."
            )
        below = {split_of(child.name) for child in _folders(folder)}
        if "train" in below and len(below - {None}) > 1:
            raise InvalidValue(
                f"ImageData finds folders called like splits in {folder}, which would be a class. "
                + (
                    f"Give {folder} as the source."
                    if len(folders) == 1
                    else "Put the splits above the classes: train/CLASS/..., test/CLASS/..."
                )
            )
    notes = _passed_over(others)
    if not classes:
        return Split(FileImages(here.pictures, root, source), None, [], notes)
    paths = [path for found in classes.values() for path in found.pictures]
    numbers = [label for label, found in enumerate(classes.values()) for _ in found.pictures]
    split = labelled(FileImages(paths, root, source), numbers, list(classes))
    return Split(split.images, split.labels, split.class_names, notes)


def _instead(others: Counter[str]) -> str:
    if not others:
        return ""
    return (
        f", which holds {', '.join(f'{count} {ending}' for ending, count in others.most_common(3) if count)}"
    )
