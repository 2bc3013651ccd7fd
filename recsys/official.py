"""Weights of the published MCLRec code, and of RecBole's SASRec, in our encoder."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from contrastive.errors import InvalidValue
from contrastive.reading import read_tensors
from recsys.encoders import SASRec

_PARTS = {  # ours: theirs
    "out": "multi_head_attention.dense",
    "attention_norm": "multi_head_attention.LayerNorm",
    "inner": "feed_forward.dense_1",
    "outer": "feed_forward.dense_2",
    "norm": "feed_forward.LayerNorm",
}


def load_recbole(source: str | os.PathLike[str] | Mapping[str, Tensor], heads: int = 2) -> SASRec:
    """Build the encoder of a checkpoint of MCLRec's published code, or of RecBole's SASRec.

    Item codes of ours are theirs if item ids were numbered alike: theirs go by first appearance in the file, ours by
    the order of the ids (:meth:`SequenceData.encode` tells). A row beyond the catalogue, MCLRec's unused mask token, is
    left out where the file names the number of items, which is what MCLRec's augmenters tell.

    Args:
        source: a ``.pth`` file, of which nothing but tensors and plain data is read, or a state dict.
        heads: attention heads, which weights do not tell.

    Returns:
        The encoder, in evaluation mode, with the dropout of the published settings, 0.5.

    Raises:
        ValueError: the file cannot be read safely, or does not hold such an encoder.
    """
    weights = source if isinstance(source, Mapping) else _read(source)
    try:
        items = weights["item_embedding.weight"]
        positions = weights["position_embedding.weight"]
        depth = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("trm_encoder.layer."))
        inner = weights["trm_encoder.layer.0.feed_forward.dense_1.weight"]
    except (KeyError, ValueError) as missing:
        raise InvalidValue(
            f"load_recbole: the weights have no {missing}; give a checkpoint of MCLRec or of RecBole's SASRec."
        ) from None
    # MCLRec's item table has one row more than the catalogue with its padding, for a mask token.
    extra = int(any("aug" in name.split(".")[0] for name in weights))
    encoder = SASRec(
        len(items) - 1 - extra, items.shape[1], depth, heads, len(inner), len(positions), 0.5, 0.5
    ).to(items.dtype)
    encoder.load_state_dict(translate(weights, encoder.num_items))
    return encoder.eval()


def translate(weights: Mapping[str, Tensor], num_items: int) -> dict[str, Tensor]:
    """Weights under our names, of RecBole's names.

    Args:
        weights: state dict with ``item_embedding.weight``, ``trm_encoder.layer.0...`` and so on.
        num_items: of the catalogue, without padding.

    Returns:
        State dict of :class:`SASRec`.
    """
    ours = {
        "item_embedding.weight": weights["item_embedding.weight"][: num_items + 1],
        "position_embedding.weight": weights["position_embedding.weight"],
        "norm.weight": weights["LayerNorm.weight"],
        "norm.bias": weights["LayerNorm.bias"],
    }
    depth = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("trm_encoder.layer."))
    for block in range(depth):
        theirs = f"trm_encoder.layer.{block}."
        for kind in ("weight", "bias"):
            attention = theirs + "multi_head_attention."
            parts = [weights[f"{attention}{part}.{kind}"] for part in ("query", "key", "value")]
            ours[f"blocks.{block}.qkv.{kind}"] = torch.cat(parts)
            for name, part in _PARTS.items():
                ours[f"blocks.{block}.{name}.{kind}"] = weights[f"{theirs}{part}.{kind}"]
    return ours


class _Inert:
    """Stands for every class that a checkpoint names: takes anything, does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _read(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:
    """The state dict of a file. Classes in it, as RecBole's configuration, are replaced and never imported."""
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins: list[Any] = [(type(f"Inert{i}", (_Inert,), {}), name) for i, name in enumerate(named)]
        with torch.serialization.safe_globals(stand_ins):
            content = read_tensors(path)
    except OSError:
        raise
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        raise InvalidValue(
            f"load_recbole: {path} cannot be read as weights only; save its state_dict with torch.save and give that "
            f"file ({' '.join(str(error).split())[:200]})."
        ) from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InvalidValue(
            f"load_recbole: {path} holds no state dict; give a checkpoint of MCLRec or of RecBole's SASRec."
        )
    return weights
