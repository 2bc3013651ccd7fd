import json
from pathlib import Path

import numpy as np
import pytest
import torch

REFERENCE = Path(__file__).parent.parent / "reference"


@pytest.fixture
def reference():
    """Load a file of official inputs and outputs: arrays as tensors, ``meta`` as a dict."""

    def load(name):
        with np.load(REFERENCE / f"{name}.npz") as arrays:
            tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "meta"}
            return tensors, json.loads(str(arrays["meta"]))

    return load


@pytest.fixture
def matches(reference):
    """Compare in float64 and float32 at the tolerances that the file itself states."""

    def compare(meta, function, inputs, expected, gradients):
        """``function(*inputs) -> loss``; ``gradients`` are those expected for ``inputs``, None where there is none."""
        tolerance = meta["tolerance"]
        for dtype, bits in ((torch.float64, "float64"), (torch.float32, "float32")):
            rtol, atol = tolerance[f"{bits}_rtol"], tolerance[f"{bits}_atol"]
            leaves = [x.to(dtype).clone().requires_grad_() for x in inputs]
            loss = function(*leaves)
            torch.testing.assert_close(loss.double(), expected, rtol=rtol, atol=atol)
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
            for ours, official in zip(found, gradients, strict=True):
                if official is None:
                    assert ours is None or not ours.any()
                    continue
                scale = max(1.0, float(official.abs().max())) if bits == "float32" else 1.0
                torch.testing.assert_close(ours.double(), official, rtol=rtol, atol=atol * scale)

    return compare
