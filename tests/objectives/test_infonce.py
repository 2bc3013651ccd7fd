import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive import InfoNCE
from contrastive.functional import info_nce, queue_info_nce


def test_nt_xent_is_the_official_one(reference, matches):
    data, meta = reference("infonce-ntxent")
    for i, temperature in enumerate(data["in_temperatures"].tolist()):
        gradients = (data["grad_z1"][i], data["grad_z2"][i])
        loss = partial(info_nce, temperature=temperature)
        matches(meta, loss, (data["in_z1"], data["in_z2"]), data["out_loss"][i], gradients)


def test_cross_view_is_the_official_one(reference, matches):
    data, meta = reference("infonce-crossview")

    def clip(a, b, log_scale):
        return info_nce(a, b, temperature=(-log_scale).exp(), negatives="cross")

    gradients = (data["grad_a"], data["grad_b"], data["grad_log_scale"])
    matches(meta, clip, (data["in_a"], data["in_b"], data["in_log_scale"]), data["out_loss"], gradients)

    def moco_v3(queries, keys):  # one direction against the keys of the batch: a queue of the other keys
        keys, t = torch.nn.functional.normalize(keys.detach(), dim=1), 0.07
        ids = torch.arange(len(keys))
        return 2 * t * queue_info_nce(queries, keys, keys, temperature=t, ids=ids, queue_ids=ids)

    gradients = (data["grad_mocov3_query"], None)
    matches(meta, moco_v3, (data["in_a"], data["in_b"]), data["out_loss_mocov3"], gradients)


@pytest.mark.parametrize(("name", "decoupled"), [("dcl", True), ("dclw", "weighted")])
def test_decoupled_is_the_official_one(reference, matches, name, decoupled):
    data, meta = reference("infonce-dcl")
    loss = partial(info_nce, temperature=0.1, decoupled=decoupled)
    gradients = (data[f"grad_z1_{name}"], data[f"grad_z2_{name}"])
    matches(meta, loss, (data["in_z1"], data["in_z2"]), data[f"out_loss_{name}"], gradients)


def test_queue_is_the_official_one(reference):
    data, _ = reference("infonce-queue")
    objective = InfoNCE(temperature=0.2, queue_size=24)
    objective.queue.rows = data["in_queue0"].clone()
    for step in range(4):
        query = data["in_query"][step].clone().requires_grad_()
        loss = objective(query, data["in_key"][step])
        torch.testing.assert_close(loss, data["out_loss"][step], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(
            torch.autograd.grad(loss, query)[0], data["grad_query"][step], rtol=1e-9, atol=1e-11
        )
        torch.testing.assert_close(objective.queue.rows, data["state_queue"][step])
        assert objective.queue.position == data["state_ptr"][step]


def test_hand_computed():
    """Anchors and positives at 0, other samples at 90 degrees: positive e^1, two negatives e^0."""
    z = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    assert info_nce(z, z, temperature=1.0).item() == pytest.approx(math.log(math.e + 2) - 1)
    assert info_nce(z, z, temperature=1.0, negatives="cross").item() == pytest.approx(
        math.log(math.e + 1) - 1
    )
    assert info_nce(z, z, temperature=1.0, decoupled=True).item() == pytest.approx(math.log(2) - 1)
    queue = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    for_first = math.log(math.e + 1 + math.e + math.exp(-1)) - 1
    assert queue_info_nce(z[:1], z[:1], queue, temperature=1.0).item() == pytest.approx(for_first)


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(2, 20),
    dim=st.integers(2, 10),
    views=st.integers(2, 4),
    temperature=st.floats(0.02, 10),
    scale=st.floats(1e-3, 1e3),
)
def test_bounds_and_invariance_to_scale(batch, dim, views, temperature, scale):
    generator = torch.Generator().manual_seed(batch * dim)
    z = [torch.randn(batch, dim, dtype=torch.float64, generator=generator) for _ in range(views)]
    loss = info_nce(*z, temperature=temperature)
    assert 0 < loss <= math.log(2 * batch - 1) + 2 / temperature + 1e-9
    torch.testing.assert_close(info_nce(*(scale * x for x in z), temperature=temperature), loss)


def test_equal_ids_are_not_negatives():
    z1, z2 = torch.randn(2, 6, 4, dtype=torch.float64)
    duplicated = [torch.cat([z, z[:2]]) for z in (z1, z2)]
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])
    first = info_nce(*(z[2:6] for z in duplicated), temperature=0.2)  # no duplicates among these
    assert info_nce(*(z[2:6] for z in duplicated), temperature=0.2, ids=ids[2:6]) == pytest.approx(
        first.item()
    )
    masked = info_nce(*duplicated, temperature=0.2, ids=ids)
    assert masked < info_nce(*duplicated, temperature=0.2)
    everything_equal = info_nce(z1, z2, temperature=0.2, ids=torch.zeros(6, dtype=torch.int64))
    assert everything_equal.item() == pytest.approx(0, abs=1e-12)


def test_one_sample_is_a_differentiable_zero_and_a_warning():
    z1, z2 = torch.randn(2, 1, 4, requires_grad=True)
    with pytest.warns(UserWarning, match="no negatives"):
        loss = info_nce(z1, z2)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, z1, allow_unused=False)[0].any()
    with pytest.raises(ValueError, match="decoupled with 1 sample"):
        info_nce(z1, z2, decoupled=True)


def test_learnable_temperature_stays_within_its_bounds():
    objective = InfoNCE(temperature=0.07, negatives="cross", learnable_temperature=True)
    z1, z2 = torch.randn(2, 8, 4)
    with torch.no_grad():
        objective.log_scale.fill_(100.0)
    objective(z1, z2)
    assert objective.stats["temperature"].item() == pytest.approx(0.01)
    assert objective.log_scale.item() == pytest.approx(math.log(100))
    objective(z1, z2).backward()
    assert objective.log_scale.grad.abs() > 0


def test_momentum_keys_are_told_from_those_of_other_samples():
    """The contrast of MoCo v3: cross-entropy of each query's key among all keys, in one direction."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64).requires_grad_()
    objective = InfoNCE(temperature=0.2, momentum_keys=True)
    loss = objective(queries, keys)
    unit = [torch.nn.functional.normalize(z, dim=1) for z in (queries, keys)]
    expected = torch.nn.functional.cross_entropy(unit[0] @ unit[1].T / 0.2, torch.arange(6))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    inputs = [queries, keys]
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])  # samples 0 and 5 are duplicates
    logits = unit[0] @ unit[1].T / 0.2
    logits[0, 5] = logits[5, 0] = -torch.inf
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(6))
    torch.testing.assert_close(objective(queries, keys, labels=labels), expected, rtol=1e-12, atol=0)
    assert objective.negatives_per_anchor(6, 2) == 5
    with pytest.raises(ValueError, match="got 3 views with momentum_keys"):
        objective(queries, keys, keys)
    with pytest.warns(UserWarning, match="no negatives"):
        assert objective(queries[:1], keys[:1]).item() == 0


class Noise(torch.nn.Module):
    def forward(self, inputs, generator):
        return [inputs + 0.1 * torch.randn(inputs.shape, generator=generator) for _ in range(2)]


@pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*LeafSpec:FutureWarning")
def test_moco_v3_is_momentum_keys_in_both_directions():
    from lightning.pytorch import Trainer

    from contrastive import MLPEncoder, Pretrain, ProjectionHead, TensorData

    module = Pretrain(
        MLPEncoder(5, [8]), InfoNCE(0.2, momentum_keys=True), ProjectionHead(8, 4), Noise(),
        momentum=0.99, symmetric=True,
    )  # fmt: skip
    pairs = []
    module.objective.register_forward_hook(lambda _, views, loss: pairs.append((views, loss.detach())))
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=TensorData(torch.randn(16, 5), batch_size=8, validation_fraction=0))
    assert len(pairs) == 2
    for (queries, keys), loss in pairs:
        assert queries.requires_grad
        assert not keys.requires_grad
        q, k = (torch.nn.functional.normalize(z.detach(), dim=1) for z in (queries, keys))
        expected = torch.nn.functional.cross_entropy(q @ k.T / 0.2, torch.arange(8))
        torch.testing.assert_close(loss, expected)
    assert float(trainer.callback_metrics["loss"]) == pytest.approx(float(pairs[0][1] + pairs[1][1]) / 2)


def test_the_width_of_weighted_positives_is_that_of_the_function():
    views = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    for sigma in (0.2, 0.9):
        expected = info_nce(*views, decoupled="weighted", sigma=sigma)
        assert torch.equal(InfoNCE(decoupled="weighted", sigma=sigma)(*views), expected)
    assert expected != InfoNCE(decoupled="weighted")(*views)


def test_queue_wraps_without_dropping_keys_and_rests_in_evaluation():
    objective = InfoNCE(queue_size=5)
    keys = [torch.nn.functional.normalize(torch.randn(3, 4), dim=1) for _ in range(3)]
    objective(torch.randn(3, 4), keys[0])
    objective(torch.randn(3, 4), keys[1])
    torch.testing.assert_close(objective.queue.rows, torch.cat([keys[1][2:], keys[0][1:], keys[1][:2]]))
    assert objective.queue.position == 1
    before = objective.state_dict()
    objective.eval()(torch.randn(3, 4), keys[2])
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_queue_leaves_out_entries_of_the_same_label():
    objective = InfoNCE(queue_size=4)
    z = torch.randn(4, 3)
    objective(z, z, labels=torch.arange(4))
    objective.eval()
    known = objective(z, z, labels=torch.arange(4))
    assert known < objective(z, z)
    assert objective(z, z, labels=torch.full((4,), 9)) == objective(z, z)


def test_not_finite_embeddings_are_named():
    z1, z2 = torch.randn(2, 6, 4)
    z2[3, 1] = torch.nan
    with pytest.raises(
        FloatingPointError, match="InfoNCE: the loss is nan; the first bad row is row 3 of view 1"
    ):
        InfoNCE()(z1, z2)


@pytest.mark.parametrize(
    ("views", "options", "message"),
    [
        ((torch.zeros(3, 2),), {}, "got 1 views"),
        ((torch.zeros(3, 2), torch.zeros(4, 2)), {}, r"view 1 is \(4, 2\)"),
        ((torch.zeros(3, 2), torch.zeros(3, 2).double()), {}, "same shape, dtype and device"),
        ((torch.zeros(3), torch.zeros(3)), {}, "expected floating-point embeddings"),
        ((torch.zeros(3, 2), torch.zeros(3, 2)), {"temperature": 0.0}, "temperature is 0.0; give a positive"),
        ((torch.zeros(3, 2), torch.zeros(3, 2)), {"temperature": math.nan}, "temperature is nan"),
        ((torch.zeros(3, 2), torch.zeros(3, 2)), {"negatives": "none"}, "negatives is 'none'; give one of"),
        (
            (torch.zeros(3, 2), torch.zeros(3, 2)),
            {"ids": torch.zeros(3)},
            "give one integer for each of the 3",
        ),
    ],
)
def test_bad_input_is_named(views, options, message):
    with pytest.raises(ValueError, match=message):
        info_nce(*views, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "InfoNCE: temperature is -1"),
        ({"learnable_temperature": True, "temperature": 2.0}, "lies outside"),
        ({"queue_size": 8, "decoupled": True}, "replaces the negatives of the batch"),
        ({"queue_size": 8, "momentum_keys": True}, "the keys of the batch are the candidates"),
        ({"decoupled": "weighted", "sigma": 0}, "InfoNCE: sigma is 0; give a number above 0"),
        ({"negatives": "self"}, "give one of 'all', 'cross'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        InfoNCE(**options)


def test_large_batches_in_float32_agree_with_float64():
    z1, z2 = torch.randn(2, 1500, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = info_nce(z1, z2, temperature=0.05)
    ours = info_nce(z1.float(), z2.float(), temperature=0.05)
    assert ours.item() == pytest.approx(exact.item(), rel=1e-6)
