"""Whatever is done to an index, it answers as a dictionary that compares everything."""

import math
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from contrastive.retrieval import Index
from tests.retrieval.twin import FILTERS, REFUSED, ROWS, Twin, as_columns

DIM, LISTS = 6, 4
SCHEMA = pa.schema([("year", pa.int64()), ("price", pa.float64()), ("tag", pa.string()), ("new", pa.bool_())])
SEEDS = st.integers(0, 2**31)


def vectors(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


class Beside(RuleBasedStateMachine):
    """An index and its twin; of every search scores and ids are compared."""

    @initialize(
        metric=st.sampled_from(["cosine", "dot", "euclidean"]),
        factory=st.sampled_from(["Flat", f"IVF{LISTS},Flat"]),
        strings=st.booleans(),
        rows=st.lists(ROWS, min_size=LISTS, max_size=12),
        seed=SEEDS,
    )
    def build(self, metric, factory, strings, rows, seed):
        self.strings, self.next = strings, 0
        ids, fresh = self._ids(len(rows)), vectors(len(rows), seed)
        self.twin = Twin(metric)
        self.twin.put(ids, fresh, rows)
        self.index = Index.build(
            fresh, ids, metric=metric, factory=factory, metadata=self._table(rows), recall=None
        )
        self.folder = Path(tempfile.mkdtemp())

    def teardown(self):
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def _ids(self, count):
        self.next += count
        ids = range(self.next - count, self.next)
        return [f"item {i}" if self.strings else 3 * i - 20 for i in ids]

    def _table(self, rows):
        return pa.table(as_columns(rows), SCHEMA)

    def _some(self, data):
        return data.draw(
            st.lists(st.sampled_from(sorted(self.twin.rows)), min_size=1, max_size=4, unique=True)
        )

    @rule(rows=st.lists(ROWS, min_size=1, max_size=5), seed=SEEDS)
    def add(self, rows, seed):
        ids, fresh = self._ids(len(rows)), vectors(len(rows), seed)
        self.index.add(fresh, ids, self._table(rows))
        self.twin.put(ids, fresh, rows)

    @precondition(lambda self: self.twin.rows)
    @rule(data=st.data(), rows=st.lists(ROWS, min_size=4, max_size=4), columns=st.booleans(), seed=SEEDS)
    def update(self, data, rows, columns, seed):
        ids = self._some(data)
        fresh, rows = vectors(len(ids), seed), rows[: len(ids)] if columns else None
        self.index.update(fresh, ids, None if rows is None else self._table(rows))
        self.twin.put(ids, fresh, rows)

    @precondition(lambda self: self.twin.rows)
    @rule(data=st.data())
    def remove(self, data):
        ids = self._some(data)
        self.index.remove(ids)
        self.twin.remove(ids)

    @rule(mapped=st.booleans())
    def save_and_load(self, mapped):
        self.index = Index.load(self.index.save(self.folder / "index"), mmap=mapped)

    @rule()
    def pickle(self):
        self.index = pickle.loads(pickle.dumps(self.index))

    @rule()
    def compact(self):
        self.index.compact()

    @rule(k=st.integers(1, 20), filter=FILTERS, seed=SEEDS)
    def search(self, k, filter, seed):
        query = vectors(1, seed)
        effort = None if self.index.exact else LISTS  # all lists, in which nothing is missed
        scores, ids = self.index.search(query, k, filter, effort=effort)
        expected = self.twin.scores(query[0], filter)
        count = min(k, len(expected))
        found, rest = ids[0, :count].tolist(), ids[0, count:].tolist()
        assert len(set(found) & set(expected)) == count
        assert set(rest) <= {None, -1}
        assert np.isneginf(scores[0, count:]).all()
        best = sorted(expected.values(), reverse=True)[:count]
        np.testing.assert_allclose(scores[0, :count], best, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            scores[0, :count], [expected[item] for item in found], rtol=1e-5, atol=1e-5
        )

    @rule(filter=FILTERS, seed=SEEDS, place=st.integers(0, 10))
    def search_a_range(self, filter, seed, place):
        query = vectors(1, seed)
        expected = self.twin.scores(query[0], filter)
        bounds = [*sorted(expected.values()), 0.0]
        bound = bounds[min(place, len(bounds) - 1)] - 1e-4  # between the scores
        bound = bound if all(abs(score - bound) > 1e-5 for score in expected.values()) else bound - 3.3e-5
        scores, ids = self.index.range_search(query, bound, filter)
        within = {item: score for item, score in expected.items() if score >= bound}
        if self.index.exact:
            assert set(ids[0].tolist()) == set(within)
        assert set(ids[0].tolist()) <= set(within)
        assert (np.diff(scores[0]) <= 0).all()
        np.testing.assert_allclose(
            scores[0], [within[item] for item in ids[0].tolist()], rtol=1e-5, atol=1e-5
        )

    @rule(filter=st.sampled_from(REFUSED))
    def refuse(self, filter):
        with pytest.raises(ValueError, match=r"^search: "):
            self.index.search(vectors(1, 0), 3, filter)

    @invariant()
    def all_is_there(self):
        if not hasattr(self, "index"):
            return
        ids = self.index.ids.tolist()
        assert len(self.index) == len(ids) == len(self.twin.rows)
        assert set(ids) == set(self.twin.rows)
        if not ids:
            return
        np.testing.assert_allclose(
            self.index.reconstruct(ids),
            np.stack([self.twin.vectors[item] for item in ids]),
            rtol=1e-6,
            atol=1e-7,
        )
        for item, row in zip(ids, self.index.columns(ids).to_pylist(), strict=True):
            for name, cell in self.twin.rows[item].items():
                assert row[name] == cell or (math.isnan(row[name]) and math.isnan(cell))


TestBeside = Beside.TestCase
TestBeside.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
