"""A fit that was stopped, by whatever, goes on and ends as it would have without."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from torch import nn

from skdeepcluster import DeepClusterEstimator, _checkpoints

# Quick fits may well say that they are.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ROUNDS = 4


def quick(**params):
    params = {"max_iter": ROUNDS, "epochs_per_iter": 2, "random_state": 0, **params}
    return DeepClusterEstimator(**{"n_clusters": 4, **params})


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[0][:150]


@pytest.fixture(scope="module")
def expected(images):
    return quick().fit(images)


class Stop(Exception):
    """What stops a fit in the middle of a round."""


class StopAfter:
    """An augmentation that raises at its n-th call."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, batch):
        self.calls -= 1
        if self.calls == 0:
            raise Stop
        return batch


CALLS_A_ROUND = 2 * 3  # epochs, batches


def stopped(images, folder, n_rounds, **params):
    """Stop a fit in the round after `n_rounds` rounds."""
    augment = StopAfter(n_rounds * CALLS_A_ROUND + 4)
    with pytest.raises(Stop):
        quick(augment=augment, checkpoint_dir=folder, **params).fit(images)
    return StopAfter(-1)  # of the same kind, so the same parameter


def assert_same_fit(model, other, images):
    assert_array_equal(model.labels_, other.labels_)
    assert_array_equal(model.transform(images), other.transform(images))
    assert_array_equal(model.cluster_centers_, other.cluster_centers_)
    assert model.inertia_ == other.inertia_
    for one, two in zip(model.history_, other.history_, strict=True):
        for name in one:
            if not name.startswith("seconds"):
                assert one[name] == two[name], name


PARAMS = {
    "defaults": {},
    "no momentum": {"momentum": 0.0, "n_jobs": 1},
    "single k": {"n_pseudo_labels": 4, "n_neighbors": None, "init": "features"},
    "random": {"random_state": None},
    "dropout": {
        "backbone": nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 8)
        )
    },
}


@pytest.mark.parametrize(
    ("n_rounds", "params"),
    [(0, "defaults"), (3, "defaults"), *((1, name) for name in PARAMS)],
)
def test_a_stopped_fit_ends_as_one_that_was_not(images, tmp_path, params, n_rounds):
    params = PARAMS[params]
    augment = stopped(images, tmp_path, n_rounds, **params)
    found = sorted(path.name for path in tmp_path.iterdir())
    kept = range(max(1, n_rounds - 1), n_rounds + 1)
    assert found == [f"round_{k:06d}.safetensors" for k in kept]
    model = quick(augment=augment, checkpoint_dir=tmp_path, **params).fit(images)
    assert model.n_iter_ == ROUNDS
    assert list(tmp_path.iterdir()) == []
    if params.get("random_state", 0) is not None:
        other = quick(augment=augment, **params).fit(images)
        assert_same_fit(model, other, images)


def test_checkpoints_change_nothing(images, tmp_path, expected):
    model = quick(checkpoint_dir=tmp_path / "new").fit(images)
    assert_same_fit(model, expected, images)


def test_a_warm_start_goes_on_too(images, tmp_path):
    def first():
        return quick(augment=StopAfter(-1), max_iter=1, warm_start=True).fit(images)

    model = first().set_params(max_iter=3, checkpoint_dir=tmp_path)
    with pytest.raises(Stop):
        model.set_params(augment=StopAfter(CALLS_A_ROUND + 2)).fit(images)
    assert model.n_iter_ == 1  # as before the call
    model.set_params(augment=StopAfter(-1)).fit(images)
    other = first().set_params(max_iter=3).fit(images)
    assert model.n_iter_ == 4
    assert_same_fit(model, other, images)


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({"n_clusters": 5}, "n_clusters"),
        ({"learning_rate": 0.02, "balance": None}, "balance, learning_rate"),
        ({"random_state": 1}, "random_state"),
        ({"max_iter": 9}, "max_iter"),
        ({"augment": None}, "augment"),
        ({"backbone": nn.Sequential(nn.Flatten(), nn.Linear(64, 2))}, "backbone"),
    ],
)
def test_another_fit_is_refused(images, tmp_path, params, names):
    augment = stopped(images, tmp_path, 1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    params = {"augment": augment, **params}
    with pytest.raises(ValueError, match=f"another fit: {names} differ"):
        quick(checkpoint_dir=tmp_path, **params).fit(images)
    with pytest.raises(ValueError, match="another fit: X differ"):
        quick(checkpoint_dir=tmp_path, augment=augment).fit(images[::-1])
    with pytest.raises(ValueError, match="another fit: X differ"):
        quick(checkpoint_dir=tmp_path, augment=augment).fit(images[:100])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_may_change(images, tmp_path, expected):
    augment = stopped(images, tmp_path / "a", 2)
    (tmp_path / "a").rename(tmp_path / "b")
    model = quick(checkpoint_dir=tmp_path / "b", augment=augment, verbose=0, cache=None)
    assert model.fit(images).n_iter_ == ROUNDS


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "newer"])
def test_the_round_before_a_damaged_one_is_used(images, tmp_path, damage, monkeypatch):
    if damage == "newer":
        monkeypatch.setattr(_checkpoints, "FORMAT", 2)
    augment = stopped(images, tmp_path, 3)
    monkeypatch.undo()
    earlier, last = sorted(tmp_path.iterdir())
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "newer":
        earlier.unlink()
    else:
        pieces = {"cut": content[:999], "empty": b"", "flipped": content}
        last.write_bytes(bytes(pieces[damage]))
    with pytest.warns(UserWarning, match=rf"{last} cannot be read: .*is used"):
        model = quick(augment=augment, checkpoint_dir=tmp_path).fit(images)
    assert_same_fit(model, quick(augment=augment).fit(images), images)


def test_a_full_disk_is_warned_of(images, tmp_path, monkeypatch, expected):
    def full(*args):
        raise OSError(28, "No space left on device")

    stopping = stopped(images, tmp_path, 1)
    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.warns(UserWarning, match="No checkpoint of round 2 .*No space left"),
        pytest.warns(UserWarning, match="No checkpoint of round 3 .*No space left"),
    ):
        model = quick(augment=stopping, checkpoint_dir=tmp_path).fit(images)
    assert model.n_iter_ == ROUNDS
    assert_same_fit(model, quick(augment=stopping).fit(images), images)


MOMENTS = 1  # at which a process is killed: each takes two processes
SCRIPT = """
import json, sys
import numpy as np
from skdeepcluster import DeepClusterEstimator
images = np.load(sys.argv[1])
model = DeepClusterEstimator(4, max_iter=6, epochs_per_iter=2, random_state=0,
                             checkpoint_dir=sys.argv[2] if len(sys.argv) > 2 else None)
print("start", flush=True)
model.fit(images)
import joblib
print(joblib.hash([model.labels_, model.transform(images)]))
"""


def run(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, text=True
    )


def test_a_killed_process_goes_on(images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    job = run(tmp_path / "images.npy")
    assert job.stdout.readline() == "start\n"
    begun = time.monotonic()
    expected = job.communicate()[0]
    seconds = time.monotonic() - begun
    moments = np.random.default_rng(0).uniform(0.2, 0.8, MOMENTS) * seconds
    for number, moment in enumerate(moments):
        job = run(tmp_path / "images.npy", tmp_path / f"{number}")
        assert job.stdout.readline() == "start\n"
        time.sleep(moment)
        job.kill()
        job.communicate()
        if job.returncode != 0:  # else it had ended before
            assert job.returncode == -signal.SIGKILL
            again = run(tmp_path / "images.npy", tmp_path / f"{number}")
            assert again.communicate()[0] == "start\n" + expected
