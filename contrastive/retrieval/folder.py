"""A folder on disk that is replaced as a whole: a manifest, which names its files with their checksums.

``manifest.json`` is renamed into place last, so a reader finds the old content or the new, never a mixture, however
the writer ended. The files of one version stand in a sub-folder of their own.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from contrastive.errors import FileInTheWay, FileMissing, InvalidValue

MANIFEST = "manifest.json"


def write_folder(
    folder: Path, kind: str, version: int, content: Mapping[str, Any], write: Callable[[Path], None]
) -> None:
    """Replace the content of a folder.

    Args:
        folder: made if missing. One that holds something else is refused.
        kind: what the folder is, as ``"contrastive index"``.
        version: of the format.
        content: goes into the manifest, JSON-able.
        write: writes files into the folder that it is given.

    Raises:
        FileExistsError: the folder holds files and no manifest of this kind.
    """
    if folder.is_dir() and any(not name.startswith(("files-", ".")) for name in os.listdir(folder)):
        try:
            read_manifest(folder, kind, version)
        except (FileNotFoundError, ValueError) as error:
            if not (folder / MANIFEST).is_file() or json_kind(folder) != kind:
                raise FileInTheWay(
                    f"{folder} holds something that is no {kind}, and is not overwritten; give another folder."
                ) from error
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / f"files-{secrets.token_hex(8)}"
    files.mkdir()
    try:
        write(files)
        listed = {}
        for path in sorted(files.iterdir()):
            listed[path.name] = {"bytes": path.stat().st_size, "sha256": checksum(path)}
            _sync(path)
        document = {"kind": kind, "version": version, "folder": files.name, "files": listed, **content}
        temporary = folder / f".{MANIFEST}.{files.name}"
        temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        _sync(temporary)
        _sync(files)
        os.replace(temporary, folder / MANIFEST)
        _sync(folder)
    except BaseException:
        shutil.rmtree(files, ignore_errors=True)
        raise
    for old in [*folder.glob("files-*"), *folder.glob(f".{MANIFEST}.*")]:  # also of writers that were killed
        if old.name == files.name:
            continue
        shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)


def read_manifest(folder: Path, kind: str, version: int) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        FileNotFoundError: there is no such folder, or no manifest in it.
        ValueError: it is damaged, of another kind, or of a newer version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        found = (
            ", ".join(sorted(os.listdir(folder))[:5]) or "nothing" if folder.is_dir() else "no such folder"
        )
        raise FileMissing(f"{folder} is no {kind} ({found}): there is no {MANIFEST}; give the right folder.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise InvalidValue("no JSON object")
    except ValueError as error:
        raise InvalidValue(
            f"{path} is damaged ({error}); make the folder again, or copy it again."
        ) from error
    if document.get("kind") != kind:
        raise InvalidValue(f"{folder} is a {document.get('kind', 'folder of another program')}, no {kind}.")
    if document.get("version") != version:
        raise InvalidValue(
            f"{folder} has version {document.get('version')} of the format, this library reads {version}; "
            "use the library's version that wrote it, or make the folder again."
        )
    return document


def json_kind(folder: Path) -> Any:
    """What a manifest that may be damaged says it is of; None if it cannot be read."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("kind")
    except (ValueError, AttributeError):
        return None


def check_files(folder: Path, document: Mapping[str, Any], *, checksums: bool = True) -> Path:
    """The folder of the files that a manifest lists, after looking at their sizes and contents.

    Raises:
        ValueError: a file is missing, shorter or longer than it was, or, unless ``checksums`` is False, changed.
    """
    files = folder / Path(str(document["folder"])).name
    for name, expected in document["files"].items():
        path = files / Path(name).name
        size = path.stat().st_size if path.is_file() else None
        if size != expected["bytes"]:
            given = "is missing" if size is None else f"has {size} bytes instead of {expected['bytes']}"
            raise InvalidValue(f"{path} {given}; the folder is incomplete: copy it or make it again.")
        if checksums and checksum(path) != expected["sha256"]:
            raise InvalidValue(
                f"{path} does not have the checksum that was recorded: it was changed or damaged; copy it or make it "
                "again."
            )
    return files


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Have the system write it to the disk before what is written later."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
