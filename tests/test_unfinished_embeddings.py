"""An interrupted `write_embeddings` keeps its chunks, and files of the user."""

import errno
import itertools
import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image, ImageFile

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.io import _embeddings, write_embeddings

# Fits of a few steps warn that they did not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

# Number of images, in chunks of 16.
N = 40
QUICK = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(_embeddings, "CHUNK_ROWS", 16)
    monkeypatch.setattr(_embeddings, "COMPARED_IMAGES", 2)


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[0][:N]


@pytest.fixture(scope="module")
def model(images):
    return DeepClusterEstimator(4, **QUICK).fit(images)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "x.npy"


@pytest.fixture
def partial(path):
    return path.with_name("x.npy.partial")


def write_files(images, folder):
    folder.mkdir()
    for row, values in enumerate(images):
        Image.fromarray(values).save(folder / f"{row:03d}.png")
    return folder


def interrupt(model, X, path, n_chunks):
    """Write some chunks, then press Ctrl-C."""
    embed, calls = model._embed, itertools.count()

    def embed_or_stop(source):
        if next(calls) == n_chunks:
            raise KeyboardInterrupt
        return embed(source)

    with (
        patch.object(model, "_embed", embed_or_stop),
        pytest.raises(KeyboardInterrupt),
    ):
        write_embeddings(model, X, path)


def count_embedded(model, X, path):
    """Complete the file, and return the number of images of each computed chunk."""
    with patch.object(model, "_embed", wraps=model._embed) as embed:
        write_embeddings(model, X, path)
    return [len(call.args[0]) for call in embed.call_args_list]


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "name", ["thesis.tex", "000000000000.npy", "description.json", ".hidden-0123"]
)
@pytest.mark.parametrize("is_interrupted", [False, True])
def test_files_of_the_user_stay(model, images, path, partial, name, is_interrupted):
    partial.mkdir()
    (partial / name).write_text("mine")
    if is_interrupted:
        interrupt(model, images, path, 1)
    assert count_embedded(model, images, path) == (
        [16, 8] if is_interrupted else [16, 16, 8]
    )
    assert_array_equal(np.load(path), model.transform(images))
    assert list_names(partial) == [name]
    assert (partial / name).read_text() == "mine"


def test_file_in_place_of_the_folder_is_named(model, images, path, partial):
    partial.write_text("mine")
    with pytest.raises(FileExistsError, match=r"x\.npy\.partial is a file.*Rename it"):
        write_embeddings(model, images, path)
    assert partial.read_text() == "mine"
    assert list_names(path.parent) == [partial.name]


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_chunks_survive_an_error_of_the_disk(
    monkeypatch, model, images, path, partial, number
):
    interrupt(model, images, path, 2)
    names = list_names(partial)

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as context:
        context.setattr(Path, "read_text", fail)
        with pytest.raises(OSError, match=r"x\.npy\.partial.*are kept\. Try again"):
            write_embeddings(model, images, path)
    assert list_names(partial) == names
    assert count_embedded(model, images, path) == [8]
    assert list_names(path.parent) == [path.name]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"mine": 1}'])
def test_other_descriptions_are_not_overwritten(model, images, path, partial, content):
    partial.mkdir()
    (partial / _embeddings.DESCRIPTION_NAME).write_text(content)
    with pytest.raises(ValueError, match="damaged, or was not written by"):
        write_embeddings(model, images, path)
    assert (partial / _embeddings.DESCRIPTION_NAME).read_text() == content


@pytest.mark.parametrize("row", [3, 17])
def test_changed_files_are_embedded_again(model, images, tmp_path, path, row):
    folder = write_files(images, tmp_path / "photos")
    interrupt(model, folder, path, 2)
    changed = folder / f"{row:03d}.png"
    status = changed.stat()
    Image.fromarray(images[row][::-1]).save(changed)
    # Not even the time of a file is trusted.
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert count_embedded(model, folder, path) == [16, 8]
    assert_array_equal(np.load(path), model.transform(folder))


@pytest.mark.parametrize("form", ["array", "PIL images"])
def test_changed_images_in_memory_are_embedded_again(model, images, path, form):
    convert = np.array if form == "array" else lambda X: list(map(Image.fromarray, X))
    interrupt(model, convert(images), path, 2)
    changed = images.copy()
    changed[17] = images[17, ::-1]
    assert count_embedded(model, convert(changed), path) == [16, 8]
    assert_array_equal(np.load(path), model.transform(convert(changed)))


@pytest.mark.parametrize("has_passed", [True, False])
def test_unreadable_images_are_tried_again(
    monkeypatch, images, tmp_path, path, has_passed
):
    folder = write_files(images, tmp_path / "photos")
    model = DeepClusterEstimator(4, on_error="skip", **QUICK).fit(folder)
    load = ImageFile.ImageFile.load

    def load_or_fail(image):
        if image.fp is not None and image.fp.name.endswith("005.png"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return load(image)

    with monkeypatch.context() as context:
        context.setattr(ImageFile.ImageFile, "load", load_or_fail)
        interrupt(model, folder, path, 2)
        if not has_passed:
            # The chunk is kept, and the warning counts its images.
            with pytest.warns(UserWarning, match="1 of 40 images cannot be read"):
                assert count_embedded(model, folder, path) == [8]
    if has_passed:
        assert count_embedded(model, folder, path) == [16, 8]
    assert np.isnan(np.load(path)[5]).all() == (not has_passed)
    assert_array_equal(np.load(path)[6:], model.transform(folder)[6:])


@pytest.mark.parametrize("position", [-1, 400])
def test_damaged_chunks_are_computed_again(model, images, path, partial, position):
    interrupt(model, images, path, 2)
    chunk = min(partial.glob("0*"))
    content = bytearray(chunk.read_bytes())
    content[position] ^= 1
    chunk.write_bytes(content)
    assert count_embedded(model, images, path) == [16, 8]
    assert_array_equal(np.load(path), model.transform(images))


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_a_file_that_appears_meanwhile_is_not_replaced(model, images, path, kind):
    def embed_and_interfere(source):
        if kind == "file":
            path.write_text("mine")
        elif not path.is_symlink():
            path.symlink_to("nowhere")
        return embed(source)

    embed = model._embed
    with (
        patch.object(model, "_embed", embed_and_interfere),
        pytest.raises(FileExistsError, match=r"x\.npy exists"),
    ):
        write_embeddings(model, images, path)
    assert path.is_symlink() or path.read_text() == "mine"
    path.unlink()
    assert count_embedded(model, images, path) == []
    assert_array_equal(np.load(path), model.transform(images))


def test_files_of_killed_calls_are_removed(model, images, path, partial):
    interrupt(model, images, path, 1)
    (partial / f".000000000016-00{_embeddings.TEMPORARY_MARK}").write_text("unfinished")
    write_embeddings(model, images, path)
    assert list_names(path.parent) == [path.name]


class HalfPrecision(torch.nn.Module):
    """Network with weights of bfloat16, which converts its input itself."""

    def __init__(self):
        super().__init__()
        layers = torch.nn.Conv2d(1, 4, 3), torch.nn.AdaptiveAvgPool2d(2)
        self.layers = torch.nn.Sequential(*layers, torch.nn.Flatten()).bfloat16()

    def forward(self, x):
        return self.layers(x.bfloat16())


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_networks_of_bfloat16(images, tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    model = DeepClusterEstimator(2, backbone=HalfPrecision(), **QUICK).fit(images)
    assert torch.bfloat16 in {w.dtype for w in model.module_.state_dict().values()}
    path = tmp_path / f"x.{suffix}"
    interrupt(model, images, path, 1)
    assert count_embedded(model, images, path) == [16, 8]
    if suffix == "npy":
        assert_array_equal(np.load(path), model.transform(images))
