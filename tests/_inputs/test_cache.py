"""Decoded images are cached by the contents of their files, and never half-written."""

import errno
import multiprocessing
import os
import time

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from skdeepcluster._inputs import cache as cache_module
from skdeepcluster._inputs.cache import cache_decoded
from skdeepcluster._inputs.collection import ImageCollection, find_images
from skdeepcluster._inputs.image_format import ImageFormat
from skdeepcluster._inputs.images import DecodedSource
from skdeepcluster._inputs.sources import ArraySource

RNG = np.random.default_rng(0)
N = 12
PIXELS = RNG.integers(0, 256, (N, 9, 7)).astype(np.uint8)
FORMAT = ImageFormat((1, 9, 7), np.uint8)
KINDS = ["memory", "temporary file", "folder", "none"]


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i, values in enumerate(PIXELS):
        Image.fromarray(values).save(images / f"{i:02d}.png")
    return images


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache" / "decoded"


def make_source(X, image_format=FORMAT, skip=False, n_workers=0):
    collection = X if isinstance(X, ImageCollection) else find_images(X)
    rows = np.arange(len(collection))
    return DecodedSource(collection, image_format, rows, n_workers, skip)


def read_pixels(source):
    return source.batch(slice(None))[:, 0].numpy()


def cached_pixels(folder, cache_dir):
    return read_pixels(cache_decoded(make_source(folder), cache_dir))


def forbid_decoding(monkeypatch):
    def fail(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache_module, "_decode_all", fail)


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("kind", ["memory", "temporary file", "folder"])
def test_cached_images_equal_decoded_images(
    monkeypatch, folder, make_cache, kind, n_workers
):
    monkeypatch.setattr(cache_module, "BATCH_ROWS", 5)
    cached = cache_decoded(make_source(folder, n_workers=n_workers), make_cache(kind))
    assert isinstance(cached, ArraySource)
    assert cached.dtype == np.uint8
    assert_array_equal(read_pixels(cached), PIXELS)
    assert isinstance(cached.values, np.memmap) == (kind != "memory")


def test_images_without_room_are_decoded_in_each_pass(folder, make_cache):
    cached = cache_decoded(make_source(folder), make_cache("none"))
    assert isinstance(cached, DecodedSource)
    assert_array_equal(read_pixels(cached), PIXELS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("broken", [[3], [0, 11], [2, 5, 6]])
def test_unreadable_images_are_left_out(folder, make_cache, kind, broken):
    cache_dir = make_cache(kind)
    for row in broken:
        (folder / f"{row:02d}.png").write_bytes(b"")
    source = make_source(folder, skip=True)
    cached = cache_decoded(source, cache_dir)
    readable = np.delete(PIXELS, broken, axis=0)
    assert source.failures.rows.tolist() == broken
    assert_array_equal(read_pixels(cached), readable)
    assert len(cached) == len(readable)
    assert (cached.shape, cached.dtype) == ((1, 9, 7), np.uint8)
    assert_array_equal(read_pixels(cached.subset(slice(2, 5))), readable[2:5])
    assert_array_equal(cached.take(np.array([4, 0])).values[:, 0], readable[[4, 0]])
    with pytest.raises(ValueError, match=f"row {broken[0]}: .*the file is empty"):
        cached_pixels(folder, cache_dir)


def test_folder_is_decoded_once(monkeypatch, folder, cache_dir):
    cached_pixels(folder, cache_dir)
    forbid_decoding(monkeypatch)
    assert_array_equal(cached_pixels(folder, cache_dir), PIXELS)
    renamed = folder.rename(folder.parent / "renamed")
    assert_array_equal(cached_pixels(renamed, cache_dir), PIXELS)


def test_unreadable_images_are_cached(monkeypatch, folder, cache_dir):
    (folder / "04.png").write_bytes(b"")
    source = make_source(folder, skip=True)
    cache_decoded(source, cache_dir)
    forbid_decoding(monkeypatch)
    second_source = make_source(folder, skip=True)
    cached = cache_decoded(second_source, cache_dir)
    assert second_source.failures.messages == source.failures.messages
    assert_array_equal(read_pixels(cached), np.delete(PIXELS, 4, axis=0))


def test_changed_file_is_decoded_again(folder, cache_dir):
    cached_pixels(folder, cache_dir)
    path = folder / "03.png"
    status = path.stat()
    changed = PIXELS[3].copy()
    changed[0, 0] ^= 1
    Image.fromarray(changed).save(path)
    # Not even the size and the time of a file are trusted.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert_array_equal(cached_pixels(folder, cache_dir)[3], changed)


def test_new_format_is_decoded_again(folder, cache_dir):
    cached_pixels(folder, cache_dir)
    source = make_source(folder, ImageFormat((3, 4, 4), np.uint8))
    assert cache_decoded(source, cache_dir).shape == (3, 4, 4)


def test_each_way_to_resize_has_its_file(folder, cache_dir):
    options = [{"resize": resize} for resize in ("crop", "pad", "stretch")]
    options += [{"shorter_side": 10}, {"interpolation": "bicubic"}]
    for option in options:
        image_format = ImageFormat((1, 8, 8), np.uint8, **option)
        cached = cache_decoded(make_source(folder, image_format), cache_dir)
        expected = read_pixels(make_source(folder, image_format))
        assert_array_equal(read_pixels(cached), expected)
    assert len(list(cache_dir.glob("*.npy"))) == len(options)


def test_truncated_cache_file_is_replaced(folder, cache_dir):
    cached_pixels(folder, cache_dir)
    (path,) = cache_dir.glob("*.npy")
    path.write_bytes(path.read_bytes()[:-10])
    assert_array_equal(cached_pixels(folder, cache_dir), PIXELS)
    assert_array_equal(np.load(path)[:, 0], PIXELS)


@pytest.mark.parametrize("kind", ["memory", "temporary file"])
@pytest.mark.parametrize("form", [np.array, Image.fromarray])
def test_images_without_files_leave_no_file(cache_dir, make_cache, form, kind):
    make_cache(kind)
    collection = ImageCollection(list(map(form, PIXELS)), None)
    cached = cache_decoded(make_source(collection), cache_dir)
    assert_array_equal(read_pixels(cached), PIXELS)
    assert not cache_dir.exists() or list(cache_dir.iterdir()) == []


def test_failure_leaves_no_file(folder, cache_dir):
    (folder / "11.png").write_bytes(b"")
    with pytest.raises(ValueError, match="row 11"):
        cached_pixels(folder, cache_dir)
    assert list(cache_dir.iterdir()) == []


def test_full_disk_names_cache_dir(monkeypatch, folder, cache_dir):
    def fill_disk(source):
        yield from list(source.batches([slice(0, 3)]))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module, "_decode_all", fill_disk)
    with pytest.raises(OSError, match=r"cache_dir=.* has no room.*cache_dir=None"):
        cached_pixels(folder, cache_dir)
    assert list(cache_dir.iterdir()) == []


def test_cache_dir_that_is_a_file(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cache_dir=.*file"):
        cached_pixels(folder, tmp_path / "file")


def cache_and_report(folder, cache_dir, queue):
    queue.put(cached_pixels(folder, cache_dir))


def test_two_processes_at_once(folder, cache_dir):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    jobs = [
        context.Process(target=cache_and_report, args=(folder, cache_dir, queue))
        for _ in range(2)
    ]
    for job in jobs:
        job.start()
    results = [queue.get(timeout=60) for _ in jobs]
    for job in jobs:
        job.join()
    for values in results:
        assert_array_equal(values, PIXELS)
    assert sorted(path.suffix for path in cache_dir.iterdir()) == [".json", ".npy"]


def cache_slowly(folder, cache_dir):
    decode_all = cache_module._decode_all

    def decode_slowly(source):
        for batch in decode_all(source):
            time.sleep(0.2)
            yield batch

    cache_module._decode_all = decode_slowly
    cache_module.BATCH_ROWS = 1
    cached_pixels(folder, cache_dir)


def test_killed_process_leaves_no_partial_file(folder, cache_dir):
    job = multiprocessing.get_context("fork").Process(
        target=cache_slowly, args=(folder, cache_dir)
    )
    job.start()
    deadline = time.monotonic() + 60
    while not (cache_dir.exists() and list(cache_dir.iterdir())):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.kill()
    job.join()
    assert not list(cache_dir.glob("*.npy"))
    assert_array_equal(cached_pixels(folder, cache_dir), PIXELS)
