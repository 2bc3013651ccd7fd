"""Judging frozen features: probes, neighbours, few-shot episodes, retrieval, clustering and geometry."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from contrastive.evaluation.clustering import clustering_metrics
from contrastive.evaluation.features import Features, extract_features
from contrastive.evaluation.few_shot import (
    CLASSIFIERS,
    TRANSDUCTIVE,
    FewShot,
    FewShotComparison,
    compare_few_shot,
    confidence_interval,
    few_shot,
    sample_episodes,
)
from contrastive.evaluation.geometry import describe_geometry
from contrastive.evaluation.knn import knn_classify
from contrastive.evaluation.metrics import Classification
from contrastive.evaluation.opta import OpTA
from contrastive.evaluation.probe import ProbeResult, label_efficiency, linear_probe
from contrastive.evaluation.results import format_result, write_result
from contrastive.evaluation.retrieval import Retrieval, retrieval_metrics

if TYPE_CHECKING:
    from contrastive.evaluation.callbacks import OnlineKNN, OnlineLinearProbe
    from contrastive.evaluation.run import evaluate_run, knn_run, load_run_encoder, probe_run
    from contrastive.evaluation.run_few_shot import few_shot_run

__all__ = [
    "CLASSIFIERS",
    "TRANSDUCTIVE",
    "Classification",
    "Features",
    "FewShot",
    "FewShotComparison",
    "OnlineKNN",
    "OnlineLinearProbe",
    "OpTA",
    "ProbeResult",
    "Retrieval",
    "clustering_metrics",
    "compare_few_shot",
    "confidence_interval",
    "describe_geometry",
    "evaluate_run",
    "extract_features",
    "few_shot",
    "few_shot_run",
    "format_result",
    "knn_classify",
    "knn_run",
    "label_efficiency",
    "linear_probe",
    "load_run_encoder",
    "probe_run",
    "retrieval_metrics",
    "sample_episodes",
    "write_result",
]

# Imported on first use: these need Lightning, and whoever only measures features should not wait for it.
_LATER = {
    "OnlineKNN": "contrastive.evaluation.callbacks",
    "OnlineLinearProbe": "contrastive.evaluation.callbacks",
    "evaluate_run": "contrastive.evaluation.run",
    "few_shot_run": "contrastive.evaluation.run_few_shot",
    "knn_run": "contrastive.evaluation.run",
    "load_run_encoder": "contrastive.evaluation.run",
    "probe_run": "contrastive.evaluation.run",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(
            f"module 'contrastive.evaluation' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(import_module(_LATER[name]), name)
