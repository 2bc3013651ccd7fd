"""Ranks and metrics against loops over all items in float64, and against the reference fixtures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data import Cases, Sequences
from recsys.metrics import (
    MISSED,
    case_values,
    coverage,
    metrics_by_length,
    metrics_by_popularity,
    paired_bootstrap,
    rank_by_vectors,
    rank_targets,
    ranking_metrics,
    top_items,
)
from recsys.running_metrics import RankingMetrics

REFERENCE = Path(__file__).parents[1] / "reference"


def naive_rank(scores, history, target, mask, ties):
    rank = 0
    for item in range(1, len(scores)):
        if item == target or (mask and item in history):
            continue
        ahead = scores[item] >= scores[target] if ties == "pessimistic" else scores[item] > scores[target]
        rank += bool(ahead)
    return rank


def naive_metrics(ranks, ks):
    found = {}
    for name, gain in (
        ("HR", lambda r: 1.0),
        ("NDCG", lambda r: 1 / np.log2(r + 2)),
        ("MRR", lambda r: 1 / (r + 1)),
    ):
        for k in ks:
            found[f"{name}@{k}"] = sum(gain(r) for r in ranks if r < k) / len(ranks)
    return found


def by_case(matrix, cases):
    """A scorer that looks a row up by the number that stands first in the history."""
    return lambda histories: torch.as_tensor(matrix)[histories.items[histories.offsets[:-1]] - 1]


def make_cases(targets, num_items, lengths, seed=0):
    """Case c has item c + 1 first in its history, so a catalogue of at least as many items as cases is needed."""
    random = np.random.default_rng(seed)
    rows = [np.concatenate([[c + 1], random.integers(1, num_items + 1, n)]) for c, n in enumerate(lengths)]
    return Cases(Sequences.from_lists(rows), np.asarray(targets), np.arange(len(targets)))


@pytest.mark.parametrize("name", ["metrics", "metrics_ties"])
@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
def test_fixtures(name, ties):
    with np.load(REFERENCE / f"recsys_protocol-{name}.npz", allow_pickle=False) as arrays:
        hyper = json.loads(str(arrays["meta"]))["hyper"]
        scores, targets = arrays["scores"], arrays["target"]
        ranks, values = arrays[f"rank_{ties}"], arrays[f"m_{ties}"]
    num_items = scores.shape[1] - 1
    cases = make_cases(targets, num_items, np.arange(len(targets)) % 5)
    found = rank_targets(by_case(scores, cases), cases, ties=ties, batch_size=7)
    assert found.tolist() == ranks.tolist()
    metrics = ranking_metrics(found, hyper["topk"])
    expected = {key.replace("recall", "HR"): value for key, value in zip(hyper["keys"], values, strict=True)}
    for key, value in expected.items():
        family, k = key.split("@")
        assert metrics[f"{family.upper()}@{k}"] == pytest.approx(value, rel=1e-9, abs=1e-10)
    # The same by dot products: with item vectors that are unit vectors the states are the scores.
    vectors = np.eye(num_items + 1)
    states = torch.from_numpy(scores)
    assert rank_by_vectors(states, torch.from_numpy(vectors), targets, ties=ties).tolist() == ranks.tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(0, 15),
    st.sampled_from(["keep", "mask"]),
    st.sampled_from(["pessimistic", "optimistic"]),
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.integers(0, 10_000),
)
def test_ranks_are_those_of_a_loop_over_items(
    num_cases, more, history, ties, batch_size, item_block, dtype, seed
):
    random = np.random.default_rng(seed)
    num_items = num_cases + more
    states = random.integers(-2, 3, (num_cases, 3))  # small integers: many ties, products without rounding
    vectors = random.integers(-2, 3, (num_items + 1, 3))
    scores = states @ vectors.T
    targets = random.integers(1, num_items + 1, num_cases)
    cases = make_cases(targets, num_items, random.integers(0, 7, num_cases), seed)
    expected = [
        naive_rank(scores[c], cases.histories[c], targets[c], history == "mask", ties)
        for c in range(num_cases)
    ]
    matrix = torch.from_numpy(scores).to(dtype)
    matrix[:, 0] = torch.nan  # padding is never looked at
    before = matrix.clone()
    found = rank_targets(by_case(matrix, cases), cases, history, ties, batch_size)
    assert found.tolist() == expected
    assert found.dtype == np.int64
    assert torch.equal(matrix, before) or bool(matrix[:, 1:].eq(before[:, 1:]).all())
    blocked = rank_by_vectors(
        torch.from_numpy(states).to(dtype),
        torch.from_numpy(vectors).to(dtype),
        targets,
        cases.histories if history == "mask" else None,
        ties,
        user_block=batch_size,
        item_block=item_block,
    )
    assert blocked.tolist() == expected


def test_blocks_of_items_give_the_ranks_of_the_whole_product():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(300, 16, generator=generator, dtype=torch.float64)
    vectors = torch.randn(2001, 16, generator=generator, dtype=torch.float64)
    targets = torch.randint(1, 2001, (300,), generator=generator).numpy()
    cases = make_cases(targets, 2000, [30] * 300)
    for ties in ("pessimistic", "optimistic"):
        whole = rank_targets(by_case(states @ vectors.T, cases), cases, "mask", ties)
        parts = rank_by_vectors(
            states, vectors, targets, cases.histories, ties, user_block=64, item_block=500
        )
        assert parts.tolist() == whole.tolist()


@pytest.mark.parametrize("value", [0.0, 0.3, -torch.inf])
def test_a_constant_scorer_is_last_or_first(value):
    cases = make_cases([3, 7], 9, [2, 2])
    scores = torch.full((9, 10), value)
    assert rank_targets(by_case(scores, cases), cases).tolist() == [8, 8]
    assert rank_targets(by_case(scores, cases), cases, ties="optimistic").tolist() == [0, 0]
    vectors, states = torch.full((10, 3), 0.5), torch.full((2, 3), 0.5)
    assert rank_by_vectors(states, vectors, cases.targets, user_block=2, item_block=4).tolist() == [8, 8]


def test_long_histories_come_first_and_ranks_in_the_order_of_the_cases():
    cases = make_cases([1, 2, 3, 4, 5], 6, [2, 0, 4, 1, 3])
    lengths = []

    def score(histories):
        lengths.append(histories.lengths.tolist())
        return by_case(-torch.arange(7.0).expand(6, 7), cases)(histories)

    assert rank_targets(score, cases, batch_size=2).tolist() == [0, 1, 2, 3, 4]
    assert lengths == [[5, 4], [3, 2], [1]]


def test_padding_in_a_history_removes_nothing():
    cases = Cases(Sequences.from_lists([[0, 2, 0]]), np.array([3]), np.array([0]))
    scores = torch.tensor([[9.0, 5.0, 6.0, 1.0, 7.0]])
    assert rank_targets(lambda h: scores, cases, "mask").tolist() == [2]


def test_scores_carry_no_gradient():
    weight = torch.zeros(10, requires_grad=True)
    cases = make_cases([3], 9, [2])
    seen = []

    def score(histories):
        seen.append((weight * 2).requires_grad)
        return (weight * 2)[None]

    rank_targets(score, cases)
    assert seen == [False]


@pytest.mark.parametrize("place", [3, 5])  # a candidate, and the target itself
def test_nan_is_refused_and_the_case_named(place):
    cases = make_cases([5, 5, 5, 5], 8, [0, 0, 0, 0])
    scores = torch.zeros(8, 9)
    scores[2, place] = torch.nan
    with pytest.raises(ValueError, match=r"rank_targets: 1 of 4 rows .* NaN; the first is case 2"):
        rank_targets(by_case(scores, cases), cases)
    with pytest.raises(ValueError, match=r"top_items: 1 of 4 rows .* case 2"):
        top_items(by_case(scores, cases), cases.histories, 3)
    states = torch.zeros(4, 1)
    states[2] = torch.nan
    with pytest.raises(ValueError, match=r"rank_by_vectors: 1 of 4 rows .* case 2"):
        rank_by_vectors(states, torch.ones(9, 1), cases.targets)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda cases: rank_targets(lambda h: torch.zeros(len(h), 5), cases),
            r"\(3, 5\) for 3 .* items up to 7",
        ),
        (lambda cases: rank_targets(lambda h: torch.zeros(2, 9), cases), r"\(2, 9\) for 3 histories"),
        (
            lambda cases: rank_targets(lambda h: torch.zeros(3, 9), cases, "remove"),
            "history is 'remove'; give one of 'keep', 'mask'",
        ),
        (
            lambda cases: rank_targets(lambda h: torch.zeros(3, 9), cases, ties="random"),
            "ties is 'random'; give one of",
        ),
        (
            lambda cases: rank_targets(lambda h: torch.zeros(3, 9), cases, batch_size=0),
            "batch_size is 0; give",
        ),
        (
            lambda cases: rank_by_vectors(torch.zeros(3, 2), torch.zeros(9, 3), cases.targets),
            r"\(9, 3\); give \(C, d\)",
        ),
        (
            lambda cases: rank_by_vectors(torch.zeros(2, 2), torch.zeros(9, 2), cases.targets),
            "2 states, 3 targets",
        ),
        (
            lambda cases: rank_by_vectors(torch.zeros(3, 2), torch.zeros(7, 2), cases.targets),
            "a target is 7; items are 1 to 6",
        ),
        (
            lambda cases: rank_by_vectors(
                torch.zeros(3, 2), torch.zeros(9, 2), cases.targets, Sequences.from_lists([[1], [], [0]])
            ),
            "an item of a history is 0",
        ),
        (
            lambda cases: rank_by_vectors(torch.zeros(3, 2), torch.zeros(9, 2), cases.targets, item_block=0),
            "item_block is 0; give",
        ),
        (lambda cases: top_items(lambda h: torch.zeros(3, 9), cases.histories, 0), "k is 0"),
    ],
)
def test_bad_input_to_ranking_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(make_cases([1, 7, 2], 7, [0, 1, 2]))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    st.lists(st.integers(1, 60), min_size=1, max_size=4),
)
def test_metrics_are_those_of_a_loop(ranks, ks):
    found = ranking_metrics(np.array(ranks), ks)
    assert found == pytest.approx(naive_metrics(ranks, ks), rel=1e-12, abs=1e-15)
    metric = RankingMetrics(ks)
    for start in range(0, len(ranks), 7):
        metric.update(torch.tensor(ranks[start : start + 7]))
    computed = metric.compute()
    assert {name: float(value) for name, value in computed.items()} == pytest.approx(found, rel=1e-12)


def test_precision_and_missed_targets():
    ranks = np.array([0, 9, 10, MISSED])
    assert case_values(ranks, "Precision@10").tolist() == [0.1, 0.1, 0, 0]
    assert ranking_metrics(ranks, (10, 10**12)) == pytest.approx(
        {
            "HR@10": 0.5,
            "HR@1000000000000": 0.75,
            "NDCG@10": (1 + 1 / np.log2(11)) / 4,
            "NDCG@1000000000000": (1 + 1 / np.log2(11) + 1 / np.log2(12)) / 4,
            "MRR@10": 1.1 / 4,
            "MRR@1000000000000": (1.1 + 1 / 11) / 4,
        }
    )


@pytest.mark.parametrize(
    ("ranks", "metric", "words"),
    [
        ([], "HR@1", r"shape \(0,\)"),
        ([0.5], "HR@1", "float64"),
        ([-1], "HR@1", "the least -1"),
        ([[1]], "HR@1", r"shape \(1, 1\)"),
        ([1], "HR", "metric 'HR' is unknown; choose from HR@10"),
        ([1], "HR@0", "'HR@0' is unknown"),
        ([1], "MAP@5", "'MAP@5' is unknown"),
    ],
)
def test_bad_ranks_and_metrics_are_refused(ranks, metric, words):
    with pytest.raises(ValueError, match=words):
        case_values(np.array(ranks), metric)


def test_top_items_are_those_of_a_full_sort():
    random = np.random.default_rng(0)
    cases = make_cases([1] * 20, 25, random.integers(0, 30, 20))
    scores = random.standard_normal((25, 26))
    scores[:, 0] = 99
    found = top_items(by_case(scores, cases), cases.histories, 4, batch_size=6)
    assert found.tolist() == (np.argsort(-scores[:20, 1:], axis=1)[:, :4] + 1).tolist()
    before = scores.copy()
    masked = top_items(by_case(scores, cases), cases.histories, 40, "mask", batch_size=6)
    assert (scores == before).all()
    assert masked.shape == (20, 25)  # k beyond the catalogue
    for row, items in enumerate(masked):
        allowed = sorted(
            set(range(1, 26)) - set(cases.histories[row]), key=lambda i, row=row: -scores[row, i]
        )
        assert items.tolist() == allowed + [0] * (25 - len(allowed))


def test_coverage_counts_each_item_once_and_no_filler():
    assert coverage(np.array([[1, 2], [2, 0]]), 8) == 2 / 8
    assert coverage(np.array([[3, 4]]), 2) == 1


def test_slices_have_about_as_many_cases_and_their_own_metrics():
    lengths = np.array([1, 1, 1, 2, 3, 4, 8, 9])
    cases = make_cases([1, 1, 1, 2, 2, 3, 4, 5], 12, lengths - 1)
    ranks = np.array([0, 1, 2, 3, 4, 5, 6, 7])
    rows = metrics_by_length(ranks, cases, ks=(3,), bins=2)
    assert [(row["history length"], row["cases"]) for row in rows] == [("1-2", 4), ("3-9", 4)]
    assert rows[0]["HR@3"] == 0.75
    assert rows[1]["HR@3"] == 0
    train = Sequences.from_lists([[1, 1, 1, 2], [4, 4]])
    rows = metrics_by_popularity(ranks, cases, train, ks=(5,), bins=3)
    assert [(row["target's training count"], row["cases"]) for row in rows] == [("0-1", 4), ("2-3", 4)]
    assert rows[1]["MRR@5"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)
    with pytest.raises(ValueError, match="7 ranks of 8 cases"):
        metrics_by_length(ranks[:7], cases)


def test_bootstrap_is_that_of_drawn_cases():
    random = np.random.default_rng(0)
    a, b = random.integers(0, 15, 200), random.integers(0, 17, 200)
    found = paired_bootstrap(a, b, samples=20_000)
    difference = case_values(a, "NDCG@10") - case_values(b, "NDCG@10")
    drawn = difference[random.integers(0, 200, (20_000, 200))].mean(axis=1)
    assert found.difference == pytest.approx(difference.mean())
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=2e-3)
    p = np.mean(np.abs(drawn - difference.mean()) >= abs(difference.mean()))
    assert found.p == pytest.approx(p, abs=0.015)
    assert 0.005 < p < 0.9
    assert paired_bootstrap(a, b, samples=20_000) == found
    assert paired_bootstrap(a, b, samples=20_000, seed=1) != found
    back = paired_bootstrap(b, a)
    assert back.difference == -found.difference
    assert back.low < back.difference < back.high


def test_bootstrap_in_blocks_of_samples():
    # With a metric that is not cut off every case has its own difference, and samples come in several blocks.
    random = np.random.default_rng(0)
    a, b = random.permutation(5000), random.permutation(5000)
    found = paired_bootstrap(a, b, "MRR@5000", samples=2000)
    difference = case_values(a, "MRR@5000") - case_values(b, "MRR@5000")
    spread = difference.std() / np.sqrt(5000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_bootstrap_of_equal_and_of_far_models():
    ranks = np.array([0, 5, 20, 3])
    assert paired_bootstrap(ranks, ranks).p == 1
    for worse in (np.full(500, 5), np.arange(500) % 7):
        far = paired_bootstrap(np.zeros(500, int), worse, samples=999)
        assert far.p == pytest.approx(0.001)
        assert "p = 0.001 (paired bootstrap, 500 cases, 999 samples)" in str(far)
    with pytest.raises(ValueError, match="4 and 3 ranks"):
        paired_bootstrap(ranks, ranks[:3])


def test_bootstrap_rejects_equal_models_as_often_as_it_should():
    random = np.random.default_rng(0)
    p = [
        paired_bootstrap(random.integers(0, 20, 300), random.integers(0, 20, 300), samples=500).p
        for _ in range(200)
    ]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09


def test_bad_input_to_the_metric_is_refused():
    metric = RankingMetrics()
    for ranks in (torch.zeros(2), torch.tensor([[1]]), torch.tensor([0, -1])):
        with pytest.raises(ValueError, match=r"give \(B,\) integers"):
            metric.update(ranks)
    with pytest.raises(ValueError, match="ks is empty"):
        RankingMetrics(())
    metric.update(torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="no case"):
        metric.compute()


def _shard(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    ranks = torch.arange(11)
    metric = RankingMetrics((5, 10))
    metric.update(ranks[:2] if rank == 0 else ranks[2:])  # 2 cases and 9
    torch.save({name: float(value) for name, value in metric.compute().items()}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_with_shards_of_unequal_size(tmp_path, unused_tcp_port):
    mp.spawn(_shard, (unused_tcp_port, tmp_path), nprocs=2)
    expected = ranking_metrics(np.arange(11), (5, 10))
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == pytest.approx(expected, rel=1e-12)


@pytest.fixture
def unused_tcp_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
