import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive import CoreTuning, CrossEntropy
from contrastive.functional import focal_contrast
from contrastive.objectives import Objective
from contrastive.objectives.mixing import (
    Draws,
    Mixing,
    draw,
    hardest_pairs,
    mix,
    mix_labels,
    row_ids,
)
from contrastive.similarity import Gathered, gather
from contrastive.testing import CHECKS, ObjectiveCase

BATCHES = ("signed", "nonnegative", "eta10-alpha02", "singletons")
HEAD = {"0.weight": "proj_input.weight", "0.bias": "proj_input.bias"}
HEAD |= {"2.weight": "proj_output.weight", "2.bias": "proj_output.bias"}


def whole(x):
    """The batch of a single process."""
    return Gathered(x, x, 0)


def sized(dim, num_classes, seed=0, **options):
    """An objective in float64 with weights that depend on nothing but the arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = CoreTuning(**options)
        objective.setup(0, num_classes=num_classes, dim=dim)
    return objective.double()


# ---------------------------------------------------------------------- as released


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("linear", [True, False], ids=["linear", "any"])
def test_official_batches(reference, name, dtype, linear):
    data, meta = reference(f"core_tuning-{name}")
    given = meta["hyperparameters"]
    width, classes = data["features"].shape[1], given["num_classes"]
    objective = CoreTuning(
        given["eta"],
        given["temperature"],
        given["mixup_alpha"],
        given["lam_negative_min"],
        given["contrast_dim"],
        variant="released",
        dim=width,
    ).to(dtype)
    objective.head.load_state_dict({ours: data[theirs] for ours, theirs in HEAD.items()})
    classifier = nn.Linear(width, classes, bias=False, dtype=dtype)
    classifier.weight.data.copy_(data["W_classifier"])
    features = data["features"].to(dtype).requires_grad_()
    draws = Draws(data["order"], data["lam_negative_raw"].clamp(min=0.8), data["lam_positive"])
    loss = objective(
        features,
        data["targets"],
        classifier if linear else lambda rows: classifier(rows),
        draws=draws,
    )
    loss.backward()

    exact = dtype == torch.float64
    tolerance = meta["tolerance"]["loss_rtol" if exact else "float32_loss_rtol"]
    for ours, official in (
        (loss, "loss"),
        (objective.stats["cross_entropy"], "ce"),
        (objective.stats["contrast"], "contrastive"),
    ):
        assert float(ours.detach()) == pytest.approx(float(data[official]), rel=tolerance), official
    gradients = {"grad_features": features.grad, "grad_W_classifier": classifier.weight.grad}
    gradients |= {f"grad_{theirs}": objective.head.get_parameter(ours).grad for ours, theirs in HEAD.items()}
    for official, ours in gradients.items():
        largest = float(data[official].abs().max())
        allowed = (meta["tolerance"]["grad_rel_to_max"] if exact else 1e-4) * largest
        torch.testing.assert_close(ours.double(), data[official], rtol=0, atol=allowed, msg=official)


@pytest.mark.parametrize("name", BATCHES)
def test_official_mixtures(reference, name):
    data, meta = reference(f"core_tuning-{name}")
    labels, features = whole(data["targets"]), data["features"]
    draws = Draws(data["order"], data["lam_negative_raw"].clamp(min=0.8), data["lam_positive"])
    mixing = Mixing(draws, *hardest_pairs(whole(features), labels, "released"))
    torch.testing.assert_close(mix(features, None, mixing), data["mixed_features"], rtol=1e-12, atol=1e-12)
    first, second, share = mix_labels(labels, mixing)
    one_hot = torch.eye(meta["hyperparameters"]["num_classes"], dtype=torch.float64)
    dense = share[:, None] * one_hot[first] + (1 - share)[:, None] * one_hot[second]
    torch.testing.assert_close(dense, data["mixed_labels"], rtol=1e-12, atol=1e-12)
    ids, _ = row_ids(mix_labels(labels, mixing), labels, "released")
    equal = (data["mixed_labels"][:, None] == data["mixed_labels"]).all(2)
    assert torch.equal(ids[:, None] == ids, equal)


@pytest.mark.parametrize("mode", ["labels", "mask"])
@pytest.mark.parametrize("streamed", [False, True])
def test_official_contrast(reference, monkeypatch, mode, streamed):
    data, meta = reference(f"core_tuning-focal-{mode}")
    if streamed:
        monkeypatch.setattr("contrastive.similarity.rows.DENSE_ENTRIES", 0)
        monkeypatch.setattr("contrastive.similarity.rows.choose_block_size", lambda *_: 3)
    z = data["z"].requires_grad_()
    options = {"temperature": meta["hyperparameters"]["temperature"], "average": "rows", "normalize": False}
    loss = focal_contrast(z, **{mode: data[mode]}, **options)
    assert loss.item() == pytest.approx(data["loss"].item(), rel=1e-10)
    (gradient,) = torch.autograd.grad(loss, z)
    allowed = 1e-8 * float(data["grad_z"].abs().max())
    torch.testing.assert_close(gradient, data["grad_z"], rtol=0, atol=allowed)


# ---------------------------------------------------------------------- against loops, and the conformance suite


def six(view: Tensor) -> Tensor:
    """The first six numbers of each row, zeros where it has fewer."""
    return F.pad(view, (0, 6 - view.shape[1]))


def shares(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the mixtures that depend on the class alone, whatever the order of the samples."""
    return 0.8 + 0.2 * (0.618 * labels % 1), 0.1 + 0.8 * (0.381 * labels % 1)


class Drawn(Objective):
    """Core-tuning whose draws follow from labels and values, with the suite's signature."""

    requires = ("labels",)

    def __init__(self, **options):
        super().__init__()
        self.inner = sized(6, 5, contrast_dim=4, **options).float()

    def forward(self, *views, index=None, labels=None):
        labels = labels % 5
        features = [six(view) for view in views]
        rows, classes = gather(torch.cat(features).detach()), gather(labels.repeat(len(views)))
        partners = torch.zeros_like(classes.local)
        if len(rows.all):
            key = rows.all[:, 0]
            farthest = [key.masked_fill(classes.all == c, -torch.inf).argmax() for c in range(5)]
            partners = torch.stack(farthest)[classes.local]
        return self.inner(*features, labels=labels, draws=Draws(partners, *shares(classes.local)))


def naive(
    *views: Tensor,
    labels: Tensor,
    variant: str = "corrected",
    average: str | None = None,
    focal: bool = True,
    t: float = 0.07,
) -> Tensor:
    """Core-tuning, one row and one pair at a time."""
    inner = sized(6, 5, contrast_dim=4)
    f, labels = torch.cat([six(view) for view in views]), (labels % 5).repeat(len(views))
    unit = F.normalize(f, dim=1).detach()
    y, (a, b) = labels.tolist(), (share.tolist() for share in shares(labels))
    batch = len(y)
    rows, soft, members = [], [], []  # features; label weights; (class or own id, weight) as a positive
    for i in range(batch):
        rows.append(f[i].detach() if variant == "released" else f[i])
        soft.append({y[i]: 1.0})
        members.append((y[i], 1.0))
    if variant == "released" or len(set(y)) > 1:
        for i in range(batch):
            others = [j for j in range(batch) if y[j] != y[i]]
            n = max(others, key=lambda j: float(f[j, 0].detach())) if others else 0
            rows.append((1 - a[i]) * f[i] + a[i] * f[n])
            soft.append({y[i]: 1.0} if y[n] == y[i] else {y[n]: a[i], y[i]: 1 - a[i]})
            members.append((f"mixture {i}", 1.0))
        for i in range(batch):
            cosines = [float(unit[i] @ unit[j]) for j in range(batch)]
            if variant == "released":
                masked = [c * (y[j] != y[i]) for j, c in enumerate(cosines)]
                hn = masked.index(max(masked))
                masked = [c * (y[j] == y[i] and j != i) for j, c in enumerate(cosines)]
                hp = masked.index(min(masked)) or i
            else:
                hn = max((j for j in range(batch) if y[j] != y[i]), key=cosines.__getitem__)
                mates = [j for j in range(batch) if y[j] == y[i] and j != i]
                hp = min(mates, key=cosines.__getitem__) if mates else i
            rows.append(b[i] * f[hp] + (1 - b[i]) * f[hn])
            soft.append({y[hp]: 1.0} if y[hp] == y[hn] else {y[hp]: b[i], y[hn]: 1 - b[i]})
            members.append((y[i], b[i]))
    stacked = torch.stack(rows)
    log_probabilities = inner.classifier(stacked).log_softmax(1)
    entropy = sum(-w * log_probabilities[r, c] for r, label in enumerate(soft) for c, w in label.items())
    z = F.normalize(inner.head(stacked), dim=1)
    if variant == "released":
        members = [(tuple(sorted(label.items())), 1.0) for label in soft]
    losses, mass = torch.zeros((), dtype=torch.float64), 0.0
    for r in range(len(z)):
        mates = [s for s in range(len(z)) if s != r and members[s][0] == members[r][0]]
        if not mates:
            continue
        logits = z @ z[r] / t
        log_p = logits - torch.cat([logits[:r], logits[r + 1 :]]).logsumexp(0)
        terms = [members[s][1] * log_p[s] * ((1 - log_p[s].exp()) if focal else 1) for s in mates]
        by_rows = (average or {"released": "rows"}.get(variant)) == "rows"
        normaliser = len(z) if by_rows else sum(members[s][1] for s in mates)
        losses = losses - members[r][1] * sum(terms) / normaliser
        mass += members[r][1]
    return entropy / len(z) + (losses / mass if mass else 0.0)


def case(name: str, num_views: int = 1, smooth: bool = True, **options) -> ObjectiveCase:
    twin = partial(naive, **options)
    return ObjectiveCase(name, partial(Drawn, **options), twin, num_views, labels=True, smooth=smooth)


CASES = [
    case("corrected"),
    case("2-views", num_views=2),
    case("rows-plain", average="rows", focal=False),
    case("released", variant="released", smooth=False),  # originals are detached
]
# As released, the first sample of the batch is treated unlike the others.
RUNS = [
    (case, check) for case in CASES for check in CHECKS if (case.name, check) != ("released", "permutation")
]


@pytest.mark.filterwarnings("ignore:CoreTuning. the batch has one class")
@pytest.mark.parametrize(("case", "check"), RUNS, ids=[f"{case.name}-{check}" for case, check in RUNS])
def test_conformance(case: ObjectiveCase, check: str):
    CHECKS[check](case)


# ---------------------------------------------------------------------- what is mixed with what


def batch_of(seed=0, count=64, dim=32, classes=10, nonnegative=True):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return features.relu() if nonnegative else features, labels


def test_corrected_mining_finds_the_hardest_pairs_and_the_released_does_not():
    """Features after a ReLU, as those of most networks: no similarity is below the zeros of the released mask."""
    features, labels = batch_of()
    cosine = F.normalize(features, dim=1) @ F.normalize(features, dim=1).T
    mates = (labels[:, None] == labels) & ~torch.eye(64, dtype=torch.bool)
    positives, negatives = hardest_pairs(whole(features), whole(labels))
    assert torch.equal(cosine[range(64), positives], cosine.masked_fill(~mates, 2.0).amin(1))
    same = labels[:, None] == labels
    assert torch.equal(cosine[range(64), negatives], cosine.masked_fill(same, -2.0).amax(1))
    released, also = hardest_pairs(whole(features), whole(labels), "released")
    assert (released == positives).sum() == 0
    assert torch.equal(also, negatives)


def test_a_sample_alone_in_its_class_is_its_own_positive_and_the_first_sample_can_be_one():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    labels = torch.tensor([0, 0, 1, 2])
    assert hardest_pairs(whole(features), whole(labels))[0].tolist() == [1, 0, 2, 3]


def test_partners_are_of_another_class_and_all_of_them_are_drawn():
    torch.manual_seed(0)
    labels = torch.tensor([3, 1, 1, 0, 3, 3])
    drawn = [set() for _ in labels]
    for _ in range(300):
        partners, negative, positive = draw(whole(labels), 1.0, 0.8, "corrected")
        assert negative.min() >= 0.8
        assert 0 <= positive.min() <= positive.max() <= 1
        for sample, partner in enumerate(partners.tolist()):
            drawn[sample].add(partner)
    for sample, partners in enumerate(drawn):
        assert partners == {j for j in range(6) if labels[j] != labels[sample]}
    partners = draw(whole(labels), 1.0, 0.8, "released").partners
    assert sorted(partners.tolist()) == list(range(6))


def test_ids_of_a_hundred_classes_are_exact():
    """A hash of 32 bits finds hundreds of pairs here that are none."""
    torch.manual_seed(0)
    features, labels = batch_of(classes=100)
    for variant in ("released", "corrected"):
        mixing = Mixing(
            draw(whole(labels), 1.0, 0.8, variant), *hardest_pairs(whole(features), whole(labels), variant)
        )
        first, second, share = soft = mix_labels(whole(labels), mixing)
        ids, weights = row_ids(soft, whole(labels), variant)
        one_hot = torch.eye(100)
        dense = share[:, None] * one_hot[first] + (1 - share)[:, None] * one_hot[second]
        equal = (dense[:, None] == dense).all(2)
        if (
            variant == "corrected"
        ):  # equal by chance, as all that were clipped at 0.8: not for that of one class
            block = torch.arange(192) // 64
            equal &= ((block == 0)[:, None] & (block == 0)) | torch.eye(192, dtype=torch.bool)
            anchors = labels.repeat(3).where(block != 1, -1 - torch.arange(192))
            equal |= anchors[:, None] == anchors
            assert torch.equal(weights, share.where(block == 2, torch.ones(())))
        assert torch.equal(ids[:, None] == ids, equal)


def test_pure_mixtures_belong_to_their_class():
    labels = torch.tensor([0, 1])
    draws = Draws(torch.tensor([1, 0]), torch.tensor([1.0, 0.9]), torch.tensor([0.0, 1.0]))
    mixing = Mixing(draws, torch.tensor([0, 1]), torch.tensor([1, 0]))
    ids, weights = row_ids(mix_labels(whole(labels), mixing), whole(labels))
    assert ids.tolist()[:3] == [0, 1, 1]  # all of the partner is the partner
    assert ids.tolist()[3] < 0
    assert ids.tolist()[4:] == [1, 1]  # nothing of the hardest positive is the hardest negative
    assert weights.tolist() == [1] * 6


# ---------------------------------------------------------------------- edges


def loss_of(objective, features, labels, **inputs):
    torch.manual_seed(1)
    return objective(features, labels, objective.classifier, **inputs)


def test_a_batch_of_one_class_is_not_mixed_and_says_so():
    features, _ = batch_of(count=6, dim=4)
    objective = sized(4, 3)
    with pytest.warns(UserWarning, match="one class, so nothing is mixed"):
        loss = loss_of(objective, features, torch.ones(6, dtype=torch.long))
    z = objective.head(features)
    expected = F.cross_entropy(objective.classifier(features), torch.ones(6, dtype=torch.long))
    assert loss.item() == pytest.approx(
        (expected + focal_contrast(z, torch.ones(6, dtype=torch.long))).item()
    )
    assert torch.isfinite(loss_of(sized(4, 3, variant="released"), features, torch.ones(6, dtype=torch.long)))


def test_released_without_any_positive_is_cross_entropy_alone():
    features, _ = batch_of(count=5, dim=4)
    objective = sized(4, 5, variant="released")
    draws = Draws(torch.arange(5).roll(1), torch.full((5,), 0.9), torch.full((5,), 0.7))
    with pytest.warns(UserWarning, match="no row has a positive"):
        loss = loss_of(objective, features.requires_grad_(), torch.arange(5), draws=draws)
    loss.backward()
    assert loss.item() == objective.stats["cross_entropy"].item()
    assert not objective.head[0].weight.grad.any()
    assert features.grad.any()


def test_released_originals_do_not_train_the_features():
    features, labels = batch_of(count=8, dim=4, classes=2)
    draws = Draws(torch.arange(8), torch.ones(8), torch.ones(8))
    gradients = {}
    for variant in ("corrected", "released"):
        objective = sized(4, 2, variant=variant, contrast_weight=0.0)
        leaf = features.clone().requires_grad_()
        logits = objective.classifier(leaf)
        mixing = Mixing(draws, *hardest_pairs(whole(leaf.detach()), whole(labels), variant))
        kept = [i for i in range(24) if variant == "corrected" or i >= 8]
        rows = mix(logits, None, mixing)
        soft = mix_labels(whole(labels), mixing)
        assert torch.equal(soft.share, torch.ones(24))
        F.cross_entropy(rows, soft.first, reduction="none")[kept].sum().div(24).backward()
        gradients[variant], leaf.grad = leaf.grad.clone(), None
        loss_of(objective, leaf, labels, draws=draws).backward()
        torch.testing.assert_close(leaf.grad, gradients[variant])


def test_zero_features_and_extreme_shares_are_finite():
    features, labels = batch_of(count=12, dim=4, classes=3)
    features[3] = 0
    for options in ({"mixing_alpha": 1e-3}, {"mixing_alpha": 1e4}, {"temperature": 0.005}):
        objective = sized(4, 3, **options)
        leaf = features.clone().requires_grad_()
        loss_of(objective, leaf, labels).backward()
        assert torch.isfinite(leaf.grad).all()


def test_ways_to_call_it_agree():
    features, labels = batch_of(count=8, dim=4, classes=3)
    objective = sized(4, 3)
    by_position = loss_of(objective, features, labels)
    torch.manual_seed(1)
    by_name = objective(features, labels=labels, classifier=objective.classifier)
    torch.manual_seed(1)
    by_itself = objective(features, labels=labels, index=torch.arange(8))
    torch.manual_seed(1)
    opaque = objective(features, labels, lambda rows: objective.classifier(rows))
    assert by_position == by_name == by_itself
    assert opaque.item() == pytest.approx(by_position.item(), rel=1e-12)
    torch.manual_seed(2)
    assert (
        objective(features, labels, objective.classifier) != by_position
    )  # draws follow the global generator


def test_the_contrast_alone_depends_on_the_labels_not_on_their_numbers():
    z = torch.randn(12, 5, dtype=torch.float64)
    labels = torch.arange(12) % 3
    mask = labels[:, None] == labels
    assert focal_contrast(z, labels).item() == pytest.approx(focal_contrast(z, mask=mask).item(), rel=1e-12)
    assert focal_contrast(z, labels).item() == pytest.approx(focal_contrast(z, -7 * labels).item(), rel=1e-12)


def test_weights_are_relative():
    z, labels = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3
    weights = torch.rand(12, dtype=torch.float64)
    assert focal_contrast(z, labels, weights=weights) != focal_contrast(z, labels)
    small = focal_contrast(z, labels, weights=1e-3 * weights)
    assert small.item() == pytest.approx(focal_contrast(z, labels, weights=weights).item(), rel=1e-12)


def test_a_streamed_contrast_refuses_second_derivatives():
    z = torch.randn(600, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(focal_contrast(z, torch.arange(600) % 3), z, create_graph=True)
    with pytest.raises(RuntimeError, match=r"(focal_contrast|logsumexp): a streamed"):
        gradient.sum().backward()
    small = z.detach()[:20].requires_grad_()
    (gradient,) = torch.autograd.grad(focal_contrast(small, torch.arange(20) % 3), small, create_graph=True)
    gradient.pow(2).sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrast_weight": -1}, "contrast_weight is -1; give 0 or more"),
        ({"mixing_alpha": 0}, "mixing_alpha is 0"),
        ({"semi_hard": 1.5}, r"semi_hard is 1\.5; give a share in \[0, 1\]"),
        ({"contrast_dim": 0}, "contrast_dim is 0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"variant": "official"}, "variant is 'official'; give one of 'corrected', 'released'"),
        ({"average": "pairs"}, "average is 'pairs'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CoreTuning(**options)


def test_inputs_that_do_not_fit_are_refused():
    features, labels = batch_of(count=8, dim=4, classes=3)
    objective = sized(4, 3)
    with pytest.raises(ValueError, match="width 3, but the projection head was built for 4"):
        objective(features[:, :3], labels)
    with pytest.raises(ValueError, match="built for None; give the width"):
        CoreTuning()(features, labels, nn.Linear(4, 3))
    with pytest.raises(ValueError, match="no classifier is given"):
        CoreTuning(dim=4)(features, labels=labels)
    with pytest.raises(ValueError, match="no labels are given"):
        objective(features)
    with pytest.raises(ValueError, match=r"labels range from 1 to 4, but the classifier tells 3 classes"):
        objective(features, torch.arange(8) % 4 + 1)
    with pytest.raises(ValueError, match=r"one integer for each of the 8 samples"):
        objective(features, labels[:5], objective.classifier)
    with pytest.raises(ValueError, match="either labels or mask"):
        focal_contrast(features)
    with pytest.raises(ValueError, match=r"mask has shape \(8, 4\)"):
        focal_contrast(features, mask=torch.ones(8, 4))


def test_a_loss_that_is_not_finite_names_the_row():
    features, labels = batch_of(count=8, dim=4, classes=3)
    features[5, 0] = math.nan
    with pytest.raises(
        FloatingPointError, match="CoreTuning: the loss is nan; the first bad row is row 5 of view 0"
    ):
        loss_of(sized(4, 3), features, labels)


class Plain(Objective):
    """Cross entropy of a fixed classifier, with the suite's signature."""

    def __init__(self, **options):
        super().__init__()
        self.inner = CrossEntropy(**options)

    def forward(self, *views, index=None, labels=None):
        weight = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(5, 6)
        return self.inner(
            *views, labels=labels % 5, classifier=lambda x: F.linear(six(x), weight.to(x.dtype))
        )


def naive_cross_entropy(*views, labels, smoothing=0.0):
    weight = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(5, 6)
    losses = []
    for view in views:
        for row, label in zip(six(view), (labels % 5).tolist(), strict=True):
            log_p = (weight @ row).log_softmax(0)
            losses.append(-(1 - smoothing) * log_p[label] - smoothing * log_p.mean())
    return torch.stack(losses).mean()


PLAIN = [
    ObjectiveCase("plain", Plain, naive_cross_entropy, 1, labels=True, gathers=False),
    ObjectiveCase(
        "smooth", partial(Plain, label_smoothing=0.1), partial(naive_cross_entropy, smoothing=0.1), 2,
        labels=True, gathers=False,
    ),
]  # fmt: skip


@pytest.mark.parametrize("check", ["twin", "gradients", "permutation", "processes"])
@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
def test_cross_entropy(case, check):
    CHECKS[check](case)


def test_cross_entropy_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="label_smoothing is 1"):
        CrossEntropy(1.0)
    with pytest.raises(ValueError, match=r"give labels=\.\.\. and classifier"):
        CrossEntropy()(torch.zeros(2, 3), labels=torch.zeros(2, dtype=torch.long))
