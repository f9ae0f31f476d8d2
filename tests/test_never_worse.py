"""A default fit is never worse than k-means on the same rows or pixels."""

import numpy as np
import pytest
from scipy.ndimage import zoom
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import normalized_mutual_info_score

from skdeepcluster import DeepClusterEstimator

# NMI that a fit may be worse by: restarts of k-means differ as much.
TOLERANCE = 0.02


def blobs(rng, n_features, noise, weights=None, unit=False, n_classes=5, n=250):
    centers = rng.normal(size=(n_classes, n_features))
    classes = rng.choice(n_classes, n, p=weights)
    rows = centers[classes] + rng.normal(0, noise, (n, n_features))
    if unit:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), classes


def rings(rng):
    classes = np.arange(300) % 3
    radius = 1 + 1.5 * classes + rng.normal(0, 0.1, 300)
    angle = rng.uniform(0, 2 * np.pi, 300)
    rows = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return rows.astype(np.float32), classes


def templates(rng, noise):
    """Return smooth images, one for each class, with noise."""
    classes = np.arange(160) % 4
    images = zoom(rng.normal(size=(4, 3, 3)), (1, 4, 4))[classes]
    images = 128 + 40 * images + rng.normal(0, noise, (160, 12, 12))
    return images.clip(0, 255).astype(np.uint8), classes


def crossed_factors(rng):
    """Return images of 3 patterns with a square at 3 places; the pattern dominates."""
    patterns = [np.kron(p, np.ones((3, 3))) for p in (np.eye(3), 1 - np.eye(3))]
    patterns.append(np.kron(np.tri(3), np.ones((3, 3))))
    pattern, place = np.divmod(np.arange(180) % 9, 3)
    images = np.zeros((180, 12, 12))
    for image, p, column in zip(images, pattern, place, strict=True):
        image[:9, :9] = 200 * patterns[p]
        image[10:, 4 * column : 4 * column + 3] = 200
    images += rng.normal(0, 8, images.shape)
    return images.clip(0, 255).astype(np.uint8), pattern


SETS = {
    "separated blobs": lambda rng: blobs(rng, 8, 0.3),
    "overlapping blobs": lambda rng: blobs(rng, 16, 1.0),
    "noisy embeddings of unit length": lambda rng: blobs(rng, 64, 1.1, unit=True),
    "one large blob": lambda rng: blobs(rng, 16, 0.5, [0.6, 0.1, 0.1, 0.1, 0.1]),
    "rings": rings,
    "templates": lambda rng: templates(rng, noise=20),
    "crossed factors": crossed_factors,
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_clusters_are_at_least_as_good_as_those_of_kmeans(name, seed):
    X, classes = SETS[name](np.random.default_rng(seed))
    n_classes = len(np.unique(classes))
    kmeans = KMeans(n_classes, n_init=10, random_state=seed)
    start = kmeans.fit_predict(X.reshape(len(X), -1).astype(np.float32))
    model = DeepClusterEstimator(n_classes, max_iter=3, random_state=seed).fit(X)
    nmi_start = normalized_mutual_info_score(classes, start)
    nmi = normalized_mutual_info_score(classes, model.labels_)
    assert nmi >= nmi_start - TOLERANCE
    # The network finds what k-means cannot.
    if name == "rings":
        assert nmi > 0.7


@pytest.mark.parametrize("seed", range(2))
def test_number_of_separated_blobs_is_found(seed):
    X, classes = blobs(np.random.default_rng(seed), 16, 0.2, n_classes=4, n=300)
    model = DeepClusterEstimator("auto", max_iter=1, random_state=seed).fit(X)
    assert model.n_clusters_ == 4
    assert normalized_mutual_info_score(classes, model.labels_) > 0.999
    scores = model.cut_scores_
    assert scores["n_clusters"][0] == 2
    assert len(scores["score"]) == len(scores["gap"]) == len(scores["n_clusters"])
    # The estimator is edited like any other.
    assert (model.cut(n_clusters=4).labels_ == model.labels_).all()


def test_number_of_equal_images_is_one():
    for n in (2, 30):
        X = np.full((n, 8, 8), 7, np.uint8)
        model = DeepClusterEstimator("auto", max_iter=1, epochs_per_iter=1)
        with pytest.warns(ConvergenceWarning):
            model.fit(X)
        assert model.n_clusters_ == 1
        assert (model.predict_proba(X) == 1).all()


def test_given_number_has_no_curve():
    X, _ = blobs(np.random.default_rng(0), 4, 0.3, n=60)
    model = DeepClusterEstimator(3, max_iter=1, epochs_per_iter=1, random_state=0)
    assert model.fit(X).cut_scores_ is None
    with pytest.raises(ValueError, match="n_clusters"):
        DeepClusterEstimator("many").fit(X)
