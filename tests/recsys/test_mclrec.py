"""MCLRec against the published code: terms, augmenters and whole steps."""

import json

import numpy as np
import pytest
import torch

from recsys import FullSoftmax, MCLRec, SASRec, SequentialRecommender
from recsys.batches import Batch
from recsys.mclrec import Augmenter, regulariser, set_regulariser, small_terms
from recsys.objectives import Samples, pair_contrast
from recsys.official import translate
from recsys.training import Part
from tests.recsys.test_encoders import REFERENCE, reference, under
from tests.recsys.test_objectives import rows


def test_regulariser_is_the_published_one():
    arrays = reference("mclrec-regulariser")
    views = [arrays[f"s{i}"].clone().requires_grad_() for i in range(4)]
    one = regulariser(views[2], views[3])
    torch.testing.assert_close(one, arrays["pair23_loss"], rtol=1e-9, atol=1e-11)
    for gradient, i in zip(torch.autograd.grad(one, views[2:]), (2, 3), strict=True):
        torch.testing.assert_close(gradient, arrays[f"pair23_grad_s{i}"], rtol=1e-9, atol=1e-11)
    total = 0.1 * sum(regulariser(views[a], views[b]) for a, b in ((0, 3), (1, 2), (2, 3)))
    torch.testing.assert_close(total, arrays["total_loss"], rtol=1e-9, atol=1e-11)
    for gradient, i in zip(torch.autograd.grad(total, views), range(4), strict=True):
        torch.testing.assert_close(gradient, arrays[f"total_grad_s{i}"], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_regularisers_are_their_definitions(count, temperature):
    first, second = rows(count), rows(count, seed=1)
    views = torch.cat([first, second])
    similarity = views @ views.T / temperature
    positives, negatives = [], []
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        positives.append(similarity[i, partner])
        negatives.append([similarity[i, j] for j in range(2 * count) if j not in (i, partner)])
    if count == 1:
        assert regulariser(first, second, temperature) == set_regulariser(first, second) == 0
        return
    low = [min(p, max(n)) for p, n in zip(positives, negatives, strict=True)]
    high = [max(p, max(n)) for p, n in zip(positives, negatives, strict=True)]
    per_row = np.mean([max(p - a, 0) for p, a in zip(positives, low, strict=True)]) + np.mean(
        [max(b - n, 0) for b, others in zip(high, negatives, strict=True) for n in others]
    )
    assert float(regulariser(first, second, temperature)) == pytest.approx(float(per_row))
    if temperature == 1.0:
        flat = [n for others in negatives for n in others]
        low, high = min(*positives, max(flat)), max(min(positives), max(flat))
        whole = np.mean([max(p - low, 0) for p in positives]) + np.mean([max(high - n, 0) for n in flat])
        assert float(set_regulariser(first, second)) == pytest.approx(float(whole))


def test_gradients():
    views = [rows(4, seed=seed).requires_grad_() for seed in (0, 1)]
    assert torch.autograd.gradcheck(regulariser, views)
    assert torch.autograd.gradcheck(set_regulariser, views)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_terms_of_small_batches_are_those_of_large_ones(count):
    views = [rows(count, seed=seed).requires_grad_() for seed in range(6)]
    pairs = list(zip(views[:3], views[3:], strict=True))
    contrast, margins = small_terms(pairs, 0.4)
    expected = torch.stack([pair_contrast(a, b) for a, b in pairs]).sum()
    torch.testing.assert_close(contrast, expected)
    expected_margins = torch.stack([regulariser(a, b, 0.4) for a, b in pairs]).sum()
    torch.testing.assert_close(margins, expected_margins)
    torch.testing.assert_close(
        torch.autograd.grad(contrast + margins, views),
        torch.autograd.grad(expected + expected_margins, views),
    )


def our_name(theirs):
    """``maps.0.weight`` of ``dense_1.weight``."""
    return f"maps.{int(theirs[6]) - 1}.{theirs.split('.')[1]}"


def load_augmenter(augmenter, weights):
    augmenter.double().load_state_dict({our_name(name): value for name, value in weights.items()})


def test_augmenter_is_the_published_one():
    arrays = reference("mclrec-augmenter")
    augmenter = Augmenter(64, (32, 16))
    load_augmenter(augmenter, under(arrays, "param."))
    inputs = arrays["x"].clone().requires_grad_()
    outputs = augmenter(inputs)
    torch.testing.assert_close(outputs, arrays["y"], rtol=1e-9, atol=1e-11)
    (arrays["w"] * outputs).sum().backward()
    torch.testing.assert_close(inputs.grad, arrays["grad_x"], rtol=1e-9, atol=1e-11)
    for name, expected in under(arrays, "grad.").items():
        parameter = augmenter.get_parameter(our_name(name))
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-11, msg=name)


def whole(batch):
    """A step over whole histories, as the published code has it."""
    rows = torch.arange(len(batch["item_id"]))
    step = Batch(
        batch["item_id_list"], batch["item_length"], rows, batch["item_length"] - 1, batch["item_id"], rows
    )
    samples = Samples(step.items, step.lengths, step.targets, rows, torch.Generator())
    return Part(step, samples, samples.generator)


def watch_losses(model, monkeypatch):
    """The losses that are minimised, in order, without a trainer."""
    losses = []
    monkeypatch.setattr(
        model, "manual_backward", lambda loss: (losses.append(loss.detach()), loss.backward())
    )
    return losses


@pytest.mark.parametrize(("name", "update"), [("mclrec-step", "released"), ("mclrec-step_joint", "joint")])
def test_steps_are_the_published_ones(name, update, monkeypatch):
    arrays = reference(name)
    with np.load(REFERENCE / f"{name}.npz", allow_pickle=False) as file:
        hyper = json.loads(str(file["meta"]))["hyper"]
    encoder = SASRec(19, 16, 2, 2, 32, 8, 0.0, 0.0).double()
    encoder.load_state_dict(translate(under(arrays, "before.enc."), 19))
    head = MCLRec(data_weight=hyper["lmd"], model_weight=hyper["beta"], update=update, widths=(8, 4))
    head.setup(encoder, None, None)
    for number, augmenter in enumerate(head.augmenters, 1):
        load_augmenter(augmenter, under(arrays, f"before.aug{number}."))
    model = SequentialRecommender(encoder, FullSoftmax(padding_class=True), [head])
    losses = watch_losses(model, monkeypatch)
    batch = under(arrays, "batch0.")
    views = (batch["aug1"], batch["aug_len1"]), (batch["aug2"], batch["aug_len2"])
    monkeypatch.setattr(head, "views", lambda samples: views)
    augmenter_loss, constant = head.augmenter_loss, torch.zeros(3 if update == "released" else 1)

    def second_phase(encoder, views):
        # The published one reports the data term too, which is a constant for the augmenters.
        with torch.no_grad():
            constant[1] = head.data_weight * pair_contrast(*(encoder.encode(*view) for view in views))
        return augmenter_loss(encoder, views)

    monkeypatch.setattr(head, "augmenter_loss", second_phase)
    model.update(model.configure_optimizers(), [whole(batch)])
    losses = torch.stack(losses) + constant
    torch.testing.assert_close(losses, arrays["losses"], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(losses.sum(), arrays["total"], rtol=1e-7, atol=1e-9)
    for name, expected in translate(under(arrays, "after.enc."), 19).items():
        torch.testing.assert_close(encoder.state_dict()[name], expected, rtol=1e-7, atol=1e-9, msg=name)
    for number, augmenter in enumerate(head.augmenters, 1):
        for name, expected in under(arrays, f"after.aug{number}.").items():
            parameter = augmenter.get_parameter(our_name(name))
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-7, atol=1e-9, msg=name)


def test_every_optimiser_decays(monkeypatch):
    arrays = reference("mclrec-step")
    steps = []
    for decay in (0.0, 0.01):
        torch.manual_seed(0)
        encoder, head = SASRec(19, 16, 2, 2, 32, 8, 0.0, 0.0).double(), MCLRec(update="paper", widths=(8, 4))
        head.setup(encoder, None, None)
        head.double()
        model = SequentialRecommender(encoder, heads=[head], weight_decay=decay)
        optimizers = model.configure_optimizers()
        assert [group["weight_decay"] for o in optimizers for group in o.param_groups] == [decay, decay]
        watch_losses(model, monkeypatch)
        batch = under(arrays, "batch0.")
        views = (batch["aug1"], batch["aug_len1"]), (batch["aug2"], batch["aug_len2"])
        monkeypatch.setattr(head, "views", lambda samples, views=views: views)
        before = {name: value.detach().clone() for name, value in head.named_parameters()}
        model.update(optimizers, [whole(batch)])
        steps.append({name: (before[name], value) for name, value in head.named_parameters()})
    for name, (before, after) in steps[1].items():
        # The encoders differ by now, so compare with Adam's first step itself.
        gradient = steps[1][name][1].grad + 0.01 * before
        expected = before - 1e-3 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(after.detach(), expected, rtol=1e-9, atol=1e-12, msg=name)
        assert not torch.equal(after, steps[0][name][1])


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="update is 'both'"):
        MCLRec(update="both")
    with pytest.raises(ValueError, match="margins is 'all'"):
        MCLRec(margins="all")
    with pytest.raises(ValueError, match="2 MCLRec"):
        SequentialRecommender(SASRec(5), heads=[MCLRec(), MCLRec()])
