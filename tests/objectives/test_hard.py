import math

import pytest
import torch

from contrastive import HardInfoNCE
from contrastive.functional import hard_info_nce, info_nce


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("contrastive", {"num_negatives": 120}),
        ("hard", {"num_negatives": 20}),
        ("simple", {"num_negatives": 120, "form": "simple"}),
        ("hardsimple", {"num_negatives": 20, "form": "simple"}),
    ],
)
def test_losses_of_the_paper(reference, matches, name, options):
    data, meta = reference("infonce-hard")

    def loss(anchors):
        bank = data["in_bank"].to(anchors.dtype)
        return hard_info_nce(anchors, bank, data["in_index"], temperature=0.3, normalize=False, **options)

    matches(meta, loss, (data["in_anchor"],), data[f"out_loss_{name}"], (data[f"grad_{name}"],))


def test_hand_computed():
    query = torch.tensor([[1.0, 0.0]])
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    positive = torch.tensor([0])
    nearest = hard_info_nce(query, keys, positive, num_negatives=1, temperature=1.0)
    assert nearest.item() == pytest.approx(math.log(math.e + 1) - 1)
    simple = hard_info_nce(query, keys, positive, num_negatives=2, form="simple", repulsion=0.5)
    assert simple.item() == pytest.approx(0.5 * (0 - 1) / 2 - 1)


def test_all_negatives_are_nt_xent_and_fewer_are_less():
    z1, z2 = torch.randn(2, 10, 6, dtype=torch.float64)
    full = info_nce(z1, z2, temperature=0.3)
    assert HardInfoNCE(temperature=0.3, num_negatives=100)(z1, z2).item() == pytest.approx(full.item())
    assert HardInfoNCE(temperature=0.3, num_negatives=0.2)(z1, z2) < full


def test_equal_labels_are_not_negatives():
    z1, z2 = torch.randn(2, 6, 4)
    objective = HardInfoNCE(num_negatives=3)
    assert objective(z1, z2, labels=torch.tensor([0, 0, 0, 1, 1, 1])) <= objective(z1, z2)
    nobody_left = HardInfoNCE(num_negatives=3, form="simple")(
        z1, z2, labels=torch.zeros(6, dtype=torch.int64)
    )
    cosine = torch.nn.functional.cosine_similarity(z1, z2).mean()
    assert nobody_left.item() == pytest.approx(-cosine.item(), rel=1e-5)


@pytest.mark.parametrize("count", [0, -1, 1.5, 0.0])
def test_bad_number_of_negatives_is_named(count):
    with pytest.raises(ValueError, match=r"num_negatives is .*integer of at least 1"):
        HardInfoNCE(num_negatives=count)
