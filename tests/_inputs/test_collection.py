"""Folders, paths, PIL images and datasets are found in X; other forms are not."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

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


def read_pixels(X):
    collection = find_images(X)
    rows = np.arange(len(collection))
    source = DecodedSource(collection, FORMAT, rows, n_workers=0, skip=False)
    return source.batch(slice(None)).numpy()[:, 0]


class LabeledImages(Dataset):
    """Images of one form, as (image, label)."""

    def __init__(self, form):
        self.form = form

    def __len__(self):
        return N

    def __getitem__(self, row):
        return self.form(PIXELS[row]), row % 3


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        np.array,
        lambda x: pytest.importorskip("pandas").Series(x),
        lambda x: list(map(str, x)),
        lambda x: np.array(list(map(str, x))),
        lambda x: np.array(x, dtype=object),
        lambda x: pytest.importorskip("pandas").Series(map(str, x)),
        lambda x: pytest.importorskip("polars").Series(list(map(str, x))),
        lambda x: x[0].parent,
        lambda x: str(x[0].parent),
    ],
)
def test_paths_in_every_form(paths, form):
    collection = find_images(form(paths))
    assert collection.paths.tolist() == list(map(str, paths))
    assert_array_equal(read_pixels(form(paths)), PIXELS)


@pytest.mark.parametrize("form", [Image.fromarray, np.array, torch.tensor])
def test_datasets_and_pairs(form):
    assert_array_equal(read_pixels(LabeledImages(form)), PIXELS)
    pairs = [LabeledImages(form)[row] for row in range(N)]
    assert_array_equal(read_pixels(pairs), PIXELS)
    assert find_images(pairs).paths is None


def test_lists_of_pil_images():
    assert_array_equal(read_pixels(list(map(Image.fromarray, PIXELS))), PIXELS)


def test_tensor_datasets():
    assert_array_equal(read_pixels(TensorDataset(torch.tensor(PIXELS))), PIXELS)


@pytest.mark.parametrize(
    "X",
    [
        PIXELS,
        list(PIXELS),
        PIXELS.tolist(),
        torch.tensor(PIXELS),
        [[1, 2], [3, 4]],
        [(1, 2), (3, 4)],
        np.ones((3, 4)),
        np.ones(5),
        np.array(5),
        [1, 2],
        [],
        np.array([["a", "b"]]),
        3,
        None,
    ],
)
def test_arrays_and_numbers_are_no_collection(X):
    assert find_images(X) is None


def test_data_frames_and_columns_of_numbers_are_no_collection():
    pandas = pytest.importorskip("pandas")
    assert find_images(pandas.DataFrame([[1]])) is None
    assert find_images(pandas.Series([1.0, 2.0])) is None


def test_arrays_of_different_sizes_are_a_collection():
    collection = find_images([PIXELS[0], PIXELS[1][:4]])
    assert len(collection) == 2
    assert find_common_format(collection, None, "auto", 0)[0].shape == (1, 7, 7)


def test_subfolders_are_read_in_sorted_order(tmp_path, paths):
    subfolder = tmp_path / "b" / "c"
    subfolder.mkdir(parents=True)
    for name in ("9.JPG", "x.jpeg", "0.webp"):
        Image.fromarray(PIXELS[0]).save(subfolder / name)
    for name in (
        "notes.txt",
        "._9.jpg",
        ".hidden.png",
        "labels.csv",
        "no_ending",
        "x.h5",
    ):
        (subfolder / name).write_text("no image")
    expected = [subfolder / name for name in ("0.webp", "9.JPG", "x.jpeg")]
    with pytest.warns(UserWarning, match=r"4 of 19 files.*\.csv.*\.h5.*\.txt.*none"):
        collection = find_images(tmp_path)
    assert collection.paths.tolist() == list(map(str, [*paths, *expected]))


def test_links_to_a_parent_are_followed_once(tmp_path, paths):
    (tmp_path / "again").symlink_to(tmp_path)
    assert len(find_images(tmp_path)) == N


def test_links_to_folders_are_followed(tmp_path, paths):
    (tmp_path / "view").mkdir()
    target = tmp_path.parent / f"{tmp_path.name}_target"
    target.mkdir()
    Image.fromarray(PIXELS[0]).save(target / "a.png")
    (tmp_path / "view" / "link").symlink_to(target)
    assert find_images(tmp_path / "view").paths.tolist() == [
        str(tmp_path / "view" / "link" / "a.png")
    ]


def test_paths_without_images(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere' is not a folder.*Pass the path"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"is a file, not a folder.*pass \[X\]"):
        find_images(str(tmp_path / "notes.txt"))
    with pytest.raises(ValueError, match=r"holds no images: no file in it"):
        find_images(tmp_path)
    with pytest.raises(TypeError, match=r"list of paths, but holds 3 in row 1"):
        find_images(["a.png", 3])


def test_iterable_dataset_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(PIXELS)

    with pytest.raises(TypeError, match="map-style Dataset"):
        find_images(Stream())
