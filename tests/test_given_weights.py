"""Networks with given weights: `weights`, `fine_tune`, `preprocess` and timm.

All weights are written by the tests, or come from a package: no test needs a download.
"""

import copy
import os
import pickle
import re
import urllib.error
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from pretrained import Scale
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn
from torchvision import models
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.evaluation import TrainingCurvesDisplay

# Fits of a few steps warn that they did not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
# Rounding in another order of operations.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


class TinyNetwork(nn.Sequential):
    """A convnet from (n, 3, H, W) to (n, 48), with norm layers as after training."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 12, 5, stride=3),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        imitate_training(self)


def imitate_training(module):
    """Change all batch norms, as training does, and return the module."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
            nn.init.normal_(layer.running_mean, std=0.1)
    return module


def make_model(n_clusters=3, **params):
    params = {"backbone": TinyNetwork(), "precision": "float32", **params}
    return DeepClusterEstimator(n_clusters, random_state=0, **params)


def make_tuned(**params):
    """Return a model that is trained for a few steps, with unstable pseudo-labels."""
    params = {"max_iter": 2, "epochs_per_iter": 1, "n_pseudo_labels": 20, **params}
    return make_model(fine_tune=True, **params)


def compute(module, batch):
    """Return the output of a module in evaluation mode."""
    with torch.no_grad():
        return module.eval()(batch).numpy()


def imagenet_batch(images):
    """Return uint8 images, color or gray, as networks of ImageNet see them."""
    batch = torch.from_numpy(images).float() / 255
    batch = batch if batch.ndim == 4 else batch[:, None].expand(-1, 3, -1, -1)
    return (batch - IMAGENET_MEAN) / IMAGENET_STD


def write_files(images, folder):
    """Write images (n, 3, H, W) as files, and return the folder."""
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i:03d}.png")
    return folder


def open_files(folder):
    return [Image.open(path) for path in sorted(folder.glob("*.png"))]


@pytest.fixture(scope="module")
def classes():
    return np.arange(60) % 3


@pytest.fixture(scope="module")
def images(classes):
    """60 noisy images in three colors, uint8 (60, 3, 32, 32)."""
    rng = np.random.default_rng(0)
    colors = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
    noise = rng.integers(-40, 40, (60, 3, 32, 32))
    return (colors[classes][:, :, None, None] + noise).astype(np.uint8)


@pytest.fixture(scope="module")
def photographs():
    """Six crops of photographs of different shapes, as PIL images."""
    sizes = [(240, 180), (150, 260), (224, 224), (300, 256), (256, 256), (90, 120)]
    crops = []
    for i, (width, height) in enumerate(sizes):
        photograph = Image.fromarray(load_sample_images().images[i % 2])
        left, top = 30 * i, 20 * i
        crops.append(photograph.crop((left, top, left + width, top + height)))
    return crops


@pytest.fixture(scope="module")
def photograph_folder(photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for i, image in enumerate(photographs):
        image.save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return imitate_training(models.resnet18(weights=None)).eval()


@pytest.fixture(scope="module")
def resnet18_trunk(resnet18):
    trunk = copy.deepcopy(resnet18)
    trunk.fc = nn.Identity()
    return trunk


@pytest.fixture(scope="module")
def resnet18_path(resnet18, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet18.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def frozen(images):
    return make_model().fit(images)


@pytest.fixture
def count_images():
    """List of the sizes of all batches that `TinyNetwork` has seen."""
    sizes = []

    def count(module, inputs, output):
        if isinstance(module, TinyNetwork):
            sizes.append(len(inputs[0]))

    hook = nn.modules.module.register_module_forward_hook(count)
    yield sizes
    hook.remove()


# The embedding is the network's own output on its own preprocessing.


@pytest.mark.parametrize("color", ["color", "gray"])
def test_torchvision_embedding_of_files(
    color, photographs, resnet18_trunk, resnet18_path, tmp_path
):
    for i, image in enumerate(photographs):
        image.convert("L" if color == "gray" else "RGB").save(tmp_path / f"{i}.png")
    model = make_model(backbone="resnet18", weights=resnet18_path).fit(tmp_path)
    transforms = models.ResNet18_Weights.DEFAULT.transforms()
    batch = [transforms(image.convert("RGB")) for image in open_files(tmp_path)]
    expected = compute(resnet18_trunk, torch.stack(batch))
    assert_allclose(model.transform(tmp_path), expected, **TOLERANCE)
    assert model.image_shape_ == (1 if color == "gray" else 3, 224, 224)


# Arrays of the size that the network takes are cropped like any others.
@pytest.mark.parametrize("shape", [(40, 60), (224, 224)])
def test_torchvision_embedding_of_arrays(shape, resnet18, resnet18_trunk, tmp_path):
    path = tmp_path / "resnet18.safetensors"
    save_file(resnet18.state_dict(), path)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 3, *shape), dtype=np.uint8)
    model = make_model(2, backbone="resnet18", weights=str(path)).fit(images)
    transforms = models.ResNet18_Weights.DEFAULT.transforms()
    batch = [transforms(Image.fromarray(x.transpose(1, 2, 0))) for x in images]
    expected = compute(resnet18_trunk, torch.stack(batch))
    assert_allclose(model.transform(images), expected, **TOLERANCE)
    model.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    assert_array_equal(loaded.transform(images), model.transform(images))


def test_timm_embedding(photographs, photograph_folder, tmp_path):
    timm = pytest.importorskip("timm", minversion="1.0.9")
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", pretrained=False)
    torch.save(imitate_training(network).state_dict(), tmp_path / "weights.pth")
    model = make_model(backbone="timm:test_resnet", weights=tmp_path / "weights.pth")
    model.fit(photograph_folder)
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**config, is_training=False)
    network.reset_classifier(0)
    expected = compute(
        network, torch.stack([transform(image) for image in photographs])
    )
    assert_allclose(model.transform(photograph_folder), expected, **TOLERANCE)
    assert model.image_shape_ == (3, 160, 160)
    # The configuration of timm's model must not hold the weights.
    assert "state_dict" not in model.module_.trunk.pretrained_cfg


def test_timm_transformer_of_another_size(photographs, photograph_folder, tmp_path):
    timm = pytest.importorskip("timm", minversion="1.0.9")
    name, path = "test_vit", tmp_path / "weights.pth"
    torch.save(timm.create_model(name, pretrained=False).state_dict(), path)
    params = {"backbone": f"timm:{name}", "weights": path, "image_size": 96}
    model = make_model(**params).fit(photograph_folder)
    network = timm.create_model(
        name,
        pretrained=True,
        num_classes=0,
        img_size=96,
        pretrained_cfg_overlay={"file": str(path)},
    )
    config = timm.data.resolve_model_data_config(network) | {"input_size": (3, 96, 96)}
    transform = timm.data.create_transform(**config, is_training=False)
    expected = compute(
        network, torch.stack([transform(image) for image in photographs])
    )
    assert_allclose(model.transform(photograph_folder), expected, **TOLERANCE)
    model.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    assert_array_equal(loaded.predict(photograph_folder), model.labels_)


def test_timm_folder_holds_configuration_and_weights(images, tmp_path):
    timm = pytest.importorskip("timm", minversion="1.0.9")
    network = imitate_training(timm.create_model("test_resnet", pretrained=False))
    config = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    network.pretrained_cfg |= config
    timm.models.save_for_hf(network, tmp_path / "folder", safe_serialization=True)
    backbone = f"timm:local-dir:{tmp_path / 'folder'}"
    few = images[:6]
    params = {"backbone": backbone, "image_size": 32}
    model = make_model(2, weights="DEFAULT", **params).fit(few)
    setup = model.module_.setup.preprocessing
    assert (setup.mean, setup.std) == (config["mean"], config["std"])
    network.reset_classifier(0)
    # A file of weights comes before the weights in the folder.
    nn.init.ones_(network.conv1[0].weight)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    other = make_model(2, weights=tmp_path / "weights.pth", **params).fit(few)
    assert bool((other.module_.trunk.conv1[0].weight == 1).all())
    assert not np.allclose(other.transform(few), model.transform(few))


@pytest.mark.parametrize("color", ["color", "gray"])
def test_module_sees_pixels_standardized_as_imagenet(color, images):
    images = images[:, 0] if color == "gray" else images
    model = make_model().fit(images)
    expected = compute(TinyNetwork(), imagenet_batch(images))
    assert_allclose(model.transform(images), expected, **TOLERANCE)
    assert model.recipe_["fine_tune"] is False


STATISTICS = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "(pixels - 0.5) / 0.5": (0.5, 0.5),
    "(pixels - 0) / 1": (0, 1),
}


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("kind", ["images", "floats", "gray", "drawings", "files"])
def test_module_gets_the_pixels_that_its_batch_norm_has_seen(
    name, kind, images, efficientnet_lite0, photograph_folder
):
    mean, std = STATISTICS[name]

    class OtherPixels(nn.Module):
        """A network that expects pixels of this mean and scale."""

        def __init__(self):
            super().__init__()
            self.network = efficientnet_lite0

        def forward(self, x):
            return self.network((x * std + mean - 0.498) / 0.502)

    X = {
        "images": images,
        "floats": images / 255,
        "gray": images[:, 0],
        "drawings": np.where(images > 128, 255, 0).astype(np.uint8),
        "files": photograph_folder,
    }[kind]
    model = make_model(2, backbone=OtherPixels())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X)
    messages = [str(warning.message) for warning in caught]
    assert any("batch norm" in text for text in messages) == (name != "imagenet")
    assert model.recipe_["standardization"] == name
    if kind == "images":
        pixels = (torch.from_numpy(images).float() / 255 - mean) / std
        expected = compute(OtherPixels(), pixels)
        assert_allclose(model.transform(images), expected, rtol=1e-3, atol=1e-3)


def test_module_without_batch_norm_gets_pixels_of_imagenet(images):
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model = make_model(backbone=module, fine_tune=False).fit(images)
    assert model.recipe_["standardization"] == "imagenet"
    expected = compute(module, imagenet_batch(images))
    assert_allclose(model.transform(images), expected, **TOLERANCE)


def test_pixels_from_0_to_1_are_bytes_divided_by_255(images, frozen):
    model = make_model().fit(images / 255)
    embedding = model.transform(images / 255)
    assert_allclose(embedding, frozen.transform(images), **TOLERANCE)
    assert adjusted_rand_score(model.labels_, frozen.labels_) == 1


def test_preprocess_by_a_function(images, efficientnet_lite0):
    images = images[:6]
    model = make_model(2, backbone=efficientnet_lite0, preprocess=Scale()).fit(images)
    expected = compute(efficientnet_lite0, Scale()(torch.from_numpy(images).float()))
    assert_allclose(model.transform(images), expected, rtol=1e-3, atol=1e-3)


# Sources of weights.


def test_torchvision_weights_by_name_come_from_its_cache(images, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    network, backbone = make_small_network("shufflenet_v2_x0_5")
    path = folder / models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(network.state_dict(), path)
    params = {"backbone": backbone, "image_size": 32}
    embedding = make_model(weights=path, **params).fit_transform(images)
    for name in ("DEFAULT", "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"):
        model = make_model(weights=name, **params)
        assert_array_equal(model.fit_transform(images), embedding)


def test_failed_download_names_file_and_folder(images, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(OSError, match="no network") as caught:
        make_model(backbone="resnet18", weights="DEFAULT").fit(images)
    assert "resnet18-" in str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints") in str(caught.value)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"backbone": "resnet18", "weights": "V7"}, "'V7' is unknown.*IMAGENET1K_V1"),
        ({"backbone": "resnet17", "weights": "DEFAULT"}, "'resnet17' is unknown"),
        ({"backbone": "convnet", "weights": "DEFAULT"}, "'convnet'"),
        ({"backbone": "resnet18", "weights": "a.pth"}, "'a.pth' is not a file"),
        ({"backbone": "timm:resnet17", "weights": "DEFAULT"}, "Did you mean"),
        ({"backbone": "timm:resnet18", "weights": "V7"}, "'V7' is unknown.*'DEFAULT'"),
        ({"backbone": "timm:local-dir:a", "weights": "DEFAULT"}, "no config.json"),
        ({"weights": "DEFAULT"}, "backbone is a module"),
        ({"weights": "a.pth"}, "'a.pth' is not a file"),
    ],
)
def test_unknown_weights_are_refused_before_images_are_read(params, message):
    if params.get("backbone", "").startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(ValueError, match=message):
        make_model(**params).fit("folder that does not exist")


SMALL_NETWORKS = ["shufflenet_v2_x0_5", "timm:test_resnet", "module"]


def make_small_network(backbone):
    """Return a network, whose classifier is "fc" or "head.fc", and the backbone."""
    torch.manual_seed(0)
    if backbone.startswith("timm:"):
        timm = pytest.importorskip("timm", minversion="1.0.9")
        network = timm.create_model(backbone.removeprefix("timm:"), pretrained=False)
        return imitate_training(network), backbone
    network = imitate_training(models.shufflenet_v2_x0_5(weights=None))
    if backbone == "module":
        backbone = copy.deepcopy(network)
        backbone.fc = nn.Identity()
    return network, backbone


@pytest.mark.parametrize("backbone", SMALL_NETWORKS)
def test_weights_of_a_file_have_to_fit(backbone, images, tmp_path):
    network, backbone = make_small_network(backbone)
    path = tmp_path / "weights.pth"

    def fit(weights):
        torch.save(weights, path)
        model = make_model(2, backbone=backbone, weights=path, image_size=32)
        return model.fit_transform(images[:6])

    weights = dict(network.state_dict())
    first, *_, classifier = (k for k in weights if k.endswith(".weight"))
    layer = classifier.removesuffix(".weight")
    embedding = fit(weights)
    without_classifier = {k: v for k, v in weights.items() if not k.startswith(layer)}
    assert len(without_classifier) == len(weights) - 2
    assert_array_equal(fit({"state_dict": without_classifier, "epoch": 3}), embedding)
    parallel = {f"module.{name}": values for name, values in weights.items()}
    parallel[f"module.{classifier}"] = torch.ones(10, 7)
    assert_array_equal(fit(parallel), embedding)

    name = re.escape(first)
    with pytest.raises(ValueError, match=f"weights=.*{name}"):
        fit({k: v for k, v in weights.items() if k != first})
    with pytest.raises(ValueError, match=r"weights=.*other\.weight"):
        fit(weights | {"other.weight": torch.ones(3)})
    with pytest.raises(ValueError, match=f"weights=.*{name}.* shape"):
        fit(weights | {first: torch.ones(2, 3, 7, 7)})
    with pytest.raises(ValueError, match=r"weights=.*no state dict"):
        fit([])


class MakesFolder:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writes", [pickle.dump, torch.save])
@pytest.mark.parametrize("backbone", ["resnet18", "timm:test_resnet"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_in_a_file_of_weights_is_executed(backbone, writes, images, tmp_path):
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    with path.open("wb") as file:
        writes({"conv1.weight": MakesFolder(trace)}, file)
    with pytest.raises(ValueError, match="weights="):
        make_model(backbone=backbone, weights=path).fit(images)
    assert not trace.exists()


def test_damaged_file_of_weights(images, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_text("nothing")
    with pytest.raises(ValueError, match=r"weights=.* cannot be read"):
        make_model(weights=path).fit(images)


def test_module_gets_the_weights_of_a_file(images, frozen, tmp_path):
    save_file(TinyNetwork().state_dict(), tmp_path / "tiny.safetensors")
    module = TinyNetwork()
    nn.init.zeros_(module[0].weight)
    model = make_model(backbone=module, weights=tmp_path / "tiny.safetensors")
    assert_array_equal(model.fit_transform(images), frozen.transform(images))
    assert not module[0].weight.any()


# Frozen networks.


def test_frozen_network_is_an_estimator_as_any(images, classes, frozen):
    assert adjusted_rand_score(classes, frozen.labels_) == 1
    assert_array_equal(frozen.predict(images), frozen.labels_)
    probabilities = frozen.predict_proba(images)
    assert_array_equal(probabilities.argmax(axis=1), frozen.labels_)
    assert_array_equal(make_model().fit_transform(images), frozen.transform(images))
    assert frozen.score(images) > 0.5
    assert (frozen.n_iter_, frozen.history_) == (0, [])
    assert frozen.recipe_["learning_rate"] is None
    state = TinyNetwork().state_dict()
    for name, weights in frozen.module_.trunk.state_dict().items():
        assert torch.equal(weights, state[name])


@pytest.mark.parametrize(
    "backbone", [TinyNetwork().requires_grad_(False), nn.Flatten()]
)
def test_module_without_trainable_parameters_is_frozen(backbone, images):
    model = make_model(backbone=backbone).fit(images)
    assert model.recipe_["fine_tune"] is False
    expected = compute(backbone, imagenet_batch(images))
    assert_allclose(model.transform(images), expected, **TOLERANCE)
    with pytest.raises(ValueError, match=r"fine_tune=True.*requires_grad_\(True\)"):
        make_model(backbone=backbone, fine_tune=True).fit(images)


def test_number_of_clusters_is_found(images):
    model = make_model("auto").fit(images)
    assert model.n_clusters_ >= 2
    assert model.cut_scores_ is not None


def test_clusters_are_edited_without_the_network(images, frozen, count_images):
    model = make_model(n_pseudo_labels=9).fit(images)
    count_images.clear()
    merged = model.merge_clusters([[0, 1]])
    split = merged.split_cluster(0, 2)
    named = split.name_clusters({0: "red"})
    cut = model.cut(2)
    assert not count_images
    assert (merged.n_clusters_, split.n_clusters_, cut.n_clusters_) == (2, 3, 2)
    assert named.cluster_names_[0] == "red"
    for edited in (merged, named, cut):
        assert_array_equal(edited.predict(images), edited.labels_)


def test_saved_module_is_loaded_with_a_module(images, frozen, tmp_path):
    frozen.save(tmp_path / "model")
    module = TinyNetwork()
    nn.init.zeros_(module[0].weight)
    loaded = DeepClusterEstimator.load(tmp_path / "model", backbone=module)
    assert_array_equal(loaded.transform(images), frozen.transform(images))
    assert_array_equal(loaded.predict(images), frozen.labels_)
    assert (loaded.n_iter_, loaded.history_) == (0, [])
    with pytest.raises(ValueError, match=r"load\(path, backbone=") as error:
        DeepClusterEstimator.load(tmp_path / "model")
    # The file is all right.
    assert "complete file" not in str(error.value)


def test_saved_function_is_loaded_with_a_function(images, tmp_path):
    def halve(batch):
        return batch / 128 - 1

    model = make_model(preprocess=halve).fit(images)
    model.save(tmp_path / "model")
    load = DeepClusterEstimator.load
    loaded = load(tmp_path / "model", backbone=TinyNetwork(), preprocess=halve)
    assert_array_equal(loaded.transform(images), model.transform(images))
    assert_array_equal(loaded.predict(images), model.labels_)
    with pytest.warns(UserWarning, match=r"preprocess was .*halve"):
        load(tmp_path / "model", backbone=TinyNetwork(), preprocess=nn.Identity())
    with pytest.raises(ValueError, match=r"load\(path, preprocess="):
        load(tmp_path / "model", backbone=TinyNetwork())


def test_weights_of_a_file_are_not_needed_after_save(images, tmp_path):
    network, backbone = make_small_network("shufflenet_v2_x0_5")
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    params = {"backbone": backbone, "weights": path, "image_size": 32}
    model = make_model(**params).fit(images[:12])
    model.save(tmp_path / "model")
    path.unlink()
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    assert_array_equal(loaded.predict(images[:12]), model.labels_)
    assert loaded.weights == str(path)


def test_frozen_network_in_pipeline_and_search(images, classes):
    pipeline = make_pipeline(make_model(), LogisticRegression())
    assert pipeline.fit(images, classes).score(images, classes) == 1
    search = GridSearchCV(make_model(), {"n_clusters": [1, 3]}, cv=2).fit(images)
    assert search.best_params_ == {"n_clusters": 3}


def test_set_output(images):
    pandas = pytest.importorskip("pandas")
    frame = make_model().set_output(transform="pandas").fit_transform(images)
    assert isinstance(frame, pandas.DataFrame)
    assert frame.shape == (60, 48)


@pytest.mark.parametrize("source", ["arrays", "files"])
def test_cache_holds_features_for_other_numbers_of_clusters(
    source, images, count_images, tmp_path
):
    X = images if source == "arrays" else write_files(images, tmp_path / "images")
    cache_dir = tmp_path / "cache"
    make_model(3, cache_dir=cache_dir).fit(X)
    # Each image once, the changed sample, and the example from which outputs are known.
    assert sum(count_images) <= 2 * 60 + 20
    count_images.clear()
    model = make_model(4, cache_dir=cache_dir)
    embedding = model.fit_transform(X)
    assert sum(count_images) == 2
    without_cache = make_model(4).fit(X)
    assert_array_equal(model.labels_, without_cache.labels_)
    assert_array_equal(embedding, without_cache.transform(X))
    assert_array_equal(model.predict(X), model.labels_)


def test_cache_depends_on_images_weights_and_preprocessing(images, tmp_path):
    def count_files():
        return len(list(tmp_path.glob("features_*.npy")))

    make_model(cache_dir=tmp_path).fit(images)
    n_files = count_files()
    assert n_files > 0
    make_model(2, cache_dir=tmp_path).fit(images)
    assert count_files() == n_files
    changed = images.copy()
    changed[0, 0, 0, 0] ^= 1
    changed_model = make_model(cache_dir=tmp_path).fit(changed)
    n_files, previous = count_files(), n_files
    assert n_files > previous
    assert_array_equal(changed_model.predict(changed), changed_model.labels_)
    module = TinyNetwork()
    module[0].weight.data[0, 0, 0, 0] += 1
    other = make_model(backbone=module, cache_dir=tmp_path)
    embedding = other.fit_transform(images)
    assert_array_equal(embedding, other.transform(images))
    n_files, previous = count_files(), n_files
    assert n_files > previous
    scaled = make_model(preprocess=Scale(), cache_dir=tmp_path)
    embedding = scaled.fit_transform(images)
    assert_array_equal(embedding, scaled.transform(images))
    assert count_files() > n_files


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_file_of_features_is_written_again(damage, images, frozen, tmp_path):
    make_model(cache_dir=tmp_path).fit(images)
    for path in tmp_path.glob("features_*.npy"):
        content = bytearray(path.read_bytes())
        content[200:300] = content[199::-1][:100]
        path.write_bytes(content[:100] if damage == "truncated" else content)
    with pytest.warns(UserWarning, match=r"features_.* is written again"):
        model = make_model(cache_dir=tmp_path).fit(images)
    assert_array_equal(model.labels_, frozen.labels_)


@pytest.mark.parametrize("cache", [False, True])
def test_broken_file_is_skipped(cache, images, tmp_path):
    folder = write_files(images, tmp_path / "images")
    (folder / "007.png").write_text("not an image")
    content = (folder / "008.png").read_bytes()
    (folder / "008.png").write_bytes(content[:-40])
    cache_dir = tmp_path / "cache" if cache else None
    model = make_model(on_error="skip", cache_dir=cache_dir)
    with pytest.warns(UserWarning, match="2 of 60"):
        embedding = model.fit_transform(folder)
    assert_array_equal(model.skipped_, [7, 8])
    assert_array_equal(np.flatnonzero(model.labels_ == -1), [7, 8])
    assert_array_equal(np.flatnonzero(np.isnan(embedding).any(axis=1)), [7, 8])
    with pytest.raises(ValueError, match=r"007\.png"):
        make_model().fit(folder)


def test_parameters_of_training_do_nothing(images, frozen, tmp_path, capsys):
    calls = []
    model = make_model(
        checkpoint_dir=tmp_path / "checkpoints",
        callbacks=lambda history, fitted: calls.append(history),
        verbose=2,
        max_iter=3,
        learning_rate=0.5,
    )
    with pytest.warns(UserWarning, match=r"learning_rate=0.5.*had no effect"):
        model.fit(images)
    assert_array_equal(model.labels_, frozen.labels_)
    assert not calls
    assert "nan" not in capsys.readouterr().out
    assert not list((tmp_path / "checkpoints").iterdir())
    with pytest.raises(ValueError, match="nothing to recover"):
        model.recover(images)


def test_warm_start_continues_from_a_frozen_network(images):
    model = make_model(warm_start=True).fit(images)
    embedding = model.transform(images)
    model.set_params(n_clusters=2).fit(images)
    assert_array_equal(model.transform(images), embedding)
    assert model.n_clusters_ == 2
    model.set_params(fine_tune=True, max_iter=1, epochs_per_iter=1).fit(images)
    assert model.n_iter_ == 1
    assert not np.allclose(model.transform(images), embedding)


@pytest.mark.usefixtures("pyplot")
def test_curves_of_a_frozen_network_are_refused(frozen):
    with pytest.raises(ValueError, match="history is empty"):
        TrainingCurvesDisplay.from_estimator(frozen)


def test_rows_are_the_embedding():
    rng = np.random.default_rng(0)
    classes = np.arange(90) % 3
    rows = (10 * np.eye(5)[classes] + rng.normal(size=(90, 5))).astype(np.float32)
    model = DeepClusterEstimator(3, fine_tune=False, random_state=0).fit(rows)
    assert_array_equal(model.transform(rows), rows)
    assert_array_equal(model.predict(rows), model.labels_)
    assert adjusted_rand_score(classes, model.labels_) == 1
    assert model.recipe_["backbone"] is None
    # Embeddings may have any sign and unit.
    tiny = DeepClusterEstimator(3, fine_tune=False, random_state=0).fit(rows * 1e-3)
    assert adjusted_rand_score(classes, tiny.labels_) == 1


# Fine-tuned networks.


def test_fine_tuning_keeps_statistics_of_batch_norm(images):
    model = make_tuned().fit(images)
    assert_array_equal(model.predict(images), model.labels_)
    assert_array_equal(make_tuned().fit_transform(images), model.transform(images))
    assert len(model.history_) == model.n_iter_ > 0
    assert model.recipe_["init"] == "features"
    assert model.recipe_["learning_rate"] == 0.002
    trunk, original = model.module_.trunk, TinyNetwork()
    for name, values in original.named_buffers():
        assert torch.equal(trunk.get_buffer(name), values)
    for name, values in original.named_parameters():
        assert not torch.equal(trunk.get_parameter(name), values)
        assert_allclose(trunk.get_parameter(name).detach(), values.detach(), atol=0.2)


class Interruption(Exception):
    """Ends a fit after a round."""


def test_resumed_fine_tuning_equals_an_uninterrupted_one(images, tmp_path):
    def interrupt(history, fitted):
        if len(history) == 2:
            raise Interruption

    expected = make_tuned(max_iter=3, learning_rate=0.05).fit(images)
    assert expected.n_iter_ == 3
    model = make_tuned(
        max_iter=3, learning_rate=0.05, checkpoint_dir=tmp_path, callbacks=interrupt
    )
    with pytest.raises(Interruption):
        model.fit(images)
    recovered = copy.deepcopy(model).recover(images)
    assert recovered.n_iter_ == 1
    assert_array_equal(recovered.predict(images), recovered.labels_)
    model.set_params(callbacks=None).fit(images)
    assert_array_equal(model.labels_, expected.labels_)
    assert_array_equal(model.transform(images), expected.transform(images))


def test_fine_tuned_network_is_saved(images, tmp_path):
    model = make_tuned().fit(images)
    model.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model", backbone=TinyNetwork())
    assert_array_equal(loaded.transform(images), model.transform(images))
    assert_array_equal(loaded.predict(images), model.labels_)


def test_fresh_module_is_trained(images):
    module = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=3), nn.BatchNorm2d(8), nn.Flatten()
    )
    params = {"max_iter": 1, "epochs_per_iter": 1}
    model = make_model(backbone=module, **params).fit(images)
    assert model.recipe_["fine_tune"] is True
    assert model.recipe_["learning_rate"] == 0.03
    assert not torch.equal(model.module_.trunk[1].running_mean, module[1].running_mean)


# Errors and warnings.


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"backbone": "auto"}, "weights are fresh.*weights='DEFAULT'"),
        ({"backbone": "resnet18"}, "weights are fresh.*weights='DEFAULT'"),
        ({"head": "centroids"}, "head='centroids'.*fine_tune=True"),
    ],
)
def test_parameters_that_cannot_be_frozen(params, message, images):
    with pytest.raises(ValueError, match=message):
        make_model(fine_tune=False, **params).fit(images)


def test_rows_have_no_given_weights(resnet18_path):
    rows = np.random.default_rng(0).normal(size=(20, 4))
    message = "X holds rows.*fine_tune=False"
    with pytest.raises(ValueError, match=message):
        make_model(backbone="resnet18", weights=resnet18_path).fit(rows)


def test_negative_pixels_are_refused(images):
    standardized = (images / 255 - 0.5) / 0.25
    with pytest.raises(ValueError, match=r"preprocess=nn\.Identity\(\)"):
        make_model().fit(standardized)
    model = make_model(preprocess=nn.Identity()).fit(standardized)
    batch = torch.from_numpy(standardized).float()
    expected = compute(TinyNetwork(), batch)
    assert_allclose(model.transform(standardized), expected, **TOLERANCE)


def test_images_with_four_channels_are_refused():
    images = np.zeros((10, 4, 16, 16), np.uint8)
    with pytest.raises(ValueError, match="4 channels"):
        make_model().fit(images)


def test_features_have_to_be_finite(images):
    module = TinyNetwork()
    module[0].weight.data[0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        make_model(backbone=module).fit(images)


def test_classifier_of_imagenet_is_warned_about(images):
    module = nn.Sequential(*TinyNetwork(), nn.Linear(48, 1000))
    with pytest.warns(UserWarning, match="ends in a classifier of 1,000 classes"):
        make_model(backbone=module).fit(images)


# Mistakes of users, and masks.


def test_function_replaces_the_preprocessing_of_named_weights(images, tmp_path):
    network = imitate_training(models.resnet18(weights=None))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    network.fc = nn.Identity()
    model = make_model(
        backbone="resnet18",
        weights=tmp_path / "weights.pth",
        preprocess=lambda batch: batch / 255,
    ).fit(images)
    # The size of the images is the one that the weights expect.
    resize = Compose([Resize(256), CenterCrop(224), PILToTensor()])
    batch = [resize(Image.fromarray(x.transpose(1, 2, 0))) for x in images]
    expected = compute(network, torch.stack(batch) / 255)
    assert_allclose(model.transform(images), expected, **TOLERANCE)


def test_white_of_a_mask_is_one(images):
    mask = images > 127
    expected = make_model().fit(255 * mask.astype(np.uint8))
    model = make_model().fit(mask)
    assert_allclose(
        model.transform(mask),
        expected.transform(255 * mask.astype(np.uint8)),
        **TOLERANCE,
    )


@pytest.mark.parametrize(
    "function",
    [lambda batch: None, lambda batch: batch.numpy(), lambda batch: batch[:1]],
)
def test_function_that_returns_no_batch_is_named(images, function):
    with pytest.raises(ValueError, match=r"^preprocess returns"):
        make_model(preprocess=function).fit(images)


def test_function_that_fails_is_named(images):
    with pytest.raises(ValueError, match=r"^preprocess fails .* no such thing"):
        make_model(preprocess=raise_value_error).fit(images)


def raise_value_error(batch):
    raise ValueError("no such thing")


def test_enum_of_torchvision_names_weights(images):
    weights = models.ResNet50_Weights.DEFAULT
    with pytest.raises(ValueError, match="unknown for backbone='resnet18'"):
        make_model(backbone="resnet18", weights=weights).fit(images)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"backbone": "auto"}, "Name it, such as backbone="),
        ({"backbone": "resnet18"}, r"torch.save\(module.state_dict\(\), path\)"),
    ],
)
def test_file_of_a_whole_module_is_refused(images, tmp_path, params, message):
    torch.save(TinyNetwork(), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=message):
        make_model(**params, weights=tmp_path / "module.pth").fit(images)


def test_own_networks_have_no_weights_to_download(images):
    with pytest.raises(ValueError, match="no weights to download"):
        make_model(backbone="convnet", weights="DEFAULT").fit(images)


def test_preprocessing_of_images_is_refused_for_rows():
    rows = np.random.default_rng(0).normal(size=(50, 8))
    with pytest.raises(ValueError, match="preprocess='imagenet' needs images"):
        make_model(backbone="auto", fine_tune=False, preprocess="imagenet").fit(rows)
