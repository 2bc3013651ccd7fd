"""Threads beside each other: the lock, and searching an index while it changes."""

import copy
import importlib.util
import pickle
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contrastive.errors import NotReady
from contrastive.retrieval import Index
from contrastive.retrieval.threads import ReadersWriter
from recsys import Recommender, SequenceData
from recsys.encoders import GRU4Rec

SCRIPT = Path(__file__).parents[2] / "scripts" / "reliability" / "threads.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("reliability_threads", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def often() -> Any:
    """Threads take turns often, so that what can go wrong does so in a second."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_thread(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_readers_share_and_a_writer_is_alone() -> None:
    lock, inside, most, alone = ReadersWriter(), set[int](), [0], [True]
    start = threading.Barrier(5)

    def read() -> None:
        start.wait()
        for _ in range(200):
            with lock.reading, lock.reading:
                inside.add(threading.get_ident())
                most[0] = max(most[0], len(inside))
                time.sleep(0)
                inside.discard(threading.get_ident())

    def write() -> None:
        start.wait()
        for _ in range(200):
            with lock.writing, lock.reading, lock.writing:
                alone[0] &= not inside
                inside.add(0)
                time.sleep(0)
                inside.discard(0)

    threads = [in_thread(work) for work in (read, read, read, write, write)]
    for thread in threads:
        thread.join(30)
    assert alone[0]
    assert most[0] > 1
    assert not any(thread.is_alive() for thread in threads)


def test_neither_readers_nor_writers_wait_for_ever() -> None:
    lock, stop = ReadersWriter(), threading.Event()
    done = {"read": 0, "write": 0}

    def loop(mode: str, held: Any) -> None:
        while not stop.is_set():
            with held:
                time.sleep(0.001)
            done[mode] += 1

    threads = [in_thread(lambda: loop("read", lock.reading)) for _ in range(4)]
    threads += [in_thread(lambda: loop("write", lock.writing)) for _ in range(2)]
    time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert min(done.values()) > 20, done


def test_a_reader_cannot_begin_to_write() -> None:
    lock = ReadersWriter()
    with lock.reading, pytest.raises(NotReady, match="end reading first"), lock.writing:
        pass
    with lock.writing:  # nothing is left held
        pass


def test_a_copied_lock_is_free() -> None:
    lock = ReadersWriter()
    with lock.writing:
        others = copy.deepcopy(lock), pickle.loads(pickle.dumps(lock))
    for other in others:
        with other.writing:
            pass


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF16,Flat"])
@pytest.mark.parametrize("change", ["add", "remove", "update"])
def test_searches_beside_changes_are_right(script: Any, factory: str, change: str) -> None:
    found = script.try_index(factory, change, 0.4, 8)
    assert not found["wrong"]
    assert not found["exceptions"]
    assert found["searches"] > 8
    assert found["changes"] > 0


def test_recommendations_beside_new_items_are_right(script: Any) -> None:
    found = script.try_recommender("HNSW16", 0.5, 8)
    assert not found["wrong"]
    assert not found["exceptions"]
    assert found["searches"] > 8
    assert found["changes"] > 0


def test_new_items_that_fail_leave_the_recommender(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(80)
    data = SequenceData.from_dataframe({"user": rows // 4, "item": rows % 40, "time": rows}, time="time")
    recommender = Recommender.from_model(GRU4Rec(num_items=40, dim=8, max_length=8), data)
    before = recommender.recommend([1, 2, 3], 5)

    def fail(*_: Any) -> Any:
        raise MemoryError

    for place in ("recsys.recommend.torch.cat", "contrastive.retrieval.vectors.Store.append"):
        with monkeypatch.context() as patched:
            patched.setattr(place, fail)
            with pytest.raises(MemoryError):
                recommender.add_items([1000], vectors=torch.ones(1, 8))
        assert (len(recommender), recommender.encoder.num_items, 1000 in recommender) == (40, 40, False)
    for same in (recommender, pickle.loads(pickle.dumps(recommender)), copy.deepcopy(recommender)):
        assert same.recommend([1, 2, 3], 5).ids == before.ids
    recommender.add_items([1000], vectors=torch.ones(1, 8))
    assert 1000 in recommender


def test_eight_threads_search_after_a_removal() -> None:
    vectors = np.random.default_rng(0).normal(size=(6_000, 32)).astype("f4")
    index = Index.build(vectors, factory="Flat")
    index.remove(np.arange(1_000))
    wrong: list[Any] = []
    start = threading.Barrier(8)

    def search(first: int) -> None:
        start.wait()
        try:
            found = index.search(vectors[first : first + 20], 3)[1]
            if (found[:, 0] != np.arange(first, first + 20)).any():
                wrong.append(found)
        except Exception as error:
            wrong.append(error)

    threads = [in_thread(lambda first=first: search(first)) for first in range(1_000, 5_000, 500)]
    for thread in threads:
        thread.join(30)
    assert not wrong


# ---------------------------------------------------------------------- holes, changes that fail, copies


def test_removed_vectors_are_passed_over_without_a_copy_of_the_rest(monkeypatch: Any) -> None:
    monkeypatch.setattr("contrastive.retrieval.index._SMALL", 0)  # as if it were large
    vectors = np.random.default_rng(0).normal(size=(900, 8)).astype("f4")
    index = Index.build(vectors, metadata={"n": np.arange(900) % 7})
    gone = np.arange(0, 200, 3)
    index.remove(gone)
    kept = np.setdiff1d(np.arange(900), gone)
    assert len(index._ids) == 900  # holes
    other = Index.build(vectors[kept], kept, metadata={"n": kept % 7})
    for filter in (None, {"n": [1, 2]}, {"n": [0, 1, 2, 3, 4, 5]}):
        for mine, its in zip(
            index.search(vectors[:40], 12, filter), other.search(vectors[:40], 12, filter), strict=True
        ):
            np.testing.assert_array_equal(mine, its)
        for mine, its in zip(
            index.range_search(vectors[:40], 0.5, filter),
            other.range_search(vectors[:40], 0.5, filter),
            strict=True,
        ):
            for a, b in zip(mine, its, strict=True):
                np.testing.assert_array_equal(a, b)
    assert np.isneginf(index.search(vectors[:1], 900)[0][0, len(kept) :]).all()
    index.remove(np.arange(300, 600))  # many: the room is given back
    assert len(index._ids) == len(index)


def test_a_failed_change_leaves_everything(monkeypatch: Any) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 4)).astype("f4")
    index = Index.build(vectors, metadata={"n": list(range(50))})
    before = index.search(vectors, 3)

    def fail(*_: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("contrastive.retrieval.vectors.Store.append", fail)
        patched.setattr("contrastive.retrieval.vectors.Store.keep", fail)
        for change in (
            lambda: index.add(vectors[:2], metadata={"n": [1, 2]}),
            lambda: index.update(vectors[:2], [3, 4]),
        ):
            with pytest.raises(MemoryError):
                change()
    for mine, its in zip(index.search(vectors, 3), before, strict=True):
        np.testing.assert_array_equal(mine, its)
    assert index.ids.tolist() == list(range(50))
    assert index.metadata["n"].to_pylist() == list(range(50))
    empty = Index(4)
    with monkeypatch.context() as patched:
        patched.setattr("contrastive.retrieval.vectors.Store.append", fail)
        with pytest.raises(MemoryError):
            empty.add(vectors[:1], ["a"])
    empty.add(vectors[:1], [1])  # ids of either kind may still come
    assert empty.manifest["id"] == "integer"


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF8,Flat", "IVF4,PQ2x4"])
def test_an_index_is_pickled_and_copied(tmp_path: Path, factory: str, mapped: bool) -> None:
    vectors = np.random.default_rng(0).normal(size=(1_000, 8)).astype("f4")
    index = Index.build(vectors, factory=factory, metadata={"n": np.arange(1_000)}, keep_vectors=True)
    if not index.exact:
        index.tune(0.5)
    if mapped:
        index = Index.load(index.save(tmp_path / "index"), mmap=True)
    for other in (pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        assert other.manifest == index.manifest
        for mine, its in zip(other.search(vectors[:9], 4), index.search(vectors[:9], 4), strict=True):
            np.testing.assert_array_equal(mine, its)
        other.remove([1])
        other.add(vectors[1:2], [5_000], {"n": [3]})
        assert 1 in index
        assert 5_000 not in index
        assert 5_000 in other
