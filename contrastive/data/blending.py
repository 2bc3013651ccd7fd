"""Background images, and target images that show something more: two sources blended into one data set.

The data of contrastive analysis (Louiset et al. 2024, arXiv 2402.11928): half of the images are backgrounds, dimmed;
the other half are backgrounds with an overlay, of which training is told nothing but that it is there. What overlay
it is, and what background, are the two factors that a method is to find in two different codes.
"""

import hashlib
import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from contrastive.arguments import checked
from contrastive.data.base import DataModule, Inputs, Known, add_to_digest
from contrastive.data.images import ImageStream, Source, Split
from contrastive.data.sources import open_source, stratified_split
from contrastive.errors import InvalidValue


@checked
def blend(backgrounds: Tensor, overlays: Tensor | None = None, weight: float = 0.5) -> Tensor:
    """``weight * background + (1 - weight) * overlay`` in [0, 1]; without overlays the dimmed backgrounds alone.

    Args:
        backgrounds: uint8 ``(N, C, H, W)``.
        overlays: uint8 ``(N, h, w)`` or ``(N, C or 1, h, w)``, not larger; black is added around them.
        weight: of the background.

    Returns:
        float32 ``(N, C, H, W)``, not rounded to 255 steps.

    Raises:
        ValueError: if shapes do not fit together.
    """
    images = backgrounds.float().mul_(weight)
    if overlays is None:
        return images.div_(255)
    overlays = overlays[:, None] if overlays.ndim == 3 else overlays
    if overlays.ndim != 4 or backgrounds.ndim != 4:
        raise InvalidValue(
            f"blend: overlays have shape {tuple(overlays.shape)} and backgrounds {tuple(backgrounds.shape)}; give "
            "images (N, C, H, W)."
        )
    height, width = (b - o for b, o in zip(backgrounds.shape[2:], overlays.shape[2:], strict=True))
    if len(overlays) != len(backgrounds) or min(height, width) < 0:
        raise InvalidValue(
            f"blend: overlays have shape {tuple(overlays.shape)} and backgrounds {tuple(backgrounds.shape)}; give one "
            "overlay for each background, not larger than it."
        )
    around = (width // 2, width - width // 2, height // 2, height - height // 2)
    return images.add_(F.pad(overlays.float().mul_(1 - weight), around)).div_(255)


class Factors(NamedTuple):
    """What there is to tell about the images of one split.

    Attributes:
        background: ``(N,)`` class of the background of each image.
        overlay: ``(N,)`` class of its overlay, -1 for background images.
    """

    background: Tensor
    overlay: Tensor


class BlendedData(DataModule):
    """Background images, and as many target images that show an overlay on a background.

    Of the images of ``background``, in every class alike, one half becomes background samples and the other is covered
    with images of ``overlay``, taken in random order as often as needed. Training and test set are blended from
    training and test set of both sources, so that they share neither. Labels are 0 for background samples and
    ``1 + class of the overlay`` for targets; :class:`contrastive.training.Separate` looks at whether they are 0.

    Args:
        background: ``"textures"``, which are generated, or any source of :class:`contrastive.data.ImageData`.
        overlay: ``"digits"``, or any source, read as grey images.
        root: folder that paths are relative to; for torchvision the folder of the data, by default ``data``.
        batch_size: images in a batch of one process.
        validation_fraction: part of the training images held out for validation, in every class alike.
        seed: seed of the blending, of the held-out part and of the order of training.
        size: height and width of the images, to which backgrounds are scaled.
        overlay_size: height and width that overlays are scaled to; black is added around them.
        background_weight: share of the background in a blended image; a background alone is dimmed by it.
        limit: use at most so many background images for training, and as many for testing; 0 uses all.
        download: let torchvision fetch a data set that is missing.

    Raises:
        ValueError: if an argument is out of its range, or a source has no labels or no test set.
    """

    @checked
    def __init__(
        self,
        # Dataset without its parameter: jsonargparse cannot build subclasses of Dataset[Any].
        background: str | Dataset = "textures",  # type: ignore[type-arg]
        overlay: str | Dataset = "digits",  # type: ignore[type-arg]
        root: str | None = None,
        batch_size: int = 256,
        validation_fraction: float = 0.1,
        seed: int = 0,
        size: int = 32,
        overlay_size: int = 24,
        background_weight: float = 0.5,
        limit: int = 0,
        download: bool = False,
    ) -> None:
        super().__init__(
            batch_size,
            validation_fraction,
            seed,
            num_workers=0,
            imbalance=1.0,
            imbalance_profile="exponential",
            labels_per_class=None,
        )
        if not 1 <= overlay_size <= size:
            raise InvalidValue(
                f"BlendedData(size={size}, overlay_size={overlay_size}): set an overlay of at least one pixel that is "
                "not larger than the images."
            )
        if not 0 < background_weight < 1:
            raise InvalidValue(
                f"BlendedData(background_weight={background_weight}): set a share above 0 and below 1."
            )
        if limit < 0:
            raise InvalidValue(f"BlendedData(limit={limit}): set a number of images, or 0 for all.")
        self.background, self.overlay, self.root = background, overlay, root
        self.size, self.overlay_size, self.background_weight = size, overlay_size, background_weight
        self.limit, self.download = limit, download

    @property
    def source(self) -> str:
        """What the data are, in a few words."""
        names = (x if isinstance(x, str) else type(x).__name__ for x in (self.overlay, self.background))
        return " on ".join(names)

    def prepare_data(self) -> None:
        """Fetch missing data, if asked to; called by Lightning in one process."""
        if self.download:
            for source in (self.background, self.overlay):
                open_source(source, None, self.root, download=True)

    @cached_property
    def opened(self) -> tuple[Source, Source]:
        """The sources of backgrounds and of overlays; no image is read yet."""
        backgrounds, overlays = (
            open_source(source, None, self.root, download=False) for source in (self.background, self.overlay)
        )
        for argument, source in (("background", backgrounds), ("overlay", overlays)):
            if source.test is None or source.train.labels is None:
                raise InvalidValue(
                    f"BlendedData({argument}={getattr(self, argument)!r}): the source has "
                    f"{'no test set' if source.test is None else 'no labels'}; choose a labelled source with a "
                    "training and a test set."
                )
        return backgrounds, overlays

    @cached_property
    def _plan(self) -> tuple["_Blend", "_Blend"]:
        """Which image of which source goes where, in the training and in the test set."""
        backgrounds, overlays = self.opened
        assert backgrounds.test is not None
        assert overlays.test is not None
        return (
            _Blend.draw(backgrounds.train, overlays.train, self.limit, 2 * self.seed),
            _Blend.draw(backgrounds.test, overlays.test, self.limit, 2 * self.seed + 1),
        )

    @property
    def factors(self) -> tuple[Factors, Factors]:
        """Classes of background and overlay in the training and in the test set."""
        train, test = self._plan
        return train.factors, test.factors

    @property
    def background_names(self) -> list[str]:
        """Names of the classes of backgrounds."""
        return self.opened[0].train.class_names

    @cached_property
    def known(self) -> Known:
        """Labels, sizes and class names."""
        train, test = (factors.overlay + 1 for factors in self.factors)
        names = ["background", *self.opened[1].train.class_names]
        return Known(len(train), train, len(test), test, names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of every image."""
        return 3, self.size, self.size

    @cached_property
    def inputs(self) -> Inputs:
        """Blended images of both splits, float32; the fingerprint covers class names, classes and pixels."""
        backgrounds, overlays = self.opened
        digest = hashlib.sha256(repr((self.class_names, self.background_names)).encode())
        inputs = []
        for plan, background, overlay in zip(
            self._plan, (backgrounds.train, backgrounds.test), (overlays.train, overlays.test), strict=True
        ):
            assert background is not None
            assert overlay is not None
            images = plan.images(background, overlay, self.size, self.overlay_size, self.background_weight)
            inputs.append(images)
            for tensor in (*plan.factors, images):
                add_to_digest(digest, tensor)
        return Inputs(inputs[0], inputs[1], digest.hexdigest()[:16])


class _Blend(NamedTuple):
    """Which rows of the two sources make up a split: background samples and targets, mixed."""

    background_rows: Tensor
    overlay_rows: Tensor  # -1 for background samples
    factors: Factors

    @classmethod
    def draw(cls, backgrounds: Split, overlays: Split, limit: int, seed: int) -> "_Blend":
        assert backgrounds.labels is not None
        assert overlays.labels is not None
        labels = backgrounds.labels
        used = torch.arange(len(labels))
        if 0 < limit < len(labels):
            used = stratified_split(len(labels), labels, limit / len(labels), seed)[1]
        plain, covered = (used[part] for part in stratified_split(len(used), labels[used], 0.5, seed))
        # Each covered background gets an overlay at random; all overlays are used equally often, give or take one.
        generator = torch.Generator().manual_seed(seed)
        times = math.ceil(len(covered) / len(overlays.labels))
        orders = [torch.randperm(len(overlays.labels), generator=generator) for _ in range(times)]
        drawn = torch.cat(orders)[: len(covered)]
        # Mixed, so that batches in order hold both kinds as well.
        order = torch.randperm(len(used), generator=generator)
        background_rows = torch.cat([plain, covered])[order]
        overlay_rows = torch.cat([torch.full((len(plain),), -1), drawn])[order]
        shown = torch.where(overlay_rows < 0, -1, overlays.labels[overlay_rows])
        return cls(background_rows, overlay_rows, Factors(labels[background_rows], shown))

    def images(
        self, backgrounds: Split, overlays: Split, size: int, overlay_size: int, weight: float
    ) -> Tensor:
        below = ImageStream(backgrounds.images, 3, (size, size))
        above = ImageStream(overlays.images, 1, (overlay_size, overlay_size))
        images = torch.empty(len(self.background_rows), 3, size, size)
        for rows in torch.arange(len(images)).split(1024):  # type: ignore[no-untyped-call]
            photos, targets = below[self.background_rows[rows]], self.overlay_rows[rows] >= 0
            images[rows] = blend(photos, None, weight)
            if targets.any():
                covers = above[self.overlay_rows[rows[targets]]]
                images[rows[targets]] = blend(photos[targets], covers, weight)
        return images
