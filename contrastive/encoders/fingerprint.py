"""Which encoder something was made with: a fingerprint of all that its features depend on.

A fingerprint reads ``2:ALL:WEIGHTS``, two SHA-256: of class, arguments (normalisation among them), width and weights,
and of the weights alone. Those of earlier versions are ``WEIGHTS`` alone, and are compared by that part.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_WEIGHTS = re.compile(r"[0-9a-f]{64}")
_WHOLE = re.compile(r"2:[0-9a-f]{64}:[0-9a-f]{64}")


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a ``state_dict``; how the weights are stored does not matter."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def whole_fingerprint(description: Mapping[str, Any], weights: str) -> str:
    """Fingerprint of an encoder.

    Args:
        description: ``class``, ``config`` and ``dim``, as ``encoder.json`` has them; anything else in it is left out.
        weights: SHA-256 of the weights, by :func:`weights_fingerprint`.
    """
    known = {name: description.get(name) for name in ("class", "config", "dim")}
    text = json.dumps([known, weights], sort_keys=True)
    return f"2:{hashlib.sha256(text.encode()).hexdigest()}:{weights}"


def weights_part(fingerprint: str) -> str:
    """The part of a fingerprint that is of the weights alone."""
    return fingerprint.rpartition(":")[2]


def same_encoder(one: str | None, other: str | None) -> bool:
    """Whether two fingerprints are of one encoder; where one is of an earlier version, whether the weights are."""
    if one is None or other is None or one == other:
        return one == other
    old, new = sorted((one, other), key=len)
    return bool(_WEIGHTS.fullmatch(old) and _WHOLE.fullmatch(new)) and weights_part(new) == old
