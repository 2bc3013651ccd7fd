"""The similarity engine: objectives see rows of a matrix that is never held whole."""

from contrastive.similarity.distributed import Gathered, average, gather, global_mean, global_sum, world_size
from contrastive.similarity.gaussian import gaussian_logsumexp
from contrastive.similarity.rows import stream_rows
from contrastive.similarity.softmax import logsumexp_both, logsumexp_cross, logsumexp_self
from contrastive.similarity.subspace import stream_subspace

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
    "stream_subspace",
    "world_size",
]
