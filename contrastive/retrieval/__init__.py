"""From encoder to answers: embeddings on disk, a searchable index of them, neighbours for everyone who needs some."""

from contrastive.retrieval.embed import embed, embed_run
from contrastive.retrieval.engine import set_threads
from contrastive.retrieval.index import Index
from contrastive.retrieval.shards import Embeddings

__all__ = ["Embeddings", "Index", "embed", "embed_run", "set_threads"]
