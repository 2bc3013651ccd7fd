import pytest
import torch
from torch import nn
from torch.nn import functional as F

from contrastive.training.caching import encode_in_chunks


def loss_of(embeddings):
    """Cross-view InfoNCE: every row meets every other, so chunks cannot be treated on their own."""
    first, second = F.normalize(embeddings, dim=1).chunk(2)
    return F.cross_entropy(first @ second.T / 0.1, torch.arange(len(first)))


def network(dropout=0.0, norm=False):
    torch.manual_seed(0)
    layers = [nn.Linear(5, 32), nn.BatchNorm1d(32) if norm else nn.Identity(), nn.Tanh(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(32, 8)).double()


def inputs(rows=24):
    return torch.randn(rows, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(net, encode, seed=7):
    """Loss and gradients of ``encode()``; the generator stands at the same place in every call."""
    torch.manual_seed(seed)
    net.zero_grad()
    loss = loss_of(encode())
    torch.manual_seed(seed + 1)  # whatever is drawn between forward and backward must not matter
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in net.parameters()]


@pytest.mark.parametrize("chunk", [1, 5, 8, 23, 24, 100])
def test_cached_equals_uncached(chunk):
    net, rows = network(), inputs()
    loss, expected = gradients(net, lambda: net(rows))
    cached_loss, cached = gradients(net, lambda: encode_in_chunks(net, rows, chunk, (net,)))
    torch.testing.assert_close(cached_loss, loss, rtol=1e-12, atol=0)
    for got, want in zip(cached, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-13)


def test_averaging_the_losses_of_chunks_is_something_else():
    """Control: the shortcut that caching is there to avoid does not pass the test above."""
    net, rows = network(), inputs()
    _, expected = gradients(net, lambda: net(rows))
    net.zero_grad()
    for chunk in rows.split(8):
        (loss_of(net(chunk)) / 3).backward()
    assert not torch.allclose(next(net.parameters()).grad, expected[0], rtol=1e-2)


def test_dropout_is_the_same_in_both_encodings():
    net, rows = network(dropout=0.5), inputs()
    _, expected = gradients(net, lambda: torch.cat([net(chunk) for chunk in rows.split(8)]))
    _, cached = gradients(net, lambda: encode_in_chunks(net, rows, 8, (net,)))
    for got, want in zip(cached, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-13)
    _, other = gradients(net, lambda: encode_in_chunks(net, rows, 8, (net,)), seed=8)
    assert not torch.allclose(other[0], expected[0])  # control: dropout is on


def test_batch_norm_statistics_move_once_for_each_chunk():
    plain, cached, rows = network(norm=True), network(norm=True), inputs()
    _, expected = gradients(plain, lambda: torch.cat([plain(chunk) for chunk in rows.split(8)]))
    _, got = gradients(cached, lambda: encode_in_chunks(cached, rows, 8, (cached,)))
    for name, buffer in plain.named_buffers():
        assert torch.equal(cached.get_buffer(name), buffer), name
    assert plain[1].num_batches_tracked == 3
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13)


def test_batch_norm_statistics_would_move_twice_without_care():
    """Control: left unguarded, the second encoding does reach the buffers."""
    net = network(norm=True)
    gradients(net, lambda: encode_in_chunks(net, inputs(), 8, ()))
    assert net[1].num_batches_tracked == 6


def test_autocast_is_the_same_in_both_encodings():
    net, rows = network().float(), inputs().float()

    def under_autocast(encode):
        def run():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                embeddings = encode()
            assert embeddings.dtype == torch.bfloat16
            return embeddings.float()

        return run

    _, expected = gradients(net, under_autocast(lambda: torch.cat([net(chunk) for chunk in rows.split(8)])))
    _, cached = gradients(net, under_autocast(lambda: encode_in_chunks(net, rows, 8, (net,))))
    for got, want in zip(cached, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0.02, atol=2e-3)  # bfloat16 has 8 bits


def test_frozen_layers_stay_without_gradient():
    net, rows = network(), inputs()
    net[0].requires_grad_(False)
    loss_of(encode_in_chunks(net, rows, 8, (net,))).backward()
    assert net[0].weight.grad is None
    assert net[-1].weight.grad is not None


def test_without_gradients_nothing_is_recorded():
    net = network()
    with torch.no_grad():
        assert not encode_in_chunks(net, inputs(), 8, (net,)).requires_grad


def peak_bytes(step):
    """Largest sum of the memory that torch held during ``step`` above that at its start."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_memory_grows_with_the_chunk_and_not_with_the_batch():
    net = nn.Sequential(nn.Linear(4, 2000), nn.Tanh(), nn.Linear(2000, 4))

    def peak(rows, chunk):
        batch = torch.randn(rows, 4)
        return peak_bytes(lambda: encode_in_chunks(net, batch, chunk, (net,)).square().sum().backward())

    peak(32, 16)  # what is allocated once: gradients
    small = peak(64, 32)
    assert peak(256, 32) < 1.3 * small
    assert peak(256, 128) > 2 * small
    assert peak(256, 0) > 4 * small  # control: without caching memory does grow with the batch
