"""Recommending with a trained encoder: histories in, items out, under the callers' own ids.

    recommender = Recommender.from_model(encoder, data)
    recommender.save("recommender")
    ids, scores, *_ = Recommender.load("recommender").recommend(["soap", "brush"], k=10)

A score is the inner product of the state after a history with an item's vector, so the best items are nearest
neighbours; they come from :class:`contrastive.retrieval.Index`, exactly unless another index is asked for.
"""

import copy
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contrastive import load_encoder, save_encoder
from contrastive.arguments import usable
from contrastive.checks import check_choice, check_flag, check_number, check_whole, shown
from contrastive.errors import FileMissing, InvalidType, InvalidValue, UnknownKey
from contrastive.reading import read_mapping
from contrastive.retrieval import Index
from contrastive.retrieval.folder import Check, checksum, read_folder, text_or_none, whole, write_folder
from contrastive.retrieval.metadata import RESERVED, Metadata
from contrastive.retrieval.tables import read_table, write_table
from contrastive.retrieval.threads import ReadersWriter, changes, reads
from recsys.data import SequenceData, Sequences
from recsys.encoders import GRU4Rec, SASRec, SequenceEncoder
from recsys.semantic import attribute_vectors

Array: TypeAlias = NDArray[Any]
Id: TypeAlias = int | str
Cold: TypeAlias = Literal["raise", "popular"]
Folder: TypeAlias = str | os.PathLike[str]

RECORD, KIND, VERSION = "recommender.json", "recommender", 1
HISTORIES = "histories.parquet"
_FIELDS: dict[str, Check] = {
    "max_length": whole(1),
    "data": (text_or_none, "a text or null"),
    "histories": (text_or_none, "a checksum or null"),
}
_BUILT_BY_NAME: dict[str, type[SequenceEncoder]] = {"SASRec": SASRec, "GRU4Rec": GRU4Rec}
_CHUNK = 256  # histories of similar length that are encoded, and searched for, at a time
_TUNED_BY = 500  # histories by which an approximate index is tuned
_SMALL = 100_000  # numbers, or scores, up to which one thread does best
_OWN_COLUMNS = ("item", "code", "title", "count", "attributes")


class Recommendation(NamedTuple):
    """The best items for one history, best first.

    Attributes:
        ids: at most ``k`` ids of the caller's; fewer only where no more items were allowed.
        scores: ``(len(ids),)`` float32, falling; counts of interactions if ``cold``.
        skipped: entries of the history that are no items of the recommender and were passed over.
        cold: whether nothing in the history was known, and these are the most popular items.
    """

    ids: list[Id]
    scores: Array
    skipped: int
    cold: bool


class Recommender:
    """A trained encoder with its items in an index. Make one with :meth:`from_model` or :meth:`load`.

    Any number of threads may recommend, look up and save beside each other; one that changes it (:meth:`add_items`,
    :meth:`tune`) waits until they have ended and works alone. What is done to :attr:`encoder` or :attr:`index` from
    outside is not guarded.

    Args:
        encoder: reads histories of codes; see :class:`~recsys.encoders.SequenceEncoder`.
        index: item vectors under the codes ``1..num_items``, with the columns ``item`` (the caller's id), ``code``,
            ``title``, ``count`` (of interactions), ``attributes``, and any others to filter by.
        max_length: last items of a history that are read, as many as in training.
        data_fingerprint: of the interactions that the encoder was trained on.
        histories: histories of known users, by user id.
    """

    def __init__(
        self,
        encoder: SequenceEncoder,
        index: Index,
        max_length: int,
        data_fingerprint: str | None = None,
        histories: tuple[list[Id], Sequences] | None = None,
    ) -> None:
        table = index.metadata
        if table is None or index.ids.tolist() != list(range(1, encoder.num_items + 1)):
            raise InvalidValue(
                f"Recommender: the encoder has {encoder.num_items} items, the index {len(index)}; give an index of all "
                "items under their codes, with columns."
            )
        self.encoder, self.index, self.max_length = encoder.eval(), index, max_length
        self.data_fingerprint = data_fingerprint
        self._lock = ReadersWriter()
        self._ids: list[Any] = [None, *table["item"].to_pylist()]
        self._codes: dict[Any, int] = {item: code for code, item in enumerate(self._ids) if code}
        self._counts = np.concatenate([[0], table["count"].to_numpy()])
        self._histories = histories
        self._user_rows = {} if histories is None else {user: row for row, user in enumerate(histories[0])}
        self._exact: Index | None = None

    # ------------------------------------------------------------------ making one

    @classmethod
    def from_model(
        cls,
        encoder: SequenceEncoder,
        data: SequenceData,
        *,
        max_length: int | None = None,
        factory: str = "Flat",
        columns: Mapping[str, Sequence[Any]] | None = None,
        histories: bool = False,
        seed: int = 0,
    ) -> "Recommender":
        """Put a copy of a trained encoder, and the items of the data that it was trained on, together.

        Args:
            encoder: on any device; the copy is on the CPU.
            data: whose codes the encoder knows; texts, attributes and counts are taken over.
            max_length: last items of a history that are read, as many as in training; the encoder's by default.
            factory: ``"Flat"`` is exact; ``"auto"`` or a factory string of FAISS, see
                :class:`contrastive.retrieval.Index`.
            columns: further columns to filter by, a value for each of ``data.item_ids[1:]``; those of
                ``data.item_columns`` are there in any case, but for ones named here. Of the latter, one called as a
                column of the recommender itself is put as ``items_<name>``.
            histories: keep the users' histories too, for :meth:`history`.
            seed: of the sample that an approximate index is trained on.

        Raises:
            ValueError: encoder and data have different numbers of items, ``max_length`` is out of range, or a column
                has another length or one of the recommender's own names.
        """
        longest = encoder.max_length if max_length is None else max_length
        if encoder.num_items != data.num_items or not 1 <= longest <= encoder.max_length:
            raise InvalidValue(
                f"Recommender.from_model: the encoder has {encoder.num_items} items and reads {encoder.max_length}, "
                f"the data have {data.num_items}, max_length is {max_length}; give the data that the encoder was "
                f"trained on, and a max_length of 1 to {encoder.max_length}."
            )
        copied = copy.deepcopy(encoder).cpu()
        count = data.num_items
        names = None if data.attribute_ids is None else data.attribute_ids.tolist()
        has = (
            [[] for _ in range(count)]
            if data.attributes is None
            else [
                [str(names[a] if names else a) for a in data.attributes[code].tolist()]
                for code in range(1, count + 1)
            ]
        )
        table = _item_table(
            data.item_ids[1:].tolist(),
            np.arange(1, count + 1),
            [None] * count if data.texts is None else data.texts[1:],
            np.bincount(data.sequences.items, minlength=count + 1)[1:],
            has,
            {**_known_columns(data), **(columns or {})},
            "Recommender.from_model",
        )
        with torch.no_grad():
            vectors = copied.item_vectors()[1:].detach().float()
        index = Index.build(
            vectors,
            np.arange(1, count + 1),
            metric="dot",
            factory=factory,
            metadata=table,
            keep_vectors=True,
            recall=None,
            seed=seed,
        )
        kept = (data.user_ids.tolist(), data.sequences) if histories else None
        made = cls(copied, index, longest, data.fingerprint, kept)
        if not index.exact:  # by states of the encoder, which lie elsewhere than items do
            users = np.random.default_rng(seed).permutation(len(data.sequences))[:_TUNED_BY]
            known = [data.sequences[int(user)].tolist() for user in users]
            index.tune(queries=made._encode([codes for codes in known if codes]))
        return made

    @classmethod
    def from_run(
        cls, run: Folder, *, factory: str = "Flat", histories: bool = True, trust: bool = False
    ) -> "Recommender":
        """Make the recommender of a training run, from its exported encoder and the data that its configuration names.

        Args:
            run: folder of the run, with ``config.yaml`` and ``encoder/``; the data must be where they were.
            factory, histories: see :meth:`from_model`.
            trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
                author you trust.

        Raises:
            FileNotFoundError: the run has no exported encoder, or its data are not there.
            ValueError: a file is damaged, or the configuration names no :class:`~recsys.RecommenderData`.
        """
        from contrastive.evaluation.run import build_data

        path = Path(run)
        module = build_data(path, trust=trust)
        if not isinstance(getattr(module, "data", None), SequenceData):
            raise InvalidValue(
                f"{path / 'config.yaml'} names no RecommenderData: this run trained no recommender."
            )
        encoder = cast(SequenceEncoder, load_encoder(path, _empty_encoder(path / "encoder")))
        return cls.from_model(
            encoder, module.data, max_length=module.max_length, factory=factory, histories=histories
        )

    # ------------------------------------------------------------------ what is in it

    @reads
    def __len__(self) -> int:
        """Number of items."""
        return len(self.index)

    @reads
    def __contains__(self, item: Id) -> bool:
        """Whether there is an item of this id."""
        return item in self._codes

    @property
    @reads
    def ids(self) -> list[Id]:
        """Ids of all items, in the order of their codes."""
        return self._ids[1:]

    @reads
    def titles(self, ids: Iterable[Id]) -> list[str | None]:
        """Texts of items.

        Raises:
            KeyError: there is no such item.
        """
        table = self.index.columns(np.array([self._code(item, "titles") for item in ids], np.int64))
        return [] if table is None else cast(list[str | None], table["title"].to_pylist())

    def parse(self, text: str) -> Id:
        """The id that a word on a command line means: an integer where ids here are integers.

        Raises:
            ValueError: it is none.
        """
        if isinstance(self._ids[1], str):
            return text
        try:
            return int(text)
        except ValueError:
            raise InvalidValue(
                f"recommend: ids here are integers like {self._ids[1]}, got {text!r}."
            ) from None

    @property
    def users(self) -> list[Id]:
        """Ids of the users whose histories were kept."""
        return list(self._user_rows)

    def history(self, user: Id) -> list[Id]:
        """The history of a known user, oldest item first.

        Raises:
            KeyError: there is no such user, or no histories were kept.
        """
        if self._histories is None or user not in self._user_rows:
            known = (
                "no histories were kept"
                if self._histories is None
                else f"{len(self._user_rows)} users are known"
            )
            raise UnknownKey(f"history: there is no user {user!r}; {known}.")
        return [self._ids[code] for code in self._histories[1][self._user_rows[user]].tolist()]

    def _code(self, item: Id, call: str) -> int:
        if item not in self._codes:
            raise UnknownKey(
                f"{call}: there is no item {item!r} among the {len(self)}; ids are like {self._ids[1]!r}."
            )
        return self._codes[item]

    # ------------------------------------------------------------------ recommending

    @reads
    def recommend(
        self,
        histories: Sequence[Any] | Array,
        k: int = 10,
        *,
        exclude_seen: bool = False,
        filter: Iterable[Id] | Mapping[str, Any] | None = None,
        cold: Cold = "raise",
    ) -> Any:
        """The items that come next, for one history or for many.

        With an exact index this is the full ranking of all items, cut at ``k``.

        Args:
            histories: ids of items, oldest first; or a list of such lists. Entries that are no items here are passed
                over and counted.
            k: number of items.
            exclude_seen: leave out all items of the history.
            filter: recommend only these ids; or only items whose columns meet conditions, see
                :meth:`contrastive.retrieval.Index.search`.
            cold: what to do with a history in which no item is known: ``"raise"``, or take the most ``"popular"`` ones
                (of equally popular ones in the order of :attr:`ids`).

        Returns:
            A :class:`Recommendation`, or a list of them for many histories.

        Raises:
            TypeError: histories that are no list.
            ValueError: k below 1, a filter that does not fit the columns, an unknown ``cold``, or, unless that is
                ``"popular"``, a history with nothing known in it.
        """
        k = check_whole("recommend", "k", k)
        check_choice("recommend", "cold", cold, ("raise", "popular"))
        exclude_seen = check_flag("recommend", "exclude_seen", exclude_seen)
        if filter is not None and not isinstance(
            filter, Mapping | list | tuple | set | np.ndarray | range | str
        ):
            raise InvalidType(
                f"recommend: filter is {shown(filter)}; give ids, or columns with what they must be."
            )
        if not _is_list(histories) or isinstance(filter, str):
            raise InvalidType(
                f"recommend: histories={str(histories)[:60]!r}, filter={filter!r}; give lists of ids, or for many "
                "histories a list of such lists."
            )
        single = not (len(histories) and _is_list(histories[0]))
        rows: list[Sequence[Any]] = [histories] if single else list(histories)  # type: ignore[list-item]
        find = self._codes.get
        try:
            known = [[code for item in row if (code := find(item)) is not None] for row in rows]
        except TypeError as error:
            raise InvalidType(
                f"recommend: an entry is neither an id nor a list of ids ({error}); give a list of ids, or a list of "
                "such lists."
            ) from None
        skipped = [len(row) - len(codes) for row, codes in zip(rows, known, strict=True)]
        allowed = filter if filter is None or isinstance(filter, Mapping) else {"item": list(filter)}
        # Histories of similar length together: little padding, and no more neighbours than the longest of them needs.
        order = sorted(range(len(rows)), key=lambda row: len(known[row]))
        empty = sum(not codes for codes in known)
        if empty and cold == "raise":
            first = min(order[:empty])
            raise InvalidValue(
                f"recommend: {empty} of {len(rows)} histories hold no known item, the first at {first}: "
                f"{list(rows[first])[:3]}; ids here are like {self._ids[1]!r}. Leave it out, or pass cold='popular'."
            )
        results: dict[int, Recommendation] = {}
        if empty:
            ids, scores = self._most_popular(k, allowed)
            results = {
                row: Recommendation(list(ids), scores.copy(), skipped[row], True) for row in order[:empty]
            }
        for start in range(empty, len(order), _CHUNK):
            chunk = order[start : start + _CHUNK]
            found = self._best([known[row] for row in chunk], k, exclude_seen, allowed)
            for row, (codes, scores) in zip(chunk, found, strict=True):
                ids = [self._ids[code] for code in codes.tolist()]
                results[row] = Recommendation(ids, scores, skipped[row], False)
        return results[0] if single else [results[row] for row in range(len(rows))]

    @changes
    def tune(self, histories: Sequence[Sequence[Id]], recall: float = 0.95, k: int = 10) -> dict[str, Any]:
        """Let an approximate index search with the least effort that finds so many of the true best items.

        Args:
            histories: like those to come, some hundreds of them.
            recall: share of the ``k`` best items that must be found, in (0, 1].
            k: number of items.

        Returns:
            Effort, measured recall and queries per second, see :meth:`contrastive.retrieval.Index.tune`.

        Raises:
            ValueError: no history has a known item, or a recall out of range.
        """
        known = [[self._codes[item] for item in history if item in self._codes] for history in histories]
        known = [codes for codes in known if codes]
        k = check_whole("tune", "k", k)
        recall = check_number("tune", "recall", recall, "(0, 1]")
        if not known:
            raise InvalidValue(f"tune: none of {len(histories)} histories holds a known item.")
        return self.index.tune(recall, k, queries=self._encode(known))

    def _best(
        self, known: list[list[int]], k: int, exclude_seen: bool, filter: Mapping[str, Any] | None
    ) -> list[tuple[Array, Array]]:
        """Codes and scores for histories of codes, none of them empty."""
        seen = known if exclude_seen else [[] for _ in known]
        fetch = min(k + max(len(set(row)) for row in seen), len(self))
        numbers = max(self.max_length * self.encoder.dim, len(self) if self.index.exact else 0)
        small = len(known) * numbers <= _SMALL
        with _ONE_THREAD if small else nullcontext():
            states = self._encode(known)
            results = _without(*self.index.search(states, fetch, filter), seen, k)
        short = [row for row, (codes, _) in enumerate(results) if len(codes) < k]
        if short and not self.index.exact:  # an approximate search may come back with less than there is
            if self._exact is None:
                vectors, codes = self.index.reconstruct(self.index.ids), self.index.ids
                self._exact = Index.build(
                    vectors, codes, metric="dot", factory="Flat", metadata=self.index.metadata
                )
            found = self._exact.search(states[short], fetch, filter)
            for row, result in zip(short, _without(*found, [seen[row] for row in short], k), strict=True):
                results[row] = result
        return results

    def _encode(self, known: list[list[int]]) -> Tensor:
        """States ``(B, d)`` after histories of codes."""
        read = [row[-self.max_length :] for row in known]
        lengths = [len(row) for row in read]
        longest = max(lengths)
        items = torch.tensor([row + [0] * (longest - len(row)) for row in read])
        with torch.inference_mode():
            states: Tensor = self.encoder(items, torch.tensor(lengths))
            return states[torch.arange(len(read)), torch.tensor(lengths) - 1]

    def _most_popular(self, k: int, filter: Mapping[str, Any] | None) -> tuple[list[Id], Array]:
        allowed = np.arange(1, len(self._ids))
        if filter is not None:
            allowed = allowed[Metadata(self.index.metadata).mask(filter, "recommend")]
        best = allowed[np.argsort(-self._counts[allowed], kind="stable")[:k]]
        return [self._ids[code] for code in best.tolist()], self._counts[best].astype(np.float32)

    # ------------------------------------------------------------------ new items

    @changes
    def add_items(
        self,
        ids: Sequence[Id],
        *,
        vectors: Tensor | Array | None = None,
        like: Mapping[Id, Sequence[Id]] | None = None,
        attributes: Mapping[Id, Sequence[Any]] | None = None,
        titles: Sequence[str | None] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        neighbours: int = 10,
    ) -> None:
        """Take up items that the encoder was not trained on: they are recommended, and read in histories.

        A new item starts in the middle of items that it resembles: its vector is the mean of their vectors, brought to
        the median length of all item vectors, since a mean is shorter than what it is of and would be scored too low.
        No weight of a known item changes.

        Args:
            ids: n new ids, of the kind of those here.
            vectors: ``(n, d)`` to use as they are. Give this, ``like`` or ``attributes``.
            like: for each new id, known ids that it resembles.
            attributes: for each new id its attributes, as in the training data (compared as text); it resembles the
                ``neighbours`` known items whose attributes are closest by :func:`~recsys.semantic.attribute_vectors`.
            titles: a text or None for each.
            columns: a value for each, of further columns that the recommender has; the others stay empty.
            neighbours: see ``attributes``.

        Raises:
            KeyError: ``like`` names an unknown item, or has nothing on a new one.
            TypeError: the encoder has no ``item_embedding`` that could grow, or ids are of another kind.
            ValueError: an id is here already or stands twice, none or several of the sources are given, shapes do not
                fit, or no known item has an attribute in common with a new one. Then nothing has changed.
        """
        if not _is_list(ids) and not isinstance(ids, range):
            raise InvalidType(f"add_items: ids is {shown(ids)}; give a list of ids.")
        for name, value in (("like", like), ("attributes", attributes), ("columns", columns)):
            if value is not None and not isinstance(value, Mapping):
                raise InvalidType(f"add_items: {name} is {shown(value)}; give a dictionary.")
        neighbours = check_whole("add_items", "neighbours", neighbours)
        if titles is not None and not _is_list(titles):
            raise InvalidType(
                f"add_items: titles is {shown(titles)}; give a list with a text, or None, for each id."
            )
        if vectors is not None and not usable(vectors) and not _is_numbers(vectors):
            raise InvalidType(f"add_items: vectors is {shown(vectors)}; give an array or a tensor (n, d).")
        new: list[Id] = [item.item() if isinstance(item, np.generic) else item for item in ids]
        if not isinstance(getattr(self.encoder, "item_embedding", None), nn.Embedding):
            raise InvalidType(
                f"add_items: {type(self.encoder).__name__} has no item_embedding to grow; derive it from "
                "SequenceEncoder."
            )
        kind = str if isinstance(self._ids[1], str) else int
        if not all(isinstance(item, kind) for item in new):
            raise InvalidType(
                f"add_items: ids here are like {self._ids[1]!r}, given are {new[:3]}; give {kind.__name__}s."
            )
        here = [item for item in new if item in self._codes]
        if here or len(set(new)) < len(new) or not new:
            raise InvalidValue(
                f"add_items: {len(new)} ids, {len(set(new))} different ones, {len(here)} of them here already; give "
                "new ids, each once."
            )
        if sum(source is not None for source in (vectors, like, attributes)) != 1:
            raise InvalidValue("add_items: give one of vectors, like and attributes.")
        if titles is not None and len(titles) != len(new):
            raise InvalidValue(
                f"add_items: {len(titles)} titles for {len(new)} ids; give one, or None, for each."
            )
        for title in titles or ():
            if not isinstance(title, str | None):
                raise InvalidType(f"add_items: a title is {title!r}; give a text or None for each id.")
        has = [[str(a) for a in (attributes or {}).get(item, [])] for item in new]
        if vectors is not None:
            rows = torch.as_tensor(vectors, dtype=torch.float32)
        elif like is not None:
            rows = self._mean([self._resembling(item, like) for item in new])
        else:
            rows = self._mean(self._closest_by_attributes(new, has, neighbours))
        if rows.shape != (len(new), self.encoder.dim):
            raise InvalidValue(
                f"add_items: vectors have the shape {tuple(rows.shape)}; expected {(len(new), self.encoder.dim)}."
            )
        codes = np.arange(len(self._ids), len(self._ids) + len(new))
        counts = np.zeros(len(new), np.int64)
        columns = self._with_empty(columns, len(new))
        table = _item_table(new, codes, titles or [None] * len(new), counts, has, columns, "add_items")
        known = self.encoder.item_embedding.weight.detach()
        grown = nn.Parameter(torch.cat([known, rows.to(known.dtype)]))
        self.index.add(
            rows, codes, table
        )  # all that can fail comes before: encoder, index and ids change together
        self._grow_encoder(grown)
        self._ids += new
        self._codes.update(zip(new, codes.tolist(), strict=True))
        self._counts = np.concatenate([self._counts, counts])
        self._exact = None

    def _with_empty(self, columns: Mapping[str, Sequence[Any]] | None, count: int) -> dict[str, Any]:
        """Columns of new items, empty where there are columns that none is given for."""
        table = self.index.metadata
        assert table is not None
        further = {field.name: field.type for field in table.schema if field.name not in _OWN_COLUMNS}
        empty = {name: pa.nulls(count, kind) for name, kind in further.items()}
        return {**empty, **(columns or {})}

    def _resembling(self, item: Id, like: Mapping[Id, Sequence[Id]]) -> list[int]:
        others = list(like.get(item, ()))
        if not others:
            raise UnknownKey(
                f"add_items: like has no items for {item!r}; name one or more that it resembles."
            )
        return [self._code(other, "add_items") for other in others]

    def _closest_by_attributes(self, new: list[Id], has: list[list[str]], neighbours: int) -> list[list[int]]:
        """Codes of the known items that are closest to each new one, at most ``neighbours``."""
        neighbours = check_whole("add_items", "neighbours", neighbours)
        table = self.index.metadata
        assert table is not None
        known: list[list[str]] = table["attributes"].to_pylist()
        numbers = {name: number for number, name in enumerate(sorted({a for row in known for a in row}))}
        rows = [[numbers[a] for a in row if a in numbers] for row in (*known, *has)]
        vectors = attribute_vectors(Sequences.from_lists(rows), len(numbers))
        close = (vectors[len(known) :] @ vectors[: len(known)].T).toarray().round(12)  # so that ties are ties
        found = []
        for item, row in zip(new, close, strict=True):
            best = np.argsort(-row, kind="stable")[:neighbours]
            best = best[row[best] > 0]
            if not len(best):
                raise InvalidValue(
                    f"add_items: no known item shares an attribute with {item!r} that tells items apart; give like or "
                    "vectors instead."
                )
            found.append((best + 1).tolist())
        return found

    def _mean(self, resembling: list[list[int]]) -> Tensor:
        """Means of item vectors ``(n, d)``, of the median length of an item vector."""
        vectors = self.encoder.item_vectors().detach().float()
        means = torch.stack([vectors[codes].mean(0) for codes in resembling])
        typical = vectors[1:].norm(dim=1).median()
        scaled: Tensor = means * (typical / means.norm(dim=1, keepdim=True).clamp(min=1e-12))
        return scaled

    def _grow_encoder(self, weight: nn.Parameter) -> None:
        table = self.encoder.item_embedding
        table.weight, table.num_embeddings = weight, len(weight)
        self.encoder.num_items = self.encoder.config["num_items"] = len(weight) - 1

    # ------------------------------------------------------------------ on disk

    def save(self, folder: Folder) -> Path:
        """Write the recommender to a folder, in place of one that is there: encoder, index, and histories if any.

        Whatever happens meanwhile, the folder holds the old recommender or the new one; nothing in it can execute.
        Several processes may write one folder: each waits for the one before, and the last one's stays.

        Raises:
            FileExistsError: the folder holds something else.
            OSError: it cannot be written.
        """
        path = Path(folder)
        with self._lock.reading:
            content = {
                "items": len(self),
                "max_length": self.max_length,
                "data": self.data_fingerprint,
                "histories": None,
            }

            def write(files: Path) -> None:
                save_encoder(self.encoder, files / "encoder")
                self.index.save(files / "index")
                description = read_mapping(files / "encoder" / "encoder.json")
                content["encoder"] = description["fingerprint"]
                if self._histories is not None:
                    users, sequences = self._histories
                    items = pa.LargeListArray.from_arrays(sequences.offsets, sequences.items)
                    write_table(pa.table({"user": users, "items": items}), files / HISTORIES)
                    content["histories"] = checksum(files / HISTORIES)

            write_folder(path, KIND, VERSION, content, write, manifest=RECORD)
        return path

    @classmethod
    def load(
        cls, folder: Folder, encoder: SequenceEncoder | None = None, *, trust: bool = False
    ) -> "Recommender":
        """Read a saved recommender, also while another process replaces it.

        Args:
            folder: where it was saved; or a folder, as of a run, that holds one as ``recommender/``.
            encoder: to load the weights into; needed for a class that is not ours, which is never looked up by the name
                in a file.
            trust: of the folder of a run that holds none, make one by ``from_run(folder, trust=True)``.

        Raises:
            FileNotFoundError: there is no recommender.
            ValueError: a file is damaged or missing, the parts do not belong together, or it is of another version.
        """
        path = _saved_in(folder)
        if path is None:
            if not _is_run(folder):
                raise FileMissing(f"{folder} holds no {RECORD}; give the folder of Recommender.save.")
            if not trust:
                raise FileMissing(
                    f"{folder} is the folder of a training run and holds no {RECORD}; Recommender.from_run(folder) "
                    "makes a recommender of it."
                )
            return cls.from_run(folder, trust=True)

        def read(record: dict[str, Any], files: Path) -> "Recommender":
            empty = _empty_encoder(files / "encoder") if encoder is None else encoder
            made = cast(SequenceEncoder, load_encoder(files / "encoder", empty))
            if record["max_length"] > made.max_length:
                raise InvalidValue(
                    f"{path / RECORD} is damaged: max_length is {record['max_length']}, the encoder reads "
                    f"{made.max_length}; save or copy the recommender again."
                )
            kept = None if record["histories"] is None else _read_histories(files / HISTORIES, record)
            return cls(made, Index.load(files / "index"), record["max_length"], record["data"], kept)

        return read_folder(path, KIND, VERSION, read, manifest=RECORD, fields=_FIELDS, defaults={"files": {}})


def _read_histories(file: Path, record: Mapping[str, Any]) -> tuple[list[Id], Sequences]:
    if not file.is_file() or checksum(file) != record["histories"]:
        raise InvalidValue(f"{file} is missing or damaged; save or copy the recommender again.")
    table = read_table(file).combine_chunks()
    lists = table["items"].combine_chunks()
    return table["user"].to_pylist(), Sequences(lists.flatten().to_numpy(), lists.offsets.to_numpy())


def _saved_in(folder: Folder) -> Path | None:
    return next((p for p in (Path(folder), Path(folder) / "recommender") if (p / RECORD).is_file()), None)


def _is_run(folder: Folder) -> bool:
    return (Path(folder) / "config.yaml").is_file() and (Path(folder) / "encoder").is_dir()


def _empty_encoder(folder: Path) -> SequenceEncoder:
    """An encoder of ours with the recorded arguments, for weights to be loaded into."""
    file = folder / "encoder.json"
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        name, config = description["class"], description["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidValue(
            f"{file} is missing or damaged ({error}); save or copy the recommender again."
        ) from error
    if name not in _BUILT_BY_NAME:
        raise InvalidValue(
            f"{file} describes a {name!r}; only {', '.join(_BUILT_BY_NAME)} are built by name: make yours and call "
            f"Recommender.load(folder, encoder={name}(...))."
        )
    try:
        return _BUILT_BY_NAME[name](**config)
    except (TypeError, ValueError) as error:
        raise InvalidValue(
            f"{file} has arguments that do not build a {name} ({error}); it is of another version: use that, or pass "
            "encoder=..."
        ) from error


class _OneThread:
    """Has torch (and what shares its OpenMP, as FAISS does) use one thread while any thread of the process is inside.

    The tensors of a single history are so small that a second thread has nothing to gain; and where other processes
    keep the cores busy, waiting for it takes a hundred times as long as the work itself.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, 1

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = torch.get_num_threads()
            self._inside += 1
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                torch.set_num_threads(self._before)


_ONE_THREAD = _OneThread()


def _is_numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiu"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def _known_columns(data: SequenceData) -> dict[str, Any]:
    """What the items' source tells beyond texts, under names that are not the recommender's own."""
    table = data.item_columns
    if table is None:
        return {}
    taken = (*_OWN_COLUMNS, *RESERVED)
    return {
        f"items_{name}" if name in taken else name: table.column(name).slice(1) for name in table.column_names
    }


def _item_table(
    items: list[Id],
    codes: Array,
    titles: Sequence[str | None],
    counts: Array,
    attributes: list[list[str]],
    columns: Mapping[str, Sequence[Any]] | None,
    call: str,
) -> pa.Table:
    clash = [name for name in columns or {} if name in (*_OWN_COLUMNS, "id")]
    if clash:
        raise InvalidValue(f"{call}: columns has {clash[0]!r}, which the recommender has itself; rename it.")
    for name, values in (columns or {}).items():
        if len(values) != len(items):
            raise InvalidValue(
                f"{call}: column {name!r} has {len(values)} values for {len(items)} items; give one each."
            )
    own = {
        "item": pa.array(items),
        "code": pa.array(codes, pa.int64()),
        "title": pa.array(titles, pa.string()),
        "count": pa.array(counts, pa.int64()),
        "attributes": pa.array(attributes, pa.list_(pa.string())),
    }
    further = {
        name: values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(list(values))
        for name, values in (columns or {}).items()
    }
    return pa.table({**own, **further})


def _without(scores: Array, codes: Array, seen: list[list[int]], k: int) -> list[tuple[Array, Array]]:
    """The first ``k`` codes of each row that were found and not seen, with their scores."""
    kept = codes > 0
    if any(seen):
        width = int(codes.max(initial=0)) + 1
        rows = np.arange(len(codes))[:, None] * width
        gone = np.concatenate(
            [[row * width + c for c in codes if c < width] for row, codes in enumerate(seen)]
        )
        kept &= ~np.isin(rows + codes, gone)
    return [(c[m][:k], s[m][:k]) for c, s, m in zip(codes, scores, kept, strict=True)]


# ---------------------------------------------------------------------- from the command line


def recommend_items(
    model: Folder,
    history: list[str] | None = None,
    user: str | None = None,
    k: int = 10,
    exclude_seen: bool = False,
    filter: dict[str, Any] | None = None,
    cold: Cold = "raise",
    trust: bool = False,
) -> list[dict[str, Any]]:
    """Recommend what comes next after a history.

    Args:
        model: folder of a saved recommender, or of a run, from whose encoder and data it is then made.
        history: ids of items, oldest first.
        user: id of a user whose history was saved with the recommender, instead.
        k: number of items.
        exclude_seen: leave out the items of the history.
        filter: column -> value, list of values or range; only items that meet all of them. Written as JSON, as
            '{"class": "cat", "year": {"from": 1990, "to": 1999}}'; from and to belong to the range, one may be missing.
        cold: where nothing in the history is known: ``raise``, or recommend the most ``popular`` items.
        trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
            author you trust.

    Returns:
        For each item its ``score``, ``id`` and ``title``, best first.

    Raises:
        FileNotFoundError, ValueError: see :meth:`Recommender.load` and :meth:`Recommender.recommend`; or neither or
            both of history and user are given, or there is no such user.
    """
    if (history is None) == (user is None):
        raise InvalidValue("recommend: give either history, the ids of items, or user.")
    if _saved_in(model) is None and _is_run(model):
        recommender = Recommender.from_run(model, trust=trust)
    else:
        recommender = Recommender.load(model)
    if user is not None:
        users = {str(known): known for known in recommender.users}
        if user not in users:
            raise InvalidValue(
                f"recommend: there is no user {user!r} among the {len(users)} whose histories were kept."
            )
        items: list[Id] = recommender.history(users[user])
    else:
        items = [recommender.parse(text) for text in history or []]
    found: Recommendation = recommender.recommend(
        items, k, exclude_seen=exclude_seen, filter=filter, cold=cold
    )
    if found.skipped:
        print(f"{found.skipped} of {len(items)} ids of the history are not known and were passed over")
    if found.cold:
        print("nothing in the history is known: these are the most popular items")
    titles = recommender.titles(found.ids)
    rows = zip(found.scores.tolist(), found.ids, titles, strict=True)
    return [{"score": score, "id": item, "title": title} for score, item, title in rows]
