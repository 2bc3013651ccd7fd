r"""SRA-CL: positives found by meaning (Cui et al., NeurIPS 2025, arXiv 2503.04162).

Histories and items are embedded once, by a text encoder or by their attributes, and each gets its ``k`` nearest
neighbours there. Two contrastive terms come of it, both by :func:`~recsys.objectives.pair_contrast`:

* **user term**: the state ``h_u`` of a history against a mixture of its neighbours' states,

      e_uv = LeakyReLU(a1·(W U_u) + a2·(W U_v)),    p_u = softmax_v e_uv,    h_u^+ = sum_v p_uv f(S_v),

  with frozen embeddings ``U`` and learned ``W``, ``a1``, ``a2``;
* **item term**: two views of the history, in each of which items are replaced by one of their neighbours.

The published code looks for neighbours among all prefixes of all users, the history's own continuation included, so
that a positive often holds the answer. By default neighbours are training prefixes of *other* users, as the paper says.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive.arguments import checked
from contrastive.checks import check_choice, check_flag, check_number, check_whole
from contrastive.errors import InvalidValue
from contrastive.similarity import gather, global_mean, logsumexp_cross
from recsys import augment
from recsys.batches import PrefixTable
from recsys.data import Array
from recsys.objectives import Head, Samples, encode_all, pair_contrast

if TYPE_CHECKING:
    from recsys.data import Split
    from recsys.encoders import SequenceEncoder

SLOPE = 0.2  # of the LeakyReLU, as in graph attention


class Synthesiser(nn.Module):
    """Attention of a history over its neighbours, in the space of frozen embeddings.

    Args:
        semantic_dim: width ``ds`` of the embeddings.
        dim: inner width ``d``.
        dropout: of the weights while training; what is left is scaled up and not brought back to a sum of 1.

    Raises:
        ValueError: a width below 1, or a dropout outside [0, 1).
    """

    def __init__(self, semantic_dim: int, dim: int, dropout: float = 0.5) -> None:
        super().__init__()
        check_whole("Synthesiser", "semantic_dim", semantic_dim)
        check_whole("Synthesiser", "dim", dim)
        self.dropout = check_number("Synthesiser", "dropout", dropout, "[0, 1)")
        self.projection = nn.Parameter(torch.empty(semantic_dim, dim))
        self.attention = nn.Parameter(torch.empty(2 * dim, 1))
        for weight in (self.projection, self.attention):
            nn.init.xavier_uniform_(weight, gain=1.414)

    def forward(self, own: Tensor, neighbours: Tensor, present: Tensor | None = None) -> Tensor:
        """Return weights ``(B, k)``.

        Args:
            own: ``(B, ds)``.
            neighbours: ``(B, k, ds)``.
            present: ``(B, k)`` bool; False where there is no neighbour, whose weight is 0. At least one of a row.
        """
        # a·(W U) = (W^T a)·U: two vectors of width ds instead of a projection of every neighbour.
        to_own, to_neighbours = (self.projection @ self.attention.view(2, -1).T).unbind(1)
        logits = F.leaky_relu((own @ to_own)[:, None] + neighbours @ to_neighbours, SLOPE)
        if present is not None:
            logits = logits.masked_fill(~present, -torch.inf)
        return F.dropout(logits.softmax(-1), self.dropout, self.training)


def one_way_contrast(states: Tensor, positives: Tensor, temperature: float = 1.0) -> Tensor:
    """Each state against all positives, ``mean_u [ logsumexp_v(h_u·h_v^+ / t) - h_u·h_u^+ / t ]``: the paper's form.

    Args:
        states: ``(B, d)``.
        positives: ``(B, d)``.
        temperature: ``t``.

    Raises:
        ValueError: a temperature that is not above 0.
    """
    check_number("one_way_contrast", "temperature", temperature, "(0, inf)")
    candidates = gather(positives)
    scaled = states / temperature
    return global_mean(logsumexp_cross(scaled, candidates.all) - (scaled * positives).sum(-1))


class SRACL(Head):
    """The two contrastive terms of SRA-CL.

    Args:
        user_weight: of the user term (``alpha``).
        item_weight: of the item term (``beta``).
        neighbours: ``k``, of histories and of items.
        semantics: where embeddings come from: ``"attributes"`` or ``"texts"`` of the items, or, where there are
            none, training ``"interactions"`` (:mod:`recsys.cooccurrence`); a history is the mean of its items ...
        recency: ... where each item weighs ``recency`` times as much as the next one. 1, the plain mean, is the
            nearest to the paper's summary of a user; below it, neighbours more often go on with the same item.
        text_model: sentence encoder for ``semantics="texts"``.
        retrieval: ``"other_users"`` looks among training prefixes of other users; ``"official_leaky"`` among all
            prefixes, the user's own and held-out ones included, as the published code does.
        symmetric: contrast all ``2B`` rows in the user term, as the published code; else the paper's one direction.
        attention_dropout: of the synthesiser's weights; 0 in the paper, 0.5 in the published code.
        substitution: probability that an item is replaced.
        temperature: ``t``.
        cache: folder where embeddings and neighbours are kept between runs.

    Raises:
        ValueError: an unknown choice or a number out of range.
    """

    @checked
    def __init__(
        self,
        user_weight: float = 0.1,
        item_weight: float = 0.1,
        neighbours: int = 10,
        semantics: Literal["attributes", "texts", "interactions"] = "attributes",
        recency: float = 1.0,
        text_model: str = "minilm",
        retrieval: Literal["other_users", "official_leaky"] = "other_users",
        symmetric: bool = True,
        attention_dropout: float = 0.5,
        substitution: float = 0.2,
        temperature: float = 1.0,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        check_choice("SRACL", "semantics", semantics, ("attributes", "texts", "interactions"))
        check_choice("SRACL", "retrieval", retrieval, ("other_users", "official_leaky"))
        self.semantics, self.text_model, self.retrieval = semantics, text_model, retrieval
        self.user_weight = check_number("SRACL", "user_weight", user_weight, "[0, inf)")
        self.item_weight = check_number("SRACL", "item_weight", item_weight, "[0, inf)")
        self.neighbours = check_whole("SRACL", "neighbours", neighbours)
        self.recency = check_number("SRACL", "recency", recency, "(0, 1]")
        self.symmetric = check_flag("SRACL", "symmetric", symmetric)
        self.attention_dropout = check_number("SRACL", "attention_dropout", attention_dropout, "[0, 1)")
        self.substitution = check_number("SRACL", "substitution", substitution, "[0, 1]")
        self.temperature = check_number("SRACL", "temperature", temperature, "(0, inf)")
        self.cache = None if cache is None else Path(cache)
        self.synthesiser: Synthesiser | None = None

    prefix_vectors: Tensor
    prefix_neighbours: Tensor
    item_neighbours: Tensor

    def setup(self, encoder: "SequenceEncoder", split: "Split", prefixes: PrefixTable) -> None:
        """Embed items and prefixes of the data, find their neighbours, and build the synthesiser.

        Raises:
            ValueError: the data has no attributes, or texts, of its items.
        """
        from recsys import semantic

        data, leaky = split.data, self.retrieval == "official_leaky"
        if self.semantics != "interactions" and getattr(data, self.semantics) is None:
            raise InvalidValue(
                f"SRACL: semantics is {self.semantics!r}, but the data has no {self.semantics} of its items; give the "
                "data a file of them, or choose 'interactions', which needs none."
            )
        pool = semantic.split_prefixes(split, encoder.max_length, "all" if leaky else "train")
        items = self._item_vectors(split)
        vectors = semantic.prefix_embeddings(items, pool, self.recency)

        def find() -> dict[str, Array]:
            near = semantic.prefix_neighbours(pool, vectors, self.neighbours, exclude_same_user=not leaky)
            alike = semantic.item_neighbours(items, self.neighbours)
            return {"prefixes": near.ids.astype(np.int32), "items": np.maximum(alike.ids, 0)}

        key = (data.fingerprint, split.train.items, self.semantics, self.text_model)
        found = self._cached(
            find, "neighbours", *key, self.recency, self.neighbours, encoder.max_length, leaky
        )
        # Training prefixes of a user stand in one history; held-out ones have rows of their own behind.
        extra = pool.sequences.take(np.arange(pool.num_train, len(pool)))
        own, starts, lengths = (
            part.cpu().numpy() for part in (prefixes.items, prefixes.starts, prefixes.lengths)
        )
        table = PrefixTable(
            np.concatenate([own, extra.items]),
            np.concatenate([starts, len(own) + extra.offsets[:-1]]),
            np.concatenate([lengths, extra.lengths]),
        )
        tables = vectors, found["prefixes"].astype(np.int64), found["items"]
        self.use(encoder, table, *(torch.from_numpy(part) for part in tables))

    def restore(self, encoder: "SequenceEncoder", weights: Mapping[str, Tensor]) -> None:
        """Make the synthesiser of a checkpoint, whose width the embeddings had."""
        if self.synthesiser is None and "synthesiser.projection" in weights:
            width = weights["synthesiser.projection"].shape[0]
            self.synthesiser = Synthesiser(width, encoder.dim, self.attention_dropout)

    def _cached(self, compute: Callable[[], dict[str, Array]], *key: Any) -> dict[str, Array]:
        from recsys.semantic import cached

        return compute() if self.cache is None else cached(self.cache, compute, "SRACL", *key)

    def _item_vectors(self, split: "Split") -> Any:
        from recsys import cooccurrence, semantic

        data = split.data
        if self.semantics == "interactions":
            return cooccurrence.interaction_vectors(split.train, data.num_items)
        if self.semantics == "texts":
            assert data.texts is not None
            texts = data.texts
            embed = lambda: {"items": semantic.embed_texts(texts, self.text_model)}  # noqa: E731
            return self._cached(embed, "texts", texts, self.text_model)["items"]
        assert data.attributes is not None
        return semantic.attribute_vectors(data.attributes)

    def use(
        self,
        encoder: "SequenceEncoder",
        pool: PrefixTable,
        prefix_vectors: Tensor,
        prefix_neighbours: Tensor,
        item_neighbours: Tensor,
    ) -> None:
        """Take embeddings and neighbours that were found elsewhere, and build the synthesiser.

        Args:
            encoder: that is trained.
            pool: the prefixes that neighbours are taken from; the training prefixes come first, in their order.
            prefix_vectors: ``(P, ds)`` embeddings of the pool.
            prefix_neighbours: ``(S, k)`` int64 rows of the pool for each training prefix; -1 where there is none.
            item_neighbours: ``(num_items + 1, k)`` int64 items for each item; 0 where there is none.
        """
        self.pool = pool
        self.register_buffer("prefix_vectors", prefix_vectors, persistent=False)
        self.register_buffer("prefix_neighbours", prefix_neighbours, persistent=False)
        self.register_buffer("item_neighbours", item_neighbours, persistent=False)
        if self.synthesiser is None:
            self.synthesiser = Synthesiser(prefix_vectors.shape[1], encoder.dim, self.attention_dropout)

    def forward(self, encoder: "SequenceEncoder", samples: Samples) -> Tensor:
        """Return the weighted sum of user and item term."""
        views = [
            augment.substitute(
                samples.items, samples.lengths, self.item_neighbours, self.substitution, samples.generator
            )
            for _ in range(2 if self.item_weight else 0)
        ]
        states, *edited = encode_all(encoder, (samples.items, samples.lengths), *views)
        loss = states.new_zeros(())
        if self.item_weight:
            loss = loss + self.item_weight * pair_contrast(edited[0], edited[1], self.temperature)
        if self.user_weight:
            found = self.prefix_neighbours[samples.rows]
            some = (found >= 0).any(1)
            positives = self.synthesise(encoder, samples.rows[some], found[some])
            contrast = pair_contrast if self.symmetric else one_way_contrast
            loss = loss + self.user_weight * contrast(states[some], positives, self.temperature)
        return loss

    def synthesise(self, encoder: "SequenceEncoder", rows: Tensor, found: Tensor) -> Tensor:
        """Mix the states of neighbours ``found`` ``(B, k)`` of the prefixes ``rows`` ``(B,)``: ``h^+`` ``(B, d)``."""
        assert self.synthesiser is not None
        present = found >= 0
        found = found.clamp(min=0)
        weights: Tensor = self.synthesiser(self.prefix_vectors[rows], self.prefix_vectors[found], present)
        # Each neighbour is encoded once, and not at all if its weight is dropped: half of them while training.
        kept = weights != 0
        if not bool(kept.any()):
            return weights.new_zeros(len(rows), encoder.dim)
        distinct, place = torch.unique(found[kept], return_inverse=True)
        states = encoder.encode_prefixes(self.pool, distinct)
        parts: Tensor = weights[kept][:, None] * states[place]
        return parts.new_zeros(len(rows), encoder.dim).index_add(0, kept.nonzero()[:, 0], parts)
