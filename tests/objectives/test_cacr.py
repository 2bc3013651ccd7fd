from functools import partial
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive.functional import cacr
from contrastive.objectives import CACR, Objective
from contrastive.testing import CHECKS, ObjectiveCase

# ------------------------------------------------------------------ official outputs


def official_options(meta) -> dict:
    h = meta["hyperparameters"]
    return {
        "positive_temperature": h["tau_pos"],
        "negative_temperature": h["tau_neg"],
        "attraction_weight": h["alpha"],
        "repulsion_weight": h["beta"],
    }


def check_terms(objective, data, name, rtol=1e-8):
    """Attraction and repulsion, each by itself."""
    objective(*data["in_z"])
    found = torch.stack([objective.stats["attraction"], objective.stats["repulsion"]])
    torch.testing.assert_close(found, data[name] if isinstance(name, str) else name, rtol=rtol, atol=1e-10)


@pytest.mark.parametrize("name", ["euclid-k1", "euclid-k4", "rbf-k2"])
def test_official_losses_in_the_batch(reference, matches, name):
    data, meta = reference(f"cacr-{name}")
    options = official_options(meta)
    if "t" in meta["hyperparameters"]:
        options |= {"distance": "rbf", "rbf_scale": meta["hyperparameters"]["t"]}
    matches(meta, lambda z: cacr(*z, **options), (data["in_z"],), data["out_loss"], (data["grad_z"],))
    terms = torch.stack([data["out_loss_attraction"], data["out_loss_repulsion"]])
    check_terms(CACR(**options), data, terms)


ABLATIONS = {
    "full": {},
    "without_w1": {"positive_temperature": 0.0},
    "without_w2": {"negative_temperature": 0.0},
    "none": {"positive_temperature": 0.0, "negative_temperature": 0.0},
    "debiased": {"debias": 0.1, "variant": "released"},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_official_ablations(reference, matches, name):
    data, meta = reference("cacr-ablation")
    options = official_options(meta) | ABLATIONS[name]
    losses = data[f"out_losses_{name}"]
    matches(meta, lambda z: cacr(*z, **options), (data["in_z"],), losses.sum(), (data[f"grad_{name}"],))
    check_terms(CACR(**options), data, losses)


@pytest.mark.parametrize(
    ("name", "options"), [("official", {"variant": "released"}), ("fixed", {"weight_grad": "batch"})]
)
def test_official_queue(reference, matches, name, options):
    data, meta = reference("cacr-mocov2")
    objective = CACR(**official_options(meta), **options, queue_size=24).double()
    objective.queue.rows = data["in_queue0"].clone()
    for step in range(2):
        queries, keys, queue = data["in_query"][step], data["in_key"][step], objective.queue.rows.clone()

        def loss(q, keys=keys, queue=queue):
            cast = [k.to(q.dtype) for k in keys]
            return cacr(*q, keys=cast, queue=queue, **official_options(meta), **options)

        losses, gradient = data[f"out_losses_{name}"][step], data[f"grad_query_{name}"][step]
        matches(meta, loss, (queries,), losses.sum(), (gradient,))
        value = objective(*queries, keys=tuple(keys))
        torch.testing.assert_close(value, losses.sum(), rtol=1e-8, atol=1e-10)
        terms = torch.stack([objective.stats["attraction"], objective.stats["repulsion"]])
        torch.testing.assert_close(terms, losses, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(objective.queue.rows, data["state_queue"][step], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("distance", ["rbf", "euclidean"])
def test_official_momentum_keys(reference, matches, distance):
    data, meta = reference("cacr-mocov3")
    temperature = meta["hyperparameters"]["T"]

    def loss(queries):
        return cacr(
            *queries,
            keys=tuple(data["in_key"].to(queries.dtype)),
            positive_temperature=1 / temperature,
            negative_temperature=1 / (2 * temperature),
            distance=distance,
            variant="released",
        )

    expected, gradient = data[f"out_loss_{distance}"], data[f"grad_query_{distance}"]
    matches(meta, loss, (data["in_query"],), expected, (gradient,))


# ------------------------------------------------------------------ twins, one row at a time


def distance(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().sum()


def expected_cost(distances: list[Tensor], temperature: float, *, full: bool, cost=lambda d: d) -> Tensor:
    d = torch.stack(distances)
    weights = (temperature * (d if full else d.detach())).softmax(0)
    return (weights * cost(d)).sum()


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def others(i: int, batch: int, labels: Tensor | None) -> list[int]:
    return [j for j in range(batch) if j != i and (labels is None or labels[j] != labels[i])]


def naive_in_batch(
    *views: Tensor,
    labels: Tensor | None,
    t_pos: float = 1.0,
    t_neg: float = 2.0,
    alpha: float = 1.0,
    beta: float = 1.0,
    rbf: float | None = None,
    debias: float = 0.0,
    full: bool = True,
) -> Tensor:
    views, count, batch = [unit(v) for v in views], len(views), len(views[0])
    attraction = torch.zeros((), dtype=torch.float64)
    for v in range(count):
        for i in range(batch):
            d = [distance(views[v][i], views[w][i]) for w in range(count) if w != v]
            attraction = attraction + expected_cost(d, t_pos, full=full) / (count * batch)
    repulsions = []
    for v, w in combinations(range(count), 2):
        costs = []
        for i in range(batch):
            d = [distance(views[v][i], views[w][j]) for j in others(i, batch, labels)]
            if not d:
                costs.append(torch.zeros((), dtype=torch.float64))
            elif rbf is None:
                costs.append(-expected_cost(d, -t_neg, full=full))
            else:
                costs.append(expected_cost(d, -t_neg, full=full, cost=lambda d: (-rbf * d).exp()))
        mean = torch.stack(costs).mean()
        repulsions.append(beta * (mean if rbf is None else mean.log()))
        if debias:
            positive = torch.stack([distance(a, b) for a, b in zip(views[v], views[w], strict=True)]).mean()
            repulsions[-1] = (repulsions[-1] + debias * positive) / (1 - debias)
    return alpha * attraction + torch.stack(repulsions).mean()


def naive_keys(queries, keys, labels, *, t_pos, t_neg, euclidean, full=False):
    queries, keys = [unit(q) for q in queries], [unit(k) for k in keys]
    batch, total = len(keys[0]), torch.zeros((), dtype=torch.float64)
    single = len(queries) == len(keys) == 1
    for w, key in enumerate(keys):
        of_key = [v for v in range(len(queries)) if v != w or single]
        for i in range(batch):
            d = torch.stack([distance(queries[v][i], key[i]) for v in of_key])
            shares = (t_pos * (d if full else d.detach())).softmax(0)
            for share, v, positive in zip(shares, of_key, d, strict=True):
                negatives = [distance(queries[v][i], key[j]) for j in others(i, batch, labels)]
                if euclidean:
                    repulsion = -expected_cost(negatives, -t_neg, full=full) if negatives else 0.0
                else:
                    repulsion = (-t_neg * torch.stack([positive, *negatives])).logsumexp(0) / t_neg
                total = total + share * (positive + repulsion) / (batch * len(keys))
    return total


def naive_queue(queries, keys, labels, *, t_pos=1.0, t_neg=2.0, size=16, in_batch=True, full=False):
    random = torch.randn(size, keys[0].shape[1], generator=torch.Generator().manual_seed(0))
    queue = torch.nn.functional.normalize(random, dim=1).double()
    queries, keys = [unit(q) for q in queries], [unit(k) for k in keys]
    batch, total = len(keys[0]), torch.zeros((), dtype=torch.float64)
    single = len(queries) == len(keys) == 1
    for v, query in enumerate(queries):
        for i in range(batch):
            positives = [distance(query[i], key[i]) for w, key in enumerate(keys) if w != v or single]
            negatives = [2 - 2 * query[i] @ row for row in queue]  # stored rows are of unit length in float32
            if in_batch:
                negatives += [distance(query[i], query[j]) for j in others(i, batch, labels)]
            attraction = expected_cost(positives, t_pos, full=full)
            repulsion = expected_cost(negatives, -t_neg, full=full)
            total = total + (attraction - repulsion) / (batch * len(queries))
    return total


class Halves(Objective):
    """CACR with momentum keys, of the first half of its views as queries and the other as keys."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.objective = CACR(**options)

    def forward(self, *views: Tensor, index: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        half = (len(views) + 1) // 2
        return self.objective(*views[:half], keys=views[half:], labels=labels)


def halves(naive, *views: Tensor, labels: Tensor | None, **options) -> Tensor:
    half = (len(views) + 1) // 2
    return naive(views[:half], views[half:], labels, **options)


def keys_case(
    name: str, num_views: int, *, labels: bool = False, smooth: bool = True, **options
) -> ObjectiveCase:
    given = {
        "t_pos": options["positive_temperature"],
        "t_neg": options["negative_temperature"],
        "euclidean": options["distance"] == "euclidean",
        "full": options.get("weight_grad") == "full",
    }
    factory = partial(Halves, momentum_keys=True, **options)
    twin = partial(halves, naive_keys, **given)
    positions = options["distance"] == "euclidean"  # the other form has the positive among its candidates
    return ObjectiveCase(
        f"CACR-keys-{name}", factory, twin, num_views, labels, positions=positions, smooth=smooth
    )


EUCLIDEAN = {"positive_temperature": 1.5, "negative_temperature": 0.8, "distance": "euclidean"}
RBF = {"positive_temperature": 1.5, "negative_temperature": 1.2, "distance": "rbf"}
QUEUE = {"queue_size": 16, "weight_grad": "full"}

CASES = [
    ObjectiveCase("CACR", CACR, naive_in_batch),
    ObjectiveCase(
        "CACR-4-views",
        partial(CACR, 0.7, 0.9, attraction_weight=1.5, repulsion_weight=3.0),
        partial(naive_in_batch, t_pos=0.7, t_neg=0.9, alpha=1.5, beta=3.0),
        num_views=4,
    ),
    ObjectiveCase(
        "CACR-rbf",
        partial(CACR, distance="rbf", repulsion_weight=2.0),
        partial(naive_in_batch, rbf=2.0, beta=2.0),
        num_views=3,
    ),
    ObjectiveCase("CACR-debiased", partial(CACR, debias=0.1), partial(naive_in_batch, debias=0.1)),
    ObjectiveCase("CACR-duplicates", CACR, naive_in_batch, labels=True, positions=False),
    ObjectiveCase(
        "CACR-fixed-weights",
        partial(CACR, weight_grad="none"),
        partial(naive_in_batch, full=False),
        num_views=3,
        smooth=False,
    ),
    ObjectiveCase("CACR-queue", partial(CACR, queue_size=16), partial(halves, naive_queue), smooth=False),
    ObjectiveCase(
        "CACR-queue-full",
        partial(Halves, **QUEUE),
        partial(halves, naive_queue, full=True),
        num_views=6,
    ),
    ObjectiveCase(
        "CACR-queue-duplicates",
        partial(CACR, **QUEUE),
        partial(halves, naive_queue, full=True),
        labels=True,
        positions=False,
    ),
    ObjectiveCase(
        "CACR-queue-only",
        partial(CACR, in_batch=False, **QUEUE),
        partial(halves, naive_queue, full=True, in_batch=False),
        gathers=False,
    ),
    keys_case("euclidean", 5, smooth=False, **EUCLIDEAN),
    keys_case("euclidean-full", 2, weight_grad="full", **EUCLIDEAN),
    keys_case("rbf", 2, **RBF),
    keys_case("rbf-full", 5, weight_grad="full", labels=True, **RBF),
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conformance(case: ObjectiveCase, check: str):
    CHECKS[check](case)


# ------------------------------------------------------------------ properties and edge cases


def views(count: int, batch: int = 8, dim: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return list(torch.randn(count, batch, dim, generator=generator, dtype=torch.float64).requires_grad_())


def test_hand_computed():
    """Two samples at right angles, the second view of the first turned by 60 degrees."""
    z1 = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    z2 = torch.tensor([[0.5, 0.75**0.5], [0.0, 2.0]], dtype=torch.float64)
    objective = CACR(attraction_weight=2.0)
    loss = objective(z1, z2)
    assert objective.stats["attraction"].item() == pytest.approx(2 * (1 + 0) / 2)
    assert objective.stats["repulsion"].item() == pytest.approx(-(2 + (2 - 3**0.5)) / 2)
    assert loss.item() == pytest.approx(1 - (4 - 3**0.5) / 2)


def test_terms_stay_within_their_bounds():
    objective = CACR(attraction_weight=0.5, repulsion_weight=3.0)
    for spread in (0.0, 1e-4, 1.0, 100.0):
        base, *noise = views(4)
        objective(*((base + spread * x).float() for x in noise))
        assert 0 <= objective.stats["attraction"] <= 4 * 0.5
        assert -4 * 3.0 <= objective.stats["repulsion"] <= 0


def test_identical_views_attract_nothing_and_have_finite_gradients():
    z = torch.randn(6, 5, requires_grad=True)
    objective = CACR(repulsion_weight=0.0)
    loss = objective(z, z, z)
    loss.backward()
    assert 0 <= loss.item() < 1e-6
    torch.testing.assert_close(z.grad, torch.zeros_like(z), atol=1e-6, rtol=0)


def test_identical_samples_have_finite_gradients():
    z = torch.ones(6, 5, requires_grad=True)
    loss = CACR()(z, z)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert z.grad.isfinite().all()


def test_a_positive_temperature_pulls_the_farthest_and_a_negative_one_pushes_the_nearest():
    z = views(3)
    far, near = CACR(positive_temperature=1e4), CACR(negative_temperature=1e4)
    far(*z), near(*z)
    unit_views = [unit(x.detach()) for x in z]
    distances = torch.stack([torch.cdist(a, b).square() for a, b in combinations(unit_views, 2)])
    own = distances.diagonal(dim1=1, dim2=2)  # of views (0, 1), (0, 2), (1, 2)
    farthest = torch.stack([own[[0, 1]], own[[0, 2]], own[[1, 2]]]).amax(1).mean()
    assert far.stats["attraction"].item() == pytest.approx(farthest.item(), rel=1e-3)
    nearest = distances.masked_fill(torch.eye(8, dtype=torch.bool), torch.inf).amin(2).mean()
    assert near.stats["repulsion"].item() == pytest.approx(-nearest.item(), rel=1e-3)


def test_weights_are_as_published(reference):
    """With fixed weights, the gradient of a distance is its weight."""
    data, meta = reference("cacr-euclid-k4")
    z = data["in_z"][-2:].clone().requires_grad_()
    options = official_options(meta) | {"attraction_weight": 0.0, "weight_grad": "none"}
    (gradient,) = torch.autograd.grad(cacr(*z, **options), z)
    rows = F.normalize(z, dim=-1)
    distances = (rows[0, :, None] - rows[1]).square().sum(-1)[~torch.eye(12, dtype=torch.bool)].view(12, 11)
    repulsion = -(data["out_weights_neg_last"] * distances).sum(1).mean()
    (expected,) = torch.autograd.grad(options["repulsion_weight"] * repulsion, z)
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-12)


def test_one_positive_leaves_the_positive_temperature_without_effect():
    z = views(2)
    losses = {CACR(positive_temperature=t)(*z).item() for t in (0.0, 1.0, 50.0)}
    assert len(losses) == 1


def test_rbf_with_momentum_keys_is_info_nce():
    """Half of MoCo-v3's loss: for two views, the mean over both directions of 2T times cross-entropy."""
    temperature, (q1, q2, k1, k2) = 0.2, views(4)
    objective = CACR(distance="rbf", momentum_keys=True, negative_temperature=1 / (2 * temperature))
    expected = [
        2 * temperature * F.cross_entropy(unit(q) @ unit(k).T / temperature, torch.arange(8))
        for q, k in ((q1, k2), (q2, k1))
    ]
    assert objective(q1, q2, keys=(k1, k2)).item() == pytest.approx(sum(expected).item() / 2)
    assert objective(q1, k2).item() == pytest.approx(expected[0].item())


def test_debiasing_attracts_positives_unless_released():
    z = views(2)
    plain, corrected, released = (
        CACR(debias=debias, variant=variant)
        for debias, variant in ((0.0, "corrected"), (0.2, "corrected"), (0.2, "released"))
    )
    for objective in (plain, corrected, released):
        objective(*z)
    attraction, repulsion = plain.stats["attraction"], plain.stats["repulsion"]
    assert corrected.stats["repulsion"].item() == pytest.approx(((repulsion + 0.2 * attraction) / 0.8).item())
    assert released.stats["repulsion"].item() == pytest.approx(((repulsion - 0.2 * attraction) / 0.8).item())


def test_released_momentum_keys_sum_halves():
    z = views(2)
    corrected, released = (
        CACR(momentum_keys=True, variant=variant)(*z) for variant in ("corrected", "released")
    )
    assert released.item() == pytest.approx(corrected.item() * 8 / 2)


@pytest.mark.parametrize("options", [{}, {"distance": "rbf"}, {"momentum_keys": True}])
def test_a_single_sample_attracts_and_says_that_nothing_repels(options):
    z = views(2, batch=1)
    objective = CACR(**options)
    with pytest.warns(UserWarning, match="nothing is repelled"):
        loss = objective(*z)
    assert loss == objective.stats["attraction"] > 0
    assert objective.stats["repulsion"] == 0


@pytest.mark.parametrize("options", [{}, {"distance": "rbf"}, {"queue_size": 4}])
def test_where_all_are_duplicates_nothing_in_the_batch_repels(options):
    objective = CACR(**options)
    loss = objective(*views(2), labels=torch.zeros(8, dtype=torch.int64))
    loss.backward()
    if "queue_size" not in options:
        assert objective.stats["repulsion"] == 0


def test_the_queue_forgets_its_oldest_keys_and_rests_in_evaluation():
    objective = CACR(queue_size=12).double()
    first, second = views(2), views(4)
    objective(*first, labels=torch.arange(8))
    objective(*second[:2], labels=torch.arange(8, 16))
    rows = torch.cat([unit(second[1])[4:], unit(first[1])[4:], unit(second[1])[:4]])
    torch.testing.assert_close(objective.queue.rows, rows.detach())
    assert objective.queue.ids.tolist() == [12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11]
    objective.eval()(*first)
    torch.testing.assert_close(objective.queue.rows, rows.detach())


def test_negatives_of_an_anchor_are_told():
    assert CACR().negatives_per_anchor(64, 5) == 63
    assert CACR(queue_size=100).negatives_per_anchor(64, 2) == 163
    assert CACR(queue_size=100, in_batch=False).negatives_per_anchor(64, 2) == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negative_temperature": -1.0}, "negative_temperature is -1.0"),
        ({"attraction_weight": float("nan")}, "attraction_weight is nan"),
        ({"distance": "cosine"}, "distance is 'cosine'"),
        ({"rbf_scale": 21.0}, "rbf_scale is 21.0"),
        ({"debias": 1.0}, r"debias is 1\.0"),
        ({"debias": 0.1, "queue_size": 8}, r"debias is 0\.1.*momentum keys"),
        ({"debias": 0.1, "distance": "rbf"}, r"debias is 0\.1"),
        ({"weight_grad": "batch"}, "needs a queue"),
        ({"weight_grad": "some"}, "weight_grad is 'some'"),
        ({"variant": "paper"}, "variant is 'paper'"),
        ({"queue_size": -1}, "queue_size=-1"),
        ({"queue_size": 8, "momentum_keys": True}, "queue_size=8 with momentum_keys=True"),
        ({"distance": "rbf", "momentum_keys": True, "negative_temperature": 0.0}, "divides by it"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CACR(**options)


@pytest.mark.parametrize(
    ("options", "count", "keys", "message"),
    [
        ({}, 1, None, "got 1 views"),
        ({}, 2, 2, "neither queue_size nor momentum_keys"),
        ({"queue_size": 8}, 3, None, "got 3 views and no keys"),
        ({"queue_size": 8}, 2, 1, "got 2 queries and 1 keys"),
        ({"momentum_keys": True}, 1, 2, "got 1 queries and 2 keys"),
    ],
)
def test_views_that_do_not_fit_are_refused(options, count, keys, message):
    with pytest.raises(ValueError, match=message):
        CACR(**options)(*views(count), keys=None if keys is None else views(keys))


def test_ids_need_those_of_the_queue():
    query, key = views(2)
    with pytest.raises(ValueError, match="give queue_ids too"):
        cacr(query, keys=(key,), queue=F.normalize(query.detach(), dim=1), ids=torch.arange(8))


class Noise(nn.Module):
    def forward(self, inputs: Tensor, generator: torch.Generator) -> list[Tensor]:
        return [inputs + 0.1 * torch.randn(inputs.shape, generator=generator) for _ in range(2)]


@pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize(
    ("options", "symmetric"),
    [({"queue_size": 24}, False), ({"momentum_keys": True, "distance": "rbf"}, True)],
    ids=["queue", "keys"],
)
def test_it_trains_with_a_momentum_encoder(options, symmetric):
    # Imported here, because the processes of the conformance suite import this file.
    from lightning.pytorch import Trainer

    from contrastive import MLPEncoder, Pretrain, ProjectionHead, TensorData

    data = TensorData(torch.randn(32, 5), batch_size=8, validation_fraction=0)
    objective = CACR(**options)
    module = Pretrain(
        MLPEncoder(5, [8]), objective, ProjectionHead(8, 4), Noise(), momentum=0.9, symmetric=symmetric
    )
    trainer = Trainer(
        max_steps=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    before = [p.clone() for p in module.encoder.parameters()]
    trainer.fit(module, datamodule=data)
    assert not any(torch.equal(a, b) for a, b in zip(before, module.encoder.parameters(), strict=True))
    if objective.queue is not None:
        assert objective.queue.position == 5 * 8 % 24
