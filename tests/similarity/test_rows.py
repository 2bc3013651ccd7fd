import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive import stream_rows
from contrastive.similarity.rows import DENSE_ENTRIES


def log_sum(similarity, rows, *scale):
    logits = similarity * scale[0] if scale else similarity
    return logits.logsumexp(1).sum()


@settings(deadline=None, max_examples=30)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    d=st.integers(1, 9),
    block=st.integers(1, 50),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_block_size_gives_the_dense_value_and_gradients(m, n, d, block, dtype):
    generator = torch.Generator().manual_seed(m * 100 + n)
    queries = torch.randn(m, d, dtype=dtype, generator=generator, requires_grad=True)
    keys = torch.randn(n, d, dtype=dtype, generator=generator, requires_grad=True)
    scale = torch.tensor(1.3, dtype=dtype, requires_grad=True)
    inputs = (queries, keys, scale)
    expected = log_sum(queries @ keys.T, slice(0, m), scale)
    streamed = stream_rows(queries, keys, log_sum, scale, block_size=block)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(streamed, expected, **tolerance)
    gradients = torch.autograd.grad(streamed, inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, inputs), **tolerance)


def test_rows_say_which_anchors_the_block_holds():
    weights = torch.arange(10.0)
    queries, keys = torch.eye(10), torch.eye(10)
    seen = []

    def row_loss(similarity, rows):
        seen.append((rows.start, rows.stop))
        return (similarity.sum(1) * weights[rows]).sum()

    loss = stream_rows(queries.requires_grad_(), keys, row_loss, block_size=4)
    assert seen == [(0, 4), (4, 8), (8, 10)]
    assert loss.item() == 45.0


def test_the_same_tensor_on_both_sides_gets_both_gradients():
    x = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    streamed = torch.autograd.grad(stream_rows(x, x, log_sum, block_size=5), x)
    torch.testing.assert_close(streamed, torch.autograd.grad(log_sum(x @ x.T, slice(0, 12)), x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_float32(dtype):
    x = torch.randn(20, 8).to(dtype).requires_grad_()
    loss = stream_rows(x, x.detach(), log_sum, block_size=6)
    assert loss.dtype == torch.float32
    (grad,) = torch.autograd.grad(loss, x)
    assert grad.dtype == dtype
    torch.testing.assert_close(loss, log_sum(x.float() @ x.float().T, slice(0, 20)))


def test_autocast_does_not_lower_the_precision_of_similarities():
    x = torch.randn(600, 16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = stream_rows(x, x, log_sum)
    torch.testing.assert_close(loss, stream_rows(x, x, log_sum), rtol=1e-6, atol=0)


def test_small_problems_can_be_differentiated_twice_and_large_ones_say_why_not():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: stream_rows(x, x, log_sum), x)
    rows = int(DENSE_ENTRIES**0.5) + 1
    large = torch.randn(rows, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(stream_rows(large, large, log_sum), large, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiated twice.*smaller batch"):
        grad.sum().backward()


def test_no_gradients_are_computed_when_nobody_asks():
    x = torch.randn(9, 3)

    def row_loss(similarity, rows):
        assert not similarity.requires_grad
        return similarity.sum()

    assert not stream_rows(x, x, row_loss, block_size=2).requires_grad


@pytest.mark.parametrize(
    ("queries", "keys", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(3, 5), "same width"),
        (torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.float64), "same width, dtype"),
        (torch.zeros(3), torch.zeros(3, 4), r"queries has shape \(3,\)"),
        (torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.int64), "keys has shape"),
    ],
)
def test_bad_inputs_are_named(queries, keys, message):
    with pytest.raises(ValueError, match=message):
        stream_rows(queries, keys, log_sum)


def test_bad_block_size_is_named():
    with pytest.raises(ValueError, match="block_size is 0"):
        stream_rows(torch.zeros(2, 2), torch.zeros(2, 2), log_sum, block_size=0)
