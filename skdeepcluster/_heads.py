"""What predicts pseudo-labels: fresh linear layers, or the clusters' own centres."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from ._distributed import ALONE, Ranks
from ._empty_clusters import cluster_sizes, cluster_sums, means_of, unit


class Head(nn.Module):
    """Points -> logits of the pseudo-labels, a classifier for each number of them."""

    def __init__(self, classifiers: Iterable[nn.Linear]):
        super().__init__()
        self.classifiers = nn.ModuleList(classifiers)

    def forward(self, points: torch.Tensor) -> list[torch.Tensor]:
        """Return logits (n, k) for each k."""
        return [classifier(points) for classifier in self.classifiers]


def count_labels(labels: np.ndarray) -> list[int]:
    """Return how many there are in each row of pseudo-labels, int (h, n)."""
    return [int(row.max()) + 1 for row in labels]


def fresh_head(size: int, counts: list[int], generator: torch.Generator) -> Head:
    """Return the linear head of one round: N(0, 0.01) weights, zero bias."""
    classifiers = [nn.utils.skip_init(nn.Linear, size, k) for k in counts]
    with torch.no_grad():
        for classifier in classifiers:
            classifier.weight.normal_(0, 0.01, generator=generator)
            classifier.bias.zero_()
    return Head(classifiers)


def centroid_head(
    points: np.ndarray,
    labels: np.ndarray,
    counts: list[int],
    temperature: float,
    ranks: Ranks = ALONE,
) -> Head:
    """Return the head whose weights are the clusters' centres, and stay so.

    DeepCluster-v2 (Caron et al., NeurIPS 2020).

    Parameters
    ----------
    points : ndarray of shape (n, d), float32
        At unit length; those that this process holds.
    labels : ndarray of shape (h, n), int
        Their pseudo-labels, for each of h numbers of clusters.
    counts : list of h ints
        The numbers of clusters.
    temperature : float
        Cosines are divided by it.
    ranks : Ranks
        The processes that hold points.
    """
    classifiers = []
    for row, k in zip(labels, counts, strict=True):
        nowhere = np.zeros((k, points.shape[1]), np.float32)
        sums = ranks.sum(cluster_sums(points, row, k))
        means = means_of(sums, cluster_sizes(row, k, ranks), nowhere)
        centers = unit(means) / temperature
        classifier = nn.utils.skip_init(nn.Linear, points.shape[1], k, bias=False)
        classifier.weight = nn.Parameter(
            torch.from_numpy(centers.astype(np.float32)), requires_grad=False
        )
        classifiers.append(classifier)
    return Head(classifiers)


def predict_labels(head: Head, points: np.ndarray) -> np.ndarray:
    """Return the probability of each pseudo-label, float32 (n, sum of all k)."""
    with torch.inference_mode():
        logits = head.cpu()(torch.from_numpy(points))
        return torch.cat([part.softmax(dim=1) for part in logits], dim=1).numpy()
