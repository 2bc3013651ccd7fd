"""Training: the LightningModules, their optimisers, and the callbacks that watch over a run."""

from contrastive.training.callbacks import ExportEncoder, RunPlan, SaveOnStop, run_folder
from contrastive.training.monitor import CollapseMonitor
from contrastive.training.optim import LARS, OptimizerConfig
from contrastive.training.pretrain import Pretrain

__all__ = [
    "LARS",
    "CollapseMonitor",
    "ExportEncoder",
    "OptimizerConfig",
    "Pretrain",
    "RunPlan",
    "SaveOnStop",
    "run_folder",
]
