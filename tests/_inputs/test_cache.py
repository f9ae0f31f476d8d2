"""Decoded pictures are kept, found again by their contents, and never half-written."""

import multiprocessing
import os
import time

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from skdeepcluster._inputs import cache as cache_module
from skdeepcluster._inputs.cache import cache_decoded
from skdeepcluster._inputs.decoding import ImageFormat
from skdeepcluster._inputs.images import DecodedSource, ImageCollection, find_images
from skdeepcluster._inputs.sources import ArraySource

RNG = np.random.default_rng(0)
N = 12
PIXELS = RNG.integers(0, 256, (N, 9, 7)).astype(np.uint8)
WANTED = ImageFormat((1, 9, 7), np.uint8)
SIZE = PIXELS.size


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "images"
    place.mkdir()
    for i, values in enumerate(PIXELS):
        Image.fromarray(values).save(place / f"{i:02d}.png")
    return place


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "cache" / "decoded"


def source_of(X, wanted=WANTED, skip=False, n_workers=0):
    items = X if isinstance(X, ImageCollection) else find_images(X)
    return DecodedSource(items, wanted, np.arange(len(items)), n_workers, skip)


def pixels_of(source):
    return source.batch(slice(None))[:, 0].numpy()


def forbid_decoding(monkeypatch):
    def forbidden(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache_module, "_images", forbidden)


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("cache", ["memory", "folder"])
def test_what_is_held_is_what_was_decoded(monkeypatch, folder, kept, cache, n_workers):
    monkeypatch.setattr(cache_module, "BATCH_ROWS", 5)
    where = kept if cache == "folder" else cache
    held = cache_decoded(source_of(folder, n_workers=n_workers), where, SIZE)
    assert isinstance(held, ArraySource)
    assert held.dtype == np.uint8
    assert_array_equal(pixels_of(held), PIXELS)
    assert isinstance(held.values, np.memmap) == (cache == "folder")


@pytest.mark.parametrize(("cache", "size"), [(None, SIZE), ("memory", SIZE - 1)])
def test_what_does_not_fit_is_decoded_each_time(folder, cache, size):
    held = cache_decoded(source_of(folder), cache, size)
    assert isinstance(held, DecodedSource)
    assert_array_equal(pixels_of(held), PIXELS)


def test_too_many_for_the_folder_leave_it_empty(folder, kept):
    assert isinstance(cache_decoded(source_of(folder), kept, SIZE - 1), DecodedSource)
    assert not kept.exists()


@pytest.mark.parametrize("cache", ["memory", "folder", None])
@pytest.mark.parametrize("broken", [[3], [0, 11], [2, 5, 6]])
def test_unreadable_pictures_are_left_out(folder, kept, cache, broken):
    for row in broken:
        (folder / f"{row:02d}.png").write_bytes(b"")
    source = source_of(folder, skip=True)
    held = cache_decoded(source, kept if cache == "folder" else cache, SIZE)
    assert source.failures.rows.tolist() == broken
    assert_array_equal(pixels_of(held), np.delete(PIXELS, broken, axis=0))
    with pytest.raises(ValueError, match=f"row {broken[0]}: .*the file is empty"):
        pixels_of(
            cache_decoded(source_of(folder), kept if cache == "folder" else cache, SIZE)
        )


def test_a_folder_is_decoded_once(monkeypatch, folder, kept):
    cache_decoded(source_of(folder), kept, SIZE)
    forbid_decoding(monkeypatch)
    assert_array_equal(pixels_of(cache_decoded(source_of(folder), kept, SIZE)), PIXELS)
    moved = folder.rename(folder.parent / "moved")
    assert_array_equal(pixels_of(cache_decoded(source_of(moved), kept, SIZE)), PIXELS)


def test_unreadable_pictures_are_remembered(monkeypatch, folder, kept):
    (folder / "04.png").write_bytes(b"")
    first = source_of(folder, skip=True)
    cache_decoded(first, kept, SIZE)
    forbid_decoding(monkeypatch)
    again = source_of(folder, skip=True)
    held = cache_decoded(again, kept, SIZE)
    assert again.failures.messages == first.failures.messages
    assert_array_equal(pixels_of(held), np.delete(PIXELS, 4, axis=0))


def test_other_contents_are_decoded_anew(folder, kept):
    cache_decoded(source_of(folder), kept, SIZE)
    path = folder / "03.png"
    before = path.stat()
    changed = PIXELS[3].copy()
    changed[0, 0] ^= 1
    Image.fromarray(changed).save(path)
    # Not even the size and the time of a file are trusted.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert_array_equal(
        pixels_of(cache_decoded(source_of(folder), kept, SIZE))[3], changed
    )


def test_another_format_is_decoded_anew(folder, kept):
    cache_decoded(source_of(folder), kept, SIZE)
    held = cache_decoded(
        source_of(folder, ImageFormat((3, 4, 4), np.uint8)), kept, SIZE
    )
    assert held.shape == (3, 4, 4)


def test_a_file_that_is_cut_short_is_written_anew(folder, kept):
    cache_decoded(source_of(folder), kept, SIZE)
    (path,) = kept.glob("*.npy")
    path.write_bytes(path.read_bytes()[:-10])
    assert_array_equal(pixels_of(cache_decoded(source_of(folder), kept, SIZE)), PIXELS)
    assert_array_equal(np.load(path)[:, 0], PIXELS)


@pytest.mark.parametrize("form", [np.array, Image.fromarray])
def test_pictures_without_files_leave_nothing_behind(kept, form):
    items = ImageCollection(list(map(form, PIXELS)), None)
    held = cache_decoded(source_of(items), kept, SIZE)
    assert_array_equal(pixels_of(held), PIXELS)
    assert list(kept.iterdir()) == []


def test_a_failure_leaves_nothing_behind(folder, kept):
    (folder / "11.png").write_bytes(b"")
    with pytest.raises(ValueError, match="row 11"):
        cache_decoded(source_of(folder), kept, SIZE)
    assert list(kept.iterdir()) == []


def hold_and_report(folder, kept, queue):
    queue.put(pixels_of(cache_decoded(source_of(folder), kept, SIZE)))


def test_two_processes_at_once(folder, kept):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    jobs = [context.Process(target=hold_and_report, args=(folder, kept, queue))]
    jobs.append(context.Process(target=hold_and_report, args=(folder, kept, queue)))
    for job in jobs:
        job.start()
    found = [queue.get(timeout=60) for _ in jobs]
    for job in jobs:
        job.join()
    for values in found:
        assert_array_equal(values, PIXELS)
    assert sorted(path.suffix for path in kept.iterdir()) == [".json", ".npy"]


def slowly(folder, kept):
    real = cache_module._images

    def images(source):
        for batch in real(source):
            time.sleep(0.2)
            yield batch

    cache_module._images, cache_module.BATCH_ROWS = images, 1
    cache_decoded(source_of(folder), kept, SIZE)


def test_a_killed_process_leaves_no_half_of_a_file(folder, kept):
    job = multiprocessing.get_context("fork").Process(
        target=slowly, args=(folder, kept)
    )
    job.start()
    deadline = time.monotonic() + 60
    while not (kept.exists() and list(kept.iterdir())):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.kill()
    job.join()
    assert not list(kept.glob("*.npy"))
    assert_array_equal(pixels_of(cache_decoded(source_of(folder), kept, SIZE)), PIXELS)
