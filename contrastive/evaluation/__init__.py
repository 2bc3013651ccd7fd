"""Judging frozen features: probes, nearest neighbours, few-shot episodes, retrieval, clustering and geometry."""

from contrastive.evaluation.features import Features, extract_features
from contrastive.evaluation.geometry import describe_geometry
from contrastive.evaluation.knn import knn_classify
from contrastive.evaluation.metrics import Classification
from contrastive.evaluation.probe import ProbeResult, label_efficiency, linear_probe

__all__ = [
    "Classification",
    "Features",
    "ProbeResult",
    "describe_geometry",
    "extract_features",
    "knn_classify",
    "label_efficiency",
    "linear_probe",
]
