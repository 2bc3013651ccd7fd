"""Item vectors from interactions alone, for catalogues whose items have neither texts nor attributes."""

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from contrastive.checks import check_whole
from contrastive.errors import InvalidValue
from recsys.data import Array, Sequences


def interaction_vectors(train: Sequences, num_items: int, dim: int = 64, window: int = 5) -> Array:
    """Factors of the positive pointwise mutual information of items that stand near each other.

    Levy & Goldberg 2014, "Neural word embedding as implicit matrix factorization", with histories as sentences. Only
    training items are counted, so nothing of a held-out item can be in a vector.

    Args:
        train: training items of each user.
        num_items: items of the catalogue.
        dim: width; at most ``num_items - 1`` is used.
        window: items up to so many places apart count.

    Returns:
        ``(num_items + 1, dim)`` float32 rows of unit length; zero for padding and items without neighbours.

    Raises:
        ValueError: a number below 1, or no two items stand near each other in any history.
    """
    name = "interaction_vectors"
    num_items, dim = check_whole(name, "num_items", num_items), check_whole(name, "dim", dim)
    window = check_whole(name, "window", window)
    items, rows = train.items, np.repeat(np.arange(len(train)), train.lengths)
    pairs = [(items[:-step], items[step:]) for step in range(1, window + 1) if len(items) > step]
    kept = [
        (a[same], b[same]) for step, (a, b) in enumerate(pairs, 1) for same in [rows[:-step] == rows[step:]]
    ]
    first, second = (np.concatenate([pair[side] for pair in kept] or [items[:0]]) for side in (0, 1))
    size = num_items + 1
    counts = sp.coo_array((np.ones(len(first)), (first, second)), shape=(size, size)).tocsr()
    counts = counts + counts.T
    totals = np.asarray(counts.sum(0)).ravel()
    entries = counts.tocoo()
    information = np.log(entries.data * totals.sum() / (totals[entries.row] * totals[entries.col]))
    if num_items < 2 or not (information > 0).any():
        raise InvalidValue(
            f"{name}: in {len(train)} training histories of {num_items} items none stands beside another more often "
            "than by chance, so interactions tell nothing of them; choose semantics='attributes' or 'texts', or give "
            "longer histories."
        )
    positive = sp.coo_array(
        (np.maximum(information, 0), (entries.row, entries.col)), shape=(size, size)
    ).tocsr()
    rank = min(dim, num_items - 1)
    start = np.random.default_rng(0).standard_normal(size)  # svds draws one of its own otherwise
    left, values, _ = svds(positive, k=rank, v0=start)
    vectors = left * np.sqrt(values)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    known = (totals > 0)[:, None] & (lengths > 1e-12)
    vectors = np.where(known, vectors / np.where(known, lengths, 1), 0)
    out = np.zeros((size, dim), np.float32)
    out[:, :rank] = vectors
    return out
