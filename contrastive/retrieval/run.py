"""From the command line: an index of embeddings, and what is close to an item in it."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from contrastive.checks import check_number, check_whole
from contrastive.errors import FileMissing, InvalidValue
from contrastive.retrieval.embed import IdKind, embed_named, embed_run
from contrastive.retrieval.folder import files_listed, read_manifest
from contrastive.retrieval.ids import Array
from contrastive.retrieval.index import KIND, VERSION, Index
from contrastive.retrieval.shards import Embeddings
from contrastive.retrieval.together import IndexSet
from contrastive.retrieval.vectors import Metric

Folder = str | os.PathLike[str]

_CHECKED = 1 << 30  # bytes of an index that are compared with their checksums before a search, in seconds


def write_embeddings(
    out: Folder,
    *,
    run: Folder | None = None,
    encoder: str | None = None,
    pretrained: bool = True,
    image_size: int | None = None,
    source: str | None = None,
    split: Literal["train", "test"] | None = None,
    column: str = "text",
    id_column: str | None = None,
    ids: IdKind = "row",
    id_prefix: str = "",
    thumbnails: bool = True,
    shard_size: int = 16_384,
    batch_size: int = 256,
    device: str = "auto",
    trust: bool = False,
) -> Embeddings | None:
    """Write the embeddings of images or texts to disk, by the encoder of a run or by somebody else's.

    Args:
        out: folder to write to, or to go on in.
        run: folder of a training run, whose encoder is taken.
        encoder: instead, ``timm/NAME``, ``torchvision/NAME``, or ``sentence-transformers/NAME`` or ``.../FOLDER``.
        pretrained: with ``encoder``: take the published weights; otherwise random ones.
        image_size: with ``encoder``: side of the images in pixels; what the model was published for by default.
        source: folder, list, Parquet file or name of images, or for an encoder of text a ``.txt`` with a text a line,
            or a ``.parquet``, ``.csv`` or ``.tsv`` with a column of texts; by default the data of the run.
        split: which part of the images; by default the test set, or everything where there is none.
        column: of the texts.
        id_column: of their ids; row numbers are ids without it.
        ids: of images: ``row`` for row numbers, ``path`` for the names of their files, relative to the source.
        id_prefix: ids are this and the row number or file name, as ``train-7``, so that several sets can be searched
            together.
        thumbnails: keep each image as PNG, for pages that show neighbours.
        shard_size: vectors in a shard.
        batch_size: inputs that are encoded at a time.
        device: where to compute; ``auto`` takes a GPU if there is one.
        trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
            author you trust.

    Returns:
        The finished embeddings; None if other processes still write some.

    Raises:
        ValueError: neither or both of run and encoder are given, an encoder without a source, or see
            :func:`contrastive.retrieval.embed_run` and :func:`contrastive.retrieval.embed_named`.
    """
    if not os.fspath(out):
        raise InvalidValue("embed: out is empty; give the folder to write to.")
    if (run is None) == (encoder is None):
        raise InvalidValue(
            "embed: give either run (the folder of a training run) or encoder (as timm/resnet18), to say what encodes."
        )
    common: dict[str, Any] = {"shard_size": shard_size, "batch_size": batch_size, "device": device}
    common |= {"split": split, "ids": ids, "id_prefix": id_prefix, "thumbnails": thumbnails}
    if run is not None:
        if not pretrained or image_size is not None or id_column is not None or column != "text":
            raise InvalidValue(
                "embed: pretrained, image_size, column and id_column are options of encoder; a run has weights and a "
                "size of images of its own."
            )
        return embed_run(run, out, source=source, trust=trust, **common)
    assert encoder is not None
    if source is None:
        raise InvalidValue(
            f"embed: encoder={encoder!r} has no data of its own; give source, as a folder of images."
        )
    return embed_named(
        encoder,
        source,
        out,
        pretrained=pretrained,
        image_size=image_size,
        column=column,
        id_column=id_column,
        **common,
    )


def build_index(
    embeddings: Folder,
    out: Folder,
    *,
    metric: Metric = "cosine",
    factory: str = "auto",
    recall: float = 0.95,
    memory_budget_gb: float | None = None,
    seed: int = 0,
) -> Index:
    """Build an index of embeddings on disk, tune it and save it.

    Args:
        embeddings: folder of embeddings, as ``contrastive embed`` writes them.
        out: folder of the index; one that is there is replaced.
        metric: ``cosine``, ``dot`` or ``euclidean``.
        factory: ``auto`` chooses by size and memory; ``Flat`` is exact; or a factory string of FAISS.
        recall: share of the ten true neighbours that an approximate index is to find.
        memory_budget_gb: memory that ``auto`` may use, in GB; half of what is free by default.
        seed: of the samples for training and tuning.

    Returns:
        The index.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: see :meth:`Index.from_embeddings` and :meth:`Index.save`.
    """
    check_number("index", "recall", recall, "(0, 1]")
    check_whole("index", "seed", seed, 0)
    if memory_budget_gb is not None:
        check_number("index", "memory_budget_gb", memory_budget_gb, "(0, inf)")
    start = time.perf_counter()
    budget = None if memory_budget_gb is None else int(memory_budget_gb * 1e9)
    index = Index.from_embeddings(
        embeddings, metric=metric, factory=factory, memory_budget=budget, recall=recall, seed=seed
    )
    built = time.perf_counter() - start
    tuned = "exact" if index.exact else "not tuned, as the vectors are not kept"
    if found := index.tuned:
        tuned = (
            f"recall@{found['k']} {found['recall']:.3f} of queries {found['queries']}, "
            f"{found['queries_per_second']:,.0f} a second"
        )
    index.save(out)
    print(
        f"index of {len(index):,} vectors of width {index.dim} in {out}: {index.factory}, {metric}, {tuned}; "
        f"built in {built:.1f} s"
    )
    return index


def search_index(
    index: list[str] | Folder,
    *,
    id: str | None = None,
    image: str | None = None,
    text: str | None = None,
    run: Folder | None = None,
    encoder: str | None = None,
    pretrained: bool = True,
    image_size: int | None = None,
    k: int = 10,
    filter: dict[str, Any] | None = None,
    trust: bool = False,
) -> list[dict[str, Any]]:
    """Find what is closest to an item of an index, to an image or to a text.

    Args:
        index: folder of a saved index; several are searched together, without merging them.
        id: of an item in it, which is left out of its own neighbours.
        image: file to search for instead; needs ``run`` or ``encoder``.
        text: to search for instead; needs ``encoder``.
        run: folder of the run whose encoder made the vectors.
        encoder: name of somebody else's encoder that made them, as it was given to ``contrastive embed``.
        pretrained: as it was given there.
        image_size: as it was given there.
        k: number of neighbours.
        filter: column -> value, list of values or range; only items that meet all of them. Written as JSON, as
            '{"class": "cat", "year": {"from": 1990, "to": 1999}}'; from and to belong to the range, one may be missing.
        trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
            author you trust.

    Returns:
        For each neighbour its ``score``, ``id`` and columns (but pictures), closest first.

    Raises:
        ValueError: not one of id, image and text is given, an image or a text without its encoder, another encoder than
            the index was made with, or there is no such id; indexes that cannot be searched together.
    """
    k = check_whole("search", "k", k)
    if [id, image, text].count(None) != 2:
        raise InvalidValue("search: give one of id, image and text, to say what to search for.")
    wanted = id is None
    if wanted and ((run is None) == (encoder is None) or (text is not None and encoder is None)):
        raise InvalidValue(
            "search: an image needs either run (the folder of a training run) or encoder (as timm/resnet18), a text "
            "needs encoder (as sentence-transformers/all-MiniLM-L6-v2): the one that the index was made with."
        )
    own: int | str | None = None
    fingerprint, queries = None, np.empty((0, 0), np.float32)
    if encoder is not None and wanted:
        fingerprint, queries = _encode_by_name(encoder, pretrained, image_size, image, text)
    elif run is not None and image is not None:
        fingerprint, queries = _encode_by_run(run, image, trust)
    folders = [index] if isinstance(index, str | os.PathLike) else list(index)
    opened: Index | IndexSet
    check = _worth_checking(folders)
    if len(folders) == 1:
        opened = Index.load(folders[0], mmap=True, check=check, fingerprint=fingerprint)
    else:
        opened = IndexSet(folders, check=check, fingerprint=fingerprint)
    if not wanted:
        own = str(id) if opened.manifest["id"] == "string" else _integer(str(id))
        if own not in opened:
            raise InvalidValue(
                f"search: there is no item {own!r} among the {len(opened):,} of {', '.join(map(str, folders))}."
            )
        queries = opened.reconstruct(np.array([own]))
    scores, ids = opened.search(queries, max(min(k, len(opened)), 1) + (own is not None), filter)
    kept = [
        (score, item)
        for score, item in zip(scores[0].tolist(), ids[0].tolist(), strict=True)
        if item != own and np.isfinite(score)
    ][:k]
    table = opened.columns([item for _, item in kept])
    names = [] if table is None else [name for name in table.column_names if name != "thumbnail"]
    rows = [{}] * len(kept) if table is None else table.select(names).to_pylist()
    return [{"score": score, "id": item, **row} for (score, item), row in zip(kept, rows, strict=True)]


def _worth_checking(folders: Sequence[Folder]) -> bool:
    """Whether all files of these indexes are small enough to be compared with their checksums first; says if not."""
    size = 0
    for folder in folders:
        files = read_manifest(Path(folder), KIND, VERSION).get("files", {})
        size += (
            sum(file["bytes"] for file in files.values()) if files_listed(files) else 0
        )  # or loading refuses it
    if size > _CHECKED:
        print(
            f"search: {size / 1e9:.1f} GB of vectors are not compared with their checksums, which would read them all; "
            "Index.load(folder) does",
            file=sys.stderr,
        )
    return size <= _CHECKED


def format_neighbours(found: list[Mapping[str, Any]]) -> str:
    """Neighbours as a table of text."""
    if not found:
        return "nothing found"
    names = list(found[0])
    cells = [[f"{row[n]:.4f}" if isinstance(row[n], float) else str(row[n]) for n in names] for row in found]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    lines = [names, *cells]
    return "\n".join(
        "  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidValue(f"search: the ids of this index are integers, got {text!r}.") from None


def _encode_by_run(run: Folder, image: str, trust: bool) -> tuple[str | None, Array]:
    """Fingerprint of a run's encoder, and the vector ``(1, D)`` of an image brought to the size of the run's data."""
    from contrastive.evaluation.results import describe_encoder
    from contrastive.evaluation.run import load_run_encoder, prepare_data

    data = prepare_data(run, trust=trust)
    vector = _encode(
        load_run_encoder(run, trust=trust), image, data.image_shape, **getattr(data, "decoding", {})
    )
    return describe_encoder(run).get("fingerprint"), vector


def _encode_by_name(
    encoder: str, pretrained: bool, image_size: int | None, image: str | None, text: str | None
) -> tuple[str | None, Array]:
    """Fingerprint of somebody else's encoder, and the vector ``(1, D)`` of an image or of a text."""
    from contrastive.encoders.named import NamedEncoder

    named = NamedEncoder(encoder, pretrained=pretrained, image_size=image_size)
    if named.takes_text != (text is not None):
        raise InvalidValue(
            f"search: encoder={encoder!r} takes {'a text' if named.takes_text else 'an image'}; give one."
        )
    if image is not None:
        return named.fingerprint, _encode(named, image, (3, named.size, named.size))
    with torch.inference_mode():
        vectors: Array = named([text]).float().numpy()
    return named.fingerprint, vectors


def _encode(encoder: nn.Module, image: str, shape: tuple[int, int, int], **decoding: Any) -> Array:
    """The vector ``(1, D)`` of an image file, decoded like the data and brought to ``(C, H, W)``."""
    from contrastive.data.images import decode, scale
    from contrastive.data.pixels import is_deep
    from contrastive.evaluation.features import extract_features

    path = Path(image)
    if not path.is_file():
        raise FileMissing(f"search: there is no image {image}; give the path of a file.")
    channels, *size = shape
    content = path.read_bytes()
    if not decoding and is_deep(content):
        decoding = {"window": "own"}  # as embed reads images of more than 8 bits
    pixels = scale(decode(content, channels, **decoding), (size[0], size[1]))
    features = extract_features(encoder, [(pixels[None], torch.zeros(1, dtype=torch.int64))])
    return features.vectors.numpy()
