"""Contrastive pretraining: views, encoder, projector, objective."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from contrastive.arguments import checked
from contrastive.encoders import MomentumEncoder, ProjectionHead
from contrastive.errors import InvalidType, InvalidValue, NotFinite
from contrastive.objectives.base import Objective
from contrastive.similarity.distributed import global_sum
from contrastive.training.caching import encode_in_chunks
from contrastive.training.optim import OptimizerConfig, build_optimizer, group_options, restore_options
from contrastive.training.processes import agree, share_buffers
from contrastive.training.resume import Place, continue_epoch
from contrastive.views import SimCLRViews

if TYPE_CHECKING:
    from contrastive.data import Batch

ADAMW = OptimizerConfig()


class Pretrain(LightningModule):
    """Train an encoder so that views of one sample agree and views of different samples do not.

    ``batch.inputs`` (uint8 images, or anything that ``views`` understands) -> V views, made on the device ->
    ``encoder`` -> ``projector`` -> ``objective``. All views of one shape go through the network in one pass.

    All randomness of a training step (views, dropout, anything drawn inside the objective) is a function of
    ``seed``, the epoch, the batch and the process rank, so a resumed run repeats an uninterrupted one
    exactly. For that the global generators of torch are seeded anew in every training step.

    Args:
        encoder: Maps inputs to features ``(B, encoder.dim)``. This is what a run is for; it is saved by
            itself.
        objective: The loss of the embeddings.
        projector: Stands between encoder and objective while training; built for ``encoder.dim`` if it has a
            ``setup``. ``None`` takes :class:`~contrastive.encoders.ProjectionHead`; ``nn.Identity()`` none at
            all.
        views: ``views(inputs, generator=...) -> list of V tensors``. ``None`` takes
            :class:`~contrastive.views.SimCLRViews`.
        optimizer: Optimiser, learning rate and schedule.
        momentum: If above 0, the second of two views is encoded, without a gradient, by a copy of encoder and
            projector that follows them as an exponential moving average (He et al. 2020, "Momentum Contrast";
            0.99 to 0.999). The objective is called with ``(queries, keys)``; one that requires a ``teacher`` with
            all views, and as ``teacher=`` with the copy's embeddings of all views.
        momentum_final: What the momentum rises to, along a cosine, at the end of the run, from ``momentum`` to 1
            (Grill et al. 2020, "Bootstrap Your Own Latent"). ``None`` keeps it constant.
        symmetric: With ``momentum``: also use the first view as keys of the second and average both losses.
        cache_chunk_size: If above 0, encode so many rows at a time, so that memory for activations does not
            grow with the batch (:mod:`contrastive.training.caching`). Rows are counted over all views.
        use_labels: Pass the labels of the batch to an objective that can do without. Most objectives then
            stop treating samples with equal labels as negatives: this is supervision.
        seed: Seed of the randomness in training steps.

    Raises:
        TypeError: If the encoder has no integer ``dim``.
        ValueError: If ``momentum``, ``momentum_final``, ``cache_chunk_size`` or ``seed`` lies outside its range,
            momentum meets views that are not two, or the objective requires a teacher and there is none.

    Attributes:
        embeddings: Detached embeddings of the latest training batch, one ``(B, D)`` for each view.
    """

    embeddings: tuple[Tensor, ...]
    _provides = frozenset({"index", "labels"})  # what the objective may require
    _parts: tuple[str, ...] = ("encoder", "objective", "projector", "views")  # arguments that are modules

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        objective: Objective,
        projector: nn.Module | None = None,
        views: nn.Module | None = None,
        optimizer: OptimizerConfig = ADAMW,
        momentum: float = 0.0,
        symmetric: bool = False,
        cache_chunk_size: int = 0,
        use_labels: bool = False,
        seed: int = 0,
        momentum_final: float | None = None,
    ) -> None:
        super().__init__()
        dim = feature_width("encoder of Pretrain", encoder)
        if not 0 <= momentum < 1:
            raise InvalidValue(
                f"momentum of Pretrain is {momentum}; give a number in [0, 1), 0 for no momentum encoder."
            )
        if momentum_final is not None and not 0 < momentum <= momentum_final <= 1:
            raise InvalidValue(
                f"momentum_final of Pretrain is {momentum_final} and momentum is {momentum}; give a momentum above 0 "
                "and a final value from there to 1, or None to keep the momentum."
            )
        self._taught = "teacher" in objective.requires
        if self._taught and (symmetric or not momentum):
            raise InvalidValue(
                f"objective {type(objective).__name__} requires a teacher, the embeddings of all views by a momentum "
                f"encoder, but momentum is {momentum} and symmetric is {symmetric}; train it with "
                "Pretrain(momentum=0.99, symmetric=False)."
            )
        if cache_chunk_size < 0:
            raise InvalidValue(
                f"cache_chunk_size of Pretrain is {cache_chunk_size}; give a number of rows, or 0."
            )
        if seed < 0:
            raise InvalidValue(f"seed of Pretrain is {seed}; give 0 or more.")
        projector = prepare_projector(projector if projector is not None else ProjectionHead(), dim)
        views = views if views is not None else SimCLRViews()
        if momentum and not self._taught and getattr(views, "num_views", 2) != 2:
            raise InvalidValue(
                f"momentum of Pretrain is {momentum} and {type(views).__name__} makes {views.num_views} "
                "views; a momentum encoder needs two: set views=2, or momentum=0."
            )
        self.encoder, self.projector, self.views, self.objective = encoder, projector, views, objective
        self.key_network = None
        if momentum:
            final = 1.0 if momentum_final is None else momentum_final
            self.key_network = MomentumEncoder(nn.Sequential(encoder, projector), momentum, final)
        self.momentum_final = momentum_final
        self.optimizer_config = optimizer
        self.symmetric, self.use_labels = symmetric, use_labels
        self.cache_chunk_size, self.seed = cache_chunk_size, seed
        self.embeddings = ()
        self._sizes: dict[str, int | None] | None = None  # of the objective: arguments of its setup
        self._planned_steps: int | None = None
        self._resumed: Place | None = None
        self._record_arguments(
            optimizer=dataclasses.asdict(optimizer),
            momentum=momentum,
            symmetric=symmetric,
            cache_chunk_size=cache_chunk_size,
            use_labels=use_labels,
            seed=seed,
            momentum_final=momentum_final,
        )

    # ------------------------------------------------------------------ before training

    def setup(self, stage: str) -> None:
        """Check what the objective requires against the data, and size its per-sample state."""
        data = getattr(self.trainer, "datamodule", None)
        required = set(self.objective.requires)
        name = type(self.objective).__name__
        if unknown := required - self._provides - ({"teacher"} if self._taught else set()):
            raise InvalidValue(
                f"objective {name} requires {', '.join(sorted(unknown))}, but {type(self).__name__} can pass "
                f"{' and '.join(sorted(self._provides))} only; train it with a module of your own that passes them."
            )
        if ("labels" in required or self.use_labels) and getattr(data, "num_classes", None) == 0:
            raise InvalidValue(
                f"{name if 'labels' in required else 'use_labels=True'} needs labels, but the data has none "
                "(num_classes is 0); choose a labelled data source, or an objective that does not require "
                "labels such as InfoNCE."
            )
        num_samples = getattr(data, "num_samples", None)
        if num_samples is not None and self._sizes is None:
            last = self.encoder if isinstance(self.projector, nn.Identity) else self.projector
            width = getattr(last, "dim", None)
            self._size_objective(
                num_samples=num_samples, num_classes=getattr(data, "num_classes", None) or 0, dim=width
            )

    def configure_callbacks(self) -> list[Callback]:
        """Add the callbacks that every run should have, unless the trainer has them already."""
        from contrastive.training.callbacks import RunPlan, SaveOnStop
        from contrastive.training.monitor import CollapseMonitor

        present = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        return [kind() for kind in (RunPlan, SaveOnStop, CollapseMonitor) if kind not in present]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimiser and a schedule over all optimiser steps of the run.

        Raises:
            ValueError: If the learning rate is to follow a batch size that the loader does not tell.
        """
        self._planned_steps = self.total_steps
        if self.optimizer_config.reference_batch and self.samples_per_loss is None:
            raise InvalidValue(
                "optimizer.reference_batch is set, but the loader of the training data has no batch_size to "
                "scale the learning rate by; set reference_batch=0 and give the scaled learning_rate."
            )
        batch = (self.samples_per_loss or 0) * self.trainer.accumulate_grad_batches
        optimizer, scheduler = build_optimizer(self.optimizer_config, self, self._planned_steps, batch)
        self._optimizer_options = group_options(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Continue a resumed run at its place, with the options asked for now.

        Raises:
            ValueError: If no sample ever meets another one, so that nothing would be learned.
        """
        self._refuse_batches_of_one()
        if self._resumed is None:
            return
        continue_epoch(self.trainer, self._resumed)
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, LambdaLR)
        restore_options(scheduler.optimizer, scheduler, self._optimizer_options)

    def _refuse_batches_of_one(self) -> None:
        if getattr(self.trainer.train_dataloader, "batch_size", None) != 1:
            return
        name = type(self.objective).__name__
        compares = "classifier" not in self.objective.requires
        if compares and self.samples_per_loss == 1 and self.negatives_per_anchor == 0:
            raise InvalidValue(
                f"{name} compares the samples of a batch, and a batch of 1 leaves nothing to compare: every loss would "
                "be 0. Set a batch size of 2 or more, better of 64 and above."
            )

    def on_train_epoch_start(self) -> None:
        """Tell the objective which epoch begins, and of how many."""
        self.objective.set_epoch(self.current_epoch, self.total_epochs)

    @property
    def further_encoders(self) -> dict[str, nn.Module]:
        """Encoders to export besides :attr:`encoder`, by the names of their folders."""
        return {}

    def describe(self) -> dict[str, str]:
        """Further lines of the run plan, by their headings."""
        return {}

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run; of a resumed one those that were taken, and those to come.

        Raises:
            ValueError: If the trainer sets no end, so that the schedule has no length.
        """
        steps = self.trainer.estimated_stepping_batches
        if self._resumed is not None:
            steps = self._resumed.total_steps(self.trainer)
        if steps == float("inf"):
            raise InvalidValue(
                "the trainer has neither max_epochs nor max_steps, but the learning-rate schedule needs the "
                "length of the run; set one of them."
            )
        return int(steps)

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole run, the last of which may be cut short by ``max_steps``."""
        before, begun, taken = 0, 0, 0
        if self._resumed is not None:
            before, taken = self._resumed.epoch, self._resumed.steps
            begun = self._resumed.batches_over(self.trainer) if self._resumed.batches else 0
        window = self.trainer.accumulate_grad_batches
        an_epoch = math.ceil(self.trainer.num_training_batches / window)
        return before + math.ceil((self.total_steps - taken + begun // window) / an_epoch)

    @property
    def resumed(self) -> Place | None:
        """Where the run goes on that is resumed; None for a new one."""
        return self._resumed

    @property
    def samples_per_loss(self) -> int | None:
        """Samples over all processes that meet in one loss; None if the loader has no batch size."""
        batch_size: int | None = getattr(self.trainer.train_dataloader, "batch_size", None)
        return batch_size * self.trainer.world_size if batch_size else None

    @property
    def negatives_per_anchor(self) -> int | None:
        """Negatives that one anchor meets in a step; None if objective, loader or views do not tell."""
        paired = self.key_network is not None and not self._taught
        num_views = 2 if paired else getattr(self.views, "num_views", None)
        if self.samples_per_loss is None or num_views is None:
            return None
        try:
            return self.objective.negatives_per_anchor(self.samples_per_loss, num_views)
        except NotImplementedError:
            return None

    # ------------------------------------------------------------------ training

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode inputs to features ``(B, encoder.dim)``; the projector has no part in this."""
        features: Tensor = self.encoder(inputs)
        return features

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch.

        Raises:
            FloatingPointError: If the loss is not finite; names the objective, the step and the first bad
                row.
            ValueError: If labels are needed and the batch has none.
        """
        if self.key_network is not None and batch_idx % self.trainer.accumulate_grad_batches == 0:
            # Once for each optimiser step, before its keys are computed.
            scheduled = self.momentum_final is not None
            self.key_network.update(min(self.global_step / self.total_steps, 1.0) if scheduled else 0.0)
        view_seed, global_seed = self._seeds(self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(global_seed)
        views = self.make_views(batch.inputs, view_seed)
        contrast = self._contrast if self.key_network is None or self._taught else self._contrast_keys
        loss, problem = None, None
        try:
            loss = contrast(views, batch)
        except FloatingPointError as error:
            problem = error
        except ValueError as error:
            if "Expected more than 1 value per channel" not in str(error):  # of torch's batch normalisation
                raise
            raise InvalidValue(
                "batch normalisation needs two values or more of every feature, and a batch of this process gives it "
                "one; set a larger batch size."
            ) from error
        if any(agree(self.trainer, problem is not None)):
            bad = NotFinite(self._describe(problem, batch))
            bad.everywhere = True
            raise bad from problem
        assert loss is not None

        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=False)
        self.log(
            "loss_epoch", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch.index)
        )
        self.log(
            "learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], on_step=True, on_epoch=False
        )
        for name, value in self.objective.stats.items():
            self.log(
                name, value.float(), on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch.index)
            )
        return loss * self._share_of_window(batch_idx)

    def _share_of_window(self, batch_idx: int) -> float:
        """What makes the gradient of an epoch's last, shorter window of accumulation the mean of its batches.

        Lightning divides the loss of every batch by the batches of a whole window.
        """
        window, number = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        rest = number % window
        return window / rest if rest and batch_idx >= number - rest else 1.0

    def make_views(self, inputs: Tensor, seed: int) -> list[Tensor]:
        """Make the views of ``inputs`` on its device, as a function of ``inputs`` and ``seed`` alone."""
        generator = torch.Generator(device=inputs.device).manual_seed(seed)
        with torch.no_grad():
            views: list[Tensor] = self.views(inputs, generator=generator)
        return views

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        """Embed views ``(B, ...)`` each, one pass for each shape; return one ``(B, D)`` for each view."""
        return self._embed(views, self.encoder, self.projector)

    def _embed(self, views: list[Tensor], encoder: nn.Module, projector: nn.Module) -> list[Tensor]:
        embeddings: dict[int, Tensor] = {}
        for shape in dict.fromkeys(view.shape for view in views):
            places = [place for place, view in enumerate(views) if view.shape == shape]
            rows = encode_in_chunks(
                lambda inputs: projector(encoder(inputs)),
                torch.cat([views[place] for place in places]),
                self.cache_chunk_size,
                modules=(encoder, projector),
            )
            embeddings.update(zip(places, rows.chunk(len(places)), strict=True))
        return [embeddings[place] for place in range(len(views))]

    def _contrast(self, views: list[Tensor], batch: Batch) -> Tensor:
        embeddings = self.embed(views)
        self.embeddings = tuple(embedding.detach() for embedding in embeddings)
        return self._compare(views, embeddings, batch)

    def _compare(
        self, views: list[Tensor], embeddings: list[Tensor], batch: Batch, rows: Tensor | None = None
    ) -> Tensor:
        """The objective of all views, given the momentum encoder's embeddings of them if it requires a teacher.

        ``rows`` ``(B,)`` bool, if given, chooses the samples that take part.
        """
        teacher = []
        if self._taught:
            assert self.key_network is not None
            with torch.no_grad():
                teacher = self._embed(views, self.key_network, nn.Identity())
        if rows is not None:
            labels = None if batch.labels is None else batch.labels[rows]
            batch = batch._replace(index=batch.index[rows], labels=labels)
            embeddings, teacher = ([vectors[rows] for vectors in group] for group in (embeddings, teacher))
        if not self._taught:
            return self._objective(embeddings, batch)
        loss: Tensor = self.objective(*embeddings, **self._inputs(batch), teacher=teacher)
        return loss

    def _contrast_keys(self, views: list[Tensor], batch: Batch) -> Tensor:
        """The same with keys of the momentum encoder: one direction, or the mean of both."""
        assert self.key_network is not None
        directions = 2 if self.symmetric else 1
        queries = self.embed(views[:directions])
        with torch.no_grad():
            keys = self.key_network(torch.cat(views[::-1][:directions])).chunk(directions)
        self.embeddings = (queries[0].detach(), keys[0])
        losses = [self._objective([query, key], batch) for query, key in zip(queries, keys, strict=True)]
        return torch.stack(losses).mean()

    def _objective(self, embeddings: list[Tensor], batch: Batch) -> Tensor:
        loss: Tensor = self.objective(*embeddings, **self._inputs(batch))
        return loss

    def _inputs(self, batch: Batch) -> dict[str, Tensor | None]:
        """What the objective is given of a batch besides embeddings."""
        wants_labels = self.use_labels or "labels" in self.objective.requires
        if wants_labels and batch.labels is None:
            raise InvalidValue(
                f"objective {type(self.objective).__name__} is to be given labels, but the batch has none; "
                "choose a labelled data source, or set use_labels=False and an objective that does not "
                "require them."
            )
        return {"index": batch.index, "labels": batch.labels if wants_labels else None}

    def _seeds(self, *place: int) -> tuple[int, int]:
        """Two seeds (views, global): a function of :attr:`seed` and a place in the run, nothing else."""
        first, second = np.random.SeedSequence([self.seed, *place]).generate_state(2, np.uint64).tolist()
        return first >> 1, second >> 1

    def _describe(self, problem: FloatingPointError | None, batch: Batch) -> str:
        """Say at which step the loss was not finite, and which sample has the first bad embedding here."""
        sentence = f"step {self.global_step} was not taken: {problem or 'see the error of another process.'}"
        bad = torch.stack([~torch.isfinite(embedding).all(dim=1) for embedding in self.embeddings]).any(dim=0)
        if bad.any():
            row = int(bad.nonzero()[0])
            sentence += f" Row {row} is sample {int(batch.index[row])} of the training data."
        return sentence

    # ------------------------------------------------------------------ evaluation and features

    def on_validation_start(self) -> None:
        """Let all processes judge the same network."""
        share_buffers(self)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``val_loss`` on views that are the same in every epoch."""
        self._held_out(batch, batch_idx, "val_loss")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``test_loss`` on fixed views."""
        self._held_out(batch, batch_idx, "test_loss")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return features ``(B, encoder.dim)``."""
        return self.forward(batch.inputs)

    def _held_out(self, batch: Batch, batch_idx: int, name: str) -> None:
        if "index" in self.objective.requires:
            return  # its state belongs to training samples; a held-out loss has no meaning
        if len(batch.index) * self.trainer.world_size == 1:
            return  # one sample is left over at the end, and nothing to compare it with
        views = self.make_views(batch.inputs, self._seeds(batch_idx, self.global_rank)[0])
        rows = self._counted(batch, batch_idx)
        loss = self._compare(views, self.embed(views), batch, rows)
        samples = len(batch.index) if rows is None else int(global_sum(rows.sum()))
        self.log(name, loss, prog_bar=True, sync_dist=True, batch_size=samples)

    def _counted(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Rows of a held-out batch that count, ``(B,)`` bool; None for all.

        Those do not that repeat other samples, so that every process has as many.
        """
        loader: Any = self.trainer.test_dataloaders if self.trainer.testing else self.trainer.val_dataloaders
        if self.trainer.world_size == 1 or not hasattr(loader, "repeated"):
            return None
        repeated: Tensor = loader.repeated(batch_idx, len(batch.index))
        return ~repeated.to(batch.index.device)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the weights do not tell: the size of per-sample state, the length of the schedule."""
        checkpoint["contrastive"] = {"sizes": self._sizes, "total_steps": self._planned_steps}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Size the objective's state for the checkpoint, and remember that a run is resumed.

        Raises:
            ValueError: If the run that is resumed had another number of samples.
        """
        saved = checkpoint.get("contrastive", {})
        sizes = saved.get("sizes")
        if self._sizes is None and sizes is not None:
            self._size_objective(**sizes)
        elif sizes != self._sizes:
            raise InvalidValue(
                f"the checkpoint was trained on {_describe_sizes(sizes)}, the data given has "
                f"{_describe_sizes(self._sizes)}; resume with the same data, or start a new run from the saved encoder."
            )
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self._resumed = Place.read(checkpoint)

    def _size_objective(self, num_samples: int, num_classes: int, dim: int | None) -> None:
        self.objective.setup(num_samples, num_classes=num_classes, dim=dim)
        self._sizes = {"num_samples": num_samples, "num_classes": num_classes, "dim": dim}

    def _record_arguments(self, **plain: Any) -> None:
        """Store the constructor's arguments in checkpoints as plain data, never as pickled modules.

        Built from a configuration, they are that configuration. Built in Python, they are the plain arguments
        and, for parts that know their own (``config``), class path and arguments.
        """
        given = _given_hyperparameters.get()
        if given is None:
            parts = {name: getattr(self, name) for name in self._parts}
            given = plain | {
                name: {
                    "class_path": f"{type(part).__module__}.{type(part).__qualname__}",
                    "init_args": part.config,
                }
                for name, part in parts.items()
                if isinstance(getattr(part, "config", None), dict)
            }
            given["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
        self.save_hyperparameters(given, logger=False)


def feature_width(role: str, encoder: nn.Module) -> int:
    """Width of an encoder's features.

    Raises:
        TypeError: If it does not tell; names its ``role``.
    """
    width = getattr(encoder, "dim", None)
    if not isinstance(width, int):
        raise InvalidType(
            f"{role} is a {type(encoder).__name__} whose dim is {width!r}; an integer is needed, the width of its "
            "features: set it (encoder.dim = 512) or use one of contrastive.encoders."
        )
    return width


def prepare_projector(projector: nn.Module, width: int) -> nn.Module:
    """Build a projector that waits for it, by its ``setup``, for features of this width."""
    if callable(build := getattr(projector, "setup", None)):
        build(width)
    return projector


def _describe_sizes(sizes: dict[str, int | None] | None) -> str:
    if sizes is None:
        return "data of unknown size"
    classes = f" in {sizes['num_classes']} classes" if sizes["num_classes"] else ""
    return f"{sizes['num_samples']} samples{classes}"
