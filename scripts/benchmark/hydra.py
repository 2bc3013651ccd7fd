"""Time and memory of Hydra's loss, forward and backward, beside the form that gates every key for every query.

python scripts/benchmark/hydra.py --threads 2 --out hydra.json

B queries and B keys of ten classes, arbitrary pairs, the gate generator (512-1024-D) included. "gated
keys" holds all keys once for each query, (B, B, D). "two products" is the same with matrix products under plain
autograd, and a gate for every row. Ratios are others / ours, so larger is better for us.
"""

import torch
from measure import Problem, compare
from torch import Tensor
from torch.nn import functional as F

from contrastive import Hydra

CLASSES, TEMPERATURE = 10, 0.2


def inputs(batch: int, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Hydra]:
    generator = torch.Generator().manual_seed(1)
    queries, keys = torch.randn(2, batch, dim, generator=generator)
    labels = torch.randint(CLASSES, (batch,), generator=generator)
    partners = labels[torch.randperm(batch, generator=generator)]
    torch.manual_seed(0)
    objective = Hydra(CLASSES, dim, keys="second", temperature=TEMPERATURE)
    return queries.requires_grad_(), keys.requires_grad_(), labels, partners, objective


def ours(batch: int, dim: int) -> Problem:
    queries, keys, labels, partners, objective = inputs(batch, dim)
    leaves = [queries, keys, *objective.parameters()]
    return Problem(lambda: objective(queries, keys, labels=labels, partners=partners), leaves)


def gated_keys(queries: Tensor, keys: Tensor, gates: Tensor) -> Tensor:
    return torch.einsum(
        "id,ijd->ij", F.normalize(queries * gates, dim=1), F.normalize(keys * gates[:, None], dim=2)
    )


def two_products(queries: Tensor, keys: Tensor, gates: Tensor) -> Tensor:
    lengths = (gates.square() @ keys.square().T).sqrt()
    return (F.normalize(queries * gates, dim=1) * gates) @ keys.T / lengths


def naive(similarity, batch: int, dim: int) -> Problem:
    queries, keys, labels, partners, objective = inputs(batch, dim)
    table, mlp = objective.gates.label_embedding, objective.gates.mlp

    def loss() -> Tensor:
        gates = mlp((table(labels) + table(partners)) / 2).sigmoid()
        logits = similarity(queries, keys, gates) / TEMPERATURE
        positive = partners[:, None] == labels
        excluded = positive | (labels[:, None] == labels)
        shifted = (logits - logits.mean(1, keepdim=True)).exp()
        negatives = shifted.masked_fill(excluded, 0).sum(1, keepdim=True)
        return -(shifted / (shifted + negatives)).log()[positive].mean()

    return Problem(loss, [queries, keys, *objective.parameters()])


CONTESTANTS = {
    "contrastive Hydra": ours,
    "gated keys (B, B, D)": lambda **case: naive(gated_keys, **case),
    "two products, plain autograd": lambda **case: naive(two_products, **case),
}
CASES = {f"B = {batch}, D = 256": {"batch": batch, "dim": 256} for batch in (128, 256, 512, 2048)}

if __name__ == "__main__":
    compare(
        __doc__,
        CONTESTANTS,
        CASES,
        skip=lambda contestant, case: contestant.startswith("gated keys") and case.startswith("B = 2048"),
    )
