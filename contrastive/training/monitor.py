"""A watch over the embeddings while they are trained."""

import math
from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.functional import normalize

from contrastive.arguments import checked
from contrastive.evaluation.geometry import alignment, effective_rank, mean_cosine, normalized_std
from contrastive.training.pretrain import Pretrain


def embedding_health(views: Sequence[Tensor]) -> dict[str, float]:
    """Describe embeddings by numbers that tell a collapse early.

    Args:
        views: Two or more tensors ``(B, D)``, B >= 2: the embeddings of the same samples in different views.
            The first two are looked at, as unit rows.

    Returns:
        ``spread``: standard deviation of a dimension over the batch, relative to that of uniformly
        distributed directions, 1/sqrt(D); 1 is ideal, 0 is a single point. ``effective_rank``: number of
        directions in use around the mean, 1 to min(B, D). ``positive_similarity`` and
        ``negative_similarity``: mean cosine of the two views of a sample, and of two samples.
    """
    first, second = (normalize(view.float(), dim=1) for view in views[:2])
    return {
        "spread": normalized_std(first) * math.sqrt(first.shape[1]),
        "effective_rank": effective_rank(first, centre=True),
        "positive_similarity": 1 - alignment(first, second) / 2,
        "negative_similarity": mean_cosine(first),
    }


class CollapseMonitor(Callback):
    """Log the health of the embeddings once an epoch and warn, once, when they collapse.

    Looks at the embeddings of the epoch's last batch in this process (:func:`embedding_health`), and at the
    last loss as a share of ``log(negatives + 1)``: an InfoNCE loss whose share is 1 picks out positives by
    chance.

    Args:
        min_spread: Warn when ``spread`` is below; 1 is ideal.
        min_rank: Warn when ``effective_rank`` is below; not asked of fewer than 8 samples.
    """

    @checked
    def __init__(self, min_spread: float = 0.1, min_rank: float = 2.0) -> None:
        self.min_spread, self.min_rank = min_spread, min_rank
        self.warned = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, log, and warn if need be."""
        if (
            not isinstance(pl_module, Pretrain)
            or not pl_module.embeddings
            or len(pl_module.embeddings[0]) < 2
        ):
            return  # without embeddings: resumed after the last batch of an epoch
        health = embedding_health(pl_module.embeddings)
        few = len(pl_module.embeddings[0]) < 8  # that span few directions wherever they lie
        low_rank = not few and health["effective_rank"] < self.min_rank
        collapsed = health["spread"] < self.min_spread or low_rank
        if negatives := pl_module.negatives_per_anchor:
            health["loss_over_chance"] = float(trainer.callback_metrics["loss"]) / math.log(negatives + 1)
        pl_module.log_dict(health, sync_dist=True)
        if collapsed and not self.warned:
            self.warned = True
            measured = ", ".join(f"{name} {value:.3g}" for name, value in health.items())
            rank_zero_warn(
                f"the embeddings are collapsing after epoch {trainer.current_epoch}: {measured} (spread is "
                f"below {self.min_spread} or effective_rank below {self.min_rank}). Try, in this order: a "
                "lower optimizer.learning_rate or a longer warm-up; a lower temperature of the objective; a "
                "larger batch, for more negatives (cache_chunk_size fits it into memory); stronger views; a "
                "wider projector."
            )
