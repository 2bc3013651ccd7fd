"""Time of ``Recommender.recommend``: one history and a thousand, exactly and approximately, beside full ranking.

    python scripts/benchmark/serving.py --threads 2
    python scripts/benchmark/serving.py --items 12101 --factories Flat HNSW32

An untrained SASRec of width 64 reads histories of 1 to 50 items, most of them short; item vectors lie in clusters and
have lengths that differ. "full" is what a script without an index does: the encoder, a product with all item vectors,
and ``topk``. Every exact result is compared with it. An approximate index is tuned on other histories to find 95 % of
the ten best. Times are of whole calls, ids and all.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# recsys.py of this folder has the package's name, and Python looks here first.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from contrastive.retrieval import set_threads  # noqa: E402
from recsys.data import SequenceData, Sequences  # noqa: E402
from recsys.encoders import SASRec  # noqa: E402
from recsys.recommend import Recommendation, Recommender  # noqa: E402

DIM, LENGTH, K = 64, 50, 10


def make_encoder(items: int) -> SASRec:
    """An encoder whose item vectors lie in a few thousand clusters."""
    torch.manual_seed(0)
    encoder = SASRec(items, dim=DIM, max_length=LENGTH).eval()
    random = torch.Generator().manual_seed(1)
    centres = torch.randn(2000, DIM, generator=random)
    rows = centres[torch.randint(2000, (items + 1,), generator=random)]
    rows = rows + 0.7 * torch.randn(items + 1, DIM, generator=random)
    rows *= 0.5 + torch.rand(items + 1, 1, generator=random)
    with torch.no_grad():
        encoder.item_embedding.weight.copy_(rows)
    return encoder


def make_data(items: int) -> SequenceData:
    """A catalogue with integer ids, and a few interactions."""
    random = np.random.default_rng(0)
    ids = np.array([None, *range(1, items + 1)], object)
    rows = Sequences(random.integers(1, items + 1, 10_000), np.arange(0, 10_001, 10))
    return SequenceData(rows, np.arange(1000), ids)


def draw(items: int, count: int, seed: int) -> list[list[int]]:
    """Histories with lengths as in the Amazon data: half have six items or fewer."""
    random = np.random.default_rng(seed)
    lengths = np.minimum(1 + random.geometric(0.12, count), LENGTH)
    return [random.integers(1, items + 1, length).tolist() for length in lengths]


def rank_all(encoder: SASRec, histories: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and codes ``(n, k)`` by a product with every item vector."""
    lengths = torch.tensor([len(history) for history in histories])
    items = torch.zeros(len(histories), int(lengths.max()), dtype=torch.int64)
    for row, history in enumerate(histories):
        items[row, : len(history)] = torch.tensor(history)
    with torch.inference_mode():
        parts = [
            torch.topk(encoder.encode(items[rows], lengths[rows]) @ encoder.item_vectors()[1:].T, K)
            for rows in torch.arange(len(histories)).split(64)
        ]
    scores, codes = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return scores, codes + 1


def milliseconds(call: Callable[[Any], Any], arguments: list[Any]) -> str:
    """Median and 99th percentile of calls, after a few for warming up."""
    for argument in arguments[:3]:
        call(argument)
    times = []
    for argument in arguments:
        start = time.perf_counter()
        call(argument)
        times.append(1e3 * (time.perf_counter() - start))
    return f"{np.percentile(times, 50):>10.2f}{np.percentile(times, 99):>10.2f}"


def compare(found: list[Recommendation], scores: np.ndarray, codes: np.ndarray) -> str:
    """Share of the lists that are the full ranking's; where one differs, the scores must be equal up to rounding."""
    mine = np.array([one.scores for one in found])
    same = (np.array([one.ids for one in found]) == codes).all(axis=1)
    assert np.allclose(mine, scores, rtol=1e-4, atol=1e-4), np.abs(mine - scores).max()
    return f"{same.mean():.1%} of lists equal, scores within {np.abs(mine - scores).max():.0e}"


def measure(items: int, factories: list[str], singles: int, batches: int) -> None:
    encoder, data = make_encoder(items), make_data(items)
    ones = draw(items, singles, 1)
    many = [draw(items, 1000, 2 + batch) for batch in range(batches)]
    scores, codes = rank_all(encoder, many[0])
    print(f"{items:,} items")
    one, thousand = (
        milliseconds(call, arguments)
        for call, arguments in (
            (lambda history: rank_all(encoder, [history]), ones[: max(20, singles // 10)]),
            (lambda histories: rank_all(encoder, histories), many[:2]),
        )
    )
    print(f"  {'full':<14}{one}{thousand}", flush=True)
    for factory in factories:
        start = time.perf_counter()
        recommender = Recommender.from_model(encoder, data, factory=factory)
        built = time.perf_counter() - start
        tuned = "" if recommender.index.exact else recommender.tune(draw(items, 500, 99), k=K)["recall"]
        one, thousand = milliseconds(recommender.recommend, ones), milliseconds(recommender.recommend, many)
        unseen = milliseconds(lambda history: recommender.recommend(history, exclude_seen=True), ones)  # noqa: B023
        found = recommender.recommend(many[0])
        if recommender.index.exact:
            note = compare(found, scores, codes)
        else:
            hits = [len(set(one.ids) & set(row)) for one, row in zip(found, codes.tolist(), strict=True)]
            note = f"recall@{K} {np.mean(hits) / K:.3f} (tuned on others to {tuned:.3f})"
        print(
            f"  {recommender.index.factory:<14}{one}{thousand}{unseen}  built in {built:.1f} s; {note}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[12_101, 1_000_000])
    parser.add_argument("--factories", nargs="+", default=["Flat", "HNSW32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--singles", type=int, default=500, help="calls with one history")
    parser.add_argument("--batches", type=int, default=10, help="calls with a thousand")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_threads(options.threads)
    print(
        f"top {K}, width {DIM}, {options.threads} threads, {platform.machine()}; milliseconds of a call, p50 and p99"
    )
    print(f"  {'':<14}{'one history':>20}{'a thousand':>20}{'one, unseen':>20}")
    for items in options.items:
        measure(items, options.factories, options.singles, options.batches)


if __name__ == "__main__":
    main()
