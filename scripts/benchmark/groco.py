"""Time and memory of GroCo, forward and backward, beside its published form in the same run.

    python scripts/benchmark/groco.py --threads 1

The published form holds the permutation matrix of every anchor and multiplies it by the selection matrices of each
layer of the network. "indexed" is the same with indexing in place of these products: the fastest form that still holds
the permutation. Ratios are theirs / ours.
"""

import math
from functools import cache

import torch
from measure import Contestant, Problem, compare
from torch import Tensor
from torch.nn import functional as F

CASES = {
    "B=512 V=2 k=10": {"batch": 512, "views": 2, "k": 10},
    "B=512 V=8 (2) k=10": {"batch": 512, "views": 8, "k": 10},
    "B=64 V=2 k=10": {"batch": 64, "views": 2, "k": 10},
    "B=256 V=2 k=32": {"batch": 256, "views": 2, "k": 32},
    "B=256 V=2 k=64": {"batch": 256, "views": 2, "k": 64},
    "B=512 V=2 k=256": {"batch": 512, "views": 2, "k": 256},
}


def ours(batch: int, views: int, k: int) -> Problem:
    from contrastive.functional import groco

    x = torch.randn(views, batch, 128, requires_grad=True)
    return Problem(lambda: groco(*x, num_negatives=k, num_positive_views=2), [x])


def published(*, indexed: bool) -> Contestant:
    def build(batch: int, views: int, k: int) -> Problem:
        x = torch.randn(views, batch, 128, requires_grad=True)
        permutation = indexed_permutation if indexed else dense_permutation
        return Problem(lambda: published_loss(x.unbind(), k, permutation), [x])

    return build


def published_loss(views, k, permutation_of) -> Tensor:
    unit = [F.normalize(view, dim=1, eps=1e-8) for view in views]
    losses = []
    for a, anchors in enumerate(unit):
        positives = [(anchors * unit[p].detach()).sum(1) for p in range(2) if p != a]
        similarity = anchors @ anchors.detach().T
        own = torch.eye(len(anchors), dtype=torch.bool)
        negatives = similarity.masked_fill(own, -torch.inf).topk(k).values
        x = torch.cat([negatives.sort(1).values, torch.stack(positives, 1).sort(1).values], 1)
        q = permutation_of(x)[:, :, :k].sum(2).clamp(0, 1)
        target = (torch.arange(x.shape[1]) < k).to(x.dtype).expand_as(q)
        losses.append((F.binary_cross_entropy(q, target) + F.binary_cross_entropy(1 - q, 1 - target)) / 2)
    return torch.stack(losses).mean()


def dense_permutation(x: Tensor) -> Tensor:
    n = x.shape[1]
    identity = torch.eye(n)
    permutation = identity.expand(len(x), n, n)
    for layer in range(n):
        low, high, passing, order = layer_of(n, layer)
        select_low, select_high, select_passing = identity[:, low], identity[:, high], identity[:, passing]
        back = identity[:, order]
        a, b = x @ select_low, x @ select_high
        keep = torch.atan(b - a) / math.pi + 0.5
        x = torch.cat([keep * a + (1 - keep) * b, (1 - keep) * a + keep * b, x @ select_passing], 1) @ back
        a, b, keep = permutation @ select_low, permutation @ select_high, keep[:, None]
        mixed = [keep * a + (1 - keep) * b, (1 - keep) * a + keep * b, permutation @ select_passing]
        permutation = torch.cat(mixed, 2) @ back
    return permutation


def indexed_permutation(x: Tensor) -> Tensor:
    n = x.shape[1]
    permutation = torch.eye(n).expand(len(x), n, n)
    for layer in range(n):
        low, high, passing, order = layer_of(n, layer)
        a, b = x[:, low], x[:, high]
        keep = torch.atan(b - a) / math.pi + 0.5
        x = torch.cat([keep * a + (1 - keep) * b, (1 - keep) * a + keep * b, x[:, passing]], 1)[:, order]
        a, b, keep = permutation[:, :, low], permutation[:, :, high], keep[:, None]
        mixed = [keep * a + (1 - keep) * b, (1 - keep) * a + keep * b, permutation[:, :, passing]]
        permutation = torch.cat(mixed, 2)[:, :, order]
    return permutation


@cache
def layer_of(n: int, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lower and upper wires of the comparators, wires that pass, and where each wire stands in all three."""
    low = torch.arange(layer % 2, n - 1, 2)
    passing = torch.tensor([i for i in range(n) if i not in low and i - 1 not in low], dtype=torch.int64)
    return low, low + 1, passing, torch.cat([low, low + 1, passing]).argsort()


def too_large(contestant: str, case: str) -> bool:
    return "k=256" in case and contestant != "ours"


if __name__ == "__main__":
    contestants = {
        "ours": ours,
        "published form": published(indexed=False),
        "published, indexed": published(indexed=True),
    }
    compare(__doc__, contestants, CASES, skip=too_large)
