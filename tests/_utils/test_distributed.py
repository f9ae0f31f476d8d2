"""Several processes share one fit, and reach the result of a single process."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import normalized_mutual_info_score
from torch import nn
from torch.nn import functional

import skdeepcluster
from skdeepcluster import DeepClusterEstimator, io
from skdeepcluster._clustering.kmeans import KMeansOptions, kmeans
from skdeepcluster._clustering.whitening import principal_components
from skdeepcluster._fit import checkpoints as checkpoints_module
from skdeepcluster._fit import loop as loop_module
from skdeepcluster._training.augment import RandomCrop
from skdeepcluster._training.batch_norm import synchronized_batch_norm
from skdeepcluster._utils import allocation
from skdeepcluster._utils import distributed as distributed_module
from skdeepcluster._utils.distributed import (
    SINGLE_PROCESS,
    Meeting,
    Processes,
    Sharded,
    get_processes,
)

cloudpickle = pytest.importorskip("cloudpickle")
distributed = pytest.importorskip("torch.distributed")
if not distributed.is_available() or not distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

# Functions of this module are sent by value, since processes cannot import it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
START_METHOD = "forkserver" if hasattr(os, "fork") else "spawn"
CONTEXT = multiprocessing.get_context(START_METHOD)
if START_METHOD == "forkserver":
    # torch imports its compiler with the first optimizer, which takes seconds.
    CONTEXT.set_forkserver_preload(
        ["skdeepcluster", "torch.distributed.nn", "torch._dynamo"]
    )
# Seconds after which a process is said to hang.
TIMEOUT = 120
# Parent of the package, which may not be installed.
ROOT = str(Path(skdeepcluster.__file__).parent.parent)
DIGITS = load_digits().images.astype(np.float32)[:240]
QUICK = {
    "n_clusters": 10,
    "max_iter": 2,
    # Three of the four batches of an epoch.
    "epochs_per_iter": 0.75,
    # Eigenvectors of a graph, and bfloat16, magnify rounding errors.
    "n_neighbors": None,
    "precision": "float32",
    "random_state": 0,
}


class PickledByValue:
    """Carries a value to a process by cloudpickle, also classes and functions."""

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        return cloudpickle.loads, (cloudpickle.dumps(self.value),)


def _run_process(rank, size, store, connection, function, args):
    """Run a function in one process, and send its result or its error."""
    torch.set_num_threads(1)
    if size > 1:
        distributed.init_process_group(
            "gloo", init_method=store.as_uri(), rank=rank, world_size=size
        )
    try:
        result = function(*args)
    except BaseException as error:
        error.add_note(f"In process {rank}: {traceback.format_exc()}")
        result = error
    connection.send_bytes(cloudpickle.dumps(result))
    if size > 1:
        distributed.destroy_process_group()


@pytest.fixture
def run_processes(tmp_path):
    """Return a function that runs `function(*args)` in `size` processes.

    It returns their results, ordered by rank. An error is a result as well, and the
    result of a killed process is None.
    """

    def run(size, function, *args):
        store, started = tmp_path / f"store{time.monotonic_ns()}", []
        for rank in range(size):
            receiver, sender = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(
                target=PickledByValue(_run_process),
                args=(
                    rank,
                    size,
                    store,
                    sender,
                    PickledByValue(function),
                    PickledByValue(args),
                ),
            )
            process.start()
            sender.close()
            started.append((process, receiver))
        results = []
        for process, receiver in started:
            try:
                assert receiver.poll(TIMEOUT), "A process hangs."
                results.append(cloudpickle.loads(receiver.recv_bytes()))
            except EOFError:
                results.append(None)
            finally:
                process.join(1 if len(results) else 0)
                process.kill()
        return results

    return run


def raise_errors(results):
    """Return results of processes, unless one of the results is an error."""
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


# Collective operations.


def _use_each_operation():
    processes = get_processes()
    shard = processes.shard(5)
    values = Sharded(np.arange(5, dtype=np.float32)[shard.rows], shard)
    return {
        "rank": processes.rank,
        "size": processes.size,
        "shard length": len(shard),
        "sum": processes.sum(np.array([1, processes.rank])).tolist(),
        "all_gather_object": processes.all_gather_object(processes.rank),
        "any": processes.any(processes.rank == 1),
        "any False": processes.any(False),
        "run_on_first": processes.run_on_first(lambda: processes.rank),
        "take": values.take(np.array([4, 0, 0, 3])).tolist(),
        "gather": values.gather().tolist(),
        "n_rows": values.n_rows,
        "shard_from_sizes": processes.shard_from_sizes(processes.rank).starts,
    }


def test_operations_of_three_processes(run_processes):
    results = run_processes(3, _use_each_operation)
    for rank, result in enumerate(raise_errors(results)):
        assert result == {
            "rank": rank,
            "size": 3,
            "shard length": [2, 2, 1][rank],
            "sum": [3, 3],
            "all_gather_object": [0, 1, 2],
            "any": True,
            "any False": False,
            "run_on_first": 0,
            "take": [4, 0, 0, 3],
            "gather": [0, 1, 2, 3, 4],
            "n_rows": 5,
            "shard_from_sizes": (0, 0, 1, 3),
        }


def test_operations_of_a_single_process():
    assert _use_each_operation() == {
        "rank": 0,
        "size": 1,
        "shard length": 5,
        "sum": [1, 0],
        "all_gather_object": [0],
        "any": False,
        "any False": False,
        "run_on_first": 0,
        "take": [4, 0, 0, 3],
        "gather": [0, 1, 2, 3, 4],
        "n_rows": 5,
        "shard_from_sizes": (0, 0),
    }


def _fail_on_first():
    def fail():
        raise ValueError("n_clusters=0")

    get_processes().run_on_first(fail)


def test_error_on_first_is_raised_in_all_processes(run_processes):
    for error in run_processes(2, _fail_on_first):
        assert isinstance(error, ValueError)
        assert str(error) == "n_clusters=0"


def test_numbered_device_is_kept():
    second_process = Processes(1, 2)
    for name in ("cpu", "cuda:0", "mps"):
        device = torch.device(name)
        assert second_process.local_device(device) == device
    device = torch.device("cuda")
    assert SINGLE_PROCESS.local_device(device) == device


# K-means and principal components.


def _run_kmeans(points, sizes, n_clusters, cases):
    """Run k-means with each (options, seed), on `sizes[rank]` points per process."""
    processes = get_processes()
    start = sum(sizes[: processes.rank])
    local_points = points[start : start + sizes[processes.rank]]
    shard = processes.shard_from_sizes(len(local_points))
    sharded = Sharded(local_points, shard)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        return [kmeans(sharded, n_clusters, options, seed) for options, seed in cases]


KMEANS_CASES = [
    (
        KMeansOptions(empty_clusters=policy, init=init, spherical=spherical, n_init=2),
        3,
    )
    for policy in ("split", "farthest", "drop")
    for init in ("k-means++", "random")
    for spherical in (False, True)
] + [(KMeansOptions(backend=backend), 0) for backend in ("faiss", "torch")]


@pytest.mark.parametrize("name", ["blobs", "repeated", "line"])
def test_kmeans_equals_kmeans_of_one_process(run_processes, name):
    rng = np.random.default_rng(0)
    points, n_clusters = {
        "blobs": (make_blobs(90, 4, centers=6, random_state=0)[0], 40),
        # About as many distinct points as clusters.
        "repeated": (np.repeat(rng.normal(size=(21, 3)), 4, axis=0)[:80], 20),
        # Fewer distinct points than clusters, and far from zero.
        "line": (1000 + np.repeat(np.arange(12.0), 5)[:, None], 14),
    }[name]
    points = points.astype(np.float32)[rng.permutation(len(points))]
    sizes = [len(points) // 2 + 3, len(points) // 2 - 5]
    sizes.append(len(points) - sum(sizes))
    results = run_processes(3, _run_kmeans, points, sizes, n_clusters, KMEANS_CASES)
    (expected,) = raise_errors(
        run_processes(1, _run_kmeans, points, [len(points)], n_clusters, KMEANS_CASES)
    )
    by_case = zip(KMEANS_CASES, expected, *raise_errors(results), strict=True)
    for case, single, *shares in by_case:
        labels = np.concatenate([clusters.labels for clusters in shares])
        assert_array_equal(labels, single.labels, err_msg=str(case))
        for clusters in shares:
            assert_array_equal(clusters.centers, shares[0].centers)
            assert_allclose(clusters.centers, single.centers, rtol=1e-4, atol=1e-4)
            assert clusters.inertia == pytest.approx(single.inertia, rel=1e-4, abs=1e-6)
            assert clusters.n_iter == single.n_iter
            assert clusters.n_empty_before == single.n_empty_before
            assert clusters.n_empty_after == single.n_empty_after


def test_empty_clusters_raise_in_all_processes(run_processes):
    points = np.repeat(np.arange(8, dtype=np.float32), 3)[:, None]
    centers = np.concatenate([points[:4], points[:4] + 1e3])
    case = KMeansOptions(init=centers, empty_clusters="raise"), 0
    for error in run_processes(2, _run_kmeans, points, [12, 12], 8, [case]):
        assert isinstance(error, ValueError)
        assert "empty_clusters" in str(error)


def _whiten(features):
    shard = get_processes().shard(len(features))
    components = principal_components(Sharded(features[shard.rows], shard))
    return components.projection(None, whiten=True, normalize=False)(features)


@pytest.mark.parametrize("shape", [(300, 12), (40, 1100)], ids=["tall", "wide"])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e20])
def test_components_equal_components_of_one_process(run_processes, shape, scale):
    rng = np.random.default_rng(0)
    deviations = 1 + np.arange(shape[1]) % 12
    features = scale * (5 + rng.normal(size=shape) * deviations)
    features = features.astype(np.float32)
    expected = _whiten(features)
    for points in raise_errors(run_processes(3, _whiten, features)):
        assert_allclose(np.abs(points), np.abs(expected), atol=2e-3)


# Training.


def _train_batch_norm(images, gradient, dtype, channels_last, affine):
    """Return results for local images, results for all images, and the dtype."""
    processes = get_processes()
    rows = processes.shard(len(images)).rows
    norm = nn.BatchNorm2d(images.shape[1], affine=affine)
    if affine:
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, len(norm.weight)))
            norm.bias.copy_(torch.linspace(-1, 1, len(norm.bias)))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = images[rows].to(dtype).contiguous(memory_format=layout).requires_grad_()
    with synchronized_batch_norm(processes):
        y = norm(x)
    y.backward(gradient[rows].to(dtype))
    gradients = [
        processes.sum_tensor(weights.grad.clone()).numpy()
        for weights in norm.parameters()
    ]
    local_results = [value.detach().float().numpy() for value in (y, x.grad)]
    norm.eval()
    with synchronized_batch_norm(processes):
        evaluated = norm(images.to(dtype)).detach().float().numpy()
    statistics = [norm.running_mean.numpy(), norm.running_var.numpy()]
    return local_results, [*gradients, *statistics, evaluated], y.dtype


BATCH_NORM_CASES = [
    (dtype, channels_last, affine)
    for dtype in (torch.float32, torch.bfloat16)
    for channels_last in (False, True)
    for affine in (False, True)
]


def _train_all_batch_norms(images, gradient):
    return [_train_batch_norm(images, gradient, *case) for case in BATCH_NORM_CASES]


def test_batch_norm_covers_the_whole_batch(run_processes):
    generator = torch.Generator().manual_seed(0)
    # The last of three processes has a single value of each channel.
    images = 20 + 3 * torch.randn(5, 4, 1, 1, generator=generator)
    gradient = torch.randn(images.shape, generator=generator)
    results = raise_errors(run_processes(3, _train_all_batch_norms, images, gradient))
    (single,) = raise_errors(run_processes(1, _train_all_batch_norms, images, gradient))
    for case, expected, *shares in zip(BATCH_NORM_CASES, single, *results, strict=True):
        dtype, message = case[0], str(case)
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        expected_local, expected_common, _ = expected
        _, common_results, out_dtype = shares[0]
        assert out_dtype == dtype
        for i, expected_value in enumerate(expected_local):
            value = np.concatenate([local_results[i] for local_results, *_ in shares])
            assert_allclose(
                value, expected_value, rtol=tolerance, atol=tolerance, err_msg=message
            )
        for value, expected_value in zip(common_results, expected_common, strict=True):
            assert_allclose(
                value, expected_value, rtol=tolerance, atol=tolerance, err_msg=message
            )


def test_crops_equal_crops_of_the_whole_batch(run_processes):
    images = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def crop():
        shard = get_processes().shard(7)
        generator = torch.Generator().manual_seed(1)
        return RandomCrop()(images[shard.rows], generator, shard)

    shares = raise_errors(run_processes(3, crop))
    assert_allclose(torch.cat(shares), crop(), atol=1e-6)


class HalfUsedNetwork(nn.Module):
    """A network with parameters that the loss does not depend on."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(64, 16), nn.Linear(64, 16)

    def forward(self, x):
        return functional.relu(self.used(x.flatten(1)))


def _fit(parameters):
    model = DeepClusterEstimator(**QUICK | parameters)
    embedding = model.fit_transform(DIGITS)
    assert_array_equal(model.predict(DIGITS), model.labels_)
    assert_array_equal(model.transform(DIGITS), embedding)
    return model, embedding


def assert_same_fits(results):
    """Check that all processes have fitted the same model, and return it."""
    model, embedding = results[0]
    for other_model, other_embedding in results:
        assert_array_equal(other_model.labels_, model.labels_)
        assert_array_equal(other_embedding, embedding)
        assert other_model.history_ == model.history_
        assert other_model.recipe_ == model.recipe_
        weights = model.module_.state_dict()
        other_weights = other_model.module_.state_dict()
        assert weights.keys() == other_weights.keys()
        for key, value in weights.items():
            assert torch.equal(other_weights[key], value), key
    return model, embedding


FITS = {
    "default": {},
    "graph": {"n_neighbors": 10},
    "paper": {"n_pseudo_labels": 10, "init": "features"},
    "loss": {
        "balance": "loss",
        "empty_clusters": "drop",
        "backbone": HalfUsedNetwork(),
        "augment": None,
    },
    "centroids": {"head": "centroids", "n_pseudo_labels": [10, 20], "n_crops": (2, 1)},
    "bfloat16": {"clusterer": "pic", "precision": "bfloat16"},
}


@pytest.mark.parametrize("name", FITS)
def test_fit_equals_fit_of_one_process(run_processes, name):
    # Each process has 21 or 20 images of a batch, so that batch statistics are shared.
    parameters = FITS[name] | {"max_iter": 1, "batch_size": 41}
    results = raise_errors(run_processes(2, _fit, parameters))
    ((single, expected),) = raise_errors(run_processes(1, _fit, parameters))
    model, embedding = assert_same_fits(results)
    # A model that two processes have fitted is used in this process.
    assert_array_equal(model.transform(DIGITS), embedding)
    assert_array_equal(model.predict(DIGITS), model.labels_)
    loss, single_loss = model.history_[0]["loss"], single.history_[0]["loss"]
    assert loss == pytest.approx(single_loss, 0.02 if name == "bfloat16" else 1e-4)
    if name not in ("bfloat16", "graph"):
        single_inertia = single.history_[0]["inertia"]
        assert model.history_[0]["inertia"] == pytest.approx(single_inertia, rel=1e-3)
        assert normalized_mutual_info_score(single.labels_, model.labels_) > 0.9
        assert np.mean(np.abs(embedding - expected)) < 0.01


class OwnStatistics(nn.Module):
    """A network with a buffer that training changes, and that its output depends on."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 16)
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x):
        x = x.flatten(1)
        if self.training:
            self.mean.lerp_(x.detach().mean(dim=0), 0.1)
        return functional.relu(self.linear(x - self.mean))


LOCAL_FITS = {
    "default": {},
    "centroids": {"head": "centroids", "n_crops": (2, 1)},
    "own statistics": {"backbone": OwnStatistics()},
}


@pytest.mark.parametrize("name", LOCAL_FITS)
def test_processes_with_local_statistics_have_the_same_model(run_processes, name):
    # Batches of 61 are 31 and 30 images for two processes.
    parameters = LOCAL_FITS[name] | {"batch_size": 61}
    assert_same_fits(raise_errors(run_processes(2, _fit, parameters)))


def _measure_digits():
    images, classes = load_digits(return_X_y=True)
    images, classes = images[:600].reshape(-1, 8, 8), classes[:600]
    model = DeepClusterEstimator(
        n_clusters=10, max_iter=2, epochs_per_iter=8, random_state=0
    ).fit(images)
    nmi = normalized_mutual_info_score(classes, model.labels_)
    return [nmi, model.history_[-1]["gain"]]


def test_local_statistics_give_clusters_of_the_same_quality(run_processes):
    (expected,) = raise_errors(run_processes(1, _measure_digits))
    for measured in raise_errors(run_processes(2, _measure_digits)):
        assert measured == pytest.approx(expected, abs=0.1)


def _count_messages(batch_size):
    """Return how often a step of training calls the operations of `Processes`."""
    names = []

    def record(name, operation):
        def call(*args, **kwargs):
            names.append(name)
            return operation(*args, **kwargs)

        return call

    steps = []
    train_epoch = loop_module.train_epoch

    def count(*args, **kwargs):
        for _ in train_epoch(*args, **kwargs):
            steps.append(list(names))
            names.clear()
            yield

    with (
        patch.object(
            distributed, "all_gather", record("gather", distributed.all_gather)
        ),
        patch.object(distributed, "broadcast", record("copy", distributed.broadcast)),
        patch.object(distributed, "all_reduce", record("sum", distributed.all_reduce)),
        patch.object(loop_module, "train_epoch", count),
    ):
        DeepClusterEstimator(**QUICK | {"max_iter": 1, "batch_size": batch_size}).fit(
            DIGITS
        )
    return steps[-1]


def test_large_shares_of_a_batch_send_nothing_but_gradients(run_processes):
    # DistributedDataParallel sends the gradients by other functions.
    assert raise_errors(run_processes(2, _count_messages, 61)) == [[], []]
    for names in raise_errors(run_processes(2, _count_messages, 41)):
        assert set(names) == {"gather"}


def _given_backbone():
    """Return a module whose norm layer differs between channels, as after training."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()
    )
    nn.init.uniform_(module[1].weight, 0.5, 1.5)
    return module


@pytest.mark.parametrize("cache", [False, True])
def test_frozen_network_has_the_same_clusters_in_two_processes(
    run_processes, cache, tmp_path
):
    parameters = {"backbone": _given_backbone()}
    ((single, expected),) = raise_errors(run_processes(1, _fit, parameters))
    if cache:
        parameters["cache_dir"] = tmp_path / "cache"
    for _ in range(1 + cache):
        for model, embedding in raise_errors(run_processes(2, _fit, parameters)):
            assert_array_equal(model.labels_, single.labels_)
            assert_array_equal(embedding, expected)
            assert model.n_iter_ == 0


def test_fine_tuning_in_two_processes(run_processes):
    parameters = {
        "backbone": _given_backbone(),
        "fine_tune": True,
        "max_iter": 1,
        # Small enough for the processes to share batch statistics.
        "batch_size": 41,
    }
    ((single, _),) = raise_errors(run_processes(1, _fit, parameters))
    (model, embedding), (_, other) = raise_errors(run_processes(2, _fit, parameters))
    assert_array_equal(embedding, other)
    loss = single.history_[0]["loss"]
    assert model.history_[0]["loss"] == pytest.approx(loss, 1e-3)


def _use_on_one_image(parameters):
    model = DeepClusterEstimator(**QUICK | parameters).fit(DIGITS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        embedding, labels = model.transform(DIGITS[:1]), model.predict(DIGITS[:1])
    assert not caught
    return embedding, labels, model.score(DIGITS)


def test_fewer_images_than_processes(run_processes):
    results = raise_errors(run_processes(2, _use_on_one_image, {"max_iter": 1}))
    embedding, labels, score = results[0]
    assert embedding.shape == (1, 256)
    for other_embedding, other_labels, other_score in results[1:]:
        assert_array_equal(other_embedding, embedding)
        assert_array_equal(other_labels, labels)
        assert other_score == score


# Output and callbacks.


def _fit_with_output(y):
    """Return the history, the printed text, all warnings and predictions."""
    predictions = []

    def callback(history, fitted):
        warnings.warn("called", stacklevel=1)
        predictions.append(fitted().predict(DIGITS[:20]))
        return get_processes().rank == 1 and len(history) == 2

    model = DeepClusterEstimator(
        **QUICK | {"max_iter": 4, "verbose": 1, "callbacks": callback}
    )
    out = StringIO()
    with (
        contextlib.redirect_stdout(out),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        model.fit(DIGITS, y)
    messages = [str(warning.message) for warning in caught]
    return model.history_, out.getvalue(), messages, predictions


def test_only_the_first_process_prints_and_warns(run_processes):
    y = load_digits().target[: len(DIGITS)]
    first, second = raise_errors(run_processes(2, _fit_with_output, y))
    history, out, messages, predictions = first
    # The histories are equal, including all times.
    assert second[0] == history
    # The callback of the second process has ended the fit.
    assert len(history) == 2
    assert "nmi_y" in history[0]
    assert out.count("round") == 2
    assert messages.count("called") == 2
    assert second[1:3] == ("", [])
    assert_array_equal(second[3], predictions)


def _fit_with_tensorboard(folder):
    from skdeepcluster.callbacks import TensorBoard

    DeepClusterEstimator(**QUICK | {"callbacks": TensorBoard(folder)}).fit(DIGITS)


def test_tensorboard_writes_one_file(run_processes, tmp_path):
    pytest.importorskip("tensorboard")
    raise_errors(run_processes(2, _fit_with_tensorboard, tmp_path / "logs"))
    assert len([*(tmp_path / "logs").iterdir()]) == 1


# Differences between processes.


def _fit_with_difference(name, value):
    """Fit with another X, or another value of a parameter, in the second process."""
    parameters, X = QUICK | {"max_iter": 1}, DIGITS
    if get_processes().rank == 1 and name == "X":
        X = DIGITS + np.float32(1)
    elif get_processes().rank == 1:
        parameters[name] = value
    return DeepClusterEstimator(**parameters).fit(X)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X", None),
        ("n_clusters", 9),
        ("learning_rate", 0.1),
        ("random_state", 1),
        ("checkpoint_dir", "folder"),
    ],
)
def test_different_values_raise(run_processes, name, value, tmp_path):
    value = tmp_path / value if name == "checkpoint_dir" else value
    for error in run_processes(2, _fit_with_difference, name, value):
        assert isinstance(error, ValueError), error
        assert f"differ: {name} of rank 1 and of rank 0" in str(error)


@pytest.mark.parametrize(("name", "value"), [("n_jobs", 1), ("verbose", 1)])
def test_some_values_may_differ(run_processes, name, value):
    raise_errors(run_processes(2, _fit_with_difference, name, value))


def _fit_first_images(n, batch_size):
    parameters = QUICK | {"n_clusters": 2, "batch_size": batch_size}
    return DeepClusterEstimator(**parameters).fit(DIGITS[:n])


@pytest.mark.parametrize(
    ("n", "batch_size", "message"),
    [
        (40, 5, "batch_size=5 is too small for 3 processes"),
        (5, 8, "n_samples=5 is too few for 3 processes"),
    ],
)
def test_too_few_images_for_the_processes_raise(run_processes, n, batch_size, message):
    for error in run_processes(3, _fit_first_images, n, batch_size):
        assert isinstance(error, ValueError)
        assert message in str(error)


def test_fewest_images_for_the_processes(run_processes):
    for model in raise_errors(run_processes(3, _fit_first_images, 6, 6)):
        assert model.labels_.shape == (6,)


# Files.


def write_images(folder, broken_rows):
    folder.mkdir()
    for row, pixels in enumerate(DIGITS[:60]):
        image = Image.fromarray((pixels * 15).astype(np.uint8))
        image.save(folder / f"{row:02d}.png")
    for row in broken_rows:
        path = folder / f"{row:02d}.png"
        path.write_bytes(path.read_bytes()[:-30])


def _fit_files(folder, cache_dir, has_room):
    """Return `labels_`, predictions, `skipped_` and messages of warnings."""
    if not has_room:
        # Neither memory nor disk has room for decoded images: each pass decodes them.
        allocation.MEMORY_BYTES, allocation.MAX_DISK_SHARE = 0, 0.0
    model = DeepClusterEstimator(
        **QUICK | {"max_iter": 1, "on_error": "skip", "cache_dir": cache_dir}
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(folder)
        labels = model.predict(folder)
    messages = [str(warning.message) for warning in caught]
    return model.labels_, labels, model.skipped_, messages


@pytest.mark.parametrize("cache", ["memory", "folder", "none"])
def test_all_processes_skip_broken_files(run_processes, tmp_path, cache):
    folder = tmp_path / "images"
    write_images(folder, broken_rows=(3, 58))
    cache_dir = tmp_path / "cache" if cache == "folder" else None
    has_room = cache != "none"
    results = raise_errors(run_processes(2, _fit_files, folder, cache_dir, has_room))
    for labels, predictions, skipped, _ in results:
        assert_array_equal(labels, results[0][0])
        assert_array_equal(predictions, labels)
        assert_array_equal(np.flatnonzero(labels == -1), [3, 58])
        assert_array_equal(skipped, [3, 58])
    first_messages, second_messages = results[0][3], results[1][3]
    # One warning by fit, and one by predict.
    assert sum("2 of 60 images" in message for message in first_messages) == 2
    assert second_messages == []


@pytest.fixture(scope="module")
def fitted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return DeepClusterEstimator(**QUICK | {"max_iter": 1}).fit(DIGITS[:100])


def run_torchrun(script, *args):
    """Run a script in two processes, which are restarted once if one fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "--max-restarts=1", script, *args]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT},
    )


# Calls that all processes share.


def _catch(function, *args):
    """Return the result of a function, or its error."""
    try:
        return function(*args)
    except Exception as error:
        return error


def _pass_different_images(model, images, folder):
    """Call each method with other images in the second process, and then alike."""
    rank = get_processes().rank
    paths = [str(path) for path in sorted(folder.iterdir())]
    half = len(images) // 2
    shards = images[:half] if rank == 0 else images[half:]
    lengths = images[: 40 + rank]
    errors = {
        "shards": _catch(model.predict, shards),
        "lengths": _catch(model.transform, lengths),
        "empty": _catch(model.predict, images[: 30 * (1 - rank)]),
        "probabilities": _catch(model.predict_proba, lengths),
        "order": _catch(model.predict, images[:: 1 - 2 * rank]),
        "list": _catch(model.predict, list(shards)),
        "files": _catch(model.predict, paths[30 * rank :][:30]),
        "broken file": _catch(model.predict, [*paths[:4], __file__]),
        "methods": _catch(model.transform if rank else model.predict, images),
        "fit": _catch(model.fit if rank else model.fit_transform, images),
        "labels": _catch(model.fit, images, [0] * (len(images) - rank)),
        "evaluation": _catch(model.score, shards),
    }
    return errors, model.predict(images), model.predict(paths)


def test_processes_with_different_images_raise(run_processes, tmp_path):
    write_images(tmp_path / "images", broken_rows=())
    images = DIGITS[:100].astype(np.uint8)
    fitted = DeepClusterEstimator(**QUICK | {"max_iter": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted.fit(images)
    results = raise_errors(
        run_processes(2, _pass_different_images, fitted, images, tmp_path / "images")
    )
    for errors, labels, labels_of_files in results:
        # `score` runs in each process by itself.
        assert 0 <= errors.pop("evaluation") < 1
        for name, error in errors.items():
            assert isinstance(error, ValueError), (name, error)
        for name in ("shards", "lengths", "probabilities", "order", "list", "files"):
            assert "of rank 1 and of rank 0 are not the same" in str(errors[name])
            assert "all rows of X" in str(errors[name])
        assert "the number of rows" in str(errors["lengths"])
        assert "the called method" in str(errors["methods"])
        assert "the called method" in str(errors["fit"])
        assert "0 sample(s)" in str(errors["empty"])
        assert "row 4" in str(errors["broken file"])
        assert "y has shape" in str(errors["labels"])
        assert_array_equal(labels, fitted.labels_)
        assert len(labels_of_files) == 60


def _fit_alone(images, path):
    """Call methods in the first process alone, then in a child, then in both."""
    distributed_module.MEETING_SECONDS = 1
    model = DeepClusterEstimator(**QUICK | {"max_iter": 1})
    errors = []
    rank = int(distributed.get_rank())
    if rank == 0:
        errors.append(_catch(model.fit, images))
    distributed.barrier()
    model.fit(images)
    for call in (model.predict, model.fit_transform):
        if rank == 0:
            errors.append(_catch(call, images))
        distributed.barrier()
    if rank == 0:
        errors.append(_catch(io.write_embeddings, model, images, path))
    # A process that comes late finds nobody in the meeting that has ended.
    distributed.barrier()
    if rank == 1:
        errors.append(_catch(model.predict, images))
    distributed.barrier()
    child_labels = model.labels_
    if rank == 0:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            child_labels = pool.submit(model.predict, images).result()
    distributed.barrier()
    labels = [child_labels, *(model.predict(images) for _ in range(3))]
    return errors, labels, model.labels_


def test_call_in_one_process_raises(run_processes, tmp_path):
    start = time.monotonic()
    results = run_processes(2, _fit_alone, DIGITS[:60], tmp_path / "x.npy")
    assert time.monotonic() - start < 60
    (first, *_), (second, *_) = raise_errors(results)
    names = ["fit", "predict", "fit_transform", "write_embeddings"]
    for name, error in zip(names, first, strict=True):
        assert isinstance(error, RuntimeError)
        assert f"Rank 1 of 2 has not called {name} within 1 seconds" in str(error)
        assert "torch.distributed.barrier()" in str(error)
    (error,) = second
    assert "Rank 0 of 2 has not called predict" in str(error)
    for _, predictions, labels in results:
        for prediction in predictions:
            assert_array_equal(prediction, labels)


def test_meeting_in_a_store(monkeypatch):
    monkeypatch.setattr(distributed_module, "MEETING_SECONDS", 0.1)
    store = distributed.HashStore()
    first, second = (Meeting(store, rank, 2, "start") for rank in range(2))
    for meeting, missing in ((first, 1), (second, 0)):
        with pytest.raises(RuntimeError, match=f"Rank {missing} of 2 has not called"):
            meeting.wait("fit")
    monkeypatch.setattr(distributed_module, "MEETING_SECONDS", 60)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            list(pool.map(Meeting.wait, [first, second], ["fit", "fit"]))
    # Only the keys of the last meeting are left.
    assert store.num_keys() == 2


# Files of embeddings.


def _write_embeddings(model, images, path):
    """Return the sizes of batches that this process embeds, and all warnings."""
    io._embeddings.CHUNK_ROWS = 16
    with (
        patch.object(model, "_embed", wraps=model._embed) as embed,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        io.write_embeddings(model, images, path)
    sizes = [len(call.args[0]) for call in embed.call_args_list]
    return sizes, [str(warning.message) for warning in caught]


def test_processes_share_write_embeddings(run_processes, fitted, tmp_path):
    path = tmp_path / "x.npy"
    results = run_processes(3, _write_embeddings, fitted, DIGITS[:100], path)
    sizes = [sizes for sizes, _ in raise_errors(results)]
    assert sizes == [[16, 16, 4], [16, 16], [16, 16]]
    assert_array_equal(np.load(path), fitted.transform(DIGITS[:100]))
    assert [path.name for path in tmp_path.glob("x*")] == ["x.npy"]


def test_embeddings_of_broken_files_are_nan(run_processes, tmp_path):
    folder, path = tmp_path / "images", tmp_path / "x.npy"
    write_images(folder, broken_rows=(3, 58))
    model = DeepClusterEstimator(**QUICK | {"max_iter": 1, "on_error": "skip"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(folder)
    results = raise_errors(run_processes(2, _write_embeddings, model, folder, path))
    assert [sizes for sizes, _ in results] == [[16, 16], [16, 12]]
    counts = [
        sum("2 of 60" in message for message in messages) for _, messages in results
    ]
    assert counts == [1, 0]
    is_nan = np.isnan(np.load(path)).all(axis=1)
    assert_array_equal(np.flatnonzero(is_nan), [3, 58])


def _write_embeddings_of_different_images(model, path):
    _write_embeddings(model, DIGITS[:100] + get_processes().rank, path)


def test_embeddings_of_different_images_raise(run_processes, fitted, tmp_path):
    path = tmp_path / "x.npy"
    errors = run_processes(2, _write_embeddings_of_different_images, fitted, path)
    for error in errors:
        assert isinstance(error, ValueError)
        assert "images of rank 1 and of rank 0 are not the same" in str(error)
    assert not list(tmp_path.glob("x*"))


# Checkpoints.


def _fit_with_checkpoints(folder, parameters, n_rounds=None, recover=False):
    """Fit, unless a callback interrupts the fit after `n_rounds`, or recover."""

    def interrupt(history, fitted):
        if len(history) == n_rounds:
            raise KeyboardInterrupt

    parameters = {
        "max_iter": 3,
        "checkpoint_dir": folder,
        "callbacks": interrupt,
        **parameters,
    }
    model = DeepClusterEstimator(**QUICK | parameters)
    (model.recover if recover else model.fit)(DIGITS)
    return model.labels_, model.transform(DIGITS), model.n_iter_


DROPOUT = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(), nn.ReLU())


@pytest.mark.parametrize(
    ("parameters", "sizes"),
    [
        ({"backbone": DROPOUT}, (2, 3)),
        ({"head": "centroids", "n_pseudo_labels": [10, 20]}, (2, 1)),
    ],
    ids=["dropout", "centroids"],
)
def test_fit_resumes_with_any_number_of_processes(
    run_processes, tmp_path, parameters, sizes
):
    whole_folder, folder = tmp_path / "whole", tmp_path / "interrupted"
    results = run_processes(2, _fit_with_checkpoints, whole_folder, parameters)
    expected_labels, expected_embedding, _ = raise_errors(results)[0]
    assert not [*whole_folder.iterdir()]
    for error in run_processes(2, _fit_with_checkpoints, folder, parameters, 2):
        assert isinstance(error, KeyboardInterrupt)
    files = {path: path.read_bytes() for path in folder.glob("*/*")}
    assert sorted(path.stem for path in files) == ["round_000000", "round_000001"]

    def restore_files():
        for path, content in files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)

    for size in sizes:
        restore_files()
        results = run_processes(size, _fit_with_checkpoints, folder, parameters)
        for labels, embedding, n_iter in raise_errors(results):
            assert n_iter == 3
            if size == 2:
                assert_array_equal(labels, expected_labels)
                assert_array_equal(embedding, expected_embedding)
        assert not [*folder.iterdir()]

    restore_files()
    args = folder, parameters, None, True
    results = raise_errors(run_processes(2, _fit_with_checkpoints, *args))
    (single,) = raise_errors(run_processes(1, _fit_with_checkpoints, *args))
    for labels, embedding, n_iter in results:
        assert n_iter == single[2] == 1
        assert_allclose(embedding, single[1], atol=1e-4)
        assert normalized_mutual_info_score(labels, single[0]) > 0.95


class InterruptedBrightening:
    """An augmentation that is interrupted in the n-th batch, or never for 0."""

    def __init__(self, n_batches):
        self.n_batches = n_batches

    def __getstate__(self):
        # All instances are the same parameter for a checkpoint, with any count.
        return {}

    def __call__(self, batch):
        self.n_batches -= 1
        if not self.n_batches:
            raise KeyboardInterrupt
        return 1.1 * batch


def _fit_until(folder, head, n_batches):
    # A negative number writes a checkpoint after each step.
    checkpoints_module.SECONDS_BETWEEN_CHECKPOINTS = -1
    model = DeepClusterEstimator(
        **QUICK,
        augment=InterruptedBrightening(n_batches),
        head=head,
        checkpoint_dir=folder,
    )
    return model.fit_transform(DIGITS), model.history_[1]["loss"]


@pytest.mark.parametrize("head", ["reset", "centroids"])
def test_fit_resumes_inside_a_round(run_processes, tmp_path, head):
    whole = run_processes(2, _fit_until, tmp_path / "whole", head, 0)
    folder = tmp_path / "interrupted"
    for error in run_processes(2, _fit_until, folder, head, 6):
        assert isinstance(error, KeyboardInterrupt)
    names = sorted(path.stem for path in folder.glob("*/*"))
    assert names[-1] == "round_000001_000000005"
    resumed = run_processes(2, _fit_until, folder, head, 0)
    for (embedding, loss), (expected_embedding, expected_loss) in zip(
        raise_errors(resumed), raise_errors(whole), strict=True
    ):
        assert_array_equal(embedding, expected_embedding)
        assert loss == expected_loss


# Loss of a process.


def _lose_second_process(cause):
    def leave(history, fitted):
        if get_processes().rank == 1:
            if cause == "killed":
                os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
            raise OSError("the disk is gone")

    parameters = QUICK | {"max_iter": 3, "callbacks": leave}
    return DeepClusterEstimator(**parameters).fit(DIGITS)


@pytest.mark.parametrize("cause", ["killed", "failed"])
def test_all_processes_stop_if_one_is_lost(run_processes, cause):
    start = time.monotonic()
    first, lost, third = run_processes(3, _lose_second_process, cause)
    assert time.monotonic() - start < 60
    assert lost is None if cause == "killed" else isinstance(lost, OSError)
    for rank, error in ((0, first), (2, third)):
        assert isinstance(error, RuntimeError)
        assert str(error).startswith("Another process of this fit has stopped")
        assert f"rank {rank} of 3 stops" in str(error)


USER_ERRORS = [
    "an error of the user's",
    "timed out",
    "[third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer",
]


def _fail_in_callback():
    errors = []
    for message in USER_ERRORS:

        def fail(history, fitted, message=message):
            raise RuntimeError(message)

        parameters = QUICK | {"callbacks": fail, "max_iter": 1}
        errors.append(_catch(DeepClusterEstimator(**parameters).fit, DIGITS))
    return errors


def test_errors_of_the_user_are_kept(run_processes):
    for errors in raise_errors(run_processes(2, _fail_in_callback)):
        assert [str(error) for error in errors] == USER_ERRORS
        assert {type(error) for error in errors} == {RuntimeError}


LOSSES = [
    RuntimeError(
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by "
        "peer [127.0.0.1]:5014"
    ),
    RuntimeError(
        "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81"
        "] Timed out waiting 1800000ms for recv operation to complete"
    ),
    RuntimeError(
        "Gloo connectFullMesh failed with [C:\\third_party\\gloo\\gloo\\transport\\uv"
        "\\pair.cc:123] timed out"
    ),
    distributed.DistStoreError("wait timeout after 300000ms"),
    distributed.DistNetworkError("failed to recv, got 0 bytes"),
    distributed.DistBackendError("NCCL error: remote process exited"),
]
OPERATIONS = {
    "all_reduce": lambda processes: processes.sum(np.ones(2)),
    "all_gather": lambda processes: processes.any(True),
    "all_gather_object": lambda processes: processes.all_gather_object(1),
    "broadcast_object_list": lambda processes: processes.run_on_first(int),
    "broadcast": lambda processes: Sharded(np.ones(1), processes.shard(2)).gather(),
}


@pytest.mark.parametrize("error", LOSSES, ids=lambda error: str(error)[-30:])
def test_lost_connection_is_explained(monkeypatch, error):
    for name, operation in OPERATIONS.items():
        monkeypatch.setattr(distributed, name, Mock(side_effect=error))
        with pytest.raises(RuntimeError, match="Another process of this fit has"):
            operation(Processes(rank=0, size=2))


@pytest.mark.parametrize(
    "error",
    [
        *LOSSES,
        RuntimeError("timeout of the database"),
        RuntimeError("the socket of the dataset was closed: timed out"),
        RuntimeError("/data/gloo/0001.png is not an image"),
    ],
    ids=lambda error: str(error)[-30:],
)
def test_errors_of_the_user_that_resemble_a_lost_connection_are_kept(error):
    def fail():
        raise error

    with (
        pytest.raises(RuntimeError) as caught,
        Processes(rank=0, size=2).guard_collectives(),
    ):
        fail()
    assert caught.value is error


SCRIPT = """
import os
import signal
import sys

import numpy as np
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator

parameters, folder, out = eval(sys.argv[1]), sys.argv[2], sys.argv[3]
rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]


def kill_once(history, fitted):
    if attempt == "0" and rank == "1" and len(history) == 2:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


X = load_digits().images.astype(np.float32)[:240]
model = DeepClusterEstimator(**parameters, checkpoint_dir=folder, callbacks=kill_once)
embedding = model.fit_transform(X)
if rank == "0":
    np.savez(out, labels=model.labels_, embedding=embedding)
sys.stdout.write(f"rank {rank} of attempt {attempt}\\n")
"""


def test_torchrun_restarts_and_gives_the_same_bits(run_processes, tmp_path):
    parameters = QUICK | {"max_iter": 3}
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    checkpoints = tmp_path / "checkpoints"
    completed = run_torchrun(
        script, repr(parameters), checkpoints, tmp_path / "out.npz"
    )
    assert completed.returncode == 0, completed.stderr
    for rank in range(2):
        assert f"rank {rank} of attempt 1" in completed.stdout
        assert f"rank {rank} of attempt 0" not in completed.stdout
    resumed = np.load(tmp_path / "out.npz")
    whole_folder = tmp_path / "whole"
    results = run_processes(2, _fit_with_checkpoints, whole_folder, parameters)
    for labels, embedding, _ in raise_errors(results):
        assert_array_equal(resumed["labels"], labels)
        assert_array_equal(resumed["embedding"], embedding)
