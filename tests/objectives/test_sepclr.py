import math
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from contrastive import SepCLR
from contrastive.objectives import Objective, SupervisedSepCLR
from contrastive.objectives.independence import (
    ConditionalGaussian,
    DensityRatio,
    VariationalTerm,
    club,
    discrimination,
    leave_one_out,
    misfit,
    mmd,
    total_correlation,
    vub,
)
from contrastive.objectives.sepclr import (
    alignment,
    kernel_entropy,
    kernel_mutual_information,
    uniformity,
)
from contrastive.similarity import gather, gaussian_logsumexp
from contrastive.testing import CHECKS, ObjectiveCase

VIEWS = ("common_1", "common_2", "salient_1", "salient_2")


@pytest.fixture
def agrees(reference, matches):
    """Compare with a reference file in float64 and float32 at the tolerances that all of them state in words."""

    def compare(function, inputs, expected, gradients):
        tolerance = {
            "float64_rtol": 1e-9,
            "float64_atol": 1e-9 * max(1.0, float(expected.abs())),
            "float32_rtol": 1e-5,
            "float32_atol": 2e-5,
        }
        matches({"tolerance": tolerance}, function, inputs, expected, gradients)

    return compare


# ---------------------------------------------------------------------- official values


def test_official_terms(reference, agrees):
    data, _ = reference("sepclr-terms-tau05")
    x, y, c = data["x"], data["y"], data["c"]
    agrees(alignment, (x, y), data["align"], (data["grad_align_x"], data["grad_align_y"]))
    agrees(uniformity, (x,), data["uniform"], (data["grad_uniform_x"],))
    agrees(lambda c, x: -kernel_entropy(c, x), (c, x), data["jem"], (data["grad_jem_c"], data["grad_jem_x"]))
    gradients = (data["grad_kmi_c"], data["grad_kmi_x"])
    agrees(kernel_mutual_information, (c, x), data["k_mi"], gradients)
    assert kernel_entropy(c).item() == pytest.approx(data["H_c"].item(), rel=1e-9)
    assert kernel_entropy(x).item() == pytest.approx(data["H_s"].item(), rel=1e-9)


@pytest.mark.parametrize("name", ["sepclr-step-cifar-digits", "sepclr-step-chexpert"])
def test_official_steps(reference, agrees, name):
    data, meta = reference(name)
    hyper = meta["hyper"]
    objective = SepCLR(
        temperature=hyper["tau"],
        salient_weight=hyper["salient_term_beta"],
        background_weight=hyper["salient_reg_beta"],
        uniformity_weight=hyper["uniform_weight"],
        information_weight=hyper["jem_lambda"],
    )

    def loss(c1, c2, s1, s2):
        return objective((c1, c2), (s1, s2), is_target=data["labels"])

    inputs = tuple(data[view] for view in VIEWS)
    agrees(loss, inputs, data["loss"], tuple(data[f"grad_{view}"] for view in VIEWS))
    ours = {
        "common_alignment": "common_align",
        "common_uniformity": "common_uniform",
        "salient_alignment": "salient_align",
        "salient_uniformity": "salient_uniform",
        "background": "salient_reg",
        "information": "jem",
    }
    for name, official in ours.items():
        assert objective.stats[name].item() == pytest.approx(data[official].item(), rel=1e-5)


def test_official_supervised_variant(reference, agrees):
    data, _ = reference("sepclr-supervised-attributes")
    objective = SupervisedSepCLR()

    def loss(common, augmented, salient):
        return objective(
            (common, augmented), (salient,), is_target=data["labels"], attributes=data["attributes"]
        )

    inputs = ("common", "common_aug", "salient")
    gradients = tuple(data[f"grad_{name}"] for name in inputs)
    agrees(loss, tuple(data[name] for name in inputs), data["loss"], gradients)
    for name, official in {"common": "common_loss", "salient": "salient_loss", "information": "jem"}.items():
        assert objective.stats[name].item() == pytest.approx(data[official].item(), rel=1e-5)


@pytest.mark.parametrize("name", ["vclub", "vclub_sample", "vub", "vl1out", "vclub_learning_loss"])
def test_official_bounds(reference, agrees, name):
    data, _ = reference("sepclr-mi-bounds")
    networks = {"p_mu": "mean", "p_logvar": "log_variance"}
    weights = {
        f"{ours}.{layer}.{kind}": data[f"{theirs}_{layer}_{kind}"]
        for theirs, ours in networks.items()
        for layer in (0, 2)
        for kind in ("weight", "bias")
    }
    bounds = {
        "vclub": lambda y, mean, variance: club(y, mean, variance),
        "vclub_sample": lambda y, mean, variance: club(y, mean, variance, data["perm"]),
        "vub": lambda _, mean, variance: vub(mean, variance, over_entries=True),
        "vl1out": leave_one_out,
        "vclub_learning_loss": lambda y, mean, variance: misfit(y.local, mean, variance),
    }

    def bound(x, y):
        network = ConditionalGaussian(6, 5, 8).to(x.dtype)
        network.load_state_dict({key: value.to(x.dtype) for key, value in weights.items()})
        return bounds[name](gather(y), *network(x))

    gradients = (data[f"grad_{name}_x"], None if name == "vub" else data[f"grad_{name}_y"])
    agrees(bound, (data["x"], data["y"]), data[name], gradients)


def test_official_mmd(reference, agrees):
    data, _ = reference("sepclr-mi-bounds")
    second = gather(torch.arange(64) >= 32)

    def distance(x):
        return mmd(gather(torch.cat([x, data["mmd_other"].to(x.dtype)])), second)

    agrees(distance, (data["x"],), data["mmd"], (data["grad_mmd_x"],))


# ---------------------------------------------------------------------- conformance


class Separation(nn.Module):
    """An objective called with common, then salient views; a sample is a target if its first number is positive."""

    def __init__(self, objective: Objective, views: int = 2, widths: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.objective, self.views, self.widths = objective, views, widths

    def setup(self, num_samples: int) -> None:
        self.objective.setup(num_samples)

    def forward(self, *views: Tensor, index: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        commons, salients = views[: self.views], views[self.views :]
        is_target = views[0][:, 0] > 0
        if self.widths is not None:
            commons, salients = (
                [v[:, :w] for v in vs] for vs, w in zip((commons, salients), self.widths, strict=True)
            )
        inputs = {"is_target": is_target}
        if isinstance(self.objective, SupervisedSepCLR):
            assert labels is not None
            inputs["attributes"] = torch.stack([labels, labels % 7 / 10, labels % 5 / 7], 1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*a batch has no.*", UserWarning)
            return self.objective(commons, salients, **inputs)


def separation(views: int = 2, **options) -> nn.Module:
    return Separation(SepCLR(**options), views)


def with_network(information: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        objective = SepCLR(information=information, information_weight=50.0, dims=(3, 2), hidden_dim=6)
    return Separation(objective, widths=(3, 2))


def supervised() -> nn.Module:
    return Separation(SupervisedSepCLR(attribute_temperature=0.05), widths=(1000, 3))


def naive_uniformity(x: Tensor, t: float) -> Tensor:
    pairs = [(-(x[i] - x[j]).square().sum() / (2 * t)).exp() for i in range(len(x)) for j in range(i)]
    return torch.stack(pairs).mean().log()


def naive_joint(t: float, *codes: Tensor) -> Tensor:
    rows = []
    for i in range(len(codes[0])):
        distances = [sum((a[i] - a[j]).square().sum() for a in codes) for j in range(len(codes[0]))]
        rows.append((-torch.stack(distances) / (2 * t)).exp().mean().log())
    return torch.stack(rows).mean()


def naive(
    *views: Tensor,
    labels: Tensor | None,
    t: float = 0.5,
    salient: float = 1000.0,
    rest: float = 1000.0,
    w: float = 2.0,
    weight: float = 10.0,
    information: str = "k-JEM",
) -> Tensor:
    """The loss one pair at a time, without a care for overflow."""
    count = len(views) // 2
    target = (views[0][:, 0] > 0).tolist()
    cs = [v / v.norm(dim=1, keepdim=True) for v in views[:count]]
    ss = views[count:]
    zero = torch.zeros((), dtype=torch.float64)

    def mean(values):
        return torch.stack(values).mean() if values else zero

    n = range(len(target))
    loss = zero
    for v in range(count):
        teacher = torch.stack([ss[v][i] if target[i] else 0 * ss[v][i] for i in n])
        joint, of_c, of_s = (naive_joint(t, *codes) for codes in ((cs[v], teacher), (cs[v],), (teacher,)))
        term = {"k-JEM": joint, "k-MI": joint - of_c - of_s, "none": zero}[information]
        background = mean([ss[v][i].square().sum() / (2 * t) for i in n if not target[i]])
        spread = naive_uniformity(cs[v], t) + salient * naive_uniformity(teacher, t)
        loss = loss + (w * spread + rest * background + weight * term) / count
    pairs = [(v, u) for v in range(count) for u in range(v)]
    for v, u in pairs:
        common = mean([(cs[v][i] - cs[u][i]).square().sum() / (2 * t) for i in n])
        other = mean([(ss[v][i] - ss[u][i]).square().sum() / (2 * t) for i in n if target[i]])
        loss = loss + (common + salient * other) / len(pairs)
    return loss


GENTLE = {"salient_weight": 3.0, "background_weight": 2.0, "uniformity_weight": 1.5}
NAIVE = {"salient": 3.0, "rest": 2.0, "w": 1.5}
CASES = [
    ObjectiveCase("SepCLR", separation, naive, num_views=4),
    ObjectiveCase(
        "SepCLR-3-views",
        partial(separation, views=3, **GENTLE),
        partial(naive, **NAIVE),
        num_views=6,
    ),
    ObjectiveCase(
        "SepCLR-k-MI",
        partial(separation, temperature=0.8, information="k-MI", **GENTLE),
        partial(naive, t=0.8, information="k-MI", **NAIVE),
        num_views=4,
    ),
    ObjectiveCase(
        "SepCLR-none",
        partial(separation, information="none", **GENTLE),
        partial(naive, information="none", **NAIVE),
        num_views=4,
    ),
    ObjectiveCase("SepCLR-MMD", partial(separation, information="MMD", **GENTLE), num_views=4),
    *(
        ObjectiveCase(f"SepCLR-{name}", partial(with_network, name), num_views=4, smooth=False)
        for name in ("vCLUB", "vUB", "vL1Out", "TC")
    ),
    ObjectiveCase("SupervisedSepCLR", supervised, num_views=3, labels=True),
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conformance(case: ObjectiveCase, check: str):
    CHECKS[check](case)
