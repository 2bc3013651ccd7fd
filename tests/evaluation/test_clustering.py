import pytest
import torch

from contrastive.evaluation import Features, clustering_metrics


def test_reference(reference):
    expected = reference("metrics-probe")
    found = clustering_metrics(Features(expected.test, expected.test_labels), expected.cluster_labels)
    names = {"cluster_accuracy": "cluster_acc"}
    assert set(found) == {"nmi", "ami", "ari", "cluster_accuracy", "purity", "silhouette"}
    for name, value in found.items():
        assert value == pytest.approx(float(expected[names.get(name, name)]), abs=1e-6)


def test_by_hand():
    """Clusters {a a b} and {b}: a and b match one sample more than chance, three of four are pure."""
    features = Features(torch.randn(4, 2), torch.tensor([5, 5, 9, 9]))
    found = clustering_metrics(features, torch.tensor([0, 0, 0, 1]))
    assert found["cluster_accuracy"] == found["purity"] == 3 / 4


def test_k_means_finds_separate_classes(blobs):
    found = clustering_metrics(Features(*blobs[0]))
    assert found["cluster_accuracy"] > 0.9
    assert found == clustering_metrics(Features(*blobs[0]))


def test_clusters_of_another_length_are_refused(blobs):
    with pytest.raises(ValueError, match="one integer a sample"):
        clustering_metrics(Features(*blobs[0]), torch.arange(3))
