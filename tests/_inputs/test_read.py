"""A first call that is nearly right: what is said, and what is only warned of."""

import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from torch.utils.data import DataLoader, TensorDataset

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._inputs import images as images_module
from skdeepcluster._inputs.decoding import decode

# Quick fits may well say that they are.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

DIGITS = load_digits().images[:60]  # from 0 to 16
BYTES = (DIGITS * 15.9).astype(np.uint8)
COLOR = np.repeat(BYTES[..., None], 3, axis=-1)


def quick(**params):
    params = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0, **params}
    return DeepClusterEstimator(2, **params)


@pytest.fixture(scope="module")
def of_bytes():
    return quick().fit(BYTES)


@pytest.fixture(scope="module")
def of_colors():
    return quick().fit(COLOR)


def test_a_folder_does_not_go_into_a_search(tmp_path):
    search = GridSearchCV(quick(), {"n_clusters": [2]}, cv=2, error_score="raise")
    with pytest.raises(ValueError, match=r"single letters.*Pass it the list of files"):
        search.fit(str(tmp_path))


def test_what_is_wrong_with_every_row_is_not_to_be_skipped(tmp_path):
    for X, words in (
        (["cat", "dog"] * 9, "row 0: cat: .*text in X is paths"),
        ([tmp_path] * 9, "row 0: .*it is a folder. Pass a folder by itself"),
        (TensorDataset(torch.ones(9, 64)), "rows of numbers go into one 2-D array"),
    ):
        with pytest.raises(ValueError, match=words) as raised:
            quick().fit(X)
        assert "on_error" not in str(raised.value)


def test_batches_and_single_pictures_are_none():
    loader = DataLoader(TensorDataset(torch.tensor(BYTES)))
    with pytest.raises(TypeError, match=r"X is a DataLoader.*Pass X\.dataset"):
        quick().fit(loader)
    with pytest.raises(TypeError, match=r"single picture. Pass .*\[X\]"):
        quick().fit(Image.fromarray(BYTES[0]))


@pytest.mark.parametrize("image", [COLOR[0], COLOR[0].transpose(2, 0, 1)])
def test_a_single_image_where_a_batch_is_due(of_bytes, of_colors, image):
    with pytest.raises(ValueError, match=r"If X is a single image, pass X\[None\]"):
        of_colors.predict(image)
    assert of_colors.predict(image[None]).shape == (1,)
    with pytest.raises(ValueError, match="with n=1 for a single image"):
        of_bytes.predict(BYTES[0])


def test_a_fit_on_a_single_color_image_warns():
    with pytest.warns(UserWarning, match=r"8 gray images of 8x3 .*X\[None\]"):
        quick().fit(COLOR[0])


def test_channels_last_in_image_shape_warns():
    with pytest.warns(UserWarning, match=r"first: \(3, 8, 8\)"):
        quick(image_shape=(8, 8, 3)).fit(COLOR)


FITS = {
    "0..255": BYTES,
    "0..16": DIGITS,
    "0..1": DIGITS / 16,
    "about 0": DIGITS / 16 - 0.3,
}
OTHERS = {**FITS, "dark": BYTES // 4, "black": 0 * BYTES, "bool": DIGITS > 8}
FAR_APART = {
    *(("0..255", other) for other in ("0..1", "bool")),
    *(("0..16", other) for other in ("0..1", "bool")),
    *((fit, "0..255") for fit in ("0..1", "about 0")),
    *((fit, "dark") for fit in ("0..1", "about 0")),
}


@pytest.mark.parametrize("fit", FITS)
def test_another_unit_than_in_fit_warns(fit):
    model = quick(backbone="mlp").fit(FITS[fit])
    for other, X in OTHERS.items():
        told = pytest.warns(UserWarning, match="Scale X as in fit")
        with told if (fit, other) in FAR_APART else nullcontext():
            model.predict(X)


def test_files_are_decoded_once(tmp_path, monkeypatch):
    for row, image in enumerate(COLOR[:20]):
        Image.fromarray(image).save(tmp_path / f"{row:02d}.png")
    model = quick(backbone="mlp").fit(tmp_path)
    decoded = []

    def counted(item, wanted):
        decoded.append(item)
        return decode(item, wanted)

    monkeypatch.setattr(images_module, "decode", counted)
    model.transform(tmp_path)
    assert sorted(decoded) == [str(tmp_path / f"{row:02d}.png") for row in range(20)]


def test_one_warning_of_another_unit(of_bytes):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        of_bytes.transform(DIGITS / 16)
    assert len(caught) == 1
    assert caught[0].filename == __file__
