"""Embeddings on disk: Parquet shards with the columns ``id``, ``vector`` and any others, and a manifest.

A folder belongs to one plan: which encoder, which items, how many a shard. Each shard is written under another name
and renamed, so a shard that is there is whole, and whoever is killed leaves the next run only the shards that are
missing. ``manifest.json`` is written when all are there.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contrastive.encoders.fingerprint import same_encoder
from contrastive.errors import FileInTheWay, FileMissing, InvalidValue
from contrastive.retrieval.folder import MANIFEST, checksum, read_manifest
from contrastive.retrieval.ids import Array

KIND, VERSION, PLAN = "contrastive embeddings", 1, "plan.json"
Folder = str | os.PathLike[str]


def begin(folder: Path, plan: dict[str, Any]) -> None:
    """Start, or go on with, what a plan says.

    Args:
        folder: made if missing.
        plan: ``count``, ``shard_size``, ``fingerprint``, ``data`` and whatever else must be the same in every run.

    Raises:
        ValueError: the folder was begun with another plan; says what differs.
        FileExistsError: the folder holds something else.
    """
    path = folder / PLAN
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
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
    folder.mkdir(parents=True, exist_ok=True)
    _write_text(path, json.dumps(plan, indent=2))


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
    schemas = [pq.read_schema(path) for path in paths]
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
        "columns": [name for name in schemas[0].names if name not in ("id", "vector")],
        "files": files,
    }
    _write_text(folder / MANIFEST, json.dumps(document, indent=2))
    for left in folder.glob(".part-*"):  # of processes that were killed
        left.unlink(missing_ok=True)
    return True


class Embeddings:
    """Finished embeddings in a folder, read a part at a time.

    Args:
        folder: written by :func:`contrastive.retrieval.embed`.
        check: compare checksums, which reads all shards once; sizes are compared in any case.

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
        self.paths = [self.folder / Path(name).name for name in self.manifest["files"]]
        for path, expected in zip(self.paths, self.manifest["files"].values(), strict=True):
            size = path.stat().st_size if path.is_file() else None
            if size != expected["bytes"] or (check and checksum(path) != expected["sha256"]):
                given = "is missing" if size is None else "is damaged or was changed"
                raise InvalidValue(
                    f"{path} {given}; remove {MANIFEST} and the shard, and embed again: it goes on."
                )

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
            for batch in pq.ParquetFile(path).iter_batches(size, columns=["id", "vector", *names]):
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


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text + "\n", encoding="utf-8")
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
