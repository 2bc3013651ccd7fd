"""Time and memory of CACR, forward and backward, beside its published form in the same run.

    python scripts/benchmark/cacr.py --threads 1

The published form takes the differences of all pairs of rows, B x B x D numbers for each pair of views. "products" is
the same loss from the products of rows under plain autograd: the fastest form that still holds whole matrices. K is the
number of positives, so there are 1 + K views of width 128. Ratios are theirs / ours.
"""

from itertools import combinations

import torch
from measure import Contestant, Problem, compare
from torch import Tensor
from torch.nn import functional as F

POSITIVE_TEMPERATURE, NEGATIVE_TEMPERATURE = 1.0, 2.0

CASES = {
    "B=256 K=1": {"batch": 256, "positives": 1},
    "B=256 K=4": {"batch": 256, "positives": 4},
    "B=512 K=1": {"batch": 512, "positives": 1},
    "B=1024 K=4": {"batch": 1024, "positives": 4},
    "B=4096 K=1": {"batch": 4096, "positives": 1},
}


def ours(batch: int, positives: int) -> Problem:
    from contrastive.functional import cacr

    z = torch.randn(1 + positives, batch, 128, requires_grad=True)
    options = {
        "positive_temperature": POSITIVE_TEMPERATURE,
        "negative_temperature": NEGATIVE_TEMPERATURE,
    }
    return Problem(lambda: cacr(*z, **options), [z])


def published(*, products: bool) -> Contestant:
    def build(batch: int, positives: int) -> Problem:
        z = torch.randn(1 + positives, batch, 128, requires_grad=True)
        distances = from_products if products else from_differences
        return Problem(lambda: published_loss(z, distances), [z])

    return build


def published_loss(z: Tensor, distances_of) -> Tensor:
    views = F.normalize(z, dim=-1).unbind()
    count, batch = len(views), len(views[0])
    attraction = z.new_zeros(())
    for v, query in enumerate(views):
        others = torch.stack([view for w, view in enumerate(views) if w != v], 1)
        distances = (query[:, None] - others).square().sum(-1)
        weights = (POSITIVE_TEMPERATURE * distances).softmax(1)
        attraction = attraction + (weights * distances).sum(1).mean() / count
    repulsion, negative = z.new_zeros(()), ~torch.eye(batch, dtype=torch.bool)
    for x, y in combinations(views, 2):
        distances = distances_of(x, y)[negative].view(batch, batch - 1)
        weights = (-NEGATIVE_TEMPERATURE * distances).softmax(1)
        repulsion = repulsion - (weights * distances).sum(1).mean()
    return attraction + repulsion / (count * (count - 1) / 2)


def from_differences(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, None] - y[None]).square().sum(-1)


def from_products(x: Tensor, y: Tensor) -> Tensor:
    return 2 - 2 * x @ y.T


def too_large(contestant: str, case: str) -> bool:
    return contestant == "published form" and case in ("B=1024 K=4", "B=4096 K=1")


if __name__ == "__main__":
    contestants = {
        "ours": ours,
        "published form": published(products=False),
        "published, products": published(products=True),
    }
    compare(__doc__, contestants, CASES, skip=too_large)
