"""Interaction histories: reading, checking, filtering and splitting them.

Users and items have ids of the caller's own, integers or strings. Inside, items are codes ``1..num_items`` in
ascending order of the ids, 0 is padding, and users are rows ``0..num_users-1`` in ascending order of theirs. A
history is a run of codes, oldest first; all histories stand in one array.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contrastive.checks import check_choice, check_whole
from contrastive.errors import InvalidType, InvalidValue
from recsys.files import (
    ItemSource,
    Log,
    attribute_pairs,
    frame_log,
    item_facts,
    read_log,
    write_atomically,
)
from recsys.order import ORDERS, Order, equal_before, sorted_rows
from recsys.synthetic import synthetic_histories

Array: TypeAlias = NDArray[Any]
Format: TypeAlias = Literal["auto", "seq", "words", "pairs", "inter", "csv", "parquet"]


@dataclass(frozen=True, eq=False)
class Sequences:
    """Rows of different lengths in one array.

    Args:
        items: ``(N,)`` int64, the rows one after another.
        offsets: ``(R + 1,)`` int64, row ``r`` is ``items[offsets[r]:offsets[r + 1]]``; from 0 to N.

    Raises:
        ValueError: the offsets do not divide the items into rows.
    """

    items: Array
    offsets: Array

    def __post_init__(self) -> None:
        for name in ("items", "offsets"):
            try:
                array = np.asarray(getattr(self, name))
            except (ValueError, TypeError):  # rows of different lengths, a tensor without data
                raise InvalidValue(f"Sequences: {name} is no array; give integers, 1-d.") from None
            if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
                raise InvalidValue(
                    f"Sequences: {name} has the shape {array.shape} and type {array.dtype}; give integers, 1-d."
                )
            object.__setattr__(self, name, array.astype(np.int64, copy=False))
        ends = self.offsets
        if not len(ends) or ends[0] != 0 or ends[-1] != len(self.items) or (np.diff(ends) < 0).any():
            raise InvalidValue(
                f"Sequences: offsets (first values {ends[:3].tolist()}, last {ends[-1:].tolist()}) do not divide "
                f"{len(self.items)} items into rows; they must rise from 0 to {len(self.items)}."
            )

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence[int] | Array]) -> "Sequences":
        """Join rows that are lists or arrays of integers."""
        arrays = [np.asarray(row, dtype=np.int64) for row in rows]
        offsets = np.concatenate([[0], np.cumsum([len(a) for a in arrays], dtype=np.int64)]).astype(np.int64)
        return cls(np.concatenate(arrays) if arrays else np.empty(0, np.int64), offsets)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Array:
        """``(R,)`` int64."""
        return np.diff(self.offsets)

    def __getitem__(self, row: int) -> Array:
        """One row, a view of the items."""
        row = range(len(self))[row]  # negative rows from the end, IndexError out of range
        return self.items[self.offsets[row] : self.offsets[row + 1]]

    def windows(self, rows: Array, starts: Array, ends: Array) -> "Sequences":
        """Parts of rows: window ``w`` is ``self[rows[w]][starts[w]:ends[w]]``.

        Args:
            rows: ``(W,)`` row numbers, from 0; a row may come any number of times.
            starts: ``(W,)`` or one number, at least 0.
            ends: ``(W,)`` or one number, at least the start and at most the row's length.

        Raises:
            IndexError: a window reaches out of its row.
        """
        rows = np.asarray(rows, dtype=np.int64)
        starts, ends = (np.broadcast_to(np.asarray(a, dtype=np.int64), rows.shape) for a in (starts, ends))
        if ((rows < 0) | (rows >= len(self))).any():
            raise IndexError(
                f"Sequences: there are {len(self)} rows; asked for rows {rows.min()}..{rows.max()}."
            )
        bad = (starts < 0) | (ends < starts) | (ends > self.lengths[rows])
        if bad.any():
            w = int(bad.argmax())
            raise IndexError(
                f"Sequences: window {w} is items {starts[w]} to {ends[w]} of row {rows[w]}, which has "
                f"{self.lengths[rows[w]]}."
            )
        lengths = ends - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        places = np.repeat(self.offsets[rows] + starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Sequences(self.items[places], offsets)

    def take(self, rows: Array) -> "Sequences":
        """These rows, in this order."""
        rows = np.arange(len(self))[rows]
        return self.windows(rows, np.zeros_like(rows), self.lengths[rows])

    def last(self, n: int) -> "Sequences":
        """The last ``n`` items of each row; shorter rows whole."""
        return self.windows(np.arange(len(self)), np.maximum(self.lengths - n, 0), self.lengths)

    def drop_last(self, n: int) -> "Sequences":
        """Each row without its last ``n`` items; empty if it has no more."""
        return self.windows(
            np.arange(len(self)), np.zeros_like(self.lengths), np.maximum(self.lengths - n, 0)
        )

    def padded(self, length: int | None = None) -> tuple[Array, Array]:
        """A matrix with zeros to the right of short rows.

        Args:
            length: keep the last so many items of each row; None keeps all.

        Returns:
            ``(R, T)`` int64 with T the length of the longest row kept, at least 1, and the lengths ``(R,)``.

        Raises:
            ValueError: ``length`` below 1.
        """
        if length is not None and length < 1:
            raise InvalidValue(f"Sequences.padded(length={length}): give at least 1.")
        kept = self if length is None else self.last(length)
        lengths = kept.lengths
        matrix = np.zeros((len(kept), max(int(lengths.max(initial=0)), 1)), np.int64)
        matrix[np.arange(matrix.shape[1]) < lengths[:, None]] = kept.items
        return matrix, lengths


@dataclass(frozen=True, eq=False)
class Cases:
    """Next-item questions: given the history, which item comes next?

    Args:
        histories: row per case.
        targets: ``(C,)`` int64, the item that came next.
        users: ``(C,)`` int64, row of the user in the data.
    """

    histories: Sequences
    targets: Array
    users: Array

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Split:
    """Training histories, and validation and test cases, of one data set.

    Args:
        data: what was split.
        train: row per user, the training items alone; empty for a user who has none.
        valid: cases for choosing a model.
        test: cases for reporting; their histories contain the items that validation asked for.
    """

    data: "SequenceData"
    train: Sequences
    valid: Cases
    test: Cases

    def samples(self) -> tuple[Array, Array]:
        """Every training prefix with the item that follows it.

        Returns:
            Rows ``(S,)`` and ends ``(S,)``, at least 1, user by user and short prefixes first. Sample ``s`` has
            the input ``train[rows[s]][:ends[s]]`` and the target ``train[rows[s]][ends[s]]``.
        """
        counts = np.maximum(self.train.lengths - 1, 0)
        rows = np.repeat(np.arange(len(counts)), counts)
        ends = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
        return rows, ends

    def statistics(self) -> dict[str, int]:
        """Sizes, and the cases whose target does not occur in training.

        Returns:
            ``train_interactions``, ``train_users`` (with at least one training item), ``train_items`` (that occur in
            training), ``train_samples``, ``valid_cases``, ``test_cases``, ``valid_unseen`` and ``test_unseen``; and,
            where times are known, ``valid_tied`` and ``test_tied``, targets at the time of the item before.
        """
        seen = np.zeros(self.data.num_items + 1, bool)
        seen[self.train.items] = True
        return {
            "train_interactions": len(self.train.items),
            "train_users": int((self.train.lengths > 0).sum()),
            "train_items": int(seen.sum()),
            "train_samples": int(np.maximum(self.train.lengths - 1, 0).sum()),
            "valid_cases": len(self.valid),
            "test_cases": len(self.test),
            "valid_unseen": int((~seen[self.valid.targets]).sum()),
            "test_unseen": int((~seen[self.test.targets]).sum()),
            **{
                f"{name}_tied": int(tied.sum())
                for name in ("valid", "test")
                if (tied := self.tied(name)) is not None
            },
        }

    def tied(self, name: str = "test") -> Array | None:
        """Which cases have a target at the time of the item before, bool ``(C,)``; None where times are not known.

        Times do not tell that such an item was the last: the order of equal times does (``data.ties``), and with
        another order another item is asked for.

        Args:
            name: ``"valid"`` or ``"test"``.
        """
        cases: Cases = getattr(self, name)
        if self.data.tied is None:
            return None
        tied: Array = self.data.tied[self.data.sequences.offsets[cases.users] + cases.histories.lengths]
        return tied

    def tied_share(self, name: str = "test") -> float | None:
        """Share of the cases that :meth:`tied` tells; None where times are not known."""
        tied = self.tied(name)
        return None if tied is None else float(tied.mean()) if len(tied) else 0.0

    def check(self) -> list[str]:
        """Look for leaks from validation and test into training, and for targets that times do not determine.

        Each case must continue its user's history: its own history is how that begins, the target comes next. The
        user's training items must be how the case's history begins. In data where nobody has an item twice, no
        target may be among its user's training items.

        Returns:
            Sentences about what is no fault and yet decides results: the share of targets at the time of the item
            before, or that the order is the file's.

        Raises:
            ValueError: names the first user of whom this is not so.
        """
        if len(self.train) != self.data.num_users:
            raise InvalidValue(
                f"Split.check: training has {len(self.train)} rows, the data {self.data.num_users} users; give a row "
                "for each user."
            )
        repeats = self.data.statistics()["repeats"]
        for name, cases in (("valid", self.valid), ("test", self.test)):
            full = self.data.sequences.take(cases.users)
            train = self.train.take(cases.users)
            if not repeats:
                users = np.repeat(np.arange(len(cases)), train.lengths)
                self._refuse(name, cases, users[train.items == cases.targets[users]], "is a training item")
            lengths = cases.histories.lengths
            longer = full.lengths > lengths
            self._refuse(name, cases, np.flatnonzero(~longer), "is not in the user's history")
            places = full.offsets[:-1] + lengths
            self._refuse(
                name,
                cases,
                np.flatnonzero(full.items[places] != cases.targets),
                "does not follow its history",
            )
            self._refuse(
                name, cases, _not_a_start(cases.histories, full), "has another history than the user"
            )
            self._refuse(
                name, cases, _not_a_start(train, cases.histories), "has training items outside its history"
            )
        return self.remarks()

    def remarks(self) -> list[str]:
        """What decides results and is no fault, as sentences; see :meth:`check`."""
        shares = {name: self.tied_share(name) for name in ("valid", "test")}
        if None in shares.values():
            return ["No times are known: histories are in the order of the source."]
        return [
            f"{share:.1%} of the {name} targets have the time of the item before; {self.data.order}."
            for name, share in shares.items()
            if share
        ]

    def _refuse(self, name: str, cases: Cases, bad: Array, why: str) -> None:
        if len(bad):
            case = int(bad[0])
            user = self.data.user_ids.tolist()[cases.users[case]]
            item = self.data.item_ids[cases.targets[case]]
            raise InvalidValue(
                f"Split.check: the target {item!r} of {name} case {case}, user {user!r}, {why} ({len(bad)} such in "
                f"{len(cases)}). Evaluation would be wrong; split the data again."
            )


def _not_a_start(short: Sequences, full: Sequences) -> Array:
    """Rows of ``short`` that are not how the row of ``full`` begins."""
    longer = short.lengths > full.lengths
    begin = full.windows(
        np.arange(len(full)), np.zeros_like(full.lengths), np.minimum(short.lengths, full.lengths)
    )
    fits = short.windows(np.arange(len(short)), np.zeros_like(short.lengths), begin.lengths)
    rows = np.repeat(np.arange(len(short)), begin.lengths)
    longer[rows[begin.items != fits.items]] = True
    return np.flatnonzero(longer)


@dataclass(frozen=True, eq=False)
class SequenceData:
    """Histories of users over a catalogue of items, with what is known of the items.

    Make one with :meth:`read`, :meth:`from_dataframe` or :meth:`generate`.

    Args:
        sequences: row per user, item codes, oldest first.
        user_ids: ``(U,)`` int64 or objects of type str, ascending.
        item_ids: ``(num_items + 1,)`` objects, ascending; the first, of the padding, is None.
        times: ``(N,)`` int64 or float64, when each of ``sequences.items`` was consumed, in the unit of the source
            (dates and datetimes: seconds since 1970); None if unknown, then only the order is.
        texts: for each item code its text or None; the first, of the padding, is None.
        attributes: row per item code, places in ``attribute_ids``; row 0 is empty.
        attribute_ids: ``(A,)`` int64 or objects of type str, ascending.
        item_columns: what else is known of items, a row per item code; that of the padding is empty.
        columns: what the columns of ``"user"``, ``"item"`` and ``"time"`` were called in the source.
        ties: how interactions of one user at one time are ordered, see :meth:`read`.

    Raises:
        ValueError: the parts do not have the sizes above, a code is not in ``1..num_items``, or times fall within a
            row or are not finite.
    """

    sequences: Sequences
    user_ids: Array
    item_ids: Array
    times: Array | None = None
    texts: list[str | None] | None = None
    attributes: Sequences | None = None
    attribute_ids: Array | None = None
    item_columns: pa.Table | None = None
    columns: Mapping[str, str] | None = None
    ties: Order = "file"

    def __post_init__(self) -> None:
        check_choice("SequenceData", "ties", self.ties, tuple(ORDERS))
        items, size = self.sequences.items, len(self.item_ids)
        if len(items) and (items.min() < 1 or items.max() >= size):
            bad = int(((items < 1) | (items >= size)).argmax())
            raise InvalidValue(
                f"SequenceData: item code {items[bad]} at place {bad} is not in 1..{size - 1}."
            )
        for name, given, expected in (
            ("user_ids", len(self.user_ids), len(self.sequences)),
            ("times", self.times is not None and len(self.times), len(items)),
            ("texts", self.texts is not None and len(self.texts), size),
            ("attributes", self.attributes is not None and len(self.attributes), size),
            ("item_columns", self.item_columns is not None and self.item_columns.num_rows, size),
        ):
            if given is not False and given != expected:
                raise InvalidValue(f"SequenceData: {name} has {given} entries, expected {expected}.")
        if self.times is not None and len(items):
            if not np.isfinite(self.times).all():
                bad = int((~np.isfinite(self.times)).argmax())
                raise InvalidValue(f"SequenceData: time {self.times[bad]} at place {bad} is not finite.")
            falls = np.diff(self.times) < 0
            starts = self.sequences.offsets[1:-1] - 1  # from one row to the next time may fall
            falls[starts[(starts >= 0) & (starts < len(falls))]] = False
            if falls.any():
                bad = int(falls.argmax())
                row = int(np.searchsorted(self.sequences.offsets, bad, side="right")) - 1
                raise InvalidValue(
                    f"SequenceData: time falls from {self.times[bad]} to {self.times[bad + 1]} within the history of "
                    f"user {self.user_ids.tolist()[row]!r}; sort each history by time."
                )

    def __repr__(self) -> str:
        """Sizes instead of arrays, which would fill pages with ids."""
        return (
            f"SequenceData({self.num_users:,} users, {self.num_items:,} items, "
            f"{self.num_interactions:,} interactions)"
        )

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.sequences)

    @property
    def num_items(self) -> int:
        """Size of the catalogue, padding not counted."""
        return len(self.item_ids) - 1

    @property
    def num_interactions(self) -> int:
        """N."""
        return len(self.sequences.items)

    @cached_property
    def tied(self) -> Array | None:
        """``(N,)`` bool: which interactions have the time of the one before in their history; None without times."""
        return None if self.times is None else equal_before(self.times, self.sequences.offsets)

    @property
    def order(self) -> str:
        """What the order of histories is, in words."""
        if self.times is None:
            return "the order of the source, without times"
        column = (self.columns or {}).get("time")
        return f"{f'by {column}' if column else 'by time'}, {ORDERS[self.ties]}"

    @classmethod
    def read(
        cls,
        path: str | Path,
        format: Format = "auto",
        items: ItemSource | None = None,
        attributes: ItemSource | None = None,
        user: str | None = None,
        item: str | None = None,
        time: str | None = "auto",
        ties: Order = "file",
        tie_seed: int = 0,
    ) -> "SequenceData":
        """Read interactions from a file, plain or gzipped, in UTF-8 or UTF-16.

        Ids that are whole numbers as one writes them (no leading zero or plus sign) become integers if all of their
        kind are; otherwise they stay strings. Histories are sorted by time; files without times keep their order.

        Args:
            path: the file; of tables also a folder of files with one heading, as Spark writes it.
            format: how to read it. ``"auto"`` goes by the name.

                - ``"seq"`` (``.seq.tsv``): ``user<TAB>item item ...``, one line a user.
                - ``"words"`` (``.txt``): ``user item item ...`` with spaces, one line a user.
                - ``"pairs"`` (``.txt``): ``user item``, one line an interaction. ``"auto"`` takes a ``.txt`` file for
                  pairs if every line has two words, for the form above otherwise. Where no user has a second line the
                  two say the same.
                - ``"inter"`` (``.inter``): RecBole's table, tabs between columns, heading ``user_id:token`` and so on.
                - ``"csv"`` (``.csv``, ``.tsv``): table with a heading; commas, semicolons or tabs. Blanks around ids
                  are no part of them.
                - ``"parquet"`` (``.parquet``): table.
            items: texts and columns of the items, see :meth:`join`.
            attributes: attributes of the items, see :meth:`join`.
            user: column of the users. None looks for a usual name (``user_id``, ``userId``, ``customer_id``, ...), and
                refuses if several may be meant. Tables only, as the next two.
            item: column of the items; None looks for ``item_id``, ``movieId``, ``product_id``, ``asin``, ...
            time: column of the times: numbers, datetimes, or dates as ISO 8601 writes them. ``"auto"`` looks for
                ``timestamp``, ``date``, ``ts``, ``unix_time``, ..., and refuses if several may be meant or if another
                column may hold times; without any, histories are in the order of the file. None takes the order of
                the file whatever stands beside.
            ties: order of one user's interactions at one time: that of the ``"file"``; by ``"item"`` id; ``"shuffle"``,
                drawn with ``tie_seed``; or ``"drop"``, that of the file, but targets of validation and test that share
                their time with a neighbour are left out by :meth:`split`.
            tie_seed: of ``"shuffle"``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read so; names file and line.
        """
        log = read_log(Path(path), format, user, item, time)
        return cls._from_log(log, items, attributes, ties, tie_seed)

    @classmethod
    def from_dataframe(
        cls,
        frame: Any,
        user: str | None = None,
        item: str | None = None,
        time: str | None = "auto",
        items: ItemSource | None = None,
        attributes: ItemSource | None = None,
        ties: Order = "file",
        tie_seed: int = 0,
    ) -> "SequenceData":
        """Take interactions from a table in memory, one a row.

        Args:
            frame: a data frame of pandas or polars, an Arrow table, or a mapping from names to columns.
            user: column of the users, integers or strings; None looks for it, as :meth:`read` does.
            item: column of the items, integers or strings; None looks for it.
            time: column of the times, numbers or datetimes; ``"auto"`` looks for it, None takes the rows as in order.
            items: texts and columns of the items, see :meth:`join`.
            attributes: attributes of the items, see :meth:`join`.
            ties, tie_seed: order of one user's interactions at one time, see :meth:`read`.

        Raises:
            ValueError: there is no such column, it has another type, or something is missing; names the row.
        """
        return cls._from_log(frame_log(frame, user, item, time), items, attributes, ties, tie_seed)

    @classmethod
    def generate(
        cls,
        users: int = 600,
        items: int = 200,
        seed: int = 0,
        clusters: int = 8,
        mean_length: float = 12.0,
        follow: float = 0.6,
    ) -> "SequenceData":
        """Invent histories whose structure is known; see :func:`recsys.synthetic.synthetic_histories`.

        Items form clusters. A user moves in two of them: with probability ``follow`` to one of the few items that come
        after the present one in its cluster by the user's taste, of which there are two, otherwise to some item of
        either cluster. So popularity tells little, the last item much, and the whole history more, since it shows
        clusters and taste. Texts and attributes tell the cluster.

        Args:
            users: number of users, at least 1.
            items: size of the catalogue, at least 4 a cluster.
            seed: the same seed makes the same data.
            clusters: number of clusters, at least 2.
            mean_length: items in a history, on average, at least 5; the shortest has 5.
            follow: probability in [0, 1].

        Raises:
            ValueError: an argument is out of range.
        """
        made = synthetic_histories(users, items, seed, clusters, mean_length, follow)
        item_ids = np.array([None, *range(1, items + 1)], object)
        data = cls(Sequences(made.items, made.offsets), np.arange(1, users + 1), item_ids, made.times)
        return data.join(items=dict(enumerate(made.texts, 1)), attributes=dict(enumerate(made.attributes, 1)))

    @classmethod
    def _from_log(
        cls,
        log: Log,
        items: ItemSource | None,
        attributes: ItemSource | None,
        ties: Order,
        tie_seed: int,
    ) -> "SequenceData":
        check_choice("SequenceData", "ties", ties, tuple(ORDERS))
        if ties != "file" and log.times is None:
            raise InvalidValue(
                f"SequenceData: ties={ties!r} orders equal times, and these data have none; name their column with "
                "time=, or leave ties='file'."
            )
        order = sorted_rows(log, ties, check_whole("SequenceData", "tie_seed", tie_seed, 0))
        counts = np.bincount(log.users, minlength=len(log.user_ids))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        item_ids = np.empty(len(log.item_ids) + 1, object)
        item_ids[1:] = log.item_ids
        times = None if log.times is None else log.times[order]
        data = cls(
            Sequences(log.items[order] + 1, offsets),
            log.user_ids,
            item_ids,
            times,
            columns=log.columns or None,
            ties=ties,
        )
        return data.join(items, attributes)

    def join(self, items: ItemSource | None = None, attributes: ItemSource | None = None) -> "SequenceData":
        """Add texts, columns and attributes of items, found by the items' ids.

        Items that do not occur here are passed over; items here that are not found have no text, no attributes and
        empty columns.

        Args:
            items: ``{id: text}``; or a file ``.items.tsv`` (``item<TAB>title<TAB>year<TAB>genres``, no heading); or a
                file ``.item``, ``.csv``, ``.tsv``, ``.parquet`` or a table in memory with a column of the items'
                ids, called as in the interactions or by a usual name. A column ``text``, or ``title`` and perhaps
                ``year`` and ``genres``, gives texts; titles are put into a sentence: ``Title (year). Genres: a b c``.
                All columns but that of the ids and pictures are kept to filter by, see
                :meth:`recsys.Recommender.recommend`: of text files as whole numbers, numbers, truth values or texts.
            attributes: ``{id: [attribute, ...]}``; or a file ``.attr.tsv`` (``item<TAB>attribute attribute ...``, no
                heading); or a table, as above, with the columns ``item`` and ``attribute``, a row for each pair.
                Attributes are integers or strings.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read so, or tells of none of the items here.
        """
        data = self
        integers = self.num_items > 0 and not isinstance(self.item_ids[1], str)
        like = (self.columns or {}).get("item")
        if items is not None:
            found = item_facts(items, integers, like)
            codes = self._codes(found.ids)
            self._check_joined("items", items, int((codes > 0).sum()), found.ids)
            if found.texts is not None:
                texts: list[str | None] = [None, *(found.texts.get(i) for i in self.item_ids[1:])]
                data = replace(data, texts=texts)
            if found.columns is not None:
                row_of = np.full(self.num_items + 1, -1)
                row_of[codes] = np.arange(len(codes))
                row_of[0] = -1
                rows = pa.array(row_of, mask=row_of < 0)
                data = replace(data, item_columns=found.columns.take(rows))
        if attributes is not None:
            item_ids, values, names = attribute_pairs(attributes, integers, like)
            codes = self._codes(item_ids)
            self._check_joined("attributes", attributes, int((codes > 0).sum()), item_ids)
            kept = codes > 0
            order = np.argsort(codes[kept], kind="stable")
            counts = np.bincount(codes[kept], minlength=self.num_items + 1)
            rows = Sequences(values[kept][order], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
            data = replace(data, attributes=rows, attribute_ids=names)
        return data

    def _check_joined(self, name: str, source: ItemSource, count: int, ids: Sequence[Any]) -> None:
        if not count and self.num_items:
            what = source if isinstance(source, str | Path) else f"given as {type(source).__name__}"
            first = repr(ids[0]) if len(ids) else "none"
            raise InvalidValue(
                f"SequenceData: the {name} ({what}) tell of none of the {self.num_items} items; its first id is "
                f"{first}, the data's {self.item_ids[1]!r}. Give those of this data set, with ids of the same type."
            )

    @cached_property
    def _code_of(self) -> dict[Any, int]:
        return {item: code for code, item in enumerate(self.item_ids.tolist()) if code}

    def _codes(self, ids: Iterable[Any]) -> Array:
        find = self._code_of.get
        return np.array([find(i, 0) for i in ids], np.int64)

    def encode(self, ids: Iterable[Any]) -> Array:
        """Codes ``(n,)`` int64 of items by their ids; 0 where there is no such item.

        Raises:
            TypeError: ids are integers here and the first given is a string, or the other way round.
        """
        given = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        if given and self.num_items and isinstance(given[0], str) != isinstance(self.item_ids[1], str):
            raise InvalidType(
                f"SequenceData.encode: item ids here are like {self.item_ids[1]!r}, the first given is {given[0]!r}; "
                f"give {'strings' if isinstance(self.item_ids[1], str) else 'integers'}."
            )
        return self._codes(given)

    def decode(self, codes: Iterable[int] | Array) -> Array:
        """Ids of items, objects in the shape of ``codes``; None for code 0.

        Raises:
            IndexError: a code is not in ``0..num_items``.
        """
        places = np.asarray(codes, dtype=np.int64)
        if places.size and (places.min() < 0 or places.max() > self.num_items):
            raise IndexError(
                f"SequenceData.decode: codes are 0..{self.num_items}, given {places.min()}..{places.max()}."
            )
        return self.item_ids[places]

    def _rows(self) -> Array:
        """``(N,)`` row of each interaction."""
        return np.repeat(np.arange(self.num_users), self.sequences.lengths)

    def k_core(self, users: int = 5, items: int = 5) -> "SequenceData":
        """Leave out users with fewer than ``users`` interactions and items with fewer than ``items``, until none is.

        Codes are numbered anew; texts, attributes and columns come along.

        Raises:
            ValueError: nothing would be left, or a number is below 1.
        """
        if users < 1 or items < 1:
            raise InvalidValue(f"SequenceData.k_core(users={users}, items={items}): give at least 1.")
        rows, codes = self._rows(), self.sequences.items
        alive = np.ones(len(codes), bool)
        while True:
            of_user = np.bincount(rows[alive], minlength=self.num_users)
            of_item = np.bincount(codes[alive], minlength=self.num_items + 1)
            kept = alive & (of_user[rows] >= users) & (of_item[codes] >= items)
            if kept.sum() == alive.sum():
                break
            alive = kept
        if not alive.any():
            raise InvalidValue(
                f"SequenceData.k_core(users={users}, items={items}) leaves nothing of {self.num_interactions} "
                "interactions; give smaller numbers."
            )
        rest = np.flatnonzero(of_item[1:]) + 1  # of_user and of_item count what is left
        code = np.zeros(self.num_items + 1, np.int64)
        code[rest] = np.arange(1, len(rest) + 1)
        people = np.flatnonzero(of_user)
        offsets = np.concatenate([[0], np.cumsum(of_user[people])]).astype(np.int64)
        with_padding = np.concatenate([[0], rest])
        return replace(
            self,
            sequences=Sequences(code[codes[alive]], offsets),
            user_ids=self.user_ids[people],
            item_ids=self.item_ids[with_padding],
            times=None if self.times is None else self.times[alive],
            texts=None if self.texts is None else [self.texts[i] for i in with_padding],
            attributes=None if self.attributes is None else self.attributes.take(with_padding),
            item_columns=None
            if self.item_columns is None
            else self.item_columns.take(pa.array(with_padding)),
        )

    def split(
        self,
        kind: Literal["leave-last-out", "global-time"] = "leave-last-out",
        *,
        short: Literal["fewer", "train"] = "fewer",
        cuts: tuple[float, float] | None = None,
        fractions: tuple[float, float] = (0.8, 0.9),
    ) -> Split:
        """Divide into training histories and validation and test cases.

        ``"leave-last-out"``: of each user the last item is the target of test, the one before of validation, the
        others train. Training then holds interactions that are later than other users' targets.

        ``"global-time"``: what came before the first cut trains. A user's first interaction from the first cut on, if
        before the second, is the target of validation; the first from the second cut on is the target of test.
        Histories are all that came before the target. A user without history at the target makes no case. Items that
        do not occur in training stay in the catalogue; :meth:`Split.statistics` counts the targets among them.

        Args:
            kind: one of the above.
            short: leave-last-out only. Users of n items: ``"fewer"`` holds out ``min(2, n - 2)``, so that of three
                items two train and one tests, as RecBole and MCLRec do; ``"train"`` holds two out from three items
                on, and none of fewer, as SRA-CL does.
            cuts: global-time only, the two times, in the unit of ``times``.
            fractions: global-time without ``cuts``: the cuts lie where these fractions of all interactions are past.

        Raises:
            ValueError: an unknown kind, no times, or cuts that leave nothing to train or to test.
        """
        if kind == "global-time":
            return self._split_by_time(cuts, fractions)
        if kind != "leave-last-out" or short not in ("fewer", "train"):
            raise InvalidValue(
                f"SequenceData.split({kind!r}, short={short!r}): kinds are 'leave-last-out' and 'global-time', short "
                "is 'fewer' or 'train'."
            )
        if cuts is not None:
            raise InvalidValue(
                "SequenceData.split: cuts belong to kind='global-time'; give that, or no cuts."
            )
        n = self.sequences.lengths
        held = np.clip(n - 2, 0, 2) if short == "fewer" else np.where(n >= 3, 2, 0)
        zeros = np.zeros_like(n)
        train = self.sequences.windows(np.arange(len(n)), zeros, n - held)
        valid, test = np.flatnonzero(held == 2), np.flatnonzero(held >= 1)
        return Split(self, train, self._cases(valid, n[valid] - 2), self._cases(test, n[test] - 1))

    def _split_by_time(self, cuts: tuple[float, float] | None, fractions: tuple[float, float]) -> Split:
        if self.times is None:
            raise InvalidValue(
                "SequenceData.split('global-time') needs times, and these data have none; read them with a time "
                "column, or use kind='leave-last-out'."
            )
        if cuts is None:
            first, second = fractions
            if not 0 < first < second < 1:
                raise InvalidValue(
                    f"SequenceData.split: fractions are {fractions}; give two, rising, between 0 and 1."
                )
            ordered = np.sort(self.times)
            cuts = (ordered[int(first * len(ordered))], ordered[int(second * len(ordered))])
        first, second = cuts
        rows = self._rows()
        before_first = np.bincount(rows[self.times < first], minlength=self.num_users)
        before_second = np.bincount(rows[self.times < second], minlength=self.num_users)
        valid = np.flatnonzero((before_first > 0) & (before_second > before_first))
        test = np.flatnonzero((before_second > 0) & (self.sequences.lengths > before_second))
        if not first < second or not len(valid) or not len(test):
            raise InvalidValue(
                f"SequenceData.split: the cuts {first} and {second} give {int(before_first.sum())} training "
                f"interactions, {len(valid)} validation and {len(test)} test cases; give two rising times with "
                f"some of each. Times run from {self.times.min()} to {self.times.max()}."
            )
        train = self.sequences.windows(np.arange(self.num_users), np.zeros_like(before_first), before_first)
        return Split(
            self, train, self._cases(valid, before_first[valid]), self._cases(test, before_second[test])
        )

    def _cases(self, users: Array, places: Array) -> Cases:
        """The item at a place of each user's history as target, what stands before as history."""
        if self.ties == "drop":
            assert self.tied is not None
            at = self.sequences.offsets[users] + places
            # Either neighbour: one of the same time behind the target might as well be the target.
            last = at + 1 == self.sequences.offsets[users + 1]
            behind = ~last & self.tied[np.minimum(at + 1, len(self.tied) - 1)]
            kept = ~(self.tied[at] | behind)
            users, places = users[kept], places[kept]
        histories = self.sequences.windows(users, np.zeros_like(places), places)
        return Cases(histories, self.sequences.items[self.sequences.offsets[users] + places], users)

    def statistics(self) -> dict[str, float]:
        """Sizes of the data set.

        Returns:
            ``users``, ``items``, ``interactions``; ``mean_length``, ``min_length``, ``median_length``, ``p95_length``
            and ``max_length`` of the histories; ``density``, interactions over users times items; ``longer_than_20``
            and ``longer_than_50``, users with more items than that before the last one, so that an input of that
            length cuts their history in the test; ``repeats``, interactions with an item that the user had before;
            ``train_samples``, training prefixes if two items of every user are held out. Where times are known also
            ``tied``, interactions at the time of the one before in their history, and ``tied_last``, users of whose
            last one this is so: as many targets of a leave-last-out test depend on the order of equal times.
        """
        n = self.sequences.lengths
        pairs = np.unique(self._rows() * (self.num_items + 1) + self.sequences.items)
        quartiles = np.percentile(n, [0, 50, 95, 100]) if len(n) else np.zeros(4)
        return {
            "users": self.num_users,
            "items": self.num_items,
            "interactions": self.num_interactions,
            "mean_length": self.num_interactions / max(self.num_users, 1),
            "density": self.num_interactions / max(self.num_users * self.num_items, 1),
            "min_length": float(quartiles[0]),
            "median_length": float(quartiles[1]),
            "p95_length": float(quartiles[2]),
            "max_length": float(quartiles[3]),
            "longer_than_20": int((n - 1 > 20).sum()),
            "longer_than_50": int((n - 1 > 50).sum()),
            "repeats": self.num_interactions - len(pairs),
            "train_samples": int(np.maximum(n - 3, 0).sum()),
            **self._ties(),
        }

    def _ties(self) -> dict[str, float]:
        if self.tied is None:
            return {}
        ends = self.sequences.offsets[1:][self.sequences.lengths > 0]
        return {"tied": int(self.tied.sum()), "tied_last": int(self.tied[ends - 1].sum())}

    def check(self) -> list[str]:
        """Look for rows that stand twice, the same user, item and time, and for ties in time.

        What else can be wrong (missing ids, times that are not numbers) is refused on reading. Without
        times there is nothing to tell a row that stands twice from a repeated purchase.

        Returns:
            Sentences about what is no fault and yet decides results: the share of users whose last item shares its
            time with the one before, or that the order is the source's.

        Raises:
            ValueError: names the first such row.
        """
        if self.times is None:
            return ["No times are known: histories are in the order of the source."]
        if not self.num_interactions:
            return []
        keys = (self.sequences.items, self.times, self._rows())
        order = np.lexsort(keys)
        same = np.logical_and.reduce([np.diff(key[order]) == 0 for key in keys])
        if same.any():
            place = int(order[1:][same].min())
            user = self.user_ids.tolist()[self._rows()[place]]
            raise InvalidValue(
                f"SequenceData.check: user {user!r} has item {self.item_ids[self.sequences.items[place]]!r} at time "
                f"{self.times[place]} more than once ({int(same.sum())} such rows). Remove rows that stand twice."
            )
        share = self._ties()["tied_last"] / max(int((self.sequences.lengths > 0).sum()), 1)
        return [
            f"The last item of {share:.1%} of the users has the time of the one before; {self.order}."
        ] * (share > 0)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over histories, times and ids; texts and attributes are not in it."""
        digest = hashlib.sha256()
        for array in (self.sequences.items, self.sequences.offsets, self.times):
            if array is not None:
                digest.update(f"{array.dtype.str}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(json.dumps([self.user_ids.tolist(), self.item_ids.tolist()]).encode())
        return digest.hexdigest()

    def write(self, path: str | Path) -> None:
        """Write the histories as a ``.seq.tsv`` file (``user<TAB>item item ...``), gzipped if so named.

        Times are not in it. The file is replaced in one step; the same data give the same bytes.

        Raises:
            ValueError: the name ends otherwise, or a string id holds blanks, which separate ids in the file.
        """
        path = Path(path)
        if not path.name.endswith((".seq.tsv", ".seq.tsv.gz")):
            raise InvalidValue(
                f"SequenceData.write({str(path)!r}): the name must end in .seq.tsv or .seq.tsv.gz."
            )
        ids = [str(i) for i in self.item_ids]
        users = [str(i) for i in self.user_ids]
        bad = next((i for i in (*ids, *users) if i.split() != [i]), None)
        if bad is not None:
            raise InvalidValue(f"SequenceData.write: the id {bad!r} holds blanks; give ids without.")
        items = self.sequences.items.tolist()
        ends = self.sequences.offsets.tolist()
        lines = (
            f"{user}\t{' '.join(ids[i] for i in items[ends[row] : ends[row + 1]])}\n"
            for row, user in enumerate(users)
        )
        write_atomically(path, "".join(lines).encode())
