"""Whether a tuned index finds as much as it says for queries that it does not hold, and goes on to as it changes.

    python scripts/reliability/recall.py --seeds 5
    python scripts/reliability/recall.py --cycles 300 --seeds 0

First ``tune`` without queries, then the recall of new queries of the same source. Then the recall of vectors that
stay while others come and go.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits

from contrastive.retrieval import Index

WIDTH, K = 128, 10


def clustered(count: int, seed: int) -> np.ndarray:
    """Fifty normal clusters."""
    random, centres = np.random.default_rng(seed), np.random.default_rng(0).normal(size=(50, WIDTH))
    return centres[random.integers(50, size=count)] + 0.3 * random.normal(size=(count, WIDTH))


def smooth(count: int, seed: int) -> np.ndarray:
    """A smooth image of 24 hidden dimensions."""
    fixed = np.random.default_rng(0)
    first, second = fixed.normal(size=(24, 64)) / 24**0.5, fixed.normal(size=(64, WIDTH)) / 8
    return np.tanh(np.random.default_rng(seed).normal(size=(count, 24)) @ first) @ second


def uniform(count: int, seed: int) -> np.ndarray:
    """No structure; of 16 dimensions, as in more nothing is near anything."""
    return np.random.default_rng(seed).uniform(-1, 1, size=(count, 16))


def digits(count: int, seed: int) -> np.ndarray:
    """Pixels of handwritten digits, moved a little: real images."""
    random, images = np.random.default_rng(seed), load_digits().data
    return images[random.integers(len(images), size=count)] + random.normal(size=(count, 64))


SOURCES: dict[str, Callable[[int, int], np.ndarray]] = {
    source.__name__: source for source in (clustered, smooth, uniform, digits)
}
FACTORIES = {"HNSW32": "HNSW32", "IVF": "IVF64,Flat", "codes": "IVF64,PQ{parts}x8"}


def recall(index: Index, base: np.ndarray, queries: np.ndarray) -> float:
    """Share of the true neighbours in ``base`` that are found."""
    truth = Index.build(base, factory="Flat").search(queries, K)[1]
    found = index.search(queries, K)[1]
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(truth, found, strict=True)])) / K


def try_new_queries(count: int, seeds: int) -> None:
    """Print what was promised and what was kept."""
    for source, draw in SOURCES.items():
        for kind, factory in FACTORIES.items():
            kept, said, begin = [], [], time.perf_counter()
            for seed in range(seeds):
                base, new = (
                    draw(n, 2 * seed + i + 1).astype(np.float32) for i, n in enumerate((count, 2000))
                )
                name = factory.format(parts=base.shape[1] // 4)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that codes do not reach it is seen below
                    index = Index.build(base, factory=name, keep_vectors=True, seed=seed)
                kept.append(recall(index, base, new))
                said.append(index.tuned["recall"])
            print(
                f"{source:<10} {kind:<7} said {np.mean(said):.3f}, new queries {min(kept):.3f} to {max(kept):.3f} "
                f"({seeds} seeds, {time.perf_counter() - begin:.0f} s)",
                flush=True,
            )


def try_changes(cycles: int) -> None:
    """Print the recall of 3,000 vectors that stay while 100 others are added and removed, again and again."""
    base = np.random.default_rng(1).normal(size=(3000, 64)).astype(np.float32)
    index, random = Index.build(base, factory="HNSW16"), np.random.default_rng(2)
    for cycle in range(cycles + 1):
        if cycle % max(1, cycles // 6) == 0:
            print(f"after {cycle:>4} cycles: recall {recall(index, base, base[:1000]):.3f}", flush=True)
        ids = 10**6 + cycle * 100 + np.arange(100)
        index.add(random.normal(size=(100, 64)).astype(np.float32), ids)
        index.remove(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="vectors of an index")
    parser.add_argument("--seeds", type=int, default=5, help="of every source and kind of index")
    parser.add_argument("--cycles", type=int, default=300, help="of adding and removing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.seeds:
        try_new_queries(options.count, options.seeds)
    if options.cycles:
        try_changes(options.cycles)


if __name__ == "__main__":
    main()
