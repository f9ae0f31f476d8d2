"""Decoded images are cached by the contents of their files, and never half-written."""

import errno
import multiprocessing
import os
import time

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageFile

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._inputs import cache as cache_module
from skdeepcluster._inputs import content
from skdeepcluster._inputs.cache import cache_decoded
from skdeepcluster._inputs.collection import ImageCollection, find_images
from skdeepcluster._inputs.image_format import ImageFormat
from skdeepcluster._inputs.images import DecodedSource
from skdeepcluster._inputs.sources import ArraySource

# Fits of a few steps warn that they did not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

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


def allow_decoding(monkeypatch, rows):
    """Let no other rows be decoded."""
    decode_all = cache_module._decode_all

    def check_rows(source):
        assert source.rows.tolist() == rows
        yield from decode_all(source)

    monkeypatch.setattr(cache_module, "_decode_all", check_rows)


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
    allow_decoding(monkeypatch, [])
    assert_array_equal(cached_pixels(folder, cache_dir), PIXELS)
    renamed = folder.rename(folder.parent / "renamed")
    assert_array_equal(cached_pixels(renamed, cache_dir), PIXELS)


def test_unreadable_images_are_cached(monkeypatch, folder, cache_dir):
    (folder / "04.png").write_bytes(b"")
    source = make_source(folder, skip=True)
    cache_decoded(source, cache_dir)
    allow_decoding(monkeypatch, [4])
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
    with pytest.warns(UserWarning, match=r"\.npy cannot be used and is written again"):
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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_space_is_reserved_before_decoding(monkeypatch, folder, cache_dir, number):
    def fail(descriptor, offset, length):
        assert length == N * 9 * 7
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    allow_decoding(monkeypatch, [])
    with pytest.raises(OSError, match=r"cache_dir=.*decoded.* for 756 bytes") as error:
        cached_pixels(folder, cache_dir)
    assert error.value.errno == number
    assert list(cache_dir.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES])
def test_folder_that_fails_names_cache_dir(monkeypatch, folder, cache_dir, number):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(OSError, match=r"cache_dir=.*decoded.*ame a") as error:
                cached_pixels(folder, cache_dir)
        assert error.value.errno == number
        assert list(cache_dir.iterdir()) == []


def fail_to_read(monkeypatch, names, number):
    """Let the disk fail when the pixels of some files are read, after their header."""
    load = ImageFile.ImageFile.load

    def load_or_fail(image):
        # An image that has been read holds no file any more.
        if image.fp is not None and os.path.basename(image.fp.name) in names:
            raise OSError(number, os.strerror(number))
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load_or_fail)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_errors_that_have_passed_are_not_remembered(
    monkeypatch, folder, cache_dir, number
):
    (folder / "04.png").write_bytes(b"")
    with monkeypatch.context() as patch:
        fail_to_read(patch, {"02.png", "07.png"}, number)
        source = make_source(folder, skip=True)
        cache_decoded(source, cache_dir)
        assert source.failures.rows.tolist() == [2, 4, 7]
    for _ in range(2):
        source = make_source(folder, skip=True)
        cached = cache_decoded(source, cache_dir)
        assert source.failures.rows.tolist() == [4]
        assert_array_equal(read_pixels(cached), np.delete(PIXELS, 4, axis=0))
    allow_decoding(monkeypatch, [4])
    cache_decoded(make_source(folder, skip=True), cache_dir)


def test_labels_after_an_error_that_has_passed(monkeypatch, folder, cache_dir):
    params = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0}
    model = DeepClusterEstimator(2, on_error="skip", cache_dir=cache_dir, **params)
    # The header of a JPEG file is read without its pixels.
    Image.fromarray(PIXELS[3]).save(folder / "03.jpg")
    (folder / "03.png").unlink()
    with monkeypatch.context() as patch:
        fail_to_read(patch, {"03.jpg"}, errno.EIO)
        with pytest.warns(UserWarning, match="1 of 12 images cannot be read"):
            model.fit(folder)
    assert model.skipped_.tolist() == [3]
    model.fit(folder)
    assert model.skipped_.tolist() == []
    assert len(list(cache_dir.iterdir())) == 1
    assert_array_equal(model.predict(folder), model.labels_)


@pytest.mark.parametrize("position", [200, -300, -5])
def test_flipped_bits_are_noticed(folder, cache_dir, position):
    cached_pixels(folder, cache_dir)
    (path,) = cache_dir.glob("*.npy")
    written = bytearray(path.read_bytes())
    written[position] ^= 1
    path.write_bytes(written)
    with pytest.warns(UserWarning, match=r"\.npy cannot be used and is written again"):
        assert_array_equal(cached_pixels(folder, cache_dir), PIXELS)
    assert_array_equal(cached_pixels(folder, cache_dir), PIXELS)


def test_each_decoder_has_its_file(monkeypatch, folder, cache_dir):
    cached_pixels(folder, cache_dir)
    version = content.features.version
    for decoder in ("pil", "jpg"):
        with monkeypatch.context() as patch:
            patch.setattr(
                content.features,
                "version",
                lambda name, decoder=decoder: (
                    "0.1" if name == decoder else version(name)
                ),
            )
            cached_pixels(folder, cache_dir)
    assert len(list(cache_dir.iterdir())) == 3
    factory = type("Plugin", (ImageFile.ImageFile,), {"__module__": "some.plugin"})
    monkeypatch.setitem(Image.OPEN, "NEW", (factory, None))
    cached_pixels(folder, cache_dir)
    assert len(list(cache_dir.iterdir())) == 4


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
    assert sorted(path.suffix for path in cache_dir.iterdir()) == [".npy"]


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
