"""Final clusters: pseudo-labels that the network confuses are merged."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import normalize

from skdeepcluster._clustering import merging as merging_module
from skdeepcluster._clustering.merging import (
    ChangedImages,
    MergeInput,
    cluster_points,
    diffusion_map,
    merge,
    sample_merge_rows,
)
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


def merge_images(features, maps, clusterer, pixels=None, changed=None, seed=0):
    """Merge images whose features do not change, unless `changed` has others."""
    images = MergeInput(
        rows=np.arange(len(features)),
        diffusion_maps=maps,
        pixels=pixels,
        changed=ChangedImages(
            np.arange(len(features)), features if changed is None else changed
        ),
    )
    return merge(features, features, images, clusterer, seed)


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


def test_all_pseudo_labels_that_are_never_confused_are_kept():
    """A selection among their eigenvectors would put some at the same point."""
    coordinates = diffusion_map(one_hot(np.arange(9)), 3)
    assert_allclose(coordinates @ coordinates.T, np.eye(9), atol=1e-5)


# Merging.


@pytest.mark.parametrize("partner", PARTNERS)
def test_confused_pseudo_labels_are_merged(partner, clusterer):
    _, blobs = draw_blobs(CORNERS)
    clusterer = replace(clusterer, n_pseudo_labels=(4,))
    maps = [diffusion_map(confuse(blobs, partner), 2)]
    merged = merge_images(one_hot(blobs), maps, clusterer)
    pairs = np.minimum(blobs, np.array(partner)[blobs])
    assert adjusted_rand_score(pairs, merged.labels) == 1
    assert not merged.from_start
    assert merged.cut_scores is None


@pytest.mark.parametrize("seed", range(3))
def test_merge_is_the_best_of_many_runs(clusterer, seed):
    """A single run of k-means cuts some of the twenty noisy pairs in two."""
    pseudo_labels, rng = np.repeat(np.arange(40), 20), np.random.default_rng(0)
    features = one_hot(pseudo_labels)
    probabilities = 0.42 * features + 0.28 * features[:, np.arange(40) ^ 1]
    probabilities += 0.3 * rng.dirichlet(np.full(40, 0.05), 800).astype(np.float32)
    clusterer = replace(clusterer, n_clusters=20, n_pseudo_labels=(40,))
    maps = [diffusion_map(probabilities, 20)]
    labels = merge_images(features, maps, clusterer, seed=seed).labels
    assert adjusted_rand_score(pseudo_labels // 2, labels) == 1


@pytest.mark.parametrize("seed", range(3))
def test_pixels_decide_where_nothing_is_confused(clusterer, seed):
    """Nine clusters, three in each corner: their union is not arbitrary."""
    offsets = np.array([[0, 0], [0, 1.5], [1.5, 0]])
    corners = np.array(CORNERS[:3])
    centers = (corners[:, None] + offsets).reshape(-1, 2)
    pixels, blobs = draw_blobs(centers, seed=seed, std=0.05)
    # The network confuses no two clusters, and a change moves images of the pixels'
    # clusters but not of the network's.
    maps = [diffusion_map(one_hot(blobs), 3)]
    clusterer = replace(clusterer, n_clusters=3, n_pseudo_labels=(15,))
    labels = cluster_points(
        np.hstack([*maps, 0.1 * pixels / 9]).astype(np.float32), clusterer, seed
    )
    assert adjusted_rand_score(blobs // 3, labels) == 1


@pytest.mark.parametrize("seed", range(3))
def test_many_pseudo_labels_that_are_never_confused(clusterer, seed):
    """No restart finds the eight corners of 32 clusters that are equally far apart."""
    rng = np.random.default_rng(0)
    centers = 9 * np.eye(8)[:, None] + rng.normal(size=(4, 8))
    blobs = np.arange(640) % 32
    pixels = centers.reshape(32, 8)[blobs] + rng.normal(scale=0.05, size=(640, 8))
    points = np.hstack([diffusion_map(one_hot(blobs), 8), 0.1 * normalize(pixels)])
    clusterer = replace(clusterer, n_clusters=8, n_pseudo_labels=(40,))
    labels = cluster_points(points.astype(np.float32), clusterer, seed)
    assert adjusted_rand_score(blobs // 4, labels) == 1


def crossed_factors():
    """Return two factors, and pixels in which the first one dominates."""
    first, second = np.divmod(np.arange(400) % 4, 2)
    pixels = np.stack([5.0 * first, second], axis=1).astype(np.float32)
    rng = np.random.default_rng(0)
    return first, second, pixels + rng.normal(scale=0.1, size=(400, 2)).astype("f4")


def test_clusters_of_the_pixels_win_a_tie(clusterer):
    """Both factors survive a change of the images: the start is not made worse."""
    first, second, pixels = crossed_factors()
    maps = [diffusion_map(one_hot(second), 2)]
    merged = merge_images(one_hot(2 * first + second), maps, clusterer, pixels)
    assert merged.from_start
    assert adjusted_rand_score(first, merged.labels) == 1


def test_clusters_of_the_network_win_if_a_change_moves_those_of_the_pixels(clusterer):
    first, second, pixels = crossed_factors()
    features = one_hot(2 * first + second)
    shuffled = np.random.default_rng(0).permutation(first)
    changed = one_hot(2 * shuffled + second)
    maps = [diffusion_map(one_hot(second), 2)]
    merged = merge_images(features, maps, clusterer, pixels, changed)
    assert not merged.from_start
    assert adjusted_rand_score(second, merged.labels) == 1


@pytest.mark.parametrize("n_clusters", [2, 4])
def test_number_of_clusters_is_found(clusterer, n_clusters):
    """Eight pseudo-labels, of which the network confuses those of a cluster."""
    rng = np.random.default_rng(0)
    pseudo_labels = np.repeat(np.arange(8), 50)
    clusters = pseudo_labels * n_clusters // 8
    same = clusters[::50] == clusters[:, None]
    probabilities = same * rng.dirichlet(np.full(8, 0.3), 400)
    probabilities = 0.3 * one_hot(pseudo_labels) + 0.7 * probabilities
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    features = one_hot(pseudo_labels)
    # A change exchanges the pseudo-labels of a cluster.
    swapped = np.array([rng.choice(np.flatnonzero(row)) for row in same])
    clusterer = replace(
        clusterer, n_clusters=8, n_pseudo_labels=(8,), finds_n_clusters=True
    )
    maps = [diffusion_map(probabilities.astype(np.float32), 8)]
    merged = merge_images(features, maps, clusterer, changed=one_hot(swapped))
    assert merged.cut_scores.best == n_clusters
    assert adjusted_rand_score(clusters, merged.labels) == 1


@pytest.mark.parametrize(
    ("n", "n_clusters", "expected"),
    [(300, 10, 300), (100_000, 10, 20_000), (100_000, 1000, 50_000)],
)
def test_size_of_merge_sample_grows_with_clusters(n, n_clusters, expected):
    rows = sample_merge_rows(n, n_clusters, RandomStreams(0))
    assert_array_equal(rows, np.unique(rows))
    assert len(rows) == expected
