"""Weights of other people: from a file, or from a hub, whose failure is one sentence and comes at once."""

import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from contrastive.errors import FileMissing, FileTrouble, InputError, InvalidValue

PATIENCE = (
    3.0  # seconds for the hub to take a connection; its client would try ten times, for over two minutes
)


@contextmanager
def fetching(name: str, remedy: str) -> Iterator[None]:
    """Fetch weights within this: from the cache where the hub cannot be reached, and with one sentence on failure.

    Args:
        name: of the model, for the sentence.
        remedy: what else the caller can do, for the sentence.

    Raises:
        OSError: whatever went wrong within, but what is one of our own exceptions already.
    """
    try:
        with offline_if_unreachable():
            yield
    except InputError:
        raise
    except Exception as error:  # of several network libraries
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileTrouble(f"the weights of {name} cannot be fetched ({reason}); {remedy}") from error


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Have the Hugging Face hub's client take what is in its cache, and fail at once, where the hub does not answer."""
    try:
        from huggingface_hub import constants
    except ImportError:  # torchvision's weights do without
        yield
        return
    before = constants.HF_HUB_OFFLINE
    # The switch is a constant that is read at every request; its environment variable is read at import only.
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(address: str) -> bool:
    parts = urllib.parse.urlsplit(address)
    if parts.hostname is None or parts.scheme in urllib.request.getproxies():
        return True  # not ours to tell: a proxy answers in its place
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def read_weights(name: str, path: Path) -> dict[str, Tensor]:
    """Read a ``state_dict`` from a file of safetensors or of ``torch.save``; nothing in it is executed.

    What trainers wrap around it is taken off: a ``"state_dict"`` or ``"model"`` within a checkpoint, and ``module.``
    before every name.

    Args:
        name: of the encoder, for messages.
        path: of the file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, holds more than tensors and plain values, or no ``state_dict``.
    """
    if not path.is_file():
        raise FileMissing(f"weights of {name} is {str(path)!r}, which is no file; give one of weights.")
    try:
        found: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, LookupError) as error:
        raise InvalidValue(f"weights of {name} is {str(path)!r}, which is no file of weights.") from error
    except Exception as error:  # pickle's, for anything but plain data
        raise InvalidValue(
            f"weights of {name} is {str(path)!r}, which holds more than tensors and could run code; it is not read: "
            "ask for it as safetensors."
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise InvalidValue(f"weights of {name} is {str(path)!r}, which holds no state_dict; give one.")
    return {str(key).removeprefix("module."): value for key, value in found.items()}
