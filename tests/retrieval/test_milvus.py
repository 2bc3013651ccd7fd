"""The embedded database answers as the index that was copied to it, and takes nothing that it would change."""

import datetime
import importlib
import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contrastive.retrieval import Index
from contrastive.retrieval.milvus import MilvusIndex, export_to_milvus, expression
from tests.retrieval.twin import FILTERS, REFUSED, ROWS, as_columns

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
DIM = 6
SCHEMA = pa.schema([("year", pa.int64()), ("price", pa.float64()), ("tag", pa.string()), ("new", pa.bool_())])


def vectors(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One database for all tests, as opening one takes a while."""
    pytest.importorskip("pymilvus", reason="the extra 'milvus' is not installed")
    pytest.importorskip("milvus_lite", reason="the extra 'milvus' is not installed")
    return str(tmp_path_factory.mktemp("milvus") / "milvus.db")


@pytest.fixture
def client(uri):
    """An empty database."""
    found = importlib.import_module("pymilvus").MilvusClient(uri=uri)
    for name in found.list_collections():
        found.drop_collection(name)
    return found


def test_filters_are_quoted():
    assert (
        expression({"a": 3, "b": ["x", 'y"'], "c": slice(1, None)})
        == 'a == 3 and b in ["x", "y\\""] and c >= 1'
    )
    assert expression({"a": "\\\n\t\r\0\x1fé"}) == 'a == "\\\\\\n\\t\\r\0\x1fé"'
    assert expression({"größe": [1.5, 0.0]}) == "(größe in [1.5, 0.0] or größe == 0.0)"
    assert expression(None) == expression({}) == ""
    assert expression({"a": None}) is expression({"a": []}) is None  # nothing meets it
    with pytest.raises(ValueError, match="'a or 1' cannot be named"):
        expression({"a or 1": 2})


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("strings", [False, True], ids=["integers", "strings"])
def test_results_are_those_of_the_index(metric, strings, uri, client):
    rows = vectors(300, dim=8)
    ids = [f"item {i}" if strings else i for i in range(300)]
    metadata = {
        "label": np.arange(300) % 5,
        "name": [f"n{i % 7}" for i in range(300)],
        "thumbnail": [b"x"] * 300,
    }
    index = Index.build(rows, ids, metric=metric, metadata=metadata, fingerprint="f")
    there = export_to_milvus(index, uri=uri, index_type="FLAT")
    assert (len(there), there.metric, there.fingerprint) == (300, metric, "f")
    queries = vectors(5, seed=1, dim=8)
    for filter in (None, {"label": [1, 2], "name": "n3"}, {"label": slice(3, 4)}):
        ours, theirs = index.search(queries, 6, filter), there.search(queries, 6, filter)
        assert ours[1].tolist() == theirs[1].tolist()
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(FileExistsError, match="has a collection 'contrastive'"):
        export_to_milvus(index, uri=uri)
    assert len(MilvusIndex(uri=uri)) == 300  # of a refused export nothing changes
    with pytest.raises(FileNotFoundError, match="has no collection 'other'"):
        MilvusIndex(uri=uri, collection="other")


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("name", "cells", "reason"),
    [
        ("when", np.array(["2020-01-01"] * 4, "datetime64[ns]"), r"of type timestamp\[ns\] cannot go along"),
        ("day", [datetime.date(2020, 1, 1)] * 4, r"of type date32\[day\] cannot go along"),
        ("deep", [[[1]]] * 4, r"of type list<.*> cannot go along"),
        ("parts", [{"a": 1}] * 4, r"of type struct<a: int64> cannot go along"),
        ("price", [1.0, math.inf, -math.inf, 2.0], "holds 2 infinite values"),
        ("prices", [[1.0], [math.inf], [], [2.0]], "holds 1 infinite values"),
        ("big", np.array([1, 2, 3, 2**63], np.uint64), r"holds 1 numbers of 2\^63 or more"),
        ("vector", [1, 2, 3, 4], "'vector' is a field of every collection"),
        ("in", [1, 2, 3, 4], "'in' is a word of Milvus's filters"),
        ("Exists", [1, 2, 3, 4], "'Exists' is a word of Milvus's filters"),
        ("true", [1, 2, 3, 4], "'true' is a word of Milvus's filters"),
        ("a b", [1, 2, 3, 4], "'a b' is no name of letters"),
    ],
)
def test_columns_that_would_be_lost_are_refused_before(name, cells, reason, uri, client):
    index = Index.build(vectors(4), metadata={name: cells, "good": [1, 2, 3, 4]})
    with pytest.raises(ValueError, match=rf"^export_to_milvus: the column '{name}'.*{reason}.*leave .* out"):
        export_to_milvus(index, uri=uri)
    assert client.list_collections() == []
    there = export_to_milvus(index, uri=uri, columns=["good"])
    assert there.search(vectors(1), 4, {"good": [2, 3]})[1][0, 2:].tolist() == [-1, -1]


def test_codes_and_what_is_no_index_are_refused_before(uri, client):
    codes = Index.build(vectors(400), factory="IVF4,PQ2x4", keep_vectors=False, recall=None)
    with pytest.raises(ValueError, match=r"^export_to_milvus: factory='IVF4,PQ2x4' keeps codes, not vectors"):
        export_to_milvus(codes, uri=uri)
    with pytest.raises(TypeError, match=r"^export_to_milvus: index is array"):
        export_to_milvus(vectors(3), uri=uri)
    index = Index.build(vectors(4), metadata={"a": [1] * 4})
    with pytest.raises(ValueError, match=r"there is no column 'b'; there are: .'a'."):
        export_to_milvus(index, uri=uri, columns=["b"])
    with pytest.raises(ValueError, match=r"^Milvus: collection is 'a b'; give a name of letters"):
        export_to_milvus(index, uri=uri, collection="a b")
    assert client.list_collections() == []
    lists = Index.build(vectors(400), factory="IVF4,Flat", recall=None)  # holds its vectors
    assert len(export_to_milvus(lists, uri=uri)) == 400
    for address in ("no-ending", "/no/such/folder/a.db"):
        with pytest.raises(
            OSError, match=f"^Milvus: {address} cannot be opened .*; give a file ending in .db"
        ):
            MilvusIndex(uri=address)


@pytest.mark.parametrize("step", ["create_collection", "insert", "flush"])
def test_a_failed_export_leaves_nothing(step, uri, client, monkeypatch):
    pymilvus = importlib.import_module("pymilvus")
    client.create_collection("theirs", dimension=4)
    real = getattr(pymilvus.MilvusClient, step)

    def failing(self, *args, **kwargs):
        if step != "insert" or len(args[1]) < 1000:  # the second request
            if step == "create_collection":
                real(self, *args, **kwargs)
            raise pymilvus.MilvusException(message="out of room")
        return real(self, *args, **kwargs)

    index = Index.build(vectors(1200))
    with monkeypatch.context() as patch:
        patch.setattr(pymilvus.MilvusClient, step, failing)
        with pytest.raises(
            OSError, match=r"^export_to_milvus: .*milvus.db does not take the rows .*out of room"
        ):
            export_to_milvus(index, uri=uri)
        patch.setattr(pymilvus.MilvusClient, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_to_milvus(index, uri=uri)
    assert client.list_collections() == ["theirs"]
    assert len(export_to_milvus(index, uri=uri)) == 1200


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_collection_of_others_is_never_dropped(uri, client, monkeypatch):
    pymilvus = importlib.import_module("pymilvus")
    index = Index.build(vectors(20))
    export_to_milvus(index, uri=uri, collection="theirs")
    # Somebody makes it between the look and the making.
    monkeypatch.setattr(pymilvus.MilvusClient, "has_collection", lambda *_, **__: False)
    with pytest.raises(OSError, match=r"does not take the rows .*already exists"):
        export_to_milvus(index, uri=uri, collection="theirs")
    assert client.list_collections() == ["theirs"]
    monkeypatch.undo()
    assert len(MilvusIndex(uri=uri, collection="theirs")) == 20
    client.create_collection("plain", dimension=4)
    with pytest.raises(ValueError, match=r"'plain' of .* was not made by export_to_milvus"):
        MilvusIndex(uri=uri, collection="plain")


# ------------------------------------------------------------------ the same answers


def answer(search, *arguments):
    """Ids and scores, or the words of a refusal."""
    try:
        scores, ids = search(*arguments)
    except (ValueError, TypeError, KeyError) as error:
        return f"{type(error).__name__}: {error}", ()
    return ids[0].tolist(), scores[0]


def refusal(store, call, *arguments):
    """The class of a refusal, and the function that refused."""
    try:
        getattr(store, call)(*arguments)
    except (ValueError, TypeError, KeyError) as error:
        return type(error), str(error).split(":")[0]
    return None


def test_every_kind_of_column_filters_alike_when_opened_later(uri, client):
    columns = {
        "half": np.array([0.1, 7, math.nan, -0.0, 0, 5], np.float16),
        "single": pa.array([0.1, 7, math.nan, -0.0, None, 1e30], pa.float32()),
        "small": np.array([0, 7, 200, 1, 2, 3], np.uint8),
        "wide": [0, 7, None, -(2**63), 2**63 - 1, 2**53 + 1],
        "kind": pa.array(["x", "7", None, "y", "x", ""]).dictionary_encode(),
        "parts": [["a", "7"], [], None, ["b"], ["a"], [""]],
        "numbers": [[1, 7], [], None, [3], [0], [7]],
        "prices": [[0.1, math.nan], [7.0], None, [-0.0], [0.0], [2.5]],
        "none": pa.nulls(6),
        "größe": range(6),
        "new": [True, False, None, True, False, True],
    }
    index = Index.build(vectors(6), metadata=pa.table(columns))
    export_to_milvus(index, uri=uri, index_type="FLAT")
    there = MilvusIndex(uri=uri)
    values = [
        None,
        math.nan,
        0,
        0.1,
        -0.0,
        7,
        7.0,
        7.5,
        "7",
        "a",
        "",
        True,
        2**53,
        -(2**70),
        300,
        np.int64(3),
        b"a",
    ]
    ends = [None, 0.1, 7, -1, math.inf, "7", True, 2**63 - 1, 1e300]
    for name in [*columns, "nosuch"]:
        wanted = [*values, values, values[:4], ["7", "a"], [3, 0.0, 2.5], [], (True, False)]
        if name not in ("parts", "numbers", "prices"):
            wanted += [slice(low, high) for low in ends for high in ends[::2]]
        for one in wanted:
            ours, theirs = (answer(store.search, vectors(1), 6, {name: one}) for store in (index, there))
            assert ours[0] == theirs[0], (name, one)
    with pytest.raises(
        ValueError, match="Milvus compares no range with the entries of lists, as 'parts' holds"
    ):
        there.search(vectors(1), 6, {"parts": slice("a", "b")})


STEP = st.tuples(
    st.sampled_from(["add", "add", "update", "remove", "search", "search", "range", "wrong"]),
    st.integers(0, 2**31),
    st.lists(ROWS, min_size=1, max_size=5),
    FILTERS,
    st.sampled_from(REFUSED),
)


@given(
    metric=st.sampled_from(["cosine", "dot", "euclidean"]),
    strings=st.booleans(),
    rows=st.lists(ROWS, min_size=3, max_size=12),
    steps=st.lists(STEP, min_size=4, max_size=12),
)
@settings(
    max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
def test_one_sequence_of_changes_and_searches_finds_the_same(uri, metric, strings, rows, steps):
    def named(first, count):
        return [f"item {i}" if strings else 3 * i - 20 for i in range(first, first + count)]

    table, last = pa.table(as_columns(rows), SCHEMA), len(rows)
    index = Index.build(vectors(last), named(0, last), metric=metric, metadata=table)
    client = importlib.import_module("pymilvus").MilvusClient(uri=uri)
    client.drop_collection("sequence")
    export_to_milvus(index, uri=uri, collection="sequence", index_type="FLAT")
    there = MilvusIndex(uri=uri, collection="sequence")
    for what, seed, rows, filter, wrong in steps:
        random, fresh = np.random.default_rng(seed), vectors(len(rows), seed)
        table, alive = pa.table(as_columns(rows), SCHEMA), sorted(index.ids.tolist())
        some = random.permutation(np.array(alive, object))[: len(rows)].tolist()
        query, k = vectors(1, seed + 1), int(random.integers(1, 15))
        for store in (index, there):
            if what == "add":
                store.add(fresh, named(last, len(rows)), table)
            elif what == "update":
                store.update(fresh[: len(some)], some, table[: len(some)] if seed % 2 else None)
            elif what == "remove":
                store.remove(some)
        last += len(rows) * (what == "add")
        assert len(index) == len(there)
        if what == "wrong":
            for words in [
                ("search", query, k, wrong),
                ("range_search", query, 0.0, wrong),
                ("search", query, 0),
                ("search", query[:, 1:], k),
                ("add", fresh[: len(alive)], alive[: len(fresh)], table[: len(alive)]),
                ("add", fresh, named(last, len(rows)), table.drop_columns(["year"])),
                ("update", fresh, named(10**6, len(fresh)), table),
                ("remove", named(10**6, 1)),
                ("remove", [5 if strings else "x"]),
            ]:
                assert refusal(index, *words) == refusal(there, *words) is not None, words
        if what not in ("search", "range"):
            continue
        ours, theirs = (answer(store.search, query, k, filter) for store in (index, there))
        if what == "range":
            scores = index.search(query, k)[0][0]
            bound = float(scores[np.isfinite(scores)][-1:].sum()) - 3e-4  # between two scores
            ours, theirs = (answer(store.range_search, query, bound, filter) for store in (index, there))
        assert ours[0] == theirs[0]
        np.testing.assert_allclose(
            ours[1], theirs[1], rtol=1e-4, atol=2e-3 if metric == "euclidean" else 1e-5
        )


def test_a_range_holds_what_is_at_its_bound(uri, client):
    rows = np.eye(DIM, dtype=np.float32)
    for metric, bounds in {
        "cosine": (1.0, 0.0, -1.0),
        "dot": (1.0, 0.0),
        "euclidean": (0.0, -(2.0**0.5), -3.0),
    }.items():
        index = Index.build(rows, metric=metric)
        there = export_to_milvus(index, uri=uri, collection=metric, index_type="FLAT")
        for bound in bounds:
            assert sorted(there.range_search(rows[:1], bound)[1][0]) == sorted(
                index.range_search(rows[:1], bound)[1][0]
            )
        assert [found.shape for found in there.range_search(rows[:0], 0.0)[1]] == []
    with pytest.raises(ValueError, match="give minus the largest distance"):
        there.range_search(rows[:1], 1.0)


def test_k_are_found_wherever_there_are_k(uri, client):
    rows = vectors(2000)
    there = export_to_milvus(Index.build(rows), uri=uri)  # a graph, which does not reach all by itself
    scores, ids = there.search(vectors(2, seed=1), 1999)
    assert all(len(set(row)) == 1999 for row in ids.tolist())
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    assert (there.search(rows[:1], 2001)[1][0] == -1).sum() == 1
    assert there.search(rows[:0], 3)[1].shape == (0, 3)


def test_collections_of_earlier_versions_are_searched_as_before(uri, client):
    index = Index.build(vectors(6), metadata={"year": [1, 2, None, 4, 5, 6], "name": list("abcdef")})
    export_to_milvus(index, uri=uri, index_type="FLAT")
    about = json.loads(client.describe_collection("contrastive")["properties"]["contrastive.index"])
    old = {name: about[name] for name in ("metric", "dim", "fingerprint", "id")}
    client.alter_collection_properties("contrastive", properties={"contrastive.index": json.dumps(old)})
    there = MilvusIndex(uri=uri)
    for filter in ({"year": [1, 4]}, {"year": slice(2, None), "name": ["b", "f", "z"]}, {"name": "a"}, None):
        assert (
            there.search(vectors(1), 6, filter)[1].tolist() == index.search(vectors(1), 6, filter)[1].tolist()
        )
    there.add(vectors(1, seed=3), [9], {"year": [7], "name": ["g"]})
    assert there.search(vectors(1), 1, {"year": 7})[1].tolist() == [[9]]
