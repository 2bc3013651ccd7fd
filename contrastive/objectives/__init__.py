"""Objectives: rules that turn the embeddings of several views into a loss. One file a paper."""

from contrastive.objectives.base import Objective
from contrastive.objectives.beclr import BECLR
from contrastive.objectives.cacr import CACR
from contrastive.objectives.core_tuning import CoreTuning
from contrastive.objectives.cross_entropy import CrossEntropy
from contrastive.objectives.groco import GroCo
from contrastive.objectives.hard import HardInfoNCE
from contrastive.objectives.hydra import Hydra
from contrastive.objectives.infonce import InfoNCE
from contrastive.objectives.isogclr import ISogCLR, SogCLR
from contrastive.objectives.nnclr import NNCLR
from contrastive.objectives.sepclr import SepCLR, SupervisedSepCLR
from contrastive.objectives.supcon import SupCon

__all__ = [
    "BECLR",
    "CACR",
    "NNCLR",
    "CoreTuning",
    "CrossEntropy",
    "GroCo",
    "HardInfoNCE",
    "Hydra",
    "ISogCLR",
    "InfoNCE",
    "Objective",
    "SepCLR",
    "SogCLR",
    "SupCon",
    "SupervisedSepCLR",
]
