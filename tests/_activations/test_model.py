"""Input of the evaluation functions: models, labeled images and cached features."""

import copy
import dataclasses

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.exceptions import NotFittedError
from torch import nn

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._activations import model as model_module
from skdeepcluster._activations.layers import average_pool, extract_layer_features
from skdeepcluster.evaluation import (
    fine_tune,
    knn_accuracy,
    linear_probe,
    low_shot,
    retrieval_map,
    untrained,
)

# Quick fits may not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N_FILES = 40
BROKEN_ROW = 2
IS_READABLE = np.arange(N_FILES) != BROKEN_ROW


class Noise(nn.Module):
    """Add noise from torch's global generator, also in evaluation mode."""

    def forward(self, x):
        return x + 0.01 * torch.rand_like(x)


@pytest.fixture
def folder(digits_split, tmp_path):
    """PNG files of the first 40 training images. Row 2 is truncated."""
    for i, values in enumerate(digits_split["X_train"][:N_FILES]):
        Image.fromarray(values).save(tmp_path / f"{i:03d}.png")
    path = tmp_path / f"{BROKEN_ROW:03d}.png"
    path.write_bytes(path.read_bytes()[:45])
    return tmp_path


@pytest.fixture
def folder_classes(digits_split):
    return digits_split["y_train"][:N_FILES]


@pytest.fixture
def readable_images(digits_split):
    return digits_split["X_train"][:N_FILES][IS_READABLE]


@pytest.fixture
def skipping_model(digits_model):
    """The model as if fitted on bytes, which skips unreadable files."""
    model = copy.copy(digits_model).set_params(on_error="skip")
    model._input_format = dataclasses.replace(model._input_format, dtype=np.uint8)
    return model


def test_embedding_equals_transform(digits_model, digits_split):
    X, y = digits_split["X_train"], digits_split["y_train"]
    evaluated = model_module.EvaluatedModel.from_model(digits_model)
    images = evaluated.read_labeled(X, y)
    layers = evaluated.find_layers(images, ["conv2", "embedding"])
    features, y_features = evaluated.extract_features(
        images, layers, lambda maps: average_pool(maps, 9000), memory=None
    )
    assert_array_equal(features[:, 2048:], digits_model.transform(X))
    assert_array_equal(y_features, y)


@pytest.mark.parametrize("training", [True, False])
def test_module_is_not_changed(
    digits_split, make_plain_network, module_state, training
):
    network = make_plain_network().append(Noise()).train(training)
    network[1].eval()
    before = module_state(network)
    linear_probe(network, **digits_split)
    retrieval_map(network, digits_split["X_train"], digits_split["y_train"])
    low_shot(network, **digits_split, n_labels=2, n_repeats=1)
    fine_tune(network, **digits_split, n_epochs=1)
    assert module_state(network) == before


@pytest.mark.parametrize(
    "convert",
    [
        lambda images: images[:, None].astype(np.float64),
        lambda images: images[..., None],
        lambda images: torch.from_numpy(images),
    ],
    ids=["float64 channels first", "channels last", "tensor"],
)
def test_module_takes_arrays_and_tensors(digits_split, make_plain_network, convert):
    network = make_plain_network()
    converted = linear_probe(
        network,
        X_train=convert(digits_split["X_train"]),
        y_train=digits_split["y_train"],
        X_test=convert(digits_split["X_test"]),
        y_test=digits_split["y_test"],
    )
    assert converted == linear_probe(network, **digits_split)


def test_module_takes_rows(digits_split):
    table = linear_probe(
        nn.Sequential(nn.Linear(64, 8), nn.ReLU()),
        X_train=digits_split["X_train"].reshape(300, -1),
        y_train=digits_split["y_train"],
        X_test=digits_split["X_test"].reshape(200, -1),
        y_test=digits_split["y_test"],
    )
    assert [row["layer"] for row in table] == ["layer1", "embedding"]


def test_linear_probe_leaves_out_broken_files(
    digits_model, skipping_model, digits_split, folder, folder_classes, readable_images
):
    with pytest.warns(UserWarning, match="1 of 40 images cannot be read"):
        table = linear_probe(
            skipping_model, **dict(digits_split, X_train=folder, y_train=folder_classes)
        )
    readable = dict(
        digits_split, X_train=readable_images, y_train=folder_classes[IS_READABLE]
    )
    assert table == linear_probe(digits_model, **readable)
    with pytest.raises(ValueError, match="X cannot be read in row 2"):
        linear_probe(
            digits_model, **dict(digits_split, X_train=folder, y_train=folder_classes)
        )


def test_knn_accuracy_leaves_out_broken_files(
    digits_model, skipping_model, folder, folder_classes, readable_images
):
    readable_classes = folder_classes[IS_READABLE]
    with pytest.warns(UserWarning, match="1 of 40 images cannot be read"):
        accuracy = knn_accuracy(
            skipping_model,
            X_train=readable_images,
            y_train=readable_classes,
            X_test=folder,
            y_test=folder_classes,
        )
    assert accuracy == knn_accuracy(
        digits_model,
        X_train=readable_images,
        y_train=readable_classes,
        X_test=readable_images,
        y_test=readable_classes,
    )


def test_retrieval_map_leaves_out_broken_files(
    digits_model, skipping_model, folder, folder_classes, readable_images
):
    with pytest.warns(UserWarning, match="1 of 40 images cannot be read"):
        precision = retrieval_map(
            skipping_model, folder, folder_classes % 3, queries=[1, 2, 10, 33]
        )
    expected = retrieval_map(
        digits_model,
        readable_images,
        folder_classes[IS_READABLE] % 3,
        queries=[1, 9, 32],
    )
    assert expected < 0.9
    assert precision == expected


def test_fine_tune_leaves_out_broken_files(
    digits_model, skipping_model, folder, folder_classes, readable_images
):
    readable_classes = folder_classes[IS_READABLE]
    with pytest.warns(UserWarning, match="1 of 40 images cannot be read"):
        table, _ = fine_tune(
            skipping_model,
            X_train=folder,
            y_train=folder_classes,
            X_test=folder,
            y_test=folder_classes,
            n_epochs=1,
            random_state=0,
        )
    expected, _ = fine_tune(
        digits_model,
        X_train=readable_images,
        y_train=readable_classes,
        X_test=readable_images,
        y_test=readable_classes,
        n_epochs=1,
        random_state=0,
    )
    assert table == expected


def test_copy_of_an_estimator_reads_files_for_another_module(
    digits_model, digits_split, folder, folder_classes, readable_images
):
    random_model = copy.copy(digits_model).set_params(on_error="skip")
    random_model.module_ = untrained(digits_model, random_state=0)
    with pytest.warns(UserWarning, match="cannot be read"):
        table = linear_probe(
            random_model, **dict(digits_split, X_train=folder, y_train=folder_classes)
        )
    readable = dict(
        digits_split, X_train=readable_images, y_train=folder_classes[IS_READABLE]
    )
    assert table == linear_probe(random_model.module_, **readable)


def test_wrong_number_of_classes(digits_model, digits_split):
    X, y = digits_split["X_train"], digits_split["y_train"]
    with pytest.raises(
        ValueError, match=r"X_train holds 300 images, but y_train has shape \(299,\)"
    ):
        linear_probe(digits_model, **dict(digits_split, y_train=y[:-1]))
    with pytest.raises(ValueError, match=r"X holds 300 images, but y has shape"):
        retrieval_map(digits_model, X, y[:3])
    one_hot = digits_split["y_test"][:, None]
    with pytest.raises(ValueError, match=r"X_test holds 200 .*y_test\.argmax\(axis=1"):
        knn_accuracy(digits_model, **dict(digits_split, y_test=one_hot))


def test_images_in_place_of_classes(digits_model, digits_split):
    images = digits_split["X_test"]
    with pytest.raises(ValueError, match=r"y_train has shape .*one class for each"):
        knn_accuracy(digits_model, **dict(digits_split, y_train=images))


def test_data_are_keyword_only(digits_model, digits_split):
    for function in (linear_probe, low_shot, knn_accuracy, fine_tune):
        with pytest.raises(TypeError, match="positional argument"):
            function(digits_model, *digits_split.values())


def test_wrong_classes(digits_model, digits_split):
    y = digits_split["y_train"]
    names = digits_split["y_test"].astype(str)
    with pytest.raises(ValueError, match=r"y_test holds '.' and no class of y_train"):
        knn_accuracy(digits_model, **dict(digits_split, y_test=names))
    with pytest.raises(ValueError, match=r"y_train should hold classes.*continuous"):
        low_shot(digits_model, **dict(digits_split, y_train=y + 0.5))
    with pytest.raises(ValueError, match="y_train holds a single class, 7"):
        fine_tune(digits_model, **dict(digits_split, y_train=np.full(300, 7)))


def test_wrong_image_shapes(digits_model, digits_split, make_plain_network):
    X_train, X_test = digits_split["X_train"], digits_split["X_test"]
    bands = np.zeros((len(X_test), 4, 8, 8), np.uint8)
    with pytest.raises(ValueError, match="X holds images of shape"):
        linear_probe(digits_model, **dict(digits_split, X_test=bands))
    with pytest.raises(ValueError, match=r"X_train holds images of shape .* X_test of"):
        linear_probe(make_plain_network(), **dict(digits_split, X_test=X_test[:, 1:]))
    with pytest.raises(ValueError, match="does not take a batch of shape"):
        linear_probe(
            make_plain_network(),
            **dict(digits_split, X_train=X_train[:, 1:], X_test=X_test[:, 1:]),
        )


def test_wrong_input_of_a_module(digits_split, make_plain_network):
    network = make_plain_network()
    with pytest.raises(ValueError, match="NaN in row 0"):
        linear_probe(
            network, **dict(digits_split, X_train=np.full((300, 8, 8), np.nan))
        )
    with pytest.raises(TypeError, match="A torch module takes arrays"):
        linear_probe(network, **dict(digits_split, X_train="photos"))


def test_wrong_model(digits_split):
    with pytest.raises(ValueError, match="'model' parameter of linear_probe must be"):
        linear_probe("model", **digits_split)
    with pytest.raises(NotFittedError):
        linear_probe(DeepClusterEstimator(), **digits_split)


@pytest.fixture
def pass_sizes(monkeypatch):
    """List of the number of images in each pass that computes features."""
    sizes = []

    def count_images(network, source, *args):
        sizes.append(len(source))
        return extract_layer_features(network, source, *args)

    monkeypatch.setattr(model_module, "extract_layer_features", count_images)
    return sizes


@pytest.mark.parametrize("kind", ["str", "Memory"])
def test_features_are_cached(digits_model, digits_split, tmp_path, pass_sizes, kind):
    memory = joblib.Memory(tmp_path, verbose=0) if kind == "Memory" else str(tmp_path)
    table = linear_probe(digits_model, **digits_split, memory=memory)
    assert pass_sizes == [300, 200]
    same_model = copy.deepcopy(digits_model)
    assert linear_probe(same_model, **digits_split, memory=memory) == table
    assert pass_sizes == [300, 200]
    assert linear_probe(digits_model, **digits_split) == table
    assert len(pass_sizes) == 4


def test_cache_distinguishes_images_weights_and_layers(
    digits_model, digits_split, tmp_path, pass_sizes
):
    memory = str(tmp_path)
    knn_accuracy(digits_model, **digits_split, memory=memory)
    low_shot(digits_model, **digits_split, memory=memory, n_repeats=1, n_labels=1)
    assert len(pass_sizes) == 2
    reversed_split = dict(
        digits_split,
        X_train=digits_split["X_train"][::-1],
        y_train=digits_split["y_train"][::-1],
    )
    knn_accuracy(digits_model, **reversed_split, memory=memory)
    assert len(pass_sizes) == 3
    changed_model = copy.deepcopy(digits_model)
    with torch.no_grad():
        next(changed_model.module_.parameters())[0, 0, 0, 0] += 0.1
    knn_accuracy(changed_model, **digits_split, memory=memory)
    assert len(pass_sizes) == 5
    for layer, n_values in (("conv1", 100), ("conv1", 200), ("conv2", 200)):
        linear_probe(
            digits_model,
            **digits_split,
            layers=[layer],
            n_values=n_values,
            memory=memory,
        )
    assert len(pass_sizes) == 11


def test_cached_features_still_warn_about_broken_files(
    skipping_model, digits_split, folder, folder_classes, tmp_path, pass_sizes
):
    split = dict(digits_split, X_train=folder, y_train=folder_classes)
    memory = str(tmp_path.with_name("memory"))
    accuracies = []
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 40 images"):
            accuracies.append(knn_accuracy(skipping_model, **split, memory=memory))
    assert accuracies[0] == accuracies[1]
    assert pass_sizes == [40, 200]
