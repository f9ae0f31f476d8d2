"""Several processes fit one estimator, and come to what one process comes to."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from io import StringIO
from pathlib import Path
from unittest.mock import patch

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
from skdeepcluster._clustering.kmeans import kmeans
from skdeepcluster._clustering.whitening import principal_components
from skdeepcluster._fit import checkpoints as checkpoints_module
from skdeepcluster._training.augment import RandomCrop
from skdeepcluster._training.batch_norm import synchronized_batch_norm
from skdeepcluster._utils.distributed import (
    SINGLE_PROCESS,
    Processes,
    Sharded,
    get_processes,
)

cloudpickle = pytest.importorskip("cloudpickle")
distributed = pytest.importorskip("torch.distributed")
if not distributed.is_available() or not distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

# Functions of this module are sent by value: processes cannot import it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
START = "forkserver" if hasattr(os, "fork") else "spawn"
PROCESSES = multiprocessing.get_context(START)
if START == "forkserver":
    PROCESSES.set_forkserver_preload(["skdeepcluster", "torch.distributed.nn"])
QUICK = {
    "n_clusters": 10,
    "max_iter": 2,
    "updates_per_iter": 3,
    # The graph's eigenvectors, and bfloat16, make much of the least rounding.
    "n_neighbors": None,
    "precision": "float32",
    "random_state": 0,
}
ROOT = str(Path(skdeepcluster.__file__).parent.parent)  # also where not installed
DIGITS = load_digits().images.astype(np.float32)[:240]


class Sent:
    """What is pickled by value, classes and functions too."""

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        return cloudpickle.loads, (cloudpickle.dumps(self.value),)


def _take_part(rank, size, store, results, function, args):
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
    results.send_bytes(cloudpickle.dumps(result))
    if size > 1:
        distributed.destroy_process_group()


@pytest.fixture
def processes(tmp_path):
    """Return what calls a function in so many processes, for the results of all.

    An error is a result, and so is None of a process that was killed.
    """

    def call(size, function, *args):
        store, started = tmp_path / f"store{time.monotonic_ns()}", []
        for rank in range(size):
            ours, theirs = PROCESSES.Pipe(duplex=False)
            process = PROCESSES.Process(
                target=Sent(_take_part),
                args=(rank, size, store, theirs, Sent(function), Sent(args)),
            )
            process.start()
            theirs.close()
            started.append((process, ours))
        results = []
        for process, ours in started:
            try:
                assert ours.poll(120), "a process hangs"
                results.append(cloudpickle.loads(ours.recv_bytes()))
            except EOFError:
                results.append(None)
            finally:
                process.join(1 if len(results) else 0)
                process.kill()
        return results

    return call


def _results(results):
    """Return what processes computed; raise what they raised."""
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


# What processes tell each other.


def _tell():
    processes = get_processes()
    shard = processes.shard(5)
    own = np.arange(5, dtype=np.float32)[shard.rows]
    rows = np.array([4, 0, 0, 3])
    return (
        (processes.rank, processes.size, len(shard)),
        processes.sum(np.array([1, processes.rank])).tolist(),
        processes.all_gather_object(processes.rank),
        [processes.any(processes.rank == 1), processes.any(False)],
        processes.run_on_first(lambda: processes.rank),
        Sharded(own, shard).take(rows).tolist(),
        Sharded(own, shard).gather().tolist(),
        processes.shard_from_sizes(processes.rank).starts,
    )


def test_what_is_told(processes):
    for rank, told in enumerate(processes(3, _tell)):
        assert told == (
            (rank, 3, [2, 2, 1][rank]),
            [3, 3],
            [0, 1, 2],
            [True, False],
            0,
            [4, 0, 0, 3],
            [0, 1, 2, 3, 4],
            (0, 0, 1, 3),
        )
    (told,) = processes(1, _tell)
    assert told == (
        *((0, 1, 5), [1, 0], [0], [False, False], 0),
        *([4, 0, 0, 3], [0, 1, 2, 3, 4], (0, 0)),
    )


def _fail_in_the_first():
    def compute():
        raise ValueError("n_clusters=0")

    get_processes().run_on_first(compute)


def test_an_error_of_the_first_is_that_of_all(processes):
    for error in processes(2, _fail_in_the_first):
        assert isinstance(error, ValueError)
        assert str(error) == "n_clusters=0"


def test_a_number_of_the_device_is_left_alone():
    two = Processes(1, 2)
    for name in ("cpu", "cuda:0", "mps"):
        assert two.local_device(torch.device(name)) == torch.device(name)
    assert SINGLE_PROCESS.local_device(torch.device("cuda")) == torch.device("cuda")


# K-means and what goes before.


def _shared_kmeans(points, sizes, k, options):
    processes = get_processes()
    start = sum(sizes[: processes.rank])
    own = points[start : start + sizes[processes.rank]]
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        return [kmeans(own, k, processes=processes, **each) for each in options]


def _cases():
    for policy in ("split", "farthest", "drop"):
        for init in ("k-means++", "random"):
            for spherical in (False, True):
                yield {
                    "empty_clusters": policy,
                    "init": init,
                    "spherical": spherical,
                    "n_init": 2,
                    "seed": 3,
                }
    for backend in ("faiss", "torch"):
        yield {"backend": backend, "seed": 0}


@pytest.mark.parametrize("name", ["blobs", "repeated", "line"])
def test_kmeans_has_the_labels_of_one_process(processes, name):
    rng = np.random.default_rng(0)
    points = {
        # Fewer distinct points than clusters, as many as, and points far from zero.
        "blobs": make_blobs(90, 4, centers=6, random_state=0)[0],
        "repeated": np.repeat(rng.normal(size=(21, 3)), 4, axis=0)[:80],
        "line": 1000 + np.repeat(np.arange(12.0), 5)[:, None],
    }[name].astype(np.float32)
    points = points[rng.permutation(len(points))]
    k = {"blobs": 40, "repeated": 20, "line": 14}[name]
    sizes = [len(points) // 2 + 3, len(points) // 2 - 5]
    sizes.append(len(points) - sum(sizes))
    cases = list(_cases())
    shared = processes(3, _shared_kmeans, points, sizes, k, cases)
    (expected,) = processes(1, _shared_kmeans, points, [len(points)], k, cases)
    for i, (case, one) in enumerate(zip(cases, expected, strict=True)):
        parts = [found[i] for found in _results(shared)]
        labels = np.concatenate([part.labels for part in parts])
        assert_array_equal(labels, one.labels, err_msg=str(case))
        for part in parts:
            assert_array_equal(part.centers, parts[0].centers)
            assert_allclose(part.centers, one.centers, rtol=1e-4, atol=1e-4)
            assert part.inertia == pytest.approx(one.inertia, rel=1e-4, abs=1e-6)
            assert part.n_iter == one.n_iter
            assert part.n_empty_before == one.n_empty_before
            assert part.n_empty_after == one.n_empty_after


def test_empty_clusters_raise_everywhere(processes):
    points = np.repeat(np.arange(8, dtype=np.float32), 3)[:, None]
    start = np.concatenate([points[:4], points[:4] + 1e3])
    case = {"init": start, "empty_clusters": "raise", "seed": 0}
    for error in processes(2, _shared_kmeans, points, [12, 12], 8, [case]):
        assert isinstance(error, ValueError)
        assert "empty_clusters" in str(error)


def _shared_components(features):
    processes = get_processes()
    found = principal_components(
        features[processes.shard(len(features)).rows], processes
    )
    return found.projection(None, whiten=True, normalize=False)(features)


@pytest.mark.parametrize("shape", [(300, 12), (40, 1100)], ids=["tall", "few"])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e20])
def test_components_are_those_of_all(processes, shape, scale):
    rng = np.random.default_rng(0)
    steps = 1 + np.arange(shape[1]) % 12
    features = (scale * (5 + rng.normal(size=shape) * steps)).astype(np.float32)
    expected = _shared_components(features)
    for points in processes(3, _shared_components, features):
        assert_allclose(np.abs(points), np.abs(expected), atol=2e-3)


# Training.


def _normalize(images, slope, dtype, channels_last, affine):
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
    y.backward(slope[rows].to(dtype))
    slopes = [processes.sum_tensor(p.grad.clone()).numpy() for p in norm.parameters()]
    seen = [v.detach().float().numpy() for v in (y, x.grad)]
    norm.eval()
    with synchronized_batch_norm(processes):
        told = norm(images.to(dtype)).detach().float().numpy()
    state = [norm.running_mean.numpy(), norm.running_var.numpy()]
    return seen, [*slopes, *state, told], y.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm_is_that_of_the_whole_batch(processes, dtype, channels_last, affine):
    generator = torch.Generator().manual_seed(0)
    # One process has a single value of each channel.
    images = 20 + 3 * torch.randn(5, 4, 1, 1, generator=generator)
    slope = torch.randn(images.shape, generator=generator)
    case = images, slope, dtype, channels_last, affine
    (ours, common, out), *others = processes(3, _normalize, *case)
    ((expected, shared, _),) = processes(1, _normalize, *case)
    assert out == dtype
    close = {"rtol": 1e-4, "atol": 1e-4}
    if dtype == torch.bfloat16:
        close = {"rtol": 2e-2, "atol": 2e-2}
    for i, whole in enumerate(expected):
        parts = np.concatenate([ours[i], *(other[0][i] for other in others)])
        assert_allclose(parts, whole, **close)
    for part, whole in zip(common, shared, strict=True):
        assert_allclose(part, whole, **close)


def test_draws_are_those_of_the_whole_batch(processes):
    images = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def crop():
        shard = get_processes().shard(7)
        generator = torch.Generator().manual_seed(1)
        return RandomCrop()(images[shard.rows], generator, shard)

    parts, (whole,) = processes(3, crop), processes(1, crop)
    assert_allclose(torch.cat(parts), whole, atol=1e-6)


class Unused(nn.Module):
    """A network with parameters that nothing depends on."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(64, 16), nn.Linear(64, 16)

    def forward(self, x):
        return functional.relu(self.used(x.flatten(1)))


def _fit(params):
    model = DeepClusterEstimator(**QUICK | params)
    embedding = model.fit_transform(DIGITS)
    assert_array_equal(model.predict(DIGITS), model.labels_)
    assert_array_equal(model.transform(DIGITS), embedding)
    return model, embedding


FITS = {
    "default": {},
    "graph": {"n_neighbors": 10},
    "paper": {"n_pseudo_labels": 10, "init": "features"},
    "loss": {
        "balance": "loss",
        "empty_clusters": "drop",
        "backbone": Unused(),
        "augment": None,
    },
    "centroids": {"head": "centroids", "n_pseudo_labels": [10, 20], "n_crops": (2, 1)},
    "bfloat16": {"clusterer": "pic", "precision": "bfloat16"},
}


@pytest.mark.parametrize("name", FITS)
def test_a_fit_comes_to_what_one_process_comes_to(processes, name):
    params = FITS[name] | {"max_iter": 1, "batch_size": 61}
    found = processes(2, _fit, params)
    ((one, expected),) = processes(1, _fit, params)
    for model, embedding in found:
        assert_array_equal(model.labels_, found[0][0].labels_)
        assert_array_equal(embedding, found[0][1])
        assert model.history_ == found[0][0].history_
        weights = zip(
            model.module_.state_dict().values(),
            found[0][0].module_.state_dict().values(),
            strict=True,
        )
        assert all(torch.equal(own, first) for own, first in weights)
    model, embedding = found[0]
    # Fitted by two, used by one.
    assert_array_equal(model.transform(DIGITS), embedding)
    assert_array_equal(model.predict(DIGITS), model.labels_)
    rough = 0.02 if name == "bfloat16" else 1e-4
    assert model.history_[0]["loss"] == pytest.approx(one.history_[0]["loss"], rough)
    if name not in ("bfloat16", "graph"):
        assert model.inertia_ == pytest.approx(one.inertia_, rel=1e-3)
        assert normalized_mutual_info_score(one.labels_, model.labels_) > 0.9
        assert np.mean(np.abs(embedding - expected)) < 0.01


def _score(params):
    model = DeepClusterEstimator(**QUICK | params).fit(DIGITS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        few = model.transform(DIGITS[:1]), model.predict(DIGITS[:1])
    assert not caught
    return few, model.score(DIGITS)


def test_one_image_is_seen_by_all(processes):
    (first, score), *others = _results(processes(2, _score, {"max_iter": 1}))
    assert first[0].shape == (1, 256)
    for few, own in others:
        assert_array_equal(few[0], first[0])
        assert_array_equal(few[1], first[1])
        assert own == score


# Who speaks, and who decides.


def _listen(y):
    seen = []

    def look(history, fitted):
        warnings.warn("looked", stacklevel=1)
        seen.append(fitted().predict(DIGITS[:20]))
        return get_processes().rank == 1 and len(history) == 2

    out = StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = DeepClusterEstimator(
            **QUICK | {"max_iter": 4, "verbose": 1, "callbacks": look}
        ).fit(DIGITS, y)
    return model.history_, out.getvalue(), [str(each.message) for each in told], seen


def test_the_first_process_speaks_for_all(processes):
    y = load_digits().target[: len(DIGITS)]
    first, second = _results(processes(2, _listen, y))
    assert first[0] == second[0]  # the history, to the second
    assert len(first[0]) == 2  # the other one's callback ended it
    assert "nmi_y" in first[0][0]
    assert first[1].count("round") == 2
    assert first[2].count("looked") == 2
    assert second[1:3] == ("", [])
    assert_array_equal(first[3], second[3])


def _write_in_both(folder):
    from skdeepcluster.callbacks import TensorBoard

    DeepClusterEstimator(**QUICK | {"callbacks": TensorBoard(folder)}).fit(DIGITS)


def test_curves_are_written_once(processes, tmp_path):
    pytest.importorskip("tensorboard")
    _results(processes(2, _write_in_both, tmp_path / "logs"))
    assert len([*(tmp_path / "logs").iterdir()]) == 1


# What does not fit together.


def _differ(name, value):
    params = QUICK | {"max_iter": 1}
    X = DIGITS
    if get_processes().rank == 1 and name == "X":
        X = DIGITS + np.float32(1)
    elif get_processes().rank == 1:
        params[name] = value
    return DeepClusterEstimator(**params).fit(X)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X", None),
        ("n_clusters", 9),
        ("learning_rate", 0.1),
        ("random_state", 1),
        ("checkpoint_dir", "here"),
    ],
)
def test_what_differs_is_named(processes, name, value, tmp_path):
    value = tmp_path / value if name == "checkpoint_dir" else value
    for error in processes(2, _differ, name, value):
        assert isinstance(error, ValueError), error
        assert f"differ: {name} of rank 1 and of rank 0" in str(error)


@pytest.mark.parametrize(("name", "value"), [("n_jobs", 1), ("verbose", 1)])
def test_what_may_differ(processes, name, value):
    _results(processes(2, _differ, name, value))


def _fit_few(n, batch_size):
    params = QUICK | {"n_clusters": 2, "batch_size": batch_size}
    return DeepClusterEstimator(**params).fit(DIGITS[:n])


@pytest.mark.parametrize(
    ("n", "batch_size", "words"),
    [
        (40, 5, "batch_size=5 is shared by 3 processes"),
        (5, 8, "n_samples=5 is too few"),
    ],
)
def test_too_little_for_all(processes, n, batch_size, words):
    for error in processes(3, _fit_few, n, batch_size):
        assert isinstance(error, ValueError)
        assert words in str(error)


def test_as_little_as_possible(processes):
    for model in _results(processes(3, _fit_few, 6, 6)):
        assert model.labels_.shape == (6,)


# Files.


def _write_files(folder, broken):
    folder.mkdir()
    for row, pixels in enumerate(DIGITS[:60]):
        image = Image.fromarray((pixels * 15).astype(np.uint8))
        image.save(folder / f"{row:02d}.png")
    for row in broken:
        path = folder / f"{row:02d}.png"
        path.write_bytes(path.read_bytes()[:-30])


def _fit_files(folder, cache):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = DeepClusterEstimator(
            **QUICK | {"max_iter": 1, "on_error": "skip", "cache": cache}
        ).fit(folder)
        labels = model.predict(folder)
    told = [str(each.message) for each in caught]
    return model.labels_, labels, model.skipped_, told


@pytest.mark.parametrize("cache", [None, "memory"])
def test_broken_files_are_known_to_all(processes, tmp_path, cache):
    folder = tmp_path / "images"
    _write_files(folder, broken=(3, 58))
    found = _results(processes(2, _fit_files, folder, cache))
    for labels, predicted, skipped, _ in found:
        assert_array_equal(labels, found[0][0])
        assert_array_equal(predicted, labels)
        assert_array_equal(np.flatnonzero(labels == -1), [3, 58])
        assert_array_equal(skipped, [3, 58])
    assert sum("2 of 60 images" in words for words in found[0][3]) == 2
    assert found[1][3] == []


# Embeddings in files.


def _write_embeddings(model, images, path):
    io.CHUNK_ROWS = 16
    with (
        patch.object(model, "_embed", wraps=model._embed) as embed,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        io.write_embeddings(model, images, path)
    sizes = [len(call.args[0]) for call in embed.call_args_list]
    return sizes, [str(each.message) for each in caught]


@pytest.fixture(scope="module")
def model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return DeepClusterEstimator(**QUICK | {"max_iter": 1}).fit(DIGITS[:100])


def test_embeddings_are_written_together(processes, model, tmp_path):
    found = _results(
        processes(3, _write_embeddings, model, DIGITS[:100], tmp_path / "x.npy")
    )
    assert [embedded for embedded, _ in found] == [[16, 16, 4], [16, 16], [16, 16]]
    assert_array_equal(np.load(tmp_path / "x.npy"), model.transform(DIGITS[:100]))
    assert [path.name for path in tmp_path.glob("x*")] == ["x.npy"]


def test_embeddings_of_broken_files_are_written_together(processes, tmp_path):
    folder = tmp_path / "images"
    _write_files(folder, broken=(3, 58))
    model = DeepClusterEstimator(**QUICK | {"max_iter": 1, "on_error": "skip"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(folder)
    found = _results(processes(2, _write_embeddings, model, folder, tmp_path / "x.npy"))
    assert [embedded for embedded, _ in found] == [[16, 16], [16, 12]]
    assert [sum("2 of 60" in words for words in told) for _, told in found] == [1, 0]
    blank = np.isnan(np.load(tmp_path / "x.npy")).all(axis=1)
    assert_array_equal(np.flatnonzero(blank), [3, 58])


def _write_own(model, path):
    _write_embeddings(model, DIGITS[:100] + get_processes().rank, path)


def test_embeddings_of_different_images_are_not_written(processes, model, tmp_path):
    for error in processes(2, _write_own, model, tmp_path / "x.npy"):
        assert isinstance(error, ValueError)
        assert "images of rank 1 and of rank 0 are not the same" in str(error)
    assert not list(tmp_path.glob("x*"))


# Checkpoints.


def _fit_with_checkpoints(folder, params, stop_after=None, recover=False):
    def stop(history, fitted):
        if len(history) == stop_after:
            raise KeyboardInterrupt

    model = DeepClusterEstimator(
        **QUICK | {"max_iter": 3, "checkpoint_dir": folder, "callbacks": stop} | params
    )
    (model.recover if recover else model.fit)(DIGITS)
    return model.labels_, model.transform(DIGITS), model.n_iter_


DROPOUT = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(), nn.ReLU())


@pytest.mark.parametrize(
    ("params", "sizes"),
    [
        ({"backbone": DROPOUT}, (2, 3)),
        ({"head": "centroids", "n_pseudo_labels": [10, 20]}, (2, 1)),
    ],
    ids=["dropout", "centroids"],
)
def test_a_fit_goes_on_with_any_number_of_processes(processes, tmp_path, params, sizes):
    whole = _results(processes(2, _fit_with_checkpoints, tmp_path / "whole", params))
    assert not [*(tmp_path / "whole").iterdir()]
    folder = tmp_path / "stopped"
    for error in processes(2, _fit_with_checkpoints, folder, params, 2):
        assert isinstance(error, KeyboardInterrupt)
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [*kept] == ["round_000001.safetensors"]
    for size in sizes:
        for name, content in kept.items():
            (folder / name).write_bytes(content)
        found = processes(size, _fit_with_checkpoints, folder, params)
        for labels, embedding, n_iter in _results(found):
            assert n_iter == 3
            if size == 2:
                assert_array_equal(labels, whole[0][0])
                assert_array_equal(embedding, whole[0][1])
        assert not [*folder.iterdir()]
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    two = processes(2, _fit_with_checkpoints, folder, params, None, True)
    (one,) = _results(processes(1, _fit_with_checkpoints, folder, params, None, True))
    for labels, embedding, n_iter in _results(two):
        assert n_iter == one[2] == 1
        assert_allclose(embedding, one[1], atol=1e-4)
        assert normalized_mutual_info_score(labels, one[0]) > 0.95


class Brightened:
    """An augmentation, in the middle of which Ctrl-C may come."""

    def __init__(self, calls_left):
        self.calls_left = calls_left

    def __getstate__(self):
        # The counter is no part of the parameter.
        return {}

    def __call__(self, batch):
        self.calls_left -= 1
        if not self.calls_left:
            raise KeyboardInterrupt
        return 1.1 * batch


def _fit_to_the_middle(folder, head, calls_left):
    checkpoints_module.SECONDS = -1  # after each step
    model = DeepClusterEstimator(
        **QUICK,
        augment=Brightened(calls_left),
        head=head,
        checkpoint_dir=folder,
    )
    return model.fit_transform(DIGITS), model.history_[1]["loss"]


@pytest.mark.parametrize("head", ["reset", "centroids"])
def test_a_fit_goes_on_inside_a_round(processes, tmp_path, head):
    whole = _results(processes(2, _fit_to_the_middle, tmp_path / "whole", head, 0))
    folder = tmp_path / "stopped"
    for error in processes(2, _fit_to_the_middle, folder, head, 6):
        assert isinstance(error, KeyboardInterrupt)
    names = sorted(path.stem for path in folder.iterdir())
    assert names[-1] == "round_000001_000000005"
    found = _results(processes(2, _fit_to_the_middle, folder, head, 0))
    for (embedding, loss), (expected, loss_of_whole) in zip(found, whole, strict=True):
        assert_array_equal(embedding, expected)
        assert loss == loss_of_whole


# Processes that are gone.


def _lose_one(how):
    def leave(history, fitted):
        if get_processes().rank == 1:
            if how == "killed":
                os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
            raise OSError("the disk is gone")

    params = QUICK | {"max_iter": 3, "callbacks": leave}
    return DeepClusterEstimator(**params).fit(DIGITS)


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_all_stop_when_one_is_gone(processes, how):
    start = time.monotonic()
    results = processes(3, _lose_one, how)
    assert time.monotonic() - start < 60
    gone = results.pop(1)
    assert gone is None if how == "killed" else isinstance(gone, OSError)
    for rank, error in zip((0, 2), results, strict=True):
        assert isinstance(error, RuntimeError)
        assert str(error).startswith("Another process of this fit has stopped")
        assert f"rank {rank} of 3 stops" in str(error)


def _ask_what_fails():
    def fail(history, fitted):
        raise RuntimeError("a mistake of my own")

    return DeepClusterEstimator(**QUICK | {"callbacks": fail}).fit(DIGITS)


def test_other_errors_stay_what_they_are(processes):
    for error in processes(2, _ask_what_fails):
        assert isinstance(error, RuntimeError)
        assert str(error) == "a mistake of my own"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by "
            "peer [127.0.0.1]:5014"
        ),
        RuntimeError(
            "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc"
            ":81] Timed out waiting 1800000ms for recv operation to complete"
        ),
        RuntimeError(
            "Gloo connectFullMesh failed with [C:\\third_party\\gloo\\gloo\\transport"
            "\\uv\\pair.cc:123] timed out"
        ),
        torch.distributed.DistStoreError("wait timeout after 300000ms"),
        torch.distributed.DistNetworkError("failed to recv, got 0 bytes"),
        torch.distributed.DistBackendError("NCCL error: remote process exited"),
    ],
    ids=lambda error: str(error)[-30:],
)
def test_lost_connections_are_explained(error):
    with (
        pytest.raises(RuntimeError, match="Another process of this fit has stopped"),
        Processes(rank=0, size=2).guard_collectives(),
    ):
        raise error


@pytest.mark.parametrize(
    "text",
    [
        "timeout of the database",
        "the socket of my dataset was closed: timed out",
        "NCCL is no word of mine",
        "/data/gloo/0001.png is no image",
    ],
)
def test_errors_of_a_user_are_not_rewritten(text):
    error = RuntimeError(text)
    with (
        pytest.raises(RuntimeError) as caught,
        Processes(rank=0, size=2).guard_collectives(),
    ):
        raise error
    assert caught.value is error


SCRIPT = """
import os
import signal
import subprocess
import sys

import numpy as np
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator

params, folder, out = eval(sys.argv[1]), sys.argv[2], sys.argv[3]


def die_once(history, fitted):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == "1" and len(history) == 2:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


X = load_digits().images.astype(np.float32)[:240]
model = DeepClusterEstimator(**params, checkpoint_dir=folder, callbacks=die_once)
embedding = model.fit_transform(X)
if os.environ["RANK"] == "0":
    np.savez(out, labels=model.labels_, embedding=embedding)
attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
sys.stdout.write(f"rank {os.environ['RANK']} of attempt {attempt}\\n")
"""


def test_torchrun_restarts_to_the_same_result(processes, tmp_path):
    params = QUICK | {"max_iter": 3}
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "--max-restarts=1", tmp_path / "script.py"]
    command += [repr(params), tmp_path / "checkpoints", tmp_path / "out.npz"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT},
    )
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        assert f"rank {rank} of attempt 1" in done.stdout
        assert f"rank {rank} of attempt 0" not in done.stdout
    found = np.load(tmp_path / "out.npz")
    whole = processes(2, _fit_with_checkpoints, tmp_path / "whole", params)
    for labels, embedding, _ in _results(whole):
        assert_array_equal(found["labels"], labels)
        assert_array_equal(found["embedding"], embedding)
