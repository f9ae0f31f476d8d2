"""A fit that was stopped, by whatever, goes on and ends as it would have without."""

import functools
import os

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.cluster import KMeans
from torch import nn

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._fit import checkpoints as checkpoints_module
from skdeepcluster._fit import fit as fit_module

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

    def __getstate__(self):
        # The counter is no part of the parameter.
        return {}

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
            if "second" not in name:
                assert one[name] == two[name], name


PARAMS = {
    "defaults": {},
    "no momentum": {"momentum": 0.0, "n_jobs": 1},
    "single k": {"n_pseudo_labels": 4, "n_neighbors": None, "init": "features"},
    "random": {"random_state": None},
    "centroids": {"head": "centroids", "n_pseudo_labels": (6, 9)},
    "another clusterer": {"clusterer": KMeans()},
    "dropout": {
        "backbone": nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 8)
        )
    },
}


@pytest.fixture(scope="module")
def whole(images):
    """Fits, by name of their parameters, that nothing stopped."""

    @functools.cache
    def fit(name="defaults"):
        return quick(augment=StopAfter(-1), **PARAMS[name]).fit(images)

    return fit


@pytest.mark.parametrize(
    ("n_rounds", "name"),
    [(0, "defaults"), (3, "defaults"), *((1, name) for name in PARAMS)],
)
def test_a_stopped_fit_ends_as_one_that_was_not(
    images, tmp_path, whole, name, n_rounds
):
    params = PARAMS[name]
    augment = stopped(images, tmp_path, n_rounds, **params)
    found = sorted(path.name for path in tmp_path.iterdir())
    kept = range(max(1, n_rounds - 1), n_rounds + 1)
    assert found == [f"round_{k:06d}.safetensors" for k in kept]
    model = quick(augment=augment, checkpoint_dir=tmp_path, **params).fit(images)
    assert model.n_iter_ == ROUNDS
    assert list(tmp_path.iterdir()) == []
    if name != "random":
        assert_same_fit(model, whole(name), images)


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
        ({"augment": functools.partial(np.multiply, 2)}, "augment"),
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


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_the_state_before_a_damaged_one_is_used(images, tmp_path, whole, damage):
    augment = stopped(images, tmp_path, 3)
    earlier, last = sorted(tmp_path.iterdir())
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    pieces = {"cut": content[:999], "empty": b"", "flipped": content}
    last.write_bytes(bytes(pieces[damage]))
    used = rf"{last} cannot be read: .*Used instead: {earlier.name}"
    with pytest.warns(UserWarning, match=used):
        model = quick(augment=augment, checkpoint_dir=tmp_path).fit(images)
    assert_same_fit(model, whole(), images)


def test_a_fit_whose_files_are_all_damaged_starts_anew(images, tmp_path, whole):
    augment = stopped(images, tmp_path, 1)
    (only,) = tmp_path.iterdir()
    only.write_bytes(b"")
    with pytest.warns(UserWarning, match=rf"{only} .* The fit starts anew"):
        model = quick(augment=augment, checkpoint_dir=tmp_path).fit(images)
    assert_same_fit(model, whole(), images)


def test_another_version_is_refused_and_its_work_left_alone(
    images, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoints_module, "FORMAT", 99)
    augment = stopped(images, tmp_path, 1)
    monkeypatch.undo()
    (only,) = tmp_path.iterdir()
    refusal = rf"another version .*format 99, not {checkpoints_module.FORMAT}\."
    with pytest.raises(ValueError, match=refusal):
        quick(augment=augment, checkpoint_dir=tmp_path).fit(images)
    assert only.exists()


# Inside a round.


@pytest.fixture
def often(monkeypatch):
    """Checkpoints after every batch."""
    monkeypatch.setattr(checkpoints_module, "SECONDS", -1.0)


@pytest.mark.parametrize(
    ("n_rounds", "n_batches", "name"),
    [
        (0, 2, "defaults"),
        *((1, n_batches, "defaults") for n_batches in (0, 1, 3)),
        *((2, 4, name) for name in PARAMS if name != "random"),
    ],
)
def test_a_fit_goes_on_inside_a_round(
    images, tmp_path, whole, name, n_rounds, n_batches, often
):
    params, n_steps = PARAMS[name], n_rounds * CALLS_A_ROUND + n_batches
    augment = StopAfter(n_steps + 1)
    with pytest.raises(Stop):
        quick(augment=augment, checkpoint_dir=tmp_path, **params).fit(images)
    last = max(path.stem for path in tmp_path.iterdir())
    inside = f"_{n_steps:09d}" if n_batches else ""
    assert last == f"round_{n_rounds:06d}{inside}"
    augment = StopAfter(-1)
    model = quick(augment=augment, checkpoint_dir=tmp_path, **params).fit(images)
    # Not a batch was repeated.
    assert -1 - augment.calls == ROUNDS * CALLS_A_ROUND - n_steps
    assert_same_fit(model, whole(name), images)


def test_random_crops_go_on_where_they_were(
    images, tmp_path, often, expected, monkeypatch
):
    write = checkpoints_module.Checkpoints.write

    def write_and_stop(self, state, n_rounds, n_steps=None):
        write(self, state, n_rounds, n_steps)
        if n_steps == CALLS_A_ROUND + 4:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module.Checkpoints, "write", write_and_stop)
        with pytest.raises(Stop):
            quick(checkpoint_dir=tmp_path).fit(images)
    assert_same_fit(quick(checkpoint_dir=tmp_path).fit(images), expected, images)


def test_two_files_are_kept_and_the_last_complete_round(images, tmp_path, often):
    augment = StopAfter(2 * CALLS_A_ROUND + 5)
    with pytest.raises(Stop):
        quick(augment=augment, checkpoint_dir=tmp_path).fit(images)
    steps = [2 * CALLS_A_ROUND + done for done in (3, 4)]
    names = ["round_000002", *(f"round_000002_{step:09d}" for step in steps)]
    assert sorted(path.stem for path in tmp_path.iterdir()) == names


def test_inside_a_round_files_are_minutes_apart(images, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints_module, "SECONDS", 1e9)
    stopped(images, tmp_path, 1)
    assert [path.stem for path in tmp_path.iterdir()] == ["round_000001"]


# Instead of going on.


@pytest.mark.parametrize("kind", ["defaults", "single k"])
def test_the_last_complete_round_can_be_recovered(images, tmp_path, kind, often):
    augment = stopped(images, tmp_path, 2, **PARAMS[kind])
    before = sorted(tmp_path.iterdir())
    model = quick(augment=augment, checkpoint_dir=tmp_path, **PARAMS[kind])
    model.recover(images)
    assert model.n_iter_ == 2
    assert_array_equal(model.predict(images), model.labels_)
    assert sorted(tmp_path.iterdir()) == before

    def ending(history, n):
        """Have `tol` end a fit after two rounds."""
        if len(history) == 2:
            history[-1]["nmi_previous"] = 1.0
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "round_symptoms", ending)
        other = quick(augment=augment, **PARAMS[kind]).fit(images)
    other.history_[-1]["nmi_previous"] = model.history_[-1]["nmi_previous"]
    assert_same_fit(model, other, images)
    assert model.fit(images).n_iter_ == ROUNDS  # it can still go on


def test_there_may_be_nothing_to_recover(images, tmp_path, expected, often):
    with pytest.raises(ValueError, match="checkpoint_dir=None holds no complete"):
        quick().recover(images)
    augment = stopped(images, tmp_path, 0)
    model = quick(augment=augment, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="holds no complete round"):
        model.recover(images)
    assert not [name for name in vars(model) if name.endswith("_")]
    stopped(images, tmp_path / "other", 1)
    with pytest.raises(ValueError, match="another fit: n_clusters differ"):
        model.set_params(n_clusters=3, checkpoint_dir=tmp_path / "other").recover(
            images
        )


class Poison(nn.Module):
    """A network whose weights become NaN after so many batches of training."""

    def __init__(self, n_batches):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
        self.n_left = n_batches

    def extra_repr(self):
        return f"{self.n_left}"

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.n_left -= 1
            if self.n_left == 0:
                self.layers[1].weight.data[0, 0] = torch.nan
        return self.layers(x)


def test_weights_that_become_nan_are_not_kept(images, tmp_path, often):
    model = quick(backbone=Poison(CALLS_A_ROUND + 2), checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"loss is nan in round 2: .*learning_rate"):
        model.fit(images)
    kept = [f"round_000001{step}.safetensors" for step in ("", "_000000007")]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    model.recover(images)
    assert model.n_iter_ == 1
    assert np.isfinite(model.transform(images)).all()


def test_a_full_disk_is_warned_of(images, tmp_path, monkeypatch, whole):
    def full(*args):
        raise OSError(28, "No space left on device")

    stopping = stopped(images, tmp_path, 1)
    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.warns(UserWarning, match="No checkpoint round_000002 .*No space left"),
        pytest.warns(UserWarning, match="No checkpoint round_000003 .*No space left"),
    ):
        model = quick(augment=stopping, checkpoint_dir=tmp_path).fit(images)
    assert model.n_iter_ == ROUNDS
    assert_same_fit(model, whole(), images)
