"""Floors against counting by loops, and on real data against the numbers they are known to reach."""

import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data import SequenceData, Sequences
from recsys.floors import ItemKNN, MarkovChain, Popularity, SequentialRules
from recsys.metrics import rank_targets, ranking_metrics

ITEMS = 7
histories_of = st.lists(st.lists(st.integers(1, ITEMS), max_size=6), min_size=1, max_size=8)


def naive_scores(train, histories, recency):
    counts = Counter(item for row in train for item in row)
    transitions = Counter(pair for row in train for pair in pairwise(row))
    users = {item: {u for u, row in enumerate(train) if item in row} for item in range(1, ITEMS + 1)}

    def cosine(i, j):
        both = len(users[i] & users[j])
        return both / np.sqrt(len(users[i]) * len(users[j])) if both and i != j else 0.0

    followers = {i: Counter() for i in range(1, ITEMS + 1)}
    for row in train:
        for at, i in enumerate(row):
            for distance, j in enumerate(row[at + 1 : at + 4], 1):
                followers[i][j] += 1 / distance
    popular, markov, rules, knn = (np.zeros((len(histories), ITEMS + 1)) for _ in range(4))
    for row, history in enumerate(histories):
        for j in range(1, ITEMS + 1):
            popular[row, j] = counts[j]
            markov[row, j] = 1e-6 * counts[j] + (transitions[history[-1], j] if history else 0)
            shares = [followers[i][j] / max(followers[i].total(), 1e-9) for i in reversed(history)]
            rules[row, j] = sum(recency**age * share for age, share in enumerate(shares))
            rules[row, j] += 1e-6 * counts[j] / max(1, *counts.values(), 1)
            knn[row, j] = sum(recency**age * cosine(i, j) for age, i in enumerate(reversed(history)))
    return popular, markov, rules, knn


@settings(max_examples=40, deadline=None)
@given(histories_of, histories_of, st.sampled_from([0.5, 0.8, 1.0]))
def test_scores_are_those_of_loops(train, histories, recency):
    rows, asked = Sequences.from_lists(train), Sequences.from_lists(histories)
    expected = naive_scores(train, histories, recency)
    floors = (Popularity(), MarkovChain(), SequentialRules(3, recency), ItemKNN(recency))
    for floor, values in zip(floors, expected, strict=True):
        found = floor.fit(rows, ITEMS).score(asked).numpy()
        np.testing.assert_allclose(found[:, 1:], values[:, 1:], rtol=1e-12, atol=1e-12)
        assert found.shape == (len(histories), ITEMS + 1)


def test_transition_shares_add_up_to_one_or_nothing():
    markov = MarkovChain().fit(Sequences.from_lists([[1, 2, 1, 3], [1, 2], []]), 4)
    shares = markov.probabilities(Sequences.from_lists([[4, 1], [3], []])).numpy()
    np.testing.assert_allclose(shares, [[0, 0, 2 / 3, 1 / 3, 0], [0] * 5, [0] * 5])


def test_shares_of_rules_add_up_to_one_or_nothing():
    rules = SequentialRules(steps=2, recency=0.5).fit(Sequences.from_lists([[1, 2, 3], [2, 3], []]), 4)
    shares = rules.probabilities(Sequences.from_lists([[4, 1], [1, 2], [3], []])).numpy()
    # After 1: 2 counts one, 3 a half. After 2: 3 only. Of [1, 2], the 1 weighs a half.
    mixed = np.array([0, 0, 2 / 3, 1 / 3, 0]) / 2 + [0, 0, 0, 1, 0]
    np.testing.assert_allclose(shares, [[0, 0, 2 / 3, 1 / 3, 0], mixed / 1.5, [0] * 5, [0] * 5])


def test_rules_of_one_step_are_the_order_of_the_markov_chain():
    data = SequenceData.generate(users=200, items=60, seed=1)
    split = data.split()
    markov = MarkovChain().fit(split.train, data.num_items).probabilities(split.test.histories)
    rules = SequentialRules(steps=1, recency=1e-12).fit(split.train, data.num_items)
    known = markov.sum(1) > 0
    found = rules.probabilities(split.test.histories)
    np.testing.assert_allclose(found[known].numpy(), markov[known].numpy(), atol=1e-9)


@pytest.mark.parametrize("floor", [Popularity(), MarkovChain(), SequentialRules(), ItemKNN()])
def test_bad_input_is_refused(floor):
    name = type(floor).__name__
    with pytest.raises(RuntimeError, match=rf"{name}\(\)\.fit\(train, num_items\) first"):
        floor.score(Sequences.from_lists([[1]]))
    with pytest.raises(ValueError, match="training items are 1 to 9, num_items=8"):
        floor.fit(Sequences.from_lists([[1, 9]]), 8)
    with pytest.raises(ValueError, match="training items are 0 to 1"):
        floor.fit(Sequences.from_lists([[1, 0]]), 8)


def test_recency_out_of_range_is_refused():
    for recency in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="recency is"):
            ItemKNN(recency)
        with pytest.raises(ValueError, match="recency is"):
            SequentialRules(recency=recency)
    with pytest.raises(ValueError, match="steps is 0"):
        SequentialRules(steps=0)


def test_histories_with_structure_are_predicted_by_their_structure():
    data = SequenceData.generate(users=400, items=120, seed=0)
    split = data.split()
    hits = {}
    for floor in (Popularity(), MarkovChain(), SequentialRules(), ItemKNN()):
        ranks = rank_targets(floor.fit(split.train, data.num_items).score, split.test)
        hits[type(floor).__name__] = ranking_metrics(ranks, (10,))["HR@10"]
    assert hits["Popularity"] < hits["ItemKNN"]
    assert hits["Popularity"] < hits["MarkovChain"]
    assert hits["Popularity"] < hits["SequentialRules"]


@pytest.mark.parametrize(
    ("floor", "keep", "mask"),
    [
        (Popularity(), (0.0006, 0.0002), (0.0012, 0.0004)),
        (MarkovChain(), (0.0750, 0.0466), (0.0767, 0.0478)),
        (SequentialRules(), (0.0958, 0.0572), (0.0979, 0.0586)),
        (ItemKNN(), (0.0630, 0.0368), (0.0740, 0.0455)),
    ],
)
def test_amazon_office(floor, keep, mask):
    path = Path(os.environ.get("CONTRASTIVE_DATA", "")) / "recsys" / "amazon-office.seq.tsv.gz"
    if "CONTRASTIVE_DATA" not in os.environ or not path.is_file():
        pytest.skip("CONTRASTIVE_DATA names no folder with recsys/amazon-office.seq.tsv.gz")
    data = SequenceData.read(path)
    split = data.split()
    floor.fit(split.train, data.num_items)
    for history, expected in (("keep", keep), ("mask", mask)):
        metrics = ranking_metrics(rank_targets(floor.score, split.test, history, "optimistic"), (10,))
        assert (metrics["HR@10"], metrics["NDCG@10"]) == pytest.approx(expected, abs=6e-5)
