"""Views of a batch: several recipes applied to the same images, chunk by chunk."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contrastive.arguments import checked
from contrastive.errors import InvalidType, InvalidValue
from contrastive.views.recipe import Recipe
from contrastive.views.sampling import Scratch

# Pixels (of all channels) processed together on a CPU: small enough for the intermediate images to stay in
# cache, large enough to make the cost of calling an operation negligible.
_CHUNK = 128 * 3 * 32 * 32


class AsTheyAre(nn.Module):
    """One view: the inputs themselves, whatever they are."""

    num_views = 1

    def forward(self, inputs: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """Return ``[inputs]``."""
        return [inputs]


class Views(nn.Module):
    """Random views of a batch of images, one for each recipe.

    Called as ``views(images, generator=None)``: ``images`` is ``(B, C, H, W)``, uint8 or floating point in
    [0, 1], with one or three channels, on any device. Returns a list of :attr:`num_views` float32 tensors
    ``(B, C, size, size)`` in [0, 1]. Without gradients, in float32 also under autocast.

    All randomness comes from ``generator``, a :class:`torch.Generator` on the CPU or on the device of the
    images, or the global generator of that device when it is None. A generator in the same state gives
    the same views; one on the CPU draws the same crops and colours for every device.

    Args:
        recipes: one :class:`Recipe` for each view, in order.

    Raises:
        TypeError: called with something that is not a tensor of uint8 or floating point.
        ValueError: no recipes; called with another number of dimensions or channels, an empty image, or
            values outside [0, 1].
    """

    @checked
    def __init__(self, recipes: Sequence[Recipe]) -> None:
        super().__init__()
        if not recipes:
            raise InvalidValue("Views got no recipes: give one Recipe for each view, for example two")
        self.recipes = tuple(recipes)

    @property
    def num_views(self) -> int:
        """Length of the list that a call returns."""
        return len(self.recipes)

    @torch.no_grad()
    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """Return :attr:`num_views` tensors ``(B, C, size, size)``; see the class."""
        _check_images(images)
        batch, channels, height, width = images.shape
        sizes = [recipe.size for recipe in self.recipes]
        views = [torch.empty(batch, channels, size, size, device=images.device) for size in sizes]
        largest = channels * max(height * width, max(sizes) ** 2)
        chunk = max(1, _CHUNK // largest if images.device.type == "cpu" else batch)
        scratch = Scratch()
        with torch.autocast(images.device.type, enabled=False):
            parameters = [recipe.draw(images, generator) for recipe in self.recipes]
            for start in range(0, batch, chunk):
                rows = slice(start, start + chunk)
                floats = _to_float(images[rows], scratch)  # once for all views
                for recipe, drawn, out in zip(self.recipes, parameters, views, strict=True):
                    recipe.apply(floats, drawn.slice(rows), out[rows], scratch)
        return views

    def extra_repr(self) -> str:
        """Show the recipes when the module is printed."""
        return "\n".join(map(str, self.recipes))


class SimCLRViews(Views):
    """Views of the SimCLR recipe (arXiv 2002.05709), with the options of BYOL (arXiv 2006.07733).

    A probability of blur or solarisation is one number for all views or one for each view, so BYOL's
    asymmetric pair is ``SimCLRViews(224, blur=(1.0, 0.1), solarise=(0.0, 0.2))``. Handwriting wants
    ``flip=0.0, rotation=15.0, crop_scale=(0.5, 1.0)``.

    Args:
        size: side of the views in pixels.
        views: number of views.
        crop_scale: see :class:`Recipe`, as for all further arguments.
        flip: probability of mirroring left to right.
        rotation: largest angle in degrees.
        jitter: strengths of brightness, contrast, saturation and hue.
        jitter_probability: probability of the colour jitter.
        grey: probability of a grey image.
        blur: probability of a Gaussian blur, for all views or for each.
        solarise: probability of solarisation, for all views or for each.

    Raises:
        ValueError: an option is out of its range, or a sequence has not one number for each view.
    """

    @checked
    def __init__(
        self,
        size: int = 32,
        views: int = 2,
        *,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        flip: float = 0.5,
        rotation: float = 0.0,
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
        jitter_probability: float = 0.8,
        grey: float = 0.2,
        blur: float | Sequence[float] = 0.0,
        solarise: float | Sequence[float] = 0.0,
    ) -> None:
        if views < 1:
            raise InvalidValue(
                f"views of SimCLRViews is {views}: give the number of views, at least 1, usually 2"
            )
        blurs, solarises = _per_view("blur", blur, views), _per_view("solarise", solarise, views)
        super().__init__(
            [
                Recipe(size, crop_scale, flip, rotation, jitter, jitter_probability, grey, *own)
                for own in zip(blurs, solarises, strict=True)
            ]
        )


class MultiCrop(Views):
    """A few large crops followed by several small ones that show less of the image (SwAV, arXiv 2006.09882).

    Returns the global views first, then the local ones. The crop scales are those of SwAV. A probability of
    blur or solarisation is one number for all views or one for each, global views first.

    Args:
        global_size: side of the global views in pixels.
        local_size: side of the local views in pixels.
        global_views: number of global views.
        local_views: number of local views.
        global_scale: range of the area of a global crop, as a fraction of the image's.
        local_scale: the same for a local crop.
        flip: see :class:`Recipe`, as for all further arguments.
        rotation: largest angle in degrees.
        jitter: strengths of brightness, contrast, saturation and hue.
        jitter_probability: probability of the colour jitter.
        grey: probability of a grey image.
        blur: probability of a Gaussian blur, for all views or for each.
        solarise: probability of solarisation, for all views or for each.

    Raises:
        ValueError: an option is out of its range, or a sequence has not one number for each view.
    """

    @checked
    def __init__(
        self,
        global_size: int = 224,
        local_size: int = 96,
        *,
        global_views: int = 2,
        local_views: int = 6,
        global_scale: tuple[float, float] = (0.14, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.14),
        flip: float = 0.5,
        rotation: float = 0.0,
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
        jitter_probability: float = 0.8,
        grey: float = 0.2,
        blur: float | Sequence[float] = 0.5,
        solarise: float | Sequence[float] = 0.0,
    ) -> None:
        if global_views < 1 or local_views < 0:
            raise InvalidValue(
                f"MultiCrop got global_views={global_views} and local_views={local_views}: give at least "
                "1 global and at least 0 local views, usually 2 and 6"
            )
        crops = [(global_size, global_scale)] * global_views + [(local_size, local_scale)] * local_views
        blurs, solarises = _per_view("blur", blur, len(crops)), _per_view("solarise", solarise, len(crops))
        super().__init__(
            [
                Recipe(*crop, flip, rotation, jitter, jitter_probability, grey, *own)
                for crop, *own in zip(crops, blurs, solarises, strict=True)
            ]
        )


def _per_view(name: str, value: float | Sequence[float], views: int) -> list[float]:
    values = list(value) if isinstance(value, Sequence) else [value] * views
    if len(values) != views:
        raise InvalidValue(
            f"{name} lists {len(values)} probabilities for {views} views: give one for each view, "
            "or one number for all"
        )
    return values


def _to_float(images: Tensor, scratch: Scratch) -> Tensor:
    floats = scratch.take("images", tuple(images.shape), images.device).copy_(images)
    return floats.div_(255) if images.dtype == torch.uint8 else floats


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        given = f"a tensor of {images.dtype}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise InvalidType(
            f"images given to the views are {given}: expected a tensor of uint8, or of floating point in "
            "[0, 1]; convert them, for example with torchvision.transforms.v2.functional.pil_to_tensor"
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise InvalidValue(
            f"images given to the views have shape {tuple(images.shape)}: expected a batch (B, C, H, W) with "
            "C = 1 or 3 and H, W >= 1; add a missing dimension with unsqueeze, or move the channels with permute; for "
            "vectors and series give the module a views= of your own"
        )
    if images.is_floating_point() and images.numel():
        low, high = (bound.item() for bound in images.aminmax())
        if not (low >= 0 and high <= 1):
            raise InvalidValue(
                f"images given to the views have values from {low:.4g} to {high:.4g}: expected floating-point "
                "images in [0, 1]; divide by 255, or leave normalising to the encoder, which follows the views"
            )
