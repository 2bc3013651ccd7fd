"""A folder on disk that is replaced as a whole: a manifest, which names its files with their checksums.

The files of one version stand in a sub-folder of their own, and the manifest is renamed into place last, so a reader
finds the old content or the new, never a mixture, however the writer ended. Writers keep each other out. A reader holds
the version that it reads, and a writer leaves a version that is held to the next one to remove; a reader that comes
when its version has just gone reads the manifest again.
"""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from contrastive.errors import FileInTheWay, FileMissing, FileTrouble, InputError, InvalidValue
from contrastive.retrieval.locks import alone, if_unused, in_use

MANIFEST = "manifest.json"
DIGEST = "digest"
_SMALL = 1 << 26  # bytes of files whose checksum is compared on every load
_GRACE = 3600  # seconds for which a version is left alone where nobody can tell whether it is in use

Check = tuple[Callable[[Any], bool], str]
T = TypeVar("T")


def write_folder(
    folder: Path,
    kind: str,
    version: int,
    content: Mapping[str, Any],
    write: Callable[[Path], None],
    manifest: str = MANIFEST,
) -> None:
    """Replace the content of a folder. Waits for others that do so.

    Args:
        folder: made if missing. One that holds something else is refused.
        kind: what the folder is, as ``"contrastive index"``.
        version: of the format.
        content: goes into the manifest, JSON-able; ``write`` may add to it.
        write: writes files, or sub-folders with checksums of their own, into the folder that it is given.
        manifest: name of the manifest.

    Raises:
        FileExistsError: the folder holds files and no manifest of this kind, or is none.
        OSError: it cannot be written; what it held is as it was.
    """
    with writing(folder, "its content is as it was"), alone(folder) as certain:
        _refuse_others(folder, kind, version, manifest)
        files = folder / f"files-{secrets.token_hex(8)}"
        temporary = folder / f".{manifest}.{files.name}"
        files.mkdir()
        try:
            write(files)
            listed = {}
            for path in sorted(path for path in files.iterdir() if path.is_file()):
                listed[path.name] = {"bytes": path.stat().st_size, "sha256": checksum(path)}
                _sync(path)
            # After write(), which may add to the content.
            document = {"kind": kind, "version": version, "folder": files.name, "files": listed, **content}
            write_manifest(temporary, document)
            _sync(files)
            os.replace(temporary, folder / manifest)
            _sync(folder)
        except BaseException:
            shutil.rmtree(files, ignore_errors=True)
            temporary.unlink(missing_ok=True)
            raise
        for old in [
            *folder.glob("files-*"),
            *folder.glob(f".{manifest}.*"),
        ]:  # also of writers that were killed
            if old.name != files.name:
                _remove(old, certain)


def read_folder(
    folder: Path,
    kind: str,
    version: int,
    read: Callable[[dict[str, Any], Path], T],
    *,
    checksums: bool = True,
    manifest: str = MANIFEST,
    fields: Mapping[str, Check] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> T:
    """What a folder holds, also while others replace it.

    Args:
        folder: written by :func:`write_folder`.
        kind: what it must be.
        version: of the format.
        read: reads the files, given the manifest and the folder that they are in.
        checksums: compare those of large files too. Small files, and the manifest, are compared in any case.
        manifest: name of the manifest.
        fields: what must stand in the manifest, see :func:`check_fields`.
        defaults: what stands for entries that earlier versions did not write.

    Raises:
        FileNotFoundError: there is no such folder, or no manifest in it.
        ValueError: it is damaged or incomplete, of another kind, or of a newer version.
    """
    document = read_manifest(folder, kind, version, manifest)
    while True:
        try:
            document = {**(defaults or {}), **document}
            check_fields(document, folder / manifest, {**_FIELDS, **(fields or {})})
            files = folder / document["folder"]
            if not files.is_dir():
                raise InvalidValue(f"{files} is missing; the folder is incomplete: copy it or make it again.")
            with in_use(files):
                check_files(files, document, checksums=checksums)
                return read(document, files)
        except Exception:
            newer = read_manifest(folder, kind, version, manifest)
            if newer.get("folder") == document.get("folder"):
                raise
            document = newer  # the version was replaced before it was held


def read_manifest(folder: Path, kind: str, version: int, manifest: str = MANIFEST) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        FileNotFoundError: there is no such folder, or no manifest in it.
        ValueError: it is damaged or was changed, of another kind, or of a newer version.
    """
    path = folder / manifest
    if not path.is_file():
        found = (
            ", ".join(sorted(os.listdir(folder))[:5]) or "nothing" if folder.is_dir() else "no such folder"
        )
        raise FileMissing(f"{folder} is no {kind} ({found}): there is no {manifest}; give the right folder.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise InvalidValue("no JSON object")
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidValue(
            f"{path} is damaged ({reason}); make the folder again, or copy it again."
        ) from error
    if document.get("kind") != kind:
        raise InvalidValue(
            f"{folder} is a {str(document.get('kind', 'folder of another program'))[:60]}, no {kind}."
        )
    if document.get("version") != version:
        raise InvalidValue(
            f"{folder} has version {str(document.get('version'))[:60]} of the format, this library reads {version}; "
            "use the library's version that wrote it, or make the folder again."
        )
    if DIGEST in document and document[DIGEST] != digest(document):  # earlier versions wrote none
        raise InvalidValue(
            f"{path} does not have the digest that was recorded: it was changed or damaged; copy it or make the "
            "folder again."
        )
    return document


def write_manifest(path: Path, document: Mapping[str, Any]) -> None:
    """Write a manifest with its digest."""
    text = json.dumps({**document, DIGEST: digest(document)}, indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    _sync(path)


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says, however it is set out."""
    said = {name: value for name, value in document.items() if name != DIGEST}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def check_fields(document: Mapping[str, Any], path: Path, fields: Mapping[str, Check]) -> None:
    """Refuse a manifest in which something is missing or senseless, as one that was edited.

    Args:
        document: the manifest.
        path: where it stands.
        fields: name -> a test of the value, and what is expected in words.

    Raises:
        ValueError: names the first such entry.
    """
    for name, (right, expected) in fields.items():
        if name not in document or not right(document[name]):
            given = repr(document[name])[:60] if name in document else "missing"
            raise InvalidValue(
                f"{path} is damaged: {name} is {given}, expected is {expected}; copy it or make the folder again."
            )


def whole(least: int) -> Check:
    """An integer of at least so much."""
    return lambda value: type(value) is int and value >= least, f"an integer of {least} or more"


def text_or_none(value: Any) -> bool:
    """Whether it is a text or None."""
    return value is None or isinstance(value, str)


def names_only(value: Any) -> bool:
    """Whether it is a list of texts."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def files_listed(value: Any) -> bool:
    """Whether files are listed with size and checksum."""
    return isinstance(value, dict) and all(
        isinstance(file, dict)
        and whole(0)[0](file.get("bytes"))
        and isinstance(file.get("sha256"), str)
        and Path(name).name == name
        for name, file in value.items()
    )


_FIELDS: dict[str, Check] = {
    "folder": (
        lambda name: isinstance(name, str) and name.startswith("files-") and Path(name).name == name,
        "the name of the folder of its files",
    ),
    "files": (files_listed, "files with bytes and sha256"),
}


def check_files(files: Path, document: Mapping[str, Any], *, checksums: bool = True) -> None:
    """Look at sizes and contents of the files that a manifest lists.

    Raises:
        ValueError: a file is missing, shorter or longer than it was, or changed; unless ``checksums``, the contents
            of large ones are not compared.
    """
    for name, expected in document["files"].items():
        path = files / name
        size = path.stat().st_size if path.is_file() else None
        if size != expected["bytes"]:
            given = "is missing" if size is None else f"has {size} bytes instead of {expected['bytes']}"
            raise InvalidValue(f"{path} {given}; the folder is incomplete: copy it or make it again.")
        if (checksums or size <= _SMALL or path.suffix == ".parquet") and checksum(path) != expected[
            "sha256"
        ]:
            raise InvalidValue(
                f"{path} does not have the checksum that was recorded: it was changed or damaged; copy it or make it "
                "again."
            )


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        found = hashlib.sha256()
        while block := file.read(1 << 22):
            found.update(block)
    return found.hexdigest()


@contextmanager
def writing(folder: Path, state: str) -> Iterator[None]:
    """Make a folder, and say in a sentence why it cannot be written.

    Args:
        folder: to be written.
        state: what has become of its content, for the message.

    Raises:
        FileExistsError: there is something else of this name.
        OSError: it cannot be written.
    """
    if folder.is_symlink() and not folder.exists():
        raise FileInTheWay(
            f"{folder} is a link to {os.readlink(folder)}, which is not there; remove the link."
        )
    if folder.exists() and not folder.is_dir():
        raise FileInTheWay(f"{folder} is a file, and is not overwritten; give the name of a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except InputError:
        raise
    except OSError as error:
        raise FileTrouble(f"{folder} cannot be written ({error.strerror or error}); {state}.") from error


def _refuse_others(folder: Path, kind: str, version: int, manifest: str) -> None:
    """Refuse a folder that holds something else; one of this kind may be damaged."""
    found = sorted(name for name in os.listdir(folder) if not name.startswith(("files-", ".")))
    if found:
        try:
            read_manifest(folder, kind, version, manifest)
        except (FileNotFoundError, ValueError) as error:
            if _kind(folder / manifest) != kind:
                raise FileInTheWay(
                    f"{folder} holds something that is no {kind} ({', '.join(found[:3])}), and is not overwritten; "
                    "give another folder."
                ) from error


def _kind(path: Path) -> Any:
    """What a manifest that may be damaged says it is of; None if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def _remove(old: Path, certain: bool) -> None:
    """Remove what an earlier writer left, unless somebody reads it."""
    try:
        if not certain and time.time() - old.lstat().st_mtime < _GRACE:
            return
        if old.is_symlink():  # somebody's own
            return
        if not old.is_dir():
            old.unlink(missing_ok=True)
            return
        with if_unused(old) as free:
            if free:
                shutil.rmtree(old, ignore_errors=True)
    except OSError:  # of somebody else, or gone already
        pass


def _sync(path: Path) -> None:
    """Have the system write it to the disk before what is written later."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
