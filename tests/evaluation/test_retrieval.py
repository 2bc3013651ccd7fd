import pytest
import torch

from contrastive.evaluation import Features, retrieval_metrics
from contrastive.evaluation import features as features_module

NAMES = {
    "precision_at_1": "precision_at_1",
    "r_precision": "r_precision",
    "map_at_r": "mean_average_precision_at_r",
    "map": "mean_average_precision",
    "mrr": "mean_reciprocal_rank",
}


@pytest.fixture(params=["self", "cross"])
def case(request, reference):
    """The reference cuts rankings at the largest number of matches that a query can have."""
    expected = reference("metrics-retrieval")
    queries = Features(expected.query, expected.query_labels) if request.param == "cross" else None
    largest = int(torch.bincount(expected.y).max())
    depth = largest if request.param == "cross" else largest - 1
    return expected, request.param, Features(expected.x, expected.y), queries, depth


def test_reference(case):
    expected, name, bank, queries, depth = case
    result = retrieval_metrics(bank, queries, depth=depth)
    for ours, theirs in NAMES.items():
        assert result.metrics[ours] == pytest.approx(float(expected[f"{name}_{theirs}"]), abs=1e-6)
        assert result.class_means[ours] == pytest.approx(
            float(expected[f"{name}_classmean_{theirs}"]), abs=1e-6
        )
    for k in (1, 2, 4, 8):
        assert result.metrics[f"recall_at_{k}"] == pytest.approx(
            float(expected[f"{name}_recall_at_{k}"]), abs=1e-6
        )
    assert result.num_lone == (1 if name == "self" else 0)


def test_reference_of_the_whole_ranking(case):
    expected, name, bank, queries, depth = case
    full = retrieval_metrics(bank, queries).metrics["map"]
    assert full == pytest.approx(float(expected[f"{name}_torchmetrics_map"]), abs=1e-6)
    assert full > retrieval_metrics(bank, queries, depth=depth).metrics["map"] + 0.05


def test_blocks_do_not_change_the_value(case, monkeypatch):
    _, _, bank, queries, _ = case
    whole = retrieval_metrics(bank, queries)
    monkeypatch.setattr(features_module, "BLOCK_ELEMENTS", 8 * 7 * len(bank))
    assert retrieval_metrics(bank, queries).metrics == pytest.approx(whole.metrics, abs=1e-12)


@pytest.mark.parametrize("matches", ["first", "last"])
def test_equally_close_samples_are_ranked_with_the_matches_last(matches):
    """A collapsed encoder finds nothing, in whatever order the reference stands."""
    labels = torch.tensor([0] * 4 + [1] * 16)
    bank = Features(torch.ones(20, 3), labels if matches == "first" else labels.flip(0))
    queries = Features(torch.ones(5, 3), torch.zeros(5, dtype=torch.int64))
    metrics = retrieval_metrics(bank, queries).metrics
    assert metrics["mrr"] == pytest.approx(1 / 17)
    assert metrics["map"] == pytest.approx(sum(found / (16 + found) for found in (1, 2, 3, 4)) / 4)
    assert metrics["precision_at_1"] == metrics["r_precision"] == metrics["map_at_r"] == 0
    for metric in ("cosine", "euclidean"):
        assert retrieval_metrics(bank, metric=metric).metrics["precision_at_1"] == 0


def test_by_hand():
    """One query at 0 among points at 1 (b), 2 (a), 3 (b), 4 (a): matches stand at ranks 2 and 4."""
    bank = Features(torch.tensor([[1.0], [2], [3], [4]]), torch.tensor([1, 0, 1, 0]))
    query = Features(torch.tensor([[0.0]]), torch.tensor([0]))
    metrics = retrieval_metrics(bank, query, metric="euclidean", recall_at=(1, 2)).metrics
    assert metrics["precision_at_1"] == metrics["recall_at_1"] == 0
    assert metrics["recall_at_2"] == 1
    assert metrics["r_precision"] == pytest.approx(1 / 2)
    assert metrics["map_at_r"] == pytest.approx((1 / 2) / 2)
    assert metrics["map"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert metrics["mrr"] == pytest.approx(1 / 2)


def test_no_match_anywhere_is_refused():
    with pytest.raises(ValueError, match="no query has a sample of its class"):
        retrieval_metrics(Features(torch.eye(3), torch.arange(3)))
