"""Next-item losses and heads against float64 definitions and the published code."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from recsys import BCE, BPR, CL4SRec, DuoRec, FullSoftmax, SampledSoftmax, SASRec, Sequences
from recsys.batches import PrefixTable
from recsys.objectives import Samples, other_items, pair_contrast
from tests.recsys.test_encoders import histories, reference


def rows(count, dim=6, seed=0):
    return torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_pair_contrast_is_the_published_loss():
    arrays = reference("mclrec-infonce")
    for number, (similarity, temperature) in enumerate(
        [("dot", 1.0), ("dot", 0.2), ("cos", 1.0), ("cos", 0.1)]
    ):
        views = [arrays[name].clone().requires_grad_() for name in ("z_i", "z_j")]
        loss = pair_contrast(*views, temperature, similarity)
        torch.testing.assert_close(loss, arrays[f"v{number}_loss"], rtol=1e-9, atol=1e-11)
        for gradient, name in zip(torch.autograd.grad(loss, views), ("z_i", "z_j"), strict=True):
            torch.testing.assert_close(gradient, arrays[f"v{number}_grad_{name}"], rtol=1e-9, atol=1e-11)


@given(count=st.integers(1, 6), temperature=st.sampled_from([0.3, 1.0]), seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_pair_contrast_is_its_definition(count, temperature, seed):
    first, second = rows(count, seed=seed), rows(count, seed=seed + 1)
    views = torch.cat([first, second])
    similarity = views @ views.T / temperature
    losses = []
    for i in range(2 * count):
        others = [similarity[i, j] for j in range(2 * count) if j != i]
        losses.append(torch.stack(others).logsumexp(0) - similarity[i, (i + count) % (2 * count)])
    torch.testing.assert_close(pair_contrast(first, second, temperature), torch.stack(losses).mean())


def test_pair_contrast_streams_what_is_large(monkeypatch):
    first, second = (rows(40, seed=seed).requires_grad_() for seed in (0, 1))
    dense = pair_contrast(first, second)
    gradients = torch.autograd.grad(dense, (first, second))
    monkeypatch.setattr("recsys.objectives.DENSE_ENTRIES", 0)
    streamed = pair_contrast(first, second)
    torch.testing.assert_close(streamed, dense)
    torch.testing.assert_close(torch.autograd.grad(streamed, (first, second)), gradients)


def test_gradients():
    views = [rows(4, seed=seed).requires_grad_() for seed in (0, 1)]
    assert torch.autograd.gradcheck(pair_contrast, views)
    table, targets = rows(9).requires_grad_(), torch.tensor([3, 8, 1, 1])
    for loss in (FullSoftmax(), SampledSoftmax(3), BPR(), BCE()):
        assert torch.autograd.gradcheck(
            lambda s, t, loss=loss: loss(s, targets, t, generator()), (views[0], table)
        ), type(loss)


@pytest.mark.parametrize("padding_class", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_full_softmax(monkeypatch, padding_class, streamed):
    if streamed:
        monkeypatch.setattr("recsys.objectives._DENSE_LOGITS", 0)
    states, table, targets = rows(5), rows(12, seed=1), torch.tensor([1, 11, 4, 4, 7])
    logits = states @ table.T
    if not padding_class:
        logits[:, 0] = -torch.inf
    loss = FullSoftmax(padding_class)(states, targets, table, generator())
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets))


def test_autocast_does_not_round_logits():
    states, targets, vectors = torch.randn(20, 8), torch.randint(1, 30, (20,)), torch.randn(30, 8)
    compute = lambda: (  # noqa: E731
        FullSoftmax()(states, targets, vectors, torch.Generator()),
        pair_contrast(states, states.flip(0)),
    )
    expected = compute()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compute(), expected)


def test_sampled_softmax_over_everything_is_nearly_the_full_one():
    states, table, targets = rows(5), rows(12, seed=1), torch.tensor([1, 11, 4, 4, 7])
    drawn = torch.randint(1, 12, (6,), generator=generator())
    expected = []
    for state, target in zip(states, targets, strict=True):
        candidates = [table[target] @ state] + [table[item] @ state for item in drawn if item != target]
        expected.append(torch.stack(candidates).logsumexp(0) - candidates[0])
    loss = SampledSoftmax(6)(states, targets, table, generator())
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_one_negative():
    states, table, targets = rows(5), rows(12, seed=1), torch.tensor([1, 11, 4, 4, 7])
    other = other_items(targets, 12, generator())
    positive, negative = (states * table[targets]).sum(1), (states * table[other]).sum(1)
    torch.testing.assert_close(
        BPR()(states, targets, table, generator()), -torch.log(torch.sigmoid(positive - negative)).mean()
    )
    torch.testing.assert_close(
        BCE()(states, targets, table, generator()),
        (-torch.log(torch.sigmoid(positive)) - torch.log(1 - torch.sigmoid(negative))).mean(),
    )


def test_negatives_are_all_other_items_alike():
    targets = torch.full((30_000,), 3)
    counts = torch.bincount(other_items(targets, 6, generator()), minlength=6)
    assert counts[0] == counts[3] == 0
    assert ((counts[[1, 2, 4, 5]] - 7_500).abs() < 400).all()


def samples_of(table, chosen):
    items, lengths = table.gather(chosen)
    return Samples(items, lengths, table.targets[chosen], chosen, generator())


def test_duorec_finds_another_prefix_with_the_target():
    table = PrefixTable(np.arange(1, 9), np.arange(6), np.full(6, 2), targets=np.array([4, 7, 4, 5, 4, 7]))
    head = DuoRec()
    encoder = SASRec(8, 16, max_length=4)
    head.setup(encoder, None, table)
    chosen = torch.arange(6).repeat(200)
    found = head.same_target(samples_of(table, chosen))
    assert (table.targets[found] == table.targets[chosen]).all()
    pairs = set(zip(chosen.tolist(), found.tolist(), strict=True))
    assert pairs == {(0, 2), (0, 4), (2, 0), (2, 4), (4, 0), (4, 2), (1, 5), (5, 1), (3, 3)}


@pytest.mark.parametrize("head", [CL4SRec(weight=0.5), DuoRec(weight=0.5, target_weight=0.5)])
def test_heads_are_their_contrasts(head):
    encoder = SASRec(30, 16, max_length=9).double().eval()
    items, lengths = histories(20, 9, 30)
    flat = items[items > 0].numpy()
    starts = np.concatenate([[0], lengths.cumsum(0)[:-1].numpy()])
    table = PrefixTable(flat, starts, lengths.numpy(), targets=np.arange(1, 21))
    head.setup(encoder, None, table)
    chosen = torch.arange(20)
    loss = head(encoder, samples_of(table, chosen))
    states = encoder.encode(items, lengths)
    if isinstance(head, DuoRec):  # without dropout all three views are the same, for no two share a target
        torch.testing.assert_close(loss, pair_contrast(states, states))
    else:
        from recsys import augment

        (a, n), (b, m) = augment.random_views(items, lengths, generator(), **head.edits)
        torch.testing.assert_close(loss, 0.5 * pair_contrast(encoder.encode(a, n), encoder.encode(b, m)))


def test_windows_of_a_prefix_table():
    sequences = Sequences.from_lists([[5, 6, 7], [8, 9]])
    table = PrefixTable(sequences.items, np.array([0, 1, 3]), np.array([2, 2, 1]))
    items, lengths = table.gather(torch.tensor([1, 2]))
    assert items.tolist() == [[6, 7], [8, 0]]
    assert lengths.tolist() == [2, 1]


def test_counts_are_checked():
    with pytest.raises(ValueError, match="num_negatives is 0"):
        SampledSoftmax(0)
