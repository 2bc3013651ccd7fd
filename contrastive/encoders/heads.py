"""Heads that stand on an encoder while it is trained and are thrown away afterwards."""

from torch import Tensor, nn

from contrastive.arguments import checked
from contrastive.encoders.mlp import mlp
from contrastive.errors import InvalidValue, NotReady


class ProjectionHead(nn.Module):
    """Multi-layer perceptron from the encoder's features to the space in which the objective compares.

    Hidden layers are linear, batch norm, ReLU; the last layer is linear without a bias
    (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", section 4.2).

    Args:
        hidden_dim: Width of the hidden layers.
        dim: Width of the output.
        layers: Number of linear layers; 1 gives a linear projection.
        in_dim: Width of the input. ``None`` leaves it to :meth:`setup`, so that a configuration need not
            repeat the width of its encoder.

    Raises:
        ValueError: If a width or ``layers`` is below 1.
    """

    @checked
    def __init__(
        self, hidden_dim: int = 512, dim: int = 128, layers: int = 2, in_dim: int | None = None
    ) -> None:
        super().__init__()
        for name, value in {"hidden_dim": hidden_dim, "dim": dim, "layers": layers}.items():
            if value < 1:
                raise InvalidValue(f"{name} of ProjectionHead is {value}; give an integer of 1 or more.")
        self.dim = dim
        self.in_dim: int | None = None
        self.layers = nn.Sequential()
        self._later_widths = [hidden_dim] * (layers - 1) + [dim]
        if in_dim is not None:
            self.setup(in_dim)

    def setup(self, in_dim: int) -> None:
        """Build the layers for inputs of width ``in_dim``; a second call with the same width does nothing.

        Raises:
            ValueError: If ``in_dim`` is below 1, or differs from the width that the layers were built for.
        """
        if in_dim == self.in_dim:
            return
        if self.in_dim is not None:
            raise InvalidValue(
                f"ProjectionHead.setup got in_dim={in_dim}, but the head was built for {self.in_dim}: "
                "leave in_dim out of its constructor, or make a new head for the other encoder."
            )
        self.layers = mlp([in_dim, *self._later_widths], final_bias=False)
        self.in_dim = in_dim

    def forward(self, features: Tensor) -> Tensor:
        """Project features ``(B, in_dim)`` to ``(B, dim)``.

        Raises:
            RuntimeError: If the input width was never given.
        """
        if self.in_dim is None:
            raise NotReady(
                "ProjectionHead was called before its input width was known: "
                "give in_dim to the constructor or call setup(encoder.dim) first."
            )
        projected: Tensor = self.layers(features)
        return projected


class PredictionHead(nn.Module):
    """Predictor of one view's projection from the other's, for methods with a stopped gradient.

    Linear, batch norm, ReLU, linear (Grill et al. 2020, "Bootstrap Your Own Latent", section 3.3); the output
    has the width of the input.

    Args:
        dim: Width of input and output: that of the projection head.
        hidden_dim: Width of the hidden layer.

    Raises:
        ValueError: If a width is below 1.
    """

    @checked
    def __init__(self, dim: int = 128, hidden_dim: int = 512) -> None:
        super().__init__()
        self.dim = dim
        self.layers = mlp([dim, hidden_dim, dim])

    def forward(self, projections: Tensor) -> Tensor:
        """Map projections ``(B, dim)`` to predictions ``(B, dim)``."""
        predictions: Tensor = self.layers(projections)
        return predictions
