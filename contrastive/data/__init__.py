"""Images and feature vectors, in batches whose samples know their place in the data set."""

from typing import TYPE_CHECKING, Any

from contrastive.data.loader import Batch, Loader

if TYPE_CHECKING:
    from contrastive.data.blending import BlendedData, blend
    from contrastive.data.check import DataReport, check_data
    from contrastive.data.module import ImageData
    from contrastive.data.pairs import PairData
    from contrastive.data.tensors import TensorData

__all__ = [
    "Batch",
    "BlendedData",
    "DataReport",
    "ImageData",
    "Loader",
    "PairData",
    "TensorData",
    "blend",
    "check_data",
]

# Imported on first use, so that whoever needs only `Batch` does not wait for Lightning.
_LATER = {
    "BlendedData": "contrastive.data.blending",
    "blend": "contrastive.data.blending",
    "ImageData": "contrastive.data.module",
    "TensorData": "contrastive.data.tensors",
    "PairData": "contrastive.data.pairs",
    "DataReport": "contrastive.data.check",
    "check_data": "contrastive.data.check",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(
            f"module 'contrastive.data' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    from importlib import import_module

    return getattr(import_module(_LATER[name]), name)
