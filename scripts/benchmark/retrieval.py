"""The index beside bare FAISS, and what "auto" makes of a million vectors: time, memory, recall, queries a second.

    python scripts/benchmark/retrieval.py --count 1000000 --threads 2
    python scripts/benchmark/retrieval.py --count 10000000 --parts build --threads 2
    python scripts/benchmark/retrieval.py --parts knn  # needs the extra benchmark

Vectors of width 128 in a few thousand clusters; queries are drawn from the same clusters. "overhead" compares
``Index.search`` with the FAISS index inside it, in turns within one process; "build" writes shards and builds the index
of them in a process of its own, whose peak memory counts. "knn" compares the kNN evaluation with lightly's on pixels of
digits.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import peak_bytes, resident_bytes
from sklearn.datasets import load_digits

from contrastive.evaluation import Features, features, knn_classify
from contrastive.retrieval import Index, set_threads
from contrastive.retrieval.engine import exact_search, faiss
from contrastive.retrieval.shards import Embeddings, begin, finish, write_shard

DIM, SHARD, K = 128, 100_000, 10


def draw(count: int, seed: int) -> np.ndarray:
    """Clustered unit vectors ``(count, 128)``."""
    centres = np.random.default_rng(0).normal(size=(4000, DIM)).astype(np.float32)
    random = np.random.default_rng(seed)
    rows = centres[random.integers(len(centres), size=count)]
    rows = rows + 0.7 * random.standard_normal((count, DIM), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(folder: Path, count: int) -> None:
    """Shards of so many vectors, made one at a time."""
    shards = -(-count // SHARD)
    plan = {"count": count, "shard_size": SHARD, "fingerprint": None}
    begin(folder, plan)
    for number in range(shards):
        ids = np.arange(number * SHARD, min((number + 1) * SHARD, count))
        write_shard(folder, number, ids, draw(len(ids), number + 1), None)
    finish(folder, plan, shards)


def build(folder: Path, threads: int, memory_budget: int | None) -> dict[str, Any]:
    """Build, tune and save the index of the shards in ``folder``, in this process."""
    set_threads(threads)
    faiss()
    before = resident_bytes()
    start = time.perf_counter()
    index = Index.from_embeddings(folder, memory_budget=memory_budget)
    seconds = time.perf_counter() - start
    peak = peak_bytes() - before
    tuned = {} if index.exact else index.tune(0.95, K, queries=draw(2000, 99_999))
    index.save(folder / "index")
    files = folder / "index" / json.loads((folder / "index" / "manifest.json").read_text())["folder"]
    size = {path.name: path.stat().st_size for path in files.iterdir()}
    return {"factory": index.factory, "seconds": seconds, "peak_bytes": peak, "tuned": tuned, "files": size}


def speed_up(folder: Path, threads: int) -> dict[str, float]:
    """Queries a second of the saved index over those of exact search, in turns, and recall on new queries."""
    set_threads(threads)
    index = Index.load(folder / "index", check=False)
    source, queries = Embeddings(folder), draw(2000, 77_777)
    store = index._neighbours.store
    rows = np.concatenate([part for part, _, _ in source.batches()]) if store is None else store.rows
    ratios, seconds = [], []
    for _ in range(3):
        start = time.perf_counter()
        truth = exact_search(rows, queries, K, euclidean=False)[1]
        middle = time.perf_counter()
        found = index.search(queries, K)[1]
        seconds.append(time.perf_counter() - middle)
        ratios.append((middle - start) / seconds[-1])
    hits = [len(np.intersect1d(a, b)) for a, b in zip(truth, found, strict=True)]
    return {
        "recall": float(np.mean(hits)) / K,
        "queries_per_second": len(queries) / statistics.median(seconds),
        "speed_up": statistics.median(ratios),
    }


def overhead(count: int) -> list[dict[str, Any]]:
    """Time of our search beside that of the FAISS index inside, in turns, for batches and for single queries."""
    table, rows = [], draw(count, 1)
    library = faiss()
    for factory in ("Flat", "HNSW32", "IVF1024,Flat"):
        index = Index.build(rows, factory=factory, keep_vectors=False)
        bare = library.IndexFlatIP(DIM) if factory == "Flat" else index._neighbours.approximate.index
        if factory == "Flat":
            bare.add(rows)
        for batch, repeats in ((1000, 21), (1, 1000)):
            queries = draw(batch * repeats, 2).reshape(repeats, batch, DIM)
            seconds: tuple[list[float], list[float]] = ([], [])
            for turn, some in enumerate(queries):
                for who in (0, 1) if turn % 2 else (1, 0):  # who comes second finds the rows in the cache
                    start = time.perf_counter()
                    (bare, index)[who].search(some, K)
                    seconds[who].append(time.perf_counter() - start)
            theirs, ours = map(statistics.median, seconds)
            table.append({"factory": factory, "batch": batch, "ours": ours, "faiss": theirs})
    return table


def knn() -> list[dict[str, Any]]:
    """Accuracy of our kNN evaluation in blocks of several sizes, and of lightly's, on the same features."""
    from lightly.utils.benchmarking.knn import knn_predict

    digits = load_digits()
    vectors, labels = torch.tensor(digits.data).float(), torch.tensor(digits.target)
    train, test = Features(vectors[:1400], labels[:1400]), Features(vectors[1400:], labels[1400:])
    bank, queries = (torch.nn.functional.normalize(part.vectors, dim=1) for part in (train, test))
    table = []
    for k, temperature in ((1, 0.07), (20, 0.07), (200, 0.1)):
        theirs = knn_predict(queries, bank.T, labels[:1400], 10, knn_k=k, knn_t=temperature)[:, 0]
        row: dict[str, Any] = {"k": k, "temperature": temperature}
        row["lightly"] = float((theirs == labels[1400:]).double().mean())
        before = features.BLOCK_ELEMENTS
        for rows in (1, 19, 100, len(test)):
            features.BLOCK_ELEMENTS = rows * len(train)
            ours = knn_classify(train, test, k=k, temperature=temperature)
            row[f"ours in blocks of {rows}"] = ours.accuracy
        features.BLOCK_ELEMENTS = before
        row["predictions that differ"] = int((ours.predictions != theirs).sum())
        table.append(row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument(
        "--parts", nargs="+", choices=["overhead", "build", "knn"], default=["overhead", "build"]
    )
    parser.add_argument("--memory-budget", type=float, help="GB that 'auto' may use; half of what is free")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where shards are kept; a temporary folder by default")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    budget = None if options.memory_budget is None else int(options.memory_budget * 1e9)
    if options.one:
        print(json.dumps(build(options.one, options.threads, budget)))
        return
    set_threads(options.threads)
    if "knn" in options.parts:
        for row in knn():
            print(", ".join(f"{name} {value:.6g}" for name, value in row.items()))
    if options.parts == ["knn"]:
        return
    print(f"{options.count:,} vectors of width {DIM}, {options.threads} threads, {platform.machine()}")
    if "overhead" in options.parts:
        print(f"{'factory':16}{'queries':>8}{'ours ms':>12}{'FAISS ms':>12}{'ratio':>8}{'more, us':>10}")
        for row in overhead(min(options.count, 200_000)):
            print(
                f"{row['factory']:16}{row['batch']:>8}{1e3 * row['ours']:>12.3f}{1e3 * row['faiss']:>12.3f}"
                f"{row['ours'] / row['faiss']:>8.3f}{1e6 * (row['ours'] - row['faiss']):>10.0f}",
                flush=True,
            )
    if "build" in options.parts:
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.folder or Path(temporary) / "embeddings"
            if not (folder / "manifest.json").is_file():
                write(folder, options.count)
            command = [sys.executable, __file__, "--one", str(folder), "--threads", str(options.threads)]
            command += [] if budget is None else ["--memory-budget", str(options.memory_budget)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.strip().splitlines()[-1])
            print(
                f"{len(Embeddings(folder)):,}: {found['factory']} in {found['seconds']:.0f} s, with "
                f"{found['peak_bytes'] / 1e6:,.0f} MB of memory at most; on disk "
                + ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in found["files"].items())
            )
            print(f"tuned: {json.dumps(found['tuned'])}")
            print(f"on other queries: {json.dumps(speed_up(folder, options.threads))}")


if __name__ == "__main__":
    main()
