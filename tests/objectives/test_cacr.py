from functools import partial
from itertools import combinations

import pytest
import torch
from torch import Tensor

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
    queue = torch.nn.functional.normalize(random, dim=1).double()  # stored in float32
    queries, keys = [unit(q) for q in queries], [unit(k) for k in keys]
    batch, total = len(keys[0]), torch.zeros((), dtype=torch.float64)
    single = len(queries) == len(keys) == 1
    for v, query in enumerate(queries):
        for i in range(batch):
            positives = [distance(query[i], key[i]) for w, key in enumerate(keys) if w != v or single]
            negatives = [distance(query[i], row) for row in queue]
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
    return ObjectiveCase(
        f"CACR-keys-{name}", factory, twin, num_views=num_views, labels=labels, smooth=smooth
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
