import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive import CoreTuning
from contrastive.functional import focal_contrast
from contrastive.objectives import Objective
from contrastive.objectives.core_tuning import (
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
        classifier if linear else lambda rows: classifier(rows),  # noqa: PLW0108
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
    gradients |= {
        f"grad_{theirs}": objective.head.get_parameter(ours).grad for ours, theirs in HEAD.items()
    }
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
    torch.testing.assert_close(mix(features, mixing), data["mixed_features"], rtol=1e-12, atol=1e-12)
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
