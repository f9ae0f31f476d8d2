"""A saved estimator comes back as it was; a file that is none does no harm."""

import contextlib
import json
import os
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._utils import tensors as tensor_files

# Quick fits may well say that they are.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 60


def quick(**params):
    params = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0, **params}
    return DeepClusterEstimator(**{"n_clusters": 3, **params})


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[0][:N]


@pytest.fixture(scope="module")
def model(images):
    return quick(n_clusters=4).fit(images)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.skdc"
    model.save(path)
    return path


def frame(images):
    rows = images.reshape(len(images), -1)
    return pytest.importorskip("pandas").DataFrame(rows).add_prefix("x")


def same(value, other):
    """Equality, of arrays and of lists of dicts too."""
    if isinstance(value, np.ndarray):
        assert_array_equal(value, other)
        return value.dtype == other.dtype
    return value == other


MODELS = {
    "images": (lambda x: x, {}),
    "float images": (lambda x: x / 255, {}),
    "color": (lambda x: np.stack([x] * 3, axis=1), {"sobel": True}),
    "rows": (lambda x: x.reshape(N, -1).astype(np.float32), {}),
    "flattened": (lambda x: x.reshape(N, -1), {"image_shape": (1, 8, 8)}),
    "frame": (frame, {}),
    "one group": (lambda x: x, {"n_clusters": 1}),
    "single k": (lambda x: x, {"n_pseudo_labels": 3, "n_neighbors": None}),
    "single k, no scale": (
        lambda x: x,
        {"n_pseudo_labels": 3, "n_neighbors": None, "normalize": False},
    ),
    "paper's head": (lambda x: x, {"head_norm": None}),
    "centroids": (
        lambda x: x,
        {"head": "centroids", "n_components": 9, "n_pseudo_labels": (5, 7)},
    ),
    "torchvision": (lambda x: x.repeat(2, 1).repeat(2, 2), {"backbone": "resnet18"}),
    "module": (lambda x: x, {"backbone": tiny()}),
    "numpy's numbers": (
        lambda x: x,
        {"n_clusters": np.int64(3), "learning_rate": np.float32(0.01)},
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_loaded_is_what_was_saved(kind, images, tmp_path):
    form, params = MODELS[kind]
    X, model = form(images), quick(**params)
    model.fit(X).save(tmp_path / "model")
    backbone = tiny() if kind == "module" else None
    loaded = DeepClusterEstimator.load(str(tmp_path / "model"), backbone=backbone)
    assert_array_equal(loaded.transform(X), model.transform(X))
    assert_array_equal(loaded.predict(X), model.labels_)
    assert loaded.score(X) == model.score(X)
    for name, value in vars(model).items():
        if name.endswith("_") and name != "module_":
            assert same(value, getattr(loaded, name)), name
    for name, value in model.get_params().items():
        if name != "backbone":
            assert getattr(loaded, name) == value, name
    assert_array_equal(loaded.get_feature_names_out(), model.get_feature_names_out())


def test_a_file_of_format_1(images):
    """Written by version 0.1.0: later versions read it too."""
    path = Path(__file__).parent / "data" / "format_1"
    model = DeepClusterEstimator.load(path, backbone=tiny())
    assert model.n_clusters == 3
    assert model.n_iter_ == len(model.history_) == 2
    assert model.image_shape_ == (1, 8, 8)
    assert model.transform(images).shape == (60, 5)
    # But for rounding, which differs by processor.
    assert np.mean(model.predict(images) == model.labels_) > 0.95


def test_a_loaded_estimator_learns_on(model, saved, images):
    loaded = DeepClusterEstimator.load(saved).set_params(warm_start=True)
    assert loaded.fit(images).n_iter_ == 2
    other = quick(n_clusters=4).fit(images).set_params(warm_start=True).fit(images)
    assert_array_equal(loaded.labels_, other.labels_)


def test_paths_and_skipped_rows(images, tmp_path):
    (tmp_path / "ü <&>").mkdir()
    for i, values in enumerate(images):
        Image.fromarray(values).save(tmp_path / "ü <&>" / f"{i:02d} ß.png")
    (tmp_path / "ü <&>" / "03 ß.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 60 images"):
        model = quick(on_error="skip").fit(tmp_path / "ü <&>")
    model.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    assert_array_equal(loaded.paths_, model.paths_)
    assert loaded.skipped_.tolist() == [3]
    assert_array_equal(loaded.labels_, model.labels_)


def test_what_cannot_be_saved_is_told(images, tmp_path):
    model = quick(augment=lambda x: x, random_state=np.random.RandomState(0))
    model.fit(images)
    with (
        pytest.warns(UserWarning, match="augment is a function, which is not saved"),
        pytest.warns(UserWarning, match="random_state is a RandomState"),
    ):
        model.save(tmp_path / "model")
    assert DeepClusterEstimator.load(tmp_path / "model").augment is None


def test_a_module_is_to_be_given_again(images, saved, tmp_path):
    quick(backbone=tiny()).fit(images).save(tmp_path / "model")
    load = DeepClusterEstimator.load
    with pytest.raises(ValueError, match=r"pass one that is built alike"):
        load(tmp_path / "model")
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(ValueError, match="weights do not fit the backbone: trunk"):
        load(tmp_path / "model", backbone=other)
    with pytest.raises(ValueError, match="its backbone is 'auto': pass none"):
        load(saved, backbone=tiny())


def test_devices(saved, monkeypatch, images):
    loaded = DeepClusterEstimator.load(saved, device="cpu")
    assert loaded.device_ == torch.device("cpu")
    with pytest.raises(ValueError, match="device='gpu'"):
        DeepClusterEstimator.load(saved, device="gpu")
    model = quick().fit(images)
    model.device_ = torch.device("meta")  # one that another machine does not have
    model.save(saved.parent / "elsewhere")
    loaded = DeepClusterEstimator.load(saved.parent / "elsewhere")
    assert loaded.device_ == torch.device("cpu")
    assert_array_equal(loaded.predict(images), model.labels_)


def test_saving_is_all_or_nothing(model, saved, tmp_path, monkeypatch):
    path = tmp_path / "model"
    model.save(path)
    before = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        model.save(tmp_path / "nowhere" / "model")

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        model.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_an_unfitted_estimator_is_not_saved(tmp_path):
    with pytest.raises(Exception, match="not fitted yet"):
        quick().save(tmp_path / "model")


# Files that are damaged or hostile.


def load_bytes(content, path):
    path.write_bytes(content)
    return DeepClusterEstimator.load(path)


def test_files_that_are_no_estimators(tmp_path):
    with pytest.raises(ValueError, match="is no file"):
        DeepClusterEstimator.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is no file"):
        DeepClusterEstimator.load(tmp_path)
    save_file({"x": torch.ones(3)}, tmp_path / "other")
    with pytest.raises(ValueError, match="no estimator was saved in it"):
        DeepClusterEstimator.load(tmp_path / "other")


@settings(max_examples=30)
@given(share=st.floats(0, 0.9999))
def test_a_file_that_is_cut_short(saved, tmp_path_factory, share):
    content = saved.read_bytes()
    path = tmp_path_factory.mktemp("cut") / "model"
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_bytes(content[: int(share * len(content))], path)


@settings(max_examples=60)
@given(data=st.data())
def test_a_bit_that_is_flipped(saved, tmp_path_factory, data):
    content = bytearray(saved.read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    end = data.draw(st.sampled_from([8, header, len(content)]))
    place = data.draw(st.integers(0, end - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("flip") / "model"
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_bytes(bytes(content), path)


def forge(saved, path, change):
    """Write the saved estimator with another header, whose checksum fits."""
    content = saved.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    told = json.loads(header["__metadata__"]["skdeepcluster"])
    change(told)
    text = json.dumps(told)
    tensors = load_file(saved)
    digest = tensor_files._digest(text, tensors)
    save_file(tensors, path, metadata={"skdeepcluster": text, "digest": digest})


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
FIELDS = ["format", "params", "custom_backbone", "groups", "dtype", "image_dtype"]
FIELDS += ["image_shape", "feature_names", "n_features_in", "n_iter", "history"]
FIELDS += ["device", "inertia"]


@settings(max_examples=60)
@given(field=st.sampled_from(FIELDS), value=junk)
def test_any_header_loads_or_is_a_value_error(saved, tmp_path_factory, field, value):
    path = tmp_path_factory.mktemp("forged") / "model"
    forge(saved, path, lambda told: told.__setitem__(field, value))
    with contextlib.suppress(ValueError):  # and nothing else
        DeepClusterEstimator.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(format=2), "its format is 2, but this version reads 1"),
        (lambda t: t["params"].update(n_clusters=-1), "n_clusters"),
        (lambda t: t["params"].update(backbone="os.system"), "is unknown"),
        (lambda t: t["params"].update(evil=1), "evil"),
        (lambda t: t.update(image_shape=[10**9, 8, 8]), "do not fit|does not take"),
        (lambda t: t.update(image_shape=[1, 8]), "three sides"),
        (lambda t: t["groups"].update(kind="pickle"), "unknown kind, 'pickle'"),
        (lambda t: t.update(dtype="float64"), "float64"),
    ],
)
def test_forged_headers(saved, tmp_path, change, message):
    forge(saved, tmp_path / "model", change)
    with pytest.raises(ValueError, match=message):
        DeepClusterEstimator.load(tmp_path / "model")


@pytest.mark.parametrize("size", [0, 3])
def test_a_mean_of_another_size(model, tmp_path, size):
    model.save(tmp_path / "model")
    told, tensors = tensor_files.read_tensors(tmp_path / "model")
    tensors["module.front.0.mean"] = torch.zeros(size, 1, 1)
    tensor_files.write_tensors(tmp_path / "model", told, tensors)
    with pytest.raises(ValueError, match="mean and scale do not fit its images"):
        DeepClusterEstimator.load(tmp_path / "model")


@pytest.mark.parametrize("name", ["module.trunk.0.weight", "groups.bias"])
def test_values_that_are_not_finite(model, tmp_path, name):
    model.save(tmp_path / "model")
    told, tensors = tensor_files.read_tensors(tmp_path / "model")
    tensors[name].view(-1)[0] = torch.nan
    tensor_files.write_tensors(tmp_path / "model", told, tensors)
    with pytest.raises(ValueError, match="are not finite"):
        DeepClusterEstimator.load(tmp_path / "model")


def test_a_loaded_estimator_does_not_change_with_its_file(model, images, tmp_path):
    model.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    with open(tmp_path / "model", "r+b") as file:  # in place, not by another file
        file.write(bytes((tmp_path / "model").stat().st_size))
    assert_array_equal(loaded.transform(images), model.transform(images))
    assert_array_equal(loaded.predict(images), model.labels_)
    assert_array_equal(loaded.cluster_centers_, model.cluster_centers_)


def peak():
    """Return the largest memory of this process, in kB, since the last call."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc of Linux")
def test_huge_claims_take_no_memory(saved, tmp_path):
    content = saved.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    header["module.trunk.0.weight"]["shape"] = [10**6, 10**6]
    text = json.dumps(header).encode()
    forge(saved, tmp_path / "0", lambda t: t["params"].update(backbone="resnet18"))
    (tmp_path / "1").write_bytes(
        struct.pack("<Q", len(text)) + text + content[8 + size :]
    )
    (tmp_path / "2").write_bytes(struct.pack("<Q", 2**62) + content[8:])
    forge(saved, tmp_path / "3", lambda t: t.update(image_shape=[10**8, 64, 64]))
    forge(saved, tmp_path / "4", lambda t: t["params"].update(backbone="vgg16"))
    peaks = []
    for path in sorted(tmp_path.iterdir()):
        peak()
        with pytest.raises(ValueError, match="cannot be loaded"):
            DeepClusterEstimator.load(path)
        peaks.append(peak())
    # The weights of VGG-16 alone would be 500 MB.
    assert max(peaks) - peaks[0] < 100_000
