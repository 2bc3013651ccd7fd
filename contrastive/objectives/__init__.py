"""Objectives: rules that turn the embeddings of several views into a loss. One file a paper."""

from contrastive.objectives.base import Objective
from contrastive.objectives.core_tuning import CoreTuning
from contrastive.objectives.groco import GroCo
from contrastive.objectives.hard import HardInfoNCE
from contrastive.objectives.hydra import Hydra
from contrastive.objectives.infonce import InfoNCE
from contrastive.objectives.supcon import SupCon

__all__ = ["CoreTuning", "GroCo", "HardInfoNCE", "Hydra", "InfoNCE", "Objective", "SupCon"]
