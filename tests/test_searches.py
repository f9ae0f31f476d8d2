"""Searches on a Dask or Ray cluster find the results of searches in one process."""

import os
import pickle

import joblib
import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from sklearn.model_selection import GridSearchCV

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._utils.threads import limit_threads


def search(X, n_clusters=(3, 5), **parameters):
    """Search the number of clusters with two short fits for each, without a refit."""
    parameters = {
        "max_iter": 1,
        "epochs_per_iter": 1,
        "random_state": 0,
        "n_jobs": 1,
        "backbone": "mlp",
        **parameters,
    }
    return GridSearchCV(
        DeepClusterEstimator(**parameters),
        {"n_clusters": n_clusters},
        cv=2,
        refit=False,
        error_score="raise",
    ).fit(X)


def assert_same_results(actual, expected):
    assert actual.best_params_ == expected.best_params_
    for name in ("split0_test_score", "split1_test_score", "mean_test_score"):
        assert_allclose(actual.cv_results_[name], expected.cv_results_[name], rtol=1e-6)


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[0][:140].astype(np.float64)


@pytest.fixture(scope="module")
def paths(images, tmp_path_factory):
    """Long paths of the images, so that sending them is noticed."""
    folder = tmp_path_factory.mktemp("name" * 25)
    paths = [str(folder / f"{row:03d}.png") for row in range(len(images))]
    for path, image in zip(paths, images.astype(np.uint8), strict=True):
        Image.fromarray(image).save(path)
    return paths


@pytest.fixture(scope="module")
def image_search(images):
    """The search in this process."""
    return search(images)


@pytest.fixture(scope="module")
def path_search(paths):
    """The search in this process, with decoding in two workers."""
    return search(paths, n_clusters=[5], n_jobs=2)


@pytest.fixture(scope="module")
def client():
    """Client of a Dask cluster of two worker processes with one thread each."""
    distributed = pytest.importorskip("distributed")
    with (
        # Otherwise Dask drops copies of data that no task waits for.
        pytest.importorskip("dask").config.set(
            {"distributed.scheduler.active-memory-manager.start": False}
        ),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def count_bytes_to_workers(client):
    """Return the number of bytes that all tasks and their arguments have taken."""
    connections = client.cluster.scheduler.stream_comms.values()
    return sum(connection.byte_count for connection in connections)


def count_copies_between_workers(client, n_bytes):
    """Return the number of transfers of at least so many bytes between workers."""

    def list_sizes(dask_worker):
        return [transfer["total"] for transfer in dask_worker.transfer_outgoing_log]

    sizes_of_workers = client.run(list_sizes).values()
    return sum(size >= n_bytes for sizes in sizes_of_workers for size in sizes)


def test_dask_scatters_arrays_once(client, images, image_search):
    n_bytes = count_bytes_to_workers(client)
    with joblib.parallel_config("dask", scatter=[images]):
        n_copies = count_copies_between_workers(client, images.nbytes)
        actual = search(images)
        actual_with_components = search(images, n_components=5)
        # Each worker holds the images from the start, and keeps them from fit to fit.
        assert count_copies_between_workers(client, images.nbytes) == n_copies
    # Eight fits would send the images eight times.
    assert count_bytes_to_workers(client) - n_bytes < 8 * images.nbytes / 4
    assert_same_results(actual, image_search)
    assert_same_results(actual_with_components, search(images, n_components=5))


def test_dask_scatters_paths_once(client, paths, path_search):
    # Workers of Dask are daemons, which may not start processes that decode.
    n_bytes = count_bytes_to_workers(client)
    with joblib.parallel_config("dask", scatter=[paths]):
        actual = search(paths, n_clusters=[5], n_jobs=2)
    # Two fits would send the paths twice.
    assert count_bytes_to_workers(client) - n_bytes < 2 * len(pickle.dumps(paths))
    assert_same_results(actual, path_search)


def test_threads_of_a_fit_are_not_workers_of_the_cluster(client):
    # A nested function is sent by value.
    def count_threads():
        import faiss
        import torch

        with limit_threads(3):
            return torch.get_num_threads(), faiss.omp_get_max_threads()

    with joblib.parallel_config("dask"):
        assert joblib.effective_n_jobs(3) == 2
        assert count_threads() == (3, 3)
        assert joblib.Parallel()([joblib.delayed(count_threads)()]) == [(3, 3)]


@pytest.fixture(scope="module")
def ray():
    """Ray with two workers, as a backend of joblib."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.util.joblib").register_ray()
    ray.init(num_cpus=2, include_dashboard=False)
    yield ray
    ray.shutdown()


def test_ray_searches_arrays_and_paths(ray, images, paths, image_search, path_search):
    with joblib.parallel_config("ray", n_jobs=-1):
        process_ids = joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(2))
        assert os.getpid() not in process_ids
        actual = search(images)
        actual_of_paths = search(paths, n_clusters=[5], n_jobs=2)
    assert_same_results(actual, image_search)
    assert_same_results(actual_of_paths, path_search)
