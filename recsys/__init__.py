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
    "SequentialRules": "recsys.floors",
    "ItemKNN": "recsys.floors",
    "TransitionMixture": "recsys.mixture",
    "rank_by_vectors": "recsys.metrics",
    "top_items": "recsys.metrics",
    "coverage": "recsys.metrics",
    "paired_bootstrap": "recsys.metrics",
    "metrics_by_length": "recsys.metrics",
    "metrics_by_popularity": "recsys.metrics",
    "RankingMetrics": "recsys.running_metrics",
    "RankingResult": "recsys.results",
    "read_results": "recsys.results",
    "write_results": "recsys.results",
    "format_results": "recsys.results",
    "evaluate_run_files": "recsys.run_files",
    "semantic": "recsys.semantic",
    "describe": "recsys.descriptions",
    "load_recbole": "recsys.official",
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
