import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive.evaluation import Features, confidence_interval, few_shot, sample_episodes
from contrastive.evaluation import features as features_module
from contrastive.evaluation.few_shot import _logistic_regression


@pytest.mark.parametrize(
    ("classifier", "name", "tolerance"),
    [
        ("centroid", "centroid", 1e-9),
        ("cosine_centroid", "centroid_cosine", 1e-9),
        ("logistic_regression", "logreg", 1 / 75 + 1e-9),
    ],
)
def test_reference(reference, classifier, name, tolerance):
    expected = reference("metrics-fewshot")
    features = Features(expected.features, expected.labels)
    result = few_shot(features, expected.support, expected.query, classifier=classifier)
    torch.testing.assert_close(result.accuracies, expected[f"{name}_acc"], atol=tolerance, rtol=0)
    mean, ci95 = confidence_interval(expected[f"{name}_acc"])
    assert mean == pytest.approx(float(expected[f"{name}_mean"]), abs=1e-9)
    assert ci95 == pytest.approx(float(expected[f"{name}_ci95"]), abs=1e-9)
    assert confidence_interval(expected[f"{name}_acc"], student=True)[1] == pytest.approx(
        float(expected[f"{name}_ci95_t"]), abs=1e-9
    )
    assert (result.ci95, result.ci95_t) == pytest.approx(
        (float(expected[f"{name}_ci95"]), float(expected[f"{name}_ci95_t"])),
        abs=1e-9 if tolerance < 1e-6 else 1e-2,
    )


def test_batched_logistic_regression_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    support = torch.randn(3, 4, 5, 10, dtype=torch.float64, generator=generator) + 1
    query = torch.randn(3, 8, 10, dtype=torch.float64, generator=generator) + 1
    scores = _logistic_regression(support, query)
    for episode in range(3):
        x = torch.nn.functional.normalize(support[episode].flatten(0, 1))
        peer = LogisticRegression(C=1.0, tol=1e-9, max_iter=1000).fit(
            x.numpy(), torch.arange(4).repeat_interleave(5)
        )
        expected = torch.from_numpy(peer.predict_proba(torch.nn.functional.normalize(query[episode]).numpy()))
        torch.testing.assert_close(scores[episode].softmax(1), expected, atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**31))
def test_episodes_are_draws_without_replacement(way, shot, queries, seed):
    labels = torch.tensor([3] * 7 + [8] * 9 + [-1] * 7 + [0] * 7)
    support, query = sample_episodes(labels, way=way, shot=shot, queries=queries, episodes=20, seed=seed)
    assert support.shape == (20, way, shot)
    assert query.shape == (20, way, queries)
    both = torch.cat([support, query], dim=2)
    for episode in both:
        assert len(set(episode.flatten().tolist())) == way * (shot + queries)
        groups = labels[episode]
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0].tolist())) == way
    again = sample_episodes(labels, way=way, shot=shot, queries=queries, episodes=20, seed=seed)
    assert torch.equal(support, again[0])


def test_every_sample_is_drawn_equally_often():
    labels = torch.cat([torch.zeros(20), torch.ones(5)]).long()
    support, _ = sample_episodes(labels, way=2, shot=1, queries=1, episodes=4000)
    counts = torch.bincount(support.flatten(), minlength=25) / 4000
    torch.testing.assert_close(counts[:20], torch.full((20,), 1 / 20), atol=0.02, rtol=0)
    torch.testing.assert_close(counts[20:], torch.full((5,), 1 / 5), atol=0.04, rtol=0)


def test_blocks_do_not_change_accuracies(reference, monkeypatch):
    expected = reference("metrics-fewshot")
    features = Features(expected.features, expected.labels)
    whole = few_shot(features, expected.support, expected.query)
    monkeypatch.setattr(features_module, "BLOCK_ELEMENTS", 4 * 80 * 24)
    assert torch.equal(few_shot(features, expected.support, expected.query).accuracies, whole.accuracies)


def test_a_single_value_has_no_t_interval():
    assert confidence_interval(torch.tensor([0.5]), student=True) == (0.5, math.inf)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sample_episodes(torch.arange(40) % 4, queries=0), "each must be 1 or more"),
        (lambda: sample_episodes(torch.arange(40) % 4, way=5), "ask for 4 at most"),
        (lambda: sample_episodes(torch.tensor([7] * 5 + [9] * 30), way=2), "class 7 has 5 samples"),
        (
            lambda: few_shot(Features(torch.eye(3)), torch.ones(2, 3, 1), torch.ones(3, 3, 1)),
            "as sample_episodes",
        ),
        (
            lambda: few_shot(Features(torch.eye(3)), torch.ones(1), torch.ones(1), classifier="svm"),
            "choose one of",
        ),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
