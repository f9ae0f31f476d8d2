"""Heads that predict pseudo-labels: fresh linear layers, or the cluster centers."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from .._clustering.empty_clusters import scale_to_unit_length
from .._clustering.sums import cluster_sizes, cluster_sums, divide_sums
from .._utils.distributed import Sharded

# Standard deviation of the fresh weights (paper, section 3.4).
WEIGHT_SCALE = 0.01


class Head(nn.Module):
    """Linear classifiers of points, one for each clustering."""

    def __init__(self, classifiers: Iterable[nn.Linear]):
        super().__init__()
        self.classifiers = nn.ModuleList(classifiers)

    def forward(self, points: torch.Tensor) -> list[torch.Tensor]:
        """Return logits (n, k) for each number k of pseudo-labels."""
        return [classifier(points) for classifier in self.classifiers]


def count_labels(labels: np.ndarray) -> list[int]:
    """Return the number of pseudo-labels in each row of labels, int (h, n)."""
    return [int(row.max()) + 1 for row in labels]


def linear_head(n_inputs: int, counts: list[int], generator: torch.Generator) -> Head:
    """Return the head of one round: weights N(0, 0.01), zero bias (section 3.4)."""
    classifiers = [nn.utils.skip_init(nn.Linear, n_inputs, k) for k in counts]
    with torch.no_grad():
        for classifier in classifiers:
            classifier.weight.normal_(0, WEIGHT_SCALE, generator=generator)
            classifier.bias.zero_()
    return Head(classifiers)


def centroid_head(
    points: Sharded, labels: np.ndarray, counts: list[int], temperature: float
) -> Head:
    """Return the head that has the cluster centers as its fixed weights.

    DeepCluster-v2 (Caron et al., NeurIPS 2020) classifies by the centers themselves.

    Parameters
    ----------
    points : Sharded array of shape (n, d), float32
        Points of unit length.
    labels : ndarray of shape (h, n_local), int
        Pseudo-labels of the points of this process, for each of h clusterings.
    counts : list of h ints
        Number of pseudo-labels in each clustering.
    temperature : float
        Cosines are divided by the temperature.
    """
    processes, n_inputs = points.processes, points.values.shape[1]
    classifiers = []
    for row, k in zip(labels, counts, strict=True):
        sums = processes.sum(cluster_sums(points.values, row, k))
        sizes = cluster_sizes(row, k, processes)
        means = divide_sums(sums, sizes, np.zeros((k, n_inputs), np.float32))
        centers = scale_to_unit_length(means) / temperature
        classifier = nn.utils.skip_init(nn.Linear, n_inputs, k, bias=False)
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
