"""What an index tells about a data set: hard negatives to train with, and items that are nearly the same."""

import numpy as np

from contrastive.arguments import checked
from contrastive.errors import InvalidValue
from contrastive.retrieval.ids import Array, Ids
from contrastive.retrieval.index import Index

_BLOCK = 4096  # items that are searched for at a time


@checked
def mine_negatives(
    index: Index,
    anchors: Ids,
    positives: Ids,
    *,
    k: int = 8,
    margin: float = 0.95,
    column: str | None = None,
    candidates: int = 64,
) -> tuple[Array, Array]:
    """The hardest negatives of each anchor that are not likely to be positives that nobody has marked.

    Of the anchor's nearest items, those closer than ``margin`` times the score of its positive are taken for false
    negatives and passed over ("TopK-PercPos" of Moreira et al. 2024, "NV-Retriever", arXiv 2407.15831, section 3).

    Args:
        index: of items with ``metric="cosine"`` or ``"dot"``.
        anchors: ``(n,)`` ids in the index.
        positives: ``(n,)`` ids in the index, the positive of each anchor.
        k: negatives for each anchor.
        margin: share of the positive's score that a negative may reach; 1 lets all pass that are less close than the
            positive. Where the positive's score is below 0 nothing is closer than it.
        column: of the index; items with the anchor's value in it are no negatives either.
        candidates: nearest items that are looked at.

    Returns:
        Scores ``(n, k)``, falling, and ids ``(n, k)``; ``-inf`` and -1 or None where there were not enough.

    Raises:
        KeyError: an id is not in the index.
        ValueError: the metric is Euclidean, or an option is out of its range.
    """
    if index.metric == "euclidean":
        raise InvalidValue(
            "mine_negatives: the margin is a share of a similarity; use an index of cosine or dot."
        )
    if k < 1 or not 0 < margin <= 1 or candidates < k:
        raise InvalidValue(
            f"mine_negatives: k={k}, margin={margin}, candidates={candidates}; give k of 1 or more, a margin in (0, 1] "
            "and at least k candidates."
        )
    own, theirs = np.asarray(anchors), np.asarray(positives)
    if own.shape != theirs.shape:
        raise InvalidValue(
            f"mine_negatives: {len(own)} anchors and {len(theirs)} positives; give one for each."
        )
    all_scores, all_ids = [], []
    for start in range(0, len(own), _BLOCK):
        mine, positive = own[start : start + _BLOCK], theirs[start : start + _BLOCK]
        queries = index.reconstruct(mine)
        limit = np.einsum("ij,ij->i", queries, index.reconstruct(positive))
        limit = np.where(limit > 0, margin * limit, limit)
        scores, ids = index.search(queries, candidates + 2)
        allowed = (scores < limit[:, None]) & (ids != mine[:, None]) & (ids != positive[:, None])
        if column is not None:
            found = np.isfinite(scores)
            values = np.full(ids.shape, None, object)
            values[found] = _values(index, ids[found], column)
            allowed &= values != _values(index, mine, column)[:, None]
        order = np.argsort(~allowed, axis=1, kind="stable")[:, :k]
        kept = np.take_along_axis(allowed, order, 1)
        all_scores.append(np.where(kept, np.take_along_axis(scores, order, 1), -np.inf))
        ids = np.take_along_axis(ids, order, 1)
        ids[~kept] = None if ids.dtype == object else -1
        all_ids.append(ids)
    return np.concatenate(all_scores), np.concatenate(all_ids)


@checked
def near_duplicates(index: Index, score: float = 0.98, *, neighbours: int = 16) -> list[list[int | str]]:
    """Groups of items that are joined by scores of at least ``score``: nearly the same pictures, or the same twice.

    Args:
        index: of the whole data set.
        score: least score of a pair.
        neighbours: nearest items of each item that are looked at.

    Returns:
        Groups of two ids and more, the largest first; ids in the order of the index.
    """
    ids = index.ids
    parent = np.arange(len(ids))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    place = {item: i for i, item in enumerate(ids.tolist())}
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        scores, found = index.search(index.reconstruct(block), min(neighbours + 1, len(ids)))
        for row, column in zip(*np.nonzero(scores >= score), strict=True):
            a, b = root(start + int(row)), root(place[found[row, column]])
            parent[max(a, b)] = min(a, b)
    groups: dict[int, list[int | str]] = {}
    for i, item in enumerate(ids.tolist()):
        groups.setdefault(root(i), []).append(item)
    return sorted((group for group in groups.values() if len(group) > 1), key=len, reverse=True)


def _values(index: Index, ids: Array, column: str) -> Array:
    table = index.columns(ids)
    if table is None or column not in table.column_names:
        names = [] if table is None else table.column_names
        raise InvalidValue(f"mine_negatives: there is no column {column!r}; there are: {names or 'none'}.")
    return np.array(table[column].to_pylist(), object)
