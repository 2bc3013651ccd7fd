"""The embedded database answers as the index that was copied to it."""

import numpy as np
import pytest

from contrastive.retrieval import Index
from contrastive.retrieval.milvus import MilvusIndex, export_to_milvus, expression

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def test_filters_are_quoted():
    assert (
        expression({"a": 3, "b": ["x", 'y"'], "c": slice(1, None)})
        == 'a == 3 and b in ["x", "y\\""] and c >= 1'
    )
    with pytest.raises(ValueError, match="'a or 1' cannot be named"):
        expression({"a or 1": 2})


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("strings", [False, True], ids=["integers", "strings"])
def test_results_are_those_of_the_index(metric, strings, tmp_path):
    pytest.importorskip("pymilvus", reason="the extra 'milvus' is not installed")
    pytest.importorskip("milvus_lite", reason="the extra 'milvus' is not installed")
    random = np.random.default_rng(0)
    rows = random.normal(size=(300, 8)).astype(np.float32)
    ids = [f"item {i}" if strings else i for i in range(300)]
    metadata = {
        "label": np.arange(300) % 5,
        "name": [f"n{i % 7}" for i in range(300)],
        "thumbnail": [b"x"] * 300,
    }
    index = Index.build(rows, ids, metric=metric, metadata=metadata, fingerprint="f")
    there = export_to_milvus(index, uri=str(tmp_path / "milvus.db"), index_type="FLAT")
    assert (len(there), there.metric, there.fingerprint) == (300, metric, "f")
    queries = random.normal(size=(5, 8))
    for filter in (None, {"label": [1, 2], "name": "n3"}, {"label": slice(3, 4)}):
        ours, theirs = index.search(queries, 6, filter), there.search(queries, 6, filter)
        assert ours[1].tolist() == theirs[1].tolist()
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(FileExistsError, match="has a collection 'contrastive'"):
        export_to_milvus(index, uri=str(tmp_path / "milvus.db"))
    with pytest.raises(FileNotFoundError, match="has no collection 'other'"):
        MilvusIndex(uri=str(tmp_path / "milvus.db"), collection="other")
