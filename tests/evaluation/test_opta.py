import math
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from contrastive.evaluation import features as features_module
from contrastive.evaluation.opta import UNBALANCED, OpTA, sinkhorn, standardize_samples
from contrastive.evaluation.softmax_regression import softmax_regression


def draw(
    episodes, shot, *, shares=None, separation=0.55, dim=64, way=5, total=75, seed=0, dtype=torch.float32
):
    """Gaussian classes: support (E, N, K, D), query (E, Q, D) and the class of each query (E, Q)."""
    generator = torch.Generator().manual_seed(seed)
    centres = separation * torch.randn(episodes, way, dim, generator=generator, dtype=dtype)
    if shares is None:
        truth = torch.arange(total).remainder(way).expand(episodes, -1)
    else:
        cumulative = shares.cumsum(1)[:, None, :-1]
        truth = (torch.rand(episodes, total, 1, generator=generator) > cumulative).sum(2)
    support = centres[:, :, None] + torch.randn(episodes, way, shot, dim, generator=generator, dtype=dtype)
    query = centres.gather(1, truth[:, :, None].expand(-1, -1, dim))
    return support, query + torch.randn(query.shape, generator=generator, dtype=dtype), truth


def dirichlet(alpha, episodes, way=5, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).dirichlet([alpha] * way, episodes)).float()


def one_episode(support, query, *, passes, relaxation=None, epsilon=0.05, mix=0.7, weight=1.0):
    """OpTA as loops over one episode in float64: prototypes and plan."""
    way, shot, _ = support.shape
    means = prototypes = support.double().mean(1)
    query = query.double()
    for _ in range(passes):
        cost = torch.stack([torch.stack([(p - x).square().sum() for x in query]) for p in prototypes])
        plan = dense_sinkhorn(cost / cost.max(), epsilon, relaxation, threshold=1e-4)
        moved = []
        for i in range(way):
            total, mass = torch.zeros_like(query[0]), 0.0
            if relaxation is not None:
                total, mass = shot * means[i] / len(query) / weight, shot / len(query) / weight
            for j, x in enumerate(query):
                total, mass = total + plan[i, j] * x, mass + float(plan[i, j])
            moved.append(total / mass)
        prototypes = torch.stack(moved)
    if shot > 1 and relaxation is None:
        prototypes = mix * prototypes + (1 - mix) * means
    return prototypes, plan


def dense_sinkhorn(cost, epsilon, relaxation, threshold, iterations=1000):
    """Scaling form in float64: rows to 1/N (or towards it), columns to 1/Q."""
    n, q = cost.shape
    kernel = (-cost.double() / epsilon).exp()
    power = 1.0 if relaxation is None else relaxation / (relaxation + epsilon)
    a, b = torch.ones(n).double(), torch.ones(q).double()
    for _ in range(iterations):
        new = ((1 / n + 1e-8) / (kernel @ b)) ** power
        change = epsilon * (new.log() - a.log()).abs().sum()
        a, b = new, (1 / q + 1e-8) / (kernel.T @ new)
        if change < threshold:
            break
    return a[:, None] * kernel * b


@pytest.mark.parametrize("shot", [1, 5])
def test_reference(reference, shot):
    expected = reference(f"beclr-opta-{shot}shot")
    raw = expected.features_raw.view(1, 5, shot + 15, -1)
    torch.testing.assert_close(
        standardize_samples(expected.features_raw), expected.features, atol=1e-6, rtol=0
    )
    support, query = (
        standardize_samples(raw[:, :, :shot]),
        standardize_samples(raw[:, :, shot:].flatten(1, 2)),
    )
    for passes in range(1, len(expected.plan) + 1):
        _, plan = OpTA(passes=passes).transport(support, query)
        torch.testing.assert_close(plan[0], expected.plan[passes - 1], atol=1e-6, rtol=1e-4)
    prototypes, _ = OpTA().transport(support, query)
    torch.testing.assert_close(prototypes[0], expected.prototypes_final, atol=1e-5, rtol=0)
    scores = OpTA()(raw[:, :, :shot], raw[:, :, shot:].flatten(1, 2))[0]
    assert torch.equal(scores.argmax(1), expected.predictions)
    torch.testing.assert_close(scores.softmax(1), expected.proba, atol=2e-3, rtol=0)
    assert (scores.argmax(1) == expected.query_labels).double().mean() == pytest.approx(
        float(expected.accuracy)
    )
    alone = softmax_regression(expected.prototypes[None], torch.arange(5), expected["query"][None])[0]
    assert torch.equal(alone.argmax(1), expected.predictions_no_opta)


@pytest.mark.parametrize("shot", [1, 3])
@pytest.mark.parametrize(("relaxation", "weight"), [(None, 1.0), (0.03, 1.0), (0.03, 0.25)])
def test_episodes_in_a_batch_are_those_of_a_loop(shot, relaxation, weight):
    # Easy and hard episodes: they stop after different numbers of iterations.
    parts = [draw(2, shot, dim=16, total=20, separation=s, dtype=torch.float64) for s in (0.2, 2.0)]
    support, query = (standardize_samples(torch.cat(part)) for part in list(zip(*parts, strict=True))[:2])
    head = OpTA(marginal_relaxation=relaxation, query_weight=weight)
    prototypes, plans = head.transport(support, query)
    for episode in range(4):
        passes = 5 if shot == 1 else 1
        expected, plan = one_episode(
            support[episode], query[episode], passes=passes, relaxation=relaxation, weight=weight
        )
        torch.testing.assert_close(prototypes[episode], expected, atol=1e-9, rtol=0)
        torch.testing.assert_close(plans[episode], plan, atol=1e-10, rtol=0)


def test_a_plan_does_not_depend_on_its_neighbours():
    cost = torch.rand(40, 5, 30, generator=torch.Generator().manual_seed(0))
    cost[::2] *= 0.1  # these converge early
    together = sinkhorn(cost)
    alone = torch.cat([sinkhorn(episode[None]) for episode in cost])
    torch.testing.assert_close(together, alone, atol=1e-8, rtol=1e-6)
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sinkhorn(cost[shuffled]), together[shuffled], atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("head", [OpTA(), UNBALANCED, OpTA(classify="centroid")])
def test_blocks_do_not_change_scores(head, monkeypatch):
    support, query, _ = draw(20, 2)
    whole = head(support, query)
    monkeypatch.setattr(features_module, "BLOCK_ELEMENTS", 3 * (5 * 2 + 75) * 64)
    blocks = head(support, query)
    torch.testing.assert_close(blocks, whole, atol=1e-4, rtol=1e-4)
    assert torch.equal(blocks.argmax(2), whole.argmax(2))


@pytest.mark.parametrize("head", [OpTA(), UNBALANCED])
def test_order_of_classes_and_queries_does_not_matter(head):
    support, query, _ = draw(8, 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    classes, queries = torch.randperm(5, generator=generator), torch.randperm(75, generator=generator)
    scores = head(support, query)
    torch.testing.assert_close(
        head(support[:, classes], query[:, queries]), scores[:, queries][:, :, classes], atol=1e-4, rtol=0
    )


def test_features_of_another_scale_and_offset_give_the_same_scores():
    support, query, _ = draw(8, 1, dtype=torch.float64)
    torch.testing.assert_close(
        OpTA()(3 * support + 7, 3 * query + 7), OpTA()(support, query), atol=1e-5, rtol=0
    )


@pytest.mark.filterwarnings("ignore:sinkhorn")  # the threshold is that of rounding
@pytest.mark.parametrize("relaxation", [None, 0.02, 0.5])
def test_plans_are_those_of_a_dense_implementation(relaxation):
    cost = torch.rand(3, 4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plans = sinkhorn(cost, epsilon=0.1, marginal_relaxation=relaxation, threshold=1e-10)
    for plan, one in zip(plans, cost, strict=True):
        expected = dense_sinkhorn(one, 0.1, relaxation, threshold=1e-10)
        torch.testing.assert_close(plan, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(plans.sum(1), torch.full((3, 9), 1 / 9).double(), atol=1e-7, rtol=0)
    if relaxation is None:
        torch.testing.assert_close(plans.sum(2), torch.full((3, 4), 1 / 4).double(), atol=1e-7, rtol=0)


@pytest.mark.filterwarnings("ignore:sinkhorn")
@pytest.mark.parametrize("relaxation", [None, 0.02, 0.5])
def test_plans_are_those_of_pot(relaxation):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for other packages
        ot = pytest.importorskip(
            "ot", reason="POT, the reference for optimal transport, is not installed: pip install pot"
        )
    cost = torch.rand(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mine = sinkhorn(
        cost[None], epsilon=0.1, marginal_relaxation=relaxation, max_iterations=20000, threshold=1e-10
    )[0]
    a, b = np.full(4, 1 / 4), np.full(9, 1 / 9)
    if relaxation is None:
        expected = ot.sinkhorn(a, b, cost.numpy(), 0.1, method="sinkhorn_log", stopThr=1e-9)
    else:
        # With uniform masses and a total of 1 entropy and divergence from a b^T differ by a constant.
        expected = ot.unbalanced.sinkhorn_unbalanced(
            a, b, cost.numpy(), 0.1, (relaxation, math.inf), stopThr=1e-12, numItermax=5000
        )
    torch.testing.assert_close(mine, torch.from_numpy(expected), atol=1e-7, rtol=0)


@pytest.mark.filterwarnings("ignore:sinkhorn")
def test_relaxation_goes_from_softmax_to_equal_classes():
    cost = torch.rand(2, 4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    softmax = (-cost / 0.05).softmax(1) / 9
    torch.testing.assert_close(sinkhorn(cost, marginal_relaxation=1e-9), softmax, atol=1e-7, rtol=0)
    balanced = sinkhorn(cost, threshold=1e-9)
    relaxed = sinkhorn(cost, marginal_relaxation=1e5, threshold=1e-9)
    torch.testing.assert_close(relaxed, balanced, atol=1e-5, rtol=0)
    uneven = [sinkhorn(cost, marginal_relaxation=rho).sum(2).std(1) for rho in (0.001, 0.01, 0.1, 1.0)]
    assert all((less < more).all() for more, less in pairwise(uneven))


def accuracy(head, support, query, truth):
    return float((head(support, query).argmax(2) == truth).double().mean())


class Nearest:
    """The inductive peer: nearest class mean of standardised samples."""

    def __call__(self, support, query):
        return -torch.cdist(standardize_samples(query), standardize_samples(support).mean(2))


@pytest.mark.parametrize(("shot", "separation"), [(1, 0.55), (5, 0.36)])
@pytest.mark.parametrize("classify", ["logistic_regression", "centroid"])
def test_transport_helps_balanced_queries(shot, separation, classify):
    episodes = draw(150, shot, separation=separation)
    plain = accuracy(Nearest(), *episodes)
    assert accuracy(OpTA(classify=classify), *episodes) > plain + (0.15 if shot == 1 else 0.04)
    assert accuracy(replace(UNBALANCED, classify=classify), *episodes) > plain + 0.04


@pytest.mark.parametrize(("shot", "separation"), [(1, 0.55), (5, 0.36)])
@pytest.mark.parametrize("alpha", [2.0, 0.5])
@pytest.mark.parametrize("classify", ["logistic_regression", "centroid"])
def test_relaxed_transport_does_not_lose_where_classes_are_unequal(shot, separation, alpha, classify):
    episodes = draw(150, shot, separation=separation, shares=dirichlet(alpha, 150))
    plain = accuracy(Nearest(), *episodes)
    relaxed = accuracy(replace(UNBALANCED, classify=classify), *episodes)
    assert relaxed > plain
    assert relaxed > accuracy(OpTA(classify=classify), *episodes)
    if alpha < 1:
        assert accuracy(OpTA(classify=classify), *episodes) < plain  # so the fault is worth a warning


@pytest.mark.parametrize(("shot", "separation", "total"), [(1, 0.3, 25), (5, 0.25, 75)])
def test_queries_that_count_less_do_not_draw_rare_classes_away(shot, separation, total):
    """Where classes overlap a full weight costs what the transport gains."""
    episodes = draw(400, shot, separation=separation, shares=dirichlet(0.5, 400), total=total)
    plain = accuracy(Nearest(), *episodes)
    assert accuracy(UNBALANCED, *episodes) > plain
    assert accuracy(UNBALANCED, *episodes) > accuracy(replace(UNBALANCED, query_weight=1.0), *episodes) + 0.01


@pytest.mark.parametrize(("way", "shot"), [(5, 1), (3, 4), (2, 1)])
def test_regression_is_that_of_scikit_learn(way, shot):
    samples, query, _ = draw(3, shot, way=way, dim=256, dtype=torch.float64)
    samples, query = standardize_samples(samples).flatten(1, 2), standardize_samples(query)
    classes = torch.arange(way).repeat_interleave(shot)
    logits = softmax_regression(samples, classes, query)
    for episode in range(3):
        # With two classes its ridge is on w = W_1 - W_0, twice that of the multinomial form.
        peer = LogisticRegression(C=1.0 if way > 2 else 2.0, tol=1e-10, max_iter=5000)
        peer.fit(samples[episode].numpy(), classes.numpy())
        expected = torch.from_numpy(peer.predict_proba(query[episode].numpy()))
        torch.testing.assert_close(logits[episode].softmax(1), expected, atol=1e-4, rtol=0)


def test_coinciding_samples_are_no_accident():
    sample = torch.randn(1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    for head in (OpTA(), UNBALANCED, OpTA(classify="centroid")):
        scores = head(sample.expand(2, 3, 1, 8), sample[:, 0].expand(2, 6, 8))
        assert torch.isfinite(scores).all()
        torch.testing.assert_close(scores, scores[:, :, :1].expand_as(scores), atol=1e-4, rtol=0)
    _, plan = OpTA().transport(sample.expand(2, 3, 1, 8), sample[:, 0].expand(2, 6, 8))
    torch.testing.assert_close(plan, torch.full((2, 3, 6), 1 / 18), atol=1e-6, rtol=0)


def test_distances_of_equal_long_rows_are_not_negative():
    from contrastive.evaluation.opta import _squared_distances

    rows = 1e3 + torch.randn(1, 5, 512, generator=torch.Generator().manual_seed(0))
    assert (_squared_distances(rows, rows) >= 0).all()


def test_plans_that_did_not_settle_are_told():
    cost = torch.rand(3, 5, 20, generator=torch.Generator().manual_seed(0))
    cost[0] = 0.0  # settles at once
    with pytest.warns(
        UserWarning, match=r"sinkhorn: 2 of 3 plans .* within 2 iterations .* raise max_iterations"
    ):
        plans = sinkhorn(cost, epsilon=0.005, max_iterations=2)
    assert (plans.sum(2) - 0.2).abs().amax(1)[1:].min() > 0.04


def test_settings_are_used():
    support, query, _ = draw(2, 2)
    support, query = standardize_samples(support), standardize_samples(query)
    means = support.mean(2)
    torch.testing.assert_close(OpTA(mix=0).transport(support, query)[0], means)
    whole, _ = OpTA(mix=1).transport(support, query)
    torch.testing.assert_close(OpTA(mix=0.25).transport(support, query)[0], 0.25 * whole + 0.75 * means)
    assert not torch.allclose(OpTA(passes=2, mix=1).transport(support, query)[0], whole, atol=1e-3)
    with pytest.warns(UserWarning, match="2 of 2 plans did not settle within 1 iterations at epsilon=0.05"):
        short = OpTA(max_iterations=1).transport(support, query)[1]
    assert not torch.allclose(short.sum(2), torch.full((2, 5), 0.2), atol=1e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: standardize_samples(torch.tensor([[1.0, 2.0], [0.1, 0.1]])),
            "all equal, the first is row 1;",
        ),
        (lambda: standardize_samples(torch.zeros(2, 3, 4)), r"6 of 6 samples .* row \(0, 0\)"),
        (lambda: standardize_samples(torch.rand(3, 1)), "over its 1 features"),
        (lambda: standardize_samples(torch.tensor([[1.0, math.nan]])), "1 of 1 samples have NaN or infinite"),
        (lambda: OpTA()(torch.rand(2, 3, 4), torch.rand(2, 5, 4)), r"expected \(E, N, K, D\)"),
        (lambda: OpTA()(torch.rand(2, 3, 1, 4), torch.rand(2, 5, 6)), "episodes, queries, features"),
        (lambda: OpTA()(torch.rand(2, 3, 1, 4), torch.rand(2, 0, 4)), "every size must be 1"),
        (lambda: OpTA(passes=0), "give 1 or more"),
        (lambda: OpTA(mix=1.5), "give 0 to 1"),
        (lambda: OpTA(query_weight=0), "query_weight=0; give a number above 0"),
        (lambda: OpTA(classify="svm"), "choose logistic_regression or centroid"),
        (lambda: OpTA(epsilon=0), "epsilon=0; the weight"),
        (lambda: OpTA(marginal_relaxation=0), "or None for classes of equal mass"),
        (lambda: sinkhorn(torch.rand(1, 2, 2), max_iterations=0), "1 or more and 0 or more"),
        (lambda: sinkhorn(torch.rand(2, 2)), r"expected \(E, N, Q\)"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
