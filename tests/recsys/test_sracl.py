"""SRA-CL against the published code: synthesis, terms and whole steps."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recsys import SRACL, FullSoftmax, RecommenderData, SASRec, Sequences, SequentialRecommender
from recsys.batches import Batch, PrefixTable, training_prefixes
from recsys.cooccurrence import interaction_vectors
from recsys.objectives import Samples, encode_all, pair_contrast
from recsys.official import translate
from recsys.sracl import Synthesiser, one_way_contrast
from recsys.training import Part
from tests.recsys.test_encoders import REFERENCE, reference, under
from tests.recsys.test_objectives import generator, rows


def load_synthesiser(synthesiser, weights):
    synthesiser.double().load_state_dict({"projection": weights["W"], "attention": weights["a"]})


def kept(monkeypatch, mask):
    """Let the synthesiser's dropout keep what the published run kept."""
    dropout = F.dropout

    def recorded(inputs, p, training, *others):
        if mask is None or inputs.shape != mask.shape or not training:
            return dropout(inputs, p, training, *others)
        return inputs * mask / (1 - p)

    monkeypatch.setattr(F, "dropout", recorded)


@pytest.mark.parametrize("name", ["sracl-synthesis", "sracl-synthesis_dropout"])
def test_synthesis_is_the_published_one(name, monkeypatch):
    arrays = reference(name)
    synthesiser = Synthesiser(12, 16).train(name.endswith("dropout"))
    load_synthesiser(synthesiser, arrays)
    kept(monkeypatch, arrays.get("keep_mask"))
    own, near = arrays["user_emb"][arrays["ids"]], arrays["user_emb"][arrays["neighbours"][arrays["ids"]]]
    weights = synthesiser(own, near)
    torch.testing.assert_close(weights, arrays["probs"], rtol=1e-9, atol=1e-11)
    (arrays["w"] * weights).sum().backward()
    torch.testing.assert_close(synthesiser.projection.grad, arrays["grad_W"], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(synthesiser.attention.grad, arrays["grad_a"], rtol=1e-9, atol=1e-11)


def right_padded(sequences, lengths):
    """The last items of rows that are padded on the left, moved to the left end."""
    width = sequences.shape[-1]
    places = torch.arange(width) + width - lengths[..., None]
    return sequences.gather(-1, places.clamp(max=width - 1)) * (torch.arange(width) < lengths[..., None])


def given(arrays, head, encoder, batch):
    """Samples, views and neighbours of a published batch, and the head filled with them."""
    count, near = batch["neighbour_seqs"].shape[:2]
    sequences = batch["neighbour_seqs"].flatten(0, 1)
    lengths = (sequences > 0).sum(-1)
    items = right_padded(sequences, lengths)
    flat, starts = items[items > 0].numpy(), np.concatenate([[0], lengths.cumsum(0)[:-1].numpy()])
    # Each neighbour of the batch is a row of its own; the vectors stand in the same order.
    found = torch.arange(count * near).view(count, near)
    ids = batch["ids"]
    vectors = torch.cat(
        [arrays["user_emb"][arrays["neighbours"][ids]].flatten(0, 1), arrays["user_emb"][ids]]
    )
    table = torch.full((count * near + count, near), -1)
    table[count * near :] = found
    head.use(
        encoder, PrefixTable(flat, starts, lengths.numpy()), vectors, table, torch.zeros(21, near).long()
    )
    item_lengths = batch["item_len"]
    views = [(right_padded(batch[name], item_lengths), item_lengths) for name in ("aug1", "aug2")]
    samples = Samples(
        right_padded(batch["item_seq"], item_lengths),
        item_lengths,
        batch["target"],
        torch.arange(count) + count * near,
        generator(),
    )
    return samples, views


def build(arrays, prefix):
    encoder = SASRec(20, 16, 2, 2, 32, 8, 0.0, 0.0, positions="end").double()
    weights = under(arrays, prefix)
    encoder.load_state_dict(translate(weights, 20))
    return encoder, weights


def test_terms_are_the_published_ones():
    arrays = reference("sracl-losses")
    encoder, weights = build(arrays, "param.")
    head = SRACL(attention_dropout=0.0)
    samples, views = given(arrays, head, encoder, arrays)
    load_synthesiser(head.synthesiser, weights)
    states = encoder.encode(samples.items, samples.lengths)
    torch.testing.assert_close(states, arrays["h"], rtol=1e-8, atol=1e-10)
    positives = head.synthesise(encoder, samples.rows, head.prefix_neighbours[samples.rows])
    torch.testing.assert_close(positives, arrays["h_pos"], rtol=1e-8, atol=1e-10)
    losses = {
        "rec": FullSoftmax()(states, samples.targets, encoder.item_vectors(), generator()),
        "item_cl": pair_contrast(*encode_all(encoder, *views)),
        "user_cl": pair_contrast(states, positives),
        "user_cl_paper": one_way_contrast(states, positives),
    }
    parameters = {
        "item_embedding.weight": encoder.item_embedding.weight,
        "position_embedding.weight": encoder.position_embedding.weight,
        "W": head.synthesiser.projection,
        "a": head.synthesiser.attention,
    }
    for name, loss in losses.items():
        torch.testing.assert_close(loss, arrays[f"loss.{name}"], rtol=1e-8, atol=1e-10)
        for parameter, expected in under(arrays, f"grad.{name}.").items():
            (gradient,) = torch.autograd.grad(loss, parameters[parameter], retain_graph=True)
            torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10, msg=f"{name} {parameter}")


def test_steps_are_the_published_ones(monkeypatch):
    arrays = reference("sracl-step")
    with np.load(REFERENCE / "sracl-step.npz", allow_pickle=False) as file:
        hyper = json.loads(str(file["meta"]))["hyper"]
    encoder, weights = build(arrays, "before.")
    head = SRACL(user_weight=hyper["alpha"], item_weight=hyper["beta"])
    batch = under(arrays, "batch0.")
    samples, views = given(arrays, head, encoder, batch)
    load_synthesiser(head.synthesiser, weights)
    kept(monkeypatch, batch["keep_mask"])
    drawn = iter(views)
    monkeypatch.setattr("recsys.sracl.augment.substitute", lambda *_: next(drawn))
    model = SequentialRecommender(encoder, heads=[head])
    monkeypatch.setattr(model, "manual_backward", lambda loss: loss.backward())
    step = Batch(
        samples.items,
        samples.lengths,
        torch.arange(len(samples.items)),
        samples.lengths - 1,
        samples.targets,
        samples.rows,
    )
    next_item, total = model.update(model.configure_optimizers(), [Part(step, samples, generator())])
    rec, item, user = arrays["totals"]
    torch.testing.assert_close(next_item, rec, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        total, rec + hyper["alpha"] * user + hyper["beta"] * item, rtol=1e-7, atol=1e-9
    )
    after = under(arrays, "after.")
    for name, expected in translate(after, 20).items():
        torch.testing.assert_close(encoder.state_dict()[name], expected, rtol=1e-7, atol=1e-9, msg=name)
    torch.testing.assert_close(head.synthesiser.projection.detach(), after["W"], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(head.synthesiser.attention.detach(), after["a"], rtol=1e-7, atol=1e-9)


def test_contrasts_are_their_definitions():
    states, positives = rows(5), rows(5, seed=1)
    logits = states @ positives.T / 0.5
    torch.testing.assert_close(
        one_way_contrast(states, positives, 0.5), F.cross_entropy(logits, torch.arange(5))
    )
    inputs = [states.requires_grad_(), positives.requires_grad_()]
    assert torch.autograd.gradcheck(one_way_contrast, inputs)


def test_missing_neighbours_have_no_weight():
    synthesiser = Synthesiser(6, 4, dropout=0.0).double()
    own, near = rows(2), rows(6, seed=1).view(2, 3, 6)
    present = torch.tensor([[True, True, False], [True, False, False]])
    weights = synthesiser(own, near, present)
    torch.testing.assert_close(weights[0, :2], synthesiser(own[:1], near[:1, :2])[0])
    assert weights[0, 2] == 0
    assert weights[1].tolist() == [1, 0, 0]


def test_neighbours_whose_weight_is_dropped_are_not_encoded():
    torch.manual_seed(0)
    encoder = SASRec(20, 8, 1, 2, 16, 6, 0.0, 0.0).double()
    head = SRACL(neighbours=4)
    table = PrefixTable(np.arange(1, 19), np.arange(12), np.full(12, 3))
    head.use(encoder, table, rows(12), torch.arange(12).view(3, 4), torch.zeros(21, 4).long())
    head.synthesiser.double()
    weights = torch.tensor([[0.5, 0, 0, 2], [0, 0, 0, 0], [0, 0.25, 0, 0]], dtype=torch.float64)
    encoded = []

    def recorded(pool, distinct):
        encoded.extend(distinct.tolist())
        return SASRec.encode_prefixes(encoder, pool, distinct)

    encoder.encode_prefixes = recorded
    head.synthesiser.forward = lambda *_: weights
    mixed = head.synthesise(encoder, torch.arange(3), head.prefix_neighbours)
    assert encoded == [0, 3, 9]
    states = encoder.encode(*table.gather(torch.arange(12))).view(3, 4, 8)
    torch.testing.assert_close(mixed, torch.einsum("bk,bkd->bd", weights, states))
    weights = torch.zeros_like(weights)
    assert not head.synthesise(encoder, torch.arange(3), head.prefix_neighbours).any()


@pytest.mark.parametrize("semantics", ["attributes", "interactions"])
def test_by_default_no_neighbour_is_of_the_same_user(semantics, tmp_path):
    data = RecommenderData(synthetic={"users": 60, "items": 40})
    table = training_prefixes(data.split, 50)
    encoder = SASRec(data.num_items)
    users = np.repeat(np.arange(60), np.maximum(data.split.train.lengths - 1, 0))
    heads = {}
    for retrieval in ("other_users", "official_leaky"):
        head = heads[retrieval] = SRACL(semantics=semantics, retrieval=retrieval, cache=str(tmp_path))
        head.setup(encoder, data.split, table)
    found = heads["other_users"].prefix_neighbours.numpy()
    assert (found >= 0).any()
    assert not (users[found] == users[:, None])[found >= 0].any()
    leaky = heads["official_leaky"].prefix_neighbours.numpy()
    inside = leaky < len(users)
    assert (users[np.where(inside, leaky, 0)] == users[:, None])[inside].mean() > 0.05
    again = SRACL(semantics=semantics, cache=str(tmp_path))
    again.setup(encoder, data.split, table)
    assert (again.prefix_neighbours == heads["other_users"].prefix_neighbours).all()


@pytest.mark.parametrize("retrieval", ["other_users", "official_leaky"])
def test_neighbours_hold_what_the_table_of_prefixes_holds(retrieval):
    data = RecommenderData(synthetic={"users": 60, "items": 40})
    table = training_prefixes(data.split, 6, 3)  # shorter than the encoder reads
    head = SRACL(retrieval=retrieval)
    head.setup(SASRec(data.num_items, max_length=9), data.split, table)
    rows = torch.arange(len(table))
    items, lengths = table.gather(rows)
    found, as_long = head.pool.gather(rows)
    assert lengths.max() == 6
    assert as_long.tolist() == lengths.tolist()
    assert (found == items).all()


def test_neighbours_agree_in_recent_items_if_those_weigh_more():
    data = RecommenderData(synthetic={"users": 60, "items": 40})
    table = training_prefixes(data.split, 50)
    last = table.items[table.starts + table.lengths - 1]
    shares = []
    for recency in (1.0, 0.5, 0.01):
        head = SRACL(recency=recency)
        head.setup(SASRec(data.num_items), data.split, table)
        shares.append((last[head.prefix_neighbours] == last[:, None]).double().mean())
    assert shares[0] < shares[1] < shares[2]
    with pytest.raises(ValueError, match="recency is 0"):
        SRACL(recency=0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_batch_without_any_neighbour_has_no_user_term(symmetric):
    data = RecommenderData(synthetic={"users": 1, "items": 40})  # nobody else to find
    table, encoder = training_prefixes(data.split, 50), SASRec(data.num_items)
    head = SRACL(item_weight=0.0, symmetric=symmetric)
    head.setup(encoder, data.split, table)
    drawn = torch.arange(2)
    loss = head(encoder, Samples(*table.gather(drawn), table.targets[drawn], drawn, generator()))
    assert loss == 0
    loss.backward()


def test_data_without_texts_is_refused():
    data = RecommenderData(synthetic={"users": 30, "items": 40})
    object.__setattr__(data.split.data, "texts", None)
    with pytest.raises(ValueError, match="the data has no texts"):
        SRACL(semantics="texts").setup(SASRec(40), data.split, training_prefixes(data.split, 50))
    with pytest.raises(ValueError, match="retrieval is 'all'"):
        SRACL(retrieval="all")


def test_items_that_stand_together_have_similar_vectors():
    random = np.random.default_rng(0)
    histories = [random.choice(np.arange(1, 6) + 5 * (user % 2), 5) for user in range(200)]
    vectors = interaction_vectors(Sequences.from_lists(histories), 11, dim=4)
    assert vectors.shape == (12, 4)
    assert not vectors[[0, 11]].any()
    products = vectors[1:11] @ vectors[1:11].T
    assert products[:5, :5].mean() > products[:5, 5:].mean() + 0.5
    with pytest.raises(ValueError, match="dim is 0"):
        interaction_vectors(Sequences.from_lists(histories), 11, dim=0)
