"""Clusters of the features of a network that is not trained."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs, make_moons
from sklearn.kernel_approximation import RBFSampler
from sklearn.metrics import normalized_mutual_info_score

from skdeepcluster import DeepClusterEstimator


def fit_rows(rows, n_clusters, seed=0, **params):
    """Cluster rows that are embeddings already."""
    model = DeepClusterEstimator(
        n_clusters, fine_tune=False, random_state=seed, **params
    )
    return model.fit(rows.astype(np.float32))


def draw_directions(n, d, n_classes, noise, seed):
    """Return rows of unit length around random directions, and their classes."""
    rng = np.random.default_rng(seed)
    classes = np.arange(n) % n_classes
    directions = rng.normal(size=(n_classes, d)) / np.sqrt(d)
    rows = directions[classes] + noise / np.sqrt(d) * rng.normal(size=(n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), classes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "kind", ["separated", "overlapping", "unbalanced", "directions"]
)
def test_clusters_are_not_worse_than_those_of_kmeans(kind, seed):
    if kind == "directions":
        rows, classes = draw_directions(600, 64, 6, 1.5, seed)
    else:
        sizes = [300, 150, 80, 40, 30] if kind == "unbalanced" else [120] * 5
        spread = 3.0 if kind == "overlapping" else 1.0
        rows, classes = make_blobs(
            sizes, n_features=16, cluster_std=spread, random_state=seed
        )
    n_clusters = len(np.unique(classes))
    start = KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(rows)
    model = fit_rows(rows, n_clusters, seed)
    floor = normalized_mutual_info_score(classes, start) - 0.02
    assert normalized_mutual_info_score(classes, model.labels_) >= floor


def draw_moons():
    """Return features of two crescents, between which a plane is, and their classes."""
    points, classes = make_moons(500, noise=0.05, random_state=0)
    return RBFSampler(gamma=4, n_components=64, random_state=0).fit_transform(
        points
    ), classes


def test_graph_finds_clusters_that_are_not_round():
    rows, classes = draw_moons()
    model = fit_rows(rows, 2)
    assert normalized_mutual_info_score(classes, model.labels_) > 0.9
    assert model.recipe_["clusters_from"] == "neighbors"


def test_without_neighbors_the_features_are_clustered():
    rows, classes = draw_moons()
    model = fit_rows(rows, 2, n_neighbors=None)
    assert normalized_mutual_info_score(classes, model.labels_) < 0.5
    assert model.recipe_["clusters_from"] == "features"


def test_number_of_clusters_is_found():
    rows, _ = draw_directions(900, 64, 6, 0.7, 0)
    model = fit_rows(rows, "auto")
    assert model.n_clusters_ == 6
    assert model.cut_scores_["n_clusters"].min() >= 2
