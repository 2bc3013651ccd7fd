"""Heads that stand on an encoder while it is trained and are thrown away afterwards."""

from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """Multi-layer perceptron from the encoder's features to the space where the objective compares.

    Hidden layers are linear, batch norm, ReLU; the last layer is linear without a bias
    (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", section 4.2).

    Args:
        hidden_dim: Width of the hidden layers.
        dim: Width of the output.
        layers: Number of linear layers; 1 gives a linear projection.
        in_dim: Width of the input. ``None`` leaves it to :meth:`setup`, so that a configuration need not repeat
            the width of its encoder.

    Raises:
        ValueError: If a width or ``layers`` is below 1.
    """

    def __init__(
        self, hidden_dim: int = 512, dim: int = 128, layers: int = 2, in_dim: int | None = None
    ) -> None:
        super().__init__()
        for name, value in {"hidden_dim": hidden_dim, "dim": dim, "layers": layers}.items():
            if value < 1:
                raise ValueError(f"{name} of {type(self).__name__} is {value}; give an integer of 1 or more.")
        self.hidden_dim, self.dim, self.num_layers = hidden_dim, dim, layers
        self.in_dim: int | None = None
        self.layers = nn.Sequential()
        if in_dim is not None:
            self.setup(in_dim)

    def setup(self, in_dim: int) -> None:
        """Build the layers for inputs of width ``in_dim``; a second call with the same width does nothing.

        Raises:
            ValueError: If ``in_dim`` is below 1, or differs from the width that the layers were built for.
        """
        if in_dim < 1:
            raise ValueError(f"in_dim of {type(self).__name__} is {in_dim}; give an integer of 1 or more.")
        if self.in_dim is not None:
            if in_dim != self.in_dim:
                raise ValueError(
                    f"{type(self).__name__}.setup got in_dim={in_dim}, but the head was built for {self.in_dim}: "
                    "leave in_dim out of its constructor, or make a new head for the other encoder."
                )
            return
        self.in_dim = in_dim
        widths = [in_dim] + [self.hidden_dim] * (self.num_layers - 1)
        for left, right in zip(widths, widths[1:], strict=False):
            self.layers.extend(
                [nn.Linear(left, right, bias=False), nn.BatchNorm1d(right), nn.ReLU(inplace=True)]
            )
        self.layers.append(nn.Linear(widths[-1], self.dim, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """Project features ``(B, in_dim)`` to ``(B, dim)``.

        Raises:
            RuntimeError: If the input width was never given.
        """
        if self.in_dim is None:
            raise RuntimeError(
                f"{type(self).__name__} was called before its input width was known: "
                "give in_dim to the constructor or call setup(encoder.dim) first."
            )
        projected: Tensor = self.layers(features)
        return projected
