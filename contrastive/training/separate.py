"""Training two encoders that separate what targets share with a background from what only they have."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from contrastive.arguments import checked
from contrastive.checks import check_whole, shown
from contrastive.data.labels import is_whole
from contrastive.encoders import ProjectionHead
from contrastive.errors import InvalidValue
from contrastive.objectives.base import Objective
from contrastive.objectives.sepclr import SepCLR
from contrastive.training.optim import OptimizerConfig
from contrastive.training.pretrain import ADAMW, Pretrain, feature_width, prepare_projector

if TYPE_CHECKING:
    from contrastive.data import Batch


class Separate(Pretrain):
    """Train a common and a salient encoder on background and target samples.

    Every view of a sample goes through both encoders. The objective gets ``(common embeddings, salient embeddings,
    is_target=...)`` and is told no more of the labels than whether they are the background's. Give each encoder narrow
    features (``out_dim=32``): what a space has no room for is what it can leave to the other.

    Seeds, schedules, checkpoints and resuming are those of :class:`Pretrain`, whose ``encoder`` is the salient one:
    it is exported to ``encoder/`` and evaluated. The common one is exported to ``common_encoder/``.

    Args:
        common_encoder: Maps inputs to features ``(B, common_encoder.dim)``, of what all samples vary in.
        salient_encoder: Likewise, of what only targets have. A module of its own.
        objective: The loss of both embeddings; ``None`` takes :class:`~contrastive.objectives.SepCLR`.
        common_projector: Stands between the common encoder and the objective while training. ``None`` takes a
            :class:`~contrastive.encoders.ProjectionHead` that is 128 wide and as wide as the encoder at its end.
        salient_projector: Likewise.
        views: ``views(inputs, generator=...) -> list of V tensors``. ``None`` takes
            :class:`~contrastive.views.SimCLRViews`.
        optimizer: Optimiser, learning rate and schedule.
        background: The class of background samples, by name. All others are targets. A number names the class that
            is called by it, or where classes have other names, the one at that place of ``class_names``.
        cache_chunk_size: See :class:`Pretrain`.
        seed: Seed of the randomness in training steps.

    Raises:
        TypeError: If an encoder has no integer ``dim``.
        ValueError: If both encoders are one module, or an argument lies outside its range.
    """

    _provides = frozenset({"is_target"})
    _parts = (
        "common_encoder",
        "salient_encoder",
        "objective",
        "common_projector",
        "salient_projector",
        "views",
    )

    @checked
    def __init__(
        self,
        common_encoder: nn.Module,
        salient_encoder: nn.Module,
        objective: Objective | None = None,
        common_projector: nn.Module | None = None,
        salient_projector: nn.Module | None = None,
        views: nn.Module | None = None,
        optimizer: OptimizerConfig = ADAMW,
        background: int | str = 0,
        cache_chunk_size: int = 0,
        seed: int = 0,
    ) -> None:
        if common_encoder is salient_encoder:
            raise InvalidValue(
                "common_encoder and salient_encoder of Separate are one module; give each space its own."
            )
        common_width = feature_width("common_encoder of Separate", common_encoder)
        salient_width = feature_width("salient_encoder of Separate", salient_encoder)
        if not isinstance(background, str):
            background = check_whole("Separate", "background", background, least=0)
        super().__init__(
            salient_encoder,
            objective if objective is not None else SepCLR(),
            salient_projector if salient_projector is not None else ProjectionHead(128, salient_width),
            views,
            optimizer,
            cache_chunk_size=cache_chunk_size,
            seed=seed,
        )
        self.common_encoder = common_encoder
        self.common_projector = prepare_projector(
            common_projector if common_projector is not None else ProjectionHead(128, common_width),
            common_width,
        )
        self.background = background
        self._background_label = background if isinstance(background, int) else None
        super()._record_arguments(
            optimizer=dataclasses.asdict(optimizer),
            background=background,
            cache_chunk_size=cache_chunk_size,
            seed=seed,
        )

    @property
    def salient_encoder(self) -> nn.Module:
        """The encoder of what only targets have."""
        return self.encoder

    @property
    def salient_projector(self) -> nn.Module:
        """What stands on it."""
        return self.projector

    @property
    def further_encoders(self) -> dict[str, nn.Module]:
        """The common encoder."""
        return {"common_encoder": self.common_encoder}

    def setup(self, stage: str) -> None:
        """Check that the data tell background from targets, and size the objective.

        Raises:
            ValueError: If they do not.
        """
        if "is_target" not in self.objective.requires:
            raise InvalidValue(
                f"objective {type(self.objective).__name__} does not take two codes and is_target; give Separate one "
                "that does, such as SepCLR, or train with Pretrain."
            )
        data = getattr(self.trainer, "datamodule", None)
        classes = getattr(data, "num_classes", None)
        if classes is not None and classes < 2:
            raise InvalidValue(
                f"Separate needs data with the labels of background and target samples, but these have {classes} "
                "classes; use BlendedData, or a source with a class for each."
            )
        self._background_label = self._label(list(getattr(data, "class_names", [])), classes)
        super().setup(stage)

    def _label(self, names: list[str], classes: int | None) -> int:
        """The label of background samples among classes of these names."""
        if str(self.background) in names and (isinstance(self.background, str) or all(map(is_whole, names))):
            return names.index(str(self.background))
        called_by_numbers = bool(names) and all(map(is_whole, names))
        beyond = classes is not None and isinstance(self.background, int) and self.background >= classes
        if isinstance(self.background, str) or called_by_numbers or beyond:
            numbers = f" and have the labels 0 to {classes - 1}" if classes else ""
            known = (
                f"the classes are {shown(', '.join(names))}"
                if names
                else f"the data name no classes{numbers}"
            )
            raise InvalidValue(
                f"background of Separate is {self.background!r}, but {known}; give the name of the class of background "
                "samples."
            )
        return self.background

    def describe(self) -> dict[str, str]:
        """Which class is the background and which are targets, with their samples, for the run plan."""
        data: Any = getattr(self.trainer, "datamodule", None)
        names, known = getattr(data, "class_names", []), getattr(data, "known", None)
        if not names or known is None or known.train_labels is None:
            return {}
        counts = known.train_labels[data.rows[0]].bincount(minlength=len(names)).tolist()
        said = [f"{name} ({count:,})" for name, count in zip(names, counts, strict=True)]
        background = said.pop(self._background_label or 0)
        more = f" and {len(said) - 8} more" if len(said) > 8 else ""
        return {"background": background, "targets": f"{', '.join(said[:8])}{more}"}

    def on_train_start(self) -> None:
        """Refuse batches that can hold no background beside a target.

        Raises:
            ValueError: If a batch has one sample.
        """
        if self.samples_per_loss == 1:
            raise InvalidValue(
                "Separate sets background samples against targets, and a batch of 1 has one of them; set a batch size "
                "of 2 or more, better of 64 and above."
            )
        super().on_train_start()

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        """Embed V views in both spaces; return V common embeddings, then V salient ones."""
        common = self._embed(views, self.common_encoder, self.common_projector)
        return common + super().embed(views)

    def _objective(self, embeddings: list[Tensor], batch: Batch) -> Tensor:
        if batch.labels is None:
            raise InvalidValue(
                "Separate needs to know which samples are background, but the batch has no labels; choose a labelled "
                "data source."
            )
        half = len(embeddings) // 2
        loss: Tensor = self.objective(
            embeddings[:half], embeddings[half:], is_target=batch.labels != self._background_label
        )
        return loss

    def _size_objective(self, num_samples: int, num_classes: int, dim: int | None) -> None:
        """Size the objective for both widths; ``dim`` is that of the salient embeddings."""
        bare = isinstance(self.common_projector, nn.Identity)
        common_dim = getattr(self.common_encoder if bare else self.common_projector, "dim", None)
        setup: Any = self.objective.setup  # which knows of two widths
        setup(num_samples, num_classes=num_classes, dim=common_dim, salient_dim=dim)
        self._sizes = {"num_samples": num_samples, "num_classes": num_classes, "dim": dim}

    def _record_arguments(self, **plain: object) -> None:
        """Wait until the common network is there as well."""
