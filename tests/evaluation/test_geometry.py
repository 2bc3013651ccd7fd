import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive.evaluation import features as features_module
from contrastive.evaluation.geometry import (
    alignment,
    alpha_req,
    describe_geometry,
    effective_rank,
    mean_abs_correlation,
    mean_cosine,
    normalized_std,
    participation_ratio,
    rankme,
    tolerance,
    uniformity,
)

METRICS = {
    "uniform_t1": lambda z: uniformity(z, t=1),
    "uniform_t2": uniformity,
    "uniform_t4": lambda z: uniformity(z, t=4),
    "rankme": rankme,
    "effective_rank": effective_rank,
    "effective_rank_centred": lambda z: effective_rank(z, centre=True),
    "participation_ratio": participation_ratio,
    "alpha_req": alpha_req,
    "std_l2": normalized_std,
    "mean_offdiag_cosine": mean_cosine,
    "mean_abs_offdiag_correlation": mean_abs_correlation,
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
def test_reference(reference, name, dtype, rtol):
    expected = reference("metrics-geometry")
    assert METRICS[name](expected.z.to(dtype)) == pytest.approx(float(expected[name]), rel=rtol)


@pytest.mark.parametrize("alpha", [1, 2])
def test_alignment_reference(reference, alpha):
    expected = reference("metrics-geometry")
    assert alignment(expected.z, expected.z2, alpha=alpha) == pytest.approx(
        float(expected[f"align_alpha{alpha}"]), rel=1e-8
    )


def test_reference_of_the_temperature_study(reference):
    expected = reference("infonce-hard")
    bank, labels = expected.in_bank, expected.in_labels
    assert uniformity(bank, form="negated") == pytest.approx(float(expected.out_uniformity), rel=1e-9)
    assert tolerance(bank, labels) == pytest.approx(float(expected.out_tolerance), rel=1e-9)
    assert tolerance(bank, labels, literal=True) == pytest.approx(
        float(expected.out_tolerance_literal), rel=1e-9
    )
    positives = bank[expected.in_index]
    assert alignment(expected.in_anchor, positives) == pytest.approx(float(expected.out_alignment), rel=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_blocks_do_not_change_the_value(reference, name, monkeypatch):
    z = reference("metrics-geometry").z
    whole = METRICS[name](z)
    monkeypatch.setattr(features_module, "BLOCK_ELEMENTS", 7 * 96)
    assert METRICS[name](z) == pytest.approx(whole, rel=1e-10)


def test_hand_computed_uniformity():
    """Three unit vectors at 0, 90 and 180 degrees: squared distances 2, 2 and 4."""
    z = torch.tensor([[3.0, 0], [0, 0.1], [-2, 0]])
    expected = math.log((2 * math.exp(-2 * 2) + math.exp(-2 * 4)) / 3)
    assert uniformity(z) == pytest.approx(expected, rel=1e-6)
    assert uniformity(z, form="negated") == pytest.approx(-expected, rel=1e-6)


def test_hand_computed_tolerance():
    """Class 0 at 0 and 60 degrees: cosine 1/2; class 1 at 180 and 270: cosine 0; 4 of 12 ordered pairs count."""
    z = torch.tensor([[1.0, 0], [0.5, 3**0.5 / 2], [-1, 0], [0, -1]])
    labels = torch.tensor([0, 0, 1, 1])
    assert tolerance(z, labels) == pytest.approx(0.25, abs=1e-6)
    assert tolerance(z, labels, literal=True) == pytest.approx(1 / 12, abs=1e-6)


@pytest.mark.parametrize("rank", [rankme, effective_rank])
def test_an_orthogonal_matrix_uses_all_dimensions(rank):
    assert rank(torch.eye(6, dtype=torch.float64)) == pytest.approx(6, rel=1e-5)


@pytest.mark.parametrize("rank", [rankme, effective_rank, participation_ratio])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_equal_rows_have_rank_one(rank, value):
    assert rank(torch.full((20, 5), value, dtype=torch.float64)) == pytest.approx(1, rel=1e-4)


def test_rankme_of_few_rows_is_bounded_by_their_number():
    assert rankme(torch.randn(3, 50, generator=torch.Generator().manual_seed(0))) <= 3 * (1 + 1e-5)


def test_constant_columns_have_no_correlation():
    z = torch.tensor([[1.0, 2, 5], [2, 4, 5], [3, 6, 5]])
    assert mean_abs_correlation(z) == pytest.approx(2 / 6)  # columns 0 and 1 agree, in both orders


def test_a_power_law_spectrum_has_its_exponent():
    basis = torch.linalg.qr(
        torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )[0]
    basis = torch.linalg.qr(basis - basis.mean(0))[0]
    z = basis * torch.arange(1, 9).double() ** -0.75  # covariance eigenvalues k^-1.5
    assert alpha_req(z) == pytest.approx(1.5, rel=1e-8)
    assert alpha_req(z, first=2, last=5) == pytest.approx(1.5, rel=1e-8)


def test_collapse_shows():
    generator = torch.Generator().manual_seed(0)
    healthy = torch.randn(200, 16, generator=generator)
    collapsed = torch.ones(200, 16) + 1e-3 * torch.randn(200, 16, generator=generator)
    labels = torch.arange(200) % 4
    good, bad = describe_geometry(healthy, labels), describe_geometry(collapsed, labels)
    assert good["uniformity"] > 3 > 0.1 > bad["uniformity"]
    assert good["normalized_std"] > 0.2 > 0.01 > bad["normalized_std"]
    assert good["mean_cosine"] < 0.1 < 0.99 < bad["mean_cosine"]
    assert good["rankme"] > 10 > 2 > bad["rankme"]
    assert all(math.isfinite(value) for value in (*good.values(), *bad.values()))
    assert "tolerance" not in describe_geometry(healthy)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(2, 12), st.integers(0, 2**31), st.floats(1e-3, 1e3))
def test_invariances(rows, columns, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    order = torch.randperm(rows, generator=generator)
    rotation = torch.linalg.qr(torch.randn(columns, columns, dtype=torch.float64, generator=generator))[0]
    for metric in (uniformity, mean_cosine, rankme):
        value = metric(z)
        assert metric(scale * z) == pytest.approx(value, rel=1e-6, abs=1e-9)
        assert metric(z[order]) == pytest.approx(value, rel=1e-6, abs=1e-9)
        assert metric(z @ rotation) == pytest.approx(value, rel=1e-5, abs=1e-9)
    assert uniformity(z) <= 1e-9
    assert 1 - 1e-6 <= effective_rank(z) <= min(rows, columns) * (1 + 1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: uniformity(torch.ones(1, 3)), "N of 2 at least"),
        (lambda: tolerance(torch.eye(3), torch.arange(3)), "no class has two samples"),
        (lambda: alignment(torch.ones(2, 3), torch.ones(3, 3)), "equal shape"),
        (lambda: alpha_req(torch.ones(5, 3)), "two of them"),
        (lambda: alpha_req(torch.randn(9, 3), first=2, last=7), "range 2..7"),
        (lambda: mean_abs_correlation(torch.ones(5, 1)), "one column"),
        (lambda: rankme(torch.ones(5)), "expected"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
