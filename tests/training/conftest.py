"""Small parts to train with, and a trainer that leaves everything in a temporary folder."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive.data import Batch, Loader
from contrastive.objectives.base import Objective

# What Lightning says about a short run on this machine; each by its own message, nothing by its class alone.
HARMLESS = (
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
    r"ignore:You defined a `validation_step` but have no `val_dataloader`",
    r"ignore:The '\w+_dataloader' does not have many workers",
    r"ignore:Experiment logs directory .* exists and is not empty",
)
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            for message in HARMLESS:
                item.add_marker(pytest.mark.filterwarnings(message))


class TinyNCE(Objective):
    """Cross-view InfoNCE within one process, with a queue to have state and a learnable temperature."""

    def __init__(self, temperature: float = 0.2, queue_size: int = 0, requires: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.requires = requires
        self.scale = nn.Parameter(torch.tensor(1 / temperature))
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, 8, generator=generator(5)), dim=1))
        self.calls: list[dict[str, Any]] = []

    def setup(self, num_samples: int, *, num_classes: int = 0, dim: int | None = None) -> None:
        self.register_buffer("seen", torch.zeros(num_samples))

    def negatives_per_anchor(self, batch_size: int, num_views: int) -> int:
        return batch_size - 1 + len(self.queue)

    def forward(
        self, *views: Tensor, index: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> Tensor:
        self.calls.append(
            {"index": index, "labels": labels, "shapes": [v.shape for v in views], "views": views}
        )
        first, second = (F.normalize(view.to(self.scale.dtype), dim=1) for view in views[:2])
        keys = torch.cat([second, self.queue]) if len(self.queue) else second
        logits = self.scale * first @ keys.T
        if self.training:
            if len(self.queue):
                self.queue = torch.cat([second.detach(), self.queue])[: len(self.queue)]
            if hasattr(self, "seen"):
                self.seen[index] += 1
        self.log(temperature=1 / self.scale)
        return F.cross_entropy(logits, torch.arange(len(first)))


class Noise(nn.Module):
    """Views of vectors: the vector and a little noise."""

    def __init__(self, size: float = 0.1, views: int = 2) -> None:
        super().__init__()
        self.size, self.num_views = size, views

    def forward(self, inputs: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        return [
            inputs + self.size * torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)
            for _ in range(self.num_views)
        ]


class TinyEncoder(nn.Module):
    def __init__(self, in_dim: int = 6, dim: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        self.config = {"in_dim": in_dim, "dim": dim, "dropout": dropout}
        self.net = nn.Sequential(nn.Linear(in_dim, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, dim))

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.net(inputs)
        return features


class Vectors(pl.LightningDataModule):
    """96 random vectors of 6 numbers in 3 classes."""

    source = "vectors"

    def __init__(self, batch_size: int = 24, labelled: bool = True, num_samples: int = 96) -> None:
        super().__init__()
        self.batch_size, self.num_samples = batch_size, num_samples
        self.num_classes = 3 if labelled else 0
        self.inputs = torch.randn(num_samples, 6, generator=generator(1))
        self.labels = torch.arange(num_samples) % 3 if labelled else None

    def train_dataloader(self) -> Loader:
        return Loader(self.inputs, self.labels, batch_size=self.batch_size, shuffle=True, drop_last=True)


class Stream:
    """Two unlabelled batches of 8 from a source that tells neither batch size nor length of the data."""

    def __init__(self) -> None:
        self.inputs = torch.randn(2, 8, 6, generator=generator(1))

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Batch]:
        return (Batch(inputs, torch.arange(8), None) for inputs in self.inputs)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def parts() -> SimpleNamespace:
    """The classes above."""
    return SimpleNamespace(
        TinyNCE=TinyNCE,
        Stream=Stream,
        Noise=Noise,
        TinyEncoder=TinyEncoder,
        Vectors=Vectors,
        generator=generator,
    )


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    """Make a quiet trainer on one CPU whose run folder is ``tmp_path / name``."""

    def make(name: str = "run", **options: Any) -> pl.Trainer:
        settings: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": CSVLogger(tmp_path, name=name, version=""),
            "log_every_n_steps": 1,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        with warnings.catch_warnings():
            return pl.Trainer(**settings | options)

    return make


@pytest.fixture
def seeded() -> None:
    """Build the networks of a test from the same random numbers every time."""
    torch.manual_seed(0)
