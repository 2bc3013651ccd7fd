"""Writing the features of an encoder to disk: by every process, a shard at a time, going on where it was stopped."""

import io
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from contrastive.data.loader import Loader
from contrastive.retrieval.ids import Ids, as_ids
from contrastive.retrieval.shards import Embeddings, begin, finish, shard_path, write_shard

Folder = str | os.PathLike[str]


def embed(
    encoder: Callable[[Tensor], Tensor],
    inputs: Tensor | Dataset[Tensor],
    out: Folder,
    *,
    ids: Ids | None = None,
    metadata: dict[str, Sequence[Any]] | None = None,
    thumbnails: bool = False,
    fingerprint: str = "",
    data: str = "",
    batch_size: int = 256,
    shard_size: int = 16_384,
    num_workers: int = 0,
    device: torch.device | str | None = None,
) -> Embeddings | None:
    """Write the embeddings of all inputs to Parquet shards.

    Of several processes (``torchrun``, SLURM or Lightning; found by ``RANK`` and ``WORLD_SIZE``) each writes every
    W-th shard, without talking to the others; the last to finish writes the manifest. The same call after a kill goes
    on with the shards that are missing. At any time a batch of inputs and one shard of vectors are in memory.

    Args:
        encoder: maps a batch of inputs to ``(B, D)``; a module is used in evaluation mode.
        inputs: tensor ``(N, ...)``, or a data set that maps a tensor of row numbers to a batch of inputs.
        out: folder to write to, or to go on in.
        ids: ``(N,)`` integers or strings; 0 to N - 1 by default.
        metadata: further columns, N values each.
        thumbnails: add a column ``thumbnail`` with each input as PNG; inputs must be uint8 images ``(B, C, H, W)``.
        fingerprint: of the encoder: the index remembers it, and a run with another encoder does not go on here.
        data: fingerprint of the inputs, to the same end.
        batch_size: inputs that are encoded at a time.
        shard_size: vectors in a shard.
        num_workers: processes that read inputs ahead.
        device: where to compute; the device of the encoder's first parameter by default.

    Returns:
        The finished embeddings; None if other processes still write some.

    Raises:
        ValueError: sizes that do not fit each other, an output that is not ``(B, D)`` or not finite, or a folder that
            was begun with something else.
        FileExistsError: the folder holds something else.
    """
    folder, count = Path(out), len(inputs)  # type: ignore[arg-type]
    names = as_ids(np.arange(count) if ids is None else ids, "embed")
    columns = {name: list(values) for name, values in (metadata or {}).items()}
    for what, size in {"ids": len(names), **{name: len(values) for name, values in columns.items()}}.items():
        if size != count:
            raise ValueError(f"embed: {what} has {size} values for {count} inputs; give one for each.")
    if not count or min(batch_size, shard_size) < 1:
        raise ValueError(
            f"embed: {count} inputs, batch_size={batch_size}, shard_size={shard_size}; each must be above 0."
        )
    plan = {
        "count": count,
        "shard_size": shard_size,
        "fingerprint": fingerprint or None,
        "data": data or None,
        "normalised": False,
        "thumbnails": thumbnails,
    }
    begin(folder, plan)
    shards = math.ceil(count / shard_size)
    rank, world = _process()
    start, done = time.perf_counter(), 0
    for number in range(rank, shards, world):
        if shard_path(folder, number).is_file():
            continue
        rows = torch.arange(number * shard_size, min((number + 1) * shard_size, count))
        loader = Loader(inputs, rows=rows, batch_size=batch_size, num_workers=num_workers, sharded=False)
        vectors, pictures = _encode(encoder, loader, device, thumbnails)
        chosen: dict[str, Any] = {
            name: values[int(rows[0]) : int(rows[-1]) + 1] for name, values in columns.items()
        }
        if thumbnails:
            chosen["thumbnail"] = pictures
        table = pa.table(chosen) if chosen else None
        write_shard(folder, number, names[rows.numpy()], vectors, table)
        done += len(rows)
        rate = done / (time.perf_counter() - start)
        print(
            f"embedded {done:,} of {count:,} here ({rate:,.0f} a second), shard {number + 1} of {shards}",
            flush=True,
        )
    return Embeddings(folder) if finish(folder, plan, shards) else None


def embed_run(
    run: Folder,
    out: Folder,
    *,
    source: str | None = None,
    split: Literal["train", "test"] = "test",
    thumbnails: bool = True,
    shard_size: int = 16_384,
    batch_size: int = 256,
    device: str = "auto",
) -> Embeddings | None:
    """Write the embeddings of a data set by the encoder of a training run.

    Columns: ``label`` and ``class`` where the data have labels, and ``thumbnail``.

    Args:
        run: folder of the run.
        out: folder to write to, or to go on in.
        source: the images, as for :class:`contrastive.data.ImageData`, brought to the size that the run was trained on;
            by default the run's own data.
        split: which part of the data.
        thumbnails: keep each image as PNG, for pages that show neighbours.
        shard_size: vectors in a shard.
        batch_size: images that are encoded at a time.
        device: where to compute; ``auto`` takes a GPU if there is one.

    Returns:
        The finished embeddings; None if other processes still write some.

    Raises:
        FileNotFoundError: the run or the data are missing.
        ValueError: see :func:`embed`; or there is no such split.
    """
    from contrastive.data import ImageData
    from contrastive.evaluation.results import describe_encoder
    from contrastive.evaluation.run import load_run_encoder, prepare_data

    data: Any = prepare_data(run)
    if source is not None:
        shape = tuple(getattr(data, "image_shape", (3, 32, 32)))
        data = ImageData(source, size=shape[1:], channels=1 if shape[0] == 1 else 3)
        data.prepare_data()
    inputs = data.inputs.train if split == "train" else data.inputs.test
    if inputs is None:
        raise ValueError("embed: the data have no test set; use split='train'.")
    labels = data.known.train_labels if split == "train" else data.known.test_labels
    metadata: dict[str, Sequence[Any]] = {}
    if labels is not None:
        metadata = {"label": labels.tolist(), "class": [data.class_names[label] for label in labels.tolist()]}
    images = getattr(data, "image_shape", None) is not None
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = load_run_encoder(run).to(device)
    return embed(
        encoder,
        inputs,
        out,
        metadata=metadata,
        thumbnails=thumbnails and images,
        fingerprint=describe_encoder(run).get("fingerprint") or "",
        data=f"{data.fingerprint}-{split}",
        batch_size=batch_size,
        shard_size=shard_size,
        num_workers=data.num_workers,
        device=device,
    )


def _encode(
    encoder: Callable[[Tensor], Tensor], loader: Loader, device: torch.device | str | None, thumbnails: bool
) -> tuple[Any, list[bytes]]:
    """Features ``(n, D)`` of a loader's inputs, and these as PNG."""
    from contrastive.evaluation.features import extract_features

    module = encoder if isinstance(encoder, nn.Module) else _Called(encoder)
    pictures: list[bytes] = []
    batches = _watched(loader, pictures) if thumbnails else loader
    features = extract_features(module, batches, device, gather=False)
    return features.vectors.numpy(), pictures


def _watched(loader: Loader, pictures: list[bytes]) -> Any:
    for batch in loader:
        pictures.extend(png(image) for image in batch.inputs)
        yield batch


class _Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


def png(image: Tensor) -> bytes:
    """A uint8 image ``(C, H, W)`` of one or three channels as a PNG file.

    Raises:
        ValueError: something else was given.
    """
    from PIL import Image

    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(
            f"thumbnails need uint8 images (C, H, W) of 1 or 3 channels, got {tuple(image.shape)} {image.dtype}; pass "
            "thumbnails=False."
        )
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.cpu().numpy()).save(buffer, "png")
    return buffer.getvalue()


def _process() -> tuple[int, int]:
    """Rank of this process and their number: of ``torch.distributed``, else as launchers tell it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and world in os.environ:
            return int(os.environ[rank]), int(os.environ[world])
    return 0, 1
