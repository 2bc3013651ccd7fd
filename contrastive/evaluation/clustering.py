"""How far clusters of the features agree with the classes."""

import torch
from torch import Tensor

from contrastive.arguments import checked
from contrastive.errors import InvalidValue
from contrastive.evaluation.features import Features


@checked
def clustering_metrics(
    features: Features, clusters: Tensor | None = None, *, seed: int = 0, max_silhouette: int = 5000
) -> dict[str, float]:
    """Compare clusters with the labels.

    Args:
        features: labelled features.
        clusters: ``(N,)`` integers, the cluster of each sample. None runs k-means (10 restarts) with as many
            clusters as there are classes.
        seed: of k-means and of the sample for the silhouette.
        max_silhouette: samples that the silhouette, which compares all pairs, looks at.

    Returns:
        ``nmi`` (arithmetic mean of the entropies), ``ami``, ``ari``, ``cluster_accuracy`` (best one-to-one
        matching of clusters and classes), ``purity``, and the ``silhouette`` of the classes themselves
        (Euclidean; absent with a single class). NMI is high for many small classes even at random: prefer
        AMI there.

    Raises:
        ValueError: unlabelled features, or clusters of another length.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn import metrics
    from sklearn.cluster import KMeans

    labels = features.require_labels("clustering_metrics")
    vectors = features.vectors.cpu().numpy()
    classes, truth = torch.unique(labels.cpu(), return_inverse=True)
    if clusters is None:
        found = KMeans(len(classes), n_init=10, random_state=seed).fit(vectors).labels_
        clusters = torch.from_numpy(found)
    if clusters.shape != labels.shape:
        raise InvalidValue(
            f"clustering_metrics: clusters have shape {tuple(clusters.shape)}; expected {tuple(labels.shape)}, "
            "one integer a sample"
        )
    groups, assigned = torch.unique(clusters.cpu().long(), return_inverse=True)
    counts = torch.zeros(len(groups), len(classes), dtype=torch.int64)
    counts.index_put_((assigned, truth), torch.ones_like(truth), accumulate=True)
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    y, c = truth.numpy(), assigned.numpy()
    result = {
        "nmi": float(metrics.normalized_mutual_info_score(y, c)),
        "ami": float(metrics.adjusted_mutual_info_score(y, c)),
        "ari": float(metrics.adjusted_rand_score(y, c)),
        "cluster_accuracy": int(counts[rows, columns].sum()) / len(features),
        "purity": int(counts.max(dim=1).values.sum()) / len(features),
    }
    sample = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[
        :max_silhouette
    ].numpy()
    if 1 < len(set(y[sample].tolist())) < len(sample):
        result["silhouette"] = float(metrics.silhouette_score(vectors[sample], y[sample]))
    return result
