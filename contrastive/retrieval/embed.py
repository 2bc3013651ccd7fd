"""Writing the features of an encoder to disk: by every process, a shard at a time, going on where it was stopped."""

import hashlib
import io
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from contrastive.checks import check_choice, shown
from contrastive.data.loader import Loader
from contrastive.errors import InvalidValue
from contrastive.retrieval.ids import Array, Ids, as_ids
from contrastive.retrieval.metadata import RESERVED, Columns, as_columns, check_names
from contrastive.retrieval.shards import OWN_COLUMNS, Embeddings, begin, finish, shard_path, write_shard

Folder = str | os.PathLike[str]
IdKind = Literal["row", "path"]


def embed(
    encoder: Callable[[Any], Tensor],
    inputs: Tensor | Dataset[Tensor] | Sequence[str],
    out: Folder,
    *,
    ids: Ids | None = None,
    metadata: Columns = None,
    thumbnails: bool = False,
    fingerprint: str = "",
    data: str = "",
    about: Mapping[str, Any] | None = None,
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
        inputs: tensor ``(N, ...)``, a data set that maps a tensor of row numbers to a batch of inputs, or texts.
        out: folder to write to, or to go on in.
        ids: ``(N,)`` integers or strings; 0 to N - 1 by default.
        metadata: further columns, N values each, or a table.
        thumbnails: add a column ``thumbnail`` with each input as PNG; inputs must be images ``(B, C, H, W)``, uint8 or
            floating point in [0, 1].
        fingerprint: of the encoder: the index remembers it, and a run with another encoder does not go on here.
        data: fingerprint of the inputs, to the same end.
        about: what else to record in the manifest, JSON-able, as the preprocessing; to the same end.
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
    columns = as_columns(metadata)
    names_given = metadata.column_names if isinstance(metadata, pa.Table) else list(columns)
    check_names(names_given, (*OWN_COLUMNS, *RESERVED, *(["thumbnail"] if thumbnails else [])), "embed")
    for what, size in {"ids": len(names), **{name: len(values) for name, values in columns.items()}}.items():
        if size != count:
            raise InvalidValue(f"embed: {what} has {size} values for {count} inputs; give one for each.")
    if not count or min(batch_size, shard_size) < 1:
        raise InvalidValue(
            f"embed: {count} inputs, batch_size={batch_size}, shard_size={shard_size}; each must be above 0."
        )
    if thumbnails and isinstance(inputs, Sequence):
        raise InvalidValue("embed: thumbnails are of images, the inputs are texts; pass thumbnails=False.")
    plan = {
        "count": count,
        "shard_size": shard_size,
        "fingerprint": fingerprint or None,
        "data": data or None,
        "normalised": False,
        "thumbnails": thumbnails,
        **json.loads(json.dumps(about or {})),
    }
    begin(folder, plan)
    shards = math.ceil(count / shard_size)
    rank, world = _process()
    start, done = time.perf_counter(), 0
    for number in range(rank, shards, world):
        if shard_path(folder, number).is_file():
            continue
        part = slice(number * shard_size, min((number + 1) * shard_size, count))
        chosen: dict[str, Any] = {name: values[part] for name, values in columns.items()}
        if isinstance(inputs, Sequence):
            vectors = _encode_texts(encoder, inputs[part], batch_size, device)
        else:
            rows = torch.arange(part.start, part.stop)
            loader = Loader(inputs, rows=rows, batch_size=batch_size, num_workers=num_workers, sharded=False)
            pictures: list[bytes] = []
            vectors = _encode(encoder, _watched(loader, pictures) if thumbnails else loader, device)
            if thumbnails:
                chosen["thumbnail"] = pictures
        table = pa.table(chosen) if chosen else None
        write_shard(folder, number, names[part], vectors, table)
        done += part.stop - part.start
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
    split: Literal["train", "test"] | None = None,
    ids: IdKind = "row",
    id_prefix: str = "",
    thumbnails: bool = True,
    shard_size: int = 16_384,
    batch_size: int = 256,
    device: str = "auto",
    trust: bool = False,
) -> Embeddings | None:
    """Write the embeddings of a data set by the encoder of a training run.

    Columns: ``label`` and ``class`` where the data have labels, ``path`` where the images have file names (relative to
    the source), and ``thumbnail``.

    Args:
        run: folder of the run.
        out: folder to write to, or to go on in.
        source: the images, as for :class:`contrastive.data.ImageData`, brought to the size that the run was trained on;
            by default the run's own data.
        split: which part of the data; by default the test set, or everything where there is none.
        ids: ``row`` for row numbers, ``path`` for the names of the images' files.
        id_prefix: ids are this and the row number or file name, as ``train-7``, so that several sets can be searched
            together.
        thumbnails: keep each image as PNG, for pages that show neighbours.
        shard_size: vectors in a shard.
        batch_size: images that are encoded at a time.
        device: where to compute; ``auto`` takes a GPU if there is one.
        trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
            author you trust.

    Returns:
        The finished embeddings; None if other processes still write some.

    Raises:
        FileNotFoundError: the run or the data are missing.
        ValueError: see :func:`embed`; or there is no such split.
    """
    from contrastive.data import ImageData
    from contrastive.evaluation.results import describe_encoder
    from contrastive.evaluation.run import load_run_encoder, prepare_data

    check_choice("embed", "ids", ids, ("row", "path"))
    data: Any = prepare_data(run, trust=trust)
    if source is not None:
        shape = tuple(getattr(data, "image_shape", (3, 32, 32)))
        reading = getattr(data, "reading", {})
        data = ImageData(source, size=shape[1:], channels=1 if shape[0] == 1 else 3, **reading)
        data.prepare_data()
    described = describe_encoder(run)
    preprocessing = {"shape": getattr(data, "image_shape", None)}
    preprocessing |= {
        name: value for name, value in getattr(data, "reading", {}).items() if value is not None
    }
    preprocessing |= {name: (described.get("config") or {}).get(name) for name in ("mean", "std")}
    return _embed_data(
        load_run_encoder(run, trust=trust),
        data,
        out,
        split,
        ids,
        id_prefix,
        thumbnails and getattr(data, "image_shape", None) is not None,
        fingerprint=described.get("fingerprint") or "",
        about={"encoder": described.get("class"), "preprocessing": preprocessing},
        batch_size=batch_size,
        shard_size=shard_size,
        device=_device(device),
    )


def embed_named(
    encoder: str,
    source: str,
    out: Folder,
    *,
    pretrained: bool = True,
    image_size: int | None = None,
    split: Literal["train", "test"] | None = None,
    column: str = "text",
    id_column: str | None = None,
    ids: IdKind = "row",
    id_prefix: str = "",
    thumbnails: bool = True,
    shard_size: int = 16_384,
    batch_size: int = 256,
    device: str = "auto",
) -> Embeddings | None:
    """Write the embeddings of images or texts by somebody else's encoder.

    Name, preprocessing and a fingerprint of the weights stand in the manifest.

    Args:
        encoder: ``timm/NAME``, ``torchvision/NAME``, or ``sentence-transformers/NAME`` or ``.../FOLDER``.
        source: images, as for :class:`contrastive.data.ImageData`; or for an encoder of text a file of texts, as for
            :func:`contrastive.retrieval.texts.read_texts`.
        out: folder to write to, or to go on in.
        pretrained: take the published weights; otherwise random ones, as a baseline.
        image_size: side of the images in pixels; what the model was published for by default.
        split: which part of the images; by default the test set, or everything where there is none.
        column: of the texts.
        id_column: of their ids; row numbers are ids without it.
        ids: of images: ``row`` for row numbers, ``path`` for the names of their files.
        id_prefix: what to set before row numbers or file names, as for :func:`embed_run`.
        thumbnails: keep each image as PNG, for pages that show neighbours.
        shard_size: vectors in a shard.
        batch_size: inputs that are encoded at a time.
        device: where to compute; ``auto`` takes a GPU if there is one.

    Returns:
        The finished embeddings; None if other processes still write some.

    Raises:
        ImportError: texts, and the extra ``text`` is not installed.
        OSError: the data are missing, or the published weights cannot be fetched.
        ValueError: see :func:`embed`; or there is no such model, split or column.
    """
    from contrastive.data import ImageData
    from contrastive.encoders.named import NamedEncoder
    from contrastive.retrieval.texts import read_texts

    check_choice("embed", "ids", ids, ("row", "path"))
    named = NamedEncoder(encoder, pretrained=pretrained, image_size=image_size)
    options: dict[str, Any] = {
        "fingerprint": named.fingerprint,
        "about": {"encoder": named.name, "preprocessing": named.preprocessing},
        "batch_size": batch_size,
        "shard_size": shard_size,
        "device": _device(device),
    }
    if named.takes_text:
        if ids == "path":
            raise InvalidValue(
                "embed: ids='path' is for images in files; name the column of a text's id: id_column."
            )
        if id_column is not None and id_prefix:
            raise InvalidValue(
                f"embed: ids are those of id_column={id_column!r}, or id_prefix={id_prefix!r} and row numbers; give "
                "one of the two."
            )
        texts = read_texts(source, column, id_column)
        given = _numbered(len(texts), id_prefix) if texts.ids is None else texts.ids
        data = f"{texts.fingerprint}{id_prefix}"
        return embed(named, texts, out, ids=given, metadata=texts.columns, data=data, **options)
    images = ImageData(source, size=named.size)
    images.prepare_data()
    return _embed_data(named, images, out, split, ids, id_prefix, thumbnails, **options)


def _embed_data(
    encoder: nn.Module,
    data: Any,
    out: Folder,
    split: Literal["train", "test"] | None,
    ids: IdKind,
    id_prefix: str,
    thumbnails: bool,
    about: Mapping[str, Any],
    **options: Any,
) -> Embeddings | None:
    """Embed a split of a data module, with its labels and the names of its files."""
    split = split or ("train" if data.inputs.test is None else "test")
    inputs = data.inputs.train if split == "train" else data.inputs.test
    if inputs is None:
        raise InvalidValue("embed: the data have no test set; use split='train'.")
    labels = data.known.train_labels if split == "train" else data.known.test_labels
    metadata: dict[str, Sequence[Any]] = {}
    if labels is not None:
        metadata = {"label": labels.tolist(), "class": [data.class_names[label] for label in labels.tolist()]}
    names = data.file_names(split) if hasattr(data, "file_names") else None
    if names is not None:
        metadata["path"] = pa.array(names, pa.string())
        # Files can be renamed and keep their content, which is all that the fingerprint of the data may cover.
        about = {**about, "paths": hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()[:16]}
    return embed(
        encoder.to(options["device"]),
        inputs,
        out,
        ids=_numbered(len(inputs), id_prefix) if ids == "row" else _file_ids(names, id_prefix),
        metadata=metadata,
        about={**about, **({} if ids == "row" else {"ids": ids})},
        thumbnails=thumbnails,
        data=f"{data.fingerprint}-{split}{id_prefix}",
        num_workers=data.num_workers,
        **options,
    )


def _numbered(count: int, prefix: str) -> Array:
    """Row numbers as ids, with a prefix as texts."""
    numbers = np.arange(count)
    return numbers if not prefix else np.array([f"{prefix}{number}" for number in numbers], object)


def _file_ids(names: Sequence[str | None] | None, prefix: str) -> Array:
    """File names as ids, with a prefix."""
    advice = "ids='row' numbers the images"
    if names is None:
        raise InvalidValue(f"embed: ids='path', but the inputs are in no files that have a name; {advice}.")
    missing = [row for row, name in enumerate(names) if not name]
    if missing:
        raise InvalidValue(
            f"embed: ids='path', but {len(missing)} of {len(names)} images have no file name, the first in row "
            f"{missing[0]}; {advice}."
        )
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise InvalidValue(
            f"embed: ids='path', but {shown(name)} stands {times} times among the file names; an id means one item. "
            f"Leave the image out where it is repeated, or {advice}."
        )
    return np.array([f"{prefix}{name}" for name in names], object)


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:  # no such kind of device, or none of this kind here
        reason = str(problem).splitlines()[0]
        raise InvalidValue(
            f"device is {device!r}, which cannot be used ({reason}); give auto or cpu."
        ) from None
    return device


def _encode(
    encoder: Callable[[Any], Tensor], batches: Iterable[Any], device: torch.device | str | None
) -> Array:
    """Features ``(n, D)`` of batches."""
    from contrastive.evaluation.features import extract_features

    module = encoder if isinstance(encoder, nn.Module) else _Called(encoder)
    return extract_features(module, batches, device, gather=False).vectors.numpy()


def _encode_texts(
    encoder: Callable[[Any], Tensor], texts: Sequence[str], batch_size: int, device: torch.device | str | None
) -> Array:
    """Features ``(n, D)`` of texts; long ones are encoded together, so that little of a batch is padding."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    starts = range(0, len(texts), batch_size)
    batches = ((_Texts(texts[i] for i in order[start : start + batch_size]), None) for start in starts)
    return _encode(encoder, batches, device)[np.argsort(order)]


class _Texts(list[str]):
    """A batch of texts, which are on no device."""

    def to(self, device: torch.device, non_blocking: bool) -> "_Texts":
        return self


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
    """An image ``(C, H, W)`` of one or three channels, uint8 or floating point in [0, 1], as a PNG file.

    Raises:
        ValueError: something else was given.
    """
    from PIL import Image

    if image.is_floating_point() and image.numel() and image.min() >= 0 and image.max() <= 1:
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InvalidValue(
            f"thumbnails need uint8 images, or floats in [0, 1], (C, H, W) of 1 or 3 channels, got "
            f"{tuple(image.shape)} {image.dtype}; pass thumbnails=False."
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
