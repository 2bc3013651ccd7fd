import math
from functools import partial

import pytest
import torch
from torch import Tensor

from contrastive import GroCo
from contrastive.functional import groco, soft_sort
from contrastive.objectives.groco import _largest, group_cross_entropy
from contrastive.objectives.sorting import COMPARATORS, back_through_network, build_comparator, build_network
from contrastive.testing import CHECKS, ObjectiveCase


def naive_groco(
    *views: Tensor,
    labels: Tensor | None = None,
    k: int = 4,
    s: float = 1.0,
    positive_views: int | None = None,
    stop_gradient: bool = True,
    network: str = "odd_even",
) -> Tensor:
    """One anchor at a time, with the permutation matrix as a product of one matrix for each comparator."""
    unit = [view / view.norm(dim=1, keepdim=True) for view in views]
    other = [u.detach() for u in unit] if stop_gradient else unit
    losses = []
    for a, anchors in enumerate(unit):
        terms = []
        for b, anchor in enumerate(anchors):
            positives = [anchor @ other[p][b] for p in range(positive_views or len(views)) if p != a]
            negatives = [anchor @ other[a][j] for j in range(len(anchors)) if j != b]
            negatives = sorted(negatives, key=similarity)[-k:]
            x = torch.stack(negatives + sorted(positives, key=similarity, reverse=network == "merge"))
            q = naive_permutation(x, s, network)[:, : len(negatives)].sum(1)
            is_negative = torch.arange(len(x)) < len(negatives)
            terms.append(-torch.where(is_negative, q, 1 - q).log().mean())
        losses.append(torch.stack(terms).mean())
    return torch.stack(losses).mean()


def similarity(x: Tensor) -> float:
    return float(x.detach())


def naive_permutation(x: Tensor, s: float, network: str) -> Tensor:
    n = len(x)
    permutation = torch.eye(n, dtype=x.dtype)
    for low, high in naive_pairs(n, network):
        alpha = 0.5 + torch.atan(s * (x[high] - x[low])) / math.pi
        mixing = torch.eye(n, dtype=x.dtype)
        for i, j, share in (
            (low, low, alpha),
            (high, high, alpha),
            (low, high, 1 - alpha),
            (high, low, 1 - alpha),
        ):
            mixing = mixing.index_put((torch.tensor(i), torch.tensor(j)), share)
        x, permutation = x @ mixing, permutation @ mixing
    return permutation


def naive_pairs(n: int, network: str) -> list[tuple[int, int]]:
    if network == "odd_even":
        return [(i, i + 1) for layer in range(n) for i in range(layer % 2, n - 1, 2)]
    depth = math.ceil(math.log2(n))
    dropped = 2**depth - n
    pairs = []
    for block in range(depth - 1 if network == "merge" else 0, depth):
        for bit in range(block, -1, -1):
            for i in range(2**depth):
                if not i >> bit & 1 and i >= dropped:
                    pair = (i - dropped, i + 2**bit - dropped)
                    pairs.append(pair[::-1] if i >> (block + 1) & 1 else pair)
    return pairs


CASES = [
    ObjectiveCase(
        "GroCo", partial(GroCo, num_negatives=4), naive_groco, gathers=False, smooth=False
    ),  # without gradient through what is gathered
    ObjectiveCase(
        "GroCo-crops",
        partial(GroCo, num_negatives=3, steepness=5.0, num_positive_views=2),
        partial(naive_groco, k=3, s=5.0, positive_views=2),
        num_views=4,
        gathers=False,
        smooth=False,
    ),
    ObjectiveCase(
        "GroCo-through-all",
        partial(GroCo, num_negatives=4, steepness=10.0, stop_gradient=False),
        partial(naive_groco, s=10.0, stop_gradient=False),
        num_views=3,
    ),
    ObjectiveCase(
        "GroCo-bitonic",
        partial(GroCo, num_negatives=4, stop_gradient=False, network="bitonic"),
        partial(naive_groco, stop_gradient=False, network="bitonic"),
    ),
    ObjectiveCase(
        "GroCo-merge",
        partial(GroCo, num_negatives=5, steepness=3.0, stop_gradient=False, network="merge"),
        partial(naive_groco, k=5, s=3.0, stop_gradient=False, network="merge"),
        num_views=3,
    ),
]


@pytest.mark.filterwarnings("ignore:GroCo. num_negatives")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conformance(case: ObjectiveCase, check: str):
    CHECKS[check](case)


@pytest.mark.parametrize("name", ["2views", "4views", "allnegatives", "multicrop", "nostopgrad"])
def test_official_losses(reference, name):
    data, meta = reference(f"groco-{name}")
    given, tolerance = meta["hyperparameters"], meta["tolerance"]
    options = {
        "num_negatives": given["topk_neg"],
        "steepness": given["steepness"],
        "num_positive_views": given["n_pos_views"],
        "stop_gradient": given["stop_grad"],
        "network": given["network"],
        "comparator": given["distribution"],
    }
    views = data["views"].requires_grad_()
    loss = groco(*views, **options)
    torch.testing.assert_close(loss, data["loss"], rtol=tolerance["loss_rtol"], atol=0)
    (gradient,) = torch.autograd.grad(loss, views)
    largest = float(data["grad_views"].abs().max())
    torch.testing.assert_close(gradient, data["grad_views"], rtol=0, atol=1e-9 * largest)
    single = groco(*views.float(), **options)
    torch.testing.assert_close(single, data["loss_float32"], rtol=tolerance["float32_loss_rtol"], atol=0)


@pytest.mark.parametrize("size", [5, 8, 11])
@pytest.mark.parametrize("comparator", COMPARATORS)
@pytest.mark.parametrize("network", ["odd_even", "bitonic"])
def test_official_sorting(reference, network, comparator, size):
    data, meta = reference("groco-network")
    given, tolerance = meta["hyperparameters"], meta["tolerance"]
    name = f"{network}_{comparator}_{size}"
    rows = data[f"x_{size}"].requires_grad_()
    ordered, permutation = soft_sort(
        rows,
        steepness=given["steepness"],
        network=network,
        comparator=comparator,
        exponent=given["art_lambda"],
    )
    atol = tolerance["value_atol"]
    torch.testing.assert_close(ordered, data[f"sorted_{name}"], rtol=0, atol=atol)
    torch.testing.assert_close(permutation, data[f"P_{name}"], rtol=0, atol=atol)
    (gradient,) = torch.autograd.grad((data[f"w_{size}"] * permutation).sum() + ordered.square().sum(), rows)
    largest = float(data[f"grad_{name}"].abs().max())
    # The official gradient of the Gaussian comparator holds its width in 32 bit.
    bound = tolerance["grad_rel_to_max"] if comparator == "gaussian" else 1e-9
    torch.testing.assert_close(gradient, data[f"grad_{name}"], rtol=0, atol=bound * largest)


@pytest.mark.parametrize("comparator", COMPARATORS)
@pytest.mark.parametrize("network", ["odd_even", "bitonic"])
@pytest.mark.parametrize("n", [1, 2, 3, 6, 17])
def test_soft_permutations_are_doubly_stochastic_and_sort_when_steep(n, network, comparator):
    rows = torch.randn(7, n, dtype=torch.float64)
    _, permutation = soft_sort(rows, steepness=2.0, network=network, comparator=comparator)
    assert permutation.min() >= -1e-15
    for dim in (1, 2):
        torch.testing.assert_close(permutation.sum(dim), torch.ones(7, n, dtype=torch.float64))
    ordered, _ = soft_sort(rows, steepness=1e9, network=network, comparator=comparator)
    torch.testing.assert_close(ordered, rows.sort(1).values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("network", ["odd_even", "bitonic", "merge"])
def test_the_network_can_be_differentiated_twice(network):
    layers = build_network(network, 5, torch.device("cpu"))
    keep = build_comparator("test", "cauchy", 2.0, 0.0)
    weights = torch.randn(5, 1, dtype=torch.float64)
    values = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: back_through_network(x, weights, layers, keep), values)
    assert torch.autograd.gradgradcheck(lambda x: back_through_network(x, weights, layers, keep), values)


def cross_entropy(
    positive: float, negatives: list[float], comparator: str = "cauchy", s: float = 1.0
) -> float:
    rows = [torch.tensor([row], dtype=torch.float64) for row in (sorted(negatives), [positive])]
    keep = build_comparator("test", comparator, s, 0.0)
    return float(group_cross_entropy(*rows, "odd_even", keep)) / (len(negatives) + 1)


@pytest.mark.parametrize(
    ("steepness", "floor"), [(1.0, 0.147), (5.0, 0.030), (10.0, 0.0148), (100.0, 0.00145)]
)
def test_perfect_order_has_a_floor_that_falls_with_steepness(steepness, floor):
    assert cross_entropy(1.0, [-1.0] * 10, s=steepness) == pytest.approx(floor, rel=0.02)


def test_perfect_disorder_at_steepness_1():
    assert cross_entropy(-1.0, [1.0] * 10) == pytest.approx(0.264, abs=5e-4)


def test_two_wires_by_hand():
    """One comparator: the negative stays below the positive with share 1/2 + atan(0.3) / pi."""
    assert cross_entropy(0.5, [0.2]) == pytest.approx(-math.log(0.5 + math.atan(0.3) / math.pi))


def test_the_hard_limit_counts_misplaced_inputs():
    """Each costs the logarithm's bound of 100; the gradient stays finite although q is exactly 0 or 1."""
    assert cross_entropy(0.95, [0.9, 0.1, -0.3], "logistic", 1e6) == 0
    assert cross_entropy(0.5, [0.9, 0.1, -0.3], "logistic", 1e6) == pytest.approx(2 / 4 * 100)
    for comparator in COMPARATORS:
        views = torch.randn(2, 8, 4, requires_grad=True)
        groco(*views, num_negatives=3, steepness=1e6, comparator=comparator).backward()
        assert torch.isfinite(views.grad).all()


@pytest.mark.parametrize(("num_views", "num_negatives", "budget"), [(2, 256, 2**23), (8, 10, 1), (8, 1, 1)])
def test_any_number_of_views_and_negatives(num_views, num_negatives, budget):
    """Many wires are sorted a few anchors at a time; the network's memory must not change the numbers."""
    views = torch.randn(num_views, num_negatives + 20, 6, dtype=torch.float64, requires_grad=True)
    loss = groco(*views, num_negatives=num_negatives, stop_gradient=False)
    (gradient,) = torch.autograd.grad(loss, views)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("contrastive.objectives.groco._SORTED_ON_CPU", budget)
        blocks = groco(*views, num_negatives=num_negatives, stop_gradient=False)
        (in_blocks,) = torch.autograd.grad(blocks, views)
    torch.testing.assert_close(blocks, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(in_blocks, gradient, rtol=0, atol=1e-12 * float(gradient.abs().max()))


@pytest.mark.parametrize(("width", "k"), [(37, 1), (100, 3), (100, 4), (331, 10), (16, 5)])
def test_the_largest_of_each_row_are_found(width, k):
    rows = torch.rand(50, width)
    values, columns = _largest(rows, k)
    assert torch.equal(values, rows.sort(1).values[:, -k:])
    assert torch.equal(values, rows.gather(1, columns))


def test_the_loss_can_be_differentiated_twice():
    views = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda v: groco(*v, num_negatives=2, stop_gradient=False), views)


def test_only_anchors_move_with_stopped_gradients():
    """A positive that is not an anchor of its own would get none; here the second view's own part is removed."""
    views = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    (stopped,) = torch.autograd.grad(groco(*views, num_negatives=3), views)
    moving, still = views[0], views[1].detach()
    (first,) = torch.autograd.grad(groco(moving, still, num_negatives=3), views)
    torch.testing.assert_close(first[0], stopped[0])
    (through,) = torch.autograd.grad(groco(*views, num_negatives=3, stop_gradient=False), views)
    assert (through - stopped).abs().max() > 0.01 * through.abs().max()


def test_the_length_of_rows_and_the_order_of_two_views_do_not_matter():
    a, b = torch.randn(2, 12, 5, dtype=torch.float64)
    loss = groco(a, b)
    torch.testing.assert_close(groco(b, a), loss)
    torch.testing.assert_close(groco(a * torch.rand(12, 1).double().add(0.1), 7 * b), loss)


def test_share_of_anchors_in_order():
    z = torch.eye(6)
    objective = GroCo(num_negatives=3)
    objective(z, z)
    assert objective.stats["in_order"] == 1
    objective(z, torch.cat([z[:3], -z[3:]]))
    assert objective.stats["in_order"] == 0.5


def test_a_small_batch_keeps_what_it_has_and_says_so_once():
    objective, views = GroCo(num_negatives=10), torch.randn(2, 5, 3, dtype=torch.float64)
    with pytest.warns(UserWarning, match="num_negatives is 10, but a global batch of 5 samples has 4"):
        loss = objective(*views)
    torch.testing.assert_close(loss, groco(*views, num_negatives=4))
    objective(*views[:, :4])  # a second warning would be an error
    with pytest.warns(UserWarning, match="groco: num_negatives is 10"):
        groco(*views)


def test_rows_of_zeros_have_a_finite_gradient():
    views = torch.randn(2, 6, 4)
    views[0, 2] = 0
    views.requires_grad_()
    groco(*views, num_negatives=3).backward()
    assert torch.isfinite(views.grad).all()


def test_bad_inputs_are_named():
    views = torch.randn(2, 6, 4)
    views[1, 3, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"row 3 of view 1 .* not finite \(1 of 12"):
        GroCo()(*views)
    with pytest.raises(ValueError, match="global batch has 1 samples"):
        groco(*torch.randn(2, 1, 4))
    with pytest.raises(ValueError, match="num_positive_views is 3, but there are 2 views"):
        groco(*torch.randn(2, 6, 4), num_positive_views=3)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("num_negatives", 0, "give at least 1"),
        ("steepness", 0.0, "finite number above 0"),
        ("steepness", math.inf, "finite number above 0"),
        ("num_positive_views", 1, "without a positive"),
        ("network", "bubble", "give one of 'odd_even', 'bitonic', 'merge'"),
        ("comparator", "step", "give one of 'cauchy'"),
        ("exponent", 1.0, r"\[0, 1\)"),
    ],
)
def test_bad_options_are_named(option, value, message):
    with pytest.raises(ValueError, match=rf"^GroCo: {option} is .*{message}"):
        GroCo(**{option: value})


def test_bad_rows_to_sort_are_named():
    with pytest.raises(ValueError, match=r"soft_sort: values have shape \(5,\)"):
        soft_sort(torch.randn(5))
    with pytest.raises(ValueError, match="network is 'merge'"):
        soft_sort(torch.randn(2, 5), network="merge")
