"""Gradient caching: encode a batch of any size with the activations of one chunk in memory.

Gao, Zhang, Han, Callan 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup". The
loss of a contrastive objective needs the embeddings of the whole batch, but given the gradient of the loss
with respect to them, the encoder's gradient is a sum over samples. So the batch is encoded chunk by chunk
without keeping activations, the loss and its gradient with respect to the embeddings are computed once, and
then each chunk is encoded a second time, with activations, to carry its share of that gradient to the
weights.

Here this is the ordinary backward pass: every chunk stands in the graph as a checkpointed call, which
autograd encodes again when the gradient reaches it, one chunk after the other. Nothing else in training has
to know: loss scaling, clipping and accumulation work on one loss as always, and every parameter receives its
whole gradient in one piece, so that data parallel training synchronises once a step, when the last chunk is
done.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def encode_in_chunks(
    network: Callable[[Tensor], Tensor], inputs: Tensor, chunk_size: int, modules: tuple[nn.Module, ...]
) -> Tensor:
    """Encode ``inputs`` as ``network`` would, holding the activations of one chunk at a time.

    Gradients equal those of ``network(inputs)`` up to rounding. Random numbers (dropout) are drawn once and
    repeated when a chunk is encoded again, and so is the autocast setting. Batch norm normalises with the
    statistics of each *chunk*, as it would in a batch of that size; its running statistics are updated once
    for each chunk, not again in the second encoding. Use a network without batch norm, or synchronised norms,
    where that matters.

    Args:
        network: Maps ``(n, ...)`` to ``(n, D)``, each row by itself (batch norm aside).
        inputs: ``(N, ...)``.
        chunk_size: Rows to encode at a time; 0 encodes all at once, with ordinary autograd.
        modules: What ``network`` calls; their buffers are left alone by the second encoding.

    Returns:
        Embeddings ``(N, D)``, attached to the graph.
    """
    if chunk_size == 0 or chunk_size >= len(inputs) or not torch.is_grad_enabled():
        return network(inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _buffers_kept(modules)

    return torch.cat(
        [
            checkpoint(network, chunk, use_reentrant=False, context_fn=contexts)
            for chunk in torch.split(inputs, chunk_size)
        ]
    )


@contextmanager
def _buffers_kept(modules: tuple[nn.Module, ...]) -> Iterator[None]:
    """Put every buffer back to its value on entry, so that encoding again leaves no second trace in them."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    values = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)
