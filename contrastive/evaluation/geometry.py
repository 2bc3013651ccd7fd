"""How features lie in space: alignment and uniformity of pairs, and how many dimensions are in use.

Every function takes plain tensors, holds at most one block of pairwise values at a time, and returns a float
that was accumulated in float64.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from contrastive.arguments import checked
from contrastive.errors import InvalidValue
from contrastive.evaluation.features import normalize, row_blocks


def alignment(first: Tensor, second: Tensor, *, alpha: float = 2.0) -> float:
    """Mean distance of the two views of a sample, ``mean_i |x_i - y_i|^alpha`` (Wang & Isola, 2005.10242).

    Args:
        first: ``(N, D)``; rows are normalised here.
        second: ``(N, D)``, row i shows the same sample as row i of ``first``.
        alpha: power of the distance.
    """
    if first.shape != second.shape:
        raise InvalidValue(
            f"alignment: the views have shapes {tuple(first.shape)} and {tuple(second.shape)}; give two of "
            "equal shape (N, D)"
        )
    distances = (normalize(first.double()) - normalize(second.double())).norm(dim=1)
    return float(distances.pow(alpha).mean())


def uniformity(z: Tensor, *, t: float = 2.0, form: Literal["log", "negated"] = "log") -> float:
    """How evenly unit vectors cover the sphere: ``log mean_{i<j} exp(-t |x_i - x_j|^2)``.

    Args:
        z: ``(N, D)``; rows are normalised here.
        t: sharpness of the Gaussian potential.
        form: ``"log"`` is Wang & Isola's (2005.10242): at most 0, smaller is more even. ``"negated"`` is the
            positive number in the tables of Wang & Liu (2012.09740): at most 3.94 for t = 2, D = 128.
    """
    _require_rows("uniformity", z, 2)
    x = normalize(z.double())
    total = x.new_tensor(-math.inf)
    for block in row_blocks(len(x), len(x)):
        # The squared distance of unit rows is 2 - 2 cos; zero rows have length 0, so keep the true lengths.
        rest = x[block.start :]
        squared = x[block].square().sum(1)[:, None] + rest.square().sum(1) - 2 * x[block] @ rest.T
        later = torch.ones(squared.shape, dtype=torch.bool, device=x.device).triu(1)
        total = torch.logaddexp(total, (-t * squared)[later].logsumexp(0))
    value = float(total) - math.log(len(x) * (len(x) - 1) / 2)
    return value if form == "log" else -value


def tolerance(z: Tensor, labels: Tensor, *, literal: bool = False) -> float:
    """Mean cosine of two different samples of one class (Wang & Liu 2021, 2012.09740).

    Args:
        z: ``(N, D)``; rows are normalised here.
        labels: ``(N,)`` integers.
        literal: average over all ordered pairs, those of different classes counting 0, as the paper's formula
            reads. Its tables hold the mean over pairs of equal class, which is the default.

    Raises:
        ValueError: no class has two samples.
    """
    _require_rows("tolerance", z, 2)
    if labels.shape != (len(z),):
        raise InvalidValue(
            f"tolerance: labels have shape {tuple(labels.shape)}; give one integer for each row of z."
        )
    x = normalize(z.double())
    _, group, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    sums = x.new_zeros(len(counts), x.shape[1]).index_add_(0, group, x)
    # The sum over ordered pairs of a class is |sum of its rows|^2 less every row with itself.
    total = sums.square().sum() - x.square().sum()
    pairs = len(x) * (len(x) - 1) if literal else int((counts * (counts - 1)).sum())
    if pairs == 0:
        raise InvalidValue("tolerance: no class has two samples; give at least two samples of one class")
    return float(total / pairs)


def mean_cosine(z: Tensor) -> float:
    """Mean cosine of two different rows of ``z`` ``(N, D)``; 1 when all have collapsed to one direction."""
    _require_rows("mean_cosine", z, 2)
    x = normalize(z.double())
    return float((x.sum(0).square().sum() - x.square().sum()) / (len(x) * (len(x) - 1)))


def normalized_std(z: Tensor) -> float:
    """Standard deviation of the normalised rows of ``z`` ``(N, D)``, mean over dimensions.

    ``1 / sqrt(D)`` when isotropic, 0 when collapsed to a point (Chen & He 2021, 2011.10566). It does not see
    features that collapse to a few dimensions: look at :func:`effective_rank` too.
    """
    _require_rows("normalized_std", z, 2)
    return float(normalize(z.double()).std(dim=0).mean())


def rankme(z: Tensor, *, epsilon: float = 1e-7) -> float:
    """RankMe: exponential of the entropy of ``p = singular values / sum + epsilon``.

    From Garrido et al. 2023, arXiv 2210.02885; p is not renormalised after adding epsilon.

    ``z`` ``(N, D)`` is taken as it is, neither centred nor normalised. With N < D the value cannot exceed N.
    """
    return _entropy_rank(_eigenvalues(z, centre=False).sqrt(), epsilon)


def effective_rank(z: Tensor, *, centre: bool = False) -> float:
    """Exponential of the entropy of the singular values of ``z`` ``(N, D)`` (Roy & Vetterli 2007).

    Args:
        z: ``(N, D)``.
        centre: subtract the mean of each column first. The two variants are different numbers.
    """
    return _entropy_rank(_eigenvalues(z, centre=centre).sqrt())


def participation_ratio(z: Tensor) -> float:
    """``(sum l)^2 / sum l^2`` over the covariance eigenvalues l of ``z`` ``(N, D)``; 1 for equal rows."""
    eigenvalues = _eigenvalues(z, centre=True)
    return (
        float(eigenvalues.sum().square() / eigenvalues.square().sum()) if float(eigenvalues[0]) > 0 else 1.0
    )


def alpha_req(z: Tensor, *, first: int = 1, last: int | None = None) -> float:
    """Decay exponent of the covariance spectrum (Agrawal et al. 2022).

    Minus the least-squares slope of ``log eigenvalue`` on ``log index``. About 1 is good, much more means
    collapse, less means noise.

    Args:
        z: ``(N, D)``.
        first: first index of the fitted range, counted from 1.
        last: last index of the fitted range; all eigenvalues above rounding error if left out.

    Raises:
        ValueError: fewer than two positive eigenvalues in the range.
    """
    eigenvalues = _eigenvalues(z, centre=True)
    usable = int((eigenvalues > eigenvalues[0] * len(eigenvalues) * torch.finfo(torch.float64).eps).sum())
    last = usable if last is None else last
    if first < 1 or last <= first or last > usable:
        raise InvalidValue(
            f"alpha_req: the range {first}..{last} is asked of {usable} eigenvalues above rounding error; "
            "a line needs two of them at least, so give 1 <= first < last within these"
        )
    x = torch.arange(first, last + 1, dtype=torch.float64, device=eigenvalues.device).log()
    y = eigenvalues[first - 1 : last].log()
    x = x - x.mean()
    return float(-(x @ y) / (x @ x))


def mean_abs_correlation(z: Tensor) -> float:
    """Mean absolute correlation of two different columns of ``z`` ``(N, D)``: the redundancy of dimensions.

    Constant columns have no correlation; they count 0.
    """
    _require_rows("mean_abs_correlation", z, 2)
    covariance = _gram(z, centre=True)
    scale = covariance.diagonal().clamp_min(0).sqrt()
    correlation = torch.where(scale > 0, covariance / (scale * scale[:, None]), 0.0).nan_to_num(0.0)
    dim = z.shape[1]
    if dim < 2:
        raise InvalidValue("mean_abs_correlation: z has one column; correlation needs two or more")
    off_diagonal = correlation.abs().sum() - correlation.diagonal().abs().sum()
    return float(off_diagonal / (dim * (dim - 1)))


@checked
def describe_geometry(z: Tensor, labels: Tensor | None = None) -> dict[str, float]:
    """The numbers that tell a healthy space from a collapsed one, by name.

    Args:
        z: ``(N, D)`` features. Uniformity looks at the first 10,000 rows.
        labels: ``(N,)``; with them, ``tolerance`` is reported too.

    Returns:
        ``uniformity`` (the positive form, larger is more even), ``rankme``, ``effective_rank`` (centred),
        ``participation_ratio``, ``normalized_std``, ``mean_cosine``, ``mean_abs_correlation``, ``tolerance``.
    """
    _require_rows("describe_geometry", z, 2)
    report = {
        "uniformity": uniformity(z[:10_000], form="negated"),
        "rankme": rankme(z),
        "effective_rank": effective_rank(z, centre=True),
        "participation_ratio": participation_ratio(z),
        "normalized_std": normalized_std(z),
        "mean_cosine": mean_cosine(z),
        "mean_abs_correlation": mean_abs_correlation(z),
    }
    if labels is not None:
        report["tolerance"] = tolerance(z, labels)
    return report


def _require_rows(call: str, z: Tensor, rows: int) -> None:
    if z.ndim != 2 or len(z) < rows or not z.shape[1]:
        raise InvalidValue(f"{call}: z has shape {tuple(z.shape)}; expected (N, D) with N of {rows} at least")
    if not bool(torch.isfinite(z).all()):
        raise InvalidValue(
            f"{call}: z holds NaN or infinite values; leave these rows out, or check the encoder"
        )


def _gram(z: Tensor, *, centre: bool) -> Tensor:
    """``z.T @ z`` in float64, a block of rows at a time; with ``centre``, of the centred columns."""
    mean = z.mean(dim=0, dtype=torch.float64) if centre else 0.0
    gram = torch.zeros(z.shape[1], z.shape[1], dtype=torch.float64, device=z.device)
    for block in row_blocks(len(z), z.shape[1]):
        rows = z[block].double() - mean
        gram.addmm_(rows.T, rows)
    return gram


def _eigenvalues(z: Tensor, *, centre: bool) -> Tensor:
    """Squared singular values of ``z``, the eigenvalues of its Gram matrix: min(N, D), descending."""
    _require_rows("geometry", z, 2 if centre else 1)
    values: Tensor = torch.linalg.eigvalsh(_gram(z, centre=centre))
    return values.flip(0).clamp_min(0)[: min(len(z), z.shape[1])]


def _entropy_rank(values: Tensor, epsilon: float = 0.0) -> float:
    """``exp(-sum p log p)`` of ``p = values / sum + epsilon``; 1 where all values are 0."""
    if float(values.sum()) <= 0:
        return 1.0
    p = values / values.sum() + epsilon
    return float(torch.special.entr(p).sum().exp())
