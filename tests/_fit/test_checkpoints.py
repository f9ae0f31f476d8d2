"""An interrupted fit resumes, and returns the same bits as an uninterrupted fit."""

import functools
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.testing import assert_array_equal
from sklearn.cluster import KMeans
from sklearn.model_selection import GridSearchCV
from torch import nn

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._fit import checkpoints as checkpoints_module
from skdeepcluster._utils.files import TEMPORARY_MARK
from skdeepcluster._utils.tensors import read_tensors, write_tensors

# Fits this short may warn about their symptoms.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N_ROUNDS = 4
# Two epochs of three batches.
BATCHES_PER_ROUND = 2 * 3
PARAMETERS = {
    "defaults": {},
    # Its weights are in the channels-last layout, which momenta have to keep.
    "convnet": {"backbone": "convnet"},
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


class Interruption(Exception):
    """Ends a fit in the middle of a round."""


class Interrupt:
    """An augmentation that raises in the n-th batch. It counts the batches down."""

    def __init__(self, n_batches=-1):
        self.n_batches = n_batches

    def __getstate__(self):
        # All instances are the same parameter for a checkpoint, with any count.
        return {}

    def __call__(self, batch):
        self.n_batches -= 1
        if self.n_batches == 0:
            raise Interruption
        return batch


def quick(**parameters):
    parameters = {
        "n_clusters": 4,
        "backbone": "mlp",
        "max_iter": N_ROUNDS,
        "epochs_per_iter": 2,
        "random_state": 0,
        **parameters,
    }
    return DeepClusterEstimator(**parameters)


def fit_until(n_batches, images, folder, **parameters):
    """Interrupt a fit in its n-th batch."""
    model = quick(augment=Interrupt(n_batches), checkpoint_dir=folder, **parameters)
    with pytest.raises(Interruption):
        model.fit(images)


def list_files(folder):
    """Return the checkpoints of all fits, the latest last."""
    return sorted(folder.glob("*/*"))


def end(history, fitted):
    """End a fit after its first round."""
    return True


def assert_same_fit(model, expected, images):
    assert_array_equal(model.labels_, expected.labels_)
    assert_array_equal(model.transform(images), expected.transform(images))
    assert_array_equal(model.cluster_centers_, expected.cluster_centers_)
    assert model.recipe_ == expected.recipe_
    for record, expected_record in zip(model.history_, expected.history_, strict=True):
        assert record.keys() == expected_record.keys()
        for name in record:
            # Times differ from run to run: seconds_*, images_per_second.
            if "second" not in name:
                assert record[name] == expected_record[name], name


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[0][:150]


@pytest.fixture(scope="module")
def expected(images):
    """A fit of a convnet with random crops, without checkpoints."""
    return quick(backbone="convnet").fit(images)


@pytest.fixture(scope="module")
def uninterrupted(images):
    """Return the uninterrupted fit with some of `PARAMETERS`."""

    @functools.cache
    def fit(name="defaults"):
        return quick(augment=Interrupt(), **PARAMETERS[name]).fit(images)

    return fit


@pytest.fixture(scope="module")
def copy_checkpoints(images, tmp_path_factory):
    """Copy the checkpoints of a fit that was interrupted inside a round.

    Each fit runs once, for all tests.
    """

    @functools.cache
    def interrupt(n_rounds, name, seconds):
        folder = tmp_path_factory.mktemp("interrupted")
        n_batches = n_rounds * BATCHES_PER_ROUND + 4
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoints_module, "SECONDS_BETWEEN_CHECKPOINTS", seconds)
            fit_until(n_batches, images, folder, **PARAMETERS[name])
        return folder

    def copy(folder, n_rounds, name="defaults", seconds=120.0):
        folder.mkdir(exist_ok=True)
        interrupted = interrupt(n_rounds, name, seconds)
        shutil.copytree(interrupted, folder, dirs_exist_ok=True)

    return copy


@pytest.fixture
def every_batch(monkeypatch):
    """Write checkpoints after each batch."""
    monkeypatch.setattr(checkpoints_module, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)


# Between rounds.


@pytest.mark.parametrize(
    ("n_rounds", "name"),
    [(0, "defaults"), (3, "defaults"), *((1, name) for name in PARAMETERS)],
)
def test_resumed_fit_equals_uninterrupted_fit(
    images, tmp_path, uninterrupted, copy_checkpoints, name, n_rounds
):
    copy_checkpoints(tmp_path, n_rounds, name)
    complete_rounds = range(max(0, n_rounds - 1), n_rounds + 1)
    assert [path.name for path in list_files(tmp_path)] == [
        f"round_{number:06d}.safetensors" for number in complete_rounds
    ]
    model = quick(augment=Interrupt(), checkpoint_dir=tmp_path, **PARAMETERS[name])
    model.fit(images)
    assert model.n_iter_ == N_ROUNDS
    assert list(tmp_path.iterdir()) == []
    if name != "random":
        assert_same_fit(model, uninterrupted(name), images)


def test_writing_checkpoints_does_not_change_the_fit(images, tmp_path, expected):
    model = quick(backbone="convnet", checkpoint_dir=tmp_path / "new").fit(images)
    assert_same_fit(model, expected, images)


def test_warm_start_resumes(images, tmp_path):
    def fit_one_round():
        model = quick(augment=Interrupt(), max_iter=1, warm_start=True)
        return model.fit(images)

    model = fit_one_round().set_params(max_iter=3, checkpoint_dir=tmp_path)
    with pytest.raises(Interruption):
        model.set_params(augment=Interrupt(BATCHES_PER_ROUND + 2)).fit(images)
    # The error has left the attributes of the first fit.
    assert model.n_iter_ == 1
    model.set_params(augment=Interrupt()).fit(images)
    assert model.n_iter_ == 4
    assert_same_fit(model, fit_one_round().set_params(max_iter=3).fit(images), images)


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ({"n_clusters": 5}, "n_clusters"),
        ({"learning_rate": 0.02, "balance": None}, "balance, learning_rate"),
        ({"random_state": 1}, "random_state"),
        ({"max_iter": 9}, "max_iter"),
        ({"augment": None}, "augment"),
        ({"augment": functools.partial(torch.mul, other=2)}, "augment"),
        ({"backbone": nn.Sequential(nn.Flatten(), nn.Linear(64, 2))}, "backbone"),
    ],
)
def test_fit_with_other_parameters_warns_and_starts_from_the_beginning(
    images, tmp_path, copy_checkpoints, parameters, names
):
    copy_checkpoints(tmp_path, n_rounds=1)
    contents = {path: path.read_bytes() for path in list_files(tmp_path)}
    parameters = {"augment": Interrupt(), **parameters}
    model = quick(checkpoint_dir=tmp_path, callbacks=end, **parameters)
    with pytest.warns(UserWarning, match=f"but {names} differ.*from the beginning"):
        model.fit(images)
    assert model.n_iter_ == 1
    with pytest.raises(ValueError, match=f"another fit: {names} differ"):
        model.recover(images)
    # The other fit can still resume.
    assert {path: path.read_bytes() for path in list_files(tmp_path)} == contents


def test_fit_on_other_images_warns(images, tmp_path, copy_checkpoints):
    copy_checkpoints(tmp_path, n_rounds=1)
    contents = {path: path.read_bytes() for path in list_files(tmp_path)}
    for other_images in (images[::-1], images[:100]):
        model = quick(checkpoint_dir=tmp_path, augment=Interrupt(), callbacks=end)
        with pytest.warns(UserWarning, match="but X differ.*from the beginning"):
            model.fit(other_images)
        with pytest.raises(ValueError, match="another fit: X differ"):
            model.recover(other_images)
    # Other parameters on other images are no mistake.
    model.set_params(n_clusters=3).fit(images[:100])
    assert {path: path.read_bytes() for path in list_files(tmp_path)} == contents


@pytest.mark.parametrize(
    ("parameters", "equal_parameters"),
    [
        ({"n_clusters": np.int64(4)}, {"n_clusters": 4}),
        ({"max_iter": 4, "momentum": np.float32(0.5)}, {"momentum": 0.5}),
        ({"n_crops": [2, 0]}, {"n_crops": (2, 0)}),
        ({"n_pseudo_labels": (np.int32(6), 9)}, {"n_pseudo_labels": [6, 9]}),
        ({"device": torch.device("cpu")}, {"device": "cpu"}),
        ({"weight_decay": 0}, {"weight_decay": 0.0}),
    ],
)
def test_equal_parameters_resume(images, tmp_path, parameters, equal_parameters):
    def interrupt(history, fitted):
        n_complete.append(len(history))
        if n_complete == [1, 2]:
            raise Interruption
        return len(n_complete) == 3

    n_complete = []
    common = {"callbacks": interrupt, "checkpoint_dir": tmp_path}
    with pytest.raises(Interruption):
        quick(**common, **parameters).fit(images)
    quick(**common, **equal_parameters).fit(images)
    # The second round was not complete, but the first one was.
    assert n_complete == [1, 2, 2]


def test_some_parameters_may_change(images, tmp_path, copy_checkpoints):
    copy_checkpoints(tmp_path / "moved", n_rounds=2)
    n_calls = []
    model = quick(
        augment=Interrupt(),
        checkpoint_dir=tmp_path / "moved",
        cache_dir=tmp_path / "cache",
        verbose=1,
        callbacks=lambda history, fitted: n_calls.append(len(history)),
        n_jobs=1,
    )
    assert model.fit(images).n_iter_ == N_ROUNDS
    # It has resumed after two rounds.
    assert n_calls == [3, 4]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_older_checkpoint_replaces_damaged_one(
    images, tmp_path, uninterrupted, copy_checkpoints, damage
):
    copy_checkpoints(tmp_path, n_rounds=3)
    older, latest = list_files(tmp_path)
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"cut": content[:999], "empty": b"", "flipped": content}
    latest.write_bytes(bytes(damaged[damage]))
    message = rf"{latest} cannot be read: .*Using {older.name}"
    with pytest.warns(UserWarning, match=message):
        model = quick(augment=Interrupt(), checkpoint_dir=tmp_path).fit(images)
    assert_same_fit(model, uninterrupted(), images)


def test_fit_without_intact_checkpoint_starts_from_the_beginning(
    images, tmp_path, uninterrupted, copy_checkpoints
):
    copy_checkpoints(tmp_path, n_rounds=0)
    (path,) = list_files(tmp_path)
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match=rf"{path} .*starts from the beginning"):
        model = quick(augment=Interrupt(), checkpoint_dir=tmp_path).fit(images)
    assert_same_fit(model, uninterrupted(), images)


def test_other_format_raises_and_keeps_the_file(
    images, tmp_path, copy_checkpoints, monkeypatch
):
    copy_checkpoints(tmp_path, n_rounds=0)
    (path,) = list_files(tmp_path)
    format_of_file = checkpoints_module.CHECKPOINT_FORMAT
    monkeypatch.setattr(checkpoints_module, "CHECKPOINT_FORMAT", 99)
    message = rf"another version .*format {format_of_file}, not 99\."
    with pytest.raises(ValueError, match=message):
        quick(augment=Interrupt(), checkpoint_dir=tmp_path).fit(images)
    assert path.exists()


# Forged files, whose checksum is that of their content.


def forge_metadata(path, *keys, value=None, remove=False):
    """Replace or remove a value of the metadata, at nested keys."""
    metadata, tensors = read_tensors(path)
    *parents, last = keys
    nested = metadata
    for key in parents:
        nested = nested[key]
    if remove:
        del nested[last]
    else:
        nested[last] = value(nested[last]) if callable(value) else value
    write_tensors(path, metadata, tensors)


def forge_tensor(path, name, function):
    """Replace a tensor, or remove it if the function returns None."""
    metadata, tensors = read_tensors(path)
    (name,) = [key for key in tensors if key.endswith(name)]
    value = function(tensors.pop(name))
    write_tensors(path, metadata, tensors | ({} if value is None else {name: value}))


# The state inside "fit" is forged in test_state.py, in more ways.
HUGE = 10**400
FORGED_VALUES = [
    *((("format",), value) for value in (None, "8", 7)),
    *((("fit",), value) for value in (None, {}, "fit")),
    *((("state",), value) for value in (None, {}, 3)),
    *((("state", name), "x") for name in ("fit", "network", "entropy", "generators")),
    *((("state", "entropy"), value) for value in (-1, HUGE, True)),
    *((("state", "generators"), value) for value in ([["x"]], [[None, None]])),
    (("state", "network", "front.0.mean"), 3.0),
    (("state", "network", "front.0.mean"), {"tensor": "no such tensor"}),
    (("state", "network", "front.0.mean"), {"array": "state.network.front.0.mean"}),
    (("state", "network", "another"), 3.0),
    (("state", "fit"), {}),
    (("state", "fit", "n_rounds"), 4),
    (("state", "fit", "training", "losses"), ["x"]),
]
REMOVED = [("format",), ("fit",), ("state", "network"), ("state", "fit", "labels")]
FORGED_TENSORS = [
    ("fit.labels", lambda t: t * 2**20),
    ("fit.labels", lambda t: None),
    ("network.front.0.mean", lambda t: t.double()),
    ("network.front.0.mean", lambda t: t.repeat(2, 1, 1, 1)),
    ("fit.optimizer.momenta.0", lambda t: t * torch.inf),
    ("generators.0.0", lambda t: t.float()),
    ("generators.0.0", lambda t: torch.full_like(t, 255)),
]


def assert_refused_or_replaced(images, folder, path, expected):
    """Assert that a forged file is an error with its name, or that it is not used."""
    model = quick(augment=Interrupt(), checkpoint_dir=folder)
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.fit(images)
        except ValueError as raised:
            error = raised
    if error is None:
        assert f"{path} cannot be read" in str(caught[0].message)
        assert_same_fit(model, expected, images)
    else:
        assert str(path) in str(error)


@pytest.fixture
def forged_path(tmp_path, copy_checkpoints):
    """A checkpoint inside the third round that may be forged."""
    copy_checkpoints(tmp_path, n_rounds=2, seconds=-1.0)
    return list_files(tmp_path)[-1]


@pytest.mark.parametrize(("keys", "value"), FORGED_VALUES)
def test_forged_values(images, tmp_path, uninterrupted, forged_path, keys, value):
    forge_metadata(forged_path, *keys, value=value)
    assert_refused_or_replaced(images, tmp_path, forged_path, uninterrupted())


@pytest.mark.parametrize("keys", REMOVED)
def test_removed_values(images, tmp_path, uninterrupted, forged_path, keys):
    forge_metadata(forged_path, *keys, remove=True)
    assert_refused_or_replaced(images, tmp_path, forged_path, uninterrupted())


@pytest.mark.parametrize(("name", "function"), FORGED_TENSORS)
def test_forged_tensors(images, tmp_path, uninterrupted, forged_path, name, function):
    forge_tensor(forged_path, name, function)
    assert_refused_or_replaced(images, tmp_path, forged_path, uninterrupted())


def test_forged_weights_of_any_size_are_errors(images, tmp_path, forged_path):
    def multiply(weights):
        return weights * 1e37

    metadata, _ = read_tensors(forged_path)
    name = next(n for n in metadata["state"]["network"] if n.endswith("weight"))
    forge_tensor(forged_path, f"state.network.{name}", multiply)
    with pytest.raises(ValueError, match="diverged"):
        quick(augment=Interrupt(), checkpoint_dir=tmp_path).fit(images)


# Inside a round.


@pytest.mark.parametrize(
    ("n_rounds", "n_batches", "name"),
    [
        (0, 2, "defaults"),
        *((1, n_batches, "defaults") for n_batches in (0, 1, 3)),
        *((2, 4, name) for name in PARAMETERS if name != "random"),
    ],
)
def test_fit_resumes_inside_a_round(
    images, tmp_path, uninterrupted, every_batch, name, n_rounds, n_batches
):
    n_steps = n_rounds * BATCHES_PER_ROUND + n_batches
    fit_until(n_steps + 1, images, tmp_path, **PARAMETERS[name])
    suffix = f"_{n_steps:09d}" if n_batches else ""
    latest = list_files(tmp_path)[-1].stem
    assert latest == f"round_{n_rounds:06d}{suffix}"
    augment = Interrupt()
    model = quick(augment=augment, checkpoint_dir=tmp_path, **PARAMETERS[name])
    model.fit(images)
    # No batch was trained on twice.
    n_resumed = -1 - augment.n_batches
    assert n_resumed == N_ROUNDS * BATCHES_PER_ROUND - n_steps
    assert_same_fit(model, uninterrupted(name), images)


def test_random_crops_resume(images, tmp_path, every_batch, expected, monkeypatch):
    write = checkpoints_module.Checkpoints.write

    def write_and_interrupt(self, content, n_rounds, n_steps=None):
        write(self, content, n_rounds, n_steps)
        if n_steps == BATCHES_PER_ROUND + 4:
            raise Interruption

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module.Checkpoints, "write", write_and_interrupt)
        with pytest.raises(Interruption):
            quick(backbone="convnet", checkpoint_dir=tmp_path).fit(images)
    model = quick(backbone="convnet", checkpoint_dir=tmp_path).fit(images)
    assert_same_fit(model, expected, images)


def test_two_files_and_the_last_complete_round_are_kept(tmp_path, copy_checkpoints):
    copy_checkpoints(tmp_path, n_rounds=2, seconds=-1.0)
    assert [path.stem for path in list_files(tmp_path)] == [
        "round_000002",
        f"round_000002_{2 * BATCHES_PER_ROUND + 2:09d}",
        f"round_000002_{2 * BATCHES_PER_ROUND + 3:09d}",
    ]


def test_files_inside_a_round_are_rare(tmp_path, copy_checkpoints):
    copy_checkpoints(tmp_path, n_rounds=1, seconds=1e9)
    assert [path.stem for path in list_files(tmp_path)] == [
        "round_000000",
        "round_000001",
    ]


# Recovery of the last complete round.


@pytest.mark.parametrize("name", ["defaults", "single k"])
def test_recover_equals_fit_that_ended_with_the_round(
    images, tmp_path, copy_checkpoints, name
):
    copy_checkpoints(tmp_path, n_rounds=2, name=name, seconds=-1.0)
    paths = list_files(tmp_path)
    model = quick(augment=Interrupt(), checkpoint_dir=tmp_path, **PARAMETERS[name])
    model.recover(images)
    assert model.n_iter_ == 2
    assert_array_equal(model.predict(images), model.labels_)
    # The checkpoints are kept, so that the fit can still resume.
    assert list_files(tmp_path) == paths

    ended = quick(
        augment=Interrupt(),
        callbacks=lambda history, fitted: len(history) == 2,
        **PARAMETERS[name],
    ).fit(images)
    assert_same_fit(model, ended, images)
    assert model.fit(images).n_iter_ == N_ROUNDS


def test_recover_without_checkpoint_dir_raises(images):
    with pytest.raises(ValueError, match="checkpoint_dir=None holds no"):
        quick().recover(images)


def test_recover_before_the_first_round_returns_clusters(images, tmp_path):
    model = quick(checkpoint_dir=tmp_path)
    with pytest.raises(Interruption):
        model.set_params(augment=Interrupt(2)).fit(images)
    model.recover(images)
    assert model.n_iter_ == 0
    assert model.history_ == []
    assert len(np.unique(model.labels_)) == model.n_clusters
    assert_array_equal(model.predict(images), model.labels_)


def test_recover_of_another_fit_raises(images, tmp_path, copy_checkpoints):
    copy_checkpoints(tmp_path, n_rounds=1)
    model = quick(n_clusters=3, augment=Interrupt(), checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="another fit: n_clusters differ"):
        model.recover(images)


# Failures.


class Diverging(nn.Module):
    """A network with a weight that becomes NaN in the n-th batch of training."""

    def __init__(self, n_batches):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
        self.n_batches = n_batches

    def extra_repr(self):
        # Checkpoints compare modules by their repr.
        return f"{self.n_batches}"

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.n_batches -= 1
            if self.n_batches == 0:
                self.layers[1].weight.data[0, 0] = torch.nan
        return self.layers(x)


def test_weights_that_are_nan_are_not_written(images, tmp_path, every_batch):
    backbone = Diverging(BATCHES_PER_ROUND + 2)
    model = quick(backbone=backbone, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"loss is nan in round 2: .*learning_rate"):
        model.fit(images)
    assert [path.name for path in list_files(tmp_path)] == [
        "round_000001.safetensors",
        "round_000001_000000007.safetensors",
    ]
    model.recover(images)
    assert model.n_iter_ == 1
    assert np.isfinite(model.transform(images)).all()


def test_full_disk_warns_and_the_fit_continues(
    images, tmp_path, monkeypatch, uninterrupted, copy_checkpoints
):
    def raise_full_disk(*args):
        raise OSError(28, "No space left on device")

    copy_checkpoints(tmp_path, n_rounds=1)
    monkeypatch.setattr(os, "fsync", raise_full_disk)
    with (
        pytest.warns(UserWarning, match="No checkpoint round_000002 .*No space left"),
        pytest.warns(UserWarning, match="No checkpoint round_000003 .*No space left"),
    ):
        model = quick(augment=Interrupt(), checkpoint_dir=tmp_path).fit(images)
    assert model.n_iter_ == N_ROUNDS
    assert_same_fit(model, uninterrupted(), images)


@pytest.mark.parametrize("name", ["unlink", "rmdir"])
def test_checkpoints_that_cannot_be_removed_are_a_warning(
    images, tmp_path, monkeypatch, uninterrupted, copy_checkpoints, name
):
    def raise_read_only(path, missing_ok=False):
        raise OSError(30, "Read-only file system")

    copy_checkpoints(tmp_path, n_rounds=3)
    (folder,) = tmp_path.iterdir()
    monkeypatch.setattr(Path, name, raise_read_only)
    message = f"{folder} cannot be removed: .*The fit is complete"
    with pytest.warns(UserWarning, match=message):
        model = quick(augment=Interrupt(), checkpoint_dir=tmp_path).fit(images)
    assert_same_fit(model, uninterrupted(), images)


def test_old_checkpoints_that_cannot_be_removed_are_a_warning(
    images, tmp_path, monkeypatch
):
    def raise_read_only(path, missing_ok=False):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", raise_read_only)
    with (
        pytest.warns(UserWarning, match="No checkpoint round_000002 .*not permitted"),
        pytest.warns(UserWarning, match="No checkpoint round_000003 .*not permitted"),
        pytest.warns(UserWarning, match="cannot be removed"),
    ):
        model = quick(checkpoint_dir=tmp_path).fit(images)
    assert model.n_iter_ == N_ROUNDS


# Files of the user, and of other fits.


def test_files_that_the_fit_did_not_write_are_kept(images, tmp_path, copy_checkpoints):
    copy_checkpoints(tmp_path, n_rounds=3)
    (folder,) = tmp_path.iterdir()
    path = list_files(tmp_path)[0]
    metadata, tensors = read_tensors(path)
    contents = {
        "round_000001.safetensors": b"mine",
        "round_000007.safetensors": safetensors.torch.save({"mine": torch.ones(2)}),
        "round_of_golf.safetensors": b"",
        ".round_000001.safetensors-notes": b"mine",
    }
    for place in (tmp_path, folder):
        for name, content in contents.items():
            (place / name).write_bytes(content)
    # The mark of another fit.
    other = folder / "round_000000.safetensors"
    write_tensors(other, metadata | {"fit": {"X": "another"}}, tensors)
    # Parts of files that this fit was writing when it was killed.
    unfinished = folder / f".{path.name}-{16 * 'a'}{TEMPORARY_MARK}"
    unfinished.write_bytes(path.read_bytes()[:-99])
    (folder / f".{path.name}-{16 * 'b'}{TEMPORARY_MARK}").write_bytes(b"")
    with pytest.warns(UserWarning, match="round_000007.* cannot be read"):
        quick(augment=Interrupt(), checkpoint_dir=tmp_path).fit(images)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert kept.pop(other)
    assert kept == {
        place / name: content
        for place in (tmp_path, folder)
        for name, content in contents.items()
    }


@pytest.mark.parametrize("name", ["checkpoint_dir", "cache_dir"])
def test_load_sets_no_folder(images, tmp_path, name):
    model = quick(max_iter=1).fit(images).set_params(**{name: tmp_path / "stranger"})
    model.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    assert getattr(loaded, name) is None
    assert_array_equal(loaded.labels_, model.labels_)


@pytest.mark.parametrize("parameters", [{}, {"learning_rate": 0.02}])
def test_fits_share_a_folder_at_the_same_time(
    images, tmp_path, uninterrupted, parameters
):
    """Another fit, or the same one, starts and ends within a fit."""
    augment, other_augment = Interrupt(), Interrupt()
    others = []

    def fit_other(history, fitted):
        if len(history) == 2:
            other = quick(augment=other_augment, checkpoint_dir=tmp_path, **parameters)
            others.append(other.fit(images))
        if len(history) == 3:
            # The other fit has removed its own files alone.
            (path, *_) = list_files(tmp_path)[-2:]
            assert path.stem in ("round_000001", "round_000002")

    model = quick(augment=augment, checkpoint_dir=tmp_path, callbacks=fit_other)
    model.fit(images)
    assert_same_fit(model, uninterrupted(), images)
    assert list(tmp_path.iterdir()) == []
    assert others[0].n_iter_ == N_ROUNDS


def test_interrupted_search_resumes(images, tmp_path):
    """Each fit of a search has its own checkpoints, and none causes a warning."""
    n_calls = []

    def interrupt(history, fitted):
        n_calls.append(len(history))
        if len(n_calls) == 6:
            raise KeyboardInterrupt

    model = quick(max_iter=2, checkpoint_dir=tmp_path, callbacks=interrupt)
    search = GridSearchCV(
        model,
        {"n_clusters": [3, 4]},
        cv=2,
        scoring=lambda model, X, y=None: 1.0,
        refit=False,
        error_score="raise",
    )
    with pytest.raises(KeyboardInterrupt):
        search.fit(images)
    assert len(list(tmp_path.iterdir())) == 1
    del n_calls[6:]
    search.fit(images)
    # The first two fits were complete, and the third resumes after its first round.
    assert n_calls[6:] == [1, 2, 1, 2, 2, 1, 2]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits(images, tmp_path, dtype):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)).to(dtype)

        def forward(self, x):
            return self.layers(x.to(dtype)).float()

    def interrupt(history, fitted):
        if len(history) == 2:
            raise Interruption

    torch.manual_seed(0)
    model = quick(backbone=Half(), checkpoint_dir=tmp_path, callbacks=interrupt)
    with pytest.raises(Interruption):
        model.fit(images)
    model.set_params(callbacks=None).fit(images)
    expected = quick(backbone=model.backbone).fit(images)
    assert_same_fit(model, expected, images)
    model.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model", backbone=Half())
    assert_array_equal(loaded.transform(images), model.transform(images))


@pytest.mark.parametrize("row", [1, 17, 149])
def test_a_change_of_any_image_is_another_fit(images, tmp_path, copy_checkpoints, row):
    copy_checkpoints(tmp_path, n_rounds=2)
    changed = images.copy()
    changed[row] = changed[row][::-1] + 1
    model = quick(augment=Interrupt(), checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="another fit: X differ"):
        model.recover(changed)
