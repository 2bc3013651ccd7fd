"""Training a recommender: data module, Lightning module, and what they log."""

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from contrastive.arguments import checked
from contrastive.checks import check_choice, check_flag, check_number, check_whole, shown
from contrastive.errors import InvalidType, InvalidValue, NotFinite
from contrastive.similarity.distributed import global_sum
from contrastive.training.resume import Place
from recsys.batches import Batch, Held, HeldOutBatches, PrefixTable, TrainingBatches, training_prefixes
from recsys.data import Cases, Format, SequenceData, Sequences, Split
from recsys.encoders import SequenceEncoder
from recsys.mclrec import MCLRec
from recsys.metrics import HISTORIES, TIES, History, Ties, rank_by_vectors
from recsys.objectives import FullSoftmax, Head, Samples
from recsys.order import Order
from recsys.plan import describe_run
from recsys.running_metrics import RankingMetrics


class RecommenderData(LightningDataModule):
    """Histories from a file, split and cut into batches.

    Args:
        source: a file that :meth:`SequenceData.read` understands, or ``"synthetic"`` for generated histories.
        items: file with the items' texts and columns, joined by id.
        attributes: file with the items' attributes, joined by id.
        format: how to read ``source``, see :meth:`SequenceData.read`; so the next five.
        user: column of the users; None looks for it.
        item: column of the items; None looks for it.
        time: column of the times; ``"auto"`` looks for it, None takes the order of the file.
        ties: order of one user's interactions at one time: of the ``"file"``, by ``"item"``, ``"shuffle"``, or
            ``"drop"``, which leaves such targets out of validation and test.
        tie_seed: of ``"shuffle"``; it does not follow that of training.
        core: if above 0, keep users and items with so many interactions (k-core).
        split: ``"leave-last-out"`` or ``"global-time"``; see :meth:`SequenceData.split`, so the next three.
        short: of leave-last-out, what users of few items hold out.
        cuts: of global-time, the two times.
        fractions: of global-time without ``cuts``.
        max_length: items that are read of a history; at most the encoder's ``max_length``.
        batch_targets: targets of a training step.
        samples: random prefixes of a step for contrastive heads; as many as ``batch_targets`` by default.
        shared: read all prefixes of a history from one pass (:class:`~recsys.batches.TrainingBatches`).
        stride: prefixes beyond the window that share a pass; 1 gives each its full window.
        eval_batch: held-out cases of a batch.
        seed: of the order of batches, and of synthetic histories.
        synthetic: sizes of ``"synthetic"`` histories, arguments of :meth:`SequenceData.generate`.

    Raises:
        TypeError: an option is no number.
        ValueError: a number out of range, an unknown split, or what reading and cutting the histories refuse.
    """

    @checked
    def __init__(
        self,
        source: str = "synthetic",
        items: str | None = None,
        attributes: str | None = None,
        format: Format = "auto",
        user: str | None = None,
        item: str | None = None,
        time: str | None = "auto",
        ties: Order = "file",
        tie_seed: int = 0,
        core: int = 0,
        split: Literal["leave-last-out", "global-time"] = "leave-last-out",
        short: Literal["fewer", "train"] = "fewer",
        cuts: tuple[float, float] | None = None,
        fractions: tuple[float, float] = (0.8, 0.9),
        max_length: int = 50,
        batch_targets: int = 256,
        samples: int | None = None,
        shared: bool = True,
        stride: int = 1,
        eval_batch: int = 512,
        seed: int = 0,
        synthetic: dict[str, int | float] | None = None,
    ) -> None:
        super().__init__()
        name, self.source, self.shared = "RecommenderData", source, shared
        self.max_length = check_whole(name, "max_length", max_length)
        self.batch_targets = check_whole(name, "batch_targets", batch_targets)
        self.samples = self.batch_targets if samples is None else check_whole(name, "samples", samples)
        self.stride = check_whole(name, "stride", stride, 1, self.max_length)
        self.eval_batch = check_whole(name, "eval_batch", eval_batch)
        self.seed, core = check_whole(name, "seed", seed, 0), check_whole(name, "core", core, 0)
        check_flag(name, "shared", shared)
        if source == "synthetic":
            data = SequenceData.generate(**{"seed": self.seed, **_sizes(synthetic or {})})
            others = {"format": "auto", "user": None, "item": None, "time": "auto", "ties": "file"}
            given = {"format": format, "user": user, "item": item, "time": time, "ties": ties}
            if wrong := [option for option, default in others.items() if given[option] != default]:
                raise InvalidValue(
                    f"{name}: {wrong[0]}={given[wrong[0]]!r} is of a file, and source is 'synthetic'; give a file."
                )
        else:
            data = SequenceData.read(source, format, items, attributes, user, item, time, ties, tie_seed)
        self.data, self.kind = data.k_core(core, core) if core else data, split
        self.split: Split = self.data.split(split, short=short, cuts=cuts, fractions=fractions)
        self.needs_samples = False  # set by a model whose heads ask for them

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return self.data.num_items

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the histories, see :attr:`SequenceData.fingerprint`."""
        return self.data.fingerprint

    def evaluate_run(
        self, run: str | os.PathLike[str], *, baselines: bool, seed: int, device: str, trust: bool
    ) -> dict[str, Any]:
        """Rank by the recommender of a run; :func:`contrastive.evaluation.evaluate_run` asks for this."""
        from recsys.evaluation import evaluate_recommender

        return evaluate_recommender(run, self, floors=baselines, seed=seed, device=device, trust=trust)

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

    def predict_dataloader(self) -> HeldOutBatches:
        """The whole history of every user who has one, without a target (0)."""
        users = np.flatnonzero(self.data.sequences.lengths)
        cases = Cases(self.data.sequences.take(users), np.zeros_like(users), users)
        return HeldOutBatches(cases, max_length=self.max_length, batch_size=self.eval_batch)


def _sizes(synthetic: dict[str, int | float]) -> dict[str, Any]:
    """Arguments of :meth:`SequenceData.generate`, refused by name."""
    known = set(inspect.signature(SequenceData.generate).parameters)
    for option in synthetic:
        if option not in known:
            raise InvalidValue(
                f"RecommenderData: synthetic has {option!r}; it takes {', '.join(sorted(known))}."
            )
    return dict(synthetic)


class Predicted(NamedTuple):
    """What may come next for some users, the best first.

    Attributes:
        users: ``(B,)`` int64, rows of the users in the data.
        items: ``(B, k)`` int64 item codes; 0 where there is no further candidate.
        scores: ``(B, k)``; ``-inf`` there.
    """

    users: Tensor
    items: Tensor
    scores: Tensor


@dataclass
class Part:
    """A batch with what its terms are computed from; a step is taken over one, or over those that are accumulated.

    Attributes:
        batch: targets and their histories.
        samples: random prefixes for heads; None if there are no heads.
        generator: of everything that losses and heads draw.
        seed: of dropout, set before the first pass over the part; None leaves the global generator as it is.
        views: of the batch, by head, which all phases of a step share.
    """

    batch: Batch
    samples: Samples | None
    generator: torch.Generator
    seed: int | None = None
    views: dict[Any, Any] = field(default_factory=dict)


class SequentialRecommender(LightningModule):
    """A sequence encoder, a next-item loss, and any number of contrastive heads.

    Each step: the loss of about 256 targets, read from whole histories, plus every head's term on as many random
    prefixes. :class:`~recsys.MCLRec` alternates between encoder and augmenters; all else is one step of Adam.

    With ``Trainer(accumulate_grad_batches=k)`` a step, with all its phases, is taken over k batches, the last of an
    epoch over those that are left. The next-item loss is then the mean over the targets of all of them, as of one
    larger batch; a head's term is the mean of k terms, each with the negatives of its own batch.
    ``Trainer(gradient_clip_val=)`` clips the gradients of each optimiser by themselves.

    Validation and test rank every target against the whole catalogue and log HR, NDCG and MRR at 5, 10 and 20, as
    ``val_NDCG@10`` and so on. Prediction gives what may come next for each user.

    All randomness of a training step is a function of ``seed``, the epoch, the batch and the process, so a resumed run
    repeats an uninterrupted one exactly.

    Args:
        encoder: maps histories to states; its item table is made for the data's catalogue.
        loss: of the next item; :class:`~recsys.FullSoftmax` by default.
        heads: contrastive terms.
        learning_rate: of Adam.
        weight_decay: of Adam, added to the gradient; of all optimisers.
        augmenter_learning_rate: of MCLRec's augmenters; ``learning_rate`` by default.
        history: ``"keep"`` ranks against all items; ``"mask"`` leaves out those of the history, but for the target.
        ties: whether items with the target's score count as ahead of it.
        seed: of the randomness in training steps.

    Raises:
        TypeError: ``encoder`` is no :class:`~recsys.encoders.SequenceEncoder`, a head is no
            :class:`~recsys.objectives.Head`, or an option is no number.
        ValueError: more than one MCLRec head, a number out of range, or an unknown choice.
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
        name = "SequentialRecommender"
        if not (heads is None or isinstance(heads, list | tuple)):
            raise InvalidType(f"{name}: heads is {shown(heads)}; give a list of heads, or None.")
        if not (loss is None or isinstance(loss, nn.Module)):
            raise InvalidType(f"{name}: loss is {shown(loss)}; give a module, or None for FullSoftmax.")
        heads = list(heads or [])
        for part, kind, expected in (
            (encoder, SequenceEncoder, "encoder"),
            *((h, Head, "head") for h in heads),
        ):
            if not isinstance(part, kind):
                raise InvalidType(
                    f"{name}: {expected} is a {type(part).__name__}; give a {kind.__module__}.{kind.__name__}, or a "
                    "class of your own that derives from it."
                )
        learned = [head for head in heads if isinstance(head, MCLRec)]
        if len(learned) > 1:
            raise InvalidValue(f"heads of {name} has {len(learned)} MCLRec; give at most one.")
        self.encoder, self.loss, self.heads = encoder, loss or FullSoftmax(), nn.ModuleList(heads)
        self.learning_rate = check_number(name, "learning_rate", learning_rate, "(0, inf)")
        self.weight_decay = check_number(name, "weight_decay", weight_decay, "[0, inf)")
        self.augmenter_learning_rate = self.learning_rate
        if augmenter_learning_rate is not None:
            self.augmenter_learning_rate = check_number(
                name, "augmenter_learning_rate", augmenter_learning_rate, "(0, inf)"
            )
        check_choice(name, "history", history, HISTORIES)
        check_choice(name, "ties", ties, TIES)
        self.history, self.ties, self.seed = history, ties, check_whole(name, "seed", seed, 0)
        self.mclrec = [
            head for head in learned if head.update != "joint"
        ]  # a list: not a second home of its weights
        self.automatic_optimization = False
        self.metrics = RankingMetrics()
        self.prefixes: PrefixTable | None = None
        self._waiting: list[tuple[Batch, int]] = []  # batches of the step to come, with their numbers
        self._waited = 0  # how many a checkpoint had
        self._resumed: Place | None = None
        self._catalogue: str | None = None  # a checksum, once there are data
        self._cases: dict[str, Sequences] = {}
        self.ranks: dict[str, np.ndarray[Any, Any]] = {}

    # ------------------------------------------------------------------ before training

    def configure_callbacks(self) -> list[Callback]:
        """Add the run plan, unless the trainer has it; let the trainer clip and accumulate.

        Lightning refuses both to a module that steps by itself, and asks between this hook and :meth:`setup`. This
        module carries them out.
        """
        from contrastive.training.callbacks import RunPlan

        self.automatic_optimization = True
        present = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        return [] if RunPlan in present else [RunPlan()]

    def run_plan(self) -> dict[str, str]:
        """What the run is about to do, by names: columns, order and ties of the data among it."""
        return describe_run(self.trainer, self, self._resumed)

    def setup(self, stage: str) -> None:
        """Make the item table, and let the heads see the data."""
        self.automatic_optimization = False
        data: RecommenderData = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.max_length > self.encoder.max_length:
            raise InvalidValue(
                f"data.max_length is {data.max_length}, but the encoder reads {self.encoder.max_length} items; lower "
                "the one or raise the other."
            )
        if data.shared and not self.encoder.shares_prefixes:
            raise InvalidValue(
                "the encoder counts positions from the end, so prefixes of a history do not share their states: set "
                "data.shared=false, or positions='start'."
            )
        self.encoder.setup(data.num_items)
        self._catalogue = _checksum(data.data.item_ids)
        if stage == "fit":
            self._waiting, self._waited, self._resumed = [], 0, None
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
        trainer = self._trainer
        # Adam's fused kernel undoes the scaling of float16 gradients itself, too late for clipping.
        clips_scaled = trainer is not None and trainer.gradient_clip_val and trainer.precision == "16-mixed"
        options: dict[str, Any] = {"weight_decay": self.weight_decay, "fused": not clips_scaled}
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Adam(together, lr=self.learning_rate, **options)
        ]
        if apart:
            optimizers.append(torch.optim.Adam(apart, lr=self.augmenter_learning_rate, **options))
        return optimizers

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the catalogue, and how many batches wait for a step over several."""
        checkpoint["recsys"] = {
            "num_items": self.encoder.num_items,
            "items": self._catalogue,
            "waiting": len(self._waiting),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the item table and the heads' weights for those to come.

        Raises:
            ValueError: the checkpoint is of another catalogue than the data.
        """
        weights, saved = checkpoint["state_dict"], checkpoint.get("recsys", {})
        count = saved.get("num_items") or len(weights["encoder.item_embedding.weight"]) - 1
        items = saved.get("items")
        other = items is not None and self._catalogue not in (None, items)
        if other or self.encoder.num_items not in (0, count):
            raise InvalidValue(
                f"the checkpoint was trained on a catalogue of {count} items, the data given has "
                f"{self.encoder.num_items}{' others' if self.encoder.num_items == count else ''}; give the data that "
                "it was trained on, or train anew without a checkpoint."
            )
        self.encoder.setup(count)
        self._waited = saved.get("waiting", 0)
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self._resumed = Place.read(checkpoint)
        for number, head in enumerate(self._heads()):
            prefix = f"heads.{number}."
            own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
            head.restore(self.encoder, own)
        if self._trainer is not None and self.trainer.state.fn != "fit":
            # Heads have a part in training only: a recommender with others, or none, ranks alike.
            ours = {name: w for name, w in self.state_dict().items() if name.startswith("heads.")}
            for name in [name for name in weights if name.startswith("heads.")]:
                if name not in ours or ours[name].shape != weights[name].shape:
                    del weights[name]
            weights.update({name: w for name, w in ours.items() if name not in weights})

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take the step, or the steps, of a batch, or of all that were waiting for it.

        Raises:
            FloatingPointError: the loss is not finite on any process; names the step.
        """
        if self._waited:
            self._waiting, self._waited = self._reread(batch_idx, self._waited), 0
        self._waiting.append((batch, batch_idx))
        if len(self._waiting) < self.trainer.accumulate_grad_batches and not self.trainer.is_last_batch:
            return
        waiting, self._waiting = self._waiting, []
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        parts = [self._part(*one) for one in waiting]
        next_item, total = self.update(optimizers, parts)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True}
        # Lightning averages by batch sizes, and cuts their mean over processes to a whole number; so: of all together.
        size = int(
            global_sum(torch.tensor(sum(len(part.batch.targets) for part in parts), device=self.device))
        )
        self.log("loss", total, prog_bar=True, batch_size=size, **options)
        self.log("next_item_loss", next_item, batch_size=size, **options)

    def _reread(self, batch_idx: int, count: int) -> list[tuple[Batch, int]]:
        """The ``count`` batches before one, which were waiting for a step when the checkpoint was written."""
        loader, numbers = self.trainer.train_dataloader, range(batch_idx - count, batch_idx)
        if not isinstance(loader, TrainingBatches) or numbers.start < 0:
            return []
        batches = loader.at(self.current_epoch, numbers)
        return [
            (self.trainer.strategy.batch_to_device(batch, self.device), number)
            for batch, number in zip(batches, numbers, strict=True)
        ]

    def _part(self, batch: Batch, batch_idx: int) -> Part:
        seeds = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.global_rank])
        drawn, dropout = (int(seed) >> 1 for seed in seeds.generate_state(2, np.uint64))
        generator = torch.Generator(self.device).manual_seed(drawn)
        samples = None
        if len(self.heads):
            assert self.prefixes is not None
            items, lengths = self.prefixes.gather(batch.samples)
            samples = Samples(items, lengths, self.prefixes.targets[batch.samples], batch.samples, generator)
        return Part(batch, samples, generator, dropout)

    def update(self, optimizers: list[Any], parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
        """Take the steps of a batch in parts; return its next-item loss and the sum of all terms, of the first step.

        All phases see the same views, with other dropout.
        """
        shares = self._shares(parts)
        for part in parts:
            part.views = {head: head.views(cast(Samples, part.samples)) for head in self.mclrec}
        first: list[tuple[Tensor, Tensor]] = []

        def encoder_loss(part: Part, share: float) -> Tensor:
            losses = self._losses(part, share, 1 / len(parts))
            first.append((losses[0].detach(), losses[1].detach()))
            return losses[1]

        self._step(optimizers[0], parts, shares, encoder_loss, seeded=True)
        next_item, total = (torch.stack(values).sum() for values in zip(*first, strict=True))
        for head in self.mclrec:

            def augmenter_loss(part: Part, _: float, head: MCLRec = head) -> Tensor:
                return head.augmenter_loss(self.encoder, part.views[head]) * (1 / len(parts))

            self._step(optimizers[1], parts, shares, augmenter_loss)
            if head.update == "released":
                self._step(optimizers[0], parts, shares, encoder_loss)
        return next_item, total

    def _shares(self, parts: Sequence[Part]) -> list[float]:
        """Share of each part in the targets of all of them, over all processes."""
        if len(parts) == 1:
            return [1.0]
        counts = torch.tensor([len(part.batch.targets) for part in parts], device=self.device)
        counts = global_sum(counts).double()
        shares: list[float] = (counts / counts.sum()).tolist()
        return shares

    def _heads(self) -> list[Any]:
        return list(self.heads)

    def _losses(self, part: Part, share: float = 1.0, head_share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Next-item loss, and its sum with the heads' terms: what the encoder minimises; each by its share."""
        batch = part.batch
        states = self.encoder(batch.items, batch.lengths)[batch.rows, batch.places]
        next_item = self.loss(states, batch.targets, self.encoder.item_vectors(), part.generator) * share
        total = next_item
        for head in self._heads():
            term = (
                head.encoder_loss(self.encoder, part.views[head])
                if head in part.views
                else head(self.encoder, part.samples)
            )
            total = total + term * head_share
        return next_item, total

    def _step(
        self,
        optimizer: Any,
        parts: Sequence[Part],
        shares: Sequence[float],
        loss_of: Callable[[Part, float], Tensor],
        *,
        seeded: bool = False,
    ) -> None:
        optimizer.zero_grad()
        strategy = self._ddp
        for part, share in zip(parts, shares, strict=True):
            if seeded and part.seed is not None:
                torch.manual_seed(part.seed)
            loss = loss_of(part, share)
            if (
                global_sum((~torch.isfinite(loss.detach())).float()) > 0
            ):  # so that all processes stop together
                bad = NotFinite(
                    f"the loss of step {self.global_step} is {float(loss.detach())} here; the step was not taken. "
                    "Lower the learning rate, or look at the embeddings and attributes that heads were given."
                )
                bad.everywhere = True
                raise bad
            with nullcontext() if strategy is None else strategy.block_backward_sync():
                self.manual_backward(loss)
        if strategy is not None:
            average_gradients(optimizer)
        optimizer.step()

    @property
    def _ddp(self) -> DDPStrategy | None:
        """The strategy of several processes, whose own averaging expects a gradient of every weight at every step."""
        strategy = None if self._trainer is None else self.trainer.strategy
        return strategy if isinstance(strategy, DDPStrategy) else None

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip as the trainer asks, where automatic optimisation would."""
        if self.trainer.gradient_clip_val:
            self.configure_gradient_clipping(
                optimizer, self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
            )

    # ------------------------------------------------------------------ evaluation

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Return scores ``(B, num_items + 1)`` of what follows histories ``(B, T)``; column 0 is padding."""
        return self._states(items, lengths) @ self.encoder.item_vectors().T

    def _states(self, items: Tensor, lengths: Tensor) -> Tensor:
        """States ``(B, dim)`` after histories; B may be 0, where another process has the last cases."""
        return self.encoder.encode(items, lengths) if len(items) else self.encoder.item_vectors()[:0]

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
        states = self._states(batch.items, batch.lengths)
        index = batch.index.cpu().numpy()
        seen = self._cases[name].take(index) if self.history == "mask" else None
        vectors = self.encoder.item_vectors()
        ranks = rank_by_vectors(states, vectors, batch.targets.cpu().numpy(), seen, self.ties)
        self.ranks[name][index] = ranks
        self.metrics.update(torch.from_numpy(ranks))

    def on_validation_epoch_end(self) -> None:
        """Log ``val_*``."""
        self._end("valid", "val")

    def on_test_epoch_end(self) -> None:
        """Log ``test_*``."""
        self._end("test", "test")

    def _end(self, name: str, prefix: str) -> None:
        """Gather the ranks of all processes, and log the metrics, which are those of all."""
        if self.trainer.world_size > 1:
            ranks = torch.from_numpy(self.ranks[name]).to(self.device)
            dist.all_reduce(ranks, dist.ReduceOp.MAX)  # -1 where another process ranks the case
            self.ranks[name] = ranks.cpu().numpy()
        for metric, value in self.metrics.compute().items():
            self.log(f"{prefix}_{metric}", value.float(), prog_bar=metric == "NDCG@10", sync_dist=True)

    # ------------------------------------------------------------------ prediction

    def predict_step(self, batch: Held, batch_idx: int) -> Predicted:
        """Return the 20 items with the highest scores for each user; ``history="mask"`` leaves out those of theirs."""
        scores = self(batch.items, batch.lengths).float()
        scores[:, 0] = -torch.inf
        cases: Cases = cast(HeldOutBatches, self.trainer.predict_dataloaders).cases
        index = batch.index.cpu().numpy()
        if self.history == "mask":
            seen = cases.histories.take(index)
            rows = np.repeat(np.arange(len(seen)), seen.lengths)
            scores[torch.from_numpy(rows), torch.from_numpy(seen.items)] = -torch.inf
        found, items = scores.topk(min(max(self.metrics.ks), scores.shape[1] - 1), dim=1)
        users = torch.from_numpy(cases.users[index])
        return Predicted(users, items.masked_fill(found == -torch.inf, 0).cpu(), found.cpu())


def average_gradients(optimizer: Any) -> None:
    """Replace gradients by their mean over processes; one that a process lacks counts as 0 there."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    present = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.int32)
    present = global_sum(present.to(weights[0].device))
    for weight, anywhere in zip(weights, present.tolist(), strict=True):
        if anywhere:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            dist.all_reduce(weight.grad)
            weight.grad /= dist.get_world_size()


def _checksum(ids: np.ndarray[Any, Any]) -> str:
    """What tells one catalogue from another: its items' ids in the order of their codes."""
    return hashlib.sha256(json.dumps(ids.tolist()).encode()).hexdigest()
