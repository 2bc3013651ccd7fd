"""Features of a data set: computed once with a frozen encoder, then used by every evaluation."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive.arguments import checked
from contrastive.errors import InvalidType, InvalidValue

BLOCK_ELEMENTS = 1 << 24
"""Largest block of pairwise values that an evaluation holds at a time (64 MiB in float32)."""


class Features:
    """Vectors of ``N`` samples with their labels and their positions in the data set.

    Args:
        vectors: ``(N, D)``, floating point, finite.
        labels: ``(N,)`` integers (any values, gaps allowed), or None for unlabelled data.
        index: ``(N,)`` integers, the position of each sample in its data set; 0..N-1 if left out.

    Raises:
        TypeError: vectors that are not floating point, labels or index that are not integers.
        ValueError: wrong shapes, no rows, or a NaN or infinite value (the first bad row is named).
    """

    @checked
    def __init__(self, vectors: Tensor, labels: Tensor | None = None, index: Tensor | None = None) -> None:
        if not vectors.is_floating_point():
            raise InvalidType(
                f"Features: vectors have dtype {vectors.dtype}; give floating point, as vectors.float()"
            )
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise InvalidValue(
                f"Features: vectors have shape {tuple(vectors.shape)}; expected (N, D) with at least one row "
                "and one column; flatten each sample to one row"
            )
        self.vectors = vectors
        self.labels = labels
        self.index = torch.arange(len(vectors), device=vectors.device) if index is None else index
        for name, values in (("labels", self.labels), ("index", self.index)):
            if values is None:
                continue
            if values.is_floating_point() or values.is_complex():
                raise InvalidType(
                    f"Features: {name} have dtype {values.dtype}; give integers, as {name}.long()"
                )
            if values.shape != (len(vectors),):
                raise InvalidValue(
                    f"Features: {name} have shape {tuple(values.shape)} for {len(vectors)} vectors; "
                    f"expected ({len(vectors)},), one integer a row"
                )
        bad = (~torch.isfinite(vectors)).any(dim=1).nonzero()
        if len(bad):
            row = int(bad[0])
            raise InvalidValue(
                f"Features: {len(bad)} of {len(vectors)} vectors are NaN or infinite, the first in row {row} "
                f"(sample {int(self.index[row])}); every value must be finite: check the encoder's weights, "
                "or extract in float32"
            )

    def __len__(self) -> int:
        return len(self.vectors)

    def rows(self, rows: Tensor) -> "Features":
        """The features of the given rows: ``rows`` holds ``(M,)`` positions or an ``(N,)`` boolean mask."""
        labels = None if self.labels is None else self.labels[rows]
        return Features(self.vectors[rows], labels, self.index[rows])

    def require_labels(self, call: str) -> Tensor:
        """The labels; a ValueError that names ``call`` where there are none."""
        if self.labels is None:
            raise InvalidValue(
                f"{call}: these features have no labels; give Features(vectors, labels) of a labelled set"
            )
        return self.labels


def normalize(vectors: Tensor) -> Tensor:
    """Rows of unit length; zero rows stay zero (epsilon 1e-12)."""
    return F.normalize(vectors, dim=1, eps=1e-12)


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of ``range(rows)`` such that a block times ``columns`` stays below :data:`BLOCK_ELEMENTS`."""
    step = max(1, BLOCK_ELEMENTS // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def class_positions(train: Features, test: Features, call: str) -> tuple[Tensor, Tensor, Tensor]:
    """Map arbitrary integer labels to 0..C-1 over the union of both sets.

    Returns:
        The sorted labels ``(C,)``, the positions of the training labels and those of the test labels.
    """
    if train.vectors.shape[1] != test.vectors.shape[1]:
        raise InvalidValue(
            f"{call}: train has {train.vectors.shape[1]} columns and test has {test.vectors.shape[1]}; "
            "both must come from the same encoder"
        )
    labels = torch.cat([train.require_labels(call), test.require_labels(call).to(train.vectors.device)])
    classes, positions = torch.unique(labels, return_inverse=True)
    return classes, positions[: len(train)], positions[len(train) :]


def extract_features(
    encoder: nn.Module,
    loader: Iterable[Any],
    device: torch.device | str | None = None,
    *,
    gather: bool = True,
) -> Features:
    """Run ``encoder`` over ``loader`` in evaluation mode, without gradients.

    Samples come back in the order of their data-set index. An index that was seen before is dropped: such
    repeats are how distributed samplers fill up the last batch.

    Args:
        encoder: maps a batch of inputs to ``(B, D)``. Its training mode is restored afterwards.
        loader: yields batches with ``inputs``, ``index`` and ``labels`` (``contrastive.data.Batch``), or
            ``(inputs, labels)`` pairs, which are numbered as they come.
        device: where to compute; the device of the encoder's first parameter or buffer if left out.
        gather: under ``torch.distributed``, join the features of all processes, on all of them. Every process
            must then make this call; False keeps to the samples of this process.

    Returns:
        Features on the CPU, in float32.

    Raises:
        ValueError: an empty loader, an output that is not ``(B, D)``, a NaN or infinite feature, or
            unnumbered batches where several processes must be joined.
    """
    if device is None:
        device = next((tensor.device for tensor in chain(encoder.parameters(), encoder.buffers())), "cpu")
    device = torch.device(device)
    gather = gather and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    vectors, labels, index = [], [], []
    count = 0
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with torch.inference_mode():
            for batch in loader:
                if hasattr(batch, "inputs"):
                    inputs, batch_index, batch_labels = batch.inputs, batch.index, batch.labels
                elif gather:
                    raise InvalidValue(
                        "extract_features: batches without data-set indices cannot be joined over processes, "
                        "because repeated samples would count twice; yield contrastive.data.Batch, or pass "
                        "gather=False"
                    )
                else:
                    inputs, batch_labels = batch
                    batch_index = torch.arange(count, count + len(inputs))
                output = encoder(inputs.to(device, non_blocking=True))
                if output.ndim != 2 or len(output) != len(inputs):
                    raise InvalidValue(
                        f"extract_features: the encoder gave shape {tuple(output.shape)} for {len(inputs)} "
                        "inputs; expected (B, D): pool or flatten its output to one vector a sample"
                    )
                count += len(inputs)
                vectors.append(output.float().cpu())
                index.append(batch_index.cpu())
                if batch_labels is not None:
                    labels.append(batch_labels.cpu())
    finally:
        for module, mode in modes:
            module.training = mode
    if not vectors:
        raise InvalidValue("extract_features: the loader gave no batch; check that its split is not empty")
    parts = [torch.cat(part) for part in (vectors, index, labels) if part]
    if gather:
        parts = [_gather_rows(part, device) for part in parts]
    order, kept = _first_of_each(parts[1])
    rows = order[kept]
    return Features(parts[0][rows], parts[2][rows] if labels else None, parts[1][rows])


def _first_of_each(index: Tensor) -> tuple[Tensor, Tensor]:
    """The order that sorts ``index`` and, in that order, a mask of the first occurrence of each value."""
    ordered, order = torch.sort(index, stable=True)
    kept = torch.ones_like(ordered, dtype=torch.bool)
    kept[1:] = ordered[1:] != ordered[:-1]
    return order, kept


def _gather_rows(values: Tensor, device: torch.device) -> Tensor:
    """Rows of all processes, in rank order; the processes may hold different numbers of rows."""
    where = device if dist.get_backend() == "nccl" else torch.device("cpu")
    counts = [torch.zeros(1, dtype=torch.int64, device=where) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(values)], device=where))
    sizes = [int(count) for count in counts]
    padded = torch.zeros(max(sizes), *values.shape[1:], dtype=values.dtype, device=where)
    padded[: len(values)] = values.to(where)
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)]).cpu()
