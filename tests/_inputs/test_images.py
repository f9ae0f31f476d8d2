"""Folders, paths, pictures and datasets -> the same batches, from any workers."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset, _utils, dataloader

from skdeepcluster._inputs import images as images_module
from skdeepcluster._inputs.decoding import ImageFormat
from skdeepcluster._inputs.images import (
    DecodedSource,
    find_common_format,
    find_images,
    map_in_workers,
)

RNG = np.random.default_rng(0)
N = 12
PIXELS = RNG.integers(0, 256, (N, 9, 7)).astype(np.uint8)
WANTED = ImageFormat((1, 9, 7), np.uint8)


@pytest.fixture
def paths(tmp_path):
    found = [tmp_path / f"{i:02d}.png" for i in range(N)]
    for path, values in zip(found, PIXELS, strict=True):
        Image.fromarray(values).save(path)
    return found


def source_of(items, wanted=WANTED, n_workers=0, skip=False):
    return DecodedSource(items, wanted, np.arange(len(items)), n_workers, skip)


def pixels_of(X):
    return source_of(find_images(X)).batch(slice(None)).numpy()[:, 0]


class Pictures(Dataset):
    """Items of one form, as (image, label)."""

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
    items = find_images(form(paths))
    assert items.paths.tolist() == list(map(str, paths))
    assert_array_equal(pixels_of(form(paths)), PIXELS)


@pytest.mark.parametrize("form", [Image.fromarray, np.array, torch.tensor])
def test_pictures_and_datasets(form):
    assert_array_equal(pixels_of(Pictures(form)), PIXELS)
    pairs = [Pictures(form)[row] for row in range(N)]
    assert_array_equal(pixels_of(pairs), PIXELS)
    assert find_images(pairs).paths is None


def test_lists_of_pil_images():
    assert_array_equal(pixels_of(list(map(Image.fromarray, PIXELS))), PIXELS)


def test_tensor_datasets():
    assert_array_equal(pixels_of(TensorDataset(torch.tensor(PIXELS))), PIXELS)


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
        [1, 2],
        [],
        np.array([["a", "b"]]),
        3,
        None,
    ],
)
def test_arrays_and_tables_are_no_pictures(X):
    assert find_images(X) is None


def test_frames_and_columns_of_numbers_are_no_pictures():
    pandas = pytest.importorskip("pandas")
    assert find_images(pandas.DataFrame([[1]])) is None
    assert find_images(pandas.Series([1.0, 2.0])) is None


def test_arrays_of_different_sizes_are_pictures():
    items = find_images([PIXELS[0], PIXELS[1][:4]])
    assert len(items) == 2
    assert find_common_format(items, None, "auto", 0)[0].shape == (1, 5, 5)


def test_folders_are_read_to_their_depths_in_sorted_order(tmp_path, paths):
    below = tmp_path / "b" / "c"
    below.mkdir(parents=True)
    for name in ("9.JPG", "x.jpeg", "0.webp"):
        Image.fromarray(PIXELS[0]).save(below / name)
    for name in (
        "notes.txt",
        "._9.jpg",
        ".hidden.png",
        "labels.csv",
        "no_ending",
        "x.h5",
    ):
        (below / name).write_text("no picture")
    found = find_images(tmp_path).paths.tolist()
    expected = [below / name for name in ("0.webp", "9.JPG", "x.jpeg")]
    assert found == list(map(str, [*paths, *expected]))


def test_links_that_lead_back_are_followed_once(tmp_path, paths):
    (tmp_path / "again").symlink_to(tmp_path)
    assert len(find_images(tmp_path)) == N


def test_links_to_folders_are_followed(tmp_path, paths):
    (tmp_path / "view").mkdir()
    elsewhere = tmp_path.parent / f"{tmp_path.name}_elsewhere"
    elsewhere.mkdir()
    Image.fromarray(PIXELS[0]).save(elsewhere / "a.png")
    (tmp_path / "view" / "link").symlink_to(elsewhere)
    assert find_images(tmp_path / "view").paths.tolist() == [
        str(tmp_path / "view" / "link" / "a.png")
    ]


def test_what_names_no_pictures(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere' is no folder.*Pass the path"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"is no folder but a file. Pass \[X\]"):
        find_images(str(tmp_path / "notes.txt"))
    with pytest.raises(ValueError, match=r"holds no images: no file in it"):
        find_images(tmp_path)
    with pytest.raises(TypeError, match=r"list of paths, but holds 3 in row 1"):
        find_images(["a.png", 3])

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(PIXELS)

    with pytest.raises(TypeError, match="map-style Dataset"):
        find_images(Stream())


# The format.


@pytest.mark.parametrize(
    ("sizes", "side", "shape"),
    [
        ([(20, 30), (20, 30)], "auto", (1, 20, 30)),
        ([(128, 100), (128, 100)], "auto", (1, 128, 100)),
        ([(129, 100), (129, 100)], "auto", (1, 64, 64)),
        ([(20, 30), (40, 24), (50, 26)], "auto", (1, 24, 24)),
        ([(300, 200), (20, 30), (400, 400)], "auto", (1, 64, 64)),
        ([(300, 200), (20, 30)], 48, (1, 48, 48)),
        ([(20, 30), (20, 30)], 20, (1, 20, 20)),
    ],
)
def test_the_size_that_pictures_get(sizes, side, shape):
    items = find_images([Image.new("L", (width, height)) for height, width in sizes])
    found, failures = find_common_format(items, None, side, 0)
    assert found == ImageFormat(shape, np.uint8)
    assert not failures


def test_one_color_picture_makes_all_of_them_color():
    items = find_images([Image.new("L", (8, 8)), Image.new("RGB", (8, 8))])
    assert find_common_format(items, None, "auto", 0)[0].shape == (3, 8, 8)


def test_image_shape_settles_the_format():
    items = find_images([Image.new("RGB", (8, 8))])
    found, _ = find_common_format(items, (1, 4, 6), "auto", 0)
    assert found == ImageFormat((1, 4, 6), np.uint8)


def test_one_array_of_floats_makes_all_of_them_floats():
    items = find_images([PIXELS[0], PIXELS[1][:5].astype(np.float32)])
    assert find_common_format(items, None, "auto", 0)[0].dtype == np.float32


@pytest.mark.parametrize("n_workers", [0, 2])
def test_headers_that_cannot_be_read(monkeypatch, paths, n_workers):
    monkeypatch.setattr(images_module, "SCANNED_AT_ONCE", 3)
    paths[4].write_bytes(b"")
    paths[7].unlink()
    found, failures = find_common_format(find_images(paths), None, "auto", n_workers)
    assert found.shape == (1, 9, 7)
    assert sorted(failures) == [4, 7]
    assert failures[4] == f"{paths[4]}: the file is empty"
    for path in paths:
        path.unlink(missing_ok=True)
    found, failures = find_common_format(find_images(paths), None, "auto", n_workers)
    assert found is None
    assert len(failures) == N


# The source.


@pytest.mark.parametrize("n_workers", [0, 1, 2, 5])
def test_batches_come_in_order_from_any_number_of_workers(paths, n_workers):
    source = source_of(find_images(paths), n_workers=n_workers)
    parts = [np.array(rows) for rows in ([3, 3], [0], [11, 2, 5], [7, 8])]
    parts.append(slice(1, 4))
    for part, batch in zip(parts, source.batches(parts), strict=True):
        assert batch.dtype == torch.uint8
        assert_array_equal(batch[:, 0], PIXELS[part])


def test_workers_leave_the_global_generator_alone(paths):
    before = torch.random.get_rng_state()
    source = source_of(find_images(paths), n_workers=2)
    list(source.batches([slice(0, 2), slice(2, 4)]))
    assert torch.equal(before, torch.random.get_rng_state())


def test_some_of_the_items(paths):
    items, rows = find_images(paths), np.array([2, 5, 6])
    source = DecodedSource(items, WANTED, rows, 0, skip=False)
    assert len(source) == 3
    assert_array_equal(source.batch(np.array([1, 0]))[:, 0], PIXELS[[5, 2]])
    assert_array_equal(source.take(np.array([2, 0])).values[:, 0], PIXELS[[6, 2]])


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_picture_that_cannot_be_read_ends_it(paths, n_workers):
    paths[5].write_bytes(paths[5].read_bytes()[:60])
    source = source_of(find_images(paths), n_workers=n_workers)
    message = rf"row 5: {paths[5]}: .*Remove it, or set on_error='skip'"
    with pytest.raises(ValueError, match=message):
        list(source.batches([slice(0, 4), slice(4, 8), slice(8, 12)]))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_picture_that_cannot_be_read_stays_blank(paths, n_workers):
    paths[5].unlink()
    source = source_of(find_images(paths), n_workers=n_workers, skip=True)
    parts = [slice(0, 4), slice(4, 8), slice(8, 12)]
    found = torch.cat(list(source.batches(parts)))[:, 0].numpy()
    assert source.failures.rows.tolist() == [5]
    assert "No such file" in source.failures.messages[5]
    assert (found[5] == 0).all()
    others = np.delete(np.arange(N), 5)
    assert_array_equal(found[others], PIXELS[others])


def test_what_a_dataset_raises_names_the_row():
    class Broken(Pictures):
        def __getitem__(self, row):
            if row == 3:
                raise KeyError("no such picture")
            return super().__getitem__(row)

    source = source_of(find_images(Broken(np.array)), n_workers=2)
    with pytest.raises(ValueError, match=r"row 3: 'no such picture'"):
        list(source.batches([slice(0, 2), slice(2, 4)]))


def test_lack_of_memory_is_not_a_broken_picture():
    class Huge(Pictures):
        def __getitem__(self, row):
            raise MemoryError

    with pytest.raises(MemoryError):
        source_of(find_images(Huge(np.array)), skip=True).batch(slice(None))


class Dying:
    """Returns what it is given, but ends its process, at most so many times."""

    def __init__(self, folder, n_deaths):
        self.folder, self.n_deaths = folder, n_deaths

    def __call__(self, part):
        deaths = list(self.folder.iterdir())
        if part == 5 and len(deaths) < self.n_deaths:
            (self.folder / str(len(deaths))).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return part


@pytest.fixture
def impatient(monkeypatch):
    """Have torch look whether processes are there every half second, of five."""
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
    waiting = dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(waiting, "__defaults__", (0.5,))


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.usefixtures("impatient")
def test_a_killed_process_is_replaced(tmp_path):
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.warns(UserWarning, match="decodes pictures was killed. Another"):
        found = list(map_in_workers(Dying(tmp_path, 1), [*range(9)], 2))
    assert found == [*range(9)]
    assert signal.getsignal(signal.SIGCHLD) == before


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.usefixtures("impatient")
@pytest.mark.filterwarnings("ignore:A process that decodes pictures was killed")
def test_processes_that_are_killed_again_and_again_end_it(tmp_path):
    results = map_in_workers(Dying(tmp_path, 99), [*range(9)], 2)
    with pytest.raises(RuntimeError, match=r"again and again.* Lower n_jobs"):
        list(results)


def test_an_error_in_a_process_is_no_death():
    def fail(part):
        raise RuntimeError("of its own")

    before = multiprocessing.active_children()
    with pytest.raises(RuntimeError, match="of its own"):
        list(map_in_workers(fail, [1, 2, 3], 2))
    # While the error is kept, and its traceback with it.
    assert set(multiprocessing.active_children()) <= set(before)


def test_a_daemon_decodes_by_itself(monkeypatch):
    """It may have no children; multiprocessing holds it to that."""
    settings = multiprocessing.current_process()._config
    monkeypatch.setitem(settings, "daemon", True)
    assert set(map_in_workers(lambda part: os.getpid(), [1, 2, 3], 2)) == {os.getpid()}


def test_calls_ahead_end_with_the_parts():
    assert list(map_in_workers(len, [], 3)) == []
    assert list(map_in_workers(len, [[1, 2]], 3)) == [2]
    assert list(map_in_workers(len, [[1, 2], [], [1]], 3)) == [2, 0, 1]
