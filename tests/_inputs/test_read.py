"""A call that is nearly right raises an error or a warning that names the cure."""

import warnings
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from torch.utils.data import DataLoader, TensorDataset

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._inputs import images as images_module
from skdeepcluster._inputs.decoding import decode
from skdeepcluster._inputs.image_format import ImageFormat
from skdeepcluster._inputs.read import read_input
from skdeepcluster._inputs.spec import InputFormat, InputSpec

# Quick fits may warn that they have not converged.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

# Values from 0 to 16.
DIGITS = load_digits().images[:60]
BYTES = (DIGITS * 15.9).astype(np.uint8)
COLOR = np.repeat(BYTES[..., None], 3, axis=-1)


def make_quick_estimator(**params):
    params = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0, **params}
    return DeepClusterEstimator(2, **params)


@pytest.fixture(scope="module")
def bytes_model():
    return make_quick_estimator().fit(BYTES)


@pytest.fixture(scope="module")
def color_model():
    return make_quick_estimator().fit(COLOR)


def test_folder_in_a_search(tmp_path):
    search = GridSearchCV(
        make_quick_estimator(), {"n_clusters": [2]}, cv=2, error_score="raise"
    )
    with pytest.raises(ValueError, match=r"single letters.*Pass it the list of files"):
        search.fit(str(tmp_path))


def test_error_of_every_row_does_not_offer_to_skip(tmp_path):
    for X, message in (
        (["cat", "dog"] * 9, "row 0: cat: .*text in X is read as paths"),
        ([tmp_path] * 9, "row 0: .*it is a folder. Pass a folder by itself"),
        (TensorDataset(torch.ones(9, 64)), "rows of numbers go into one 2-D array"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            make_quick_estimator().fit(X)
        assert "on_error" not in str(raised.value)


def test_data_loaders_and_single_pil_images():
    loader = DataLoader(TensorDataset(torch.tensor(BYTES)))
    with pytest.raises(TypeError, match=r"X is a DataLoader.*Pass X\.dataset"):
        make_quick_estimator().fit(loader)
    with pytest.raises(TypeError, match=r"single image. Pass .*\[X\]"):
        make_quick_estimator().fit(Image.fromarray(BYTES[0]))


@pytest.mark.parametrize("image", [COLOR[0], COLOR[0].transpose(2, 0, 1)])
def test_single_array_names_the_cure(bytes_model, color_model, image):
    with pytest.raises(ValueError, match=r"If X is a single image, pass X\[None\]"):
        color_model.predict(image)
    assert color_model.predict(image[None]).shape == (1,)
    with pytest.raises(ValueError, match="with n=1 for a single image"):
        bytes_model.predict(BYTES[0])


def test_fit_on_a_single_color_image_warns():
    with pytest.warns(UserWarning, match=r"8 gray images of 8x3 .*X\[None\]"):
        make_quick_estimator().fit(COLOR[0])


def test_channels_last_in_image_shape_warns():
    with pytest.warns(UserWarning, match=r"image_shape=\(3, 8, 8\)"):
        make_quick_estimator(image_shape=(8, 8, 3)).fit(COLOR)


FITS = {
    "0..255": BYTES,
    "0..16": DIGITS,
    "0..1": DIGITS / 16,
    "about 0": DIGITS / 16 - 0.3,
}
INPUTS = {**FITS, "dark": BYTES // 4, "black": 0 * BYTES, "bool": DIGITS > 8}
# Ranges of values in the fit and in X that differ so much that they cause a warning.
DIFFERENT_RANGES = {
    ("0..255", "0..1"),
    ("0..255", "bool"),
    ("0..16", "0..1"),
    ("0..16", "bool"),
    ("0..1", "0..255"),
    ("0..1", "dark"),
    ("about 0", "0..255"),
    ("about 0", "dark"),
}


@pytest.mark.parametrize("fit", FITS)
def test_range_of_values_unlike_in_fit_warns(fit):
    model = make_quick_estimator(backbone="mlp").fit(FITS[fit])
    for name, X in INPUTS.items():
        is_warned = (fit, name) in DIFFERENT_RANGES
        warns = pytest.warns(UserWarning, match="Scale X as in fit")
        with warns if is_warned else nullcontext():
            model.predict(X)


@pytest.mark.parametrize("resize", ["crop", "pad"])
def test_preprocessing_of_given_weights_is_a_part_of_the_format(tmp_path, resize):
    rng = np.random.default_rng(0)
    for i in range(3):
        values = rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / f"{i}.png")
    spec = InputSpec(
        image_size=16, resize=resize, shorter_side=20, interpolation="bicubic"
    )
    data, _ = read_input(tmp_path, spec)
    expected = ImageFormat(
        (3, 16, 16), np.uint8, resize, 20, "bicubic", number_types=("bytes",)
    )
    assert data.image_format == expected
    fitted = InputFormat(
        (3, 16, 16), np.uint8, np.zeros(3), np.ones(3), image_format=expected
    )
    again, _ = read_input(tmp_path, InputSpec(fitted=fitted))
    assert again.image_format == expected
    assert torch.equal(again.source.batch(slice(3)), data.source.batch(slice(3)))
    with pytest.raises(ValueError, match=r"image_size.* at most 20 pixels"):
        read_input(tmp_path, replace(spec, image_size=21))


def test_files_are_decoded_once(tmp_path, monkeypatch):
    for row, image in enumerate(COLOR[:20]):
        Image.fromarray(image).save(tmp_path / f"{row:02d}.png")
    model = make_quick_estimator(backbone="mlp").fit(tmp_path)
    paths = []

    def decode_and_count(image, image_format):
        paths.append(image)
        return decode(image, image_format)

    monkeypatch.setattr(images_module, "decode", decode_and_count)
    model.transform(tmp_path)
    assert sorted(paths) == [str(tmp_path / f"{row:02d}.png") for row in range(20)]


def test_warning_of_the_range_comes_once(bytes_model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bytes_model.transform(DIGITS / 16)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_failures_grow_while_parts_are_read(tmp_path):
    for row, image in enumerate(COLOR[:6]):
        Image.fromarray(image).save(tmp_path / f"{row}.png")
    content = (tmp_path / "4.png").read_bytes()
    (tmp_path / "4.png").write_bytes(content[:-30])
    fitted = InputFormat((3, 8, 8), np.uint8, mean=np.zeros(3), scale=np.ones(3))
    spec = InputSpec(on_error="skip", fitted=fitted)
    data, failures = read_input(tmp_path, spec)
    assert data.readable.all()
    part = data.part(3, 6)
    part.source.batch(slice(None))
    assert failures.rows.tolist() == [4]
    assert part.readable.tolist() == [True, False, True]
    assert part.paths.tolist() == [str(tmp_path / f"{row}.png") for row in (3, 4, 5)]
    assert_array_equal(part.scatter_rows(np.array([3, 4, 5]), -1), [3, -1, 5])
    embedding = data.scatter_rows(np.arange(6.0), np.nan)
    assert_array_equal(embedding, [0, 1, 2, 3, np.nan, 5])


@pytest.mark.parametrize("kind", ["memory", "none"])
def test_unreadable_images_are_not_trained_on(tmp_path, make_cache, kind):
    for row, image in enumerate(COLOR[:6]):
        Image.fromarray(image).save(tmp_path / f"{row}.png")
    content = (tmp_path / "4.png").read_bytes()
    (tmp_path / "4.png").write_bytes(content[:-30])
    (tmp_path / "1.png").write_bytes(b"")
    spec = InputSpec(on_error="skip", cache_dir=make_cache(kind))
    data, failures = read_input(tmp_path, spec, for_training=True)
    assert failures.rows.tolist() == [1, 4]
    assert data.rows.tolist() == [0, 2, 3, 5]
    assert (data.n, len(data.source)) == (6, 4)
    labels = data.scatter_rows(np.array([7, 8, 9, 6]), -1)
    assert_array_equal(labels, [7, -1, 8, 9, -1, 6])


# Tensors and arrays without dense numbers --------------------------------------------

FLOATS = torch.from_numpy(DIGITS[:20].astype(np.float32))


def mask_first_column(values):
    masked = np.ma.masked_array(values.numpy().copy())
    masked[..., 0] = np.ma.masked
    return masked


STRUCTURE = [("red", np.float32), ("green", np.float32)]
# Function that makes X of a dense tensor, the error and the cure.
NOT_DENSE = {
    "quantized": (
        lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.quint8),
        r"dequantize\(\)",
    ),
    "sparse tensor": (torch.Tensor.to_sparse, r"to_dense\(\)"),
    "compressed": (lambda x: x.flatten(1).to_sparse_csr(), r"to_dense\(\)"),
    "nested": (lambda x: torch.nested.nested_tensor([*x]), r"unbind\(\)"),
    "meta": (lambda x: x.to("meta"), "holds no values"),
    "complex": (lambda x: x.to(torch.complex64), "real numbers"),
    "conjugate": (lambda x: x.to(torch.complex64).conj(), "real numbers"),
    "masked": (mask_first_column, r"filled\(value\)"),
    "structured": (lambda x: np.zeros(x.shape, STRUCTURE), r"X\['red'\]"),
    "sparse array": (lambda x: scipy.sparse.csr_array(x.flatten(1)), "toarray"),
}


class Rows(torch.utils.data.Dataset):
    """A dataset of the entries of a list."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return self.images[row]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NOT_DENSE)
def test_numbers_that_are_not_dense_are_refused_with_a_cure(kind):
    convert, cure = NOT_DENSE[kind]
    images = [convert(image) for image in FLOATS]
    forms = [convert(FLOATS), images, Rows(images), [(image, 0) for image in images]]
    forms.append([*images[:10], *(convert(image[:4, :4]) for image in FLOATS[:10])])
    model = make_quick_estimator(max_iter=1).fit(FLOATS)
    for X in forms:
        for function in (make_quick_estimator().fit, model.predict):
            with pytest.raises((TypeError, ValueError), match=cure):
                function(X)


@pytest.mark.filterwarnings("ignore")
def test_other_views_of_dense_numbers_are_read():
    model = make_quick_estimator(max_iter=1).fit(FLOATS)
    views = {
        "gradients": FLOATS.clone().requires_grad_(),
        "negative": torch.complex(0 * FLOATS, -FLOATS).conj().imag,
        "bfloat16": FLOATS.to(torch.bfloat16),
        "float8": FLOATS.to(torch.float8_e4m3fn),
        "no value masked": np.ma.masked_array(FLOATS.numpy()),
    }
    assert views["negative"].is_neg()
    for name, view in views.items():
        for X in (view, [*view], Rows([*view])):
            labels = model.predict(X)
            assert_array_equal(labels, model.labels_, err_msg=name)


# Datasets with random transforms -----------------------------------------------------


class Flipped(Rows):
    """A dataset that flips its images at random."""

    rng = np.random.default_rng(0)
    n_reads = 0

    def __getitem__(self, row):
        self.n_reads += 1
        image = self.images[row]
        return image[:, ::-1] if self.rng.random() < 0.5 else image


class Noisy(Rows):
    """A dataset that adds noise to one of eight images."""

    def __getitem__(self, row):
        image = self.images[row].astype(np.float32)
        return image + (np.random.random() if row % 8 == 0 else 0)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_dataset_with_random_transforms_warns(n_jobs):
    images = BYTES
    spec = InputSpec(n_jobs=n_jobs)
    for dataset in (Flipped(images), Noisy(images)):
        with pytest.warns(UserWarning, match=r"X\[\d+\] is another image.*augment"):
            read_input(dataset, spec, for_training=True)


def test_dataset_without_random_transforms_is_read_again_in_part():
    class Counted(Rows):
        n_reads = 0

        def __getitem__(self, row):
            self.n_reads += 1
            return self.images[row]

    images = [*BYTES[:40]]
    dataset = Counted(images)
    read_input(dataset, InputSpec(), for_training=True)
    # For headers, for the images, and again for a few.
    assert dataset.n_reads == 2 * 40 + 8
    dataset = Counted([*images, "no.png"])
    read_input(dataset, InputSpec(on_error="skip"), for_training=True)
    for X in (images, BYTES[:40], Counted(images[:2])):
        read_input(X, InputSpec(), for_training=True)
