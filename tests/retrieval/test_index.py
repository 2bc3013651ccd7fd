"""The index against a dictionary, on damaged input and files, through failures, and merged."""

import json
import shutil
import tempfile

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive.retrieval import Index, engine
from contrastive.retrieval.engine import choose_factory

DIM = 8
FACTORIES = ["Flat", "HNSW8", "IVF4,Flat"]


def vectors(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def build(factory: str = "Flat", count: int = 200, **options) -> Index:
    return Index.build(vectors(count), factory=factory, keep_vectors=True, **options)


# ---------------------------------------------------------------------- a dictionary under random operations


class Model:
    """An index and the dictionary that it should behave like."""

    def __init__(self, factory: str, strings: bool, seed: int) -> None:
        self.random, self.strings = np.random.default_rng(seed), strings
        start = self.random.normal(size=(40, DIM)).astype(np.float32)
        ids = self.names(range(40))
        self.index = Index.build(
            start, ids, factory=factory, keep_vectors=True, metadata={"number": range(40)}
        )
        self.truth = dict(zip(ids, start, strict=True))
        self.numbers = dict(zip(ids, range(40), strict=True))

    def names(self, numbers):
        return [f"item {number}" if self.strings else int(number) * 3 - 50 for number in numbers]

    def operate(self) -> None:
        kind = self.random.choice(["add", "remove", "update"])
        count = int(self.random.integers(1, 4))
        here = sorted(self.truth)
        fresh = self.random.normal(size=(count, DIM)).astype(np.float32)
        numbers = self.random.integers(0, 100, count).tolist()
        if kind == "add":
            ids = [name for name in self.names(range(400)) if name not in self.truth]
            ids = [ids[i] for i in self.random.choice(len(ids), count, replace=False)]
            self.index.add(fresh, ids, {"number": numbers})
        elif len(here) > count + 12:
            ids = [here[i] for i in self.random.choice(len(here), count, replace=False)]
            if kind == "remove":
                self.index.remove(ids)
                for name in ids:
                    del self.truth[name], self.numbers[name]
                return
            self.index.update(fresh, ids, {"number": numbers})
        else:
            return
        self.truth.update(zip(ids, fresh, strict=True))
        self.numbers.update(zip(ids, numbers, strict=True))

    def check(self) -> None:
        names = sorted(self.truth)
        assert len(self.index) == len(names)
        assert sorted(self.index.ids.tolist()) == names
        assert (
            dict(zip(self.index.ids.tolist(), self.index.metadata["number"].to_pylist(), strict=True))
            == self.numbers
        )
        rows = np.stack([self.truth[name] for name in names])
        np.testing.assert_allclose(self.index.reconstruct(names), unit(rows), rtol=1e-6)
        scores, ids = self.index.search(rows, 3)
        assert ids[:, 0].tolist() == names
        np.testing.assert_allclose(scores[:, 0], 1, rtol=1e-5)
        if self.index.exact:
            order = np.argsort(-(unit(rows) @ unit(rows).T), axis=1)[:, :3]
            assert ids.tolist() == [[names[j] for j in row] for row in order]


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("strings", [False, True], ids=["integers", "strings"])
def test_a_thousand_random_operations_are_those_of_a_dictionary(factory, strings, tmp_path):
    model = Model(factory, strings, seed=1)
    for number in range(1000):
        model.operate()
        if number % 250 == 249:
            model.check()
            model.index.save(tmp_path / "index")
            model.index = Index.load(tmp_path / "index", mmap=number % 500 == 249)
            model.check()
    model.index.compact()
    model.check()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.sampled_from(FACTORIES))
def test_random_operations(seed, strings, factory):
    model = Model(factory, strings, seed)
    for _ in range(40):
        model.operate()
    model.check()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.lists(st.sampled_from(["add", "remove", "update", "again", "save"]), max_size=12),
)
def test_ids_that_nobody_gave(seed, operations):
    """They number the slots until an update, a hole, or an id that comes back ends that."""
    random, index = np.random.default_rng(seed), Index.build(vectors(6))
    truth = dict(enumerate(vectors(6)))
    gone: list[int] = []
    first = 6
    for number, what in enumerate(operations):
        fresh = vectors(2, seed=number + 1)
        if what == "add":
            index.add(fresh)
            truth |= {first: fresh[0], first + 1: fresh[1]}
            first += 2  # never again one that was there, though it was removed
        elif what == "again" and gone:
            index.add(fresh[:1], [gone[0]])
            truth[gone.pop(0)] = fresh[0]
        elif what in ("remove", "update") and len(truth) > 2:
            chosen = random.choice(sorted(truth), 2, replace=False).tolist()
            if what == "update":
                index.update(fresh, chosen)
                truth |= dict(zip(chosen, fresh, strict=True))
            else:
                index.remove(chosen)
                gone += [chosen[0], chosen[1]]
                for item in chosen:
                    del truth[item]
        elif what == "save":
            with tempfile.TemporaryDirectory() as folder:
                index = Index.load(index.save(folder))
        names = sorted(truth)
        assert sorted(index.ids.tolist()) == names
        assert all(item in index for item in names)
        assert not any(item in index for item in [*gone, -1, 10**9])
        rows = np.stack([truth[name] for name in names])
        assert index.search(rows, 1)[1][:, 0].tolist() == names
        np.testing.assert_allclose(index.reconstruct(names), unit(rows), rtol=1e-6)


# ---------------------------------------------------------------------- search


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_scores_are_those_of_the_definition(metric):
    base, queries = vectors(50), vectors(7, seed=1)
    scores, ids = Index.build(base, metric=metric).search(queries, 5)
    expected = {
        "cosine": unit(queries) @ unit(base).T,
        "dot": queries @ base.T,
        "euclidean": -np.linalg.norm(queries[:, None] - base, axis=2),
    }[metric]
    order = np.argsort(-expected, axis=1)[:, :5]
    assert ids.tolist() == order.tolist()
    np.testing.assert_allclose(scores, np.take_along_axis(expected, order, 1), rtol=1e-4, atol=1e-5)
    assert scores.dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_takes_tensors_of_any_floating_type(dtype):
    rows = torch.from_numpy(vectors(20)).to(dtype)
    assert Index.build(rows).search(rows, 1)[1][:, 0].tolist() == list(range(20))


@pytest.mark.parametrize("factory", FACTORIES)
def test_places_that_cannot_be_filled_say_so(factory):
    index = build(factory, 30, metadata={"label": [0] * 28 + [1] * 2})
    scores, ids = index.search(vectors(2, seed=3), 5, filter={"label": 1})
    assert set(ids[0, :2].tolist()) == {28, 29}
    assert ids[:, 2:].tolist() == [[-1] * 3] * 2
    assert np.isneginf(scores[:, 2:]).all()
    index.remove(index.ids)
    assert len(index) == 0
    assert index.search(vectors(1), 2)[1].tolist() == [[-1, -1]]
    named = Index.build(vectors(1), ["a"]).search(vectors(1), 2)[1]
    assert named.tolist() == [["a", None]]


@pytest.mark.parametrize("factory", FACTORIES)
def test_filters(factory):
    years = np.arange(200) + 1900
    table = pa.table(
        {"year": years, "kind": ["cat", "dog"] * 100, "empty": pa.array([None] * 200, pa.int64())}
    )
    index = build(factory, metadata=table)
    for condition, right in (
        ({"kind": "cat"}, lambda i: i % 2 == 0),
        ({"year": slice(1950, 1960)}, lambda i: 50 <= i <= 60),
        ({"year": slice(None, 1910), "kind": ["dog", "bird"]}, lambda i: i <= 10 and i % 2 == 1),
        ({"empty": 3}, lambda i: False),
    ):
        expected = [i for i in range(200) if right(i)]
        found = index.search(vectors(1), 200, filter=condition)[1][0]
        assert sorted(found[found >= 0].tolist()) == expected
    with pytest.raises(ValueError, match=r"no column 'colour' to filter by; there are: .*'year'"):
        index.search(vectors(1), 1, filter={"colour": 1})
    with pytest.raises(ValueError, match="cannot be compared with 'long ago'"):
        index.search(vectors(1), 1, filter={"year": "long ago"})


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
def test_range_search_is_search_up_to_a_score(metric, factory):
    index = Index.build(vectors(80), factory=factory, metric=metric, metadata={"label": np.arange(80) % 2})
    index.remove([3, 5])
    index._neighbours.approximate and setattr(index._neighbours.approximate, "effort", 4)
    queries = vectors(3, seed=2)
    scores, ids = index.search(queries, 78)
    limit = float(np.median(scores))
    close, found = index.range_search(queries, limit)
    for q in range(3):
        count = int((scores[q] >= limit).sum())
        assert found[q].tolist() == ids[q, :count].tolist()
        np.testing.assert_allclose(close[q], scores[q, :count], rtol=1e-5, atol=1e-6)
    assert all(i % 2 == 1 for i in index.range_search(queries, limit, {"label": 1})[1][0].tolist())


def test_without_faiss_pytorch_searches(monkeypatch):
    expected = build(metadata=None).search(vectors(5, seed=4), 4)
    monkeypatch.setattr(engine, "faiss", lambda: None)
    assert choose_factory(10**7, 128, 1) == "Flat"
    scores, ids = build(metadata=None).search(vectors(5, seed=4), 4)
    assert ids.tolist() == expected[1].tolist()
    np.testing.assert_allclose(scores, expected[0], rtol=1e-5)
    with pytest.raises(ImportError, match="needs FAISS"):
        build("HNSW8")


def test_the_factory_follows_size_and_memory():
    assert choose_factory(50_000, 128, 1 << 40) == "Flat"
    assert choose_factory(1_000_000, 128, 8 << 30) == "HNSW32"
    assert choose_factory(1_000_000, 128, 1 << 29) == "IVF4096,PQ32x8"
    assert choose_factory(10_000_000, 100, 8 << 30) == "IVF16384,PQ25x8"


def test_tuning_holds_the_recall():
    index = Index.build(vectors(3000, dim=16), factory="IVF32,PQ4x4", keep_vectors=True)
    index._neighbours.approximate.effort, index._neighbours.rerank = 1, 1
    found = index.tune(recall=0.9, queries=vectors(200, seed=8, dim=16))
    assert found["recall"] > found["recall_low"] >= 0.9
    assert index.manifest["tuned"] == found
    assert index.manifest["effort"] == found["effort"] > 1
    queries = vectors(200, seed=9, dim=16)
    truth = Index.build(vectors(3000, dim=16)).search(queries, 10)[1]
    hits = np.mean(
        [len(np.intersect1d(a, b)) for a, b in zip(truth, index.search(queries, 10)[1], strict=True)]
    )
    assert hits / 10 >= 0.9  # on other queries too
    assert index.tune(recall=0.5, sample=100)["effort"] < found["effort"]
    rough = Index.build(vectors(3000, dim=16), factory="PQ2x4", keep_vectors=True, recall=None)
    with pytest.warns(UserWarning, match="a recall of 1.0 was not reached"):
        rough.tune(recall=1.0, sample=50)
    with pytest.raises(ValueError, match="keeps codes, not vectors"):
        Index.build(vectors(300), factory="PQ4x4").tune()


def test_tuning_goes_on_where_little_effort_finds_little():
    # Without clusters neighbours are spread over many lists, and few of them hold next to nothing.
    index = Index.build(vectors(4000, dim=32), factory="IVF128,Flat", keep_vectors=True)
    queries = vectors(200, seed=8, dim=32)
    found = index.tune(recall=0.95, queries=queries)
    assert found["recall_low"] >= 0.95
    index._neighbours.approximate.effort = 1
    truth = Index.build(vectors(4000, dim=32)).search(queries, 10)[1]
    hits = [len(np.intersect1d(a, b)) for a, b in zip(truth, index.search(queries, 10)[1], strict=True)]
    assert np.mean(hits) / 10 < 0.2


def test_tuning_stops_where_effort_no_longer_helps(monkeypatch):
    rows = vectors(4, dim=16, seed=1).repeat(1000, axis=0) + 0.1 * vectors(4000, dim=16)
    index = Index.build(rows, factory="IVF128,PQ2x4", keep_vectors=True, recall=None)
    efforts, search = [], engine.Approximate.search

    def count(self, *arguments):
        efforts.append(self.effort)
        return search(self, *arguments)

    monkeypatch.setattr(engine.Approximate, "search", count)
    with pytest.warns(UserWarning, match="was not reached"):
        index.tune(recall=1.0, queries=rows[:100])
    assert len(efforts) < 5 * len(index._neighbours.approximate.efforts)


# ---------------------------------------------------------------------- what is refused, before anything changes


def bad(kind: str) -> np.ndarray:
    rows = vectors(3, seed=5)
    if kind in ("nan", "inf"):
        rows[1, 2] = float(kind)
    if kind == "zero":
        rows[1] = 0
    return {"integers": np.ones((3, DIM), int), "narrow": rows[:, :4], "flat": rows[0]}.get(kind, rows)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("nan", "hold a NaN, an infinite or a huge value, the first in row 1"),
        ("inf", "hold a NaN, an infinite or a huge value, the first in row 1"),
        ("zero", "are zero, the first in row 1"),
        ("integers", "give floating-point numbers"),
        ("narrow", r"expected \(N, 8\), of the encoder that the index was made with"),
        ("flat", r"give one vector as x\[None\]"),
    ],
)
@pytest.mark.parametrize("call", ["build", "add", "update", "search"])
def test_bad_vectors(kind, sentence, call):
    index = build(count=20)
    before = index.search(vectors(4), 5)
    if call == "build":
        if kind == "narrow":
            return
        with pytest.raises((ValueError, TypeError), match=sentence):
            Index.build(bad(kind))
        return
    with pytest.raises((ValueError, TypeError), match=sentence):
        {
            "add": lambda: index.add(bad(kind), [100, 101, 102]),
            "update": lambda: index.update(bad(kind), [0, 1, 2]),
            "search": lambda: index.search(bad(kind)),
        }[call]()
    after = index.search(vectors(4), 5)
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("ids", "error", "sentence"),
    [
        ([5, 100], ValueError, "1 of 2 ids are in the index, as 5; use update"),
        ([100, 100], ValueError, "1 ids stand more than once, as 100"),
        ([100], ValueError, "1 ids for 2 vectors"),
        (["a", "b"], TypeError, "the ids here are integers, the first given is 'a'"),
        ([1.5, 2.5], TypeError, "give integers, or strings"),
        ([[100], [101]], ValueError, "give one id for each vector"),
    ],
)
def test_bad_ids(ids, error, sentence):
    index = build(count=20)
    with pytest.raises(error, match=sentence):
        index.add(vectors(2), ids)
    assert index.ids.tolist() == list(range(20))
    with pytest.raises(KeyError, match="1 of 2 ids are not in the index, as 77"):
        index.remove([3, 77])
    assert 3 in index


def test_bad_columns_and_options():
    index = build(count=4, metadata={"label": [0, 1, 2, 3]})
    for metadata, sentence in (
        (None, "has the columns none, the index has"),
        ({"label": [1, 2]}, "metadata has 2 rows for 1 vectors"),
        ({"label": ["x"]}, "does not have the types of the index"),
        ({"label": [1], "id": [3]}, "rename the column"),
    ):
        with pytest.raises(ValueError, match=sentence):
            index.add(vectors(1), [9], metadata)
    assert len(index) == 4
    with pytest.raises(TypeError, match=r"k is 1\.5; give a whole number from 1 to"):
        index.search(vectors(1), 1.5)
    with pytest.raises(ValueError, match="k is 0"):
        index.search(vectors(1), 0)
    with pytest.raises(ValueError, match="metric is 'manhattan'; choose one of cosine"):
        Index(4, "manhattan")
    with pytest.raises(ValueError, match="is no index that FAISS can make"):
        Index(4, factory="Tree7")
    with pytest.raises(ValueError, match="cannot be trained on 20 vectors"):
        build("IVF64,Flat", 20)
    with pytest.raises(ValueError, match="must be trained first"):
        Index(DIM, factory="IVF4,Flat").add(vectors(2))
    with pytest.raises(ValueError, match="minus the largest distance"):
        Index.build(vectors(3), metric="euclidean").range_search(vectors(1), 1.0)
    with pytest.raises(ValueError, match="at least one thread"):
        engine.set_threads(0)


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("part", ["store", "faiss", "metadata"])
def test_an_add_that_fails_changes_nothing(factory, part, monkeypatch):
    index = build(factory, 60, metadata={"label": [0] * 60})

    def fail(*_):
        raise MemoryError("no room")

    with monkeypatch.context() as patched:
        owner = {
            "store": index._neighbours.store,
            "faiss": index._neighbours.approximate,
            "metadata": index._metadata,
        }[part]
        if owner is None:
            return
        patched.setattr(owner, "append" if part != "faiss" else "add", fail)
        with pytest.raises(MemoryError):
            index.add(vectors(5, seed=6), range(60, 65), {"label": [1] * 5})
    assert index.ids.tolist() == list(range(60))
    index.add(vectors(5, seed=6), range(60, 65), {"label": [1] * 5})
    assert index.search(vectors(5, seed=6), 1)[1][:, 0].tolist() == list(range(60, 65))
    assert index.metadata["label"].to_pylist() == [0] * 60 + [1] * 5


# ---------------------------------------------------------------------- on disk


@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize("factory", [*FACTORIES, "IVF4,PQ4x4"])
def test_what_was_saved_is_loaded(factory, mmap, tmp_path):
    index = build(factory, metadata={"label": np.arange(200) % 7, "name": [str(i) for i in range(200)]})
    index.remove([0, 17])
    index.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index", mmap=mmap)
    assert loaded.manifest == index.manifest
    assert loaded.metadata.equals(index.metadata)
    queries = vectors(20, seed=7)
    for ours, theirs in zip(index.search(queries, 5), loaded.search(queries, 5), strict=True):
        assert (ours == theirs).all()
    loaded.add(queries[:1], [999], {"label": [1], "name": ["new"]})
    assert loaded.search(queries[:1], 1)[1].item() == 999
    assert 999 not in Index.load(tmp_path / "index")
    loaded.save(tmp_path / "index")
    assert 999 in Index.load(tmp_path / "index")
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "index").iterdir()) == [
        "files",
        "manifest.json",
    ]


def saved(tmp_path, **options):
    folder = build("HNSW8", **options).save(tmp_path / "index")
    manifest = json.loads((folder / "manifest.json").read_text())
    return folder, folder / manifest["folder"], manifest


def test_damage_is_refused(tmp_path):
    folder, files, manifest = saved(tmp_path)
    content = (files / "search.faiss").read_bytes()
    (files / "search.faiss").write_bytes(content[:-100])
    with pytest.raises(
        ValueError, match=r"search.faiss has \d+ bytes instead of \d+; the folder is incomplete"
    ):
        Index.load(folder)
    (files / "search.faiss").write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    with pytest.raises(ValueError, match="does not have the checksum that was recorded"):
        Index.load(folder)
    (files / "search.faiss").write_bytes(content)
    (files / "items.parquet").rename(tmp_path / "items.parquet")
    with pytest.raises(ValueError, match=r"items.parquet is missing"):
        Index.load(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        Index.load(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(ValueError, match="has version 99 of the format"):
        Index.load(folder)


def test_foreign_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no contrastive index \\(no such folder\\)"):
        Index.load(tmp_path / "nothing")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"is no contrastive index \(cat.png\)"):
        Index.load(tmp_path / "photos")
    with pytest.raises(FileExistsError, match="holds something that is no contrastive index"):
        build().save(tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.png").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"kind": "recipes"}')
    with pytest.raises(ValueError, match="is a recipes, no contrastive index"):
        Index.load(tmp_path / "other")


def test_a_damaged_index_may_be_replaced(tmp_path):
    folder, _, manifest = saved(tmp_path)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    build().save(folder)
    assert len(Index.load(folder)) == 200


def test_another_encoder_is_refused(tmp_path):
    folder, _, _ = saved(tmp_path, fingerprint="a" * 64)
    assert len(Index.load(folder, fingerprint="a" * 64)) == 200
    with pytest.raises(
        ValueError, match="holds vectors of the encoder aaaaaaaaaaaa, queries come from bbbbbbbbbbbb"
    ):
        Index.load(folder, fingerprint="b" * 64)


def test_a_save_that_fails_leaves_the_old_index(tmp_path, monkeypatch):
    index = build()
    index.save(tmp_path / "index")
    index.remove([0])

    def fail(*_):
        raise OSError("disk full")

    for name in ("write_table", "Neighbours.write"):
        with monkeypatch.context() as patched:
            patched.setattr(f"contrastive.retrieval.index.{name}", fail)
            with pytest.raises(OSError, match="disk full"):
                index.save(tmp_path / "index")
        assert len(Index.load(tmp_path / "index")) == 200
    index.save(tmp_path / "index")
    assert len(Index.load(tmp_path / "index")) == 199


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF4,PQ4x4"])
@pytest.mark.parametrize("how", ["built", "read", "mapped"])
def test_a_saved_index_and_the_one_in_memory_are_independent(factory, how, tmp_path):
    index = build(factory)
    index.save(tmp_path / "index")
    if how != "built":
        index = Index.load(tmp_path / "index", mmap=how == "mapped")
    for size in (199, 198):  # the files that it was read from are gone after the first
        index.remove([size])
        index.save(tmp_path / "index")
        assert len(Index.load(tmp_path / "index")) == size
    index.add(vectors(3, seed=11), [500, 501, 502])
    assert index.search(vectors(3, seed=11), 1)[1][:, 0].tolist() == [500, 501, 502]
    assert len(Index.load(tmp_path / "index")) == 198
    index.save(tmp_path / "index")
    assert Index.load(tmp_path / "index").search(vectors(3, seed=11), 1)[1][:, 0].tolist() == [500, 501, 502]


# ---------------------------------------------------------------------- merging


@pytest.mark.parametrize("strings", [False, True])
def test_merged_indexes_are_one_index(strings, tmp_path):
    rows, numbers = vectors(300), np.arange(300)
    ids = [f"i{n}" for n in numbers] if strings else numbers.tolist()
    parts = []
    for number in range(3):
        part = slice(100 * number, 100 * (number + 1))
        index = Index.build(rows[part], ids[part], metadata={"n": numbers[part]})
        parts.append(index if number == 1 else index.save(tmp_path / str(number)))
    whole = Index.build(rows, ids, metadata={"n": numbers})
    merged = Index.merge(parts)
    queries = vectors(10, seed=8)
    for ours, theirs in zip(merged.search(queries, 20), whole.search(queries, 20), strict=True):
        assert (ours == theirs).all()
    assert merged.metadata.to_pydict() == whole.metadata.to_pydict()
    shutil.rmtree(tmp_path / "0")
    merged.save(tmp_path / "merged")
    assert len(Index.load(tmp_path / "merged")) == 300


def test_what_cannot_be_merged(tmp_path):
    index = build(count=20)
    with pytest.raises(ValueError, match="got no index"):
        Index.merge([])
    with pytest.raises(ValueError, match="metric is 'cosine' in the first index and 'dot' in another"):
        Index.merge([index, Index.build(vectors(3), metric="dot")])
    with pytest.raises(ValueError, match="ids are in the index, as 0"):
        Index.merge([index, index])
