"""Encoders of text, from the models of sentence-transformers."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contrastive.arguments import checked
from contrastive.encoders.published import offline_if_unreachable
from contrastive.errors import ExtraMissing, FileTrouble, InvalidType, InvalidValue, install


class TextEncoder(nn.Module):
    """Any model of sentence-transformers: texts in, a vector each out. Needs the extra ``text``.

    Args:
        name: name of the model, such as ``"all-MiniLM-L6-v2"``, or the folder of one.
        max_length: tokens of a text that are read, the rest is cut off; the model's own limit by default.

    Attributes:
        dim: width of the features.
        config: name, limit of tokens, and the prompt that the model sets before every text.

    Raises:
        ImportError: the extra ``text`` is not installed.
        OSError: there is no such model, or its weights cannot be fetched.
        ValueError: ``max_length`` is below 1, or the folder names modules of somebody else.
    """

    @checked
    def __init__(self, name: str = "all-MiniLM-L6-v2", max_length: int | None = None) -> None:
        super().__init__()
        if max_length is not None and max_length < 1:
            raise InvalidValue(f"max_length of TextEncoder is {max_length}; give 1 or more, or None.")
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ExtraMissing(f"TextEncoder needs the extra 'text': {install('text')}.") from error
        _check_modules(name)
        try:
            with nullcontext() if Path(name).is_dir() else offline_if_unreachable():
                self.network: Any = SentenceTransformer(name, device="cpu")
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise FileTrouble(
                f"name of TextEncoder is {name!r}, which cannot be loaded ({reason}); give the name of a model of "
                "sentence-transformers, with a connection or a copy in the cache, or the folder of one."
            ) from error
        if max_length is not None:
            self.network.max_seq_length = max_length
        self.prompt = str(self.network.prompts.get(self.network.default_prompt_name or "", ""))
        self.config = {"name": name, "max_length": self.network.max_seq_length, "prompt": self.prompt}
        with torch.no_grad():
            self.dim = self(["a text"]).shape[1]

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Encode ``B`` texts to features ``(B, dim)``.

        Raises:
            TypeError: something else than texts was given.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InvalidType("the input of TextEncoder is a sequence of texts; give a list of str.")
        network, device = self.network, next(self.network.parameters()).device
        tokenize = (
            network.preprocess if hasattr(network, "preprocess") else network.tokenize
        )  # the older name
        inputs = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in tokenize([self.prompt + text for text in texts]).items()
        }
        features: Tensor = self.network(inputs)["sentence_embedding"]
        return features


def _check_modules(folder: str) -> None:
    """Refuse a folder whose network consists of other classes, which some versions would import from the folder."""
    file = Path(folder) / "modules.json"
    if not file.is_file():
        return
    try:
        parts = json.loads(file.read_text(encoding="utf-8"))
        kinds = [part["type"] for part in parts]
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidValue(
            f"name of TextEncoder is {folder!r}, whose modules.json is damaged ({error})."
        ) from error
    for kind in kinds:
        if not str(kind).startswith("sentence_transformers."):
            raise InvalidValue(
                f"name of TextEncoder is {folder!r}, whose modules.json names {kind}, which is not of "
                "sentence-transformers and could run any code; give another model, or encode with it yourself."
            )
