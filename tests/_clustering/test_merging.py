"""Groups merge what the network confuses, and new images are told like old ones."""

import dataclasses

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
from skdeepcluster._utils.random import RandomStreams

CORNERS = [[0, 0], [0, 9], [9, 0], [9, 9]]
PARTNERS = [[1, 0, 3, 2], [3, 2, 1, 0]]


def confident(labels):
    """A head that is sure of the pseudo-labels it was trained on."""
    return np.eye(labels.max() + 1, dtype=np.float32)[labels]


def blobs(centers, seed=0, std=0.3):
    points, blob = make_blobs(
        400, centers=np.array(centers, float), cluster_std=std, random_state=seed
    )
    return points.astype(np.float32), blob


def merged(blob, partner):
    return np.minimum(blob, np.array(partner)[blob])


@pytest.mark.parametrize("partner", PARTNERS)
def test_confused_pseudo_labels_belong_together(partner, clusterer):
    """Four equal blobs, of which the head takes each for its partner."""
    points, blob = blobs(CORNERS)
    clusterer = dataclasses.replace(clusterer, n_pseudo_labels=(4,), n_neighbors=None)
    found = clusterer.cluster_features(points, seed=0)
    sure = confident(blob)
    view = diffusion_map(0.6 * sure + 0.4 * sure[:, partner], 2)
    groups = fit_assigner(
        found, confident(blob), np.arange(400), [view], clusterer, seed=0
    )
    assert groups.weights.shape == (4, 2)
    told = groups.predict(confident(blob))
    assert adjusted_rand_score(merged(blob, partner), told) == 1


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_those_of_the_best_of_many_runs(clusterer, seed):
    """Of twenty noisy pairs, a single run of k-means cuts some and merges others."""
    label, rng = np.repeat(np.arange(40), 20), np.random.default_rng(0)
    sure = confident(label)
    predicted = 0.42 * sure + 0.28 * sure[:, np.arange(40) ^ 1]
    predicted += 0.3 * rng.dirichlet(np.full(40, 0.05), 800).astype(np.float32)
    many = dataclasses.replace(clusterer, n_clusters=20, n_pseudo_labels=(40,))
    found = many.cluster_features(sure, seed=0)
    views = [diffusion_map(predicted, 20)]
    groups = fit_assigner(found, sure, np.arange(800), views, many, seed=seed)
    assert adjusted_rand_score(label // 2, groups.predict(sure)) == 1


def test_a_chain_of_confusion_is_closer_than_none():
    """0 is taken for 1 and 1 for 2, but nothing for 3: the walk leads from 0 to 2."""
    probabilities = np.eye(4, dtype=np.float32)
    for one, other in ([0, 1], [1, 2]):
        probabilities[one, other] = probabilities[other, one] = 0.3
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    similarity = np.prod(diffusion_map(probabilities, 2)[[[0, 0], [2, 3]]], axis=0)
    ends, apart = similarity.sum(axis=1)
    assert ends > 0.5
    assert apart < 1e-3


@pytest.mark.parametrize("k", [1, 3, 40, 300])
def test_diffusion_map_has_unit_rows_and_bounded_width(k):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(k, 0.1), 500).astype(np.float32)
    view = diffusion_map(probabilities, 10)
    assert view.shape == (500, min(k, 13))
    assert view.dtype == np.float32
    assert_allclose(np.linalg.norm(view, axis=1), 1, rtol=1e-4)
    assert diffusion_map(probabilities, 1000).shape[1] <= 100


def test_many_pseudo_labels_give_the_same_map(monkeypatch):
    """Similarities are compared: signs of eigenvectors mean nothing."""
    rng = np.random.default_rng(0)
    kinds = rng.dirichlet(np.full(60, 0.1), 6)  # of 60 pseudo-labels, by kind
    probabilities = kinds[rng.integers(0, 6, 500)].astype(np.float32)
    view = diffusion_map(probabilities, 5)
    monkeypatch.setattr(merging_module, "DENSE_LABELS", 50)
    sampled = diffusion_map(probabilities, 5)
    assert_allclose(sampled @ sampled.T, view @ view.T, atol=1e-3)


def test_pseudo_labels_that_nothing_is_predicted_as_do_no_harm():
    probabilities = np.zeros((50, 3), np.float32)
    probabilities[:, 1] = 1
    assert np.isfinite(diffusion_map(probabilities, 2)).all()


@pytest.mark.parametrize("n_groups", [1, 2, 3])
def test_linear_tells_new_rows_as_it_tells_old_ones(n_groups):
    points, blob = blobs(CORNERS[:n_groups])
    groups = LinearAssigner.fit(points, blob)
    assert_array_equal(groups.predict(points), blob)
    new, new_blob = blobs(CORNERS[:n_groups], seed=1)
    assert_array_equal(groups.predict(new), new_blob)
    assert groups.predict(new).dtype == np.int32
    assert_array_equal(groups.predict(new[:1]), new_blob[:1])


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_linear_does_not_mind_scale_and_offset(scale):
    points, blob = blobs(CORNERS)
    groups = LinearAssigner.fit(scale * (points + 50), blob)
    assert_array_equal(groups.predict(scale * (points + 50)), blob)


def test_groups_of_single_images_are_no_reason_for_a_warning():
    points = 9 * np.eye(30, dtype=np.float32)
    groups = LinearAssigner.fit(points, np.arange(30, dtype=np.int32))
    assert_array_equal(groups.predict(points), np.arange(30))


def test_a_tiny_group_inside_another_is_not_lost():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((500, 20)).astype(np.float32)
    labels = np.zeros(500, np.int32)
    labels[7] = 1
    assert_array_equal(
        np.unique(LinearAssigner.fit(points, labels).predict(points)), [0, 1]
    )


def test_a_group_that_nothing_tells_goes_and_numbers_stay_consecutive():
    points = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    labels = np.repeat([0, 1, 3], 20).astype(np.int32)
    labels[:3] = 2  # the same row as those of group 0
    told = LinearAssigner.fit(points, labels).predict(points)
    assert_array_equal(told, np.repeat([0, 1, 2], 20))


def test_a_sample_stands_for_all(clusterer):
    """Rows that are not in it are told as well."""
    points, blob = blobs(CORNERS)
    clusterer = dataclasses.replace(clusterer, n_pseudo_labels=(4,))
    found = clusterer.cluster_features(points, seed=0)
    rows = np.arange(0, 400, 4)
    sure = confident(blob[rows])
    view = diffusion_map(0.6 * sure + 0.4 * sure[:, PARTNERS[0]], 2)
    groups = fit_assigner(found, confident(blob), rows, [view], clusterer, seed=0)
    told = groups.predict(confident(blob))
    assert adjusted_rand_score(merged(blob, PARTNERS[0]), told) == 1


def test_with_a_single_k_every_group_has_a_row_in_the_sample(clusterer):
    points, _ = blobs(CORNERS)
    single = dataclasses.replace(clusterer, n_clusters=5, n_pseudo_labels=(5,))
    found = single.cluster_features(points, seed=0)
    rows = np.flatnonzero(found.labels == 0)
    groups = fit_assigner(found, points, rows, [], single, seed=0)
    assert_array_equal(np.unique(groups.predict(points)), np.arange(5))


def test_rows_that_stand_for_all_are_few_but_some_for_each_group():
    def count(n, k):
        rows = sample_merge_rows(n, k, RandomStreams(0))
        assert_array_equal(rows, np.unique(rows))
        return len(rows)

    assert count(300, 10) == 300
    assert count(100_000, 10) == 20_000
    assert count(100_000, 1000) == 50_000


def test_the_papers_single_k_is_the_kmeans_itself(clusterer):
    points, _ = blobs(CORNERS, std=3)
    single = dataclasses.replace(clusterer, n_pseudo_labels=(2,), n_neighbors=None)
    found = single.cluster_features(points, seed=0)
    groups = fit_assigner(found, points, np.arange(400), [], single, seed=0)
    assert isinstance(groups, NearestCenterAssigner)
    assert_array_equal(groups.centers, found.clusters[0].centers)
    assert_array_equal(groups.predict(points), found.labels[0])


def test_group_means():
    features = np.arange(12, dtype=np.float32).reshape(6, 2)
    means = mean_embeddings(features, np.array([0, 1, 0, 1, 1, 0]))
    assert_allclose(means, [features[[0, 2, 5]].mean(0), features[[1, 3, 4]].mean(0)])
