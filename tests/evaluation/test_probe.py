import math

import pytest
import torch

from contrastive.evaluation import Features, label_efficiency, linear_probe
from contrastive.evaluation import probe as probe_module


@pytest.fixture
def sets(reference):
    expected = reference("metrics-probe")
    return (
        expected,
        Features(expected.train, expected.train_labels),
        Features(expected.test, expected.test_labels),
    )


def test_reference_coefficients(sets):
    expected, train, test = sets
    result = linear_probe(train, test, C=1.0, standardize=False)
    torch.testing.assert_close(result.head.weight, expected.coef, atol=1e-3, rtol=0)
    torch.testing.assert_close(result.head.bias, expected.intercept, atol=1e-3, rtol=0)
    torch.testing.assert_close(result.scores, expected.proba, atol=1e-3, rtol=0)
    assert result.accuracy == pytest.approx(float(expected.acc), abs=1 / 160)
    assert result.metrics["balanced_accuracy"] == pytest.approx(float(expected.balanced_acc), abs=1 / 160)
    assert result.converged
    weaker = linear_probe(train, test, C=0.1, standardize=False)
    assert (weaker.head.weight - expected.coef).abs().max() > 0.1  # the check above can fail


def test_reference_standardised(sets):
    expected, train, test = sets
    result = linear_probe(train, test, C=1.0)
    assert result.accuracy == pytest.approx(float(expected.acc_scaled), abs=1 / 160)
    torch.testing.assert_close(
        result.head(test.vectors).softmax(1), result.scores
    )  # the scaling is folded in


def test_reference_binary(sets):
    expected, train, test = sets
    train, test = (Features(part.vectors, part.labels % 2) for part in (train, test))
    metrics = linear_probe(train, test, C=1.0, standardize=False).metrics
    assert metrics["balanced_accuracy"] == pytest.approx(float(expected.binary_balanced_acc), abs=1 / 160)
    assert metrics["auc"] == pytest.approx(float(expected.binary_auc), abs=1e-3)
    assert metrics["average_precision"] == pytest.approx(float(expected.binary_ap), abs=1e-3)
    assert "top5_accuracy" not in metrics


def test_binary_agrees_with_one_logit(sets):
    from sklearn.linear_model import LogisticRegression

    _, train, test = sets
    train, test = (Features(part.vectors.double(), part.labels % 2) for part in (train, test))
    peer = LogisticRegression(C=0.1, tol=1e-8).fit(train.vectors.numpy(), train.labels.numpy())
    ours = linear_probe(train, test, C=0.1, standardize=False)
    difference = ours.head.weight[1] - ours.head.weight[0]
    torch.testing.assert_close(difference, torch.from_numpy(peer.coef_[0]), atol=1e-3, rtol=0)


def test_reference_trajectory(sets):
    expected, train, test = sets
    double = [Features(part.vectors.double(), part.labels) for part in (train, test)]
    result = linear_probe(
        *double, protocol="sgd", standardize=False, epochs=50, batch_size=None, learning_rate=0.1
    )
    torch.testing.assert_close(
        torch.tensor(result.losses, dtype=torch.float64), expected.sgd_losses, atol=1e-9, rtol=0
    )
    torch.testing.assert_close(result.head.weight, expected.sgd_W, atol=1e-9, rtol=0)
    torch.testing.assert_close(result.head.bias, expected.sgd_b, atol=1e-9, rtol=0)
    assert result.accuracy == pytest.approx(float(expected.sgd_acc))


def test_sgd_steps_are_those_of_torch(sets):
    """Two epochs in batches against torch.optim.SGD and its cosine schedule, on the same batches."""
    _, train, test = sets
    result = linear_probe(train, test, protocol="sgd", standardize=False, epochs=2, batch_size=64, seed=3)
    layer = torch.nn.Linear(12, 6)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1 * 64 / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * math.ceil(240 / 64))
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        for rows in torch.randperm(240, generator=generator).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(train.vectors[rows]), train.labels[rows]).backward()
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(result.head.weight, layer.weight.detach(), atol=1e-5, rtol=1e-4)


def test_standardisation_makes_the_scale_of_columns_irrelevant(sets):
    _, train, test = sets
    scale = 10.0 ** torch.linspace(-3, 3, 12)
    shifted = [Features(part.vectors * scale + 5 * scale, part.labels) for part in (train, test)]
    plain, moved = linear_probe(train, test, C=1.0), linear_probe(*shifted, C=1.0)
    torch.testing.assert_close(plain.scores, moved.scores, atol=2e-3, rtol=0)


def test_constant_columns_stay_harmless(sets):
    _, train, test = sets
    padded = [
        Features(torch.cat([f.vectors, torch.full((len(f), 2), 0.1)], 1), f.labels) for f in (train, test)
    ]
    assert linear_probe(*padded, C=1.0).accuracy == linear_probe(train, test, C=1.0).accuracy


def test_few_rows_in_many_columns_give_the_same_solution():
    """With fewer samples than half the columns the problem is solved in their span."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 40, dtype=torch.float64, generator=generator), torch.arange(12) % 3
    weight, bias, loss, _ = probe_module._fit_lbfgs(x, y, 3, 1.0, tolerance=1e-9)
    weight.requires_grad_()
    bias.requires_grad_()
    objective = torch.nn.functional.cross_entropy(x @ weight.T + bias, y)
    assert objective.item() == pytest.approx(loss)
    (objective + weight.square().sum() / 24).backward()  # the gradient of the unreduced problem vanishes
    assert weight.grad.abs().max() < 1e-6
    assert bias.grad.abs().max() < 1e-6


def test_C_is_chosen_without_the_test_labels(blobs):
    (x, y), (q, t) = blobs
    noisy = x + 3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    first = linear_probe(Features(noisy, y), Features(q, t))
    second = linear_probe(Features(noisy, y), Features(q, t.flip(0)))
    assert first.C == second.C
    assert first.C in probe_module.C_GRID
    assert torch.equal(first.head.weight, second.head.weight)


def test_C_guards_against_overfitting():
    """With 40 noise columns and few samples a strong ridge wins, so the choice has something to choose."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    x = torch.randn(60, 41, generator=generator)
    x[:, 0] += 0.7 * (2 * y - 1)
    assert linear_probe(Features(x, y), Features(x, y)).C < 1


def test_a_single_test_class_and_missing_classes_are_fine(blobs):
    (x, y), (q, t) = blobs
    only = t == 0
    result = linear_probe(Features(x, y), Features(q[only], t[only]), C=1.0)
    assert result.metrics["balanced_accuracy"] == result.accuracy
    assert list(result.recall) == [0]
    unseen = linear_probe(Features(x[y != 7], y[y != 7]), Features(q, t), C=1.0)
    assert unseen.recall[7] == 0
    assert unseen.classes.tolist() == [-5, 0, 7]


def test_collapsed_features_are_at_chance():
    labels = torch.arange(90) % 3
    result = linear_probe(Features(torch.ones(90, 4), labels), Features(torch.ones(30, 4), labels[:30]))
    assert result.accuracy == pytest.approx(1 / 3)


def test_label_efficiency_grows_with_labels(blobs):
    train, test = (Features(*part) for part in blobs)
    table = label_efficiency(train, test, labels_per_class=(1, 10, None), seeds=range(4))
    for method in ("knn", "probe"):
        means = [table[method][count][0] for count in ("1", "10", "all")]
        assert means[0] < means[1] <= means[2] + 0.05
        assert table[method]["1"][1] > 0
        assert table[method]["all"][1] == 0


def test_label_efficiency_draws_equally_many_of_every_class(blobs):
    labels = blobs[0][1]
    rows = probe_module._draw_labels(labels, 3, seed=0)
    assert sorted(labels[rows].tolist()) == [-5] * 3 + [0] * 3 + [7] * 3
    assert len(set(rows.tolist())) == 9
    assert not torch.equal(rows, probe_module._draw_labels(labels, 3, seed=1))


def test_label_efficiency_names_a_class_that_is_too_small(blobs):
    train, test = (Features(*part) for part in blobs)
    with pytest.raises(ValueError, match=r"class -5 has 40 .* asks for 41"):
        label_efficiency(train, test, labels_per_class=(41,))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "adam"}, "choose"),
        ({"C": 0.0}, "positive number"),
        ({"C": "best"}, "positive number"),
        ({"epochs": 0}, "must be positive"),
        ({"learning_rate": -1.0}, "must be positive"),
    ],
)
def test_bad_settings_are_refused(blobs, options, words):
    train, test = (Features(*part) for part in blobs)
    with pytest.raises(ValueError, match=words):
        linear_probe(train, test, **options)


def test_a_single_training_class_is_refused():
    one = Features(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="single class"):
        linear_probe(one, one)
