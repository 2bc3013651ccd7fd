"""Training: the LightningModules, their optimisers, and the callbacks that watch over a run."""

from contrastive.training.bimodal import PretrainPairs
from contrastive.training.callbacks import ExportEncoder, RunPlan, SaveOnStop, run_folder
from contrastive.training.finetune import FineTune, load_classifier
from contrastive.training.monitor import CollapseMonitor
from contrastive.training.optim import LARS, OptimizerConfig
from contrastive.training.pretrain import Pretrain
from contrastive.training.separate import Separate

__all__ = [
    "LARS",
    "CollapseMonitor",
    "ExportEncoder",
    "FineTune",
    "OptimizerConfig",
    "Pretrain",
    "PretrainPairs",
    "RunPlan",
    "SaveOnStop",
    "Separate",
    "load_classifier",
    "run_folder",
]
