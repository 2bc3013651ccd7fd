"""Training a recommender: data module, Lightning module, and what they log."""

from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn

from contrastive.errors import InvalidValue, NotFinite
from recsys.batches import Batch, Held, HeldOutBatches, PrefixTable, TrainingBatches, training_prefixes
from recsys.data import SequenceData, Sequences, Split
from recsys.encoders import SequenceEncoder
from recsys.mclrec import MCLRec
from recsys.metrics import History, RankingMetrics, Ties, rank_by_vectors
from recsys.objectives import FullSoftmax, Head, Samples


class RecommenderData(LightningDataModule):
    """Histories from a file, split and cut into batches.

    Args:
        source: a file that :meth:`SequenceData.read` understands, or ``"synthetic"`` for generated histories.
        items: file with the items' texts, joined by id.
        attributes: file with the items' attributes, joined by id.
        core: if above 0, keep users and items with so many interactions (k-core).
        split: ``"leave-last-out"`` or ``"global-time"``.
        max_length: items that are read of a history; at most the encoder's ``max_length``.
        batch_targets: targets of a training step.
        samples: random prefixes of a step for contrastive heads; as many as ``batch_targets`` by default.
        shared: read all prefixes of a history from one pass (:class:`~recsys.batches.TrainingBatches`).
        stride: prefixes beyond the window that share a pass; 1 gives each its full window.
        eval_batch: held-out cases of a batch.
        seed: of the order of batches, and of synthetic histories.
        synthetic: sizes of ``"synthetic"`` histories, arguments of :meth:`SequenceData.generate`.
    """

    def __init__(
        self,
        source: str = "synthetic",
        items: str | None = None,
        attributes: str | None = None,
        core: int = 0,
        split: Literal["leave-last-out", "global-time"] = "leave-last-out",
        max_length: int = 50,
        batch_targets: int = 256,
        samples: int | None = None,
        shared: bool = True,
        stride: int = 1,
        eval_batch: int = 512,
        seed: int = 0,
        synthetic: dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.source, self.max_length, self.batch_targets = source, max_length, batch_targets
        self.samples = batch_targets if samples is None else samples
        self.shared, self.stride, self.eval_batch, self.seed = shared, stride, eval_batch, seed
        if source == "synthetic":
            data = SequenceData.generate(seed=seed, **(synthetic or {}))
        else:
            data = SequenceData.read(source, items=items, attributes=attributes)
        self.data = data.k_core(core, core) if core else data
        self.split: Split = self.data.split(split)
        self.needs_samples = False  # set by a model whose heads ask for them

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return self.data.num_items

    def train_dataloader(self) -> TrainingBatches:
        """Batches of an epoch."""
        return TrainingBatches(
            self.split.train,
            max_length=self.max_length,
            batch_targets=self.batch_targets,
            shared=self.shared,
            stride=self.stride,
            samples=self.samples if self.needs_samples else 0,
            seed=self.seed,
        )

    def val_dataloader(self) -> HeldOutBatches:
        """Validation cases."""
        return HeldOutBatches(self.split.valid, max_length=self.max_length, batch_size=self.eval_batch)

    def test_dataloader(self) -> HeldOutBatches:
        """Test cases, whose histories hold the items that validation asked for."""
        return HeldOutBatches(self.split.test, max_length=self.max_length, batch_size=self.eval_batch)


class SequentialRecommender(LightningModule):
    """A sequence encoder, a next-item loss, and any number of contrastive heads.

    Each step: the loss of about 256 targets, read from whole histories, plus every head's term on as many random
    prefixes. :class:`~recsys.MCLRec` alternates between encoder and augmenters; all else is one step of Adam.

    Validation and test rank every target against the whole catalogue and log HR, NDCG and MRR at 5, 10 and 20, as
    ``val_NDCG@10`` and so on.

    All randomness of a training step is a function of ``seed``, the epoch, the batch and the process, so a resumed run
    repeats an uninterrupted one exactly.

    Args:
        encoder: maps histories to states; its item table is made for the data's catalogue.
        loss: of the next item; :class:`~recsys.FullSoftmax` by default.
        heads: contrastive terms.
        learning_rate: of Adam.
        weight_decay: of Adam, added to the gradient.
        augmenter_learning_rate: of MCLRec's augmenters; ``learning_rate`` by default.
        history: ``"keep"`` ranks against all items; ``"mask"`` leaves out those of the history, but for the target.
        ties: whether items with the target's score count as ahead of it.
        seed: of the randomness in training steps.

    Raises:
        ValueError: more than one MCLRec head, or an encoder whose states depend on what follows.
    """

    def __init__(
        self,
        encoder: SequenceEncoder,
        loss: nn.Module | None = None,
        heads: list[Head] | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        augmenter_learning_rate: float | None = None,
        history: History = "keep",
        ties: Ties = "pessimistic",
        seed: int = 0,
    ) -> None:
        super().__init__()
        heads = heads or []
        learned = [head for head in heads if isinstance(head, MCLRec)]
        if len(learned) > 1:
            raise InvalidValue(f"heads of SequentialRecommender has {len(learned)} MCLRec; give at most one.")
        self.encoder, self.loss, self.heads = encoder, loss or FullSoftmax(), nn.ModuleList(heads)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.augmenter_learning_rate = augmenter_learning_rate or learning_rate
        self.history, self.ties, self.seed = history, ties, seed
        self.mclrec = [
            head for head in learned if head.update != "joint"
        ]  # a list: not a second home of its weights
        self.automatic_optimization = False
        self.metrics = RankingMetrics()
        self.prefixes: PrefixTable | None = None
        self._cases: dict[str, Sequences] = {}
        self.ranks: dict[str, np.ndarray[Any, Any]] = {}

    # ------------------------------------------------------------------ before training

    def setup(self, stage: str) -> None:
        """Make the item table, and let the heads see the data."""
        data: RecommenderData = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.max_length > self.encoder.max_length:
            raise InvalidValue(
                f"data.max_length is {data.max_length}, but the encoder reads {self.encoder.max_length} items; lower "
                "the one or raise the other."
            )
        if data.shared and not getattr(self.encoder, "shares_prefixes", True):
            raise InvalidValue(
                "the encoder counts positions from the end, so prefixes of a history do not share their states: set "
                "data.shared=false, or positions='start'."
            )
        self.encoder.setup(data.num_items)
        if stage == "fit":
            data.needs_samples = bool(len(self.heads))
            if len(self.heads):
                self.prefixes = training_prefixes(
                    data.split, data.max_length, data.stride if data.shared else 1
                )
                for head in self._heads():
                    head.setup(self.encoder, data.split, self.prefixes)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the encoder and what heads learn with it; another for augmenters that are trained in turn."""
        apart = [weight for head in self.mclrec for weight in head.parameters()]
        ids = {id(weight) for weight in apart}
        together = [weight for weight in self.parameters() if id(weight) not in ids]
        options: dict[str, Any] = {"fused": True}
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Adam(together, lr=self.learning_rate, weight_decay=self.weight_decay, **options)
        ]
        if apart:
            optimizers.append(torch.optim.Adam(apart, lr=self.augmenter_learning_rate, **options))
        return optimizers

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the item table for the weights to come."""
        self.encoder.setup(len(checkpoint["state_dict"]["encoder.item_embedding.weight"]) - 1)

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take the step, or the steps, of a batch.

        Raises:
            FloatingPointError: the loss is not finite; names the step.
        """
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        seeds = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.global_rank])
        drawn, dropout = (int(seed) >> 1 for seed in seeds.generate_state(2, np.uint64))
        torch.manual_seed(dropout)
        generator = torch.Generator(self.device).manual_seed(drawn)
        samples = None
        if len(self.heads):
            assert self.prefixes is not None
            items, lengths = self.prefixes.gather(batch.samples)
            samples = Samples(items, lengths, self.prefixes.targets[batch.samples], batch.samples, generator)
        next_item, total = self.update(optimizers, batch, samples, generator)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True}
        size = len(batch.targets)
        self.log("loss", total, prog_bar=True, batch_size=size, **options)
        self.log("next_item_loss", next_item, batch_size=size, **options)

    def update(
        self, optimizers: list[Any], batch: Batch, samples: Samples | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Take the steps of a batch; return its next-item loss and the sum of all terms, of the first step.

        All phases of a batch see the same views of it, with other dropout.
        """
        views = {} if samples is None else {head: head.views(samples) for head in self.mclrec}
        next_item, total = self._losses(batch, samples, views, generator)
        self._step(optimizers[0], total)
        for head in self.mclrec:
            self._step(optimizers[1], head.augmenter_loss(self.encoder, views[head]))
            if head.update == "released":
                self._step(optimizers[0], self._losses(batch, samples, views, generator)[1])
        return next_item.detach(), total.detach()

    def _heads(self) -> list[Any]:
        return list(self.heads)

    def _losses(
        self, batch: Batch, samples: Samples | None, views: dict[Any, Any], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Next-item loss, and its sum with the heads' terms: what the encoder minimises."""
        states = self.encoder(batch.items, batch.lengths)[batch.rows, batch.places]
        next_item = self.loss(states, batch.targets, self.encoder.item_vectors(), generator)
        total = next_item
        for head in self._heads():
            term = (
                head.encoder_loss(self.encoder, views[head]) if head in views else head(self.encoder, samples)
            )
            total = total + term
        return next_item, total

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        if not bool(torch.isfinite(loss.detach())):
            raise NotFinite(
                f"the loss of step {self.global_step} is {float(loss.detach())}; the step was not taken. Lower the "
                "learning rate, or look at the embeddings and attributes that heads were given."
            )
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    # ------------------------------------------------------------------ evaluation

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Return scores ``(B, num_items + 1)`` of what follows histories ``(B, T)``; column 0 is padding."""
        return self.encoder.encode(items, lengths) @ self.encoder.item_vectors().T

    def on_validation_epoch_start(self) -> None:
        """Begin to count."""
        self._begin("valid")

    def on_test_epoch_start(self) -> None:
        """Begin to count."""
        self._begin("test")

    def _begin(self, name: str) -> None:
        self.metrics.reset()
        cases = getattr(self.trainer.datamodule.split, name)  # type: ignore[attr-defined]
        self._cases[name] = cases.histories
        self.ranks[name] = np.full(len(cases), -1, np.int64)

    def validation_step(self, batch: Held, batch_idx: int) -> None:
        """Rank the targets of a batch."""
        self._rank("valid", batch)

    def test_step(self, batch: Held, batch_idx: int) -> None:
        """Rank the targets of a batch."""
        self._rank("test", batch)

    def _rank(self, name: str, batch: Held) -> None:
        states = self.encoder.encode(batch.items, batch.lengths)
        index = batch.index.cpu().numpy()
        seen = self._cases[name].take(index) if self.history == "mask" else None
        vectors = self.encoder.item_vectors()
        ranks = rank_by_vectors(states, vectors, batch.targets.cpu().numpy(), seen, self.ties)
        self.ranks[name][index] = ranks
        self.metrics.update(torch.from_numpy(ranks))

    def on_validation_epoch_end(self) -> None:
        """Log ``val_*``."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log ``test_*``."""
        self._log_metrics("test")

    def _log_metrics(self, prefix: str) -> None:
        for name, value in self.metrics.compute().items():
            self.log(f"{prefix}_{name}", value.float(), prog_bar=name == "NDCG@10", rank_zero_only=True)
