"""Time and memory of objectives, forward and backward, beside the popular libraries in the same run.

python scripts/benchmark/objectives.py --case 256 1024 4096 --threads 2 --out objectives.json

Every case is B samples in two views of width 128. Ratios are peer / ours, so larger is better for us. "products" are
three plain matrix products of the same size, the least work that any dense implementation does.
"""

from collections.abc import Callable

import torch
from measure import Problem, compare
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE, DIM = 0.1, 128


def products(batch: int) -> Problem:
    z = torch.randn(2 * batch, DIM)
    matrix = torch.empty(2 * batch, 2 * batch)

    def step() -> None:
        torch.mm(z, z.T, out=matrix)
        matrix @ z
        matrix.T @ z

    return Problem(step, [])


def naive(z1: Tensor, z2: Tensor) -> Tensor:
    """NT-Xent as most people write it."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    n = len(z)
    logits = (z @ z.T / TEMPERATURE).masked_fill(torch.eye(n, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, (torch.arange(n) + n // 2) % n)


def ours(z1: Tensor, z2: Tensor) -> Tensor:
    from contrastive.functional import info_nce

    return info_nce(z1, z2, temperature=TEMPERATURE)


def streamed(z1: Tensor, z2: Tensor) -> Tensor:
    """The same loss through ``stream_rows``, with an ordinary row function."""
    from contrastive import stream_rows

    z = F.normalize(torch.cat([z1, z2]), dim=1)
    n = len(z)
    partner = (torch.arange(n) + n // 2) % n

    def row_loss(similarity: Tensor, rows: slice) -> Tensor:
        logits = similarity / TEMPERATURE
        positive = logits.gather(1, partner[rows, None])
        own = torch.arange(rows.start, rows.stop)[:, None]
        return (logits.scatter(1, own, -torch.inf).logsumexp(1) - positive[:, 0]).sum()

    return stream_rows(z, z, row_loss) / n


def lightly() -> Callable[[Tensor, Tensor], Tensor]:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=TEMPERATURE)


def pytorch_metric_learning() -> Callable[[Tensor, Tensor], Tensor]:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return SelfSupervisedLoss(NTXentLoss(temperature=TEMPERATURE))


def problem(loss: Callable[[Tensor, Tensor], Tensor], batch: int) -> Problem:
    warm = torch.randn(8, DIM, requires_grad=True)
    loss(warm, warm.flip(0)).backward()  # imports are not the loss's memory
    z1, z2 = torch.randn(batch, DIM, requires_grad=True), torch.randn(batch, DIM, requires_grad=True)
    return Problem(lambda: loss(z1, z2), [z1, z2])


CONTESTANTS = {
    "contrastive InfoNCE": lambda batch: problem(ours, batch),
    "contrastive stream_rows": lambda batch: problem(streamed, batch),
    "products": products,
    "naive PyTorch": lambda batch: problem(naive, batch),
    "lightly NTXentLoss": lambda batch: problem(lightly(), batch),
    "pytorch-metric-learning NTXentLoss": lambda batch: problem(pytorch_metric_learning(), batch),
}
# Beyond these batches a contestant takes minutes, or more memory than most machines have.
LARGEST = {
    "contrastive InfoNCE": 65536,
    "contrastive stream_rows": 16384,
    "products": 16384,
    "naive PyTorch": 8192,
    "lightly NTXentLoss": 8192,
    "pytorch-metric-learning NTXentLoss": 256,
}

if __name__ == "__main__":
    compare(
        __doc__,
        CONTESTANTS,
        {str(batch): {"batch": batch} for batch in (256, 1024, 4096, 16384, 65536)},
        skip=lambda name, case: int(case) > LARGEST[name],
    )
