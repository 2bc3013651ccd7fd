"""Sequential recommendation with contrastive objectives: data, encoders, losses, ranking and floors.

Public names are imported on first use, so that ``import recsys`` itself costs next to nothing.
"""

from importlib import import_module
from typing import Any

# Public name -> module that defines it. A module may be named by itself.
_PUBLIC = {
    "Sequences": "recsys.data",
    "SequenceData": "recsys.data",
    "Split": "recsys.data",
    "Cases": "recsys.data",
    "augment": "recsys.augment",
    "SASRec": "recsys.encoders",
    "GRU4Rec": "recsys.encoders",
    "FullSoftmax": "recsys.objectives",
    "SampledSoftmax": "recsys.objectives",
    "BPR": "recsys.objectives",
    "BCE": "recsys.objectives",
    "CL4SRec": "recsys.objectives",
    "DuoRec": "recsys.objectives",
    "MCLRec": "recsys.mclrec",
    "SRACL": "recsys.sracl",
    "RecommenderData": "recsys.training",
    "SequentialRecommender": "recsys.training",
    "rank_targets": "recsys.metrics",
    "ranking_metrics": "recsys.metrics",
    "Popularity": "recsys.floors",
    "MarkovChain": "recsys.floors",
    "ItemKNN": "recsys.floors",
    "TransitionMixture": "recsys.mixture",
    "Recommender": "recsys.recommend",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'recsys' has no attribute {name!r}; public names: {', '.join(__all__)}")
    module = import_module(_PUBLIC[name])
    return module if module.__name__ == f"recsys.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
