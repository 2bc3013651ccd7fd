import numpy as np
import pytest
import torch

from recsys.data import Cases, SequenceData, Sequences
from recsys.floors import MarkovChain, SequentialRules
from recsys.metrics import case_values, rank_targets
from recsys.mixture import TransitionMixture


@pytest.fixture(scope="module")
def split():
    return SequenceData.generate(users=150, items=60, seed=0).split()


@pytest.fixture(scope="module")
def markov(split):
    return MarkovChain().fit(split.train, split.data.num_items)


@pytest.fixture(scope="module")
def model(split):
    """Random scores that a history always gets again, a little better for the target's neighbours in code."""
    table = torch.randn(61, 61, generator=torch.Generator().manual_seed(0)) + torch.eye(61).roll(1, 1)

    def score(histories):
        return table[histories.items[histories.offsets[1:] - 1]]

    return score


def naive(scores, shares, weight):
    e = np.exp(scores - scores[1:].max())
    e[0] = 0
    p = e / e.sum()
    return p if not shares.sum() else (1 - weight) * p + weight * shares


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.9])
def test_scores_are_the_mixture_of_probabilities(split, markov, model, weight):
    histories = Sequences.from_lists([[1], [5, 2], [3, 60, 17]])
    lonely = MarkovChain().fit(
        Sequences.from_lists([[1, 2, 1, 4], [17, 3]]), 60
    )  # 2 -> 1 is there, nothing from 60
    rules = SequentialRules().fit(split.train, split.data.num_items)
    for chain in (markov, lonely, rules):
        found = TransitionMixture(model, chain, weight).score(histories).numpy()
        scores, shares = model(histories).double().numpy(), chain.probabilities(histories).numpy()
        expected = [naive(s, q, weight) for s, q in zip(scores, shares, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(found.sum(axis=1), 1)
        assert (found[:, 0] == 0).all()


def test_without_transitions_the_order_is_the_models(split, model):
    empty = MarkovChain().fit(Sequences.from_lists([[], []]), split.data.num_items)
    mixture = TransitionMixture(model, empty, 0.9)
    assert rank_targets(mixture.score, split.test).tolist() == rank_targets(model, split.test).tolist()


def test_model_scores_are_left_as_they_are(split, markov, model):
    histories = Sequences.from_lists([[1], [2]])
    scores = model(histories)
    before = scores.clone()
    TransitionMixture(lambda h: scores, markov).score(histories)
    assert torch.equal(scores, before)


def test_tuning_finds_the_best_of_the_grid_in_one_pass(split, markov, model):
    calls = []

    def score(histories):
        calls.append(len(histories))
        return model(histories)

    weights = (0.2, 0.6, 0.9)
    tuned = TransitionMixture(score, markov).tune(split.valid, "NDCG@10", weights=weights, batch_size=64)
    assert sum(calls) == len(split.valid)

    def value(weight):
        ranks = rank_targets(TransitionMixture(model, markov, weight).score, split.valid)
        return case_values(ranks, "NDCG@10").mean()

    assert tuned.weight == max((0.0, *weights), key=value)
    assert tuned.weight > 0  # the table knows this data better than random scores
    assert tuned.name == f"transition mixture (w {tuned.weight})"


def test_a_metric_that_must_not_fall_is_kept():
    # Two cases: the model has one target at rank 5 and one at rank 9; the table lifts the first to the top and pushes
    # the second out of the first ten.
    items = 30
    markov = MarkovChain().fit(Sequences.from_lists([[1, 7], *[[2, j] for j in range(20, 25)]]), items)
    scores = torch.full((2, items + 1), -10.0)
    scores[0, 11:16], scores[0, 7] = 5.0, 1.0
    scores[1, 11:20], scores[1, 8] = 5.0, 1.0
    cases = Cases(Sequences.from_lists([[1], [2]]), np.array([7, 8]), np.array([0, 1]))

    def score(histories):
        return scores[histories.items - 1]

    mixture = TransitionMixture(score, markov)
    assert rank_targets(score, cases).tolist() == [5, 9]
    free = mixture.tune(cases, "NDCG@10", weights=[0.9])
    assert free.weight == 0.9
    assert rank_targets(free.score, cases).tolist() == [0, 14]
    assert mixture.tune(cases, "NDCG@10", weights=[0.9], keep="HR@10").weight == 0


@pytest.mark.parametrize("weight", [1.0, -0.1, float("nan")])
def test_a_bad_weight_is_refused(markov, model, weight):
    with pytest.raises(ValueError, match=r"give a number in \[0, 1\)"):
        TransitionMixture(model, markov, weight)


def test_tuning_on_nothing_is_refused(markov, model):
    nothing = Cases(Sequences.from_lists([]), np.empty(0, np.int64), np.empty(0, np.int64))
    with pytest.raises(ValueError, match="at least one"):
        TransitionMixture(model, markov).tune(nothing)


def test_a_misspelt_metric_is_refused_before_any_scoring(split, markov):
    mixture = TransitionMixture(lambda histories: pytest.fail("scored"), markov)
    for metrics in ({"metric": "NDGC@10"}, {"keep": "Hits@10"}):
        with pytest.raises(ValueError, match="is unknown; choose from"):
            mixture.tune(split.valid, **metrics)
