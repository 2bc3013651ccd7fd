"""Weighted nearest-neighbour classification of frozen features (Wu et al. 2018, arXiv 1805.01978)."""

import warnings
from typing import Literal

import torch
from torch import Tensor

from contrastive.arguments import checked
from contrastive.errors import InvalidValue
from contrastive.evaluation.features import Features, class_positions, normalize, row_blocks
from contrastive.evaluation.metrics import Classification, classify

Metric = Literal["cosine", "euclidean"]


@checked
def knn_classify(
    train: Features,
    test: Features,
    *,
    k: int = 20,
    temperature: float = 0.1,
    metric: Metric = "cosine",
    exclude_self: bool = False,
) -> Classification:
    """Let the ``k`` nearest training samples of each test sample vote for its class.

    A neighbour at cosine ``s`` votes with weight ``exp(s / temperature)``; with ``metric="euclidean"`` one at
    distance ``d`` votes with ``1 / (d + 1e-5)`` and the temperature is not used. Published tables use
    ``k=200, temperature=0.1`` (CIFAR-10) or ``k=20, temperature=0.07`` (ImageNet).

    Args:
        train: labelled bank.
        test: labelled queries.
        k: number of neighbours; clipped to the size of the bank, with a warning.
        temperature: sharpness of the vote, positive.
        metric: ``"cosine"`` normalises the rows, ``"euclidean"`` takes them as they are.
        exclude_self: leave out neighbours that have the same ``index`` as the query, for a set that is
            classified by itself.

    Returns:
        The outcome; its scores are the votes of the classes, as fractions. Ties go to the smaller label. The
        top-5 accuracy needs ``k`` of 5 at least, and counts classes that got a vote.

    Raises:
        ValueError: k below 1, a temperature that is not positive, an unknown metric, or unlabelled features.
    """
    if temperature <= 0:
        raise InvalidValue(
            f"knn_classify: temperature is {temperature}; it must be positive, for example 0.1"
        )
    classes, train_classes, test_classes = class_positions(train, test, "knn_classify")
    closeness, neighbours = nearest(train, test, k=k, metric=metric, exclude_self=exclude_self)
    if metric == "cosine":
        # Only ratios matter: relative to the nearest neighbour no weight can overflow.
        weights = ((closeness.double() - closeness[:, :1]) / temperature).exp()
    else:
        weights = 1 / (1e-5 - closeness.double())
    votes = torch.zeros(len(test), len(classes), dtype=torch.float64, device=weights.device)
    votes.scatter_add_(1, train_classes.to(votes.device)[neighbours], weights)
    votes /= votes.sum(dim=1, keepdim=True)
    return classify(votes, test_classes.to(votes.device), classes.to(votes.device), top5=k >= 5, least=0.0)


def nearest(
    bank: Features, queries: Features, *, k: int, metric: Metric = "cosine", exclude_self: bool = False
) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest rows of ``bank`` for each query, exactly, in blocks of queries.

    FAISS searches on the CPU where it is installed, PyTorch elsewhere; the neighbours are the same, up to the
    last digits of their closeness. The size of the blocks changes nothing, and of equally close rows the first
    comes first.

    Returns:
        Closeness ``(Q, k)``, falling along each row (the cosine, or minus the Euclidean distance), and the
        positions in ``bank``, ``(Q, k)``.
    """
    if metric not in ("cosine", "euclidean"):
        raise InvalidValue(f'nearest: metric is {metric!r}; choose "cosine" or "euclidean"')
    if k < 1:
        raise InvalidValue(f"nearest: k is {k}; give the number of neighbours, 1 or more")
    available = len(bank) - int(exclude_self)
    if available < 1:
        raise InvalidValue(
            "nearest: the bank holds only the query itself; give a bank of two samples or more"
        )
    if k > available:
        warnings.warn(
            f"k={k} neighbours were asked of a bank of {available}; using {available}", stacklevel=3
        )
        k = available
    rows, columns = bank.vectors.float(), queries.vectors.float().to(bank.vectors.device)
    if metric == "cosine":
        rows, columns = normalize(rows), normalize(columns)
    closeness, found = _search(rows, columns, k + int(exclude_self), metric)
    if exclude_self:
        itself = bank.index.to(found.device)[found] == queries.index.to(found.device)[:, None]
        # Among more than k exact copies the query may be missing from its own list: then the last one goes.
        itself[:, -1] |= ~itself.any(dim=1)
        order = torch.sort(itself.to(torch.uint8), dim=1, stable=True).indices[:, :k]
        closeness, found = closeness.gather(1, order), found.gather(1, order)
    return closeness, found


def _search(bank: Tensor, queries: Tensor, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    """``k`` nearest rows of ``bank``: (closeness, positions), both ``(Q, k)``."""
    from contrastive.retrieval.engine import exact_search  # imports what only searching needs

    where = bank.device
    rows = bank.contiguous().numpy() if where.type == "cpu" else bank
    parts = [
        exact_search(rows, queries[block].cpu().numpy(), k, metric == "euclidean")
        for block in row_blocks(len(queries), len(bank))
    ]
    closeness, positions = (
        torch.cat([torch.from_numpy(part[i]) for part in parts]).to(where) for i in range(2)
    )
    return closeness, positions
