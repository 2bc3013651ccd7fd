"""SogCLR and iSogCLR: forward, backward and the update of the state, beside InfoNCE and the official form.

python scripts/benchmark/isogclr.py --threads 1

B samples in two views of width 128. The official form holds the B x 2B matrices of similarities, exponentials, weights
and masks. InfoNCE is another loss; its value is not compared.
"""

import torch
from measure import Problem, compare
from torch import Tensor
from torch.nn import functional as F

DIM, SAMPLES = 128, 50_000


def views(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    z1 = torch.randn(batch, DIM)
    z2 = z1 + 0.5 * torch.randn(batch, DIM)
    return z1.requires_grad_(), z2.requires_grad_(), torch.randperm(SAMPLES)[:batch]


def ours(batch: int, name: str, **options: object) -> Problem:
    import contrastive

    objective = getattr(contrastive, name)(num_samples=SAMPLES, **options)
    z1, z2, index = views(batch)
    objective.eval()(z1[:8], z2[:8], index=index[:8])  # imports are not the loss's memory
    objective.train()
    return Problem(lambda: objective(z1, z2, index=index), [z1, z2])


def info_nce(batch: int, **options: object) -> Problem:
    from contrastive.functional import info_nce as loss

    z1, z2, _ = views(batch)

    def step() -> None:
        loss(z1, z2, **options).backward()

    return Problem(step, [])


class Official:
    """iSogCLR as its formulas are written, for two views and for two modalities."""

    def __init__(self, rho: float, start: float, lowest: float, beta: float, bound: float) -> None:
        self.rho, self.lowest, self.beta, self.bound = rho, lowest, beta, bound
        self.estimator = torch.zeros(2, SAMPLES)
        self.momentum = torch.zeros(2, SAMPLES)
        self.temperature = torch.full((2, SAMPLES), start)

    def update(self, side: int, index: Tensor, estimator: Tensor, gradient: Tensor) -> None:
        self.estimator[side, index] = estimator
        gradient = gradient.clamp(-self.bound, self.bound)
        self.momentum[side, index] = (1 - self.beta) * self.momentum[side, index] + self.beta * gradient
        moved = self.temperature[side, index] - 0.03 * self.momentum[side, index]
        self.temperature[side, index] = moved.clamp(self.lowest, 1.0)

    def two_views(self, z1: Tensor, z2: Tensor, index: Tensor) -> Tensor:
        a, b = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
        batch, own = len(a), torch.eye(len(a), dtype=torch.bool)
        negative = (~torch.cat([own, own], 1)).float()
        t, old = self.temperature[0, index][:, None], self.estimator[0, index][:, None]
        losses, estimators, gradients = [], [], []
        for x, y in ((a, b), (b, a)):
            similarity = torch.cat([x @ y.T, x @ x.T], 1)
            exponentials = torch.exp(similarity.detach() / t) * negative
            present = exponentials.sum(1, keepdim=True) / (2 * batch - 2)
            estimator = torch.where(old == 0, present, 0.2 * old + 0.8 * present)
            weights = exponentials / estimator
            losses.append((weights * similarity).sum(1) / (2 * batch - 2) - (x * y).sum(1))
            estimators.append(estimator[:, 0])
            scaled = (weights * (similarity.detach() / t)).sum(1) / (2 * batch - 2)
            gradients.append(estimator[:, 0].log() + self.rho - scaled)
        self.update(0, index, sum(estimators) / 2, sum(gradients) / 2)
        return (losses[0] + losses[1]).mean()

    def two_modalities(self, z1: Tensor, z2: Tensor, index: Tensor) -> Tensor:
        matrix = F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).T
        batch = len(matrix)
        negative = 1 - torch.eye(batch)
        losses = []
        for side, similarity in enumerate((matrix, matrix.T)):
            t, old = self.temperature[side, index][:, None], self.estimator[side, index][:, None]
            difference = similarity - similarity.diagonal()[:, None]
            scaled = (difference / t).detach()
            exponentials = torch.exp(scaled) * negative
            present = exponentials.sum(1, keepdim=True) / (batch - 1)
            estimator = torch.where(old == 0, present, 0.2 * old + 0.8 * present)
            weights = exponentials / estimator
            losses.append((weights * difference).sum(1).mean() / (batch - 1))
            gradient = estimator[:, 0].log() + self.rho - (weights * scaled).sum(1) / (batch - 1)
            self.update(side, index, estimator[:, 0], gradient)
        return losses[0] + losses[1]


def official(batch: int, cross: bool) -> Problem:
    state = Official(1.0, 0.1, 0.05, 0.9, 5.0) if cross else Official(0.4, 0.1, 0.05, 0.5, 3.0)
    z1, z2, index = views(batch)
    loss = state.two_modalities if cross else state.two_views
    return Problem(lambda: loss(z1, z2, index), [z1, z2])


CROSS = {"negatives": "cross"}
CONTESTANTS = {
    "iSogCLR": lambda batch, cross: ours(
        batch,
        "ISogCLR",
        temperature_init=0.1,
        temperature_min=0.05,
        **(CROSS | {"rho": 1.0} if cross else {}),
    ),
    "SogCLR": lambda batch, cross: ours(batch, "SogCLR", **(CROSS if cross else {})),
    "InfoNCE": lambda batch, cross: info_nce(batch, **(CROSS if cross else {})),
    "official form of iSogCLR": official,
}

if __name__ == "__main__":
    compare(
        __doc__,
        CONTESTANTS,
        {
            f"{'cross, ' if cross else ''}B = {batch}": {"batch": batch, "cross": cross}
            for cross in (False, True)
            for batch in (128, 512, 2048)
        },
    )
