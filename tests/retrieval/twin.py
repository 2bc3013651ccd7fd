"""A dictionary that answers as an index does, by comparing everything."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

Row = dict[str, Any]
TAGS = ["7", "", "a\nb", 'q"\\', "é"]
# Columns of an index as they are met in practice: with empty cells, NaN, both zeros, and texts that look like numbers.
CELLS: dict[str, st.SearchStrategy[Any]] = {
    "year": st.sampled_from([None, 1990, 1991, -5, 2**53 + 1]),
    "price": st.sampled_from([None, math.nan, 0.1, -0.0, 0.0, 2.5, -1e300]),
    "tag": st.sampled_from([None, *TAGS]),
    "new": st.sampled_from([None, True, False]),
}
ROWS = st.fixed_dictionaries(CELLS)
_NUMBERS = st.sampled_from(
    [None, math.nan, 1990, 1990.0, 1990.5, -5, 0, 0.1, -0.0, 2.5, 2**53, 1e300, math.inf]
)
_WANTED = {"year": _NUMBERS, "price": _NUMBERS, "tag": CELLS["tag"], "new": CELLS["new"]}
_ONE = st.sampled_from(sorted(_WANTED)).flatmap(
    lambda name: st.one_of(
        _WANTED[name],
        st.lists(_WANTED[name], max_size=3),
        st.builds(slice, _WANTED[name], _WANTED[name]),
    ).map(lambda wanted: {name: wanted})
)
FILTERS: st.SearchStrategy[dict[str, Any] | None] = st.one_of(
    st.none(), _ONE, st.builds(lambda one, other: one | other, _ONE, _ONE)
)
# What no column answers: refused everywhere, in the same words.
REFUSED: list[dict[Any, Any]] = [
    {"nosuch": 1},
    {"year": slice(1990, 2000, 2)},
    {"year": "1990"},
    {"year": [1990, "1991"]},
    {"year": True},
    {"year": slice("a", None)},
    {"price": "0.1"},
    {"price": {}},
    {"price": 10**400},
    {"tag": 7},
    {"tag": ["7", 7]},
    {"tag": slice(None, 7)},
    {"tag": "\ud800"},
    {"new": 1},
    {"new": "true"},
    {"year": [[1990]]},
    {5: 1},
]


def meets(cell: Any, wanted: Any) -> bool:
    """Whether a cell meets a condition; empty ones do not."""
    if cell is None or cell != cell:
        return False
    if isinstance(wanted, slice):
        above = wanted.start is None or cell >= wanted.start
        return bool(above and (wanted.stop is None or cell <= wanted.stop))
    if isinstance(wanted, list):
        return any(meets(cell, one) for one in wanted)
    return bool(cell == wanted)


class Twin:
    """Vectors and rows under their ids."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.vectors: dict[Any, np.ndarray] = {}
        self.rows: dict[Any, Row] = {}

    def put(self, ids: Iterable[Any], vectors: np.ndarray, rows: Iterable[Row] | None) -> None:
        """Add or replace; without rows those that are there stay."""
        for place, item in enumerate(ids):
            vector = vectors[place].astype(np.float64)
            self.vectors[item] = vector / np.linalg.norm(vector) if self.metric == "cosine" else vector
        if rows is not None:
            self.rows.update(zip(ids, rows, strict=True))

    def remove(self, ids: Iterable[Any]) -> None:
        for item in ids:
            del self.vectors[item], self.rows[item]

    def scores(self, query: np.ndarray, filter: Mapping[str, Any] | None) -> dict[Any, float]:
        """The score of each id that passes."""
        query = query.astype(np.float64)
        if self.metric == "cosine":
            query = query / np.linalg.norm(query)
        passing = [
            item
            for item, row in self.rows.items()
            if all(meets(row[name], wanted) for name, wanted in (filter or {}).items())
        ]
        if self.metric == "euclidean":
            return {item: -float(np.linalg.norm(self.vectors[item] - query)) for item in passing}
        return {item: float(self.vectors[item] @ query) for item in passing}


def as_columns(rows: list[Row]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in CELLS}
