"""Indexes searched together against the one index that they would make."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive.retrieval import Index, IndexSet, engine

METRICS = ["cosine", "dot", "euclidean"]


def vectors(count: int, seed: int = 0, dim: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def with_ties(count: int, seed: int, dim: int) -> np.ndarray:
    """Vectors that repeat, stand at right angles, or differ by rounding alone."""
    random = np.random.default_rng(seed)
    rows = random.integers(-2, 3, (max(count // 4, 1), dim)).astype(np.float32)
    rows[(rows == 0).all(axis=1)] = 1
    return rows[random.integers(len(rows), size=count)] * random.choice(
        np.float32([1, 1, 0.3, 1.7]), (count, 1)
    )


def parts(rows: np.ndarray, cuts: list[int], **options) -> list[Index]:
    """An index of each part of the rows between the cuts, under the rows' numbers."""
    bounds = [0, *sorted(cuts), len(rows)]
    return [
        Index.build(
            rows[a:b], np.arange(a, b), metadata={"n": np.arange(a, b) % 3}, factory="Flat", **options
        )
        for a, b in pairwise(bounds)
        if b > a
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(2, 120),
    st.integers(1, 9),
    st.lists(st.integers(1, 119), max_size=4),
    st.integers(1, 40),
    st.integers(1, 30),
    st.sampled_from(METRICS),
)
def test_results_are_those_of_the_merged_index_ties_included(seed, count, dim, cuts, k, queries, metric):
    rows = with_ties(count, seed, dim)
    apart = parts(rows, [min(cut, count) for cut in cuts], metric=metric)
    wanted = np.concatenate([rows[:queries], with_ties(queries, seed + 1, dim)])
    together, merged = IndexSet(apart), Index.merge(apart)
    assert (together.exact, len(together)) == (True, count)
    for filter in (None, {"n": [0, 2]}):
        ours, theirs = together.search(wanted, k, filter), merged.search(wanted, k, filter)
        assert (ours[1] == theirs[1]).all()
        assert (ours[0] == theirs[0]).all()
        score = float(np.median(theirs[0][np.isfinite(theirs[0])])) if np.isfinite(theirs[0]).any() else 0.0
        near = together.range_search(wanted, score, filter), merged.range_search(wanted, score, filter)
        for mine, other in zip(*(zip(*found, strict=True) for found in near), strict=True):
            assert (mine[0] == other[0]).all()
            assert (mine[1] == other[1]).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(2, 200),
    st.integers(1, 9),
    st.integers(1, 20),
    st.booleans(),
    st.booleans(),
)
def test_exact_search_does_not_depend_on_blocks(seed, count, dim, k, euclidean, by_torch):
    rows, k = with_ties(count, seed, dim), min(k, count)
    queries = with_ties(40, seed + 1, dim)
    with pytest.MonkeyPatch.context() as patch:
        if by_torch:
            patch.setattr(engine, "faiss", lambda: None)
        scores, slots = engine.exact_search(rows, queries, k, euclidean)
        for q in (0, 17):
            alone = engine.exact_search(rows, queries[q : q + 1], k, euclidean)
            assert (alone[0][0] == scores[q]).all()
            assert (alone[1][0] == slots[q]).all()
    true = rows.astype(np.float64) @ queries.T.astype(np.float64)
    if euclidean:
        true = -np.linalg.norm(rows[:, None].astype(np.float64) - queries, axis=2)
    true = true.astype(np.float32)  # small whole numbers times two factors: equal pairs stay equal
    expected = np.argsort(-true, axis=0, kind="stable")[:k].T
    np.testing.assert_allclose(scores, np.take_along_axis(true, expected.T, 0).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("by_torch", [False, True])
def test_equally_close_vectors_come_in_the_order_of_adding(by_torch, monkeypatch):
    """More copies than candidates, so that the whole set must be compared."""
    if by_torch:
        monkeypatch.setattr(engine, "faiss", lambda: None)
    rows = np.concatenate([vectors(5), np.repeat(vectors(1, seed=9), 300, axis=0), vectors(5, seed=3)])
    for metric in METRICS:
        found = Index.build(rows, metric=metric).search(np.repeat(rows[5:6], 50, axis=0), 40)[1]
        copies = found[0][(found[0] >= 5) & (found[0] < 305)]
        assert (found == found[0]).all()
        assert copies.tolist() == list(range(5, 5 + len(copies)))


def test_products_of_blocks_do_not_change_neighbours():
    """Large enough for FAISS to multiply whole blocks, which rounds other than pair by pair."""
    rows, queries = vectors(700, dim=64), vectors(2100, seed=1, dim=64)
    rows = np.concatenate([rows, np.nextafter(rows[:300], np.float32(9)), rows[:200]])
    for euclidean in (False, True):
        scores, slots = engine.exact_search(rows, queries, 30, euclidean)
        for part in (slice(0, 1), slice(100, 300)):
            some = engine.exact_search(rows, queries[part], 30, euclidean)
            assert (some[0] == scores[part]).all()
            assert (some[1] == slots[part]).all()


def test_saved_members_are_mapped_and_stay_as_they_are(tmp_path):
    rows = vectors(90)
    folders = [index.save(tmp_path / str(i)) for i, index in enumerate(parts(rows, [20, 60]))]
    before = [sorted(str(path) for path in folder.rglob("*")) for folder in folders]
    together = IndexSet(folders)
    assert isinstance(together.members[0]._neighbours.store.rows, np.memmap)
    assert (together.search(rows, 1)[1][:, 0] == np.arange(90)).all()
    assert [sorted(str(path) for path in folder.rglob("*")) for folder in folders] == before
    assert together.manifest["count"] == 90
    assert [one["count"] for one in together.manifest["members"]] == [20, 40, 30]


def test_ids_columns_and_vectors_of_all_members():
    rows = vectors(30)
    names = np.array([f"item {i}" for i in range(30)], object)
    members = [
        Index.build(rows[part], names[part], metadata={"n": np.arange(30)[part]})
        for part in (slice(0, 10), slice(10, 30))
    ]
    together = IndexSet([*members, Index(6)])
    assert together.ids.tolist() == names.tolist()
    wanted = ["item 25", "item 3", "item 11", "item 3"]
    assert together.columns(wanted)["n"].to_pylist() == [25, 3, 11, 3]
    for row, i in zip(together.reconstruct(wanted), (25, 3, 11, 3), strict=True):
        np.testing.assert_allclose(row, rows[i] / np.linalg.norm(rows[i]), rtol=1e-6)
    assert "item 29" in together
    assert "item 30" not in together
    scores, ids = together.search(rows[:1], 40)
    assert ids[0, 30:].tolist() == [None] * 10
    assert np.isneginf(scores[0, 30:]).all()
    with pytest.raises(KeyError, match="1 of 2 ids are in none of the indexes, as 'item 30'"):
        together.columns(["item 3", "item 30"])


def test_columns_that_only_some_members_have():
    plain, rich = Index.build(vectors(3)), Index.build(vectors(3), [10, 11, 12], metadata={"n": [7, 8, 9]})
    together = IndexSet([plain, rich])
    assert together.columns([11, 1, 10]).to_pydict() == {"n": [8, None, 7]}
    assert together.manifest["columns"] == ["n"]
    assert IndexSet([plain]).columns([1]) is None
    with pytest.raises(ValueError, match="no column 'n' to filter by"):
        together.search(vectors(1), 1, {"n": 8})
    named = Index.build(vectors(3), [20, 21, 22], metadata={"n": ["a", "b", "c"]})
    with pytest.raises(ValueError, match="columns: the indexes have different types"):
        IndexSet([rich, named]).columns([10, 20])


@pytest.mark.parametrize("factory", ["HNSW8", "IVF4,PQ2x4"])
def test_approximate_members(factory, tmp_path):
    rows = vectors(600)
    members = [
        Index.build(rows[a : a + 200], np.arange(a, a + 200), factory=factory, keep_vectors=True)
        for a in (0, 200, 400)
    ]
    together = IndexSet([member.save(tmp_path / str(i)) for i, member in enumerate(members)])
    assert not together.exact
    assert (together.search(rows, 1)[1][:, 0] == np.arange(600)).mean() > 0.9


def test_an_empty_set_finds_nothing():
    scores, ids = IndexSet([Index(6), Index(6)]).search(vectors(2), 3)
    assert ids.tolist() == [[-1] * 3] * 2
    assert np.isneginf(scores).all()


def test_what_cannot_be_searched_together(tmp_path):
    index = Index.build(vectors(20), fingerprint="a" * 64)
    for other, said in (
        (Index.build(vectors(3), metric="dot"), "metric is 'cosine' in the first index and 'dot' in another"),
        (Index.build(vectors(3, dim=5)), "dim is 6 in the first index and 5 in another"),
        (Index.build(vectors(3), fingerprint="b" * 64), "fingerprint is 'a+' in the first index and 'b+' in"),
        (
            Index.build(vectors(3), ["a", "b", "c"], fingerprint="a" * 64),
            "ids are integers in the first index and strings in another",
        ),
        (
            Index.build(vectors(3), fingerprint="a" * 64),
            "3 ids stand in more than one index, as 0; remove them",
        ),
    ):
        with pytest.raises(ValueError, match=f"IndexSet: {said}"):
            IndexSet([index, other])
    names = [Index.build(vectors(2), ["a", "b"]), Index.build(vectors(2), ["b", "c"])]
    with pytest.raises(ValueError, match="1 ids stand in more than one index, as 'b'"):
        IndexSet(names)
    with pytest.raises(ValueError, match="IndexSet: got no index"):
        IndexSet([])
    with pytest.raises(FileNotFoundError, match="is no contrastive index"):
        IndexSet([index, tmp_path / "nothing"])
    with pytest.raises(ValueError, match="queries come from bbbbbbbbbbbb"):
        IndexSet([index.save(tmp_path / "index")], fingerprint="b" * 64)
    with pytest.raises(ValueError, match="search: k is 0"):
        IndexSet([index]).search(vectors(1), 0)
    with pytest.raises(ValueError, match="no column 'colour'"):
        IndexSet([index]).search(vectors(1), 1, {"colour": 1})
