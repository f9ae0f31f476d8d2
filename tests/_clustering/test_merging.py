"""Final clusters: pseudo-labels that the network confuses are merged."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from skdeepcluster._clustering import merging as merging_module
from skdeepcluster._clustering.merging import (
    LinearAssigner,
    NearestCenterAssigner,
    diffusion_map,
    fit_assigner,
    mean_embeddings,
    sample_merge_rows,
)
from skdeepcluster._utils.distributed import Sharded
from skdeepcluster._utils.random import RandomStreams

CORNERS = [[0, 0], [0, 9], [9, 0], [9, 9]]
# The partner of each blob, for two ways to pair the four blobs.
PARTNERS = [[1, 0, 3, 2], [3, 2, 1, 0]]


def one_hot(labels):
    """Return probabilities that are 1 for the pseudo-label of each row."""
    return np.eye(labels.max() + 1, dtype=np.float32)[labels]


def confuse(blobs, partner):
    """Return probabilities of a head that confuses each blob with its partner."""
    probabilities = one_hot(blobs)
    return 0.6 * probabilities + 0.4 * probabilities[:, partner]


def draw_blobs(centers, seed=0, std=0.3):
    points, blobs = make_blobs(
        400, centers=np.array(centers, float), cluster_std=std, random_state=seed
    )
    return points.astype(np.float32), blobs


def cluster_features(clusterer, features):
    return clusterer.cluster_features(Sharded.whole(features), seed=0)


# Diffusion maps.


def test_indirectly_confused_images_are_close():
    """0 is confused with 1, and 1 with 2: a walk leads from 0 to 2, but not to 3."""
    probabilities = np.eye(4, dtype=np.float32)
    for i, j in ([0, 1], [1, 2]):
        probabilities[i, j] = probabilities[j, i] = 0.3
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    coordinates = diffusion_map(probabilities, 2)
    assert coordinates[0] @ coordinates[2] > 0.5
    assert coordinates[0] @ coordinates[3] < 1e-3


@pytest.mark.parametrize("k", [1, 3, 40, 300])
def test_diffusion_map_has_unit_rows_and_bounded_width(k):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(k, 0.1), 500).astype(np.float32)
    coordinates = diffusion_map(probabilities, 10)
    assert coordinates.shape == (500, min(k, 13))
    assert coordinates.dtype == np.float32
    assert_allclose(np.linalg.norm(coordinates, axis=1), 1, rtol=1e-4)
    assert diffusion_map(probabilities, 1000).shape[1] <= 100


def test_sampled_eigenvectors_give_the_same_map(monkeypatch):
    """Similarities are compared, since the signs of eigenvectors are arbitrary."""
    rng = np.random.default_rng(0)
    # Six distinct rows of probabilities of 60 pseudo-labels.
    distinct = rng.dirichlet(np.full(60, 0.1), 6)
    probabilities = distinct[rng.integers(0, 6, 500)].astype(np.float32)
    exact = diffusion_map(probabilities, 5)
    monkeypatch.setattr(merging_module, "DENSE_LABELS", 50)
    sampled = diffusion_map(probabilities, 5)
    assert_allclose(sampled @ sampled.T, exact @ exact.T, atol=1e-3)


def test_diffusion_map_is_finite_with_unpredicted_pseudo_labels():
    probabilities = np.zeros((50, 3), np.float32)
    probabilities[:, 1] = 1
    assert np.isfinite(diffusion_map(probabilities, 2)).all()


# Merging.


@pytest.mark.parametrize("partner", PARTNERS)
def test_confused_pseudo_labels_are_merged(partner, clusterer):
    points, blobs = draw_blobs(CORNERS)
    clusterer = replace(clusterer, n_pseudo_labels=(4,), n_neighbors=None)
    assigner = fit_assigner(
        cluster_features(clusterer, points),
        Sharded.whole(one_hot(blobs)),
        np.arange(400),
        [diffusion_map(confuse(blobs, partner), 2)],
        clusterer,
        seed=0,
    )
    assert assigner.weights.shape == (4, 2)
    labels = assigner.predict(one_hot(blobs))
    pairs = np.minimum(blobs, np.array(partner)[blobs])
    assert adjusted_rand_score(pairs, labels) == 1


@pytest.mark.parametrize("seed", range(3))
def test_merge_is_the_best_of_many_runs(clusterer, seed):
    """A single run of k-means cuts some of the twenty noisy pairs in two."""
    pseudo_labels, rng = np.repeat(np.arange(40), 20), np.random.default_rng(0)
    features = one_hot(pseudo_labels)
    probabilities = 0.42 * features + 0.28 * features[:, np.arange(40) ^ 1]
    probabilities += 0.3 * rng.dirichlet(np.full(40, 0.05), 800).astype(np.float32)
    clusterer = replace(clusterer, n_clusters=20, n_pseudo_labels=(40,))
    assigner = fit_assigner(
        cluster_features(clusterer, features),
        Sharded.whole(features),
        np.arange(800),
        [diffusion_map(probabilities, 20)],
        clusterer,
        seed=seed,
    )
    labels = assigner.predict(features)
    assert adjusted_rand_score(pseudo_labels // 2, labels) == 1


def test_merge_of_a_sample_assigns_all_rows(clusterer):
    points, blobs = draw_blobs(CORNERS)
    clusterer = replace(clusterer, n_pseudo_labels=(4,))
    sample = np.arange(0, 400, 4)
    assigner = fit_assigner(
        cluster_features(clusterer, points),
        Sharded.whole(one_hot(blobs)),
        sample,
        [diffusion_map(confuse(blobs[sample], PARTNERS[0]), 2)],
        clusterer,
        seed=0,
    )
    labels = assigner.predict(one_hot(blobs))
    pairs = np.minimum(blobs, np.array(PARTNERS[0])[blobs])
    assert adjusted_rand_score(pairs, labels) == 1


def test_single_k_adds_a_row_of_each_cluster_to_the_sample(clusterer):
    points, _ = draw_blobs(CORNERS)
    single = replace(clusterer, n_clusters=5, n_pseudo_labels=(5,))
    result = cluster_features(single, points)
    sample = np.flatnonzero(result.labels == 0)
    assigner = fit_assigner(result, Sharded.whole(points), sample, [], single, seed=0)
    assert_array_equal(np.unique(assigner.predict(points)), np.arange(5))


def test_single_k_without_graph_keeps_kmeans_clusters(clusterer):
    """As in the paper, the clusters of the last round are final."""
    points, _ = draw_blobs(CORNERS, std=3)
    single = replace(clusterer, n_pseudo_labels=(2,), n_neighbors=None)
    result = cluster_features(single, points)
    assigner = fit_assigner(
        result, Sharded.whole(points), np.arange(400), [], single, seed=0
    )
    assert isinstance(assigner, NearestCenterAssigner)
    assert_array_equal(assigner.centers, result.clusters[0].centers)
    assert_array_equal(assigner.predict(points), result.labels[0])


@pytest.mark.parametrize(
    ("n", "n_clusters", "expected"),
    [(300, 10, 300), (100_000, 10, 20_000), (100_000, 1000, 50_000)],
)
def test_size_of_merge_sample_grows_with_clusters(n, n_clusters, expected):
    rows = sample_merge_rows(n, n_clusters, RandomStreams(0))
    assert_array_equal(rows, np.unique(rows))
    assert len(rows) == expected


# The linear assigner.


@pytest.mark.parametrize("n_clusters", [1, 2, 3])
def test_linear_assigner_predicts_new_rows(n_clusters):
    points, blobs = draw_blobs(CORNERS[:n_clusters])
    assigner = LinearAssigner.fit(points, blobs)
    assert_array_equal(assigner.predict(points), blobs)
    new_points, new_blobs = draw_blobs(CORNERS[:n_clusters], seed=1)
    assert_array_equal(assigner.predict(new_points), new_blobs)
    assert assigner.predict(new_points).dtype == np.int32
    assert_array_equal(assigner.predict(new_points[:1]), new_blobs[:1])


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_linear_assigner_is_independent_of_scale_and_offset(scale):
    points, blobs = draw_blobs(CORNERS)
    assigner = LinearAssigner.fit(scale * (points + 50), blobs)
    assert_array_equal(assigner.predict(scale * (points + 50)), blobs)


def test_clusters_of_single_images_raise_no_warning():
    points = 9 * np.eye(30, dtype=np.float32)
    assigner = LinearAssigner.fit(points, np.arange(30, dtype=np.int32))
    assert_array_equal(assigner.predict(points), np.arange(30))


def test_tiny_cluster_inside_a_large_one_is_not_lost():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((500, 20)).astype(np.float32)
    labels = np.zeros(500, np.int32)
    labels[7] = 1
    predicted = LinearAssigner.fit(points, labels).predict(points)
    assert_array_equal(np.unique(predicted), [0, 1])


def test_inseparable_cluster_is_dropped_and_labels_stay_consecutive():
    points = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    labels = np.repeat([0, 1, 3], 20).astype(np.int32)
    # The rows of cluster 2 equal the rows of cluster 0.
    labels[:3] = 2
    predicted = LinearAssigner.fit(points, labels).predict(points)
    assert_array_equal(predicted, np.repeat([0, 1, 2], 20))


def test_mean_embeddings_are_means_of_clusters():
    features = np.arange(12, dtype=np.float32).reshape(6, 2)
    labels = np.array([0, 1, 0, 1, 1, 0])
    means = mean_embeddings(Sharded.whole(features), labels)
    assert_allclose(means, [features[labels == i].mean(axis=0) for i in (0, 1)])
