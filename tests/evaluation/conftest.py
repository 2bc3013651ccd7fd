from pathlib import Path

import numpy as np
import pytest
import torch


class Fixture(dict):
    """Arrays of a reference file, as tensors."""

    def __getattr__(self, name):
        return self[name]


@pytest.fixture(scope="session")
def reference():
    folder = Path(__file__).parents[1] / "reference"

    def read(name):
        with np.load(folder / f"{name}.npz") as arrays:
            return Fixture({key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "meta"})

    return read


@pytest.fixture
def blobs():
    """Three well separated classes with labels -5, 0 and 7: (train vectors, labels), (test vectors, labels)."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[4.0, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, 4.0, 0]])
    names = torch.tensor([-5, 0, 7])

    def draw(count):
        group = torch.arange(3).repeat_interleave(count)
        return centres[group] + torch.randn(3 * count, 4, generator=generator), names[group]

    return draw(40), draw(20)
