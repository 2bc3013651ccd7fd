"""From encoder to answers: embeddings on disk, a searchable index of them, neighbours for everyone who needs some."""

from contrastive.retrieval.embed import embed, embed_run
from contrastive.retrieval.engine import set_threads
from contrastive.retrieval.index import Index
from contrastive.retrieval.mining import mine_negatives, near_duplicates
from contrastive.retrieval.run import build_index, search_index
from contrastive.retrieval.shards import Embeddings

__all__ = [
    "Embeddings",
    "Index",
    "build_index",
    "embed",
    "embed_run",
    "mine_negatives",
    "near_duplicates",
    "search_index",
    "set_threads",
]
