"""Every objective, through every check of the public conformance suite, against a twin written with loops."""

import math
from functools import partial
from itertools import combinations

import pytest
import torch
from torch import Tensor

from contrastive import HardInfoNCE, InfoNCE, SupCon
from contrastive.testing import CHECKS, ObjectiveCase


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def naive_nt_xent(*views: Tensor, labels: Tensor | None, t: float = 0.1, decoupled: bool = False) -> Tensor:
    """Average over pairs of views of the mean over both views' anchors, one anchor at a time."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for a, b in combinations(views, 2):
        batch = len(a)
        z = unit(torch.cat([a, b]))
        for i in range(2 * batch):
            positive = (i + batch) % (2 * batch)
            terms = [] if decoupled else [z[i] @ z[positive] / t]
            for k in range(2 * batch):
                if k in (i, positive) or (labels is not None and labels[k % batch] == labels[i % batch]):
                    continue
                terms.append(z[i] @ z[k] / t)
            total = total + torch.stack(terms).logsumexp(0) - z[i] @ z[positive] / t
            count += 1
    return total / count


def naive_cross(*views: Tensor, labels: Tensor | None, t: float = 0.07) -> Tensor:
    total, count = torch.zeros((), dtype=torch.float64), 0
    for a, b in combinations(map(unit, views), 2):
        for x, y in ((a, b), (b, a)):
            for i in range(len(x)):
                terms = [
                    x[i] @ y[k] / t
                    for k in range(len(y))
                    if k == i or labels is None or labels[k] != labels[i]
                ]
                total = total + torch.stack(terms).logsumexp(0) - x[i] @ y[i] / t
                count += 1
    return total / count


def naive_keys(queries: Tensor, keys: Tensor, labels: Tensor | None, t: float = 0.1) -> Tensor:
    q, k = unit(queries), unit(keys)
    losses = []
    for i in range(len(q)):
        losses.append((k @ q[i] / t).logsumexp(0) - q[i] @ k[i] / t)
    return torch.stack(losses).mean()


def naive_queue(
    queries: Tensor, keys: Tensor, labels: Tensor | None, t: float = 0.2, size: int = 16
) -> Tensor:
    random = torch.randn(size, keys.shape[1], generator=torch.Generator().manual_seed(0))
    queue = torch.nn.functional.normalize(random, dim=1).double()  # stored in float32
    q, k = unit(queries), unit(keys)
    losses = []
    for i in range(len(q)):
        logits = torch.stack([q[i] @ k[i], *(q[i] @ row for row in queue)]) / t
        losses.append(logits.logsumexp(0) - logits[0])
    return torch.stack(losses).mean()


def naive_sup_con(*views: Tensor, labels: Tensor, t: float = 0.1, base: float = 0.07) -> Tensor:
    z, y = unit(torch.cat(views)), labels.repeat(len(views))
    losses = []
    for i in range(len(z)):
        positives = [k for k in range(len(z)) if k != i and y[k] == y[i]]
        logits = {k: z[i] @ z[k] / t for k in range(len(z)) if k != i}
        if positives:
            log_sum = torch.stack(list(logits.values())).logsumexp(0)
            losses.append(t / base * (log_sum - sum(logits[p] for p in positives) / len(positives)))
    return torch.stack(losses).mean()


def naive_pairwise(*views: Tensor, labels: Tensor, t: float = 0.2) -> Tensor:
    z, y = unit(torch.cat(views)), labels.repeat(len(views))
    losses = []
    for i in range(len(z)):
        negatives = [z[i] @ z[k] / t for k in range(len(z)) if y[k] != y[i]]
        for p in range(len(z)):
            if p != i and y[p] == y[i]:
                positive = z[i] @ z[p] / t
                losses.append(torch.stack([positive, *negatives]).logsumexp(0) - positive)
    return torch.stack(losses).mean()


def naive_hard(
    a: Tensor, b: Tensor, labels: Tensor | None, t: float = 0.3, k: int = 4, simple: bool = False
) -> Tensor:
    z, batch = unit(torch.cat([a, b])), len(a)
    losses = []
    for i in range(2 * batch):
        positive = z[i] @ z[(i + batch) % (2 * batch)]
        others = [z[i] @ z[j] for j in range(2 * batch) if j % batch != i % batch]
        hardest = sorted(others, key=lambda s: float(s.detach()), reverse=True)[:k]
        if simple:
            losses.append(torch.stack(hardest).mean() - positive)
        else:
            losses.append(torch.stack([positive, *hardest]).div(t).logsumexp(0) - positive / t)
    return torch.stack(losses).mean()


# A learnable temperature is stored as the logarithm of its inverse, in float32.
CLIP_TEMPERATURE = math.exp(-float(torch.tensor(math.log(1 / 0.07))))

CASES = [
    ObjectiveCase("InfoNCE", InfoNCE, naive_nt_xent),
    ObjectiveCase("InfoNCE-cold", partial(InfoNCE, temperature=0.005), partial(naive_nt_xent, t=0.005)),
    ObjectiveCase("InfoNCE-warm", partial(InfoNCE, temperature=5.0), partial(naive_nt_xent, t=5.0)),
    ObjectiveCase("InfoNCE-3-views", InfoNCE, naive_nt_xent, num_views=3),
    ObjectiveCase("InfoNCE-duplicates", InfoNCE, naive_nt_xent, labels=True, positions=False),
    ObjectiveCase(
        "InfoNCE-decoupled", partial(InfoNCE, decoupled=True), partial(naive_nt_xent, decoupled=True)
    ),
    ObjectiveCase("InfoNCE-weighted", partial(InfoNCE, decoupled="weighted"), smooth=False),
    ObjectiveCase("InfoNCE-cross", partial(InfoNCE, 0.07, "cross"), naive_cross, positions=False),
    ObjectiveCase(
        "InfoNCE-cross-duplicates", partial(InfoNCE, 0.07, "cross"), naive_cross, labels=True, positions=False
    ),
    ObjectiveCase(
        "InfoNCE-CLIP",
        partial(InfoNCE, 0.07, "cross", learnable_temperature=True),
        partial(naive_cross, t=CLIP_TEMPERATURE),
        positions=False,
    ),
    ObjectiveCase("InfoNCE-keys", partial(InfoNCE, momentum_keys=True), naive_keys),
    ObjectiveCase("InfoNCE-queue", partial(InfoNCE, 0.2, queue_size=16), naive_queue, gathers=False),
    ObjectiveCase("SupCon", SupCon, naive_sup_con, labels=True),
    ObjectiveCase("SupCon-1-view", SupCon, naive_sup_con, num_views=1, labels=True),
    ObjectiveCase("SupCon-first", partial(SupCon, anchors="first"), labels=True),
    ObjectiveCase("SupCon-pairs", partial(SupCon, 0.2, denominator="negatives"), naive_pairwise, labels=True),
    ObjectiveCase("HardInfoNCE", partial(HardInfoNCE, num_negatives=4), naive_hard),
    ObjectiveCase(
        "HardInfoNCE-simple",
        partial(HardInfoNCE, num_negatives=4, form="simple"),
        partial(naive_hard, simple=True),
    ),
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conformance(case: ObjectiveCase, check: str):
    CHECKS[check](case)


def test_the_suite_refuses_a_wrong_objective():
    class Shifted(InfoNCE):
        def forward(self, *views, **inputs):
            return super().forward(*views, **inputs) + 1e-3

    case = ObjectiveCase("shifted", Shifted, naive_nt_xent)
    with pytest.raises(AssertionError, match="shifted: twin"):
        CHECKS["twin"](case)


def test_the_suite_refuses_a_quadratic_objective():
    class Dense(InfoNCE):
        def forward(self, *views, **inputs):
            z = torch.nn.functional.normalize(torch.cat(views), dim=1)
            return (z @ z.T / math.pi).logsumexp(1).mean()

    with pytest.raises(AssertionError, match="grows like a square"):
        CHECKS["memory"](ObjectiveCase("dense", Dense))
