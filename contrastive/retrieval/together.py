"""Several saved indexes searched as one: the parts of a set that nobody wants to copy into one index."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from contrastive.checks import shown
from contrastive.errors import InvalidType, InvalidValue, UnknownKey
from contrastive.retrieval.ids import Array, Ids
from contrastive.retrieval.index import Index, check_alike
from contrastive.retrieval.metadata import Filter
from contrastive.retrieval.vectors import Metric, Vectors

Folder = str | os.PathLike[str]


class IndexSet:
    """Indexes without common ids, searched together; they stay as and where they are.

    The closest of all are the closest of each, put together. Of exact indexes results are those of the index that
    :meth:`Index.merge` would make of them, score by score; of equally close vectors that of the earlier index is first.

    Args:
        indexes: indexes, or folders of saved ones, which are mapped into memory.
        fingerprint: of the encoder that queries will come from, as for :meth:`Index.load`.
        check: compare checksums of the folders, which reads all files once.

    Raises:
        FileNotFoundError: a folder holds no index.
        ValueError: there are none; widths, metrics, encoders or kinds of ids differ; an id stands in two; or a folder
            is damaged.
    """

    def __init__(
        self, indexes: Sequence[Index | Folder], *, fingerprint: str | None = None, check: bool = True
    ) -> None:
        if not isinstance(indexes, list | tuple) or not all(
            isinstance(one, Index | str | os.PathLike) for one in indexes
        ):
            raise InvalidType(
                f"IndexSet: indexes is {shown(indexes)}; give a list of indexes or of their folders."
            )
        self.members = [
            one
            if isinstance(one, Index)
            else Index.load(one, mmap=True, fingerprint=fingerprint, check=check)
            for one in indexes
        ]
        check_alike(self.members, "IndexSet")
        self._filled = [member for member in self.members if len(member)]
        kinds = [member.manifest["id"] for member in self._filled]
        for kind in kinds:
            if kind != kinds[0]:
                raise InvalidValue(
                    f"IndexSet: ids are {kinds[0]}s in the first index and {kind}s in another."
                )
        self._refuse_common_ids()

    def _refuse_common_ids(self) -> None:
        if not self._filled:
            return
        ids = np.concatenate([member.ids for member in self._filled])
        if ids.dtype == object:
            different = len(set(ids.tolist()))
        else:
            ids.sort()
            different = 1 + int((ids[1:] != ids[:-1]).sum())
        if different < len(ids):
            ids = np.sort(ids)
            twice = ids[1:][ids[1:] == ids[:-1]]
            raise InvalidValue(
                f"IndexSet: {len(twice)} ids stand in more than one index, as {twice.tolist()[0]!r}; remove them from "
                "all but one, or give the vectors ids of their own."
            )

    # ------------------------------------------------------------------ what is in it

    def __len__(self) -> int:
        """Number of vectors."""
        return sum(map(len, self.members))

    def __contains__(self, item: int | str) -> bool:
        """Whether there is a vector of this id."""
        return any(item in member for member in self._filled)

    @property
    def ids(self) -> Array:
        """All ids ``(N,)``, index by index."""
        return np.concatenate([member.ids for member in self._filled or self.members])

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.members[0].dim

    @property
    def metric(self) -> Metric:
        """``"cosine"``, ``"dot"`` or ``"euclidean"``."""
        return self.members[0].metric

    @property
    def fingerprint(self) -> str | None:
        """Of the encoder that the vectors are from."""
        return self.members[0].fingerprint

    @property
    def exact(self) -> bool:
        """Whether every vector is compared, so that neighbours are right for certain."""
        return all(member.exact for member in self.members)

    @property
    def manifest(self) -> dict[str, Any]:
        """What describes the set, and under ``members`` each of its indexes."""
        members = [member.manifest for member in self.members]
        first = (self._filled or self.members)[0].manifest
        same = {name: first[name] for name in ("metric", "normalised", "dim", "id", "fingerprint")}
        columns = list(dict.fromkeys(name for member in members for name in member["columns"]))
        return same | {"count": len(self), "columns": columns, "members": members}

    def columns(self, ids: Ids) -> pa.Table | None:
        """The columns of these ids, a row each, empty where an index does not have one; None if there are no columns.

        Raises:
            KeyError: an id is not here.
            ValueError: a column has types in two indexes that have nothing in common.
        """
        tables = []
        for member, found, places in self._owners(ids, "columns"):
            table = member.columns(found)
            place = pa.table({"__place": places})
            tables.append(place if table is None else table.append_column("__place", place["__place"]))
        if not self.manifest["columns"] or not tables:
            return None
        try:
            joined = pa.concat_tables(tables, promote_options="permissive")
        except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
            raise InvalidValue(f"columns: the indexes have different types: {error}.") from error
        return joined.sort_by("__place").drop_columns(["__place"])

    def reconstruct(self, ids: Ids) -> Array:
        """Vectors ``(n, D)`` of these ids, as :meth:`Index.reconstruct` gives them.

        Raises:
            KeyError: an id is not here.
        """
        vectors = np.empty((len(ids), self.dim), np.float32)
        for member, found, places in self._owners(ids, "reconstruct"):
            vectors[places] = member.reconstruct(found)
        return vectors

    def _owners(self, ids: Ids, call: str) -> list[tuple[Index, Array, Array]]:
        """The members that hold some of these ids, with those that each holds and their places in ``ids``."""
        wanted = (self._filled or self.members)[0]._ids.check(ids, call, unique=False)
        missing, parts = np.ones(len(wanted), bool), []
        for member in self._filled:
            here = member.holds(wanted)
            missing &= ~here
            if here.any():
                parts.append((member, wanted[here], np.flatnonzero(here)))
        if missing.any():
            raise UnknownKey(
                f"{call}: {int(missing.sum())} of {len(wanted)} ids are in none of the indexes, as "
                f"{wanted[missing].tolist()[0]!r}."
            )
        return parts

    # ------------------------------------------------------------------ searching

    def search(self, queries: Vectors, k: int = 10, filter: Filter = None) -> tuple[Array, Array]:
        """The ``k`` closest vectors of each query in all indexes; arguments and results as :meth:`Index.search`.

        Raises:
            TypeError, ValueError: queries that are not valid, k below 1, or a filter that does not fit the columns.
        """
        members = self._filled or self.members[:1]
        scores, ids = (
            np.concatenate(parts, axis=1)
            for parts in zip(*(member.search(queries, k, filter) for member in members), strict=True)
        )
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)

    def range_search(
        self, queries: Vectors, score: float, filter: Filter = None
    ) -> tuple[list[Array], list[Array]]:
        """All vectors whose score is at least ``score``, closest first, as :meth:`Index.range_search` gives them."""
        found = [member.range_search(queries, score, filter) for member in self._filled or self.members[:1]]
        all_scores, all_ids = [], []
        for parts in zip(
            *(zip(*one, strict=True) for one in found), strict=True
        ):  # a query's, index by index
            scores, ids = (np.concatenate(part) for part in zip(*parts, strict=True))
            order = np.argsort(-scores, kind="stable")
            all_scores.append(scores[order])
            all_ids.append(ids[order])
        return all_scores, all_ids
