import math

import pytest
import torch

from contrastive.similarity import gather, gaussian, gaussian_logsumexp


def naive(temperature, *spaces):
    """Row log-sums of the product and totals of each, one row at a time."""
    logits = [
        -(torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") ** 2) / (2 * temperature)
        for x in spaces
    ]
    own = torch.eye(len(spaces[0]), dtype=torch.bool)
    joint, *each = (x.masked_fill(own, -torch.inf) for x in (sum(logits), *logits))
    return joint.logsumexp(1), [x.logsumexp((0, 1)) for x in each] if len(spaces) > 1 else []


@pytest.fixture
def tiles(monkeypatch):
    """Make tiles of 4 rows."""
    monkeypatch.setattr(gaussian, "_tile_size", lambda device: 4)


@pytest.mark.parametrize("widths", [(3,), (3, 5), (1, 1, 2)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("equal", [0, 9])
def test_values_and_gradients(tiles, widths, scale, equal):
    generator = torch.Generator().manual_seed(0)
    spaces = [scale * torch.randn(13, w, generator=generator, dtype=torch.float64) + 5 for w in widths]
    spaces[-1][:equal] = 2.0
    results = []
    for function in (lambda *s: gaussian_logsumexp([gather(x) for x in s], 0.7), lambda *s: naive(0.7, *s)):
        leaves = [x.clone().requires_grad_() for x in spaces]
        rows, totals = function(*leaves)
        weights = torch.linspace(-1, 2, 13, dtype=torch.float64)
        # A row far from all others is minus infinity and moves nothing; jointly all are, where spaces are wide.
        near = rows > (rows.max() - 30 if scale < 30 or len(widths) == 1 else 0)
        value = (rows[near] * weights[near]).sum() + sum((k + 1) * t for k, t in enumerate(totals))
        value.backward()
        results.append((rows[near].detach(), [t.detach() for t in totals], [x.grad for x in leaves]))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_nothing_to_sum_over():
    rows, totals = gaussian_logsumexp([gather(torch.zeros(1, 2)), gather(torch.zeros(1, 3))], 1.0)
    assert rows.tolist() == [-math.inf]
    assert [t.item() for t in totals] == [-math.inf] * 2
    assert gaussian_logsumexp([gather(torch.zeros(0, 2))], 1.0)[0].shape == (0,)


def test_small_problems_can_be_differentiated_twice():
    x, y = (torch.randn(5, w, dtype=torch.float64, requires_grad=True) for w in (2, 3))

    def total(x, y):
        rows, totals = gaussian_logsumexp([gather(x), gather(y)], 0.5)
        return rows.sum() + totals[0] - totals[1]

    assert torch.autograd.gradgradcheck(total, (x, y))


def test_large_problems_refuse_to_be_differentiated_twice(monkeypatch):
    monkeypatch.setattr(gaussian, "DENSE_ENTRIES", 16)
    x = torch.randn(5, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(gaussian_logsumexp([gather(x)], 1.0)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="gaussian_logsumexp: a streamed result was differentiated twice"):
        gradient.sum().backward()
