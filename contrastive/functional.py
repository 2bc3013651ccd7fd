"""The objectives as pure functions, for your own training loop."""

from contrastive.objectives.hard import hard_info_nce
from contrastive.objectives.infonce import info_nce, queue_info_nce
from contrastive.objectives.supcon import sup_con

__all__ = ["hard_info_nce", "info_nce", "queue_info_nce", "sup_con"]
