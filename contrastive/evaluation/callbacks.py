"""Probes that watch an encoder while it is trained, without taking part in the training."""

from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from contrastive.arguments import checked
from contrastive.errors import InvalidValue
from contrastive.evaluation.features import extract_features
from contrastive.evaluation.knn import knn_classify


class OnlineLinearProbe(Callback):
    """Train a linear classifier on the encoder's features of clean batches, beside the encoder.

    Features are computed in evaluation mode and without a gradient, so neither the encoder's weights nor its running
    statistics feel the probe. The probe has its own optimiser (SGD, momentum 0.9) and sees each sample's features
    scaled to mean 0 and deviation 1. It logs ``probe/accuracy`` at the end of every validation, and is saved in
    checkpoints. The accuracy trails that of :func:`~contrastive.evaluation.linear_probe`: the features move while
    the probe learns.

    The module must have an ``encoder`` with a ``dim``; the data module, ``num_classes``; batches, ``inputs`` and
    ``labels`` (``contrastive.data.Batch``).

    Args:
        learning_rate: of the probe.
        every_n_batches: train on every n-th batch only, to save time.

    Raises:
        ValueError: a setting that is not positive; when training starts, data without labels.
    """

    @checked
    def __init__(self, learning_rate: float = 0.1, every_n_batches: int = 1) -> None:
        if learning_rate <= 0 or every_n_batches < 1:
            raise InvalidValue(
                f"OnlineLinearProbe: learning_rate={learning_rate}, every_n_batches={every_n_batches}; both must "
                "be positive"
            )
        self.learning_rate = learning_rate
        self.every_n_batches = every_n_batches
        self.head: nn.Linear | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.accuracy: MulticlassAccuracy | None = None
        self._restored: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the probe for the encoder's width and the number of classes."""
        classes = _require_classes("OnlineLinearProbe", trainer)
        with torch.random.fork_rng(
            devices=[]
        ):  # building a layer draws random numbers that training would miss
            self.head = nn.Linear(pl_module.encoder.dim, classes)  # type: ignore[arg-type]
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.head.to(pl_module.device)
        self.optimizer = torch.optim.SGD(self.head.parameters(), lr=self.learning_rate, momentum=0.9)
        self.accuracy = MulticlassAccuracy(classes, average="micro").to(pl_module.device)
        if self._restored:
            self.head.load_state_dict(self._restored["head"])
            self.optimizer.load_state_dict(self._restored["optimizer"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One step of the probe on the clean inputs of the batch."""
        if batch_idx % self.every_n_batches:
            return
        assert self.head is not None
        assert self.optimizer is not None
        labels = _require_batch_labels("OnlineLinearProbe", batch)
        with torch.enable_grad():
            loss = F.cross_entropy(self.head(_clean_features(pl_module, batch.inputs)), labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        if trainer.world_size > 1:
            for gradient in (parameter.grad for parameter in self.head.parameters()):
                assert gradient is not None
                dist.all_reduce(gradient)
                gradient /= trainer.world_size
        self.optimizer.step()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the probe's hits on a validation batch."""
        if self.head is None or self.accuracy is None or trainer.sanity_checking or dataloader_idx:
            return
        labels = _require_batch_labels("OnlineLinearProbe", batch)
        self.accuracy.update(self.head(_clean_features(pl_module, batch.inputs)), labels)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the accuracy on the validation set."""
        if self.accuracy is None or not self.accuracy.update_called:
            return
        pl_module.log("probe/accuracy", self.accuracy.compute(), sync_dist=True, prog_bar=True)
        self.accuracy.reset()

    def state_dict(self) -> dict[str, Any]:
        """The probe and its optimiser, for the checkpoint."""
        if self.head is None or self.optimizer is None:
            return {}
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the saved state until the probe is built."""
        self._restored = state_dict


class OnlineKNN(Callback):
    """Classify the validation set by its nearest neighbours in the training set, on clean features.

    Logs ``knn/accuracy`` at the end of a validation. Both sets are encoded anew each time, in evaluation mode; the
    data module must have ``train_dataloader`` and ``val_dataloader`` with clean batches (``contrastive.data.Batch``).

    Args:
        every_n_epochs: how often.
        k: number of neighbours.
        temperature: of the votes.
        max_samples: training samples to search in at most; the first of the loader's order.

    Raises:
        ValueError: a setting that is not positive; when training starts, data without labels or no data module.
    """

    @checked
    def __init__(
        self, every_n_epochs: int = 1, k: int = 20, temperature: float = 0.1, max_samples: int = 10_000
    ) -> None:
        if min(every_n_epochs, k, max_samples) < 1 or temperature <= 0:
            raise InvalidValue(
                f"OnlineKNN: every_n_epochs={every_n_epochs}, k={k}, temperature={temperature}, "
                f"max_samples={max_samples}; all must be positive"
            )
        self.every_n_epochs = every_n_epochs
        self.k = k
        self.temperature = temperature
        self.max_samples = max_samples

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there are labels before any work is done."""
        _require_classes("OnlineKNN", trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Encode both sets and log the accuracy."""
        if trainer.sanity_checking or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        bank, queries = data.train_dataloader(), data.val_dataloader()
        batches = -(-self.max_samples // (bank.batch_size * trainer.world_size))
        encoder: nn.Module = pl_module.encoder  # type: ignore[assignment]
        train = extract_features(encoder, islice(bank, batches), pl_module.device)
        test = extract_features(encoder, queries, pl_module.device)
        outcome = knn_classify(train, test, k=min(self.k, len(train)), temperature=self.temperature)
        pl_module.log("knn/accuracy", outcome.accuracy, sync_dist=True, prog_bar=True)


def _clean_features(pl_module: LightningModule, inputs: Tensor) -> Tensor:
    """Detached features ``(B, D)`` in evaluation mode, every row scaled to mean 0 and deviation 1."""
    encoder: nn.Module = pl_module.encoder  # type: ignore[assignment]
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with torch.no_grad():
            features: Tensor = encoder(inputs)
    finally:
        for module, mode in modes:
            module.training = mode
    return F.layer_norm(features.float(), features.shape[1:])


def _require_classes(name: str, trainer: Trainer) -> int:
    data = getattr(trainer, "datamodule", None)
    classes = int(getattr(data, "num_classes", 0))
    if classes < 2:
        given = (
            "there is no data module" if data is None else f"{type(data).__name__}.num_classes is {classes}"
        )
        raise InvalidValue(
            f"{name} needs the labels of two classes or more, but {given}; train on a labelled data module (its "
            "labels are for watching only), or remove the callback"
        )
    return classes


def _require_batch_labels(name: str, batch: Any) -> Tensor:
    labels = getattr(batch, "labels", None)
    if not isinstance(labels, Tensor):
        raise InvalidValue(
            f"{name}: a batch of type {type(batch).__name__} has no labels; it needs contrastive.data.Batch with "
            "labels, or remove the callback"
        )
    return labels
