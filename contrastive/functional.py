"""The objectives as pure functions, for your own training loop."""

from contrastive.objectives.cacr import cacr
from contrastive.objectives.focal import focal_contrast
from contrastive.objectives.gated import gated_contrast
from contrastive.objectives.global_contrast import sogclr
from contrastive.objectives.groco import groco
from contrastive.objectives.hard import hard_info_nce
from contrastive.objectives.infonce import info_nce, queue_info_nce
from contrastive.objectives.sepclr import alignment, kernel_entropy, kernel_mutual_information, uniformity
from contrastive.objectives.sorting import soft_sort
from contrastive.objectives.supcon import sup_con

__all__ = [
    "alignment",
    "cacr",
    "focal_contrast",
    "gated_contrast",
    "groco",
    "hard_info_nce",
    "info_nce",
    "kernel_entropy",
    "kernel_mutual_information",
    "queue_info_nce",
    "soft_sort",
    "sogclr",
    "sup_con",
    "uniformity",
]
