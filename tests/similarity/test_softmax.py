import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive.similarity import gather, logsumexp_both, logsumexp_cross, logsumexp_self, softmax


def naive_self(x, ids=None):
    ids = torch.arange(len(x)) if ids is None else ids
    return (x @ x.T).masked_fill(ids[:, None] == ids, -torch.inf).logsumexp(1)


def compare(ours, expected, inputs, weights, tolerance):
    """Values, and gradients of a weighted sum over rows that have something to sum over."""
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
    rows = expected > -torch.inf
    if rows.any():
        sums = [(result[rows] * weights[rows]).sum() for result in (ours, expected)]
        gradients = [torch.autograd.grad(total, inputs, retain_graph=True) for total in sums]
        torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(2, 50),
    tile=st.integers(1, 60),
    kept=st.sampled_from([0, 100, 10**6]),
    temperature=st.sampled_from([0.001, 0.005, 0.1, 5.0]),
    grouped=st.booleans(),
)
def test_symmetric_sums_equal_the_definition(n, tile, kept, temperature, grouped):
    generator = torch.Generator().manual_seed(n)
    z = torch.nn.functional.normalize(torch.randn(n, 5, dtype=torch.float64, generator=generator), dim=1)
    x = (z / temperature**0.5).requires_grad_()
    ids = torch.randint(0, 6, (n,), generator=generator) if grouped else None
    weights = torch.randn(n, dtype=torch.float64, generator=generator)
    with (
        mock.patch.object(softmax, "_tile_size", return_value=tile),
        mock.patch.object(softmax, "_KEPT_ENTRIES", kept),
    ):
        compare(logsumexp_self(gather(x), ids), naive_self(x, ids), x, weights, 1e-9)


@settings(deadline=None, max_examples=30)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    tile=st.integers(1, 50),
    scale=st.sampled_from([0.3, 3.0, 30.0]),
)
def test_rows_and_columns_of_a_rectangle_equal_the_definition(m, n, tile, scale):
    generator = torch.Generator().manual_seed(m + 50 * n)
    a = (scale * torch.randn(m, 4, dtype=torch.float64, generator=generator)).requires_grad_()
    b = (scale * torch.randn(n, 4, dtype=torch.float64, generator=generator)).requires_grad_()
    ids, key_ids = (torch.randint(0, 9, (k,), generator=generator) for k in (m, n))
    logits = (a @ b.T).masked_fill(ids[:, None] == key_ids, -torch.inf)
    weights = torch.randn(m + n, dtype=torch.float64, generator=generator)
    with mock.patch.object(softmax, "_tile_size", return_value=tile):
        rows, columns = logsumexp_both(a, b, ids, key_ids)
        compare(
            torch.cat([rows, columns]),
            torch.cat([logits.logsumexp(1), logits.logsumexp(0)]),
            (a, b),
            weights,
            1e-9,
        )
        only_rows = logsumexp_cross(a, b, ids, key_ids)
        compare(only_rows, logits.logsumexp(1), (a, b), weights[:m], 1e-9)


def test_hand_computed():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    expected = torch.stack([(one.exp() + 1).log(), (one.exp() + 1).log(), torch.tensor(2.0).double().log()])
    torch.testing.assert_close(logsumexp_self(gather(x)), expected)


@pytest.mark.parametrize("length", [1.0, 8.0, 30.0])
def test_float32_is_accurate_with_and_without_the_running_maximum(length):
    x = length * torch.nn.functional.normalize(
        torch.randn(700, 16, generator=torch.Generator().manual_seed(0)), dim=1
    )
    exact = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(naive_self(exact).sum(), exact)
    x.requires_grad_()
    ours = logsumexp_self(gather(x))
    torch.testing.assert_close(ours.double(), naive_self(exact), rtol=2e-6, atol=2e-5)
    (grad,) = torch.autograd.grad(ours.sum(), x)
    # Logits have a rounding error of about 1e-7 length^2, which the gradient multiplies by the length.
    torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=2e-7 * length**3)


def test_duplicate_rows_and_two_rows():
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(logsumexp_self(gather(x)), torch.full((2,), 3.0, dtype=torch.float64))
    many = torch.ones(50, 3, dtype=torch.float64) / 3**0.5
    expected = torch.full((50,), 1 + math.log(49), dtype=torch.float64)
    torch.testing.assert_close(logsumexp_self(gather(many)), expected)


def test_rows_that_leave_out_everything_are_minus_infinity_with_zero_gradient():
    x = torch.randn(4, 3, requires_grad=True)
    result = logsumexp_self(gather(x), torch.zeros(4, dtype=torch.int64))
    assert (result == -torch.inf).all()
    (grad,) = torch.autograd.grad(result, x, torch.ones(4))
    assert (grad == 0).all()


def test_small_problems_can_be_differentiated_twice_and_large_ones_say_why_not():
    x, y = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ids = torch.tensor([0, 1, 1, 2, 3])
    assert torch.autograd.gradgradcheck(lambda x: logsumexp_self(gather(x)), x)
    assert torch.autograd.gradgradcheck(lambda x: logsumexp_self(gather(x), ids), x)
    assert torch.autograd.gradgradcheck(lambda x, y: logsumexp_both(x, y, ids, ids), (x, y))
    large = torch.randn(513, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(logsumexp_self(gather(large)).sum(), large, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        grad.sum().backward()


def test_backward_may_run_twice_through_a_retained_graph():
    x = torch.randn(30, 4, requires_grad=True)
    loss = logsumexp_self(gather(x)).sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, x), first, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_float32(dtype):
    x = torch.randn(40, 8).to(dtype).requires_grad_()
    result = logsumexp_self(gather(x))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, naive_self(x.float()), rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(result.sum(), x)[0].dtype == dtype
