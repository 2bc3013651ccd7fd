"""The similarity engine: objectives see rows of a matrix that is never held whole."""

from contrastive.similarity.distributed import Gathered, average, gather, global_mean, global_sum, world_size
from contrastive.similarity.gaussian import gaussian_logsumexp
from contrastive.similarity.rows import stream_rows
from contrastive.similarity.softmax import logsumexp_both, logsumexp_cross, logsumexp_self

__all__ = [
    "Gathered",
    "average",
    "gather",
    "gaussian_logsumexp",
    "global_mean",
    "global_sum",
    "logsumexp_both",
    "logsumexp_cross",
    "logsumexp_self",
    "stream_rows",
    "world_size",
]
