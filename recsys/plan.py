"""What a run of a recommender is about to do, in a few lines."""

import math
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from torch import nn

from contrastive.training.resume import Place
from recsys.data import Split

if TYPE_CHECKING:
    from recsys.training import RecommenderData, SequentialRecommender


def describe_data(data: "RecommenderData") -> dict[str, str]:
    """Where interactions come from, which columns were read as what, their order, and what times leave open.

    Returns:
        Lines by their names.
    """
    whole = data.data
    sizes = f"{whole.num_users:,} users, {whole.num_items:,} items, {whole.num_interactions:,} interactions"
    columns = whole.columns or {}
    named = ", ".join(f"{role}: {columns[role]}" if role in columns else f"no {role}" for role in _ROLES)
    held = f"{len(data.split.valid):,} validation and {len(data.split.test):,} test targets"
    return {
        "data": f"{data.source}, {sizes}",
        "columns": named if columns else "without names",
        "order": whole.order,
        "ties in time": describe_ties(data.split),
        "split": f"{data.kind}, {held}",
    }


_ROLES = ("user", "item", "time")


def describe_ties(split: Split) -> str:
    """The share of held-out targets that times do not determine."""
    shares = {name: split.tied_share(name) for name in ("valid", "test")}
    if None in shares.values():
        return "unknown, as there are no times"
    told = f"{shares['valid']:.1%} of the validation and {shares['test']:.1%} of the test targets"
    return f"{told} have the time of the item before" if any(shares.values()) else "none among targets"


def describe_run(trainer: Trainer, module: "SequentialRecommender", resumed: Place | None) -> dict[str, str]:
    """Data, batches, steps, learning rate, network and conventions of a run that is about to start.

    Args:
        trainer: its loaders are there.
        module: what it trains.
        resumed: where the run goes on that is resumed.

    Returns:
        Lines by their names.
    """
    data: RecommenderData = trainer.datamodule  # type: ignore[attr-defined]
    window, processes = trainer.accumulate_grad_batches, trainer.world_size
    heads = [type(head).__name__ for head in module.heads]
    updates = 1 + sum(2 if head.update == "released" else 1 for head in module.mclrec)
    rate, decay = f"{module.learning_rate:g}", module.weight_decay
    if module.mclrec:
        rate += f", of the augmenters {module.augmenter_learning_rate:g}"
    drawn = f", and {data.samples:,} samples for the heads" if heads else ""
    return {
        **describe_data(data),
        "batch": f"about {data.batch_targets * processes * window:,} targets a step = {data.batch_targets:,} x "
        f"{processes} process{'es' * (processes > 1)} x {window} accumulated{drawn}",
        "steps": _steps(trainer, updates),
        "learning rate": f"Adam, {rate}{f', weight decay {decay:g}' if decay else ''}, constant",
        **_resumed(updates, resumed),
        "encoder": f"{type(module.encoder).__name__} ({_count(module.encoder):,} parameters), "
        f"{module.encoder.dim} features, {data.max_length} items of a history",
        "loss": type(module.loss).__name__,
        "heads": ", ".join(heads) or "none",
        "ranking": f"against the whole catalogue, history={module.history}, ties={module.ties}",
    }


def _steps(trainer: Trainer, updates: int) -> str:
    epochs, batches = trainer.max_epochs, trainer.num_training_batches
    each = f", each of {updates} updates" if updates > 1 else ""
    most = math.ceil(trainer.max_steps / updates) if trainer.max_steps >= 0 else math.inf
    an_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    if epochs is None or epochs < 0:
        if math.isinf(most):
            return f"without an end, {an_epoch:,} an epoch{each}"
        return f"{most:,}, {an_epoch:,} an epoch{each}"
    steps = min(most, epochs * an_epoch)
    epochs = min(epochs, math.ceil(steps / an_epoch))
    return f"{steps:,} = {epochs:,} epoch{'s' * (epochs != 1)} of {batches:,} batches{each}"


def _resumed(updates: int, resumed: Place | None) -> dict[str, str]:
    if resumed is None:
        return {}
    over = f", {resumed.batches:,} of its batches are over" if resumed.batches else ""
    return {"resumed": f"in epoch {resumed.epoch + 1}{over}, after step {resumed.steps // updates:,}"}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
