"""Time and memory of Core-tuning, forward and backward, beside its released form in the same run.

    python scripts/benchmark/core_tuning.py --threads 1

Both compute the whole loss of one batch (mixing, mining, classifier, projection head, cross entropy and focal contrast)
from the same draws and weights. The released form mixes features before the head, which then sees three rows for each
sample, and holds a dozen matrices of all pairs. Ratios are theirs / ours.
"""

import torch
from measure import Contestant, Problem, compare
from torch import Tensor, nn
from torch.nn import functional as F

TEMPERATURE, ETA = 0.07, 1.0
CASES = {
    "B=512 d=128": {"batch": 512, "dim": 128, "classes": 10},
    "B=512 d=512": {"batch": 512, "dim": 512, "classes": 10},
    "B=512 d=512 C=100": {"batch": 512, "dim": 512, "classes": 100},
    "B=256 d=2048": {"batch": 256, "dim": 2048, "classes": 10},
    "B=64 d=2048": {"batch": 64, "dim": 2048, "classes": 10},
    "B=2048 d=512": {"batch": 2048, "dim": 512, "classes": 10},
}


def inputs(batch: int, dim: int, classes: int):
    """Features after a ReLU, labels, classifier, head, and draws: partners, shares of both mixtures."""
    features = torch.randn(batch, dim).relu_().requires_grad_()
    labels = torch.randint(classes, (batch,))
    classifier = nn.Linear(dim, classes, bias=False)
    head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 256))
    draws = torch.randperm(batch), torch.rand(batch).clamp(min=0.8), torch.rand(batch)
    return features, labels, classifier, head, draws


def ours(variant: str) -> Contestant:
    def build(**sizes: int) -> Problem:
        from contrastive import CoreTuning
        from contrastive.objectives.mixing import Draws

        features, labels, classifier, head, draws = inputs(**sizes)
        objective = CoreTuning(ETA, TEMPERATURE, variant=variant, dim=sizes["dim"])
        objective.head = head
        leaves = [features, *classifier.parameters(), *head.parameters()]
        return Problem(lambda: objective(features, labels, classifier, draws=Draws(*draws)), leaves)

    return build


def released_form(**sizes: int) -> Problem:
    features, labels, classifier, head, draws = inputs(**sizes)
    leaves = [features, *classifier.parameters(), *head.parameters()]
    return Problem(lambda: released_loss(features, labels, classifier, head, draws), leaves)


def released_loss(features: Tensor, labels: Tensor, classifier, head, draws) -> Tensor:
    partners, negative, positive = draws
    one_hot = F.one_hot(labels, classifier.out_features).to(features.dtype)
    unit = F.normalize(features, dim=1)
    similarity = unit @ unit.T
    same = (labels[:, None] == labels).to(features.dtype)
    hard_negative = (similarity * (1 - same)).max(1).indices
    hard_positive = (similarity * (same - torch.eye(len(same)))).min(1).indices
    hard_positive = torch.where(hard_positive == 0, torch.arange(len(labels)), hard_positive)

    def blocks(x: Tensor, originals: Tensor) -> Tensor:
        a, b = negative[:, None], positive[:, None]
        return torch.cat(
            [originals, (1 - a) * x + a * x[partners], b * x[hard_positive] + (1 - b) * x[hard_negative]]
        )

    mixed, soft = blocks(features, features.detach()), blocks(one_hot, one_hot)
    cross_entropy = -(soft * classifier(mixed).log_softmax(1)).sum(1).mean()
    z = F.normalize(head(mixed), dim=1)
    logits = z @ z.T / TEMPERATURE
    logits = logits - logits.max(1, keepdim=True).values.detach()
    others = 1 - torch.eye(len(z))
    key = soft.double() @ torch.linspace(1, 2, soft.shape[1], dtype=torch.float64).pow(
        0.5
    )  # tells labels apart
    ids = torch.unique(key, return_inverse=True)[1]
    mask = (ids[:, None] == ids).to(z.dtype) * others
    log_p = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    losses = -(mask * (1 - log_p.exp()) * log_p).mean(1)
    return cross_entropy + ETA * losses.sum() / (mask.sum(1) > 0).sum()


CONTESTANTS: dict[str, Contestant] = {
    "ours, released variant": ours("released"),
    "released form": released_form,
}

if __name__ == "__main__":
    compare(__doc__, CONTESTANTS, CASES)
