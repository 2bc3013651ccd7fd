"""What each objective costs beside InfoNCE: forward and backward of the loss alone, without an encoder.

python scripts/benchmark/family.py --threads 2

Two views of B = 512 samples of width 128, in ten classes, with default options; SepCLR has a common and a salient code
of half the width, CoreTuning features of width 512 and a classifier. The losses are different functions.
"""

import torch
from measure import Problem, compare
from torch import nn

import contrastive as c

CLASSES = 10


def pairwise(objective: c.Objective, batch: int, dim: int) -> Problem:
    """The loss of two views, for objectives with the common signature."""
    objective.setup(batch, num_classes=CLASSES, dim=dim)
    views = [torch.randn(batch, dim, requires_grad=True) for _ in range(2)]
    inputs = {"index": torch.arange(batch)}
    if "labels" in objective.requires:
        inputs["labels"] = torch.randint(CLASSES, (batch,))
    return Problem(lambda: objective(*views, **inputs), [*views, *objective.parameters()])


def separation(batch: int, dim: int) -> Problem:
    """The loss of two views of both codes; half of the samples are targets."""
    objective = c.SepCLR()
    common, salient = ([torch.randn(batch, dim // 2, requires_grad=True) for _ in range(2)] for _ in range(2))
    is_target = torch.arange(batch) % 2 == 0
    return Problem(lambda: objective(common, salient, is_target=is_target), [*common, *salient])


def tuning(batch: int, dim: int) -> Problem:
    """The loss of one view of features, four times as wide as the projections."""
    objective, classifier = c.CoreTuning(), nn.Linear(4 * dim, CLASSES, bias=False)
    objective.setup(batch, num_classes=CLASSES, dim=4 * dim)
    features, labels = torch.randn(batch, 4 * dim, requires_grad=True), torch.randint(CLASSES, (batch,))
    return Problem(lambda: objective(features, labels, classifier), [features, *classifier.parameters()])


CONTESTANTS = {
    "InfoNCE": lambda **case: pairwise(c.InfoNCE(), **case),
    "SupCon": lambda **case: pairwise(c.SupCon(), **case),
    "HardInfoNCE": lambda **case: pairwise(c.HardInfoNCE(), **case),
    "SogCLR": lambda **case: pairwise(c.SogCLR(), **case),
    "ISogCLR": lambda **case: pairwise(c.ISogCLR(), **case),
    "CACR": lambda **case: pairwise(c.CACR(), **case),
    "GroCo": lambda **case: pairwise(c.GroCo(), **case),
    "Hydra": lambda **case: pairwise(c.Hydra(), **case),
    "SepCLR": separation,
    "CoreTuning": tuning,
}

if __name__ == "__main__":
    compare(__doc__, CONTESTANTS, {"512": {"batch": 512, "dim": 128}}, tolerance=float("inf"))
