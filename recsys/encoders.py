"""Encoders of interaction histories: SASRec and GRU4Rec, which read all prefixes of a history in one pass.

Histories are rows of item codes, oldest first, padded with 0 on the right. Both encoders are causal, so the state at
position ``t`` is that of the prefix of ``t + 1`` items: one pass over a user's history gives a state for each of the
targets in it, and padding on the right cannot reach any of them.

An encoder of your own derives from :class:`SequenceEncoder` and has a ``forward(items, lengths) -> (B, T, dim)``; all
else follows from that. It sets ``shares_prefixes = False`` if its states depend on what follows in the history, or on
where the history ends.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive.checks import check_choice, check_number, check_whole
from contrastive.errors import InvalidValue
from recsys.batches import gather_windows

if TYPE_CHECKING:
    from recsys.batches import PrefixTable

HIDDEN = (
    -10_000.0
)  # added to the logit of a pair that must not attend; finite, so that no row of them becomes NaN
_LENGTH_GROUPS = 12  # into which a batch is split on a CPU, each padded to its own longest history
_ROW_ITEMS = 2**13  # that go through the layers together on a CPU, so that all stays in its cache


class Group(NamedTuple):
    """Histories of similar length, and which of their states are asked for.

    Attributes:
        items: ``(R, T)`` int64, right-padded with 0.
        lengths: ``(R,)`` int64.
        rows: ``(P,)`` int64, the history of each state; ``None`` for one state of every history.
        places: ``(P,)`` int64, after which of its items.
    """

    items: Tensor
    lengths: Tensor
    rows: Tensor | None
    places: Tensor


def _by_length(lengths: Tensor) -> tuple[Tensor, ...]:
    """Rows in the order of their lengths, in groups that are worth a padding of their own."""
    order = torch.argsort(lengths, stable=True)
    if lengths.is_cpu:
        return order.chunk(_LENGTH_GROUPS if len(order) >= 8 * _LENGTH_GROUPS else 1)
    # On a GPU the number of operations takes time too: split only where most of one group were padding.
    return order.chunk(4 if len(lengths) * lengths.max() > 2 * lengths.sum() else 1)


def _inverse(order: Tensor) -> Tensor:
    """The permutation that undoes one."""
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return back


def _rows_of(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that go through the layers together: all of them, or on a CPU what its cache holds."""
    rows: list[list[Group]] = [[]]
    size = 0
    for group in groups:
        if rows[-1] and group.items.is_cpu and size + group.items.numel() > _ROW_ITEMS:
            rows.append([])
            size = 0
        rows[-1].append(group)
        size += group.items.numel()
    return rows


class SequenceEncoder(nn.Module):
    """The item table, which inputs and targets share, and what follows from states.

    Args:
        num_items: items of the catalogue; their codes are 1 to ``num_items``, 0 is padding. ``None`` waits for
            :meth:`setup`, which :class:`~recsys.SequentialRecommender` calls.
        dim: width ``d`` of item vectors and states.
        max_length: longest history that is read; of a longer one the last items.

    Raises:
        ValueError: a number below 1.
    """

    item_embedding: nn.Embedding
    shares_prefixes: bool = True  # the state at a place is that of the prefix that ends there

    def __init__(self, num_items: int | None, dim: int, max_length: int) -> None:
        super().__init__()
        self.num_items, self.dim = 0, check_whole(type(self).__name__, "dim", dim)
        self.max_length = check_whole(type(self).__name__, "max_length", max_length)
        self.config: dict[str, Any] = {}
        if num_items is not None:
            self.setup(num_items)

    def setup(self, num_items: int) -> None:
        """Make the item table, once the catalogue is known.

        Raises:
            ValueError: fewer than one item, or another number than the table was made for.
        """
        num_items = check_whole(type(self).__name__, "num_items", num_items)
        if self.num_items not in (0, num_items):
            raise InvalidValue(
                f"{type(self).__name__}: num_items is {num_items}, the item table is for {self.num_items}; give data "
                "of the same catalogue, or a new encoder."
            )
        if not self.num_items:
            self.num_items = num_items
            self.item_embedding = nn.Embedding(num_items + 1, self.dim, padding_idx=0)
            nn.init.normal_(self.item_embedding.weight, std=0.02)
        self.config["num_items"] = num_items

    def item_vectors(self) -> Tensor:
        """Return the item table ``(num_items + 1, d)``; row 0 is padding. A score is a product with a state."""
        return self.item_embedding.weight

    def encode(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the state ``(B, d)`` after the last item of each history.

        Args:
            items: ``(B, T)`` int64 codes, right-padded with 0.
            lengths: ``(B,)`` int64, 1 to T.
        """
        return self.states_of([Group(items, lengths, None, lengths - 1)])

    def states_of(self, groups: Sequence[Group]) -> Tensor:
        """Return the states ``(P, d)`` that all groups ask for, one group after the other.

        An encoder that can read several groups together, or leave out places nobody asks for, overrides it.
        """
        states = []
        for group in groups:
            whole = self(group.items, group.lengths)
            rows = torch.arange(len(whole), device=whole.device) if group.rows is None else group.rows
            states.append(whole[rows, group.places])
        return torch.cat(states)

    def encode_grouped(self, items: Tensor, lengths: Tensor) -> Tensor:
        """As :meth:`encode`, in groups of similar length, so that short histories do not pay for long ones."""
        parts = _by_length(lengths)
        states = self.states_of(
            [
                Group(items[rows, : int(lengths[rows[-1]])], lengths[rows], None, lengths[rows] - 1)
                for rows in parts
            ]
        )
        return states[_inverse(torch.cat(parts))]

    def encode_prefixes(self, table: "PrefixTable", rows: Tensor) -> Tensor:
        """Return the states ``(P, d)`` of the prefixes ``rows`` ``(P,)`` of a table.

        Prefixes that begin at the same place of the table are read from one pass, if the encoder's states allow.
        """
        if not self.shares_prefixes:
            return self.encode_grouped(*table.gather(rows))
        starts, pass_of = torch.unique(table.starts[rows], return_inverse=True)
        lengths = table.lengths[rows]
        longest = torch.zeros_like(starts).scatter_reduce_(0, pass_of, lengths, "amax")
        parts = _by_length(longest)
        rank = _inverse(torch.cat(parts))
        at = torch.argsort(rank[pass_of], stable=True)  # prefixes in the order of their passes
        firsts = torch.tensor([0, *(len(part) for part in parts)], device=at.device).cumsum(0)
        ends = torch.searchsorted(rank[pass_of[at]], firsts[1:-1])
        groups = []
        for part, first, some in zip(parts, firsts[:-1].tolist(), at.tensor_split(ends.cpu()), strict=True):
            windows = gather_windows(table.items, starts[part], longest[part])
            groups.append(Group(*windows, rank[pass_of[some]] - first, lengths[some] - 1))
        return self.states_of(groups)[_inverse(at)]

    def check(self, items: Tensor, lengths: Tensor) -> None:
        """Refuse histories that the encoder cannot read.

        Raises:
            ValueError: no item table yet, other shapes or dtypes than expected, or more than ``max_length`` columns.
        """
        name = type(self).__name__
        if not self.num_items:
            raise InvalidValue(f"{name}: the number of items is not known yet; call setup(num_items) first.")
        if items.ndim != 2 or items.dtype != torch.int64 or lengths.shape != items.shape[:1]:
            raise InvalidValue(
                f"{name}: items are {tuple(items.shape)} {items.dtype} and lengths {tuple(lengths.shape)}; expected "
                "int64 item codes (B, T), right-padded with 0, and one length for each row."
            )
        if items.shape[1] > self.max_length:
            raise InvalidValue(
                f"{name}: histories have {items.shape[1]} columns, max_length is {self.max_length}; keep the last "
                "items of longer ones (Sequences.padded does), or build the encoder for more."
            )


class Dropout(nn.Module):
    """Dropout that draws a random number for four elements, 16 bits each, on a CPU, where drawing is what takes time.

    Args:
        share: of the elements that become 0, to 1 / 65,536; the others are scaled up.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of a tensor of any shape while training."""
        if not self.training or not self.share:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.share)
        bits = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),)).view(torch.int16)
        kept = bits[: x.numel()].view(x.shape) >= round(self.share * 2**16) - 2**15
        return x * kept.to(x.dtype).mul_(1 / (1 - self.share))


class SASRec(SequenceEncoder):
    """Causal self-attention over a history (Kang & McAuley 2018, arXiv 1808.09781), in the post-norm form of RecBole.

    ``X = Dropout(LayerNorm(E[item] + P[position]))``, then ``layers`` times attention and a feed-forward network, each
    ``X <- LayerNorm(X + Dropout(f(X)))``. All weights start from N(0, 0.02), biases from 0.

    Args:
        num_items: items of the catalogue; ``None`` waits for :meth:`setup`.
        dim: width ``d``.
        layers: number of blocks.
        heads: attention heads; they divide ``dim``.
        inner_dim: width of the feed-forward network.
        max_length: longest history that is read.
        dropout: of embeddings and of what enters a residual sum.
        attention_dropout: of attention weights.
        positions: counted from the ``"start"`` of a history, or so that its last item always stands at the ``"end"``,
            at ``max_length - 1``, as with padding on the left. Only from the start do prefixes of one history share
            their states.

    Raises:
        ValueError: a size below 1, heads that do not divide ``dim``, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        num_items: int | None = None,
        dim: int = 64,
        layers: int = 2,
        heads: int = 2,
        inner_dim: int = 256,
        max_length: int = 50,
        dropout: float = 0.5,
        attention_dropout: float = 0.5,
        positions: Literal["start", "end"] = "start",
    ) -> None:
        super().__init__(num_items, dim, max_length)
        dim, max_length = self.dim, self.max_length
        layers = check_whole("SASRec", "layers", layers)
        heads = check_whole("SASRec", "heads", heads)
        inner_dim = check_whole("SASRec", "inner_dim", inner_dim)
        dropout = check_number("SASRec", "dropout", dropout, "[0, 1)")
        attention_dropout = check_number("SASRec", "attention_dropout", attention_dropout, "[0, 1)")
        check_choice("SASRec", "positions", positions, ("start", "end"))
        if dim % heads:
            raise InvalidValue(f"SASRec: heads is {heads} with dim={dim}; give heads that divide dim.")
        self.config |= {
            "dim": dim,
            "layers": layers,
            "heads": heads,
            "inner_dim": inner_dim,
            "max_length": max_length,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "positions": positions,
        }
        self.shares_prefixes = positions == "start"
        self.position_embedding = nn.Embedding(max_length, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(dim, heads, inner_dim, dropout, attention_dropout) for _ in range(layers)
        )
        self.apply(_initialise)

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the states ``(B, T, d)`` after every item of histories ``items`` ``(B, T)`` of ``lengths`` ``(B,)``.

        A 0 inside a history is a masked item: it keeps its place, and no other position attends to it.

        Raises:
            ValueError: shapes or dtypes are not those, or T is above ``max_length``.
        """
        tokens, spans = self._start([Group(items, lengths, None, lengths - 1)])
        for block in self.blocks:
            tokens = block(tokens, spans)
        return tokens.view(*items.shape, -1)

    def states_of(self, groups: Sequence[Group]) -> Tensor:
        """As of :class:`SequenceEncoder`: groups go through the layers as one row of items, and meet apart in
        attention only; the last block computes the places that are asked for.
        """
        return torch.cat([self._states_of(some) for some in _rows_of(groups)])

    def _states_of(self, groups: Sequence[Group]) -> Tensor:
        """The states of groups that go through the layers together."""
        tokens, spans = self._start(groups)
        for block in self.blocks[:-1]:
            tokens = block(tokens, spans)
        queries, first = [], 0
        for group, span in zip(groups, spans, strict=True):
            hidden = torch.arange(span.length, device=tokens.device) > group.places[:, None]
            if span.mask is not None:
                hidden |= (group.items if group.rows is None else group.items[group.rows]) == 0
            fill = -torch.inf if span.mask is None else HIDDEN
            mask = torch.zeros(hidden.shape, dtype=tokens.dtype, device=tokens.device)
            rows = torch.arange(span.rows, device=tokens.device) if group.rows is None else group.rows
            at = first + rows * span.length + group.places
            queries.append(Queries(group.rows, at, mask.masked_fill_(hidden, fill)[:, None, None]))
            first += span.rows * span.length
        out: Tensor = self.blocks[-1](tokens, spans, queries)
        return out

    def _start(self, groups: Sequence[Group]) -> tuple[Tensor, list["Span"]]:
        """What enters the first block: the items of all groups ``(N, d)``, and how they lie there."""
        items, positions, spans = [], [], []
        for group in groups:
            self.check(group.items, group.lengths)
            places = torch.arange(group.items.shape[1], device=group.items.device).expand_as(group.items)
            if not self.shares_prefixes:
                places = places + (self.max_length - group.lengths)[:, None]
                places = places.clamp(max=self.max_length - 1)
            items.append(group.items.flatten())
            positions.append(places.flatten())
        codes = torch.cat(items)
        tokens = self.dropout(
            self.norm(self.item_embedding(codes) + self.position_embedding(torch.cat(positions)))
        )
        # Without masked items the causal order alone decides who attends to whom.
        masked = bool(codes.count_nonzero() != torch.stack([group.lengths.sum() for group in groups]).sum())
        for group in groups:
            rows, length = group.items.shape
            spans.append(Span(rows, length, self._mask(group.items, tokens.dtype) if masked else None))
        return tokens, spans

    def _mask(self, items: Tensor, dtype: torch.dtype) -> Tensor:
        """What to add to attention logits: ``(B, 1, T, T)``."""
        size = items.shape[1]
        later = torch.ones(size, size, dtype=torch.bool, device=items.device).triu(1)
        hidden = later | (items == 0)[:, None, None, :]
        return torch.zeros(hidden.shape, dtype=dtype, device=items.device).masked_fill_(hidden, HIDDEN)


class Span(NamedTuple):
    """``rows`` histories of one padded ``length``, in a row of items.

    Attributes:
        rows: number of histories.
        length: of each.
        mask: what to add to attention logits, ``(rows, 1, length, length)``; None for the causal order alone.
    """

    rows: int
    length: int
    mask: Tensor | None


class Queries(NamedTuple):
    """Places of a :class:`Span` whose states are computed.

    Attributes:
        rows: ``(P,)`` int64; None for one place of every history.
        at: ``(P,)`` int64, where the places stand in the row of items.
        mask: what to add to their attention logits, ``(P, 1, 1, length)``.
    """

    rows: Tensor | None
    at: Tensor
    mask: Tensor


class Block(nn.Module):
    """Multi-head causal attention, then a feed-forward network, both with residual sum and LayerNorm behind."""

    def __init__(
        self, dim: int, heads: int, inner_dim: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, Dropout(attention_dropout)
        self.qkv = nn.Linear(dim, 3 * dim)  # one product instead of three
        self.out = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=1e-12)
        self.inner = nn.Linear(dim, inner_dim)
        self.outer = nn.Linear(inner_dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = Dropout(dropout)

    def forward(
        self, tokens: Tensor, spans: Sequence[Span], queries: Sequence[Queries] | None = None
    ) -> Tensor:
        """Map items ``(N, d)``, the spans one after the other, to states ``(N, d)``, or ``(P, d)`` of all queries."""
        sizes, attended = [span.rows * span.length for span in spans], []
        if queries is None:
            for part, span in zip(torch.split(self.qkv(tokens), sizes), spans, strict=True):
                query, key, value = self._split(part, span.rows)
                attended.append(self._attend(query, key, value, span.mask))
        else:
            dim, (weight, bias) = tokens.shape[-1], (self.qkv.weight, self.qkv.bias)
            parts = torch.split(F.linear(tokens, weight[dim:], bias[dim:]), sizes)
            tokens = tokens[torch.cat([asked.at for asked in queries])]
            own = torch.split(
                F.linear(tokens, weight[:dim], bias[:dim]), [len(asked.at) for asked in queries]
            )
            for part, part_own, span, asked in zip(parts, own, spans, queries, strict=True):
                key, value = self._split(part, span.rows)
                if asked.rows is not None:
                    key, value = key[asked.rows], value[asked.rows]
                (query,) = self._split(part_own, len(part_own))
                attended.append(self._attend(query, key, value, asked.mask))
        rows = torch.cat([part.transpose(1, 2).flatten(2).flatten(0, 1) for part in attended])
        states = self.attention_norm(tokens + self.dropout(self.out(rows)))
        out: Tensor = self.norm(states + self.dropout(self.outer(_gelu(self.inner(states)))))
        return out

    def _split(self, projected: Tensor, rows: int) -> Tensor:
        """Parts and heads of projections ``(rows · T, parts · d)``: ``(parts, rows, heads, T, d / heads)``."""
        size = self.out.in_features // self.heads
        parts = projected.shape[1] // self.out.in_features
        return projected.view(rows, -1, parts, self.heads, size).permute(2, 0, 3, 1, 4)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        share = self.attention_dropout.share if self.training else 0.0
        if query.device.type != "cpu" or not share:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=share, is_causal=mask is None
            )
        rows, heads, length, size = key.shape
        if mask is None:
            mask = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1)
        else:
            mask = mask.expand(rows, heads, -1, -1).flatten(0, 1)
        query, key, value = (part.flatten(0, 1) for part in (query, key, value))
        logits = torch.baddbmm(mask, query, key.mT, alpha=size**-0.5)
        out: Tensor = self.attention_dropout(logits.softmax(-1)) @ value
        return out.view(rows, heads, -1, size)


def _gelu(x: Tensor) -> Tensor:
    """GELU, of the transpose: on a CPU oneDNN takes contiguous tensors, and compiles a kernel for every new shape."""
    return F.gelu(x.mT).mT


class GRU4Rec(SequenceEncoder):
    """A gated recurrent network over a history (Hidasi et al. 2016, arXiv 1511.06939), in the form of RecBole.

    ``Dropout(E[item])``, a GRU without biases, and a linear map back to the width of the item table.

    Args:
        num_items: items of the catalogue; ``None`` waits for :meth:`setup`.
        dim: width ``d`` of item vectors and states.
        hidden_dim: width of the recurrent state.
        layers: recurrent layers.
        max_length: longest history that is read.
        dropout: of the embeddings.

    Raises:
        ValueError: a size below 1, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        num_items: int | None = None,
        dim: int = 64,
        hidden_dim: int = 128,
        layers: int = 1,
        max_length: int = 50,
        dropout: float = 0.3,
    ) -> None:
        super().__init__(num_items, dim, max_length)
        dim, max_length = self.dim, self.max_length
        hidden_dim = check_whole("GRU4Rec", "hidden_dim", hidden_dim)
        layers = check_whole("GRU4Rec", "layers", layers)
        dropout = check_number("GRU4Rec", "dropout", dropout, "[0, 1)")
        self.config |= {
            "dim": dim,
            "hidden_dim": hidden_dim,
            "layers": layers,
            "max_length": max_length,
            "dropout": dropout,
        }
        self.dropout = Dropout(dropout)
        self.gru = nn.GRU(dim, hidden_dim, layers, bias=False, batch_first=True)
        self.out = nn.Linear(hidden_dim, dim)
        for weight in self.gru.parameters():
            nn.init.xavier_uniform_(weight)

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the states ``(B, T, d)`` after every item of histories ``items`` ``(B, T)`` of ``lengths`` ``(B,)``.

        Raises:
            ValueError: shapes or dtypes are not those, or T is above ``max_length``.
        """
        self.check(items, lengths)
        # In bfloat16 a CPU takes a hundred times as long.
        with torch.autocast(items.device.type, enabled=False):
            out: Tensor = self.out(self.gru(self.dropout(self.item_embedding(items)))[0])
        return out


def _initialise(module: nn.Module) -> None:
    """N(0, 0.02) for every matrix, the padding row of the item table included, as the published code has it."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
