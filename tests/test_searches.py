"""Searches on a cluster find what searches in this process find."""

import os
import pickle

import joblib
import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from sklearn.model_selection import GridSearchCV

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._utils.device import limit_threads


def search(X, *, n_clusters=(3, 5), **parameters):
    """Search over short fits, two for each number, without a last one of the best."""
    short = {
        "max_iter": 1,
        "epochs_per_iter": 1,
        "random_state": 0,
        "n_jobs": 1,
        "backbone": "mlp",
    }
    model = DeepClusterEstimator(**{**short, **parameters})
    return GridSearchCV(
        model, {"n_clusters": n_clusters}, cv=2, refit=False, error_score="raise"
    ).fit(X)


def assert_same(found, expected):
    assert found.best_params_ == expected.best_params_
    for name in ("split0_test_score", "split1_test_score", "mean_test_score"):
        assert_allclose(found.cv_results_[name], expected.cv_results_[name], rtol=1e-6)


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[0][:140].astype(np.float64)


@pytest.fixture(scope="module")
def paths(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("name" * 25)
    found = [str(folder / f"{row:03d}.png") for row in range(len(images))]
    for path, image in zip(found, images.astype(np.uint8), strict=True):
        Image.fromarray(image).save(path)
    return found


@pytest.fixture(scope="module")
def client():
    """Of two worker processes, with a thread each, which keep what they were given."""
    distributed = pytest.importorskip("distributed")
    with (
        # Else Dask drops copies that nobody waits for, at some moment between two fits.
        pytest.importorskip("dask").config.set(
            {"distributed.scheduler.active-memory-manager.start": False}
        ),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def sent_to_workers(client):
    """Return how many bytes tasks have taken, with what they carry."""
    return sum(c.byte_count for c in client.cluster.scheduler.stream_comms.values())


def copies_between_workers(client, n_bytes):
    """Return how often one worker has sent another as many bytes."""

    def sizes(dask_worker):
        return [sent["total"] for sent in dask_worker.transfer_outgoing_log]

    return sum(size >= n_bytes for one in client.run(sizes).values() for size in one)


def test_arrays_are_scattered_once_and_searched_by_dask(client, images):
    sent = sent_to_workers(client)
    with joblib.parallel_config("dask", scatter=[images]):
        copies = copies_between_workers(client, images.nbytes)
        found = search(images)
        again = search(images, n_components=5)
        # Each worker has them from the start, and keeps them from fit to fit.
        assert copies_between_workers(client, images.nbytes) == copies
    assert sent_to_workers(client) - sent < 8 * images.nbytes / 4  # of 8 fits
    assert_same(found, search(images))
    assert_same(again, search(images, n_components=5))


def test_paths_are_scattered_once_and_decoded_by_dask(client, paths):
    """Workers of Dask are daemons, which may not start processes that decode."""
    sent = sent_to_workers(client)
    with joblib.parallel_config("dask", scatter=[paths]):
        found = search(paths, n_clusters=[5], n_jobs=2)
    assert sent_to_workers(client) - sent < 2 * len(pickle.dumps(paths))  # of 2 fits
    assert_same(found, search(paths, n_clusters=[5], n_jobs=2))


def test_threads_of_a_fit_are_not_the_workers_of_the_cluster(client):
    def threads():  # in here, so that it is sent by its code
        import faiss
        import torch

        with limit_threads(3):
            return torch.get_num_threads(), faiss.omp_get_max_threads()

    with joblib.parallel_config("dask"):
        assert joblib.effective_n_jobs(3) == 2
        assert threads() == (3, 3)
        assert joblib.Parallel()([joblib.delayed(threads)()]) == [(3, 3)]


@pytest.fixture(scope="module")
def ray():
    """Its backend of joblib, for two workers."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.util.joblib").register_ray()
    ray.init(num_cpus=2, include_dashboard=False)
    yield ray
    ray.shutdown()


def test_arrays_and_paths_are_searched_by_ray(ray, images, paths):
    with joblib.parallel_config("ray", n_jobs=-1):
        processes = joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(2))
        assert os.getpid() not in processes
        found, of_paths = search(images), search(paths, n_clusters=[5], n_jobs=2)
    assert_same(found, search(images))
    assert_same(of_paths, search(paths, n_clusters=[5], n_jobs=2))
