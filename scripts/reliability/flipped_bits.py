"""One flipped bit anywhere in what was saved: refused in a sentence, without effect, or, what must not be, silent.

    python scripts/reliability/flipped_bits.py --flips 100

A bit of all files of a folder is chosen evenly, flipped, the folder read as users read it, and the bit put back.
"""

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contrastive import load_encoder, save_encoder
from contrastive.encoders import ConvEncoder
from contrastive.errors import InputError
from contrastive.reading import read_tensors
from contrastive.retrieval import Index, embed
from contrastive.retrieval.run import search_index
from contrastive.retrieval.shards import Embeddings
from contrastive.training.checkpoints import WholeFiles

COUNT, DIM = 1_200, 16


def flips(folder: Path, count: int, seed: int) -> Iterator[Path]:
    """Flip a bit of one of the files in a folder, ``count`` times, and put it back; gives the file."""
    generator = np.random.default_rng(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = np.array([path.stat().st_size for path in files])
    for _ in range(count):
        # Half of them anywhere, half in a file chosen first, so that small ones are met too.
        even = sizes / sizes.sum() / 2 + (sizes > 0) / (sizes > 0).sum() / 2
        path = files[generator.choice(len(files), p=even)]
        before = path.read_bytes()
        content = bytearray(before)
        content[generator.integers(len(content))] ^= 1 << generator.integers(8)
        replace(path, bytes(content))
        yield path
        replace(path, before)


def replace(path: Path, content: bytes) -> None:
    """Give a file other content, without touching what is mapped or has a second name."""
    temporary = path.with_name(path.name + ".other")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def try_flips(folder: Path, read: Callable[[Path], Any], count: int, seed: int = 0) -> dict[str, Any]:
    """Read a folder with each of some flipped bits.

    Args:
        folder: what was saved.
        read: reads it and gives all that is in it, as something that can be compared as text.
        count: number of flips.
        seed: of their places.

    Returns:
        ``flips``, ``refused``, ``same``, ``silent`` and ``foreign`` (an exception that is no sentence of ours), and
        under ``where`` the files of the last two.
    """
    true = repr(read(folder))
    counted: Counter[str] = Counter(flips=count, refused=0, same=0, silent=0, foreign=0)
    where: Counter[str] = Counter()
    for path in flips(folder, count, seed):
        try:
            outcome = "same" if repr(read(folder)) == true else "silent"
        except InputError:
            outcome = "refused"
        except Exception as error:
            outcome = "foreign"
            where[f"{path.name}: {type(error).__name__}: {str(error)[:80]}"] += 1
        counted[outcome] += 1
        if outcome == "silent":
            where[f"{path.name}: silent"] += 1
    return {**counted, "where": dict(where)}


def content(index: Index) -> Any:
    """All that an index of vectors and columns holds and finds."""
    found = index.search(index.reconstruct(index.ids[::50]), 5)
    return [
        index.reconstruct(index.ids).tobytes(),
        index.ids.tolist(),
        None if index.metadata is None else index.metadata.to_pydict(),
        index.manifest,
        [part.tolist() for part in found],
    ]


def vectors() -> Any:
    """``(COUNT, DIM)``, always the same."""
    return np.random.default_rng(0).normal(size=(COUNT, DIM)).astype(np.float32)


def make_index(folder: Path, factory: str) -> Path:
    """A saved index."""
    names = [f"n{i % 17}" for i in range(COUNT)]
    options = {"metadata": {"name": names}, "fingerprint": "f" * 64, "keep_vectors": True}
    return Index.build(vectors(), np.arange(COUNT), factory=factory, **options).save(folder)


def make_embeddings(folder: Path) -> Path:
    """Finished embeddings of two shards."""
    columns = {"label": np.arange(COUNT) % 7}
    embed(lambda x: x, torch.tensor(vectors()), folder, metadata=columns, shard_size=COUNT // 2)
    return folder


def read_embeddings(folder: Path) -> Any:
    """All that they hold; also of a run that would go on with them."""
    parts = [
        (vectors.tobytes(), ids.tolist(), table.to_pydict())
        for vectors, ids, table in Embeddings(folder).batches()
    ]
    embed(
        lambda x: x,
        torch.tensor(vectors()),
        folder,
        metadata={"label": np.arange(COUNT) % 7},
        shard_size=COUNT // 2,
    )
    return parts, Embeddings(folder).manifest["fingerprint"]


def make_recommender(folder: Path, factory: str) -> Path:
    """A saved recommender with histories."""
    from recsys import Recommender, SequenceData
    from recsys.encoders import GRU4Rec

    torch.manual_seed(0)
    rows = np.arange(900)
    data = SequenceData.from_dataframe({"user": rows // 9, "item": rows * 7 % 400, "time": rows}, time="time")
    encoder = GRU4Rec(num_items=data.num_items, dim=DIM, max_length=8)
    return Recommender.from_model(encoder, data, histories=True, factory=factory).save(folder)


def read_recommender(folder: Path) -> Any:
    """Recommendations for each known user, and all else that it holds."""
    from recsys import Recommender

    found = Recommender.load(folder)
    users = found.users[:30]
    weights = {name: value.numpy().tobytes() for name, value in found.encoder.state_dict().items()}
    described = found.max_length, found.data_fingerprint, users, [found.history(user) for user in users]
    return [found.recommend(found.history(user)) for user in users], weights, content(found.index), described


def make_encoder(folder: Path) -> Path:
    """A saved encoder."""
    torch.manual_seed(0)
    return save_encoder(ConvEncoder(in_channels=1, widths=(8, 8, 16), blocks=(0, 1, 1)), folder)


def read_encoder(folder: Path) -> Any:
    """Features of a batch."""
    with torch.inference_mode():
        return load_encoder(folder)(torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)).tolist()


def make_checkpoint(folder: Path) -> Path:
    """A checkpoint as training writes it."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.BatchNorm1d(8))
    content = {
        "state_dict": module.state_dict(),
        "epoch": 3,
        "global_step": 12,
        "hyper_parameters": {"dim": 8},
    }
    WholeFiles().save_checkpoint(content, folder / "checkpoint" / "last.ckpt")
    return folder / "checkpoint"


def read_checkpoint(folder: Path) -> Any:
    """All that is in it, tensors as numbers."""
    found = read_tensors(folder / "last.ckpt")
    weights = {name: value.tolist() for name, value in found.pop("state_dict").items()}
    return weights, found


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    **{
        f"index {factory}, {how}": (lambda folder, factory=factory: make_index(folder, factory), read)
        for factory in ("Flat", "HNSW16", "IVF16,Flat")
        for how, read in (
            ("loaded", lambda folder: content(Index.load(folder))),
            ("mapped, check=False", lambda folder: content(Index.load(folder, mmap=True, check=False))),
            ("contrastive search", lambda folder: search_index(folder, id="7", k=50)),
        )
    },
    "embeddings": (make_embeddings, read_embeddings),
    "embeddings, contrastive index": (
        make_embeddings,
        lambda folder: content(Index.from_embeddings(folder)),
    ),
    **{
        f"recommender {factory}": (
            lambda folder, factory=factory: make_recommender(folder, factory),
            read_recommender,
        )
        for factory in ("Flat", "HNSW16")
    },
    "encoder": (make_encoder, read_encoder),
    "checkpoint": (make_checkpoint, read_checkpoint),
}
"""What is tried: how it is made, and how it is read."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=100, help="for each kind")
    parser.add_argument("--only", default="", help="kinds whose name begins so")
    options = parser.parse_args()
    failed = 0
    for kind, (make, read) in KINDS.items():
        if kind.startswith(options.only):
            with tempfile.TemporaryDirectory() as name:
                found = try_flips(make(Path(name) / "saved"), read, options.flips)
            failed += found["silent"] + found["foreign"]
            print(json.dumps({"kind": kind, **found}), flush=True)
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
