"""Searches on a cluster: what Dask's workers find is what this process finds."""

import joblib
import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from sklearn.model_selection import GridSearchCV

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._device import limited_threads

GRID = {"n_clusters": [3, 5]}
N_FITS = 4  # two of each


def search(X, **parameters):
    """Search over short fits; the best one is not fitted again."""
    short = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0, "n_jobs": 1}
    model = DeepClusterEstimator(**{**short, **parameters})
    return GridSearchCV(model, GRID, cv=2, refit=False, error_score="raise").fit(X)


def assert_same(found, expected):
    assert found.best_params_ == expected.best_params_
    for name in ("split0_test_score", "split1_test_score", "mean_test_score"):
        assert_allclose(found.cv_results_[name], expected.cv_results_[name], rtol=1e-6)


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[0][:200]


@pytest.fixture(scope="module")
def paths(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    found = [str(folder / f"{row:03d}.png") for row in range(len(images))]
    for path, image in zip(found, images, strict=True):
        Image.fromarray(image).save(path)
    return found


@pytest.fixture(scope="module")
def client():
    """Of two worker processes, with a thread each."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def bytes_to_workers(client):
    """Return how much the scheduler has sent: tasks, and what came with them."""
    return sum(c.byte_count for c in client.cluster.scheduler.stream_comms.values())


def copied_between_workers(client, n_bytes):
    """Return how often at least so many bytes went from a worker to another."""

    def sizes(dask_worker):
        return [sent["total"] for sent in dask_worker.transfer_outgoing_log]

    return sum(size >= n_bytes for one in client.run(sizes).values() for size in one)


def test_arrays_under_dask_scattered_once(client, images):
    before = bytes_to_workers(client), copied_between_workers(client, images.nbytes)
    with joblib.parallel_config("dask", scatter=[images]):
        found = search(images)
        again = search(images, n_components=5)  # other parameters, the same images

        def held(dask_worker):
            return [np.shape(value) for value in dask_worker.data.values()]

        # One reached a worker from here, and the other from that worker.
        assert list(client.run(held).values()) == [[images.shape], [images.shape]]
    after = bytes_to_workers(client), copied_between_workers(client, images.nbytes)
    assert after[0] - before[0] < 2 * N_FITS * images.nbytes
    assert after[1] - before[1] == 1
    assert_same(found, search(images))
    assert_same(again, search(images, n_components=5))
