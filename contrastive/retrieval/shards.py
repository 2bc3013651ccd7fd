"""Embeddings on disk: Parquet shards with the columns ``id``, ``vector`` and any others, and a manifest.

A folder belongs to one plan: which encoder, which items, how many a shard. Each shard is written under another name
and renamed, so a shard that is there is whole, and whoever is killed leaves the next run only the shards that are
missing. ``manifest.json`` is written when all are there.
"""

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contrastive.encoders.fingerprint import same_encoder
from contrastive.errors import FileInTheWay, FileMissing, InvalidValue
from contrastive.reading import read_mapping
from contrastive.retrieval.folder import (
    DIGEST,
    MANIFEST,
    Check,
    check_fields,
    checksum,
    digest,
    files_listed,
    names_only,
    read_manifest,
    text_or_none,
    whole,
    write_manifest,
    writing,
)
from contrastive.retrieval.ids import Array
from contrastive.retrieval.locks import alone, if_unused, in_use
from contrastive.retrieval.tables import damaged, open_table, write_table

KIND, VERSION, PLAN = "contrastive embeddings", 1, "plan.json"
OWN_COLUMNS = ("id", "vector")
Folder = str | os.PathLike[str]

_REMEDY = f"remove {MANIFEST} and the shard, and embed again: it goes on"
_FIELDS: dict[str, Check] = {
    "dim": whole(1),
    "columns": (names_only, "names of columns"),
    "fingerprint": (text_or_none, "a text or null"),
    "files": (
        lambda value: files_listed(value) and all(whole(0)[0](file.get("rows")) for file in value.values()),
        "files with rows, bytes and sha256",
    ),
}


def begin(folder: Path, plan: dict[str, Any]) -> None:
    """Start, or go on with, what a plan says.

    Args:
        folder: made if missing.
        plan: ``count``, ``shard_size``, ``fingerprint``, ``data`` and whatever else must be the same in every run.

    Raises:
        ValueError: the folder was begun with another plan; says what differs.
        FileExistsError: the folder holds something else.
    """
    if (folder / PLAN).is_file():  # also on a disk that cannot be written, when all is there already
        _begin(folder, plan)
        return
    with (
        writing(folder, "nothing was written"),
        alone(folder),
    ):  # another process may begin at the same moment
        _begin(folder, plan)


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    path = folder / PLAN
    if path.is_file():
        found = read_mapping(path, f"remove {folder} and embed again")
        different = [name for name in sorted({*found, *plan}) if found.get(name) != plan.get(name)]
        if same_encoder(
            found.get("fingerprint"), plan.get("fingerprint")
        ):  # one of the two by an earlier version
            different = [name for name in different if name != "fingerprint"]
        if different:
            name = different[0]
            raise InvalidValue(
                f"{folder} was begun with {name} {found.get(name)!r}, this run has {plan.get(name)!r}; give another "
                "folder, or remove this one."
            )
        return
    if folder.is_dir() and any(not name.startswith(".") for name in os.listdir(folder)):
        raise FileInTheWay(f"{folder} holds something that is no embeddings; give another folder.")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    temporary.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
    _replace(temporary, path)


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard stands."""
    return folder / f"part-{number:06d}.parquet"


def write_shard(folder: Path, number: int, ids: Array, vectors: Array, columns: pa.Table | None) -> None:
    """Write a shard of ids ``(n,)``, float32 vectors ``(n, D)`` and further columns."""
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    table = pa.table(
        {"id": pa.array(ids), "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])}
    )
    if columns is not None:
        for name in columns.column_names:
            table = table.append_column(name, columns.column(name))
    path = shard_path(folder, number)
    with writing(folder, "the shards that are written stay, and the same command goes on with the others"):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        with (
            temporary.open("xb") as file,
            in_use(temporary),
        ):  # finish() removes those of processes that were killed
            write_table(table, file)
            file.flush()
            _replace(temporary, path)


def finish(folder: Path, plan: dict[str, Any], count: int) -> bool:
    """Write the manifest if all shards are there; tells whether they are. Any process may try, at any time.

    Args:
        folder: of the embeddings.
        plan: what :func:`begin` was given.
        count: number of shards.
    """
    paths = [shard_path(folder, number) for number in range(count)]
    if not all(path.is_file() for path in paths):
        return False
    schemas = []
    for path in paths:
        with damaged(path, _REMEDY):
            schemas.append(pq.read_schema(path))
    if any(not schema.equals(schemas[0]) for schema in schemas):
        raise InvalidValue(
            f"the shards in {folder} have different columns; remove the folder and begin again."
        )
    files = {
        path.name: {
            "rows": pq.read_metadata(path).num_rows,
            "bytes": path.stat().st_size,
            "sha256": checksum(path),
        }
        for path in paths
    }
    document = {
        "kind": KIND,
        "version": VERSION,
        **plan,
        "dim": schemas[0].field("vector").type.list_size,
        "columns": [name for name in schemas[0].names if name not in OWN_COLUMNS],
        "files": files,
    }
    if _says(folder, document):  # another process finished, or there was nothing to do
        return True
    with writing(folder, "all shards are there, and the same command goes on"), alone(folder):
        temporary = folder / f".{MANIFEST}.{secrets.token_hex(8)}"
        write_manifest(temporary, document)
        _replace(temporary, folder / MANIFEST)
        for left in folder.glob(".part-*"):
            with if_unused(left) as free:
                if free:  # of a process that was killed
                    left.unlink(missing_ok=True)
    return True


def _says(folder: Path, document: dict[str, Any]) -> bool:
    """Whether there is a manifest that says just this."""
    try:
        found = read_manifest(folder, KIND, VERSION)
    except (FileNotFoundError, ValueError):
        return False
    return DIGEST in found and digest(found) == digest(document)


class Embeddings:
    """Finished embeddings in a folder, read a part at a time.

    Args:
        folder: written by :func:`contrastive.retrieval.embed`.
        check: compare the checksums of all shards at once. Otherwise sizes are, and the checksum of each shard when it
            is first read from.

    Raises:
        FileNotFoundError: the folder holds no finished embeddings.
        ValueError: a shard is missing or damaged.
    """

    def __init__(self, folder: Folder, *, check: bool = False) -> None:
        self.folder = Path(folder)
        if (self.folder / PLAN).is_file() and not (self.folder / MANIFEST).is_file():
            raise FileMissing(
                f"{folder} holds unfinished embeddings; run the command that writes them again, it goes on."
            )
        self.manifest = read_manifest(self.folder, KIND, VERSION)
        check_fields(self.manifest, self.folder / MANIFEST, _FIELDS)
        self.paths = [self.folder / name for name in self.manifest["files"]]
        self._compared: set[Path] = set()
        for path in self.paths:
            size = path.stat().st_size if path.is_file() else None
            if size != self.manifest["files"][path.name]["bytes"]:
                raise InvalidValue(
                    f"{path} {'is missing' if size is None else 'is damaged or was changed'}; {_REMEDY}."
                )
            if check:
                self._compare(path)

    def _compare(self, path: Path) -> None:
        """Compare the checksum of a shard, once."""
        if path not in self._compared:
            with damaged(path, _REMEDY):
                found = checksum(path)
            if found != self.manifest["files"][path.name]["sha256"]:
                raise InvalidValue(f"{path} is damaged or was changed; {_REMEDY}.")
            self._compared.add(path)

    def __len__(self) -> int:
        """Number of vectors."""
        return sum(file["rows"] for file in self.manifest["files"].values())

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self.manifest["dim"])

    def batches(
        self, size: int = 1 << 15, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[Array, Array, pa.Table | None]]:
        """Vectors ``(n, D)`` float32, ids ``(n,)`` and a table of the other columns (None without), in order.

        Args:
            size: rows at a time at most.
            columns: names of the other columns to read; all by default.

        Raises:
            ValueError: a column is not there.
        """
        names = self.manifest["columns"] if columns is None else list(columns)
        if unknown := set(names) - set(self.manifest["columns"]):
            raise InvalidValue(
                f"{self.folder} has no column {sorted(unknown)[0]!r}; there are: {self.manifest['columns']}."
            )
        for path in self.paths:
            self._compare(path)
            table = open_table(path)
            schema, rows = table.schema_arrow, self.manifest["files"][path.name]["rows"]
            missing = {"id", "vector", *names} - set(schema.names)
            if (
                missing
                or schema.field("vector").type.list_size != self.dim
                or table.metadata.num_rows != rows
            ):
                raise InvalidValue(f"{path} is not what {MANIFEST} says of it; {_REMEDY}.")
            with damaged(path, _REMEDY):
                for batch in table.iter_batches(size, columns=["id", "vector", *names]):
                    vectors = batch.column("vector").flatten().to_numpy().reshape(-1, self.dim)
                    ids = batch.column("id")
                    values = (
                        ids.to_numpy() if pa.types.is_integer(ids.type) else np.array(ids.to_pylist(), object)
                    )
                    yield vectors, values, pa.table(batch.select(names)) if names else None

    def sample(self, count: int, seed: int) -> Array:
        """``count`` vectors ``(count, D)`` drawn evenly from all shards; all of them if there are fewer."""
        generator, total = np.random.default_rng(seed), len(self)
        count = min(count, total)
        found = np.empty((count, self.dim), np.float32)
        seen = end = 0
        for vectors, _, _ in self.batches(columns=()):
            seen += len(vectors)
            start, end = end, count * seen // total
            found[start:end] = vectors[np.sort(generator.choice(len(vectors), end - start, replace=False))]
        return found


def _replace(temporary: Path, path: Path) -> None:
    """Rename a written file, once it is on the disk."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
