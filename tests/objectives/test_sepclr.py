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
    VariationalTerm,
    club,
    leave_one_out,
    misfit,
    mmd,
    vub,
)
from contrastive.objectives.sepclr import (
    alignment,
    kernel_entropy,
    kernel_mutual_information,
    uniformity,
)
from contrastive.similarity import gather
from contrastive.testing import CHECKS, ObjectiveCase

VIEWS = ("common_1", "common_2", "salient_1", "salient_2")


@pytest.fixture
def agrees():
    """Compare with a reference file in float64 and float32 at the tolerances that all of them state in words."""

    def compare(function, inputs, expected, gradients):
        for dtype, of_loss, of_gradient in ((torch.float64, 1e-9, 1e-8), (torch.float32, 1e-5, 2e-4)):
            leaves = [x.to(dtype).clone().requires_grad_() for x in inputs]
            loss = function(*leaves)
            # A float32 value is a small difference of large sums, so near 0 it may be off by their rounding.
            floor = 0.0 if dtype == torch.float64 else 2e-5
            torch.testing.assert_close(loss.double(), expected, rtol=of_loss, atol=floor)
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
            for ours, official in zip(found, gradients, strict=True):
                if official is None:
                    assert ours is None or not ours.any()
                    continue
                assert (ours.double() - official).norm() <= of_gradient * official.norm()

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
    rows = [(-(x[i] - x[:i]).square().sum(1) / (2 * t)).exp() for i in range(1, len(x))]
    return torch.cat(rows).mean().log()


def naive_joint(t: float, *codes: Tensor) -> Tensor:
    rows = []
    for i in range(len(codes[0])):
        distances = sum((a[i] - a).square().sum(1) for a in codes)
        rows.append((-distances / (2 * t)).exp().mean().log())
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


# What these share between processes is checked with the others.
ONE_PROCESS = {"SepCLR-3-views", "SepCLR-none", "SepCLR-vUB"}


@pytest.mark.parametrize(
    ("case", "check"),
    [
        pytest.param(case, check, id=f"{case.name}-{check}")
        for case in CASES
        for check in CHECKS
        if check != "processes" or case.name not in ONE_PROCESS
    ],
)
def test_conformance(case: ObjectiveCase, check: str):
    CHECKS[check](case)


# ---------------------------------------------------------------------- edges


def codes(samples: int = 12, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    views = [torch.randn(samples, width, generator=generator, dtype=dtype) for width in (6, 6, 4, 4)]
    return [(scale * view if i > 1 else view).requires_grad_() for i, view in enumerate(views)]


def test_a_batch_without_background_leaves_its_term_out_and_says_so():
    c1, c2, s1, s2 = codes()
    objective = SepCLR()
    with pytest.warns(UserWarning, match="no background, and its terms for background are 0"):
        loss = objective((c1, c2), (s1, s2), is_target=torch.ones(12, dtype=torch.bool))
    loss.backward()
    assert objective.stats["background"] == 0
    assert s1.grad.isfinite().all()


@pytest.mark.parametrize("targets", [0, 1])
def test_a_batch_with_fewer_than_two_targets(targets):
    c1, c2, s1, s2 = codes()
    is_target = torch.arange(12) < targets
    objective = SepCLR()
    with pytest.warns(UserWarning, match="no targets") if targets == 0 else warnings.catch_warnings():
        loss = objective((c1, c2), (s1, s2), is_target=is_target)
    loss.backward()
    expected = (s1 - s2)[0].detach().square().sum() if targets else 0.0
    assert objective.stats["salient_alignment"].item() == pytest.approx(float(expected))
    assert all(view.grad.isfinite().all() for view in (c1, c2, s1, s2))
    background = 0.5 * sum(s[targets:].square().sum(1).mean() for s in (s1, s2))
    assert objective.stats["background"].item() == pytest.approx(background.item())


def test_salient_codes_far_apart_do_not_underflow():
    """Where exp-mean-log in float32 is minus infinity: distances beyond 103 with no background between them."""
    x = 4 * torch.randn(64, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (-x.float()[:, None].sub(x.float()).square().sum(2)).exp().fill_diagonal_(0).sum() == 0
    exact = x.clone().requires_grad_()
    pairs = torch.triu_indices(64, 64, 1)
    value = ((-(exact[pairs[0]] - exact[pairs[1]]).square().sum(1)).logsumexp(0)) - math.log(len(pairs[0]))
    value.backward()
    single = x.float().requires_grad_()
    ours = uniformity(single)
    ours.backward()
    assert ours.item() == pytest.approx(value.item(), rel=1e-5)
    torch.testing.assert_close(single.grad.double(), exact.grad, rtol=1e-3, atol=1e-3)


def test_a_salient_code_of_zeros_is_a_stationary_point():
    c1, c2, s1, s2 = codes(scale=0.0)
    SepCLR()((c1, c2), (s1, s2), is_target=torch.arange(12) < 6).backward()
    assert s1.grad.abs().max() < 1e-12
    assert c1.grad.abs().max() > 1e-3


def test_entropies_have_their_bounds():
    x = torch.randn(20, 3, dtype=torch.float64)
    assert kernel_entropy(0 * x).item() == pytest.approx(0.0, abs=1e-12)
    assert kernel_entropy(100 * x).item() == pytest.approx(math.log(20))
    assert 0 < kernel_entropy(x).item() < kernel_entropy(x, x).item() < math.log(20)


def test_a_network_learns_from_its_fit_and_codes_from_the_term():
    x, y = (torch.randn(9, width, dtype=torch.float64, requires_grad=True) for width in (3, 2))
    term = VariationalTerm("vCLUB", 3, 2, 5).double()
    total = term(gather(x), gather(y))
    found = torch.autograd.grad(total, [x, y, *term.parameters()])
    assert total.item() == pytest.approx(club(gather(y), *term.network(x)).item())
    expected = torch.autograd.grad(club(gather(y), *term.network(x)), [x, y])
    fit = torch.autograd.grad(misfit(y, *term.network(x)), list(term.parameters()))
    for ours, theirs in zip(found, [*expected, *fit], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_density_ratio_compares_each_sample_with_the_next():
    x, y = (torch.randn(7, width, dtype=torch.float64) for width in (3, 2))
    term = VariationalTerm("TC", 3, 2).double()
    d = [[torch.sigmoid(term.network(x[i : i + 1], y[j : j + 1])[0]) for j in range(7)] for i in range(7)]
    expected = sum((d[i][i] / (1 - d[i][i])).log().clamp(min=0) for i in range(7))
    assert term(gather(x), gather(y)).item() == pytest.approx(expected.item())
    cross_entropy = sum(-d[i][i].log() - (1 - d[i][(i + 1) % 7]).log() for i in range(7)) / 14
    ours = torch.autograd.grad(term(gather(x), gather(y)), list(term.parameters()))
    for found, wanted in zip(ours, torch.autograd.grad(cross_entropy, list(term.parameters())), strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_sampled_bound_takes_or_draws_its_permutation():
    c1, c2, s1, s2 = codes()
    objective = SepCLR(information="vCLUB-sampled", dims=(6, 4)).double()
    is_target = torch.arange(12) < 6
    calls = []
    for order in (None, None, torch.arange(12), torch.arange(12).roll(1)):
        torch.manual_seed(0)
        objective((c1, c2), (s1, s2), is_target=is_target, permutation=order)
        calls.append(objective.stats["information"].item())
    assert calls[0] == calls[1] != calls[3]
    assert calls[2] == 0  # every sample compared with itself


def test_released_upper_bound_is_smaller_by_the_width():
    c1, c2, s1, s2 = codes()
    values = []
    for variant in ("corrected", "released"):
        torch.manual_seed(0)
        objective = SepCLR(information="vUB", dims=(6, 4), variant=variant).double()
        objective((c1, c2), (s1, s2), is_target=torch.arange(12) < 6)
        values.append(objective.stats["information"].item())
    assert values[0] == pytest.approx(4 * values[1])


def test_bad_codes_are_named():
    c1, c2, s1, s2 = (view.detach() for view in codes())
    s1[3, 1] = torch.nan
    with pytest.raises(FloatingPointError, match="first bad row is row 3 of view 2"):
        SepCLR()((c1, c2), (s1, s2), is_target=torch.arange(12) < 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"information": "MI"}, "information is 'MI'; give one of 'none', 'k-JEM'"),
        ({"salient_weight": -1.0}, "SepCLR: salient_weight is -1.0"),
        ({"variant": "old"}, "variant is 'old'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SepCLR(**options)


def test_inputs_that_do_not_belong_together_are_refused():
    c1, c2, s1, s2 = codes()
    is_target = torch.arange(12) < 6
    with pytest.raises(ValueError, match="got 2 common and 3 salient views"):
        SepCLR()((c1, c2), (s1, s2, s2), is_target=is_target)
    with pytest.raises(ValueError, match="salient_views: got 1 views"):
        SepCLR()((c1, c2), (s1,), is_target=is_target)
    with pytest.raises(ValueError, match="common views have 12 rows, salient views 11"):
        SepCLR()((c1, c2), (s1[1:], s2[1:]), is_target=is_target)
    with pytest.raises(ValueError, match=r"is_target has shape \(11,\)"):
        SepCLR()((c1, c2), (s1, s2), is_target=is_target[1:])
    with pytest.raises(ValueError, match="give dims="):
        SepCLR(information="TC")((c1, c2), (s1, s2), is_target=is_target)
    with pytest.raises(ValueError, match=r"attributes of shape \(12, 3\)"):
        SupervisedSepCLR()((c1, c2), (s1,), is_target=is_target, attributes=torch.zeros(12, 3))
