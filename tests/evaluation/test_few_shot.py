import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive.data import TensorData
from contrastive.encoders import MLPEncoder, save_encoder
from contrastive.evaluation import Features, confidence_interval, few_shot, sample_episodes
from contrastive.evaluation import features as features_module
from contrastive.evaluation.few_shot import (
    CLASSIFIERS,
    TRANSDUCTIVE,
    _logistic_regression,
    _query_counts,
    compare_few_shot,
)
from contrastive.evaluation.opta import UNBALANCED, OpTA, standardize_samples
from contrastive.evaluation.run_few_shot import few_shot_run, format_few_shot


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


@pytest.fixture
def classes():
    """Features of 8 classes with 60 samples each, labels 0, 10, 20, ..."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(480) % 8
    centres = 0.5 * torch.randn(8, 32, generator=generator)
    return Features(centres[group] + torch.randn(480, 32, generator=generator), 10 * group)


def test_opta_through_rows_is_opta_on_their_features(classes):
    support, query = sample_episodes(classes.labels, episodes=6, shot=2)
    x, q = classes.vectors[support], classes.vectors[query].flatten(1, 2)
    truth = torch.arange(5).repeat_interleave(15)
    for classifier, head in (
        ("opta", OpTA()),
        ("opta_unbalanced", UNBALANCED),
        (OpTA(passes=3, classify="centroid"),) * 2,
    ):
        expected = (head(x, q).argmax(2) == truth).double().mean(1)
        assert torch.equal(few_shot(classes, support, query, classifier=classifier).accuracies, expected)


def test_every_classifier_is_inductive_or_transductive(classes):
    support, query = sample_episodes(classes.labels, episodes=3)
    for classifier in CLASSIFIERS:
        # Judged by how it treats the first half of the queries when it sees no others.
        whole = few_shot(classes, support, query, classifier=classifier).accuracies
        parts = [
            few_shot(classes, support, q, classifier=classifier).accuracies for q in query.split([7, 8], 2)
        ]
        apart = (7 * parts[0] + 8 * parts[1]) / 15
        assert torch.allclose(whole, apart) == (classifier not in TRANSDUCTIVE), classifier


def test_transduction_helps(classes):
    support, query = sample_episodes(classes.labels, episodes=100)
    plain = few_shot(classes, support, query).mean
    for classifier in TRANSDUCTIVE:
        assert few_shot(classes, support, query, classifier=classifier).mean > plain + 0.03


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 4),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([0.05, 0.5, 2, 100.0]),
    st.integers(0, 2**31),
)
def test_imbalanced_episodes(way, shot, queries, alpha, seed):
    labels = torch.tensor([3] * 7 + [8] * 9 + [-1] * 7 + [0] * 7)
    sizes = {"way": way, "shot": shot, "queries": queries, "episodes": 20, "seed": seed}
    support, query = sample_episodes(labels, imbalance=alpha, **sizes)
    assert torch.equal(support, sample_episodes(labels, **sizes)[0])
    assert query.shape == (20, way * queries)
    for rows, asked in zip(support, query, strict=True):
        both = [*rows.flatten().tolist(), *asked.tolist()]
        assert len(set(both)) == len(both)
        assert set(labels[asked].tolist()) <= set(labels[rows[:, 0]].tolist())


def test_query_counts_are_the_nearest_whole_numbers():
    shares = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0, 0], [0.34, 0.33, 0.33], [0.8, 0.1, 0.1]]).double()
    available = torch.tensor([[30, 30, 30], [30, 30, 30], [10, 10, 10], [10, 30, 50]])
    assert _query_counts(shares, available, 30).tolist() == [
        [15, 9, 6],
        [30, 0, 0],
        [10, 10, 10],
        [10, 8, 12],
    ]


def test_shares_are_those_of_the_dirichlet_distribution():
    labels = torch.arange(4).repeat_interleave(200)
    support, query = sample_episodes(labels, way=4, imbalance=2.0, episodes=2000, queries=25)
    first = (labels[query] == labels[support[:, :1, 0]]).double().mean(1)
    # Beta(2, 6): mean 1/4, variance 2 * 6 / (8^2 * 9).
    assert float(first.mean()) == pytest.approx(0.25, abs=0.01)
    assert float(first.var()) == pytest.approx(12 / 576, rel=0.1)


def test_the_class_of_imbalanced_queries_comes_from_their_labels(classes):
    support, query = sample_episodes(classes.labels, episodes=10)
    for classifier in ("centroid", "opta"):  # balanced in fact: no warning
        flat = few_shot(classes, support, query.flatten(1), classifier=classifier)
        assert torch.equal(
            flat.accuracies, few_shot(classes, support, query, classifier=classifier).accuracies
        )


def test_balanced_transport_of_imbalanced_queries_warns(classes):
    support, query = sample_episodes(classes.labels, episodes=200, imbalance=0.5, queries=8)
    with pytest.warns(UserWarning, match="in 100 % of the episodes .* classifier='opta_unbalanced'"):
        balanced = few_shot(classes, support, query, classifier="opta")
    relaxed = few_shot(classes, support, query, classifier="opta_unbalanced")
    standard = Features(standardize_samples(classes.vectors), classes.labels)
    assert relaxed.mean > few_shot(standard, support, query).mean > balanced.mean


def test_comparison_is_paired(classes):
    from scipy.stats import ttest_rel

    generator = torch.Generator().manual_seed(1)
    noise = 0.3 * torch.randn(classes.vectors.shape, generator=generator)
    worse = Features(classes.vectors + noise, classes.labels)
    support, query = sample_episodes(classes.labels, episodes=200)
    result = compare_few_shot(classes, worse, support, query)
    difference = result.first.accuracies - result.second.accuracies
    expected = ttest_rel(result.first.accuracies.numpy(), result.second.accuracies.numpy())
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    interval = expected.confidence_interval(0.95)
    assert (result.difference - result.ci95, result.difference + result.ci95) == pytest.approx(
        tuple(interval)
    )
    assert result.difference == pytest.approx(float(difference.mean()))
    assert result.ci95 < 0.7 * math.hypot(result.first.ci95, result.second.ci95)


def test_comparison_with_itself(classes):
    support, query = sample_episodes(classes.labels, episodes=5)
    result = compare_few_shot(classes, classes, support, query)
    assert (result.difference, result.ci95, result.p_value) == (0, 0, 1)


@pytest.fixture
def run(tmp_path):
    """Two run folders, the first encoder better than the second, and their data."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 6
    centres = torch.randn(6, 8, generator=generator)
    points = centres[labels] + 0.7 * torch.randn(240, 8, generator=generator)
    data = TensorData(points, labels, points, labels, batch_size=64)
    torch.manual_seed(0)
    for name, noise in (("first", 0.0), ("second", 3.0)):
        encoder = MLPEncoder(8)
        with torch.no_grad():
            next(encoder.parameters()).mul_(torch.tensor([1.0] * 2 + [1 / (1 + noise)] * 6))
        save_encoder(encoder, tmp_path / name / "encoder")
    return tmp_path / "first", tmp_path / "second", data


def test_few_shot_run_writes_and_prints_a_table(run, capsys):
    first, _, data = run
    document = few_shot_run(first, data=data, episodes=50)
    assert json.loads((first / "results" / "few_shot.json").read_text()) == document
    assert list(document["metrics"]) == ["inductive", "transductive"]
    assert document["protocol"]["opta"]["epsilon"] == 0.05
    assert list(document["metrics"]["transductive"]) == ["1", "5"]
    assert list(document["metrics"]["transductive"]["1"]) == list(TRANSDUCTIVE)
    for rows in document["metrics"].values():
        for name, cell in rows["5"].items():
            assert cell["mean"] > rows["1"][name]["mean"] > 0.4
    assert capsys.readouterr().out.strip() == format_few_shot(document)


def test_few_shot_run_compares_two_runs(run, capsys):
    first, second, data = run
    document = few_shot_run(
        first,
        data=data,
        other=second,
        shot=1,
        episodes=100,
        imbalance=2.0,
        classifiers=["centroid", "opta_unbalanced"],
    )
    cell = document["metrics"]["inductive"]["1"]["centroid"]
    assert cell["difference"]["mean"] == pytest.approx(cell["mean"] - cell["other"]["mean"])
    assert cell["difference"]["mean"] > cell["difference"]["ci95"] > 0
    assert cell["difference"]["p_value"] < 1e-3
    assert document["protocol"]["other"]["run"] == str(second)
    printed = capsys.readouterr().out
    assert "Dirichlet(2)" in printed
    assert f"other: {second}" in printed


def test_imbalance_leaves_balanced_transport_out(run):
    first, _, data = run
    metrics = few_shot_run(first, data=data, shot=1, episodes=20, imbalance=2.0)["metrics"]
    assert list(metrics["transductive"]["1"]) == ["opta_unbalanced"]


def test_the_table_reads_well():
    cell = {"mean": 0.5, "ci95": 0.0123}
    pair = {"other": cell, "difference": {"mean": 0.02, "ci95": 0.001, "p_value": 0.00123}}
    protocol = {
        "way": 5,
        "shot": [1],
        "queries": 15,
        "episodes": 100,
        "imbalance": None,
        "other": {"run": "runs/b"},
    }
    metrics = {
        "inductive": {"1": {"centroid": cell | pair, "cosine_centroid": cell | pair}},
        "transductive": {"1": {"opta": cell | pair}},
    }
    assert format_few_shot({"protocol": protocol, "metrics": metrics, "split": "test"}).splitlines() == [
        "5-way accuracy in % on the test set, ± 95 % interval over 100 episodes; queries a class: 15",
        "              | inductive                      | transductive",
        "              | centroid      cosine centroid  | opta",
        "1-shot        | 50.00 ± 1.23  50.00 ± 1.23     | 50.00 ± 1.23",
        "  other       | 50.00 ± 1.23  50.00 ± 1.23     | 50.00 ± 1.23",
        "  difference  | +2.00 ± 0.10  +2.00 ± 0.10     | +2.00 ± 0.10",
        "  p value     | 0.0012        0.0012           | 0.0012",
        "other: runs/b; differences are paired by episode",
    ]


def test_script(tmp_path, monkeypatch, capsys):
    save_encoder(MLPEncoder(3 * 8 * 8), tmp_path / "encoder")
    source = {"class_path": "contrastive.data.ImageData", "init_args": {"source": "digits", "size": 8}}
    (tmp_path / "config.yaml").write_text(json.dumps({"data": source}))
    words = ["--run", str(tmp_path), "--shot", "[1]", "--episodes", "30"]
    monkeypatch.setattr(sys, "argv", ["few_shot.py", *words])
    script = Path(__file__).parents[2] / "scripts" / "few_shot.py"
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert "5-way accuracy in % on the test set" in printed
    result = json.loads((tmp_path / "results" / "few_shot.json").read_text())
    assert result["metrics"]["transductive"]["1"]["opta"]["mean"] > 0.6
    assert result["protocol"]["shot"] == [1]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"shot": []}, ValueError, "at least one shot"),
        ({"shot": (0, 1)}, ValueError, "1 or more"),
        ({"classifiers": ["svm"]}, ValueError, "each of centroid, "),
        ({"other": "nowhere"}, FileNotFoundError, "other='nowhere' is not a folder"),
        ({"way": 7}, ValueError, "ask for 6 at most"),
    ],
)
def test_bad_runs_are_refused(run, change, error, words):
    with pytest.raises(error, match=words):
        few_shot_run(run[0], data=run[2], **change)


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
        (
            lambda: few_shot(Features(torch.eye(3)), torch.ones(2, 3, 1), torch.ones(2, 0)),
            "as sample_episodes",
        ),
        (
            lambda: few_shot(Features(torch.eye(3)), torch.zeros(1, 1, 1), torch.zeros(1, 2)),
            "have no labels",
        ),
        (
            lambda: few_shot(
                Features(torch.eye(3), torch.tensor([4, 5, 6])),
                torch.tensor([[[0], [1]]]),
                torch.tensor([[0, 2]]),
            ),
            r"query 1 of episode 0 has label 6, and the support has labels \[4, 5\]",
        ),
        (
            lambda: few_shot(
                Features(torch.tensor([[1.0, 2], [3, 3]])),
                torch.zeros(1, 1, 1),
                torch.ones(1, 1, 1),
                classifier="opta",
            ),
            "the first is row 1; .* use an inductive classifier",
        ),
        (lambda: sample_episodes(torch.arange(40) % 2, way=2, imbalance=0.0), "concentration"),
        (
            lambda: compare_few_shot(
                Features(torch.eye(3)), Features(torch.eye(4)), torch.zeros(2, 1, 1), torch.ones(2, 1, 1)
            ),
            "3 and 4 rows",
        ),
        (
            lambda: compare_few_shot(
                *(Features(torch.eye(3)),) * 2, torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
            ),
            "takes two episodes or more",
        ),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
