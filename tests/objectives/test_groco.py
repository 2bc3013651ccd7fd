import pytest
import torch

from contrastive.objectives.groco import groco
from contrastive.objectives.sorting import COMPARATORS, soft_sort


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
    bound = tolerance["grad_rel_to_max"] if comparator == "gaussian" else 1e-9
    torch.testing.assert_close(gradient, data[f"grad_{name}"], rtol=0, atol=bound * largest)
