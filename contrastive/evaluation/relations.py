"""How much classes have in common: a symmetric matrix of scores as a table, a ranking and a picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from contrastive.errors import InvalidValue

if TYPE_CHECKING:  # matplotlib takes half a second to import: only drawing pays for it
    from matplotlib.figure import Figure


class ClassRelations:
    """Scores of all pairs of classes; higher means more in common. ``print(relations)`` shows the ranking.

    Args:
        matrix: ``(C, C)``, symmetric.
        class_names: name of each class; by default its number.
        score: what the numbers are.

    Raises:
        ValueError: if the matrix is not square, or there is not one name for each class.
    """

    def __init__(self, matrix: Tensor, class_names: Sequence[str] = (), score: str = "score") -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InvalidValue(
                f"ClassRelations: matrix has shape {tuple(matrix.shape)}; give a square one, (C, C)."
            )
        if class_names and len(class_names) != len(matrix):
            raise InvalidValue(
                f"ClassRelations: got {len(class_names)} class_names for {len(matrix)} classes; give one for each."
            )
        self.matrix = matrix.detach().double().cpu()
        self.class_names = list(class_names) or [str(label) for label in range(len(matrix))]
        self.score = score

    def ranking(self) -> list[tuple[str, str, float]]:
        """All pairs of two different classes, those with most in common first."""
        first, second = torch.triu_indices(len(self.matrix), len(self.matrix), 1)
        scores = self.matrix[first, second]
        return [
            (self.class_names[first[i]], self.class_names[second[i]], float(scores[i]))
            for i in scores.argsort(descending=True, stable=True).tolist()
        ]

    def agreement(self, other: Tensor) -> float:
        """Spearman's rank correlation with another matrix ``(C, C)`` of scores, over pairs of different classes."""
        from scipy.stats import spearmanr

        pairs = torch.triu_indices(len(self.matrix), len(self.matrix), 1).unbind()
        return float(spearmanr(self.matrix[pairs], other.double().cpu()[pairs]).statistic)

    def order(self) -> list[int]:
        """Classes in an order that puts near those with much in common (leaves of average linkage)."""
        from scipy.cluster.hierarchy import leaves_list, linkage

        if len(self.matrix) < 3:
            return list(range(len(self.matrix)))
        first, second = np.triu_indices(len(self.matrix), 1)
        distances = self.matrix.max() - self.matrix[first, second]
        return list(map(int, leaves_list(linkage(distances.numpy(), "average", optimal_ordering=True))))

    def figure(self) -> "Figure":
        """Draw the matrix, rows and columns in :meth:`order`."""
        from matplotlib.figure import Figure

        order = self.order()
        shown = (
            self.matrix[order][:, order].clone().fill_diagonal_(torch.nan)
        )  # the diagonal would set the scale
        names = [self.class_names[label] for label in order]
        size = 2.2 + 0.22 * len(names)
        figure = Figure(figsize=(size + 0.6, size), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(shown.numpy(), cmap="viridis")
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.tick_params(length=0, labelsize=8)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label=self.score, shrink=0.8)
        return figure

    def __str__(self) -> str:
        width = max(map(len, self.class_names))
        return "\n".join(f"{a:>{width}}  {b:<{width}}  {score:8.3f}" for a, b, score in self.ranking())
