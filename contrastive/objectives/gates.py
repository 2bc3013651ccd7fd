"""Pairs of classes and their gates, for Hydra (arXiv 2410.18200): which dimensions two classes have in common.

Each class has an embedding; a pair of classes has the mean of both, or gates of each that are multiplied. A
multi-layer perceptron, rectifier and batch norm before each of its two layers, turns it into D logits, and
those into gates in [0, 1].
"""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from contrastive.checks import check_choice
from contrastive.errors import InvalidValue
from contrastive.similarity import gather, world_size


def draw_partners(
    labels: Tensor, num_classes: int, pairs: str, generator: torch.Generator | None = None
) -> Tensor:
    """Partner classes ``(B,)`` of the own samples; the first process draws for all, so that N processes are one.

    Args:
        labels: ``(B,)`` classes of the own samples.
        num_classes: C.
        pairs: ``"arbitrary"``: a permutation of the labels of all processes; ``"identical"``: the labels;
            ``"distinct"``: any other class, evenly, whether present or not.
        generator: source of the draws; torch's global one by default.

    Raises:
        ValueError: for ``"distinct"`` with one class.
    """
    if pairs == "identical":
        return labels
    if pairs == "distinct" and num_classes < 2:
        raise InvalidValue(
            f"draw_partners: pairs='distinct' with num_classes={num_classes}; there is no other class."
        )
    everywhere = gather(labels)
    count, device = len(everywhere.all), labels.device
    if pairs == "arbitrary":
        drawn = everywhere.all[torch.randperm(count, generator=generator, device=device)]
    else:
        step = torch.randint(1, num_classes, (count,), generator=generator, device=device)
        drawn = (everywhere.all + step) % num_classes
    if world_size() > 1:
        dist.broadcast(drawn, 0)
    return drawn[everywhere.start : everywhere.start + len(labels)]


class GateGenerator(nn.Module):
    """Gates of pairs of classes.

    In training, batch norm takes the statistics of all pairs of the batch, over all processes: each process
    computes the gate of each *distinct* pair once and weights it by how often it occurs. That costs what the
    number of classes says, not the batch, and needs no synchronised batch norm. A batch of one pair, and
    :meth:`class_logits`, use the running statistics.

    Args:
        num_classes: C.
        dim: D, the width of the embeddings to be gated.
        kind: ``"sigmoid"``; ``"stochastic"``: ``clamp(logit + 1/2 + sigma · normal, 0, 1)``; ``"gumbel"``:
            ``sigmoid(logit - log(-log u))``, u uniform. Evaluation draws nothing.
        fuse: ``"mean"`` of the two label embeddings, or ``"product"`` of the gates of both classes.
        embedding_dim: width of a label embedding.
        hidden_dim: width of the hidden layer.
        sigma: standard deviation of the noise. Read by ``"stochastic"``.

    Raises:
        ValueError: for a width below 1, an unknown option, or noise with ``fuse="product"``.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        kind: Literal["sigmoid", "stochastic", "gumbel"] = "sigmoid",
        fuse: Literal["mean", "product"] = "mean",
        embedding_dim: int = 512,
        hidden_dim: int = 1024,
        sigma: float = 0.5,
    ) -> None:
        super().__init__()
        check_choice("GateGenerator", "kind", kind, ("sigmoid", "stochastic", "gumbel"))
        check_choice("GateGenerator", "fuse", fuse, ("mean", "product"))
        sizes = {
            "num_classes": num_classes,
            "dim": dim,
            "embedding_dim": embedding_dim,
            "hidden_dim": hidden_dim,
        }
        for name, value in sizes.items():
            if value < 1:
                raise InvalidValue(f"GateGenerator: {name} is {value}; give an integer of 1 or more.")
        if fuse == "product" and kind != "sigmoid":
            raise InvalidValue(
                f"GateGenerator: fuse='product' with kind={kind!r}; noisy gates exist for fuse='mean' only."
            )
        if not sigma > 0:
            raise InvalidValue(f"GateGenerator: sigma is {sigma}; give a positive standard deviation.")
        self.num_classes, self.dim, self.kind, self.fuse, self.sigma = num_classes, dim, kind, fuse, sigma
        self.label_embedding = nn.Embedding(num_classes, embedding_dim)
        self.mlp = nn.Sequential(
            nn.ReLU(),
            nn.BatchNorm1d(embedding_dim),
            nn.Linear(embedding_dim, hidden_dim),
            nn.ReLU(),
            nn.BatchNorm1d(hidden_dim),
            nn.Linear(hidden_dim, dim),
        )

    def forward(self, first: Tensor, second: Tensor | None = None, *, noise: Tensor | None = None) -> Tensor:
        """Gates ``(B, D)`` of the pairs ``(first, second)``, ``(B,)`` classes each, or of single classes.

        Args:
            first: ``(B,)`` int64 in ``range(num_classes)``.
            second: the partners, or None for the gates of single classes.
            noise: ``(B, D)`` draws for noisy gates: standard normal for ``"stochastic"``, uniform in (0, 1) for
                ``"gumbel"``. Drawn here in training if not given.
        """
        if second is not None and self.fuse == "product":
            return self._pair_logits(first, first).sigmoid() * self._pair_logits(second, second).sigmoid()
        return self._open(self._pair_logits(first, first if second is None else second), noise)

    def class_logits(self) -> Tensor:
        """Logits ``(C, D)`` of the gates of single classes, by running statistics, which stay as they are."""
        return self._logits(self.label_embedding.weight, None)

    @torch.no_grad()
    def class_gates(self) -> Tensor:
        """Gates ``(C, D)`` of single classes as evaluation sees them, without noise."""
        return self._squash(self.class_logits())

    @torch.no_grad()
    def capacities(self) -> Tensor:
        """Number of dimensions that the gate of each pair of classes opens, ``(C, C)``, as evaluation sees it."""
        embeddings = self.label_embedding.weight
        if self.fuse == "product":
            return self.class_gates() @ self.class_gates().T
        rows = [self._squash(self._logits((one + embeddings) / 2, None)).sum(1) for one in embeddings]
        return torch.stack(rows)

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """``activation``: open dimensions of a class, mean over classes; ``entropy`` of a gate in nats."""
        logits = self.class_logits()
        return {"activation": self._squash(logits).sum(1).mean(), "entropy": entropy(logits).mean()}

    def penalty(self, *, released: bool = False) -> Tensor:
        """What pushes gates to 0 or 1: the mean entropy of the gates of single classes, in nats.

        For ``kind="stochastic"`` the expected number of gates above 0 instead, which closes them. ``released``
        takes batch statistics over the classes, which move the running ones, and gives no gradient.
        """
        if released:
            with torch.no_grad():
                table = self.label_embedding.weight
                logits = self._logits(table, table.new_ones(len(table)) if self.training else None)
        else:
            logits = self.class_logits()
        return expected_open(logits, self.sigma) if self.kind == "stochastic" else entropy(logits).mean()

    def _pair_logits(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits ``(B, D)``; batch statistics in training run over the pairs of all processes."""
        pairs = torch.minimum(first, second) * self.num_classes + torch.maximum(first, second)
        everywhere = gather(pairs)
        distinct, position, counts = torch.unique(everywhere.all, return_inverse=True, return_counts=True)
        embedding = self.label_embedding
        fused = (embedding(distinct // self.num_classes) + embedding(distinct % self.num_classes)) / 2
        logits = self._logits(fused, counts if self.training and len(everywhere.all) > 1 else None)
        return logits[position[everywhere.start : everywhere.start + len(first)]]

    def _logits(self, x: Tensor, counts: Tensor | None) -> Tensor:
        """The perceptron on rows that occur ``counts`` times each; running statistics without counts."""
        with torch.autocast(x.device.type, enabled=False):
            for layer in self.mlp:
                x = _batch_norm(layer, x, counts) if isinstance(layer, _BatchNorm) else layer(x)
        return x

    def _open(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        if self.kind != "sigmoid" and noise is None and self.training:
            noise = torch.randn_like(logits) if self.kind == "stochastic" else torch.rand_like(logits)
        return self._squash(logits, noise)

    def _squash(self, logits: Tensor, noise: Tensor | None = None) -> Tensor:
        if self.kind == "stochastic":
            shift = 0.5 if noise is None else 0.5 + self.sigma * noise
            return (logits + shift).clamp(0, 1)
        if self.kind == "gumbel" and noise is not None:
            logits = logits - torch.log(-torch.log(noise + 1e-20) + 1e-20)
        return logits.sigmoid()


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of Bernoulli variables with these logits; smooth also where they are certain."""
    return F.softplus(logits, threshold=60) - logits * logits.sigmoid()


def expected_open(logits: Tensor, sigma: float) -> Tensor:
    """Expected number of stochastic gates above 0, mean over rows of ``logits (B, D)``."""
    opening: Tensor = torch.special.ndtr((logits + 0.5) / sigma)
    return opening.sum(1).mean()


def _batch_norm(norm: _BatchNorm, x: Tensor, counts: Tensor | None) -> Tensor:
    """Batch norm of rows that occur ``counts`` times; only with counts does the running state move."""
    mean, variance, momentum = norm.running_mean, norm.running_var, norm.momentum
    assert mean is not None  # as are all three, by the constructor's defaults
    assert variance is not None
    assert momentum is not None
    if counts is not None:
        running = (mean, variance)
        counts = counts.to(x.dtype)
        total = counts.sum()
        mean = counts @ x / total
        variance = counts @ (x - mean).square()
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            running[0].lerp_(mean, momentum)
            running[1].lerp_(variance / (total - 1), momentum)
        variance = variance / total
    return (x - mean) * (variance + norm.eps).rsqrt() * norm.weight + norm.bias
