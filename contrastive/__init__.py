"""Contrastive representation learning: encoders, views, objectives and one streaming similarity engine.

Public names are imported on first use, so that ``import contrastive`` itself costs next to nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> module that defines it. A module may be named by itself.
_PUBLIC = {
    "BECLR": "contrastive.objectives",
    "CACR": "contrastive.objectives",
    "InfoNCE": "contrastive.objectives",
    "SepCLR": "contrastive.objectives",
    "SupCon": "contrastive.objectives",
    "SupervisedSepCLR": "contrastive.objectives",
    "HardInfoNCE": "contrastive.objectives",
    "Hydra": "contrastive.objectives",
    "NNCLR": "contrastive.objectives",
    "GroCo": "contrastive.objectives",
    "SogCLR": "contrastive.objectives",
    "ISogCLR": "contrastive.objectives",
    "CoreTuning": "contrastive.objectives",
    "CrossEntropy": "contrastive.objectives",
    "Objective": "contrastive.objectives",
    "stream_rows": "contrastive.similarity",
    "gather": "contrastive.similarity",
    "ConvEncoder": "contrastive.encoders",
    "TimmEncoder": "contrastive.encoders",
    "TorchvisionEncoder": "contrastive.encoders",
    "MLPEncoder": "contrastive.encoders",
    "TextEncoder": "contrastive.encoders",
    "ProjectionHead": "contrastive.encoders",
    "MomentumEncoder": "contrastive.encoders",
    "save_encoder": "contrastive.encoders",
    "export_encoder": "contrastive.encoders",
    "load_encoder": "contrastive.encoders",
    "SimCLRViews": "contrastive.views",
    "MultiCrop": "contrastive.views",
    "ImageData": "contrastive.data",
    "BlendedData": "contrastive.data",
    "TensorData": "contrastive.data",
    "PairData": "contrastive.data",
    "check_data": "contrastive.data",
    "Pretrain": "contrastive.training",
    "PretrainPairs": "contrastive.training",
    "FineTune": "contrastive.training",
    "load_classifier": "contrastive.training",
    "Separate": "contrastive.training",
    "linear_probe": "contrastive.evaluation",
    "knn_classify": "contrastive.evaluation",
    "extract_features": "contrastive.evaluation",
    "functional": "contrastive.functional",
    "register": "contrastive.building",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(
            f"module 'contrastive' has no attribute {name!r}; public names: {', '.join(__all__)}"
        )
    module = import_module(_PUBLIC[name])
    return module if module.__name__ == f"contrastive.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
