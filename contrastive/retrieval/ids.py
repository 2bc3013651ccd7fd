"""The callers' own ids, integers or strings, and the slots that their vectors stand in."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from contrastive.errors import InvalidType, InvalidValue

Array = NDArray[Any]
Ids: TypeAlias = Sequence[int] | Sequence[str] | Array

_FEW = 50_000  # recent integer ids that are kept beside the sorted ones until they are merged with them


class IdTable:
    """Which id stands in which slot.

    Slots count up from 0. One that was removed stays empty; :meth:`kept` makes a table without it.

    Integers are found by bisection in a sorted copy (16 bytes an id), strings in a dictionary. Where every id is the
    number of its slot, as where nobody gave any, there is nothing to look up.
    """

    def __init__(self, values: Array | None = None, alive: Array | None = None) -> None:
        self._fill(np.empty(0, np.int64) if values is None else values, alive)

    def _fill(self, values: Array, alive: Array | None) -> None:
        self._values, self._size = values, len(values)
        self._alive = np.ones(len(values), bool) if alive is None else alive
        self.num_alive = int(self._alive.sum())
        self._plain = not self.strings and np.array_equal(values, np.arange(len(values)))  # id = slot
        self._recent: dict[Any, int] | None = None  # id -> slot, for ids that are not in the sorted part
        self._sorted: tuple[Array, Array] = (np.empty(0, np.int64), np.empty(0, np.int64))

    def __len__(self) -> int:
        """Number of slots, empty ones included."""
        return self._size

    @property
    def strings(self) -> bool:
        """Whether ids are strings; integers otherwise, or while there are none."""
        return self._values.dtype == object

    @property
    def values(self) -> Array:
        """The id of each slot, ``int64`` or an object array of ``str``; of empty slots the one that was there."""
        return self._values[: self._size]

    @property
    def alive(self) -> Array:
        """Which slots hold an id, bool."""
        return self._alive[: self._size]

    def named(self, slots: Array) -> Array:
        """The ids in these slots of any shape, -1 or None for a slot of -1, which stands last in its row."""
        if self._plain:
            return slots
        if not self._size:
            return np.full(slots.shape, -1 if not self.strings else None)
        ids: Array = self.values[slots]
        if (slots[..., -1:] < 0).any():
            ids[slots < 0] = None if self.strings else -1
        return ids

    def check(self, ids: Ids, call: str, *, unique: bool = True) -> Array:
        """``ids`` as an array of this table's kind.

        Raises:
            TypeError: neither all integers nor all strings, or not of the kind that is here.
            ValueError: not one-dimensional, or, if they must be ``unique``, one stands twice.
        """
        found = as_ids(ids, call, unique=unique)
        if self._size and len(found) and (found.dtype == object) != self.strings:
            kinds = "strings" if self.strings else "integers"
            raise InvalidType(
                f"{call}: the ids here are {kinds}, the first given is {found.tolist()[0]!r}; give {kinds}."
            )
        return found

    def find(self, ids: Array) -> Array:
        """The slot of each id, -1 where it is not here."""
        if self._plain and self._size:
            slots = np.where((ids >= 0) & (ids < self._size), ids, -1)
            slots[~self._alive[slots]] = -1  # of -1 itself this looks at the last slot, and leaves -1
            return slots
        recent = self._index()
        slots = np.full(len(ids), -1, np.int64)
        keys, places = self._sorted
        if len(keys) and not self.strings:
            at = np.searchsorted(keys, ids)
            at[at == len(keys)] = 0
            hit = keys[at] == ids
            slots[hit] = places[at[hit]]
            slots[~self._alive[slots]] = -1
        if recent:
            slots = np.array(
                [recent.get(i, s) for i, s in zip(ids.tolist(), slots.tolist(), strict=True)], np.int64
            ).reshape(-1)
        return slots

    def reserve(self, ids: Array) -> Array:
        """The next slots, for ids that are not here yet; the slots are empty until :meth:`fill`."""
        if not self._size:
            self._values, self._alive = np.empty(0, ids.dtype), np.empty(0, bool)
        end = self._size + len(ids)
        if end > len(self._values):  # grows by half, so that adding one at a time copies little
            room = max(end, len(self._values) * 3 // 2)
            values, alive = np.empty(room, ids.dtype), np.zeros(room, bool)
            values[: self._size], alive[: self._size] = self.values, self.alive
            self._values, self._alive = values, alive
        slots = np.arange(self._size, end)
        self._values[self._size : end], self._alive[self._size : end] = ids, False
        self._plain = self._plain and np.array_equal(ids, slots)
        self._size = end
        return slots

    def fill(self, slots: Array) -> None:
        """Let the ids of reserved slots be found there."""
        recent = {} if self._plain else self._index()
        self._alive[slots] = True
        self.num_alive += len(slots)
        if self._plain:
            self._recent = None  # for when another id ends this
        elif self.strings or len(recent) + len(slots) <= _FEW:
            recent.update(zip(self._values[slots].tolist(), slots.tolist(), strict=True))
        else:
            self._recent = None  # sort all anew when next asked

    def truncate(self, size: int) -> None:
        """Give reserved slots from ``size`` on back."""
        if not size:
            self._fill(np.empty(0, np.int64), None)  # of no kind, as before the first ids
        self._size = size

    def remove(self, slots: Array) -> None:
        """Empty these slots."""
        recent = {} if self._plain else self._index()
        for i in self._values[slots].tolist() if recent else ():
            recent.pop(i, None)
        self._alive[slots] = False
        self.num_alive -= len(slots)

    def kept(self, slots: Array) -> "IdTable":
        """A table of these slots alone, in this order, which are its slots 0, 1, ..."""
        return IdTable(self._values[slots], self._alive[slots])

    def _index(self) -> dict[Any, int]:
        if self._recent is None:
            slots = np.flatnonzero(self.alive)
            values = self._values[slots]
            if self.strings:
                self._recent = dict(zip(values.tolist(), slots.tolist(), strict=True))
            else:
                order = np.argsort(values, kind="stable")
                self._sorted, self._recent = (values[order], slots[order]), {}
        return self._recent


def as_ids(ids: Ids, call: str, *, unique: bool = True) -> Array:
    """Integers as ``int64 (N,)``, or strings as an object array ``(N,)``.

    Raises:
        TypeError: neither all integers nor all strings.
        ValueError: not one-dimensional, or, if they must be ``unique``, one stands twice.
    """
    if isinstance(ids, list | tuple) and ids and all(isinstance(i, str) for i in ids):
        ids = np.array(ids, object)  # as texts of a fixed width, NumPy would cut zero bytes off their ends
    elif isinstance(ids, list | tuple) and any(isinstance(i, str | bool | np.bool_) for i in ids):
        raise InvalidType(
            f"{call}: ids are of several types, or truth values; give integers, or strings, for all."
        )
    try:
        found = np.asarray(ids)
    except (ValueError, TypeError):  # rows of different lengths, a tensor that is not dense
        raise InvalidType(
            f"{call}: ids are no row of integers or strings; give one id for each vector."
        ) from None
    if found.ndim != 1:
        raise InvalidValue(
            f"{call}: ids have the shape {found.shape}; give one id for each vector, shape (N,)."
        )
    if found.dtype.kind == "u" and len(found) and int(found.max()) > np.iinfo(np.int64).max:
        raise InvalidValue(f"{call}: an id is {int(found.max())}; give integers below 2^63, or strings.")
    if found.dtype.kind in "iu" or not len(found):
        found = found.astype(np.int64)
    elif found.dtype.kind == "U":
        found = found.astype(object)
    elif found.dtype != object or not all(isinstance(i, str) for i in found):
        raise InvalidType(
            f"{call}: ids have the type {found.dtype} (first {found.tolist()[0]!r}); give integers, or strings, "
            "for all vectors."
        )
    if found.dtype == object:
        _refuse_halves(found, call)
    if not unique:
        return found
    different, counts = np.unique(found, return_counts=True)
    if len(different) < len(found):
        twice = different[counts > 1]
        raise InvalidValue(
            f"{call}: {len(twice)} ids stand more than once, as {twice.tolist()[0]!r}; give each vector "
            "an id of its own."
        )
    return found


def _refuse_halves(ids: Array, call: str) -> None:
    """Refuse texts that no file can hold: with one half of a surrogate pair, as undecodable file names have."""
    try:
        "".join(ids).encode()
    except UnicodeEncodeError:
        for row, text in enumerate(ids.tolist()):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise InvalidValue(
                    f"{call}: the id {text!r} in row {row} is no valid text (it holds a lone surrogate) and could not "
                    "be saved; give another one."
                ) from None
