"""One thread for FAISS: tests run beside others."""

from collections.abc import Iterator

import pytest
import torch

from contrastive.retrieval import engine


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    engine.set_threads(1)
    yield
    torch.set_num_threads(before)
