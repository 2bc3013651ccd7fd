"""An index as the page sees it: items by row, columns to filter and colour by, neighbours, a map. No web in here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from contrastive.errors import InvalidValue
from contrastive.retrieval.explorer.pictures import is_whole_png
from contrastive.retrieval.index import Index

Array = NDArray[Any]

MAP_POINTS = 5000  # more cannot be told apart on a screen, and UMAP would take minutes
MOST_CHOICES = 50  # values of a column that are offered one by one
MOST_CLUSTERS = 30
LONGEST_TEXT = 500  # of a cell on the page; downloads hold all of it
LARGEST_THUMBNAIL = 1 << 20
THUMBNAIL = "thumbnail"
EXACT = 2**53  # integers beyond are not exact in JavaScript


@dataclass(frozen=True)
class Column:
    """A column of scalars.

    Attributes:
        name: of the column.
        kind: how to filter by it: ``choice`` among few values, ``range`` of numbers, ``text`` to match, or ``none``.
        values: the choices, as they stand in the table; those of other kinds are not listed.
        low, high: the range.
    """

    name: str
    kind: Literal["choice", "range", "text", "none"]
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0

    def describe(self) -> dict[str, Any]:
        """What the page needs to know."""
        found: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.kind == "choice":
            found["values"] = [plain(value) for value in self.values]
        if self.kind == "range":
            found |= {"low": self.low, "high": self.high}
        return found

    def condition(self, wanted: Any) -> Any:
        """The condition for ``Index.search`` that a page asks for.

        Args:
            wanted: a value, a list of values, or ``{"low": number or None, "high": number or None}``.

        Raises:
            ValueError: this column cannot be filtered by that.
        """
        if isinstance(wanted, Mapping):
            if self.kind != "range":
                raise InvalidValue(f"column {self.name!r} holds no range of numbers; filter it by a value")
            return slice(wanted["low"], wanted["high"])
        values = wanted if isinstance(wanted, list) else [wanted]
        if self.kind == "choice":
            known = {_key(plain(value)): value for value in self.values}
            found = [known.get(_key(value)) for value in values]
            if None in found:
                missing = values[found.index(None)]
                raise InvalidValue(
                    f"column {self.name!r} holds no {missing!r}; choose one of its {len(known)} values"
                )
            return found if isinstance(wanted, list) else found[0]
        if self.kind == "text" and all(isinstance(value, str) for value in values):
            return values
        raise InvalidValue(
            f"column {self.name!r} cannot be filtered by {wanted!r}: "
            + {"range": "give low and high", "text": "give a text", "none": "its type is not supported"}[
                self.kind
            ]
        )


@dataclass(frozen=True)
class Map:
    """A sample of the items as points of the plane.

    Attributes:
        rows: ``(n,)`` rising rows of the index.
        points: ``(n, 2)`` in [0, 1].
        method: ``"UMAP"`` or ``"PCA"``.
    """

    rows: Array
    points: Array
    method: str


class Catalogue:
    """A loaded index with its tables, whose items are addressed by their row or by their id as a string.

    Args:
        index: must hold a vector. It is not changed.
        name: what the page calls it.

    Raises:
        ValueError: the index is empty.
    """

    def __init__(self, index: Index, name: str) -> None:
        if not len(index):
            raise InvalidValue(f"explore: the index {name!r} is empty; add vectors to it first")
        self.index, self.name = index, name
        self.ids: Array = index.ids
        self._order = np.argsort(self.ids, kind="stable")
        self._sorted = self.ids[self._order]
        table = index.metadata
        columns = {} if table is None else dict(zip(table.column_names, table.columns, strict=True))
        pictures = columns.get(THUMBNAIL)
        self._thumbnails = pictures if pictures is not None and _is_binary(pictures.type) else None
        scalar = {name: content for name, content in columns.items() if _is_scalar(content.type)}
        self.columns = [_column(name, _decoded(content)) for name, content in scalar.items()]
        self.table = pa.table({name: _readable(content) for name, content in scalar.items()})
        self._mapping, self._searching = Lock(), Lock()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_thumbnails(self) -> bool:
        """Whether there is a column of them."""
        return self._thumbnails is not None

    # ------------------------------------------------------------------ items

    def find(self, text: str) -> int | None:
        """The row of an id that is given as a string; None if no item has it."""
        wanted: Any = text
        if self.ids.dtype != object:
            digits = text.removeprefix("-")
            if not (digits.isascii() and digits.isdigit() and len(digits) <= 19) or abs(int(text)) >= 2**63:
                return None
            wanted = int(text)
        place = int(np.searchsorted(self._sorted, wanted))
        found = place < len(self) and self._sorted[place] == wanted
        return int(self._order[place]) if found else None

    def item(self, row: int) -> dict[str, Any]:
        """What the page shows of an item: id, row, values of the columns, whether there is a thumbnail."""
        return {
            "id": str(self.ids[row]),
            "row": row,
            "thumbnail": self._thumbnails is not None and self._thumbnails[row].is_valid,
            "values": {name: _short(value) for name, value in self.values([row])[0].items()},
        }

    def values(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The scalars of some items, whole, as JSON can hold them."""
        if not self.columns:
            return [{} for _ in rows]
        found = self.table.take(pa.array(rows, pa.int64())).to_pylist()
        return [{name: plain(value) for name, value in values.items()} for values in found]

    def thumbnail(self, row: int) -> bytes | None:
        """The PNG of an item; None if there is none, or if it is something else or too large for one."""
        if self._thumbnails is None or not 0 <= row < len(self):
            return None
        content = self._thumbnails[row].as_py()
        if content is None or len(content) > LARGEST_THUMBNAIL or not is_whole_png(content):
            return None
        return bytes(content)

    # ------------------------------------------------------------------ neighbours

    def vector(self, row: int) -> Array:
        """The vector of an item, ``(D,)``."""
        found: Array = self.index.reconstruct(self.ids[[row]])[0]
        return found

    def neighbours(
        self, vector: Array, k: int, filter: Mapping[str, Any], itself: int | None = None
    ) -> list[tuple[int, float]]:
        """Rows and scores of the ``k`` items closest to ``vector (D,)``, best first, the row ``itself`` left out.

        Args:
            vector: ``(D,)`` finite.
            k: how many.
            filter: column -> what :meth:`Column.condition` takes.
            itself: a row to leave out.

        Raises:
            ValueError: the vector has another width, or the filter does not fit the columns.
        """
        if len(vector) != self.index.dim:
            raise InvalidValue(
                f"the vector has {len(vector)} values; this index holds vectors of {self.index.dim}"
            )
        columns = {column.name: column for column in self.columns}
        for name in filter:
            if name not in columns:
                raise InvalidValue(
                    f"there is no column {name!r} in {self.name!r}; there are {sorted(columns) or 'none'}"
                )
        conditions = {name: columns[name].condition(wanted) for name, wanted in filter.items()}
        wanted = min(k + (itself is not None), len(self))
        with self._searching:  # some kinds of index keep state while they search
            scores, ids = self.index.search(
                vector[None].astype(np.float32), wanted, filter=conditions or None
            )
        filled = np.isfinite(scores[0])
        places = np.searchsorted(self._sorted, ids[0][filled])
        pairs = zip(self._order[places].tolist(), scores[0][filled].tolist(), strict=True)
        return [(row, score) for row, score in pairs if row != itself][:k]

    # ------------------------------------------------------------------ map

    def map(self) -> Map:
        """All items, or a sample of :data:`MAP_POINTS`, in the plane; computed when first asked for, in minutes."""
        with self._mapping:
            return self._map

    @cached_property
    def _map(self) -> Map:
        from contrastive.evaluation.plots import project

        rows = np.arange(len(self))
        if len(rows) > MAP_POINTS:
            rows = np.sort(np.random.default_rng(0).choice(len(self), MAP_POINTS, replace=False))
        points, method = project(self.index.reconstruct(self.ids[rows]))
        extent = float(np.ptp(points, axis=0).max()) or 1.0
        centre = (points.min(axis=0) + points.max(axis=0)) / 2
        return Map(rows, (points - centre) / extent + 0.5, method)

    def colours(self) -> dict[str, list[int]]:
        """For every column of choices: the number of each point's value, -1 where it has none."""
        rows = pa.array(self.map().rows)
        found = {}
        for column in self.columns:
            if column.kind == "choice":
                numbers = {value: number for number, value in enumerate(column.values)}
                values = self.table.column(column.name).take(rows).to_pylist()
                found[column.name] = [numbers.get(value, -1) for value in values]
        return found

    def clusters(self, k: int) -> list[int]:
        """The k-means cluster of each point of the map, largest first; there may be fewer than ``k``.

        Raises:
            ValueError: see :func:`check_clusters`.
        """
        check_clusters(k)
        return _cluster(self.index.reconstruct(self.ids[self.map().rows]), k)


def check_clusters(k: int) -> None:
    """Refuse a number of clusters that is not between 2 and :data:`MOST_CLUSTERS`.

    Raises:
        ValueError: it is not.
    """
    if not 2 <= k <= MOST_CLUSTERS:
        raise InvalidValue(f"{k} clusters were asked for; 2 to {MOST_CLUSTERS} are possible")


def _cluster(vectors: Array, k: int) -> list[int]:
    from sklearn.cluster import KMeans

    distinct = len(np.unique(vectors, axis=0))
    if distinct == 1:
        return [0] * len(vectors)
    labels = KMeans(min(k, distinct), n_init=2, random_state=0).fit_predict(vectors)
    order = np.argsort(-np.bincount(labels), kind="stable")
    numbers: list[int] = np.argsort(order)[labels].tolist()
    return numbers


def plain(value: Any) -> Any:
    """A scalar as JSON and JavaScript hold it: large integers, dates and the like as text, NaN as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < EXACT else str(value)
    return value if value is None or isinstance(value, bool | str) else str(value)


def _key(value: Any) -> tuple[bool, bool, Any]:
    """What makes JSON values the same: 1 and 1.0 are, 1 and true are not."""
    return isinstance(value, bool), isinstance(value, str), value


def _short(value: Any) -> Any:
    return value[: LONGEST_TEXT - 1] + "…" if isinstance(value, str) and len(value) > LONGEST_TEXT else value


def _is_binary(type: Any) -> bool:
    return bool(pa.types.is_binary(type) or pa.types.is_large_binary(type))


def _is_text(type: Any) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type))


def _is_scalar(type: Any) -> bool:
    if pa.types.is_dictionary(type):
        return _is_scalar(type.value_type)
    simple = (
        pa.types.is_boolean(type) or pa.types.is_integer(type) or pa.types.is_floating(type) or _is_text(type)
    )
    return bool(simple or pa.types.is_temporal(type) or pa.types.is_decimal(type))


def _decoded(content: Any) -> Any:
    """A column without dictionary encoding."""
    return content.cast(content.type.value_type) if pa.types.is_dictionary(content.type) else content


def _readable(content: Any) -> Any:
    """A column of Python's own scalars: dates and decimals become text, which keeps all of their digits."""
    content = _decoded(content)
    unusual = pa.types.is_temporal(content.type) or pa.types.is_decimal(content.type)
    return content.cast(pa.string()) if unusual else content


def _column(name: str, content: Any) -> Column:
    type = content.type
    number = pa.types.is_integer(type) or pa.types.is_floating(type)
    if not (number or pa.types.is_boolean(type) or _is_text(type)):
        return Column(name, "none")
    distinct = content.unique().drop_null()
    if pa.types.is_floating(type):
        distinct = distinct.filter(pc.is_finite(distinct))
    if len(distinct) <= MOST_CHOICES:
        return Column(name, "choice", tuple(sorted(distinct.to_pylist())))
    if number:
        low, high = pc.min_max(distinct).as_py().values()
        return Column(name, "range", low=float(low), high=float(high))
    return Column(name, "text")
