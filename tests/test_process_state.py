"""State of the process: fits neither depend on it nor change it."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_info
from torch import nn

from skdeepcluster import DeepClusterEstimator, FaissKMeans
from skdeepcluster.evaluation import fine_tune, linear_probe
from skdeepcluster.inspection import maximal_images, top_images
from skdeepcluster.io import write_embeddings

X = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
Y = np.arange(40) % 2
SPLIT = {"X_train": X, "y_train": Y, "X_test": X, "y_test": Y}


def make_estimator(random_state=0, **params):
    quick = {"n_clusters": 2, "max_iter": 1, "epochs_per_iter": 1}
    return DeepClusterEstimator(**quick | params, random_state=random_state)


class Dropout(nn.Module):
    """A backbone that draws from torch's default generator."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5))

    def forward(self, x):
        return self.layers(x)


def fit_bits(random_state=0, **params):
    model = make_estimator(random_state, **params).fit(X)
    return model.labels_.tobytes(), model.transform(X).tobytes()


def read_shared_state():
    counts = [library["num_threads"] for library in threadpool_info()]
    return torch.get_rng_state().tolist(), torch.get_num_threads(), counts


@contextlib.contextmanager
def restored(read, write, value):
    previous = read()
    write(value)
    try:
        yield
    finally:
        write(previous)


STATES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "errstate": partial(np.errstate, all="raise"),
    "dtype": partial(
        restored, torch.get_default_dtype, torch.set_default_dtype, torch.float64
    ),
    "device": partial(torch.device, "meta"),
    "deterministic": partial(
        restored,
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
        True,
    ),
}


def run_everything(folder):
    """Return the results of the public functions that compute."""
    folder.mkdir()
    model = make_estimator(precision="bfloat16").fit(X)
    model.save(folder / "model")
    model = DeepClusterEstimator.load(folder / "model")
    write_embeddings(model, X, folder / "embeddings.npy")
    table, _ = fine_tune(model, **SPLIT, n_epochs=1, random_state=0)
    return [
        model.labels_,
        model.transform(X),
        model.predict(X),
        model.predict_proba(X),
        model.score(X),
        np.load(folder / "embeddings.npy"),
        str(table),
        str(linear_probe(model, **SPLIT)),
        maximal_images(model, "conv1", [0], n_steps=2, random_state=0),
        str(top_images(model, X, "conv1", [0], n_images=2)),
        FaissKMeans(3, random_state=0).fit(X.reshape(40, -1)).cluster_centers_,
    ]


@pytest.fixture(scope="module")
def expected_results(tmp_path_factory):
    return run_everything(tmp_path_factory.mktemp("state") / "plain")


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_results_do_not_depend_on_state(state, expected_results, tmp_path):
    with state():
        results = run_everything(tmp_path / "results")
    for result, expected in zip(results, expected_results, strict=True):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_inference_tensors_are_images(dtype):
    values = X.astype(dtype)
    with torch.inference_mode():
        tensors = torch.from_numpy(values) + 0
    expected = make_estimator().fit(values)
    model = make_estimator().fit(tensors)
    np.testing.assert_array_equal(model.transform(tensors), expected.transform(values))


def test_warnings_name_the_line_of_the_caller():
    with pytest.warns(UserWarning, match="had no effect") as caught:
        make_estimator(fine_tune=False, momentum=0.5).fit(X.reshape(40, -1))
    assert {warning.filename for warning in caught} == {__file__}


def test_callbacks_train_in_any_state():
    def train(history, fitted):
        layer = nn.Linear(2, 1)
        layer(torch.ones(3, 2)).sum().backward()
        gradients.append(layer.weight.grad)

    gradients = []
    with torch.inference_mode():
        make_estimator(callbacks=train).fit(X)
    assert gradients[0].tolist() == [[3, 3]]


@pytest.mark.filterwarnings("ignore:The network is no better than at its start")
@pytest.mark.parametrize("backbone", ["auto", Dropout()], ids=["auto", "dropout"])
def test_fits_in_threads_have_the_bits_of_fits_alone(backbone):
    params = [
        {"random_state": seed, "n_jobs": n_jobs, "backbone": backbone}
        for seed, n_jobs in [(0, 1), (1, 2)]
    ]
    expected = [fit_bits(**p) for p in params]
    before = read_shared_state()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda p: fit_bits(**p), params)) == expected
    assert read_shared_state() == before


def test_prediction_does_not_wait_for_a_fit():
    model = make_estimator(n_jobs=1).fit(X)
    is_inside, may_end = threading.Event(), threading.Event()

    def augment(images):
        is_inside.set()
        may_end.wait(30)
        return images

    with ThreadPoolExecutor(2) as pool:
        fit = pool.submit(make_estimator(n_jobs=2, augment=augment).fit, X)
        is_inside.wait(30)
        try:
            pool.submit(model.predict, X).result(20)
            assert not fit.done()
        finally:
            may_end.set()
        fit.result(30)


@pytest.mark.parametrize("n_jobs", [None, 1])
def test_callback_waits_for_a_fit_in_another_thread(n_jobs):
    def fit_in_thread(history, fitted):
        torch.rand(3)
        with ThreadPoolExecutor(1) as pool:
            inner.append(pool.submit(fit_bits, 1, n_jobs=n_jobs).result(30))

    inner = []
    before = read_shared_state()
    bits = fit_bits(n_jobs=n_jobs, callbacks=fit_in_thread)
    assert bits == fit_bits(n_jobs=n_jobs)
    assert inner == [fit_bits(1, n_jobs=n_jobs)]
    assert read_shared_state() == before


def test_search_in_threads():
    grid = {"n_clusters": [2, 3]}
    search = GridSearchCV(make_estimator(n_jobs=1), grid, cv=2, refit=False)
    expected = search.fit(X).cv_results_["mean_test_score"]
    with joblib.parallel_config("threading"):
        search = clone(search).set_params(n_jobs=2).fit(X)
    assert search.cv_results_["mean_test_score"].tolist() == expected.tolist()


FORK = """
import os, time
import numpy as np, torch
from skdeepcluster import DeepClusterEstimator, FaissKMeans

X = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
rows = np.random.default_rng(0).normal(size=(20_000, 16)).astype(np.float32)
model = DeepClusterEstimator(2, max_iter=1, epochs_per_iter=1, n_jobs=1).fit(X)
model.set_params(n_jobs=None)
kmeans = FaissKMeans(8, max_iter=5, random_state=0).fit(rows)
torch.ones(600, 600) @ torch.ones(600, 600)
assert torch.get_num_threads() == 2
child = os.fork()
if child == 0:
    # On more threads, each call would wait for threads that only the parent has.
    assert (model.predict(X) == model.labels_).all()
    assert (kmeans.predict(rows) == kmeans.labels_).all()
    assert (model.set_params(n_jobs=2).predict(X) == model.labels_).all()
    os._exit(0)
for _ in range(900):
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        raise SystemExit(status)
    time.sleep(0.05)
os.kill(child, 9)
raise SystemExit("The forked process hangs.")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_process_works_on_one_thread():
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, "-c", FORK], env=environment, capture_output=True, timeout=100
    )
    assert result.returncode == 0, result.stderr


def predict_into(queue, model):
    queue.put(model.predict(X).tolist())


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs fork"
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_process_that_is_forked_during_a_fit_predicts():
    context = multiprocessing.get_context("fork")
    model = make_estimator().fit(X)
    results = []

    def predict_in_fork(history, fitted):
        queue = context.Queue()
        process = context.Process(target=predict_into, args=(queue, model))
        process.start()
        results.append(queue.get(timeout=30))
        process.join(30)

    make_estimator(callbacks=predict_in_fork).fit(X)
    assert results == [model.labels_.tolist()]
