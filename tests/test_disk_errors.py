"""Errors of a disk name the argument, the folder and the cure, and leave no file."""

import contextlib
import errno
import os

import numpy as np
import pytest
import torch
from PIL import Image

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.io import export_clusters, write_embeddings

# Windows has no limits of resources.
resource = pytest.importorskip("resource")

# Fits of a few steps warn that they did not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

QUICK = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0}


@pytest.fixture(scope="module")
def photos(digits_images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for row, values in enumerate(digits_images[0][:40]):
        Image.fromarray(values).save(folder / f"{row:02d}.png")
    return folder


@pytest.fixture(scope="module")
def model(photos):
    return DeepClusterEstimator(3, **QUICK).fit(photos)


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "full disk"
    folder.mkdir()
    return folder


def fit_with_cache(model, photos, out):
    DeepClusterEstimator(3, cache_dir=out, **QUICK).fit(photos)


def fit_frozen_with_cache(model, photos, out):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 16))
    frozen = DeepClusterEstimator(3, backbone=network, fine_tune=False, cache_dir=out)
    frozen.fit(np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8))


def save(model, photos, out):
    model.save(out / "model")


def write_array(model, photos, out):
    write_embeddings(model, photos, out / "x.npy")


def write_table(model, photos, out):
    pytest.importorskip("pyarrow")
    write_embeddings(model, photos, out / "x.parquet")


def export(model, photos, out):
    export_clusters(model.labels_, model.paths_, out / "clusters", mode="csv")


WRITERS = {
    fit_with_cache: "cache_dir='.*full disk'",
    fit_frozen_with_cache: "cache_dir='.*full disk'",
    save: "path='.*full disk/model'",
    write_array: r"path='.*full disk/x\.npy'",
    write_table: r"path='.*full disk/x\.parquet'",
    export: "directory='.*full disk/clusters'",
}
CURES = {
    errno.ENOSPC: "No space left on device.* a folder on a larger",
    errno.EDQUOT: "name a folder on another disk",
    errno.EIO: "Check its disk",
    errno.EROFS: "Name a folder that this process may write to",
    errno.EACCES: "Name a folder that this process may write to",
}


@contextlib.contextmanager
def limit_file_size(n_bytes):
    """Let the system refuse larger files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def list_files(folder):
    """Return all files but the description of unfinished embeddings."""
    return [
        path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"
    ]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("number", CURES)
def test_errors_of_the_disk(monkeypatch, model, photos, out, writer, number):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        OSError, match=f"(?s){WRITERS[writer]}.*{CURES[number]}"
    ) as error:
        writer(model, photos, out)
    assert error.value.errno == number
    assert list_files(out) == []


@pytest.mark.parametrize("writer", WRITERS)
def test_files_that_the_system_refuses(model, photos, out, writer):
    with (
        limit_file_size(1000),
        pytest.raises(OSError, match=f"(?s){WRITERS[writer]}.*Name a folder on a file"),
    ):
        writer(model, photos, out)
    assert list_files(out) == []
    writer(model, photos, out)


LONG = "x" * 300
LONG_NAMES = {
    "cache_dir": lambda model, photos, out: fit_with_cache(model, photos, out / LONG),
    "path": lambda model, photos, out: model.save(out / LONG),
    "path=.*npy": lambda model, photos, out: write_embeddings(
        model, photos, out / f"{LONG}.npy"
    ),
    "directory": lambda model, photos, out: export_clusters(
        model.labels_, model.paths_, out / LONG
    ),
}


@pytest.mark.parametrize("argument", LONG_NAMES)
def test_names_that_are_too_long(model, photos, out, argument):
    with pytest.raises(
        OSError, match=f"(?s){argument}.*Choose a shorter name"
    ) as error:
        LONG_NAMES[argument](model, photos, out)
    assert error.value.errno == errno.ENAMETOOLONG
    assert list_files(out) == []
