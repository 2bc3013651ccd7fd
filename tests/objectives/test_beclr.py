import math
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive.objectives import BECLR
from contrastive.objectives.clustered_memory import ClusteredMemory
from contrastive.objectives.clusters import assignment_plan, cluster_means, kmeans, nearest_in_ranges
from contrastive.objectives.enhanced_contrast import Batches, beclr
from contrastive.testing import CHECKS, ObjectiveCase, run_on_processes

# ---------------------------------------------------------------- official implementation: memory


def remembered(data, meta, *, after: bool = False, **options) -> ClusteredMemory:
    """A memory in the state that a file of official results begins, or ends, with."""
    hyper = meta["hyper"]
    memory = ClusteredMemory(
        hyper["memory_size"],
        hyper["K"],
        hyper["metric"],
        iterations=hyper["iterations"],
        momentum=hyper["memory_momentum"],
        recluster_epochs=0,
        **options,
    )
    end = "_after" if after else ""
    memory.rows, memory.prototypes = data[f"bank{end}"].T.contiguous(), data[f"prototypes{end}"]
    memory.labels = data[f"labels{end}"].clone()
    memory.position.copy_(data[f"ptr{end}"])
    memory.clustered_epoch.fill_(0)
    return memory


def released(data, meta, **options) -> ClusteredMemory:
    return remembered(data, meta, epsilon=meta["hyper"]["epsilon"], variant="released", **options)


@pytest.mark.parametrize("name", ["update", "wrap"])
def test_official_update(reference, name):
    data, meta = reference(f"beclr-dyce-{name}")
    memory = released(data, meta)
    plan = memory.assign(data["z"])
    torch.testing.assert_close(plan, data["plan"], rtol=1e-4, atol=1e-6)
    assert torch.equal(plan.argmax(1), data["assignment"])
    places = memory.update(data["z"])
    assert torch.equal(memory.rows, data["bank_after"].T)
    assert torch.equal(memory.labels, data["labels_after"])
    assert torch.equal(memory.position, data["ptr_after"])
    torch.testing.assert_close(memory.prototypes, data["prototypes_after"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(memory.prototypes, data["prototypes_after_bylabel"], rtol=1e-5, atol=1e-6)
    kept = places[places >= 0]
    assert torch.equal(memory.rows[kept], data["z"][: len(kept)])
    assert len(kept) == (len(places) if name == "update" else len(memory.rows) - int(data["ptr"]))


def test_intended_update(reference):
    data, meta = reference("beclr-dyce-update")
    memory = remembered(data, meta, epsilon=meta["hyper"]["mincost_epsilon"])
    plan = memory.assign(data["z"])
    torch.testing.assert_close(plan, data["mincost_plan"], rtol=2e-4, atol=1e-6)
    assert torch.equal(plan.argmax(1), data["mincost_assignment"])
    memory.update(data["z"])
    assert torch.equal(memory.labels, data["mincost_labels_after"])
    torch.testing.assert_close(memory.prototypes, data["mincost_prototypes_after"], rtol=1e-5, atol=1e-6)
    # Control: near prototypes and far ones are not the same.
    assert not torch.equal(plan.argmax(1), data["assignment"])


def test_intended_update_at_the_end_of_the_memory(reference):
    """The cosine has no wrong sign, so the plan is the same; but no row is lost at the end of the memory."""
    data, meta = reference("beclr-dyce-wrap")
    memory = remembered(data, meta, epsilon=meta["hyper"]["epsilon"])
    torch.testing.assert_close(memory.assign(data["z"]), data["plan"], rtol=1e-4, atol=1e-6)
    places = memory.update(data["z"])
    fits = len(memory.rows) - int(data["ptr"])
    assert places.tolist() == [*range(int(data["ptr"]), len(memory.rows)), *range(16 - fits)]
    assert int(memory.position) == 16 - fits
    assert torch.equal(memory.rows[places], data["z"])
    assert torch.equal(memory.labels[places], data["assignment"])
    assert torch.equal(memory.labels[16 - fits :], data["labels_after"][16 - fits :])


def test_official_enhancement(reference):
    data, meta = reference("beclr-dyce-enhance")
    hyper, memory = meta["hyper"], None
    memory = ClusteredMemory(97, hyper["K"], epsilon=hyper["epsilon"], variant="released")
    memory.rows, memory.prototypes = data["bank"].T.contiguous(), data["prototypes"]
    memory.labels, memory.clustered_epoch = data["labels"].clone(), torch.tensor(0)
    memory.position.copy_(data["ptr"])
    memory.update(data["z"])
    assert torch.equal(memory.labels, data["labels_after"])
    torch.testing.assert_close(memory.prototypes, data["prototypes_after"], rtol=1e-5, atol=1e-6)
    batch, k = hyper["batch_size"], hyper["k"]

    for variant, positions, enhanced in (
        ("released", "neighbours_released", "enhanced"),
        ("corrected", "neighbours_global", "enhanced_mapped"),
    ):
        memory.variant = variant
        views = data["z"].clone().requires_grad_()
        found = memory.nearest(views.detach().view(2, batch, -1), k)
        assert torch.equal(found, data[positions])
        unit = F.normalize(views).view(2, batch, -1)
        ours = torch.cat([unit, memory.rows[found].flatten(1, 2)], 1).flatten(0, 1)
        torch.testing.assert_close(ours, data[enhanced], rtol=1e-5, atol=1e-6)
        if variant == "released":
            (gradient,) = torch.autograd.grad((ours * data["weight"]).sum(), views)
            torch.testing.assert_close(gradient, data["grad_z"], rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- official implementation: loss


@pytest.mark.parametrize(("form", "name"), [("SS", "student"), ("ST", "mixed"), ("TT", "teacher")])
def test_official_loss(reference, form, name):
    data, meta = reference("beclr-loss")
    views = {key: data[key].view(2, 16, 12) for key in ("z_teacher", "p_student", "z_student")}
    targets, predictions, projections = (x.clone().requires_grad_() for x in views.values())
    options = {"temperature": meta["hyper"]["temp"], "negative_weight": meta["hyper"]["lamb_neg"]}
    terms = beclr(targets, predictions, projections, negatives=name, **options)
    for ours, official in zip(terms, ("loss", "loss_pos", "loss_neg"), strict=True):
        torch.testing.assert_close(ours, data[f"{official}_{form}"], rtol=1e-10, atol=1e-12)
    inputs = (targets, predictions, projections)
    gradients = torch.autograd.grad(terms.loss, inputs, allow_unused=True, materialize_grads=True)
    assert not gradients[0].any()
    torch.testing.assert_close(gradients[1].flatten(0, 1), data[f"grad_p_{form}"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        gradients[2].flatten(0, 1), data[f"grad_z_student_{form}"], rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(("form", "name"), [("SS", "student"), ("ST", "mixed"), ("TT", "teacher")])
def test_the_class_gives_the_official_loss_and_spread(reference, form, name):
    data, _ = reference("beclr-loss")
    z, t = data["z_student"].view(2, 16, 12), data["z_teacher"].view(2, 16, 12)
    fixed = Fixed(data["p_student"])  # the file has no predictor, only what it made
    objective = BECLR(12, negatives=name, num_neighbours=0, predictor=fixed)
    torch.testing.assert_close(objective(*z, teacher=t.unbind()), data[f"loss_{form}"], rtol=1e-10, atol=0)
    torch.testing.assert_close(objective.stats["std"], data["std"], rtol=1e-10, atol=0)


class Fixed(nn.Module):
    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return self.output


# ---------------------------------------------------------------- twins in loops, and the conformance suite


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def naive_terms(t: Tensor, p: Tensor, z: Tensor, temperature: float, name: str) -> tuple[Tensor, Tensor]:
    """Loops over ``(2, N, D)``."""
    t, p, z = unit(t.detach()), unit(p), unit(z)
    n = t.shape[1]
    positive = -sum(p[v, i] @ t[1 - v, i] for v in (0, 1) for i in range(n)) / (2 * n)
    w = torch.cat([(t if name == "teacher" else z)[0], (z if name == "student" else t)[1]])
    total = sum(
        (w[i] @ w[j] / temperature).exp() for i in range(2 * n) for j in range(2 * n) if i % n != j % n
    )
    return positive, (total / (2 * n) / (2 * n - 2)).log()


def naive(a: Tensor, b: Tensor, labels: None, teacher: list[Tensor], name: str = "student", t: float = 2.0):
    z = torch.stack([a, b])
    positive, negative = naive_terms(torch.stack(teacher), z, z, t, name)
    return positive + 0.1 * negative


def plain(**options) -> BECLR:
    """The loss alone; batch norm would see other batches on several processes."""
    return BECLR(num_neighbours=0, predictor=nn.Identity(), **options)


def linear() -> BECLR:
    torch.manual_seed(0)
    return BECLR(6, num_neighbours=0, predictor=nn.Linear(6, 6))


def enhanced(**options) -> BECLR:
    memory = {"num_clusters": 3, "memory_size": 40, "memory_start_epoch": 0}
    return BECLR(num_neighbours=2, predictor=nn.Identity(), **memory | options)


Case = partial(ObjectiveCase, teacher=True, sized=True)
CASES = [
    Case("BECLR-plain", plain, naive),
    Case("BECLR-mixed", partial(plain, negatives="mixed"), partial(naive, name="mixed")),
    # No gradient goes through the teacher's rows, so none is lost with that of gathering.
    Case("BECLR-teacher", partial(plain, negatives="teacher"), partial(naive, name="teacher"), gathers=False),
    Case("BECLR-cold", partial(plain, temperature=0.05), partial(naive, t=0.05)),
    Case("BECLR-enhanced", enhanced, labels=True),
    Case("BECLR-enhanced-mixed", partial(enhanced, negatives="mixed", metric="cosine")),
    Case("BECLR-enhanced-released", partial(enhanced, variant="released", epsilon=1e-5)),
    Case("BECLR-momentum", partial(enhanced, memory_momentum=0.5, memory_size=60, num_clusters=4)),
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conformance(case: ObjectiveCase, check: str):
    CHECKS[check](case)


def default_predictor() -> BECLR:
    torch.manual_seed(0)
    return BECLR(num_neighbours=2, num_clusters=3, memory_size=40, memory_start_epoch=0)


@pytest.mark.parametrize("check", ["gradients", "permutation", "small_batches", "resume", "streaming"])
def test_the_default_predictor_conforms_where_its_batch_norm_can(check):
    CHECKS[check](Case("BECLR", default_predictor))


@pytest.mark.parametrize("check", ["gradients", "resume"])
def test_the_predictor_is_trained(check):
    case = Case("BECLR-linear", linear)
    if check == "gradients":  # the suite calls with width 4
        torch.manual_seed(0)
        case = Case("BECLR-linear", lambda: BECLR(4, num_neighbours=0, predictor=nn.Linear(4, 4)))
    CHECKS[check](case)


@pytest.mark.parametrize("name", ["student", "mixed", "teacher"])
def test_the_loss_of_enhanced_batches_is_that_of_loops(name):
    torch.manual_seed(0)
    live = [torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    found = Batches(*(torch.randn(2, 4, 3, 5, dtype=torch.float64) for _ in range(3)))
    joined = [torch.cat([unit(x), f.flatten(1, 2)], 1) for x, f in zip(live, found, strict=True)]
    positive, negative = naive_terms(*joined, 2.0, name)
    ours = beclr(*live, found, negatives=name)
    torch.testing.assert_close(ours.positive, positive, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.negative, negative, rtol=1e-12, atol=1e-14)
    options = {"allow_unused": True, "materialize_grads": True}
    expected = torch.autograd.grad(positive + 0.1 * negative, live, **options)
    for a, b in zip(torch.autograd.grad(ours.loss, live, **options), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda p, z: beclr(live[0], p, z, found, negatives=name).loss, live[1:])


def naive_memory(steps: list[Tensor], size: int, k: int, clusters: int) -> tuple[list, list]:
    """Loops over samples: after the first step, which fills the memory, labels and neighbours of each."""
    bank = steps[0].clone()
    labels, prototypes = kmeans(unit(bank), clusters)
    position, history, found = 0, [], []
    for batch in steps[1:]:
        near = torch.tensor([[-(unit(z) - unit(c)).norm() / 0.05 for c in prototypes] for z in batch]).exp()
        for _ in range(10):
            near = near / near.sum(0) / clusters
            near = near / near.sum(1, keepdim=True) / len(batch)
        for z, row in zip(batch, near, strict=True):
            bank[position], labels[position] = z, row.argmax()
            position = (position + 1) % size
        for c in range(clusters):
            if (labels == c).any():
                prototypes[c] = bank[labels == c].mean(0)
        history.append(labels.clone())
        picks = []
        for z in batch:
            own = max(range(clusters), key=lambda c: float(unit(z) @ unit(prototypes[c])))
            members = [i for i in range(size) if labels[i] == own]
            members = members if len(members) >= k else list(range(size))
            picks.append(sorted(members, key=lambda i: -float(unit(z) @ unit(bank[i])))[:k])
        found.append(picks)
    return history, found


def test_memory_is_that_of_loops_over_samples():
    torch.manual_seed(0)
    size, k, clusters, dim = 30, 3, 6, 4
    steps = [torch.randn(size, dim, dtype=torch.float64)]
    steps += [torch.randn(8, dim, dtype=torch.float64) for _ in range(9)]  # more than two times around
    memory = ClusteredMemory(size, clusters).double()
    memory.setup(dim)
    memory.update(steps[0])
    expected_labels, expected_found = naive_memory([x.clone() for x in steps], size, k, clusters)
    fallbacks = 0
    for batch, labels, found in zip(steps[1:], expected_labels, expected_found, strict=True):
        memory.update(batch)
        assert torch.equal(memory.labels, labels)
        ours = memory.nearest(batch.view(2, 4, dim), k)
        assert ours.flatten(0, 1).tolist() == found
        fallbacks += sum(len(set(memory.labels[row].tolist())) > 1 for row in ours.flatten(0, 1))
    assert fallbacks  # control: some cluster had fewer than k rows


def test_rows_can_be_assigned_by_their_distance_as_they_are():
    """A long row is near a long prototype, though its direction is nearer to another's."""
    memory = ClusteredMemory(4, 2, "distance")
    memory.setup(2)
    memory.prototypes = torch.tensor([[1.0, 0.0], [0.0, 9.0]])
    batch = torch.tensor([[0.4, 0.6], [5.0, 4.0]])
    assert torch.equal(
        memory.assign(batch), assignment_plan(-torch.cdist(batch, memory.prototypes), 0.05, 10)
    )
    assert memory.assign(batch).argmax(1).tolist() == [0, 1]
    memory.metric = "euclidean"
    assert memory.assign(batch).argmax(1).tolist() == [1, 0]


# ---------------------------------------------------------------- clusters


@pytest.mark.parametrize("epsilon", [1.0, 0.05])
def test_assignment_is_sinkhorn_in_loops(epsilon):
    scores = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plan = (scores / epsilon).exp()
    for _ in range(10):
        for c in range(5):
            plan[:, c] /= plan[:, c].sum() * 5
        for r in range(12):
            plan[r] /= plan[r].sum() * 12
    torch.testing.assert_close(assignment_plan(scores, epsilon), 12 * plan, rtol=1e-9, atol=1e-12)


def test_assignment_is_exact_in_float32_up_to_where_it_turns_to_logarithms():
    scores = -2 * torch.rand(64, 20, generator=torch.Generator().manual_seed(0))
    scores[0, 0], scores[1, 1] = 0, -2
    for epsilon in (2 / 59.9, 2 / 60.1):
        exact = scores.double() / epsilon
        for _ in range(10):
            exact = exact - exact.logsumexp(0)
            exact = exact - exact.logsumexp(1, keepdim=True)
        plan = assignment_plan(scores, epsilon)
        torch.testing.assert_close(plan.double(), exact.exp(), rtol=1e-4, atol=1e-7)


def test_assignment_takes_any_epsilon_and_refuses_nan():
    scores = torch.tensor([[0.0, 1.0], [0.2, 1.0]])
    plan = assignment_plan(scores, 1e-6)
    assert plan.isfinite().all()
    assert plan.argmax(1).tolist() == [1, 0]  # columns of equal mass
    with pytest.raises(FloatingPointError, match="scores are not finite"):
        assignment_plan(torch.tensor([[math.nan, 1.0]]), 0.05)


def test_kmeans_finds_clusters_and_is_the_same_every_time():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(60) % 6
    rows = 5 * torch.eye(6)[truth] + 0.1 * torch.randn(60, 6, generator=generator)
    labels, centres = kmeans(rows, 6)
    assert len(set(zip(labels.tolist(), truth.tolist(), strict=True))) == 6
    torch.testing.assert_close(centres, cluster_means(rows, labels, centres))
    torch.manual_seed(1)
    again, _ = kmeans(rows, 6)
    assert torch.equal(labels, again)
    same, _ = kmeans(torch.ones(5, 2), 3)  # fewer distinct rows than clusters
    assert len(same.unique()) == 1
    with pytest.raises(ValueError, match="num_clusters is 6, but there are 5 rows"):
        kmeans(torch.ones(5, 2), 6)


def test_an_empty_cluster_keeps_its_prototype():
    previous = torch.full((3, 2), 7.0)
    means = cluster_means(torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([2, 2]), previous)
    assert means.tolist() == [[7.0, 7.0], [7.0, 7.0], [2.0, 1.0]]


def test_nearest_in_ranges_of_many_queries():
    torch.manual_seed(0)
    queries, keys = torch.randn(70, 4), torch.randn(50, 4)
    starts = torch.randint(0, 45, (70,))
    stops = starts + 5 + (torch.rand(70) * (46 - starts)).long()
    found = nearest_in_ranges(queries, keys, starts, stops, 3)
    for query, start, stop, ours in zip(queries, starts, stops, found, strict=True):
        assert torch.equal(ours, (keys[start:stop] @ query).topk(3).indices + start)


# ---------------------------------------------------------------- the memory over time


def steps(objective, seeds, batch=8, dim=4, labels=None, noise=0.1):
    """Steps on samples of four classes; classes by sample unless ``labels`` says otherwise."""
    losses = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        classes = torch.randint(0, 4, (batch,), generator=generator)
        views = [torch.eye(4)[classes] + noise * torch.randn(batch, 4, generator=generator) for _ in range(4)]
        given = classes if labels == "true" else labels
        losses.append(float(objective(*views[:2], teacher=views[2:], labels=given)))
    return losses


def small(**options) -> BECLR:
    settings = {"num_clusters": 4, "memory_size": 40, "memory_start_epoch": 0, "predictor": nn.Identity()}
    return BECLR(4, num_neighbours=3, **settings | options)


def test_enhancement_begins_with_a_full_memory_and_the_epoch():
    objective, other = small(), plain(dim=4)
    same = [a == b for a, b in zip(steps(objective, range(5)), steps(other, range(5)), strict=True)]
    assert same == [True, True, False, False, False]  # 16 rows a step: full in the third
    late = small(memory_start_epoch=2)
    for epoch, expected in ((0, [True] * 4), (1, [True] * 4), (2, [False] * 4)):
        late.set_epoch(epoch, 3)
        same = [a == b for a, b in zip(steps(late, range(4)), steps(other, range(4)), strict=True)]
        assert same == expected
    assert [int(memory.clustered_epoch) for memory in late._memories()] == [0, 0, 0]


def test_labels_are_logged_and_change_nothing():
    told, untold = small(num_clusters=8), small(num_clusters=8)
    assert steps(told, range(6), labels="true") == steps(untold, range(6))
    assert told.stats["cluster_purity"] > 0.95
    assert told.stats["neighbour_precision"] > 0.95
    assert untold.stats.keys() == {"positive", "negative", "std"}
    wrong = small(num_clusters=8)
    steps(wrong, range(6), labels=torch.arange(8))
    assert wrong.stats["neighbour_precision"] < 0.5  # its own rows do not count
    assert wrong.stats["cluster_purity"] < 0.7


def test_corrected_clusters_are_purer_than_released_ones():
    found = {}
    for variant in ("corrected", "released"):
        objective = small(num_clusters=8, variant=variant, recluster_epochs=0)
        steps(objective, range(40), labels="true", noise=0.3)
        found[variant] = objective.stats
    assert found["corrected"]["cluster_purity"] > found["released"]["cluster_purity"] + 0.2
    assert found["corrected"]["neighbour_precision"] > found["released"]["neighbour_precision"] + 0.2


def test_evaluation_uses_the_memory_and_leaves_it_alone():
    objective = small()
    steps(objective, range(4))
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    first = steps(objective.eval(), [7])
    assert first == steps(objective, [7]) != steps(plain(dim=4), [7])
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_an_enhanced_loss_has_right_gradients():
    """In evaluation mode neighbours come from a fixed memory, so the loss is smooth between changes of neighbours."""
    objective = small(predictor=nn.Linear(4, 4)).double()
    torch.manual_seed(0)
    for _ in range(4):
        objective(*torch.randn(2, 8, 4).double(), teacher=torch.randn(2, 8, 4).double().unbind())
    z, t = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    z1, z2 = (x.clone().requires_grad_() for x in z)
    objective.eval()
    assert torch.autograd.gradcheck(lambda a, b: objective(a, b, teacher=t.unbind()), (z1, z2))


def test_memories_are_clustered_anew_when_it_is_time_or_one_cluster_is_left():
    memory = ClusteredMemory(12, 3, recluster_epochs=4)
    memory.setup(2)
    torch.manual_seed(0)
    for epoch, expected in ((0, 0), (3, 0), (4, 4), (5, 4), (9, 9)):
        memory.update(torch.randn(12, 2), epoch)
        assert int(memory.clustered_epoch) == expected
    memory.labels.zero_()
    memory.prototypes[1:] = -memory.prototypes[0]
    memory.update(memory.rows[:0], 9)
    assert int(memory.clustered_epoch) == 9  # once an epoch at most
    memory.update(memory.rows[:0], 10)
    assert int(memory.clustered_epoch) == 10
    assert len(memory.labels.unique()) == 3


def test_a_batch_larger_than_the_memory_leaves_its_end():
    memory = ClusteredMemory(5, 2)
    memory.setup(1)
    places = memory.update(torch.arange(12.0)[:, None])
    assert places.tolist() == [-1] * 7 + [2, 3, 4, 0, 1]
    assert sorted(memory.rows.flatten().tolist()) == [7.0, 8.0, 9.0, 10.0, 11.0]
    assert int(memory.position) == 2


def test_memory_stays_float32_in_half_precision():
    memory = ClusteredMemory(4, 2)
    memory.setup(3)
    memory.rows.fill_(1 / 3)
    assert memory.bfloat16().rows.dtype == memory.half().prototypes.dtype == torch.float32
    assert memory.rows[0, 0] == torch.tensor(1 / 3)
    assert memory.double().rows.dtype == torch.float64


def states_on_rank(rank, world_size):
    objective = small()
    for number in range(5):
        views = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(10 * number + rank))
        objective(*views[:2], teacher=views[2:].unbind(), labels=torch.arange(4))
    return objective.state_dict()


def test_memories_are_bitwise_the_same_on_all_processes():
    first, *others = run_on_processes(4, states_on_rank)
    assert first["memories.0.clustered_epoch"] == 0
    assert all(torch.equal(value, other[name]) for other in others for name, value in first.items())


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0"),
        ({"negatives": "SS"}, "negatives is 'SS'; give one of 'student', 'mixed', 'teacher'"),
        ({"num_neighbours": -1}, "num_neighbours is -1"),
        ({"num_neighbours": 40}, "num_neighbours is 40, but a memory has 40 rows"),
        ({"num_clusters": 41}, "num_clusters is 41 and size is 40"),
        ({"epsilon": 0.0}, "epsilon is 0"),
        ({"memory_momentum": 1.0}, "momentum is 1"),
        ({"metric": "dot"}, "metric is 'dot'"),
        ({"variant": "new"}, "variant is 'new'"),
        ({"dim": 0}, "dim is 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        BECLR(**{"dim": 4, "num_clusters": 4, "memory_size": 40} | options)


def test_bad_inputs_are_named():
    z = torch.randn(2, 5, 4)
    objective = small()
    with pytest.raises(ValueError, match="got 2 views and 0 of the teacher"):
        objective(*z)
    with pytest.raises(ValueError, match="got 1 views"):
        objective(z[0], teacher=z.unbind())
    with pytest.raises(ValueError, match=r"view 2 is \(4, 4\)"):
        objective(*z, teacher=z[:, 1:].unbind())
    with pytest.raises(ValueError, match=r"6 wide, and it was built for width 4"):
        objective(*torch.randn(2, 5, 6), teacher=torch.randn(2, 5, 6).unbind())
    with pytest.raises(ValueError, match=r"call setup\(num_samples, dim"):
        BECLR()(*z, teacher=z.unbind())
    with pytest.raises(ValueError, match=r"memory_start_epoch is 60 .* call set_epoch"):
        small(memory_start_epoch=60)(*z, teacher=z.unbind())
    with pytest.raises(ValueError, match="1 rows in each view, so there are no negatives"):
        plain(dim=4)(*z[:, :1], teacher=z[:, :1].unbind())
    with pytest.raises(ValueError, match="give all three one shape"):
        beclr(z, z, z[:, 1:])
    with pytest.raises(ValueError, match=r"give each of the three \(2, 5, k, 4\)"):
        beclr(z, z, z, Batches(z, z, z))


def test_width_comes_from_the_projector_or_the_constructor():
    objective = BECLR(num_clusters=2, num_neighbours=1)
    objective.setup(10, dim=8)
    assert objective.predictor.layers[0].out_features == 2
    assert objective._memories()[0].rows.shape == (80, 8)
    objective.setup(10, dim=8)
    with pytest.raises(ValueError, match="dim is 8, but the projector's is 9"):
        objective.setup(10, dim=9)
    with pytest.raises(ValueError, match="projector does not tell the width"):
        BECLR().setup(10)
    BECLR(8, num_clusters=2).setup(10)


def test_nan_is_named_and_stays_out_of_the_memories():
    objective = small()
    steps(objective, range(4))
    before = pickle.dumps(objective.state_dict())
    z = torch.randn(2, 5, 4)
    t = z.clone()
    t[1, 3, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"sample 3 of the global batch has targets .*\(1 of 15"):
        objective(*z, teacher=t.unbind())
    assert pickle.dumps(objective.state_dict()) == before
    with pytest.raises(FloatingPointError, match="not finite"):
        ClusteredMemory.update(objective._memories()[0], t[1])
    with pytest.raises(FloatingPointError, match="BECLR: the loss is nan"):
        plain(dim=4)(*t, teacher=z.unbind())


def test_warns_of_a_memory_that_starts_after_the_end():
    objective = small(memory_start_epoch=60)
    with pytest.warns(UserWarning, match="memory_start_epoch is 60, but the run has 30 epochs"):
        objective.set_epoch(0, 30)
    objective.set_epoch(0, 100)
    plain().set_epoch(0, 1)
