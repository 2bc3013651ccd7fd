"""Vectors as they come from callers, and where they are kept as they are."""

import math
import os
import tempfile
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from contrastive.arguments import usable
from contrastive.checks import shown
from contrastive.errors import InvalidType, InvalidValue

Array = NDArray[Any]
Vectors: TypeAlias = torch.Tensor | Array
Metric = Literal["cosine", "dot", "euclidean"]
METRICS = ("cosine", "dot", "euclidean")


def as_rows(vectors: Vectors, metric: Metric, dim: int | None, call: str) -> Array:
    """Vectors ``(N, D)`` of any floating type and device as float32 rows, of unit length for ``"cosine"``.

    Raises:
        TypeError: no floating-point values.
        ValueError: not ``(N, dim)``; a NaN or infinite value, or one beyond about 1e19; with ``"cosine"`` a row of
            zeros, which has no direction. Names the first bad row.
    """
    if not isinstance(metric, str) or metric not in METRICS:
        raise InvalidValue(f"{call}: metric is {shown(metric)}; choose one of {', '.join(METRICS)}.")
    if isinstance(vectors, torch.Tensor):
        if not usable(vectors):
            raise InvalidValue(
                f"{call}: vectors are {vectors.dtype}, {vectors.layout} on {vectors.device}; give dense ones."
            )
        vectors = vectors.detach().cpu()
        vectors = (vectors.float() if vectors.is_floating_point() else vectors).numpy()
    try:
        rows = np.asarray(vectors)
    except ValueError:
        raise InvalidValue(f"{call}: vectors are rows of different lengths; expected (N, D).") from None
    if rows.dtype.kind != "f":
        raise InvalidType(f"{call}: vectors have the type {rows.dtype}; give floating-point numbers.")
    if rows.ndim != 2 or rows.shape[1] != (rows.shape[1] if dim is None else dim) or rows.shape[1] == 0:
        width = "D" if dim is None else dim
        raise InvalidValue(
            f"{call}: vectors have the shape {rows.shape}; expected (N, {width})"
            + (
                "; give one vector as x[None]."
                if rows.ndim == 1
                else ", of the encoder that the index was made with."
            )
        )
    rows = np.ascontiguousarray(rows, np.float32)
    if not len(rows):
        return rows
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    low, high = float(length.min()), float(length.max())
    if not math.isfinite(high) or (metric == "cosine" and low == 0):  # a NaN is both
        _name_bad_row(length, call)
    return rows / length[:, None] if metric == "cosine" else rows


def _name_bad_row(length: Array, call: str) -> None:
    bad = np.flatnonzero(~np.isfinite(length))
    if len(bad):
        raise InvalidValue(
            f"{call}: {len(bad)} of {len(length)} vectors hold a NaN, an infinite or a huge value, the first in row "
            f"{bad[0]}; leave them out, or check the encoder."
        )
    bad = np.flatnonzero(length == 0)
    if len(bad):
        raise InvalidValue(
            f"{call}: {len(bad)} of {len(length)} vectors are zero, the first in row {bad[0]}; a cosine needs a "
            "direction: leave them out, or use another metric."
        )


class Store:
    """Rows ``(n, D)`` in float32: in memory that grows, or in a file that is mapped into memory.

    Args:
        dim: D.
        path: a file of rows to map; nothing is read before it is needed. Changes go to a copy in memory.
        spool: a folder in which to write rows to a file that goes with this object, instead of keeping them in memory.
    """

    def __init__(self, dim: int, path: Path | None = None, spool: Path | None = None) -> None:
        self.dim = dim
        self._rows: Array = np.empty((0, dim), np.float32)
        self._size = 0
        self._file: Any = None
        self.path = path  # of the file that holds all rows and nothing else
        if spool is not None:
            self._file = tempfile.NamedTemporaryFile(dir=spool, prefix=".vectors-")  # noqa: SIM115
            self.path = Path(self._file.name)
        elif path is not None:
            self._size = path.stat().st_size // (4 * dim)
            self._map()  # at once: the file may be replaced, what is mapped stays

    def __len__(self) -> int:
        """Number of rows."""
        return self._size

    def __getstate__(self) -> dict[str, Any]:
        return {
            "dim": self.dim,
            "_rows": np.array(self.rows),
            "_size": self._size,
            "_file": None,
            "path": None,
        }

    @property
    def rows(self) -> Array:
        """All rows ``(n, D)``."""
        if self._file is not None and len(self._rows) < self._size:
            self._file.flush()
            self._map()
        return self._rows[: self._size]

    def _map(self) -> None:
        if self._size and self.path is not None:
            self._rows = np.memmap(self.path, np.float32, "r", shape=(self._size, self.dim))

    def append(self, rows: Array) -> None:
        """Add rows ``(m, D)`` at the end."""
        end = self._size + len(rows)
        if self._file is not None:
            self._file.write(np.ascontiguousarray(rows).data)
        else:
            if (
                end > len(self._rows) or self.path is not None
            ):  # grows by half: adding one at a time copies little
                grown = np.empty((max(end, self._size * 3 // 2), self.dim), np.float32)
                grown[: self._size] = self.rows
                self._rows, self.path = grown, None
            self._rows[self._size : end] = rows
        self._size = end

    def truncate(self, size: int) -> None:
        """Forget the rows from ``size`` on."""
        if self._file is not None:
            self._file.truncate(4 * self.dim * size)
            self._file.seek(0, os.SEEK_END)
        self._size = size

    def keep(self, slots: Array) -> None:
        """Keep only these rows, in this order."""
        rows = self.rows[slots]
        self._rows, self._size, self.path, self._file = rows, len(rows), None, None

    def write(self, path: Path) -> None:
        """Write the rows to a file; where a finished one holds them, by a second name for it.

        A spool still grows, so it is copied.
        """
        if self.path is not None and self._file is None:
            try:
                os.link(self.path, path)
                return
            except OSError:  # another file system, or the file has been replaced
                pass
        with path.open("wb") as file:
            for start in range(0, self._size, 1 << 16):
                file.write(np.ascontiguousarray(self.rows[start : start + (1 << 16)]).data)
