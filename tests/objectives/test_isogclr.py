import math
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor

from contrastive import ISogCLR, SogCLR
from contrastive.functional import sogclr
from contrastive.objectives.state import SampleState
from contrastive.similarity import rows as engine
from contrastive.similarity.distributed import Gathered
from contrastive.similarity.tempered import tempered_both, tempered_self
from contrastive.testing import CHECKS, ObjectiveCase, run_on_processes

# ---------------------------------------------------------------- official implementations


def relative(prefix):
    """The published estimators of two modalities are relative to the exponential of their bound."""
    return lambda table: (table[f"{prefix}log_estimator"] - table[f"{prefix}bound"]).exp()


def column(name):
    return lambda table: table[name]


def estimator(table):
    return table["log_estimator"].exp()


def both(first, second, name):
    return {first: column(name), second: column(f"second_{name}")}


# File: class, options and the names of the options in the file, and where each published state is found here.
OFFICIAL = {
    "uni-repo": (
        ISogCLR,
        {"variant": "released", "normalize": False},
        {"temperature_init": "tau_init", "eta": "eta_init", "beta": "beta_u"},
        {"s": estimator, "u": column("momentum"), "tau": column("temperature")},
    ),
    "uni-libauc": (
        ISogCLR,
        {"variant": "libauc"},
        {"temperature_init": "tau", "eta": "eta", "beta": "beta"},
        {"u": estimator, "grad_tau": column("momentum"), "tau": column("temperature")},
    ),
    "uni-sogclr": (
        SogCLR,
        {"variant": "libauc"},
        {"temperature": "tau", "gamma_schedule": "gamma_schedule"},
        {"u": estimator},
    ),
    "bi-repo": (
        ISogCLR,
        {"negatives": "cross", "variant": "released", "normalize": False},
        {"temperature_init": "tau_init", "rho": "rho_init", "eta": "eta_init", "beta": "beta_u"},
        {"s_I": relative(""), "s_T": relative("second_")}
        | both("b_I", "b_T", "bound")
        | both("u_I", "u_T", "momentum")
        | both("tau_I", "tau_T", "temperature"),
    ),
    "bi-libauc": (
        ISogCLR,
        {"negatives": "cross", "variant": "libauc", "normalize": False},
        {"temperature_init": "tau", "eta": "eta", "beta": "beta"},
        {"u1": relative(""), "u2": relative("second_")}
        | both("b1", "b2", "bound")
        | both("grad_tau_img", "grad_tau_txt", "momentum")
        | both("learnable_tau_img", "learnable_tau_txt", "temperature"),
    ),
    "fastclip": (
        ISogCLR,
        {"negatives": "cross", "variant": "fastclip", "normalize": False},
        {"temperature_init": "tau_init", "eta": "lr_tau", "gamma_schedule": "gamma_schedule"},
        {"u_im": relative(""), "u_tt": relative("second_")}
        | both("bound_im", "bound_tt", "bound")
        | both("m_grad_tau_im", "m_grad_tau_tt", "momentum")
        | both("v_grad_tau_im", "v_grad_tau_tt", "square")
        | both("tau_im", "tau_tt", "temperature"),
    ),
}
SAME_NAME = {
    "temperature_min": "tau_min",
    "temperature_max": "tau_max",
    "rho": "rho",
    "gamma": "gamma",
    "gamma_decay_epochs": "gamma_decay_epochs",
}


@pytest.mark.filterwarnings("ignore:.*rho is")
@pytest.mark.parametrize("bits", ["float64", "float32"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_steps(reference, name, bits):
    """Loss, gradients and all state over five steps of each published implementation."""
    data, meta = reference(f"isogclr-{name}")
    kind, options, names, states = OFFICIAL[name]
    given = meta["hyperparameters"]
    options = options | {
        ours: given[theirs] for ours, theirs in (SAME_NAME | names).items() if theirs in given
    }
    dtype = getattr(torch, bits)
    objective = kind(**options, num_samples=given["N"]).to(dtype)
    if "state_s0" in data:
        start = {"log_estimator": data["state_s0"].log(), "momentum": data["state_u0"]}
        objective.state.write(torch.arange(given["N"]), start | {"temperature": data["state_tau0"]})

    def check(found, expected):
        tolerance = meta["tolerance"]
        options = {"rtol": tolerance[f"{bits}_rtol"], "atol": tolerance[f"{bits}_atol"]}
        torch.testing.assert_close(found.double(), expected, **options)

    for step in range(given["steps"]):
        if "in_epoch" in data:
            objective.set_epoch(int(data["in_epoch"][step]), 10)
        second = data["in_index_2"][step] if "in_index_2" in data else None
        views = [data[key][step].to(dtype).requires_grad_() for key in ("in_1", "in_2")]
        loss = objective(*views, index=data["in_index"][step], second_index=second)
        check(loss, data["out_loss"][step])
        for found, key in zip(torch.autograd.grad(loss, views), ("grad_1", "grad_2"), strict=True):
            check(found, data[key][step])
        table = objective.state_table()
        for key, find in states.items():
            check(find(table), data[f"state_{key}"][step])
        if "out_mean_grad_tau" in data:
            check(objective.stats["temperature_gradient"], data["out_mean_grad_tau"][step])


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.98), [0.0, 0.5]])
def test_adam_of_temperatures_has_the_shares_that_are_asked_for(betas):
    """Two steps of Adam, in epochs 1 and 2, from the divergences that the objective itself tells."""
    objective = ISogCLR(negatives="cross", variant="fastclip", num_samples=4, betas=betas, rho=0.5).double()
    generator = torch.Generator().manual_seed(0)
    temperature, mean, square = 0.01, 0.0, 0.0
    (b1, b2), seen = betas, []
    learn = objective._learn
    objective._learn = lambda old, divergence: (seen.append(divergence), learn(old, divergence))[1]
    for epoch in (1, 2):
        objective.set_epoch(epoch, 3)
        views = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
        objective(*views, index=torch.arange(4))
        gradient = (0.5 - seen[-2]).clamp(-5, 5)  # of the first modality
        mean = b1 * mean + (1 - b1) * gradient
        square = b2 * square + (1 - b2) * gradient**2
        root = (square / (1 - b2 ** (epoch + 1))).sqrt() + 1e-8
        temperature = (temperature - 0.03 * mean / (1 - b1 ** (epoch + 1)) / root).clamp(0.005, 1.0)
        torch.testing.assert_close(
            objective.state_table()["temperature"], temperature, check_dtype=False, rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("betas", [(0.9,), 0.9, (0.9, 1.0), (float("nan"), 0.9)])
def test_shares_outside_their_range_are_refused(betas):
    with pytest.raises(ValueError, match="ISogCLR: betas is"):
        ISogCLR(negatives="cross", variant="fastclip", betas=betas)


@pytest.mark.filterwarnings("ignore:.*rho is")
@pytest.mark.parametrize("negatives", ["all", "cross"])
def test_sogclr_as_released_is_isogclr_with_pinned_temperatures(negatives):
    options = {"negatives": negatives, "variant": "released", "num_samples": 6, "gamma": 0.7}
    plain = SogCLR(0.2, **options).double()
    pinned = ISogCLR(0.2, 0.2, 0.2, **options).double()
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        views = [x.requires_grad_() for x in torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)]
        index = (torch.arange(4) + number) % 6
        losses = [objective(*views, index=index) for objective in (plain, pinned)]
        torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            *(torch.autograd.grad(loss, views) for loss in losses), rtol=1e-12, atol=1e-14
        )
        expected = pinned.state_table()
        for name, column in plain.state_table().items():
            torch.testing.assert_close(column, expected[name], rtol=1e-12, atol=0)


# ---------------------------------------------------------------- a twin in loops, and the conformance suite


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def naive(a: Tensor, b: Tensor, labels: None, t: float = 0.1) -> Tensor:
    """A first visit: each estimator is its batch's mean, so the weights of an anchor's negatives average to 1."""
    a, b = unit(a), unit(b)
    total = torch.zeros((), dtype=a.dtype)
    for x, y in ((a, b), (b, a)):
        for i in range(len(a)):
            others = [x[i] @ z[j] for z in (x, y) for j in range(len(a)) if j != i]
            weights = torch.tensor([math.exp(s.item() / t) for s in others], dtype=a.dtype)
            total = total + weights @ torch.stack(others) / weights.sum() - x[i] @ y[i]
    return total / len(a)


def naive_cross(a: Tensor, b: Tensor, labels: None, t: float = 0.1) -> Tensor:
    a, b = unit(a), unit(b)
    total = torch.zeros((), dtype=a.dtype)
    for x, y in ((a, b), (b, a)):
        for i in range(len(a)):
            h = [x[i] @ y[j] - x[i] @ y[i] for j in range(len(a)) if j != i]
            weights = torch.tensor([math.exp(s.item() / t) for s in h], dtype=a.dtype)
            total = total + weights @ torch.stack(h) / weights.sum()
    return total / len(a)


CROSS = {"negatives": "cross", "rho": 0.2}
CASES = [
    ObjectiveCase("ISogCLR", ISogCLR, naive, smooth=False),
    ObjectiveCase("SogCLR", partial(SogCLR, 0.3), partial(naive, t=0.3), smooth=False),
    ObjectiveCase(
        "ISogCLR-cold",
        partial(ISogCLR, temperature_init=0.01, temperature_min=0.01),
        partial(naive, t=0.01),
        smooth=False,
    ),
    ObjectiveCase(
        "ISogCLR-cross", partial(ISogCLR, temperature_init=0.1, **CROSS), naive_cross, smooth=False
    ),
    ObjectiveCase(
        "ISogCLR-cross-released",
        partial(ISogCLR, temperature_init=0.1, variant="released", **CROSS),
        smooth=False,
    ),
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conformance(case: ObjectiveCase, check: str):
    CHECKS[check](case)


# ---------------------------------------------------------------- the kernel


def reference_means(a, b, temperatures, left_out):
    products = a @ b.T
    logits = (products / temperatures[:, None]).masked_fill(left_out, -torch.inf).detach()
    return logits.logsumexp(1), (logits.softmax(1) * products).sum(1)


@pytest.mark.parametrize("coldest", [0.1, 1e-3])  # without and with a shift of the exponents
@pytest.mark.parametrize("size", [10, 602])  # one block and several
def test_means_at_a_temperature_each(size, coldest):
    generator = torch.Generator().manual_seed(0)
    a, b = (
        unit(torch.randn(size, 6, dtype=torch.float64, generator=generator)).requires_grad_() for _ in "ab"
    )
    ta, tb = (torch.rand(size, dtype=torch.float64, generator=generator) + coldest for _ in "ab")
    ta[::3], tb[::4] = coldest, coldest
    up, vp = torch.randn(2, size, dtype=torch.float64, generator=generator)
    pairs = torch.arange(size) // 2
    log_sum, mean = reference_means(a, a, ta, pairs[:, None] == pairs)
    ours = tempered_self(Gathered(a, a, 0), ta, group=2)
    torch.testing.assert_close(ours.log_sum, log_sum, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.mean, mean, rtol=1e-12, atol=1e-12)
    (expected,), (found,) = torch.autograd.grad(mean @ up, a), torch.autograd.grad(ours.mean @ up, a)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)

    own = torch.eye(size, dtype=torch.bool)
    expected_a, expected_b = reference_means(a, b, ta, own), reference_means(b, a, tb, own)
    ours_a, ours_b = tempered_both(Gathered(a, a, 0), Gathered(b, b, 0), ta, tb)
    for found, expected in zip((*ours_a, *ours_b), (*expected_a, *expected_b), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(expected_a[1] @ up + expected_b[1] @ vp, (a, b))
    found = torch.autograd.grad(ours_a.mean @ up + ours_b.mean @ vp, (a, b))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("negatives", ["all", "cross"])
def test_small_batches_are_differentiable_twice_and_large_ones_say_that_they_are_not(negatives, monkeypatch):
    z = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    first = torch.full((6,) if negatives == "all" else (2, 6), -torch.inf, dtype=torch.float64)

    def squared_gradient():
        loss = sogclr(*z, first, 0.5, negatives=negatives).loss
        return torch.autograd.grad(loss, z, create_graph=True)[0].square().sum()

    def twin():
        loss = (naive if negatives == "all" else naive_cross)(*z, None, t=0.5)
        return torch.autograd.grad(loss, z, create_graph=True)[0].square().sum()

    expected, found = torch.autograd.grad(twin(), z)[0], torch.autograd.grad(squared_gradient(), z)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    monkeypatch.setattr(engine, "DENSE_ENTRIES", 0)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(squared_gradient(), z)


# ---------------------------------------------------------------- what the method promises


def test_a_temperature_settles_where_the_divergence_is_rho():
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 32, 8)
    objective = ISogCLR(rho=0.5, eta=0.02, gamma=1.0, num_samples=32)
    for _ in range(200):
        objective(z1, z2, index=torch.arange(32))
    table = objective.state_table()
    divergence = sogclr(z1, z2, table["log_estimator"], table["temperature"], gamma=1.0).divergence
    torch.testing.assert_close(divergence, torch.full((32,), 0.5), atol=1e-3, rtol=0)
    assert table["temperature"].std() > 0.01


def test_the_gradient_is_that_of_the_global_objective():
    """With the estimator at its batch value: d/dz of mean_i t log E exp(h_i / t), both views as anchors."""
    z = torch.randn(2, 9, 5, dtype=torch.float64, requires_grad=True)
    a, b = (unit(view) for view in z)
    t, losses = 0.3, []
    for x, y in ((a, b), (b, a)):
        for i in range(9):
            h = torch.stack([x[i] @ w[j] - x[i] @ y[i] for w in (x, y) for j in range(9) if j != i])
            losses.append(t * ((h / t).logsumexp(0) - math.log(16)))
    expected = torch.autograd.grad(torch.stack(losses).sum() / 9, z)[0]
    loss = SogCLR(t, num_samples=9).double()(*z, index=torch.arange(9))
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], expected)


def test_the_function_takes_the_class_s_steps():
    torch.manual_seed(0)
    objective, index = SogCLR(0.2, gamma=0.3, num_samples=8), torch.randperm(8)
    state = torch.full((8,), -torch.inf)
    for _ in range(3):
        z1, z2 = torch.randn(2, 8, 4)
        found = sogclr(z1, z2, state, 0.2, gamma=0.3)
        torch.testing.assert_close(objective(z1, z2, index=index), found.loss)
        state = found.log_estimator
        torch.testing.assert_close(objective.state.log_estimator[index], state)


# ---------------------------------------------------------------- state


def step(objective, index, seed=0, dim=4, **inputs):
    views = torch.randn(2, len(index), dim, generator=torch.Generator().manual_seed(seed))
    return objective(*views, index=torch.as_tensor(index), **inputs)


def test_only_the_samples_of_the_batch_move_and_evaluation_moves_none():
    objective = ISogCLR(num_samples=10)
    before = objective.state_table()
    step(objective.eval(), [1, 4, 7])
    assert all(torch.equal(before[name], column) for name, column in objective.state_table().items())
    step(objective.train(), [1, 4, 7])
    after = objective.state_table()
    assert after["visited"].nonzero().flatten().tolist() == [1, 4, 7]
    moved = after["temperature"] != before["temperature"]
    assert moved.nonzero().flatten().tolist() == [1, 4, 7]


def test_a_loss_that_is_not_finite_leaves_the_state_alone():
    objective = ISogCLR(num_samples=4)
    step(objective, [0, 1])
    before = objective.state_table()
    bad = torch.tensor([[math.nan, 1.0], [1.0, 1.0]])
    with pytest.raises(FloatingPointError, match="ISogCLR"):
        objective(bad, bad, index=torch.tensor([0, 3]))
    assert all(torch.equal(before[name], column) for name, column in objective.state_table().items())


def test_duplicates_are_averaged_or_refused():
    objective = ISogCLR(num_samples=4, beta=1.0)
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 4, 3)
    found = sogclr(z1, z2, torch.full((4,), -torch.inf), 0.1)
    objective(z1, z2, index=torch.tensor([2, 0, 2, 1]))
    expected = found.log_estimator[[0, 2]].exp().mean().log()
    torch.testing.assert_close(objective.state.log_estimator[2], expected)
    gradient = (0.4 - found.divergence[[0, 2]]).mean().clamp(-3, 3)
    torch.testing.assert_close(objective.state.momentum[2], gradient)
    with pytest.raises(ValueError, match="duplicates"):
        step(ISogCLR(num_samples=4, allow_duplicates=False), [2, 0, 2])


def test_state_grows_by_copying_and_fits_a_checkpoint_of_another_size():
    objective = ISogCLR()
    objective.setup(3)
    step(objective, [0, 2])
    before = objective.state_table()
    objective.setup(5)
    after = objective.state_table()
    assert all(len(column) == 5 and torch.equal(column[:3], before[name]) for name, column in after.items())
    assert after["temperature"][3:].tolist() == pytest.approx([0.1, 0.1])
    for size in (0, 3, 8):
        other = ISogCLR(num_samples=size)
        other.load_state_dict(objective.state_dict())
        table = other.state_table()
        assert all(torch.equal(column[:5], after[name]) for name, column in table.items())
        assert len(table["visited"]) == max(size, 5)


def test_two_modalities_have_an_index_each():
    objective = ISogCLR(negatives="cross", rho=0.2, num_samples=3, num_second_samples=9)
    step(objective, [0, 2], second_index=torch.tensor([8, 4]))
    table = objective.state_table()
    assert table["visited"].tolist() == [True, False, True]
    assert table["second_visited"].nonzero().flatten().tolist() == [4, 8]


def test_state_stays_float32_in_half_precision():
    state = SampleState(x=0.1)
    state.grow(2)
    state.write(torch.tensor([1]), {"x": torch.tensor([1 / 3])})
    assert state.bfloat16().x.dtype == torch.float32
    assert state.half().x.tolist() == torch.tensor([0.1, 1 / 3]).tolist()
    assert state.double().x.tolist() == [0.1, float(torch.tensor(1 / 3))]  # initial values become exact


def states_on_rank(rank, world_size):
    objective = ISogCLR(num_samples=40)
    for number in range(3):
        views = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(10 * number + rank))
        index = torch.randperm(40, generator=torch.Generator().manual_seed(number))[4 * rank : 4 * rank + 4]
        objective(*views, index=torch.cat([index[:3], torch.tensor([39])]))  # 39 is everybody's
    return objective.state_dict()


def test_state_is_bitwise_the_same_on_all_processes():
    first, *others = run_on_processes(4, states_on_rank)
    assert first["state.log_estimator"].isfinite().sum() > 20
    assert all(torch.equal(value, other[name]) for other in others for name, value in first.items())


# ---------------------------------------------------------------- schedules, warnings, errors


def test_schedules():
    objective = ISogCLR(gamma=0.2, gamma_schedule="cosine", eta_schedule="cosine", eta=0.1, eta_min=0.0)
    with pytest.raises(ValueError, match=r"call set_epoch\(epoch, num_epochs\)"):
        objective._present_gamma()
    gammas, etas = [], []
    for epoch in range(4):
        objective.set_epoch(epoch, 4)
        gammas.append(objective._present_gamma())
        etas.append(objective._present_eta())
    assert gammas == pytest.approx([1.0, 0.6, 0.2, 0.2])  # half of the run
    assert etas == pytest.approx([0.1 * math.cos(math.pi / 8 * epoch) for epoch in range(4)])
    exponential = ISogCLR(eta_schedule="exponential", eta=0.1, eta_min=0.0)
    exponential.set_epoch(2, 4)
    assert exponential._present_eta() == pytest.approx(0.064)
    restored = ISogCLR(gamma_schedule="cosine")
    restored.load_state_dict(objective.state_dict())
    assert restored.epochs.tolist() == [3, 4]


def test_rho_beyond_reach_warns_once():
    objective = ISogCLR(rho=2.0, num_samples=8)
    with pytest.warns(UserWarning, match=r"rho is 2.0 and 6 negatives allow at most 1\.79"):
        step(objective, [0, 1, 2, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(objective, [0, 1, 2, 3])
        step(ISogCLR(rho=1.0, num_samples=8), [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, r"gamma is 0\.0; give a number in \(0, 1\]"),
        ({"temperature_init": 0.01}, r"temperature_init 0\.01 lies outside .* \[0\.05, 1\.0\]"),
        ({"variant": "fastclip"}, "variant .*negatives='all'.* is 'fastclip'; give one of 'corrected'"),
        ({"beta": 1.5}, r"beta is 1\.5; give a number from 0 to 1"),
        ({"eta_schedule": "linear"}, "eta_schedule is 'linear'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ISogCLR(**options)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "index has none; give one integer"),
        ({"index": torch.arange(3)}, r"index has shape \(3,\)"),
        ({"index": torch.tensor([0, 9])}, r"index goes from 0 to 9 .* state for 4 samples; call setup"),
        ({"index": torch.tensor([-1, 0])}, "index goes from -1 to 0"),
        ({"index": torch.arange(2), "labels": torch.arange(2)}, "got labels"),
    ],
)
def test_bad_inputs_are_named_and_leave_the_state_alone(inputs, message):
    objective = ISogCLR(num_samples=4)
    with pytest.raises(ValueError, match=message):
        objective(*torch.randn(2, 2, 3), **inputs)
    assert not objective.state_table()["visited"].any()


def test_one_sample_is_refused_before_the_state_is_touched():
    objective = ISogCLR(num_samples=4)
    with pytest.raises(ValueError, match="give at least 2, for negatives"):
        step(objective, [1])
    assert not objective.state_table()["visited"].any()


def test_zero_vectors_are_fine():
    objective = ISogCLR(num_samples=4)
    z = torch.zeros(4, 3, requires_grad=True)
    objective(z, z, index=torch.arange(4)).backward()
    assert z.grad.isfinite().all()
