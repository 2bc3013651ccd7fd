"""Fine-tuning a trained encoder with labels: cross entropy, or an objective that replaces or joins it."""

from __future__ import annotations

import inspect
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from contrastive.arguments import checked
from contrastive.encoders import ProjectionHead, TimmEncoder
from contrastive.errors import FileMissing, InvalidValue
from contrastive.evaluation.metrics import Classification, classify
from contrastive.evaluation.results import describe_data, describe_encoder, write_result
from contrastive.evaluation.run import load_run_encoder
from contrastive.objectives import CrossEntropy, Objective
from contrastive.similarity.distributed import average, global_sum
from contrastive.training.callbacks import ExportEncoder, RunPlan, SaveOnStop, run_folder
from contrastive.training.optim import OptimizerConfig
from contrastive.training.pretrain import Pretrain
from contrastive.views import AsTheyAre

if TYPE_CHECKING:
    from contrastive.data import Batch

SGD = OptimizerConfig(name="sgd", learning_rate=0.01)


class FineTune(Pretrain):
    """Train an encoder that was trained before, and a linear classifier on it, with labels.

    ``batch.inputs`` -> views -> ``encoder`` -> linear classifier -> loss. What the loss is, is the objective's choice:

    - one that takes a ``classifier``, as :class:`~contrastive.objectives.CrossEntropy` and
      :class:`~contrastive.objectives.CoreTuning`, computes the whole of it from features, labels and classifier;
    - any other, as :class:`~contrastive.objectives.SupCon`, is added to cross entropy, ``weight`` times; it is given
      the features projected by ``projector``.

    Several views of a sample are several rows with its label. Classifier and heads are sized by the data. Logs the
    accuracy on the validation and the test set, images as they are, and leaves the encoder, the classifier
    (:func:`load_classifier`) and ``results/fine_tuning.json``, the accuracy on the test set, in the run folder.
    Randomness, schedule, resuming and checkpoints are those of :class:`Pretrain`.

    Args:
        encoder: the encoder to start from: the folder of a run or of ``save_encoder``, the name of a model of timm,
            which is then fetched with its pretrained weights, or a module whose features are ``(B, encoder.dim)``.
        objective: see above; cross entropy by default.
        projector: stands between encoder and an objective that is added to cross entropy;
            :class:`~contrastive.encoders.ProjectionHead` by default. Others do not use it.
        views: augmentation of training images, ``views(inputs, generator=...) -> list of tensors``; none by default.
        weight: of an objective that is added to cross entropy.
        optimizer: optimiser, learning rate and schedule.
        layer_decay: the learning rate of each layer of the encoder is so many times that of the layer above it, in
            (0, 1] (Clark et al. 2020, "ELECTRA", table 7). A layer is a numbered block or, outside of these, a module.
            The classifier and heads have the full rate.
        cache_chunk_size: see :class:`Pretrain`.
        seed: seed of the randomness in training steps.

    Raises:
        TypeError: If the encoder has no integer ``dim``.
        ValueError: If an option is out of its range, or ``encoder`` names neither a folder nor a model of timm.
        FileNotFoundError: If a folder holds no encoder.
    """

    _provides = frozenset({"index", "labels", "classifier"})

    @checked
    def __init__(
        self,
        encoder: nn.Module | str,
        objective: Objective | None = None,
        projector: nn.Module | None = None,
        views: nn.Module | None = None,
        weight: float = 1.0,
        optimizer: OptimizerConfig = SGD,
        layer_decay: float = 1.0,
        cache_chunk_size: int = 0,
        seed: int = 0,
    ) -> None:
        if not 0 < layer_decay <= 1:
            raise InvalidValue(
                f"layer_decay of FineTune is {layer_decay}; give a number in (0, 1], 1 for none."
            )
        if weight < 0:
            raise InvalidValue(f"weight of FineTune is {weight}; give 0 or more.")
        start = encoder if isinstance(encoder, str) else None
        if isinstance(encoder, str):
            encoder = find_encoder(encoder)
        objective = objective if objective is not None else CrossEntropy()
        super().__init__(
            encoder.train(),
            objective,
            nn.Identity(),
            views if views is not None else AsTheyAre(),
            optimizer,
            cache_chunk_size=cache_chunk_size,
            seed=seed,
        )
        self.takes_classifier = "classifier" in inspect.signature(objective.forward).parameters
        self.head: nn.Module = nn.Identity()
        if not self.takes_classifier:
            self.head = projector if projector is not None else ProjectionHead()
            if callable(build := getattr(self.head, "setup", None)):
                build(encoder.dim)
        self.weight, self.layer_decay = weight, layer_decay
        self.classifier: nn.Module = nn.Identity()  # sized with the objective
        self.class_names: list[str] = []
        own = {"weight": weight, "layer_decay": layer_decay}
        self.hparams.update(own if start is None else own | {"encoder": start})

    # ------------------------------------------------------------------ before training

    def setup(self, stage: str) -> None:
        """Check the labels, and size classifier and objective by the data.

        Raises:
            ValueError: If there are no labels of two classes or more, or the objective requires what is not there.
        """
        data = getattr(self.trainer, "datamodule", None)
        if self._sizes is None and (getattr(data, "num_classes", None) or 0) < 2:
            given = "there is no data module" if data is None else f"{type(data).__name__} has none"
            raise InvalidValue(
                f"FineTune needs the labels of two classes or more, but {given}; choose a labelled data source."
            )
        self.class_names = list(getattr(data, "class_names", []))
        super().setup(stage)

    def _size_objective(self, num_samples: int, num_classes: int, dim: int | None) -> None:
        width: int = self.encoder.dim  # type: ignore[assignment]
        self.classifier = nn.Linear(width, num_classes)
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        if self.takes_classifier:  # it needs none of its own
            self.objective.setup(num_samples, dim=width)
        else:
            self.objective.setup(num_samples, num_classes=num_classes, dim=getattr(self.head, "dim", None))
        self._sizes = {"num_samples": num_samples, "num_classes": num_classes, "dim": dim}

    def configure_callbacks(self) -> list[Callback]:
        """Add the callbacks that every run should have; the classifier is exported where the encoder is."""
        present = [type(callback) for callback in self.trainer.callbacks]  # type: ignore[attr-defined]
        wanted = [RunPlan, SaveOnStop, *([ExportClassifier] if ExportEncoder in present else [])]
        return [kind() for kind in wanted if kind not in present]

    def learning_rate_scales(self) -> dict[str, float]:
        """Learning rate of the encoder's parameters as a share of that of the classifier, by name."""
        depths = layer_depths(self.encoder)
        deepest = max(depths.values(), default=0) + 1
        return {f"encoder.{name}": self.layer_decay ** (deepest - depth) for name, depth in depths.items()}

    # ------------------------------------------------------------------ training and evaluation

    def _contrast(self, views: list[Tensor], batch: Batch) -> Tensor:
        if batch.labels is None:
            raise InvalidValue("FineTune: the batch has no labels; choose a labelled data source.")
        features = self.embed(views)
        self.embeddings = tuple(feature.detach() for feature in features)
        options: dict[str, Any] = {"index": batch.index, "labels": batch.labels}
        if self.takes_classifier:
            whole: Tensor = self.objective(*features, classifier=self.classifier, **options)
            return whole
        rows = torch.cat(features)
        loss = F.cross_entropy(self.classifier(rows), batch.labels.repeat(len(views)))
        return loss + self.weight * self.objective(*self.head(rows).chunk(len(views)), **options)

    def classify(self, inputs: Tensor) -> Tensor:
        """Class scores (logits) ``(B, C)`` of inputs."""
        logits: Tensor = self.classifier(self.encoder(inputs))
        return logits

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``val_loss``, the cross entropy, and ``val_accuracy``, of images as they are."""
        self._judge(batch, batch_idx, "val", self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``test_loss`` and ``test_accuracy``."""
        self._judge(batch, batch_idx, "test", self.test_accuracy)

    def _judge(self, batch: Batch, batch_idx: int, name: str, accuracy: MulticlassAccuracy) -> None:
        assert batch.labels is not None
        logits, labels = self.classify(batch.inputs), batch.labels
        rows = self._counted(batch, batch_idx)
        if rows is not None:
            logits, labels = logits[rows], labels[rows]
        if len(labels):  # this process may have none that counts
            accuracy.update(logits, labels)
        samples = int(global_sum(torch.tensor(len(labels), device=labels.device)))
        options: dict[str, Any] = {"on_epoch": True, "prog_bar": True, "batch_size": samples}
        loss = average(F.cross_entropy(logits, labels, reduction="sum"), len(labels))
        self.log(f"{name}_loss", loss, sync_dist=True, **options)
        self.log(f"{name}_accuracy", accuracy, **options)


def find_encoder(start: str) -> nn.Module:
    """The encoder that ``FineTune(encoder=start)`` begins with: of a run, of a folder, or of timm.

    Raises:
        ValueError: If ``start`` names neither a folder nor a model of timm.
        FileNotFoundError: If the folder holds no encoder.
    """
    if Path(start).is_dir():
        return load_run_encoder(start)
    import timm

    if timm.is_model(start):
        return TimmEncoder(start, pretrained=True)
    raise InvalidValue(
        f"encoder of FineTune is {start!r}, which is no folder here and no model of timm; give the folder of a run, as "
        "runs/quickstart/0, a name of timm, as resnet18, or a class with its arguments."
    )


def layer_depths(encoder: nn.Module) -> dict[str, int]:
    """Depth of each parameter's layer in its encoder, 0 for the first.

    A layer is a numbered block (``stages.1``, ``layer2.0``) or, outside of these, a module that has parameters. What
    has vectors only, as a norm, belongs to the layer before it.
    """
    layers: dict[str, list[str]] = {}
    has_matrix: set[str] = set()
    for name, parameter in encoder.named_parameters():
        parts = name.split(".")
        number = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
        layer = ".".join(parts[: number + 1])
        layers.setdefault(layer, []).append(name)
        if parameter.ndim >= 2:
            has_matrix.add(layer)
    depths: dict[str, int] = {}
    depth = -1
    for layer, names in layers.items():
        depth += layer in has_matrix or depth < 0
        depths |= dict.fromkeys(names, depth)
    return depths


class ExportClassifier(Callback):
    """Leave the classifier in ``classifier/`` of the run folder, and its accuracy on the test set in ``results/``."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export and evaluate, on the first process."""
        dry = trainer.fast_dev_run  # type: ignore[attr-defined]
        if not isinstance(pl_module, FineTune) or not trainer.is_global_zero or dry:
            return
        folder = run_folder(trainer)
        data: Any = getattr(trainer, "datamodule", None)
        save_classifier(pl_module.classifier, folder, pl_module.class_names)
        if not hasattr(data, "evaluation_loaders"):
            return
        start = time.perf_counter()
        outcome = judge_classifier(pl_module, data.evaluation_loaders()[1])
        split = getattr(data, "evaluation_split", "test")
        write_result(
            folder / "results",
            "fine_tuning",
            protocol={
                "name": "fine_tuning",
                "objective": type(pl_module.objective).__name__,
                "labels_per_class": getattr(data, "labels_per_class", None),
                "steps": trainer.global_step,
            },
            metrics={**outcome.metrics, "recall": _named(outcome.recall, pl_module.class_names)},
            split=split,
            seed=pl_module.seed,
            data=describe_data(data),
            encoder=describe_encoder(folder),
            seconds=time.perf_counter() - start,
        )
        print(f"fine-tuned classifier: accuracy {100 * outcome.accuracy:.1f} % on the {split} set")


@torch.no_grad()
def judge_classifier(module: FineTune, loader: Iterable[Batch]) -> Classification:
    """Judge the classifier on labelled batches, in evaluation mode and in this process alone.

    Raises:
        ValueError: If a batch has no labels.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    scores, targets = [], []
    for batch in loader:
        if batch.labels is None:
            raise InvalidValue("judge_classifier: a batch has no labels; give a labelled test set.")
        scores.append(module.classify(batch.inputs.to(module.device)).softmax(1).cpu())
        targets.append(batch.labels)
    for part, mode in modes:
        part.training = mode
    every = torch.cat(scores)
    return classify(every, torch.cat(targets), torch.arange(every.shape[1]))


def save_classifier(classifier: nn.Module, run: str | os.PathLike[str], class_names: list[str]) -> Path:
    """Write a linear classifier and the names of its classes to ``classifier/`` in the folder of a run."""
    folder = Path(run) / "classifier"
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()}
    part = f".{os.getpid()}.part"
    save_file(weights, folder / f"classifier.safetensors{part}")
    text = json.dumps({"class_names": class_names}, indent=2)
    (folder / f"classifier.json{part}").write_text(text + "\n", encoding="utf-8")
    for name in ("classifier.safetensors", "classifier.json"):
        os.replace(folder / (name + part), folder / name)
    return folder


def load_classifier(run: str | os.PathLike[str], *, trust: bool = False) -> nn.Sequential:
    """Encoder and classifier of a fine-tuning run: maps images to logits ``(B, C)``, in evaluation mode.

    Args:
        run: the folder of the run. ``classifier/classifier.json`` in it names the classes.
        trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
            author you trust.

    Raises:
        FileNotFoundError: If the run left no classifier.
    """
    file = Path(run) / "classifier" / "classifier.safetensors"
    if not file.is_file():
        raise FileMissing(
            f"load_classifier(run={str(run)!r}): there is no {file}; give the folder of a finished run of FineTune."
        )
    weights = load_file(file)
    num_classes, width = weights["weight"].shape
    classifier = nn.Linear(width, num_classes)
    classifier.load_state_dict(weights)
    return nn.Sequential(load_run_encoder(run, trust=trust), classifier).eval()


def _named(recall: dict[int, float], class_names: list[str]) -> dict[str, float]:
    return {class_names[label] if label < len(class_names) else str(label): r for label, r in recall.items()}
