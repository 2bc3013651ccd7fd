"""Encoders against the published code, prefixes against the whole, and checkpoints that carry foreign classes."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from recsys import GRU4Rec, SASRec
from recsys.batches import PrefixTable
from recsys.encoders import Block, Dropout, Span
from recsys.official import load_recbole, translate

REFERENCE = Path(__file__).parents[1] / "reference"


def reference(name):
    with np.load(REFERENCE / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}


def under(arrays, prefix):
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def histories(count, longest, num_items, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator)
    lengths[0] = longest
    items = torch.randint(1, num_items + 1, (count, longest), generator=generator)
    return items * (torch.arange(longest) < lengths[:, None]), lengths


def test_sasrec_is_the_published_encoder():
    arrays = reference("mclrec-encoder")
    encoder = SASRec(24, 16, 2, 2, 32, 8, 0.0, 0.0).double()
    encoder.load_state_dict(translate(under(arrays, "param."), 24))
    states = encoder.encode(arrays["item_seq"], arrays["item_len"])
    torch.testing.assert_close(states, arrays["h"], rtol=1e-8, atol=1e-10)
    logits = states @ encoder.item_vectors().T
    torch.testing.assert_close(logits, arrays["scores"], rtol=1e-8, atol=1e-10)
    F.cross_entropy(logits, arrays["target"]).backward()
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    for name, expected in translate(under(arrays, "grad."), 24).items():
        torch.testing.assert_close(gradients[name], expected, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("make", [SASRec, GRU4Rec])
@given(seed=st.integers(0, 100), longest=st.integers(1, 9))
@settings(max_examples=10, deadline=None)
def test_states_are_those_of_the_prefixes(make, seed, longest):
    torch.manual_seed(seed)
    encoder = make(30, 16, max_length=9).double().eval()
    items, lengths = histories(5, longest, 30, seed)
    states = encoder(items, lengths)
    for row in range(5):
        for end in range(1, int(lengths[row]) + 1):
            alone = encoder.encode(items[row : row + 1, :end], torch.tensor([end]))[0]
            torch.testing.assert_close(states[row, end - 1], alone)


def test_positions_from_the_end_are_those_of_padding_on_the_left():
    encoder = SASRec(30, 16, max_length=9, positions="end").double().eval()
    start = SASRec(30, 16, max_length=9).double().eval()
    start.load_state_dict(encoder.state_dict())
    items, lengths = histories(6, 9, 30)
    full = lengths == 9
    torch.testing.assert_close(encoder.encode(items, lengths)[full], start.encode(items, lengths)[full])
    shifted = encoder.encode(items[:, :4], lengths.clamp(max=4))
    with torch.no_grad():  # position p of four is position 5 + p of nine
        start.position_embedding.weight[:4] = encoder.position_embedding.weight[5:]
    whole = lengths >= 4
    torch.testing.assert_close(shifted[whole], start.encode(items[:, :4], lengths.clamp(max=4))[whole])


@pytest.mark.parametrize("together", [100, 2**13])
@pytest.mark.parametrize("make", [SASRec, GRU4Rec])
def test_groups_do_not_change_states(make, together, monkeypatch):
    monkeypatch.setattr("recsys.encoders._ROW_ITEMS", together)
    encoder = make(30, 16, max_length=20).double().eval()
    items, lengths = histories(100, 20, 30)
    torch.testing.assert_close(encoder.encode_grouped(items, lengths), encoder.encode(items, lengths))


@pytest.mark.parametrize("make", [SASRec, GRU4Rec, partial(SASRec, positions="end")])
def test_prefixes_of_one_pass_are_those_of_their_own(make):
    encoder = make(30, 16, max_length=20).double().eval()
    lengths = torch.randint(1, 21, (200,), generator=torch.Generator().manual_seed(0))
    starts = 20 * torch.randint(
        0, 12, (200,), generator=torch.Generator().manual_seed(1)
    )  # many share a history
    items = np.random.default_rng(0).integers(1, 31, 240)
    table = PrefixTable(items, starts.numpy(), lengths.numpy())
    rows = torch.arange(0, 200, 2)
    expected = encoder.encode(*table.gather(rows))
    torch.testing.assert_close(encoder.encode_prefixes(table, rows), expected)
    found = torch.autograd.grad(
        encoder.encode_prefixes(table, rows).square().sum(), encoder.item_embedding.weight
    )
    torch.testing.assert_close(
        found, torch.autograd.grad(expected.square().sum(), encoder.item_embedding.weight)
    )


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_dropout_keeps_its_share_and_scales(share):
    torch.manual_seed(0)
    dropout, inputs = Dropout(share), torch.ones(301, 1001, requires_grad=True)
    outputs = dropout(inputs)
    outputs.sum().backward()
    assert outputs.unique().tolist() == [0.0, pytest.approx(1 / (1 - share))]
    assert float((outputs == 0).float().mean()) == pytest.approx(share, abs=3e-3)
    assert torch.equal(inputs.grad, outputs.detach())
    neighbours = (outputs[:, 1:] > 0).float() * (outputs[:, :-1] > 0).float()
    assert float(neighbours.mean()) == pytest.approx((1 - share) ** 2, abs=3e-3)
    assert dropout.eval()(inputs) is inputs


@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_dropout_is_attention(masked):
    block = Block(16, 2, 32, 0.0, 1e-9).double().train()
    items, _ = histories(4, 6, 30)
    mask = None
    if masked:
        items[0, 2] = 0
        mask = SASRec(30, 16, max_length=6)._mask(items, torch.float64)
    tokens, spans = torch.randn(4 * 6, 16, dtype=torch.float64), [Span(4, 6, mask)]
    outputs = block(tokens, spans)
    torch.testing.assert_close(outputs, block.eval()(tokens, spans))


def test_nothing_attends_to_a_masked_item():
    encoder = SASRec(30, 16, max_length=6).double().eval()
    items = torch.tensor([[3, 0, 5, 7, 0, 0]])
    lengths = torch.tensor([4])
    before = encoder(items, lengths)
    with torch.no_grad():
        encoder.item_embedding.weight[0] += torch.randn(16)
    after = encoder(items, lengths)
    torch.testing.assert_close(after[0, [0, 2, 3]], before[0, [0, 2, 3]])
    assert not torch.allclose(after[0, 1], before[0, 1])


def test_the_item_table_waits_for_the_catalogue():
    encoder = SASRec(dim=16, max_length=5)
    items, lengths = histories(3, 5, 8)
    with pytest.raises(ValueError, match="call setup"):
        encoder(items, lengths)
    encoder.setup(8)
    encoder.setup(8)
    assert encoder(items, lengths).shape == (3, 5, 16)
    assert SASRec(**encoder.config).item_vectors().shape == (9, 16)
    with pytest.raises(ValueError, match="the item table is for 8"):
        encoder.setup(9)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (SASRec, {"heads": 3}, "divide dim"),
        (SASRec, {"dropout": 1.0}, "dropout is 1.0"),
        (SASRec, {"positions": "left"}, "'start', 'end'"),
        (SASRec, {"max_length": 0}, "max_length is 0"),
        (GRU4Rec, {"hidden_dim": 0}, "hidden_dim is 0"),
    ],
)
def test_bad_options_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(10, 16, **options)


@pytest.mark.parametrize(
    ("items", "lengths", "message"),
    [
        (torch.zeros(2, 6, dtype=torch.int64), torch.ones(2, dtype=torch.int64), "6 columns"),
        (torch.zeros(2, 4), torch.ones(2, dtype=torch.int64), "float32"),
        (torch.zeros(2, 4, dtype=torch.int64), torch.ones(3, dtype=torch.int64), r"\(3,\)"),
    ],
)
def test_bad_histories_are_refused(items, lengths, message):
    with pytest.raises(ValueError, match=message):
        SASRec(10, 16, max_length=5)(items, lengths)


class Configuration:
    """A class of a foreign package, as a checkpoint may hold."""

    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_published_checkpoint_is_read_without_its_classes(tmp_path, capsys):
    weights = under(reference("mclrec-step"), "before.enc.")
    augmenter = under(reference("mclrec-step"), "before.aug1.")
    state = weights | {f"aug_1.{name}": value for name, value in augmenter.items()}
    path = tmp_path / "model.pth"
    torch.save({"config": Configuration(), "state_dict": state}, path)
    encoder = load_recbole(path)
    assert "this must not run" not in capsys.readouterr().out
    assert (encoder.num_items, encoder.dim, encoder.max_length) == (19, 16, 8)
    torch.testing.assert_close(encoder.item_vectors(), weights["item_embedding.weight"][:20])
    plain = load_recbole({name: value.float() for name, value in weights.items()})
    assert (plain.num_items, plain.item_vectors().dtype) == (20, torch.float32)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="cannot be read as weights only"):
        load_recbole(path)
    torch.save({"state_dict": {"layer.weight": torch.ones(2)}}, path)
    with pytest.raises(ValueError, match="have no 'item_embedding"):
        load_recbole(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds no state dict"):
        load_recbole(path)
