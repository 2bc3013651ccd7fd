"""Random views of image batches, computed on whole tensors.

A batch of images goes in, a list of float32 batches comes out, one per view::

    views = SimCLRViews(size=32)
    first, second = views(images, generator=torch.Generator().manual_seed(0))

:class:`SimCLRViews` and :class:`MultiCrop` are lists of :class:`Recipe`, one per view; :class:`Views` takes
any other list. :class:`AsTheyAre` gives the inputs back. :class:`PatchMask` hides parts of finished views.
"""

from contrastive.views.masking import PatchMask
from contrastive.views.recipe import Recipe
from contrastive.views.views import AsTheyAre, MultiCrop, SimCLRViews, Views

__all__ = ["AsTheyAre", "MultiCrop", "PatchMask", "Recipe", "SimCLRViews", "Views"]
