"""The multi-layer perceptron: an encoder for vectors, and the body of every head."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from contrastive.arguments import checked
from contrastive.encoders.normalise import Normalise
from contrastive.errors import InvalidValue

WIDEST = 2**20  # of a layer; a larger number is a mistake, and memory would end first


def mlp(widths: Sequence[int], final_bias: bool = True) -> nn.Sequential:
    """Stack linear layers of the given widths, with batch norm and ReLU between (not after) them.

    Args:
        widths: Width of the input, of each hidden layer and of the output.
        final_bias: Whether the last layer has a bias. Hidden layers have none: batch norm brings one.

    Raises:
        ValueError: If fewer than two widths are given or one is below 1.
    """
    if len(widths) < 2 or min(widths) < 1 or max(widths) > WIDEST:
        raise InvalidValue(
            f"the layer widths of a multi-layer perceptron are {list(widths)}; "
            "give at least an input and an output width, each 1 or more (and at most 2^20)."
        )
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths[:-1]):
        layers += [
            nn.Linear(width_in, width_out, bias=False),
            nn.BatchNorm1d(width_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=final_bias))


class MLPEncoder(nn.Module):
    """Multi-layer perceptron for vectors, or for any input that may be flattened.

    Args:
        in_dim: Number of input values in a sample, after flattening.
        hidden_dims: Widths of the hidden layers; empty gives a linear encoder.
        dim: Width of the features.
        mean: Mean of each input value, ``in_dim`` numbers or one for all; 0 by default.
        std: Standard deviation of each input value, likewise; 1 by default. The defaults leave floats as they
            are; uint8 inputs are divided by 255 in any case.

    Attributes:
        dim: Width of the features.
        config: The constructor arguments, JSON-able.

    Raises:
        ValueError: If a width is below 1, or ``mean`` or ``std`` has neither 1 nor ``in_dim`` values.
    """

    @checked
    def __init__(
        self,
        in_dim: int,
        hidden_dims: Sequence[int] = (512, 512),
        dim: int = 128,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        for name, values in {"mean": mean, "std": std}.items():
            if len(values) not in (1, in_dim):
                raise InvalidValue(
                    f"{name} of MLPEncoder has {len(values)} values; give 1 or in_dim={in_dim} of them."
                )
        self.dim = dim
        self.config: dict[str, Any] = {
            "in_dim": in_dim,
            "hidden_dims": list(hidden_dims),
            "dim": dim,
            "mean": list(mean),
            "std": list(std),
        }
        self.layers = mlp([in_dim, *hidden_dims, dim])
        self.normalise = Normalise(
            list(mean) * (in_dim // len(mean)), list(std) * (in_dim // len(std)), spatial=False
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode ``(B, ...)`` inputs of ``in_dim`` values each, uint8 or float, to features ``(B, dim)``."""
        features: Tensor = self.layers(self.normalise(inputs.flatten(1)))
        return features
