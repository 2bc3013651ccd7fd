"""Contrastive pretraining of two encoders on pairs of two modalities, such as images and texts."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from contrastive.arguments import checked
from contrastive.encoders import ProjectionHead
from contrastive.errors import InvalidValue
from contrastive.objectives.base import Objective
from contrastive.objectives.infonce import InfoNCE
from contrastive.training.optim import OptimizerConfig
from contrastive.training.pretrain import ADAMW, Pretrain, feature_width, prepare_projector
from contrastive.views import AsTheyAre


class PretrainPairs(Pretrain):
    """Train an encoder for each of two modalities so that the two parts of a pair agree.

    ``batch.inputs`` is ``(first, second)``, as :class:`contrastive.data.PairData` gives it. Each modality goes through
    its own views, encoder and projector; the objective is called with both embeddings as two views, and is one for two
    modalities: ``InfoNCE(negatives="cross")``, ``SogCLR(negatives="cross")``, ``ISogCLR(negatives="cross")``.

    Seeds, schedules, checkpoints and resuming are those of :class:`Pretrain`. The first encoder is exported to
    ``encoder/`` and evaluated; the second is exported to ``second_encoder/``.

    Args:
        encoder: Maps inputs of the first modality to features ``(B, encoder.dim)``.
        second_encoder: Maps those of the second to ``(B, second_encoder.dim)``. A module of its own.
        objective: The loss of both embeddings; ``None`` takes CLIP's: cross-modal InfoNCE that learns its temperature.
        projector: Stands between encoder and objective while training. ``None`` takes
            :class:`~contrastive.encoders.ProjectionHead`.
        second_projector: Likewise, ending in the same width.
        views: ``views(inputs, generator=...) -> [one tensor]``, to vary the first modality. ``None`` leaves it
            as it is.
        second_views: Likewise for the second.
        optimizer: Optimiser, learning rate and schedule.
        cache_chunk_size: See :class:`Pretrain`.
        use_labels: See :class:`Pretrain`.
        seed: Seed of the randomness in training steps.

    Raises:
        TypeError: If an encoder has no integer ``dim``.
        ValueError: If both encoders are one module, the projectors end in different widths, views are not one, or an
            argument lies outside its range.
    """

    _parts = (
        "encoder",
        "second_encoder",
        "objective",
        "projector",
        "second_projector",
        "views",
        "second_views",
    )

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        second_encoder: nn.Module,
        objective: Objective | None = None,
        projector: nn.Module | None = None,
        second_projector: nn.Module | None = None,
        views: nn.Module | None = None,
        second_views: nn.Module | None = None,
        optimizer: OptimizerConfig = ADAMW,
        cache_chunk_size: int = 0,
        use_labels: bool = False,
        seed: int = 0,
    ) -> None:
        if encoder is second_encoder:
            raise InvalidValue(
                "encoder and second_encoder of PretrainPairs are one module; give each modality its own."
            )
        if objective is None:
            objective = InfoNCE(0.07, "cross", learnable_temperature=True)
        views, second_views = views or AsTheyAre(), second_views or AsTheyAre()
        for name, module in (("views", views), ("second_views", second_views)):
            if getattr(module, "num_views", 1) != 1:
                raise InvalidValue(
                    f"{name} of PretrainPairs makes {module.num_views} views; the other modality is the second view, "
                    "so set views=1."
                )
        super().__init__(
            encoder,
            objective,
            projector,
            views,
            optimizer,
            cache_chunk_size=cache_chunk_size,
            use_labels=use_labels,
            seed=seed,
        )
        width = feature_width("second_encoder of PretrainPairs", second_encoder)
        self.second_encoder, self.second_views = second_encoder, second_views
        self.second_projector = prepare_projector(
            second_projector if second_projector is not None else ProjectionHead(), width
        )
        widths = [
            getattr(e if isinstance(p, nn.Identity) else p, "dim", None)
            for e, p in ((encoder, self.projector), (second_encoder, self.second_projector))
        ]
        if None not in widths and widths[0] != widths[1]:
            raise InvalidValue(
                f"the projectors of PretrainPairs end in widths {widths[0]} and {widths[1]}; give both one width, so "
                "that embeddings can be compared."
            )
        super()._record_arguments(
            optimizer=dataclasses.asdict(optimizer),
            cache_chunk_size=cache_chunk_size,
            use_labels=use_labels,
            seed=seed,
        )

    @property
    def further_encoders(self) -> dict[str, nn.Module]:
        """The encoder of the second modality."""
        return {"second_encoder": self.second_encoder}

    def make_views(self, inputs: Any, seed: int) -> list[Tensor]:
        """One view of each modality of ``inputs``, ``(first, second)``.

        Raises:
            ValueError: If the inputs are not two.
        """
        if not isinstance(inputs, (tuple, list)) or len(inputs) != 2:
            raise InvalidValue(
                "PretrainPairs needs batches whose inputs are (first, second); use PairData, or data that give them."
            )
        generator = torch.Generator(device=inputs[0].device).manual_seed(seed)
        with torch.no_grad():
            first: list[Tensor] = self.views(inputs[0], generator=generator)
            second: list[Tensor] = self.second_views(inputs[1], generator=generator)
        return first + second

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        """Embed one view of each modality, each by its own network."""
        first, second = views
        return self._embed([first], self.encoder, self.projector) + self._embed(
            [second], self.second_encoder, self.second_projector
        )

    def _record_arguments(self, **plain: object) -> None:
        """Wait until the second network is there as well."""
