"""Threads that search an index, or a recommender, while another one changes it: wrong ids and exceptions are counted.

    python scripts/reliability/threads.py --seconds 60

Every id has a vector of its own that can be made again from the id, so each answer is checked on its own: the score
must be the one that the vector of that id has, an item that never changes must be found, and by itself.
"""

import argparse
import functools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from contrastive.retrieval import Index

DIM, STABLE, CHANGING = 16, 2_000, 400
SHORT = "short"
"""A search that found fewer than were asked for, which a graph with many removed items does: no wrong answer."""


def vectors(ids: Any, version: int) -> Any:
    """Unit vectors ``(n, DIM)``, which depend on ids and version alone."""
    return np.array([vector(int(i), version) for i in ids], np.float32).reshape(-1, DIM)


@functools.cache
def vector(item: int, version: int) -> Any:
    """The unit vector ``(DIM,)`` of an id."""
    row = np.random.default_rng([item, version]).normal(size=DIM)
    return row / np.linalg.norm(row)


def change_index(index: Index, change: str, first: int, stop: threading.Event) -> int:
    """Change items over and over until told to stop; returns the number of changes."""
    count = 0
    ids = np.arange(first, first + CHANGING)
    while not stop.is_set():
        part = ids[(count * 20) % CHANGING :][:20]
        if change == "update":
            index.update(vectors(part, count % 2), part)
        elif change == "add":
            fresh = part + (1 + count // (CHANGING // 20)) * 1_000_000
            index.add(vectors(fresh, 0), fresh)
        else:  # removes, and puts back what was removed so that it does not run out
            index.remove(part)
            index.add(vectors(part, 0), part)
        count += 1
    return count


def beside(
    search: Callable[[np.random.Generator], str | None],
    change: Callable[[threading.Event], int],
    seconds: float,
    threads: int,
) -> dict[str, Any]:
    """Search in many threads, change in one.

    Args:
        search: one search; returns what was wrong, or None.
        change: changes until the event is set; returns how often.
        seconds: how long.
        threads: that search.

    Returns:
        ``searches``, ``changes``, ``short``, ``wrong`` and ``exceptions`` (kind -> how often).
    """
    stop = threading.Event()
    counted: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    exceptions: Counter[str] = Counter()

    def searching(seed: int) -> None:
        generator = np.random.default_rng(seed)
        while not stop.is_set():
            try:
                problem = search(generator)
                if problem == SHORT:
                    counted[SHORT] += 1
                elif problem is not None:
                    wrong[problem] += 1
            except Exception as error:
                exceptions[f"search: {type(error).__name__}: {str(error)[:80]}"] += 1
            counted["searches"] += 1

    def changing() -> None:
        try:
            counted["changes"] = change(stop)
        except Exception as error:
            exceptions[f"change: {type(error).__name__}: {str(error)[:80]}"] += 1

    running = [threading.Thread(target=searching, args=(seed,)) for seed in range(threads)]
    running.append(threading.Thread(target=changing))
    for thread in running:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in running:
        thread.join()
    return {
        "searches": counted["searches"],
        "changes": counted["changes"],
        "short": counted[SHORT],
        "wrong": dict(wrong),
        "exceptions": dict(exceptions),
    }


def try_index(factory: str, change: str, seconds: float, threads: int) -> dict[str, Any]:
    """Searches beside changes of an index."""
    ids = np.arange(STABLE + CHANGING)
    index = Index.build(vectors(ids, 0), ids, factory=factory, keep_vectors=factory != "Flat")
    if not index.exact:
        index.tune(0.95)
    stable = vectors(ids[:STABLE], 0)

    def search(generator: np.random.Generator) -> str | None:
        own = int(generator.integers(STABLE))
        scores, found = index.search(stable[own : own + 1], 5)
        if found[0, -1] < 0:
            return SHORT
        for score, item in zip(scores[0].tolist(), found[0].tolist(), strict=True):
            versions = (0, 1) if change == "update" and STABLE <= item < STABLE + CHANGING else (0,)
            true = [float((vectors([item], version) @ stable[own])[0]) for version in versions]
            if min(abs(score - one) for one in true) > 1e-5:
                return f"an id with the score of another item ({factory}, {change})"
        if (index.exact or own in found[0]) and found[0, 0] != own:
            return "an item is not its own nearest neighbour"
        if own not in index:
            return "an item that was never removed is not there"
        return None

    return beside(search, lambda stop: change_index(index, change, STABLE, stop), seconds, threads)


def try_recommender(factory: str, seconds: float, threads: int) -> dict[str, Any]:
    """Recommendations beside new items."""
    import torch

    from recsys import Recommender, SequenceData
    from recsys.encoders import GRU4Rec

    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    users = np.repeat(np.arange(60), 30)
    items = generator.integers(0, 300, len(users))
    data = SequenceData.from_dataframe({"user": users, "item": items, "time": np.arange(len(users))})
    encoder = GRU4Rec(num_items=data.num_items, dim=16, max_length=20).eval()
    recommender = Recommender.from_model(encoder, data, factory=factory)
    known = list(recommender.ids)

    def search(generator: np.random.Generator) -> str | None:
        history = generator.choice(known, 8).tolist()
        found = recommender.recommend(history, 5)
        if len(found.ids) != 5 or found.skipped:
            return "not as many items as were asked for"
        with torch.inference_mode():
            return compare(history, found)

    def compare(history: list[Any], found: Any) -> str | None:
        codes = torch.tensor([recommender._codes[item] for item in found.ids])
        states = recommender._encode([[recommender._codes[item] for item in history]])
        true = recommender.encoder.item_vectors()[codes] @ states[0]
        if not np.allclose(true.numpy(), found.scores, atol=1e-4):
            return "an item with the score of another one"
        return None

    def change(stop: threading.Event) -> int:
        count = 0
        while not stop.is_set():
            recommender.add_items([10**6 + count], vectors=0.1 * torch.randn(1, 16))
            count += 1
            time.sleep(0.002)  # the tables grow with each
        return count

    return beside(search, change, seconds, threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for each combination")
    parser.add_argument("--threads", type=int, default=8, help="that search")
    parser.add_argument("--only", help="factories, separated by spaces", default="Flat HNSW16 IVF16,Flat")
    parser.add_argument(
        "--changes", help="kinds of change, the same way", default="add remove update add_items"
    )
    options = parser.parse_args()
    failed = 0
    for factory in options.only.split():
        runs = {
            change: lambda factory=factory, change=change: try_index(
                factory, change, options.seconds, options.threads
            )
            for change in ("add", "remove", "update")
        }
        runs["add_items"] = lambda factory=factory: try_recommender(factory, options.seconds, options.threads)
        for change in options.changes.split():
            found = runs[change]()
            failed += len(found["wrong"]) + len(found["exceptions"])
            print(json.dumps({"factory": factory, "change": change, **found}), flush=True)
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
