"""From encoder to answers: embeddings on disk, a searchable index of them, neighbours for everyone who needs some."""

from contrastive.retrieval.embed import embed, embed_named, embed_run
from contrastive.retrieval.engine import set_threads
from contrastive.retrieval.index import Index
from contrastive.retrieval.mining import mine_negatives, near_duplicates
from contrastive.retrieval.run import build_index, search_index, write_embeddings
from contrastive.retrieval.shards import Embeddings
from contrastive.retrieval.texts import read_texts
from contrastive.retrieval.together import IndexSet

__all__ = [
    "Embeddings",
    "Index",
    "IndexSet",
    "build_index",
    "embed",
    "embed_named",
    "embed_run",
    "mine_negatives",
    "near_duplicates",
    "read_texts",
    "search_index",
    "set_threads",
    "write_embeddings",
]
