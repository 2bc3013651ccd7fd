"""Hydra against its official outputs, a naive twin, the conformance suite and its edge cases."""

from functools import partial
from itertools import permutations

import pytest
import torch
from torch import Tensor

from contrastive import Hydra
from contrastive.functional import gated_contrast, sup_con
from contrastive.objectives.gates import GateGenerator, draw_partners, expected_open
from contrastive.similarity import stream_subspace
from contrastive.testing import CHECKS, ObjectiveCase, check_processes

FLOAT64, FLOAT32 = torch.float64, torch.float32


def generator(data, dtype=FLOAT64, **options):
    """A gate generator with the weights and batch-norm state of a reference file."""
    num_classes, embedding_dim = data["param_label_embedding.weight"].shape
    dim, hidden_dim = data["param_mlp.5.weight"].shape
    gates = GateGenerator(
        num_classes, dim, embedding_dim=embedding_dim, hidden_dim=hidden_dim, **options
    ).double()
    prefixes = ("param_", "buf_before_")
    state = {key.removeprefix(p): data[key] for key in data for p in prefixes if key.startswith(p)}
    gates.load_state_dict(state)
    return gates.to(dtype)


def assert_near(ours: Tensor, official: Tensor, tolerance: float = 1e-8):
    """Equal within ``tolerance`` of the largest entry."""
    scale = max(float(official.abs().max()), 1e-12)
    assert ours.shape == official.shape
    assert float((ours.detach().double() - official).abs().max()) <= tolerance * scale


def assert_gradients(module, data, prefix="grad_", tolerance=1e-8):
    for name, parameter in module.named_parameters():
        assert_near(parameter.grad, data[prefix + name], tolerance)


def assert_buffers(module, data, prefix="buf_after_", tolerance=1e-10):
    for name, buffer in module.named_buffers():
        assert_near(buffer, data[prefix + name], tolerance)


# ---------------------------------------------------------------------- official gates


@pytest.mark.parametrize("name", ["fuse", "single", "product"])
def test_official_gates(reference, name):
    data, _ = reference("hydra-gate")
    gates = generator(data, fuse="product" if name == "product" else "mean")
    out = gates(data["y1"], None if name == "single" else data["y2"])
    (out * data["w"]).sum().backward()
    assert_near(out, data[f"gate_{name}"], 1e-10)
    assert_gradients(gates, data, f"grad_{name}_")
    assert_buffers(gates, data, f"buf_{name}_after_")


def test_official_gates_in_evaluation(reference):
    data, _ = reference("hydra-gate")
    gates = generator(data).eval()
    assert_near(gates(data["y1"], data["y2"]), data["gate_eval"], 1e-10)
    assert_near(gates.statistics()["activation"], data["activation"], 1e-10)
    assert_near(gates.statistics()["entropy"], data["entropy"], 1e-10)
    assert_near(gates.penalty(), data["entropy"], 1e-10)


@pytest.mark.parametrize(("kind", "noise"), [("stochastic", "normal"), ("gumbel", "uniform")])
def test_official_noisy_gates(reference, kind, noise):
    data, _ = reference("hydra-stochastic-gates")
    gates = generator(data, kind=kind)
    out = gates(data["y1"], data["y2"], noise=data[noise])
    (out * data["w"]).sum().backward()
    assert_near(out, data[f"gate_{kind}"], 1e-10)
    assert_gradients(gates, data, f"grad_{kind}_")
    # Without noise a stochastic gate is its clamped mean: where that is inside (0, 1), the logit shows.
    logits = generator(data)._pair_logits(data["y1"], data["y2"])
    assert_near(expected_open(logits, 0.5), data["reg"], 1e-10)


# ---------------------------------------------------------------------- official losses


@pytest.mark.parametrize(
    ("dtype", "loss_tolerance", "tolerance"), [(FLOAT64, 1e-10, 1e-8), (FLOAT32, 2e-5, 2e-4)]
)
@pytest.mark.parametrize("name", ["subspace", "gated-dot", "gated-dot-self"])
def test_official_losses(reference, name, dtype, loss_tolerance, tolerance):
    data, _ = reference(f"hydra-{name}")
    gates = generator(data, dtype)
    leaf = {
        key: data[key].to(dtype).requires_grad_()
        for key in data
        if key in ("z", "k", "z1", "z2", "scale_logit")
    }
    options = {"labels": data["y"], "partners": data["posy"]}
    gate = gates(data["y"], data["posy"])
    if name == "subspace":
        loss = gated_contrast(leaf["z"], leaf["k"], gate, key_labels=data["key_y"], **options)
    elif name == "gated-dot":
        options |= {"temperature": (-leaf["scale_logit"]).exp(), "similarity": "dot", "reduction": "queries"}
        loss = gated_contrast(leaf["z1"], leaf["z2"], gate, **options)
    else:
        loss = gated_contrast(leaf["z1"], leaf["z1"], gate, temperature=0.1, similarity="dot", **options)
    loss.backward()
    torch.testing.assert_close(loss.double(), data["loss"], rtol=loss_tolerance, atol=0)
    for key, x in leaf.items():
        assert_near(x.grad, data[f"grad_{key}"], tolerance)
    assert_gradients(gates, data, tolerance=tolerance)
    assert_buffers(gates, data, tolerance=1e-10 if dtype == FLOAT64 else 1e-5)


SMALL = {"embedding_dim": 8, "hidden_dim": 12}


def test_official_classes(reference):
    """The forms of the class are the published ones, one direction at a time."""
    for name, options in (
        ("gated-dot", {"form": "simlap", "keys": "second"}),
        ("gated-dot-self", {"form": "simlap-supervised", "variant": "released"}),
    ):
        data, _ = reference(f"hydra-{name}")
        objective = Hydra(len(data["param_label_embedding.weight"]), 12, **SMALL, **options).double()
        objective.gates = generator(data)
        views = [data[key].clone().requires_grad_() for key in ("z1", "z2") if key in data]
        if objective.log_scale is not None:
            assert float(objective.log_scale.detach()) == pytest.approx(float(data["scale_logit"]), rel=1e-6)
            objective.log_scale.data = data["scale_logit"][0]
        loss = objective(*views, labels=data["y"], partners=data["posy"])
        loss.backward()
        torch.testing.assert_close(loss, data["loss"], rtol=1e-10, atol=0)
        for number, view in enumerate(views, 1):
            assert_near(view.grad, data[f"grad_z{number}"])
        if objective.log_scale is not None:
            assert_near(objective.log_scale.grad, data["grad_scale_logit"][0])
        assert_gradients(objective.gates, data)
        if objective.variant == "corrected":  # the other computes a penalty too, which moves them once more
            assert_buffers(objective.gates, data)


def moco(data, **options):
    objective = Hydra(6, 10, keys="second", instance_term=True, **SMALL, **options).double()
    objective.gates = generator(data)
    return objective


def test_official_moco_total(reference):
    data, _ = reference("hydra-moco-total")
    objective = moco(data, variant="released", gate_penalty=0.0)
    q1, q2 = (data[key].clone().requires_grad_() for key in ("q1", "q2"))
    loss = objective(q1, q2, data["k1"], data["k2"], labels=data["y"], partners=data["posy"])
    loss.backward()
    torch.testing.assert_close(loss, data["loss"], rtol=1e-10, atol=0)
    stats = {"gated_loss": "disparate_loss", "instance_loss": "instance_loss", "gate_penalty": "entropy"}
    for ours, official in stats.items():
        torch.testing.assert_close(objective.stats[ours], data[official], rtol=1e-10, atol=0)
    assert_near(q1.grad, data["grad_q1"])
    assert_near(q2.grad, data["grad_q2"])
    assert_gradients(objective.gates, data)
    assert_buffers(objective.gates, data)


def test_one_call_for_each_direction_is_the_moco_total(reference):
    """As ``Pretrain(momentum=..., symmetric=True)`` calls it."""
    data, _ = reference("hydra-moco-total")
    call = partial(moco(data), labels=data["y"], partners=data["posy"])
    loss = (call(data["q1"], data["k2"]) + call(data["q2"], data["k1"])) / 2
    torch.testing.assert_close(loss, data["loss"], rtol=1e-10, atol=0)


# ---------------------------------------------------------------------- conformance


TINY = {"embedding_dim": 3, "hidden_dim": 4}


def partner_of(labels: Tensor) -> Tensor:
    """Even classes are their own partner class, odd ones that of the class below."""
    return labels - labels % 2


class Fixed(Hydra):
    """Hydra with weights from one seed and partners that are a function of the labels."""

    def setup(self, num_samples, *, num_classes=0, dim=None):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().setup(num_samples, num_classes=num_classes, dim=dim)

    def forward(self, *views, index=None, labels=None):
        return super().forward(*views, labels=labels, partners=partner_of(labels))


class Drawn(Fixed):
    """The same with partners drawn by the objective itself."""

    def forward(self, *views, index=None, labels=None):
        return Hydra.forward(self, *views, labels=labels)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def naive_gate(gates: GateGenerator, embeddings: Tensor) -> Tensor:
    """The perceptron with batch norm over all rows, those of equal pairs included."""
    _, first_norm, first, _, second_norm, second = gates.mlp
    x = embeddings
    for norm, layer in ((first_norm, first), (second_norm, second)):
        x = x.clamp(min=0)
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias
        x = x @ layer.weight.T + layer.bias
    return 1 / (1 + torch.exp(-x))


def naive(*views: Tensor, labels: Tensor, **options) -> Tensor:
    """Hydra with loops over queries and keys, each key gated by itself."""
    batch = len(labels)
    objective = Fixed(**options)
    objective.setup(4 * batch, num_classes=4 * batch // 12 + 1, dim=views[0].shape[1])
    objective.double()
    form, a = objective.form, options.get("repulsion") or 0.0
    t, partners = form.temperature, partner_of(labels)
    if form.keys == "same":
        labels, partners, views = labels.repeat(len(views)), partners.repeat(len(views)), (torch.cat(views),)
        directions = [(views[0], views[0])]
    else:
        directions = list(permutations(views, 2))[: 1 if form.keys == "second" else None]
    gates = torch.ones_like(directions[0][0])
    if objective.gates is not None:
        table = objective.gates.label_embedding.weight
        if options.get("fuse") == "product":
            gates = naive_gate(objective.gates, table[labels]) * naive_gate(objective.gates, table[partners])
        else:
            gates = naive_gate(objective.gates, (table[labels] + table[partners]) / 2)

    totals = []
    classes, partner_classes = labels.tolist(), partners.tolist()
    for queries, keys in directions:
        terms = [[] for _ in queries]
        for i, (z, g, y, p) in enumerate(zip(queries, gates, classes, partner_classes, strict=True)):
            if form.similarity == "cosine":
                s = unit(keys * g) @ unit(z * g)
            else:
                s = unit(keys) @ (unit(z) * g * g) - a * unit(keys) @ unit(z)
            s = s / t
            negatives = s[[c not in (y, p) for c in classes]]
            for j, c in enumerate(classes):
                if c == p and not (form.keys == "same" and i == j):
                    terms[i].append(torch.cat([s[j : j + 1], negatives]).logsumexp(0) - s[j])
        if form.reduction == "pairs":
            totals.append(torch.stack([x for row in terms for x in row]).mean())
        else:
            totals.append(torch.stack([sum(row) / (len(row) + 1e-6) for row in terms]).mean())
    loss = torch.stack(totals).mean()
    if options.get("instance_term"):
        instance = []
        for queries, keys in directions:
            logits = unit(queries) @ unit(keys).T / t
            instance.append(torch.stack([x.logsumexp(0) - x[i] for i, x in enumerate(logits)]).mean())
        beta = options.get("beta", 1.0)
        loss = (torch.stack(instance).mean() + beta * loss) / (1 + beta)
    return loss


CONFIGURATIONS = {
    "Hydra": {},
    "Hydra-MoCo": {"keys": "second", "instance_term": True, "beta": 2.0},
    "Hydra-open": {"gate": "open"},
    "SimLAP-product": {
        "form": "simlap",
        "fuse": "product",
        "repulsion": 0.25,
        "learnable_temperature": False,
    },
    "SimLAP-supervised": {"form": "simlap-supervised"},
}
CASES = [
    ObjectiveCase(
        name,
        partial(Fixed, **TINY, **options),
        partial(naive, **TINY, **options),
        labels=True,
        positions=name != "Hydra-open",
        sized=True,
    )
    for name, options in CONFIGURATIONS.items()
]
# Without a twin: what the twin lacks.
OTHERS = [
    ("SimLAP-learnable-penalty", {"form": "simlap", "temperature": 0.15, "gate_penalty": 0.5}, 2),
    ("SimLAP-released-1-view", {"variant": "released", "form": "simlap-supervised"}, 1),
]
CASES += [
    ObjectiveCase(name, partial(Fixed, **TINY, **options), num_views=views, labels=True, sized=True)
    for name, options, views in OTHERS
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conformance(case: ObjectiveCase, check: str):
    CHECKS[check](case)


@pytest.mark.parametrize("pairs", ["arbitrary", "distinct"])
def test_processes_draw_the_partners_of_one(pairs):
    check_processes(ObjectiveCase(pairs, partial(Drawn, pairs=pairs, **TINY), labels=True, sized=True), (2,))


# ---------------------------------------------------------------------- properties


def random_problem(batch=24, dim=8, num_classes=5, dtype=FLOAT64):
    z, k = torch.randn(2, batch, dim, dtype=dtype)
    gates = torch.rand(batch, dim, dtype=dtype)
    labels = torch.arange(batch) % num_classes
    return (
        z.requires_grad_(),
        k.requires_grad_(),
        gates.requires_grad_(),
        labels,
        labels[torch.randperm(batch)],
    )


def test_open_gates_and_identical_pairs_are_supervised_contrast_with_negatives():
    z, k, _, labels, _ = random_problem()
    objective = Hydra(5, gate="open", pairs="identical", keys="same", temperature=0.2)
    expected = sup_con(z, k, labels=labels, temperature=0.2, denominator="negatives")
    torch.testing.assert_close(objective(z, k, labels=labels), expected)


def test_the_length_of_queries_keys_and_gates_does_not_matter():
    z, k, gates, labels, partners = random_problem()
    call = partial(gated_contrast, labels=labels, partners=partners)
    scale = torch.logspace(-6, 6, 24, dtype=FLOAT64)[:, None]
    torch.testing.assert_close(call(z * scale, k / scale, gates * scale), call(z, k, gates))


def test_nearly_closed_gates_do_not_underflow():
    """Squares of gates around 1e-24 are below float32; relative to each row they are as good as any."""
    z, k, gates, labels, partners = random_problem(dtype=FLOAT32)
    call = partial(gated_contrast, labels=labels, partners=partners)
    closed = (gates.detach() * 1e-24).requires_grad_()
    torch.testing.assert_close(call(z, k, closed), call(z, k, gates))
    call(z, k, closed).backward()
    assert torch.isfinite(closed.grad).all()
    assert closed.grad.any()


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_rows_of_zeros_have_similarity_zero_and_no_gradient(similarity):
    z, k, gates, labels, partners = random_problem()
    with torch.no_grad():
        z[0], k[1], gates[2] = 0, 0, 0
    loss = gated_contrast(z, k, gates, labels=labels, partners=partners, similarity=similarity)
    loss.backward()
    assert torch.isfinite(loss)
    assert not z.grad[0].any()
    assert not k.grad[1].any()
    assert all(torch.isfinite(x.grad).all() and float(x.grad.abs().max()) < 1e3 for x in (z, k, gates))


def test_streamed_subspace_gradients_are_those_of_finite_differences():
    def row_loss(cosines, rows):
        return (cosines.exp() * torch.arange(rows.start, rows.stop, dtype=FLOAT64)[:, None]).sum()

    q, w, k = torch.randn(3, 5, 4, dtype=FLOAT64).unbind()
    inputs = [x.requires_grad_() for x in (q, w.square(), k)]
    assert torch.autograd.gradcheck(lambda *x: stream_subspace(*x, row_loss, block_size=2), inputs)
    loss = stream_subspace(*inputs, row_loss, block_size=2)
    (grad,) = torch.autograd.grad(loss, inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="stream_subspace: a streamed result was differentiated twice"):
        grad.sum().backward()


@pytest.mark.parametrize("views", [3, 4])
def test_more_views_are_averaged_over_directions(views):
    z = torch.randn(views, 12, 6, dtype=FLOAT64)
    labels, partners = torch.arange(12) % 3, torch.arange(12).flip(0) % 3
    objective = Hydra(3, 6, keys="other", gate="open", **TINY)
    call = partial(objective, labels=labels, partners=partners)
    losses = [call(z[v], z[w]) for v in range(views) for w in range(v)]
    torch.testing.assert_close(call(*z), torch.stack(losses).mean())


# ---------------------------------------------------------------------- pairs and gates


def test_pairs_as_asked():
    labels = torch.arange(1000) % 7
    torch.manual_seed(0)
    assert torch.equal(draw_partners(labels, 7, "identical"), labels)
    arbitrary = draw_partners(labels, 7, "arbitrary")
    assert torch.equal(arbitrary.sort().values, labels.sort().values)
    assert 0.08 < float((arbitrary == labels).double().mean()) < 0.22  # 1/7 by chance
    distinct = draw_partners(labels, 7, "distinct")
    assert not (distinct == labels).any()
    assert set(((distinct - labels) % 7).tolist()) == set(range(1, 7))
    assert not torch.equal(arbitrary, draw_partners(labels, 7, "arbitrary"))


def test_evaluation_draws_the_same_partners_again_and_leaves_the_generator_alone():
    z, k, _, labels, _ = random_problem(dtype=FLOAT32)
    objective = Hydra(5, 8, **TINY).eval()
    state = torch.get_rng_state()
    assert objective(z, k, labels=labels) == objective(z, k, labels=labels)
    assert torch.equal(state, torch.get_rng_state())
    objective.train()
    assert objective(z, k, labels=labels) != objective(z, k, labels=labels)


def test_gates_of_a_pair_do_not_depend_on_its_order():
    gates = GateGenerator(6, 9, **TINY).eval()
    first, second = torch.randint(6, (2, 20))
    torch.testing.assert_close(gates(first, second), gates(second, first))


def test_gate_penalty_trains_the_gates_and_the_released_one_does_not():
    labels = torch.arange(24) % 5
    z = torch.randn(2, 24, 8)
    for variant, changes in (("corrected", True), ("released", False)):
        gradients = []
        for weight in (0.0, 1.0):
            torch.manual_seed(0)
            objective = Hydra(5, 8, gate_penalty=weight, variant=variant, **TINY)
            loss = objective(*z, labels=labels, partners=labels.flip(0))
            loss.backward()
            gradients.append(objective.gates.mlp[5].weight.grad)
            value = float(objective.stats["gate_penalty"]) if weight else 0.0
            expected = float(objective.stats["gated_loss"]) + weight * value
            assert float(loss.detach()) == pytest.approx(expected)
        assert torch.equal(*gradients) != changes


def test_the_penalty_makes_gates_certain():
    torch.manual_seed(0)
    gates = GateGenerator(4, 6, **TINY)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.1)
    before = gates.statistics()["entropy"]
    for _ in range(50):
        optimizer.zero_grad()
        gates.penalty().backward()
        optimizer.step()
    assert gates.statistics()["entropy"] < 0.5 * before


def test_noise_only_in_training():
    first, second = torch.randint(6, (2, 20))
    for kind in ("stochastic", "gumbel"):
        gates = GateGenerator(6, 9, kind=kind, **TINY)
        assert not torch.equal(gates(first, second), gates(first, second))
        assert 0 <= gates(first, second).min() <= gates(first, second).max() <= 1
        gates.eval()
        assert torch.equal(gates(first, second), gates(first, second))


@pytest.mark.parametrize("fuse", ["mean", "product"])
def test_looking_at_gates_changes_nothing(fuse):
    objective = Hydra(5, 8, fuse=fuse, **TINY)
    labels = torch.arange(10) % 5
    objective(*torch.randn(2, 10, 8), labels=labels)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.gates.statistics()
    relations = objective.class_relations(list("abcde"), "capacity")
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())

    objective.eval()
    first, second = torch.cartesian_prod(torch.arange(5), torch.arange(5)).unbind(1)
    capacities = objective.gates(first, second).detach().sum(1).view(5, 5).double()
    torch.testing.assert_close(relations.matrix, capacities)


def test_relations_find_classes_that_share_gates():
    """Classes 0 and 3, and 1 and 2, open the same dimensions."""
    objective = Hydra(4, 6, **TINY)
    with torch.no_grad():
        weight = objective.gates.label_embedding.weight
        weight[:] = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, 0, 1.1], [1.1, 0, 0]])
    relations = objective.class_relations(["cat", "car", "truck", "dog"])
    assert {frozenset(pair[:2]) for pair in relations.ranking()[:2]} == {
        frozenset({"cat", "dog"}),
        frozenset({"car", "truck"}),
    }
    same = torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]])
    assert relations.agreement(same) > 0.7
    order = relations.order()
    assert abs(order.index(0) - order.index(3)) == abs(order.index(1) - order.index(2)) == 1
    assert str(relations).count("\n") == 5
    names = [text.get_text() for text in relations.figure().axes[0].get_xticklabels()]
    assert names == [relations.class_names[label] for label in order]


# ---------------------------------------------------------------------- edges


def test_no_positive_at_all_is_a_differentiable_zero_and_a_warning():
    objective = Hydra(9, 4, **TINY)
    z = torch.randn(2, 6, 4, requires_grad=True)
    with pytest.warns(UserWarning, match="no query has a key of its partner class"):
        loss = objective(*z, labels=torch.arange(6), partners=torch.full((6,), 8))
    loss.backward()
    assert loss.item() == 0
    assert not z.grad.any()
    assert objective.gates.label_embedding.weight.grad is not None  # no parameter is left out of the step


def test_two_classes_have_no_negatives_and_no_gradient():
    z = torch.randn(2, 6, 4, requires_grad=True)
    labels = torch.arange(6) % 2
    loss = Hydra(2, 4, **TINY)(*z, labels=labels, partners=1 - labels)
    loss.backward()
    assert loss.item() == 0
    assert not z.grad.any()


def test_one_sample_and_one_class_are_finite():
    for batch in (1, 5):
        objective = Hydra(3, 4, **TINY)
        z = torch.randn(2, batch, 4, requires_grad=True)
        objective(*z, labels=torch.zeros(batch, dtype=torch.int64)).backward()
        assert not z.grad.any()
        assert all(torch.isfinite(value).all() for value in objective.state_dict().values())
    assert int(Hydra(3, 4, **TINY).gates.mlp[1].num_batches_tracked) == 0


def test_a_learned_temperature_stays_above_a_hundredth():
    objective = Hydra(3, 4, form="simlap", **TINY)
    objective.log_scale.data.fill_(9.0)
    objective(*torch.randn(2, 6, 4), labels=torch.arange(6) % 3)
    assert objective.stats["temperature"].item() == pytest.approx(0.01)


def test_sizes_may_come_late_and_must_agree():
    objective = Hydra(**TINY)
    with pytest.raises(RuntimeError, match="before its sizes were known"):
        objective(*torch.randn(2, 6, 4), labels=torch.arange(6))
    objective.setup(100, num_classes=6, dim=4)
    weight = objective.gates.label_embedding.weight
    objective.setup(100, num_classes=6, dim=4)
    assert objective.gates.label_embedding.weight is weight
    objective(*torch.randn(2, 6, 4), labels=torch.arange(6))
    with pytest.raises(ValueError, match="num_classes is 6 but the data has 7"):
        objective.setup(100, num_classes=7)
    with pytest.raises(ValueError, match="dim is 4 but the embeddings have width 5"):
        objective.setup(100, dim=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "moco"}, "form is 'moco'; give one of 'hydra', 'simlap'"),
        ({"keys": "queue"}, "keys is 'queue'"),
        ({"pairs": "all"}, "pairs is 'all'"),
        ({"gate": "hard"}, "gate is 'hard'"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"gate_penalty": -1.0}, "gate_penalty is -1.0"),
        ({"repulsion": 0.5}, "repulsion with form='hydra'"),
        ({"form": "simlap-supervised", "instance_term": True}, "instance_term with keys='same'"),
        ({"gate": "open", "gate_penalty": 1.0}, "gate_penalty with gate='open'"),
        ({"fuse": "product", "gate": "gumbel"}, "fuse='product' with kind='gumbel'"),
        ({"hidden_dim": 0}, "hidden_dim is 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Hydra(3, 4, **options)


def test_bad_inputs_are_named():
    objective, z = Hydra(3, 4, **TINY), torch.randn(2, 6, 4)
    labels = torch.arange(6) % 3
    for arguments, message in (
        ({"labels": None}, "labels are missing"),
        ({"labels": labels[:5]}, r"labels are \(5,\).*each of the 6 samples"),
        ({"labels": labels + 1}, r"labels lie in 1\.\.3; with num_classes=3 give integers from 0 to 2"),
        ({"labels": labels, "partners": labels - 1}, r"partners lie in -1\.\.1"),
    ):
        with pytest.raises(ValueError, match=message):
            objective(*z, **arguments)
    with pytest.raises(ValueError, match="views have width 5, gates 4"):
        objective(*torch.randn(2, 6, 5), labels=labels)
    with pytest.raises(ValueError, match="got 3 views with keys='second'"):
        Hydra(3, 4, keys="second", **TINY)(*torch.randn(3, 6, 4), labels=labels)
    with pytest.raises(ValueError, match="no gates"):
        Hydra(3, gate="open").class_relations()
    with pytest.raises(ValueError, match="no other class"):
        Hydra(1, 4, pairs="distinct", **TINY)(*z, labels=torch.zeros(6, dtype=torch.int64))


# ---------------------------------------------------------------------- training


@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
def test_trains_behind_a_momentum_encoder(tmp_path):
    """Sizes come from the data and the projector; keys get no gradient."""
    import lightning.pytorch as pl

    from contrastive import MLPEncoder, Pretrain, ProjectionHead, TensorData

    x = torch.randn(40, 6)
    data = TensorData(x, torch.arange(40) % 4, batch_size=20)

    class Jitter(torch.nn.Module):
        num_views = 2

        def forward(self, inputs, generator):
            return [inputs + 0.1 * torch.randn(inputs.shape, generator=generator) for _ in range(2)]

    objective = Hydra(keys="second", instance_term=True, gate_penalty=0.1, **TINY)
    model = Pretrain(
        MLPEncoder(6, (8,), 8), objective, ProjectionHead(8, 5), Jitter(), momentum=0.9, symmetric=True
    )
    trainer = pl.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, datamodule=data)
    assert objective.gates.dim == 5
    assert objective.gates.num_classes == 4
    assert set(objective.stats) >= {"gated_loss", "instance_loss", "gate_penalty", "gate_entropy"}
    assert int(objective.gates.mlp[1].num_batches_tracked) == 4  # two steps, two directions
