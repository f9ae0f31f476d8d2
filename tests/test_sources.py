"""The same images give the same result in every form of X; broken images are named."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._inputs.read import REREAD_ROWS

# Quick fits may warn that they have not converged.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 200


def quick(**params):
    """A fit of a second or less."""
    params = {"max_iter": 1, "epochs_per_iter": 2, "random_state": 0, **params}
    params = {"n_clusters": 5, "n_pseudo_labels": 5, "n_neighbors": None, **params}
    return DeepClusterEstimator(**params)


class LabeledImages(Dataset):
    """Images of one form, as (image, label)."""

    def __init__(self, images, form):
        self.images, self.form = images, form

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return self.form(self.images[row]), 0


@pytest.fixture(scope="module")
def images(digits_images):
    """Color images (n, H, W, C), which are not square and differ in their channels."""
    gray = digits_images[0][:N]
    color = np.stack([gray, gray // 2, 255 - gray], axis=-1)
    return np.ascontiguousarray(np.pad(color, [(0, 0), (0, 0), (1, 1), (0, 0)]))


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory):
    """PNG files in two subfolders."""
    folder = tmp_path_factory.mktemp("images")
    for i, values in enumerate(images):
        subfolder = folder / ("a" if i < N // 2 else "b")
        subfolder.mkdir(exist_ok=True)
        Image.fromarray(values).save(subfolder / f"{i:03d}.png")
    return folder


def list_paths(folder):
    return sorted(folder.rglob("*.png"))


def save_array(images, path):
    np.save(path, images)
    return path


SOURCES = {
    "channels last": lambda images, folder, tmp: images,
    "channels first": lambda images, folder, tmp: images.transpose(0, 3, 1, 2).copy(),
    "tensor": lambda images, folder, tmp: torch.tensor(images),
    "list of arrays": lambda images, folder, tmp: list(images),
    "memory map": lambda images, folder, tmp: np.load(
        save_array(images, tmp / "x.npy"), mmap_mode="r"
    ),
    ".npy file": lambda images, folder, tmp: save_array(images, tmp / "x.npy"),
    "name of .npy": lambda images, folder, tmp: str(save_array(images, tmp / "x.npy")),
    "folder": lambda images, folder, tmp: folder,
    "name of a folder": lambda images, folder, tmp: str(folder),
    "list of paths": lambda images, folder, tmp: list_paths(folder),
    "list of names": lambda images, folder, tmp: list(map(str, list_paths(folder))),
    "array of paths": lambda images, folder, tmp: np.array(list_paths(folder)),
    "Series of paths": lambda images, folder, tmp: pytest.importorskip("pandas").Series(
        list_paths(folder)
    ),
    "PIL images": lambda images, folder, tmp: list(map(Image.fromarray, images)),
    "ImageFolder": lambda images, folder, tmp: ImageFolder(folder),
    "PIL dataset": lambda images, folder, tmp: LabeledImages(images, Image.fromarray),
    "array dataset": lambda images, folder, tmp: LabeledImages(images, np.array),
    "tensor dataset": lambda images, folder, tmp: TensorDataset(torch.tensor(images)),
    "subset": lambda images, folder, tmp: Subset(
        LabeledImages(images, np.array), range(N)
    ),
}


@pytest.fixture(scope="module")
def expected(images):
    return quick().fit(images)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_labels(source, images, folder, tmp_path, expected):
    X = SOURCES[source](images, folder, tmp_path)
    model = quick()
    assert_array_equal(model.fit_predict(X), expected.labels_)
    assert_array_equal(model.predict(X), expected.labels_)
    embedding = expected.transform(images)
    assert_array_equal(model.transform(X), embedding)
    assert_array_equal(model.predict(images), expected.labels_)
    assert model.score(X) == expected.score(images)
    has_files = "folder" in source or "paths" in source or "names" in source
    assert (model.paths_ is not None) == has_files
    if has_files:
        assert_array_equal(model.paths_, list(map(str, list_paths(folder))))
    assert len(model.skipped_) == 0


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_cache_changes_nothing(folder, make_cache, n_jobs):
    expected = quick(n_jobs=n_jobs).fit(folder)
    embedding = expected.transform(folder)
    for kind in ("folder", "temporary file", "none"):
        model = quick(cache_dir=make_cache(kind), n_jobs=n_jobs).fit(folder)
        assert_array_equal(model.labels_, expected.labels_)
        assert_array_equal(model.transform(folder), embedding)


def test_datasets_are_decoded_in_workers(images, expected, make_cache):
    make_cache("none")
    X = LabeledImages(images, Image.fromarray)
    assert_array_equal(quick().fit_predict(X), expected.labels_)


def make_zip(paths, target):
    with zipfile.ZipFile(target, "w") as archive:
        for path in paths:
            archive.write(path, path.name)


def make_tar(paths, target):
    with tarfile.open(target, "w") as archive:
        for path in paths:
            archive.add(path, path.name)


def make_blob(paths, target):
    target.write_bytes(b"".join(np.asarray(Image.open(p)).tobytes() for p in paths))


class OpenArchive(Dataset):
    """Images in one file, which is open all the time."""

    def __init__(self, kind, path, shape):
        self.kind, self.shape = kind, shape
        if kind == "zip":
            self.archive = zipfile.ZipFile(path)
            self.names = sorted(self.archive.namelist())
        elif kind == "tar":
            self.archive = tarfile.open(path)  # noqa: SIM115
            self.names = sorted(self.archive.getnames())
        elif kind == "npz":
            self.archive = np.load(path)
        else:
            # Without a buffer each read moves the position in the file.
            self.archive = open(path, "rb", buffering=0)  # noqa: SIM115

    def __len__(self):
        return N

    def __getitem__(self, row):
        if self.kind == "npz":
            return self.archive[f"{row:03d}"]
        if self.kind == "blob":
            size = int(np.prod(self.shape))
            self.archive.seek(row * size)
            values = np.frombuffer(self.archive.read(size), np.uint8)
            return values.reshape(self.shape).copy()
        name = self.names[row]
        if self.kind == "zip":
            return Image.open(io.BytesIO(self.archive.read(name)))
        return Image.open(io.BytesIO(self.archive.extractfile(name).read()))


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize("kind", ["zip", "tar", "npz", "blob"])
def test_datasets_may_hold_open_files(images, folder, tmp_path, kind, n_jobs):
    target, paths = tmp_path / "archive", list_paths(folder)
    if kind == "npz":
        np.savez(target, **{f"{i:03d}": image for i, image in enumerate(images)})
        target = target.with_suffix(".npz")
    else:
        {"zip": make_zip, "tar": make_tar, "blob": make_blob}[kind](paths, target)
    dataset = OpenArchive(kind, target, images[0].shape)
    # The number of threads, which n_jobs sets, changes the rounding.
    expected = quick(n_jobs=n_jobs).fit_predict(images)
    with contextlib.closing(dataset.archive):
        model = quick(n_jobs=n_jobs).fit(dataset)
        assert_array_equal(model.labels_, expected)
        # The file can still be read here, from where it was.
        assert_array_equal(model.predict(dataset), expected)


class StrictDataset(Dataset):
    """Images of which one cannot be read."""

    def __init__(self, images, error):
        self.images, self.error = images, error

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        if type(row) is not int:
            raise AssertionError(f"the index is {type(row)}")
        if row == 150 and self.error is not None:
            raise self.error
        return self.images[row]


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize("error", [KeyError("label"), OSError(5, "disk"), RuntimeError])
def test_errors_of_a_dataset_are_causes(images, error, n_jobs):
    dataset = StrictDataset(images, error)
    with pytest.raises(ValueError, match="row 150") as caught:
        quick(n_jobs=n_jobs).fit(dataset)
    expected_type = error if isinstance(error, type) else type(error)
    assert isinstance(caught.value.__cause__, expected_type)
    quick(n_jobs=n_jobs).fit(StrictDataset(images, None))


def large_arrays(kind, images):
    """Return images of more than 128 pixels a side."""
    large = images.repeat(20, axis=1).repeat(15, axis=2)
    if kind == "gray":
        return large[..., 0]
    if kind == "wide":
        return np.concatenate([large, large], axis=2)[:, :64]
    return large


LARGE_SOURCES = {
    "channels first": lambda X, folder: X.transpose(0, 3, 1, 2) if X.ndim == 4 else X,
    "tensor": lambda X, folder: torch.tensor(X),
    "list of arrays": lambda X, folder: list(X),
    "folder": lambda X, folder: folder,
    "PIL images": lambda X, folder: list(map(Image.fromarray, X)),
    "array dataset": lambda X, folder: LabeledImages(X, np.array),
}


@pytest.mark.filterwarnings("ignore:resize='auto' pads")
@pytest.mark.filterwarnings("ignore:X holds color images")
@pytest.mark.parametrize("kind", ["color", "gray", "wide"])
def test_large_images_of_every_source(images, tmp_path, kind):
    X = large_arrays(kind, images[:40])
    for i, image in enumerate(X):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    from_array, from_folder = (quick(backbone="mlp").fit(x) for x in (X, tmp_path))
    assert from_array.image_shape_[1:] == (64, 64)
    assert_array_equal(from_folder.labels_, from_array.labels_)
    embedding = from_array.transform(X)
    for form in LARGE_SOURCES.values():
        assert_array_equal(from_folder.transform(form(X, tmp_path)), embedding)


def test_images_of_another_size_are_resized_from_every_source(images, expected, folder):
    new = images[:30].repeat(3, axis=1).repeat(3, axis=2)
    embedding = expected.transform(list(map(Image.fromarray, new)))
    from_folder = quick().fit(folder)
    for model in (expected, from_folder):
        for X in (new, list(new), torch.tensor(new), new.transpose(0, 3, 1, 2)):
            assert_array_equal(model.transform(X), embedding)
        assert_array_equal(model.transform([new[2]]), embedding[2:3])
    gray = new[..., 0]
    as_color = np.repeat(gray[..., None], 3, axis=-1)
    assert_array_equal(expected.transform(gray), expected.transform(as_color))


def test_single_images_of_every_source(images, folder):
    from_folder, from_array = quick().fit(folder), quick().fit(images)
    path = list_paths(folder)[7]
    for model in (from_folder, from_array):
        for single in (images[7], path, str(path), Image.open(path)):
            assert model.predict([single]).tolist() == model.labels_[7:8].tolist()
        # A color image by itself is no batch of gray images.
        for single in (images[7], images[7].transpose(2, 0, 1), np.zeros((50, 60, 3))):
            with pytest.raises(ValueError, match=r"X\[None\]"):
                model.predict(single)


def test_columns_of_hugging_face_data_sets(images, expected):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("int64")}
    )
    rows = {"image": list(map(Image.fromarray, images)), "label": list(range(N))}
    data = datasets.Dataset.from_dict(rows, features=features)
    model = quick().fit(data["image"])
    assert_array_equal(model.labels_, expected.labels_)
    assert_array_equal(model.predict(data["image"]), expected.labels_)
    assert_array_equal(model.predict(data[:20]["image"]), expected.labels_[:20])
    for X in (data, data[:5]):
        with pytest.raises(TypeError, match=r"X\['image'\]"):
            model.predict(X)
    arrays = data.with_format("numpy")
    assert_array_equal(quick().fit(arrays["image"]).labels_, expected.labels_)
    rows = datasets.Dataset.from_dict({"row": np.eye(60).tolist()})
    assert quick().fit(rows["row"]).n_features_in_ == 60


def test_samples_of_an_image_folder(folder, expected):
    samples = ImageFolder(folder).samples
    model = quick().fit(samples)
    assert_array_equal(model.labels_, expected.labels_)
    assert model.paths_.tolist() == [path for path, _ in samples]
    assert_array_equal(model.predict(samples[:3]), expected.labels_[:3])
    pairs = [(Path(path), "name") for path, _ in samples]
    assert quick().fit(pairs).paths_.tolist() == model.paths_.tolist()


MISSING = {
    "first array": lambda images, paths: [None, *images],
    "last array": lambda images, paths: [*images, None],
    "PIL": lambda images, paths: [None, *map(Image.fromarray, images)],
    "column": lambda images, paths: np.array([None, *images[:3], None], dtype=object),
    "sizes": lambda images, paths: [images[0, :5], None, *images],
    "paths": lambda images, paths: [None, *paths],
    "dataset": lambda images, paths: LabeledImages([*images, None], lambda x: x),
}


@pytest.mark.parametrize("kind", MISSING)
def test_missing_images_are_named(images, folder, kind):
    X = MISSING[kind](images, list_paths(folder))
    with pytest.raises((ValueError, TypeError), match=r"None.*row|row.*None") as caught:
        quick().fit(X)
    row = {"last array": N, "sizes": 1, "dataset": N}.get(kind, 0)
    assert f"row {row}" in str(caught.value)
    if kind in ("first array", "PIL", "last array"):
        with pytest.warns(UserWarning, match="1 of 201 images cannot be read"):
            model = quick(on_error="skip").fit(X)
        assert model.skipped_.tolist() == [row]
        assert model.labels_[row] == -1


ANIMATED = {
    "tif": {"save_all": True},
    "gif": {"save_all": True},
    "png": {"save_all": True},
    "webp": {"save_all": True, "lossless": True},
}


@pytest.mark.parametrize("ending", ANIMATED)
def test_first_frame_is_read_and_the_rest_is_counted(images, tmp_path, ending):
    frames = [Image.fromarray(image) for image in images]
    for i in range(12):
        path = tmp_path / f"{i:02d}.{ending}"
        more = {"append_images": frames[i + 1 : i + 3]} if i in (2, 5, 6) else {}
        frames[i].save(path, **ANIMATED[ending], **more)
    with pytest.warns(UserWarning, match="3 of 12 images have several frames") as said:
        model = quick(n_clusters=2, n_pseudo_labels=2).fit(tmp_path)
    assert len(said) == 1
    if ending != "gif":
        assert_array_equal(model.transform(tmp_path), model.transform(images[:12]))


def test_mixed_sizes_and_modes(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        values = rng.integers(0, 256, (*rng.integers(5, 90, 2), 3)).astype(np.uint8)
        mode = ["L", "RGB", "RGBA", "P", "CMYK"][i % 5]
        ending = "tif" if mode == "CMYK" else "png"
        Image.fromarray(values).convert(mode).save(tmp_path / f"{i}.{ending}")
    model = quick(image_size=20).fit(tmp_path)
    assert model.image_shape_ == (3, 20, 20)
    assert np.isfinite(model.transform(tmp_path)).all()
    assert quick().fit(tmp_path).image_shape_[0] == 3


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"]),
            st.integers(1, 40),
            st.integers(1, 40),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_mix_gives_finite_features_or_a_clear_error(expected, formats):
    rng = np.random.default_rng(0)
    X = []
    for mode, width, height in formats:
        values = rng.integers(0, 256, (height, width)).astype(np.uint8)
        if mode == "I;16":
            X.append(Image.fromarray(values.astype(np.uint16) << 8))
        else:
            X.append(Image.fromarray(values).convert(mode))
    # Images of more than 8 bits have no white that the model knows.
    unlike = [row for row, (mode, *_) in enumerate(formats) if mode in ("I;16", "F")]
    if unlike:
        with pytest.raises(ValueError, match=f"row {unlike[0]}: its pixels are"):
            expected.transform(X)
    else:
        assert np.isfinite(expected.transform(X)).all()


def test_warm_start_decodes_once(images):
    calls = []

    def form(values):
        calls.append(1)
        return Image.fromarray(values)

    model = quick(warm_start=True, n_jobs=1).fit(images)
    model.fit(LabeledImages(images, form))
    # A few rows are read again, to notice random transforms.
    assert len(calls) == N + REREAD_ROWS
    assert model.n_iter_ == 2


def test_image_size_resizes_arrays(images):
    model = quick(image_size=12).fit(images)
    assert model.image_shape_ == (3, 12, 12)
    assert_array_equal(model.predict(images), model.labels_)
    assert_array_equal(model.predict(list(map(Image.fromarray, images))), model.labels_)


def draw_shapes(n=40):
    """Return wide and tall white PIL images with a black bar and some noise."""
    rng = np.random.default_rng(0)
    drawings = []
    for i in range(n):
        values = rng.integers(200, 256, (20, 60)).astype(np.uint8)
        values[[0, -1]] = 255
        # Every second bar stands at the end, which a crop drops.
        values[5:15, 28 : 32 if i % 4 < 2 else 60] = 0
        drawings.append(Image.fromarray(values if i % 2 else values.T.copy()))
    return drawings


def save_files(drawings, folder):
    paths = [folder / f"{i:02d}.png" for i in range(len(drawings))]
    for drawing, path in zip(drawings, paths, strict=True):
        drawing.save(path)
    return paths


SHAPE_FORMS = {
    "files": save_files,
    "PIL images": lambda drawings, folder: drawings,
    "arrays": lambda drawings, folder: list(map(np.asarray, drawings)),
    "dataset": lambda drawings, folder: LabeledImages(drawings, np.asarray),
}


@pytest.mark.filterwarnings("ignore:resize='crop' drops")
@pytest.mark.filterwarnings("ignore:resize='auto' pads")
@pytest.mark.parametrize("form", SHAPE_FORMS)
@pytest.mark.parametrize("resize", ["auto", "crop", "pad", "stretch"])
def test_new_images_are_resized_as_in_fit(tmp_path, form, resize):
    drawings = draw_shapes()
    X = SHAPE_FORMS[form](drawings, tmp_path)
    model = quick(resize=resize, image_size=12, backbone="mlp").fit(X)
    assert model.recipe_["resize"] == ("pad" if resize == "auto" else resize)
    assert_array_equal(model.predict(X), model.labels_)
    # A single image, whose own shape would lead to another choice.
    square = np.full((12, 12), 255, np.uint8)
    embedding = model.transform([*drawings, square])
    assert_array_equal(embedding[:40], model.transform(X))
    # A parameter that changes after the fit does not change the fit.
    model.set_params(resize="stretch")
    assert_array_equal(model.transform([*drawings, square]), embedding)


def test_auto_crops_images_of_similar_shapes(folder):
    model = quick(image_size=8).fit(folder)
    assert model.recipe_["resize"] == "crop"
    explicit = quick(image_size=8, resize="crop").fit(folder)
    assert_array_equal(model.labels_, explicit.labels_)


def test_pad_tells_apart_what_crop_drops():
    X = draw_shapes()
    with pytest.warns(UserWarning, match="100% of the images. Set resize='pad'"):
        cropped = quick(resize="crop", image_size=20).fit(X)
    padded = quick(resize="pad", image_size=20).fit(X)
    wide = Image.fromarray(np.pad(np.zeros((20, 20), np.uint8), [(0, 0), (20, 20)]))
    other = wide.copy()
    other.paste(255, (0, 0, 20, 20))
    first, second = cropped.transform([wide, other])
    assert_array_equal(first, second)
    first, second = padded.transform([wide, other])
    assert (first != second).any()


@pytest.mark.parametrize("resize", ["auto", "crop", "pad", "stretch"])
def test_resize_is_for_images_of_other_shapes(images, expected, resize):
    model = quick(resize=resize).fit(images)
    assert_array_equal(model.labels_, expected.labels_)
    assert model.recipe_["resize"] == ("crop" if resize == "auto" else resize)
    rows = images.reshape(N, -1)
    assert_array_equal(
        quick(resize=resize).fit_predict(rows), quick().fit_predict(rows)
    )


@pytest.mark.filterwarnings("ignore:resize='auto' pads")
def test_stretch_of_arrays(images):
    wide = images.repeat(4, axis=2)
    stretched = quick(image_size=8, resize="stretch").fit(wide)
    assert stretched.recipe_["resize"] == "stretch"
    assert quick(image_size=8).fit(wide).recipe_["resize"] == "pad"


@pytest.mark.filterwarnings("ignore:resize='auto' pads")
def test_warm_start_keeps_the_choice_of_the_first_fit(folder):
    model = quick(image_size=8, warm_start=True).fit(draw_shapes())
    assert model.recipe_["resize"] == "pad"
    assert model.fit(draw_shapes()[:1] * 20 + [Image.new("L", (8, 8))] * 200)
    assert model.recipe_["resize"] == "pad"


def test_image_shape_settles_the_format_of_files(folder):
    model = quick(image_shape=(1, 8, 8)).fit(folder)
    assert model.image_shape_ == (1, 8, 8)
    assert model.n_features_in_ == 64


def test_single_image(images, folder, expected):
    path = list_paths(folder)[7]
    for X in ([path], [Image.open(path)], images[7:8], np.array([str(path)])):
        assert expected.predict(X).tolist() == [expected.labels_[7]]


# scikit-learn's tools.


def test_paths_in_searches_and_pipelines(folder):
    paths, y = np.array(list_paths(folder)), np.arange(N) % 2
    results = cross_validate(quick(), paths, cv=2)
    assert np.isfinite(results["test_score"]).all()
    pipeline = make_pipeline(quick(), LogisticRegression())
    assert cross_validate(pipeline, list(paths), y, cv=2)["test_score"].shape == (2,)
    search = GridSearchCV(quick(), {"n_clusters": [2, 3]}, cv=2).fit(paths)
    assert len(search.best_estimator_.labels_) == N


def test_column_of_paths_in_a_column_transformer(folder, expected):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": list(map(str, list_paths(folder))), "size": 1.0})
    columns = make_column_transformer((quick(), "path"), remainder="passthrough")
    embedding = columns.fit_transform(frame)
    assert_array_equal(embedding[:, :-1], expected.transform(list_paths(folder)))


# Broken images.


def add_broken_files(folder, bomb):
    """Write one broken file of each kind; return their names in sorted order."""
    content = (folder / "000.png").read_bytes()
    (folder / "01_empty.png").write_bytes(b"")
    (folder / "02_text.png").write_text("no image at all")
    (folder / "03_cut.png").write_bytes(content[: len(content) - 40])
    (folder / "04_loop.png").symlink_to(folder / "04_loop.png")
    (folder / "05_gone.png").symlink_to(folder / "nowhere.png")
    (folder / "06_bomb.png").write_bytes(bomb)
    Image.fromarray(np.zeros((9, 9), np.float32)).save(folder / "07_float.tif")
    return sorted(path.name for path in folder.iterdir() if path.name[2] == "_")


@pytest.fixture
def image_folder(tmp_path, images):
    """A folder of 40 files of one size, and two of extreme but valid sizes."""
    for i in range(40):
        Image.fromarray(images[i]).save(tmp_path / f"{i:03d}.png")
    Image.new("RGB", (1, 1), "red").save(tmp_path / "040.png")
    Image.new("RGB", (20_000, 10), "red").save(tmp_path / "041.png")
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "n_jobs"), [("memory", 1), ("folder", 2), ("none", 1), ("none", 2)]
)
def test_broken_files_are_skipped(image_folder, bomb, make_cache, kind, n_jobs):
    broken = add_broken_files(image_folder, bomb)
    cache_dir = make_cache(kind)
    before = sorted(image_folder.iterdir())
    model = quick(image_size=10, on_error="skip", cache_dir=cache_dir, n_jobs=n_jobs)
    with pytest.warns(UserWarning, match=r"7 of 49 images cannot be read .*01_empty"):
        embedding = model.fit_transform(image_folder)
    names = [os.path.basename(path) for path in model.paths_]
    assert [names[row] for row in model.skipped_] == broken
    is_broken = np.isin(np.arange(49), model.skipped_)
    assert (model.labels_[is_broken] == -1).all()
    assert (model.labels_[~is_broken] >= 0).all()
    assert np.isnan(embedding[is_broken]).all()
    assert np.isfinite(embedding[~is_broken]).all()
    with pytest.warns(UserWarning, match="7 of 49 images"):
        assert_array_equal(model.predict(image_folder), model.labels_)
    with pytest.warns(UserWarning, match="7 of 49 images"):
        assert_array_equal(model.transform(image_folder), embedding)
    # Nothing is written next to the images.
    assert sorted(image_folder.iterdir()) == before


def test_skipped_images_change_nothing_else(image_folder, bomb):
    expected = quick(image_size=10).fit(image_folder)
    add_broken_files(image_folder, bomb)
    with pytest.warns(UserWarning, match="7 of 49 images"):
        model = quick(image_size=10, on_error="skip").fit(image_folder, np.zeros(49))
    readable = np.setdiff1d(np.arange(49), model.skipped_)
    assert_array_equal(model.labels_[readable], expected.labels_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert model.score(image_folder) == expected.score(model.paths_[readable])


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("01_empty", "the file is empty"),
        ("02_text", "the file is not an image"),
        ("03_cut", "truncated"),
        ("04_loop", "symbolic links"),
        ("05_gone", "No such file"),
        ("06_bomb", "MAX_IMAGE_PIXELS"),
        ("07_float", "floating-point numbers"),
    ],
)
def test_broken_file_is_named(image_folder, bomb, make_cache, kind, cause, cache):
    for name in add_broken_files(image_folder, bomb):
        if kind not in name:
            (image_folder / name).unlink()
    make_cache(cache)
    model = quick()
    with pytest.raises(
        ValueError, match=rf"row \d+: .*{kind}.*{cause}.*on_error='skip'"
    ):
        model.fit(image_folder)
    assert not hasattr(model, "module_")
    assert vars(model) == vars(quick())


@pytest.mark.skipif(
    os.name == "nt" or os.geteuid() == 0, reason="root may read every file"
)
def test_file_without_permission_is_named(image_folder):
    (image_folder / "003.png").chmod(0)
    with pytest.raises(ValueError, match=r"003.png: Permission denied"):
        quick().fit(image_folder)


def test_file_that_vanishes_between_rounds(image_folder, make_cache):
    make_cache("none")
    lost_path = image_folder / "005.png"

    def remove_file(batch):
        lost_path.unlink(missing_ok=True)
        return batch

    model = quick(augment=remove_file, image_size=10)
    with pytest.raises(ValueError, match=r"row 5: .*005.png: No such file"):
        model.fit(image_folder)
    Image.new("RGB", (10, 8)).save(lost_path)
    with pytest.warns(UserWarning, match="1 of 42 images cannot be read"):
        model.set_params(on_error="skip").fit(image_folder)
    assert model.skipped_.tolist() == [5]
    assert model.labels_[5] == -1


def test_no_image_can_be_read(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    for on_error in ("raise", "skip"):
        with pytest.raises(ValueError, match=r"row 0: .*a.png: the file is empty"):
            quick(on_error=on_error).fit(tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"1 sample.* minimum of 2"):
        quick(on_error="skip").fit(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_file_without_an_array(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.npy' is not an array on disk"):
        quick().fit(tmp_path / "x.npy")
    np.save(tmp_path / "y.npy", np.array([{}]))
    with pytest.raises(ValueError, match=r"y.npy' is not an array on disk"):
        quick().fit(tmp_path / "y.npy")


def test_files_after_a_fit_on_other_data(images, folder):
    rows = np.random.default_rng(0).random((30, 8))
    with pytest.raises(ValueError, match="holds images, but fit saw rows of 8"):
        quick().fit(rows).predict(folder)
    floats = quick().fit(images / 255)
    with pytest.raises(ValueError, match=r"row 0.*bytes from 0 to 255.*floating"):
        floats.predict(folder)


SCRIPT = """
import os, sys
from torch.utils.data._utils import worker
from skdeepcluster import DeepClusterEstimator
from skdeepcluster._utils import allocation
# Workers check every half second, instead of five, that their parent lives.
worker.MP_STATUS_CHECK_INTERVAL = 0.5
# Without room for decoded images, workers decode in each pass.
allocation.MEMORY_BYTES = 0
allocation.MAX_DISK_SHARE = 0.0
def kill(batch):
    os.kill(os.getpid(), 9)
params = {"init": "features", "n_neighbors": None, "augment": kill}
DeepClusterEstimator(3, n_jobs=2, **params).fit(sys.argv[1])
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_workers_end_with_the_process_that_started_them(folder):
    # `run` waits until all workers have closed the pipe of their output.
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder], timeout=120, stdout=subprocess.PIPE
    )
    assert process.returncode == -signal.SIGKILL


FAR_ROWS = {
    "timestamps": lambda rows: 1.76e9 + 600 * rows,
    "map coordinates": lambda rows: np.add(100 * rows, [5_342_000, 691_000]),
    "integers": lambda rows: (2**40 + 1000 * rows).astype(np.int64),
    "one far column": lambda rows: np.add(rows, [0, 1e8]),
    "negative": lambda rows: rows - 3e7,
}


@pytest.mark.parametrize("kind", FAR_ROWS)
def test_rows_far_from_zero(kind, tmp_path):
    rng = np.random.default_rng(0)
    classes = np.repeat(range(4), 40)
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    rows = corners[classes] + rng.normal(0, 0.05, (160, 2))
    X = FAR_ROWS[kind](rows)
    model = quick(n_clusters=4, n_pseudo_labels=4).fit(X)
    assert adjusted_rand_score(classes, model.labels_) == 1
    assert_array_equal(model.predict(X[50:53]), model.labels_[50:53])
    model.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    assert_array_equal(loaded.transform(X[:9]), model.transform(X[:9]))


def test_embeddings_far_from_zero_are_not_shifted():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4)) + 100
    model = DeepClusterEstimator(2, fine_tune=False, random_state=0).fit(X)
    assert_array_equal(model.transform(X), X.astype(np.float32))


def test_score_of_broken_files_names_the_first(tmp_path, images):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        path.write_text("not an image")
    for on_error in ("raise", "skip"):
        model = quick(on_error=on_error).fit(images)
        for X in (paths, tmp_path):
            with pytest.raises(
                ValueError, match=r"X cannot be read in row 0: .*0\.png"
            ):
                model.score(X)
