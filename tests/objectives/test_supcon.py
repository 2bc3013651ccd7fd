import math
from functools import partial

import pytest
import torch

from contrastive import SupCon
from contrastive.functional import info_nce, sup_con

OFFICIAL = {
    "all": {"lone_anchors": "zero"},
    "one": {"lone_anchors": "zero", "anchors": "first"},
    "nolabel": {"labels": None},
    "pml_ntxent": {"denominator": "negatives", "normalize": True},
    "pml_supcon": {"base_temperature": 0.1, "normalize": True},
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_losses(reference, matches, name):
    data, meta = reference("infonce-supcon")
    options = {"labels": data["in_labels"], "normalize": False, "temperature": 0.1} | OFFICIAL[name]

    def loss(features):
        return sup_con(*features.unbind(1), **options)

    matches(meta, loss, (data["in_features"],), data[f"out_loss_{name}"], (data[f"grad_{name}"],))


def test_official_single_view(reference, matches):
    data, meta = reference("infonce-supcon")
    loss = partial(sup_con, labels=data["in_labels"], temperature=0.1, normalize=False, lone_anchors="zero")
    features, gradient = data["in_features"][:, 0], data["grad_singleview"][:, 0]
    matches(meta, loss, (features,), data["out_loss_singleview"], (gradient,))


def test_hand_computed():
    """Classes at 0 and 90 degrees: one positive e^1, two negatives e^0."""
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([5, 5, 7, 7])
    loss = sup_con(z, labels=labels, temperature=1.0, base_temperature=1.0)
    assert loss.item() == pytest.approx(math.log(math.e + 2) - 1)


def test_without_labels_two_views_are_nt_xent():
    z1, z2 = torch.randn(2, 9, 5, dtype=torch.float64)
    plain = sup_con(z1, z2, temperature=0.07)
    assert plain.item() == pytest.approx(info_nce(z1, z2, temperature=0.07).item(), rel=1e-12)


def test_lone_anchors_are_left_out_and_counted():
    z = torch.randn(5, 4, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 2])
    objective = SupCon()
    loss = objective(z, labels=labels)
    assert objective.stats["anchors_without_positive"] == 1
    assert SupCon(lone_anchors="zero")(z, labels=labels).item() == pytest.approx(loss.item() * 4 / 5)


def test_no_positive_at_all_is_a_differentiable_zero_and_a_warning():
    z = torch.randn(4, 3, requires_grad=True)
    with pytest.warns(UserWarning, match="no anchor has a positive"):
        loss = sup_con(z, labels=torch.arange(4))
    loss.backward()
    assert loss.item() == 0
    assert not z.grad.any()


def test_bad_labels_are_named():
    z = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"shape \(3,\).*one integer for each of the 4 samples"):
        SupCon()(z, z, labels=torch.arange(3))
    with pytest.raises(ValueError, match=r"dtype torch\.float32"):
        SupCon()(z, z, labels=torch.zeros(4))
