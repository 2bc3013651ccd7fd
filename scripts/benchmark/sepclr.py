"""Time and memory of SepCLR, forward and backward of all its terms, beside its published form.

python scripts/benchmark/sepclr.py --case 512 2048 --threads 1

N samples in two views, half of them targets, common and salient codes 32 wide. The published form keeps the distances
of all pairs and everything computed from them until backward.
"""

import torch
from measure import Problem, compare
from torch import Tensor
from torch.nn import functional as F

from contrastive import SepCLR

WIDTH, TEMPERATURE = 32, 0.5
UNIFORMITY, SALIENT, BACKGROUND, INFORMATION = 2.0, 1000.0, 1000.0, 10.0


def alignment(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).norm(dim=1).pow(2).mean() / (2 * TEMPERATURE)


def uniformity(x: Tensor) -> Tensor:
    return torch.pdist(x).pow(2).div(-2 * TEMPERATURE).exp().mean().log()


def joint_entropy(c: Tensor, s: Tensor) -> Tensor:
    exponents = (torch.cdist(c, c).pow(2) + torch.cdist(s, s).pow(2)) / (-2 * TEMPERATURE)
    return exponents.exp().mean(1).log().mean()


def published(c1: Tensor, c2: Tensor, s1: Tensor, s2: Tensor, is_target: Tensor) -> Tensor:
    c1, c2 = F.normalize(c1), F.normalize(c2)
    t1, t2 = s1.clone(), s2.clone()
    t1[~is_target] = 0.0
    t2[~is_target] = 0.0
    common = alignment(c1, c2) + UNIFORMITY * (uniformity(c1) + uniformity(c2)) / 2
    salient = alignment(s1[is_target], s2[is_target]) + UNIFORMITY * (uniformity(t1) + uniformity(t2)) / 2
    zeros = torch.zeros_like(s1[~is_target])
    rest = (alignment(s1[~is_target], zeros) + alignment(s2[~is_target], zeros)) / 2
    joint = (joint_entropy(c1, t1) + joint_entropy(c2, t2)) / 2
    return common + SALIENT * salient + BACKGROUND * rest + INFORMATION * joint


def ours(c1: Tensor, c2: Tensor, s1: Tensor, s2: Tensor, is_target: Tensor) -> Tensor:
    objective = SepCLR(TEMPERATURE, SALIENT, BACKGROUND, UNIFORMITY, "k-JEM", INFORMATION)
    loss: Tensor = objective((c1, c2), (s1, s2), is_target=is_target)
    return loss


def problem(loss, samples: int) -> Problem:  # type: ignore[no-untyped-def]
    warm = [torch.randn(4, WIDTH, requires_grad=True) for _ in range(4)]
    loss(*warm, torch.tensor([True, True, False, False])).backward()  # imports are not the loss's memory
    codes = [torch.randn(samples, WIDTH) for _ in range(2)]
    leaves = [(code + 0.3 * torch.randn_like(code)).requires_grad_() for code in (codes[0], codes[0], *codes)]
    leaves[3] = (leaves[2].detach() + 0.3 * torch.randn(samples, WIDTH)).requires_grad_()
    leaves[2].data.mul_(0.5)
    leaves[3].data.mul_(0.5)
    is_target = torch.arange(samples) % 2 == 0
    return Problem(lambda: loss(*leaves, is_target), leaves)


if __name__ == "__main__":
    compare(
        __doc__,
        {
            "contrastive SepCLR": lambda samples: problem(ours, samples),
            "published form": lambda samples: problem(published, samples),
        },
        {str(samples): {"samples": samples} for samples in (512, 2048, 4096, 8192, 16384)},
        skip=lambda name, case: name == "published form" and int(case) > 4096,
    )
