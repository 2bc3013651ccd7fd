"""The objectives as pure functions, for your own training loop."""

from contrastive.objectives.focal import focal_contrast
from contrastive.objectives.groco import groco
from contrastive.objectives.gated import gated_contrast
from contrastive.objectives.hard import hard_info_nce
from contrastive.objectives.infonce import info_nce, queue_info_nce
from contrastive.objectives.sorting import soft_sort
from contrastive.objectives.supcon import sup_con

__all__ = [
    "focal_contrast",
    "gated_contrast",
    "groco",
    "hard_info_nce",
    "info_nce",
    "queue_info_nce",
    "soft_sort",
    "sup_con",
]
