"""Images of a collection are decoded into one format, in any number of workers."""

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from torch.utils.data import Dataset

from skdeepcluster._inputs import common_format
from skdeepcluster._inputs.collection import find_images
from skdeepcluster._inputs.common_format import find_common_format
from skdeepcluster._inputs.image_format import ImageFormat
from skdeepcluster._inputs.images import DecodedSource

RNG = np.random.default_rng(0)
N = 12
PIXELS = RNG.integers(0, 256, (N, 9, 7)).astype(np.uint8)
FORMAT = ImageFormat((1, 9, 7), np.uint8)


@pytest.fixture
def paths(tmp_path):
    paths = [tmp_path / f"{i:02d}.png" for i in range(N)]
    for path, values in zip(paths, PIXELS, strict=True):
        Image.fromarray(values).save(path)
    return paths


def make_source(collection, n_workers=0, skip=False):
    rows = np.arange(len(collection))
    return DecodedSource(collection, FORMAT, rows, n_workers, skip)


class ArrayDataset(Dataset):
    """Arrays, as (image, label)."""

    def __len__(self):
        return N

    def __getitem__(self, row):
        return PIXELS[row], row % 3


# Common format.


@pytest.mark.parametrize(
    ("sizes", "image_size", "shape"),
    [
        ([(20, 30), (20, 30)], "auto", (1, 20, 30)),
        ([(128, 100), (128, 100)], "auto", (1, 128, 100)),
        ([(129, 100), (129, 100)], "auto", (1, 64, 64)),
        ([(30, 20), (40, 24), (50, 26)], "auto", (1, 24, 24)),
        ([(300, 200), (20, 30), (400, 400)], "auto", (1, 64, 64)),
        ([(300, 200), (20, 30)], 48, (1, 48, 48)),
        ([(20, 30), (20, 30)], 20, (1, 20, 20)),
    ],
)
def test_common_size(sizes, image_size, shape):
    images = [Image.new("L", (width, height)) for height, width in sizes]
    image_format, failures = find_common_format(
        find_images(images), None, image_size, 0
    )
    assert (image_format.shape, image_format.dtype) == (shape, np.uint8)
    assert not failures


def test_one_color_image_makes_all_images_color():
    collection = find_images([Image.new("L", (8, 8)), Image.new("RGB", (8, 8))])
    assert find_common_format(collection, None, "auto", 0)[0].shape == (3, 8, 8)


def test_image_shape_settles_the_format():
    collection = find_images([Image.new("RGB", (8, 8))])
    image_format, _ = find_common_format(collection, (1, 4, 6), "auto", 0)
    assert image_format == ImageFormat((1, 4, 6), np.uint8, number_types=("bytes",))


# Sizes (width, height), and the way in which resize="auto" makes squares of them.
AUTO_CHOICES = {
    "wide and tall": ([(60, 20), (20, 60)], "pad"),
    "panoramas": ([(90, 30)] * 3 + [(30, 30)], "pad"),
    "photographs": ([(300, 200), (200, 300), (400, 300)], "crop"),
    "one panorama": ([(900, 100)] + [(100, 100)] * 4, "crop"),
    "one size that is kept": ([(100, 20), (100, 20)], "crop"),
    "one large size": ([(600, 200), (600, 200)], "pad"),
}


@pytest.mark.parametrize("name", AUTO_CHOICES)
def test_auto_pads_images_of_which_crops_drop_much(name):
    sizes, choice = AUTO_CHOICES[name]
    collection = find_images([Image.new("L", size) for size in sizes])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert find_common_format(collection, None, "auto", 0)[0].resize == choice


def test_auto_depends_on_image_shape():
    collection = find_images([Image.new("L", (60, 36))] * 2)
    for shape, choice in [((1, 8, 16), "crop"), ((1, 9, 8), "pad")]:
        assert find_common_format(collection, shape, "auto", 0)[0].resize == choice


# Number of 20 images that lose more than half of their pixels to a crop, and the ways
# in which the loss, or the margins that prevent it, cause a warning.
@pytest.mark.parametrize(
    ("n_wide", "warned"),
    [(0, []), (1, []), (2, ["crop"]), (9, ["crop"]), (10, ["crop", "auto"])],
)
def test_crop_that_drops_much_warns(n_wide, warned):
    sizes = [(30, 10)] * n_wide + [(20, 10)] * (20 - n_wide)
    collection = find_images([Image.new("L", size) for size in sizes])
    for resize in ("crop", "pad", "stretch", "auto"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            find_common_format(collection, None, "auto", 0, resize)
        assert len(caught) == (resize in warned)
        assert all("resize='pad'" in str(w.message) for w in caught)


# Sizes (width, height) with their numbers of images, and the side of all images.
MIXED_SIZES = {
    "spacers": ([(1, 1)] * 60 + [(90, 120)] * 40, 64),
    "icons": ([(16, 16)] * 90 + [(240, 320)] * 10, 64),
    "lines": ([(2, 300)] * 50 + [(48, 60), (52, 60)] * 10, 52),
    "sprites and one photograph": ([(30, 32)] * 90 + [(32, 34)] + [(4000, 3000)], 30),
    "icons alone": ([(16, 16)] * 5 + [(12, 14)] * 3, 16),
}


@pytest.mark.parametrize("name", MIXED_SIZES)
def test_tiny_images_do_not_decide_the_size(name):
    sizes, side = MIXED_SIZES[name]
    collection = find_images([Image.new("L", size) for size in sizes])
    image_format, _ = find_common_format(collection, None, "auto", 0, "stretch")
    assert image_format.shape == (1, side, side)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_unreadable_headers(monkeypatch, paths, n_workers):
    monkeypatch.setattr(common_format, "HEADERS_PER_TASK", 3)
    paths[4].write_bytes(b"")
    paths[7].unlink()
    collection = find_images(paths)
    image_format, failures = find_common_format(collection, None, "auto", n_workers)
    assert image_format.shape == (1, 9, 7)
    assert failures.rows.tolist() == [4, 7]
    assert failures.messages[4] == f"{paths[4]}: the file is empty"
    for path in paths:
        path.unlink(missing_ok=True)
    image_format, failures = find_common_format(collection, None, "auto", n_workers)
    assert image_format is None
    assert len(failures) == N


# DecodedSource.


@pytest.mark.parametrize("n_workers", [0, 1, 2, 5])
def test_batches_come_in_order(paths, n_workers):
    source = make_source(find_images(paths), n_workers=n_workers)
    batch_rows = [np.array(rows) for rows in ([3, 3], [0], [11, 2, 5], [7, 8])]
    batch_rows.append(slice(1, 4))
    for rows, batch in zip(batch_rows, source.batches(batch_rows), strict=True):
        assert batch.dtype == torch.uint8
        assert_array_equal(batch[:, 0], PIXELS[rows])


def test_workers_leave_the_global_generator_unchanged(paths):
    before = torch.random.get_rng_state()
    source = make_source(find_images(paths), n_workers=2)
    list(source.batches([slice(0, 2), slice(2, 4)]))
    assert torch.equal(before, torch.random.get_rng_state())


def test_rows_of_a_collection(paths):
    rows = np.array([2, 5, 6])
    source = DecodedSource(find_images(paths), FORMAT, rows, n_workers=0, skip=False)
    assert len(source) == 3
    assert_array_equal(source.batch(np.array([1, 0]))[:, 0], PIXELS[[5, 2]])
    assert_array_equal(source.take(np.array([2, 0])).values[:, 0], PIXELS[[6, 2]])


@pytest.mark.parametrize("n_workers", [0, 2])
def test_unreadable_image_raises(paths, n_workers):
    paths[5].write_bytes(paths[5].read_bytes()[:60])
    source = make_source(find_images(paths), n_workers=n_workers)
    message = rf"row 5: {paths[5]}: .*Remove it, or set on_error='skip'"
    with pytest.raises(ValueError, match=message):
        list(source.batches([slice(0, 4), slice(4, 8), slice(8, 12)]))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_unreadable_image_stays_blank(paths, n_workers):
    paths[5].unlink()
    source = make_source(find_images(paths), n_workers=n_workers, skip=True)
    batches = source.batches([slice(0, 4), slice(4, 8), slice(8, 12)])
    images = torch.cat(list(batches))[:, 0].numpy()
    assert source.failures.rows.tolist() == [5]
    assert "No such file" in source.failures.messages[5]
    assert (images[5] == 0).all()
    readable = np.delete(np.arange(N), 5)
    assert_array_equal(images[readable], PIXELS[readable])


def test_subset_records_failures_of_the_whole(paths):
    paths[5].unlink()
    source = make_source(find_images(paths), skip=True)
    source.subset(slice(4, 8)).batch(slice(None))
    assert source.failures.rows.tolist() == [5]


def test_error_of_a_dataset_names_the_row():
    class BrokenDataset(ArrayDataset):
        def __getitem__(self, row):
            if row == 3:
                raise KeyError("no such image")
            return super().__getitem__(row)

    source = make_source(find_images(BrokenDataset()), n_workers=2)
    with pytest.raises(ValueError, match=r"row 3: KeyError: 'no such image'"):
        list(source.batches([slice(0, 2), slice(2, 4)]))


def test_lack_of_memory_is_not_a_broken_image():
    class HugeDataset(ArrayDataset):
        def __getitem__(self, row):
            raise MemoryError

    with pytest.raises(MemoryError):
        make_source(find_images(HugeDataset()), skip=True).batch(slice(None))
