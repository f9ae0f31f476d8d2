"""What predicts pseudo-labels: fresh linear layers, or the clusters' own centers."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from .._clustering.empty_clusters import (
    cluster_sizes,
    cluster_sums,
    means_from_sums,
    scale_to_unit_length,
)
from .._utils.distributed import SINGLE_PROCESS, Processes


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


def linear_head(size: int, counts: list[int], generator: torch.Generator) -> Head:
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
    processes: Processes = SINGLE_PROCESS,
) -> Head:
    """Return the head whose weights are the clusters' centers, and stay so.

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
    processes : Ranks
        The processes that hold points.
    """
    classifiers = []
    for row, k in zip(labels, counts, strict=True):
        nowhere = np.zeros((k, points.shape[1]), np.float32)
        sums = processes.sum(cluster_sums(points, row, k))
        means = means_from_sums(sums, cluster_sizes(row, k, processes), nowhere)
        centers = scale_to_unit_length(means) / temperature
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
