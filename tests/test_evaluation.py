"""Features and clusters are judged as the paper does, and nothing is changed by it."""

import copy
import dataclasses
import warnings

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.exceptions import NotFittedError
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torchvision import models

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._activations import model as model_module
from skdeepcluster._activations.layers import (
    LayerOutputs,
    average_pooled,
    default_layers,
    find_layers,
    layer_features,
    trace_calls,
)
from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster.evaluation import _probes as probes_module
from skdeepcluster.evaluation import _retrieval as retrieval_module
from skdeepcluster.evaluation import (
    cluster_report,
    cluster_table,
    fine_tune,
    knn_accuracy,
    linear_probe,
    low_shot,
    retrieval_map,
    stability,
    untrained,
)
from skdeepcluster.metrics import clustering_accuracy, purity

# Quick fits may well say that they are.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

CPU = torch.device("cpu")
N = 300  # images to learn from, of 500


@pytest.fixture(scope="module")
def split(digits_images):
    X, y = digits_images
    return X[:N], y[:N], X[N:500], y[N:500]


@pytest.fixture(scope="module")
def model(split):
    params = {"epochs_per_iter": 12, "precision": "float32", "random_state": 0}
    return DeepClusterEstimator(10, max_iter=2, **params).fit(split[0])


@pytest.fixture(scope="module")
def rows_model(split):
    rows = split[0].reshape(N, -1).astype(np.float32)
    params = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0}
    return DeepClusterEstimator(4, **params).fit(rows)


@pytest.fixture
def folder(split, tmp_path):
    """The first 40 images, the third of which is broken."""
    for i, values in enumerate(split[0][:40]):
        Image.fromarray(values).save(tmp_path / f"{i:03d}.png")
    content = (tmp_path / "002.png").read_bytes()
    (tmp_path / "002.png").write_bytes(content[:45])
    return tmp_path


def plain_net(inplace=True):
    """A network whose ReLUs write where they read, for images of one channel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.ReLU(inplace),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(96, 5),
        )


class Noise(nn.Module):
    """Draws from torch's generator, also in evaluation mode."""

    def forward(self, x):
        return x + 0.01 * torch.rand_like(x)


class Functional(nn.Module):
    """Convolutions whose rectifier is a function."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        return nn.functional.relu_(self.norm(self.conv(x))).mean(dim=(2, 3))


class Again(nn.Module):
    """One ReLU for everything, and a shortcut that is added in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)
        self.norm, self.relu = nn.GroupNorm(1, 2), nn.ReLU(inplace=True)

    def forward(self, x):
        shortcut = self.relu(self.first(x))
        maps = self.norm(self.second(shortcut))
        maps += shortcut
        return self.relu(maps).mean(dim=(2, 3))


def columns(table, name):
    return [row[name] for row in table]


def names_of(network, *shape):
    return list(default_layers(trace_calls(network, shape, CPU, torch.float32)))


def features_of(network, images, names, n_values=10**6):
    """Each layer's features, by itself."""
    shape = images.shape[1:]
    layers = find_layers(trace_calls(network, shape, CPU, torch.float32), names)

    def pool(maps):
        return average_pooled(maps, n_values)

    source = ArraySource(images)
    return [
        layer_features(network, source, CPU, torch.float32, [layer], pool)
        for layer in layers
    ]


def state_of(module):
    weights = {name: w.clone() for name, w in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    hooks = [
        len(part._forward_hooks) + len(part._forward_pre_hooks)
        for part in module.modules()
    ]
    wishes = [parameter.requires_grad for parameter in module.parameters()]
    generators = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    return weights, (modes, hooks, wishes, generators)


def assert_same_state(before, after):
    assert before[1] == after[1]
    assert before[0].keys() == after[0].keys()
    for name, weights in before[0].items():
        assert torch.equal(weights, after[0][name]), name


# Which layers there are, and what they give


def test_layers_of_the_small_convnet(model):
    expected = ["conv1", "conv2", "conv3", "conv4", "embedding"]
    assert names_of(model.module_, 1, 8, 8) == expected


def test_layers_without_convolutions_are_activations(rows_model):
    assert names_of(rows_model.module_, 64) == ["layer1", "layer2", "embedding"]


@pytest.mark.parametrize(
    ("name", "n_convolutions"), [("resnet18", 20), ("alexnet", 5), ("vgg11_bn", 8)]
)
def test_layers_of_torchvision(name, n_convolutions):
    network = models.get_model(name, weights=None)
    names = names_of(network, 3, 64, 64)
    assert names == [*(f"conv{i + 1}" for i in range(n_convolutions)), "embedding"]


@pytest.mark.parametrize("inplace", [True, False])
def test_maps_are_those_after_norm_and_relu(inplace):
    network = plain_net(inplace).eval()
    images = np.random.default_rng(0).normal(size=(7, 1, 8, 8)).astype(np.float32)
    x = torch.from_numpy(images)
    with torch.no_grad():
        first = network[1](network[0](x)).relu()
        second = network[4](network[3](first.clone())).relu()
        output = network(x)
    found = features_of(network, images, ["conv1", "conv2", "embedding", "3"])
    assert_allclose(found[0], first.flatten(1), atol=1e-5)
    assert_allclose(found[1], second.flatten(1), atol=1e-5)
    assert_allclose(found[2], output, atol=1e-5)
    assert_allclose(found[3], network[3](first).flatten(1), atol=1e-5)


def test_functional_rectifiers_are_applied():
    network = Functional().eval()
    images = np.random.default_rng(0).normal(size=(5, 1, 6, 6)).astype(np.float32)
    with torch.no_grad():
        maps = network.norm(network.conv(torch.from_numpy(images)))
    assert maps.min() < 0
    (found,) = features_of(network, images, ["conv1"])
    assert_allclose(found, maps.relu().flatten(1), atol=1e-5)


def test_a_module_that_is_called_again():
    network = Again().eval()
    images = np.random.default_rng(0).normal(size=(5, 1, 6, 6)).astype(np.float32)
    with torch.no_grad():
        first = network.first(torch.from_numpy(images)).relu()
        second = (network.norm(network.second(first)) + first).relu()
    names = ["conv1", "conv2", "relu"]
    found = features_of(network, images, names)
    assert_allclose(found[0], first.flatten(1), atol=1e-5)
    assert_allclose(found[1], second.flatten(1), atol=1e-5)
    assert_allclose(found[2], second.flatten(1), atol=1e-5)


def test_convolutions_are_in_the_order_they_are_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.norm = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(3)
            self.first = nn.Conv2d(1, 3, 1)

        def forward(self, x):
            return self.conv1(self.norm(self.first(x)).relu_()).mean(dim=(2, 3))

    calls = trace_calls(Backwards(), (1, 8, 8), CPU, torch.float32)
    layers = find_layers(calls, ["conv1", "conv2", "first", "embedding"])
    assert [(each.start, each.path) for each in layers] == [
        *(("first", "norm"), ("conv1", "conv1"), ("first", "first"), ("", ""))
    ]
    assert [each.rectified for each in layers] == [True, True, False, False]
    assert [each.shape[0] for each in layers] == [3, 5, 3, 5]


def raw(network, images, *names):
    """Each layer's maps before the rectifier, all from one pass."""
    calls = trace_calls(network, images.shape[1:], CPU, torch.float32)
    layers = find_layers(calls, list(names))
    found = LayerOutputs(network, layers, lambda maps: maps.flatten(1), raw=True)
    sizes = [int(np.prod(layer.shape)) for layer in layers]
    with torch.no_grad():
        return [maps.reshape(len(images), -1) for maps in found(images).split(sizes, 1)]


@pytest.mark.parametrize("inplace", [True, False])
def test_maps_before_a_rectifier(inplace):
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 1, 8, 8)))
    images = images.float()
    network = plain_net(inplace).eval()
    found = raw(network, images, "conv1", "2", "embedding")
    with torch.no_grad():
        first, output = network[:2](images).flatten(1), network(images)
    assert first.min() < 0
    for maps, expected in zip(found, [first, first.relu(), output], strict=True):
        assert_allclose(maps, expected, atol=1e-5)
    network = Functional().eval()
    with torch.no_grad():
        first = network.norm(network.conv(images)).flatten(1)
    assert_allclose(raw(network, images, "conv1")[0], first, atol=1e-5)
    network = Again().eval()  # a sum is part of them
    with torch.no_grad():
        first = network.first(images)
        second = network.norm(network.second(first.relu())) + first.relu()
    found = raw(network, images, "conv2", "conv1")
    assert_allclose(found[0], second.flatten(1), atol=1e-5)
    assert_allclose(found[1], first.flatten(1), atol=1e-5)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(inplace))
    for found in raw(network, images, "layer1", "1", "embedding")[:2]:
        assert_allclose(found, network[:2](images).detach(), atol=1e-5)


def test_a_pass_ends_at_the_last_of_its_layers(split):
    network = plain_net().eval()
    calls = trace_calls(network, (1, 8, 8), CPU, torch.float32)
    layers = find_layers(calls, ["conv2", "conv1"])
    network[6].register_forward_pre_hook(lambda *call: pytest.fail("went on"))
    tapped = LayerOutputs(network, layers, lambda maps: maps.flatten(1))
    assert tapped(torch.zeros(2, 1, 8, 8)).shape == (2, 6 * 16 + 4 * 64)
    with pytest.raises(pytest.fail.Exception):
        network(torch.zeros(2, 1, 8, 8))


def test_a_lack_of_memory_is_no_wrong_shape():
    class Large(nn.Module):
        def forward(self, x):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(MemoryError, match=r"a forward pass\. Pass smaller images"):
        trace_calls(Large(), (1, 8, 8), CPU, torch.float32)


@given(
    shape=st.tuples(*[st.integers(1, n) for n in (600, 40, 40)]),
    n_values=st.integers(1, 9000),
)
def test_pooled_sizes(shape, n_values):
    pooled = average_pooled(torch.ones(2, *shape), n_values)
    assert pooled.shape[1] <= max(n_values, shape[0])
    assert_allclose(pooled, 1)
    if np.prod(shape) <= n_values:
        assert pooled.shape[1] == np.prod(shape)


def test_pooling_averages():
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert average_pooled(maps, 4).tolist() == [[2.5, 4.5, 10.5, 12.5]]


# The linear probe


def test_probe_tells_layers_sizes_and_accuracies(model, split):
    table = linear_probe(model, *split)
    names = ["conv1", "conv2", "conv3", "conv4", "embedding"]
    assert columns(table, "layer") == names
    assert columns(table, "n_values") == [2048, 2048, 1024, 2048, 256]
    assert all(0.85 < accuracy <= 1 for accuracy in columns(table, "accuracy"))
    assert [list(row) for row in table] == [["layer", "n_values", "accuracy"]] * 5


def test_probe_of_chosen_layers_in_their_order(model, split, capsys):
    names = ["embedding", "conv3", "trunk.3"]
    table = linear_probe(model, *split, layers=names, n_values=100, verbose=1)
    assert columns(table, "layer") == names
    assert columns(table, "n_values") == [256, 64, 32]
    assert len(capsys.readouterr().out.splitlines()) == 3
    alone = linear_probe(model, *split, layers=["conv3"], n_values=100)
    assert alone == [table[1]]


def test_a_trained_embedding_beats_an_untrained_one(model, split):
    random = untrained(model, random_state=0)
    trained, fresh = (
        linear_probe(each, *split, layers=["embedding"])[0]["accuracy"]
        for each in (model, random)
    )
    assert trained > fresh + 0.01


def test_passes_of_bounded_size_give_the_same(model, split, monkeypatch):
    whole = linear_probe(model, *split)
    monkeypatch.setattr(probes_module, "PASS_BYTES", 1)
    assert linear_probe(model, *split) == whole


def test_the_embedding_is_what_transform_gives(model, split):
    judged = model_module.EvaluatedModel.of(model)
    images = judged.labeled(split[0], split[1])
    layers = judged.layers(images, ["conv2", "embedding"])
    found, y = judged.features(images, layers, lambda m: average_pooled(m, 9000), None)
    assert_array_equal(found[:, 2048:], model.transform(split[0]))
    assert_array_equal(y, split[1])


def test_strings_and_classes_that_are_new(model, split):
    X, y, X_test, y_test = split
    names = np.array(list("abcdefghij"), dtype=object)
    table = linear_probe(model, X, names[y], X_test, names[y_test], layers=["conv4"])
    known = linear_probe(model, *split, layers=["conv4"])
    assert table == known
    few = y != 3
    table = linear_probe(model, X[few], y[few], X_test, y_test, layers=["conv4"])
    assert table[0]["accuracy"] <= np.mean(y_test != 3)


@pytest.mark.parametrize("layers", [["conv9"], ["conv1", "trunk.99"]])
def test_an_unknown_layer_is_named_with_those_there_are(model, split, layers):
    with pytest.raises(ValueError, match=f"'{layers[-1]}' is no layer.*conv4.*trunk.3"):
        linear_probe(model, *split, layers=layers)


def test_a_layer_of_another_form_is_named(split):
    network = nn.Sequential(nn.Flatten(2), nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match=r"Layer '0' gives .*\[2, 1, 64\]"):
        linear_probe(network, *split, layers=["0"])
    assert len(linear_probe(network, *split, layers=["1"])) == 1


# Neighbors and few labels


def test_neighbors_are_those_of_the_embedding(model, split):
    X, y, X_test, y_test = split
    table = knn_accuracy(model, *split, n_neighbors=3)
    reference = KNeighborsClassifier(3).fit(model.transform(X), y)
    assert table == [
        {
            "n_neighbors": 3,
            "accuracy": reference.score(model.transform(X_test), y_test),
        }
    ]
    with pytest.raises(ValueError, match=r"n_neighbors=301 is more than the 300"):
        knn_accuracy(model, *split, n_neighbors=301)


def test_few_labels(model, split):
    smallest = np.bincount(split[1]).min()
    counts = [16, 1, 4, int(smallest), int(smallest) + 1]
    table = low_shot(model, *split, n_labels=counts, n_repeats=3, random_state=0)
    assert columns(table, "n_labels") == counts[:-1]
    accuracies = dict(zip(counts, columns(table, "accuracy"), strict=False))
    assert accuracies[1] < accuracies[4] < accuracies[16] <= 1
    assert all(deviation >= 0 for deviation in columns(table, "accuracy_std"))
    again = low_shot(model, *split, n_labels=counts, n_repeats=3, random_state=0)
    assert again == table
    other = low_shot(model, *split, n_labels=1, n_repeats=3, random_state=1)
    assert other[0]["accuracy"] != accuracies[1]


def test_few_labels_are_as_many_of_each_class(model, split, monkeypatch):
    seen = []
    fit = probes_module._logistic
    monkeypatch.setattr(
        probes_module,
        "_logistic",
        lambda X, y: seen.append(np.bincount(y)) or fit(X, y),
    )
    low_shot(model, *split, n_labels=(2, 5), n_repeats=2)
    assert [sizes.tolist() for sizes in seen] == [[2] * 10, [5] * 10] * 2


def test_too_many_labels(model, split):
    with pytest.raises(ValueError, match=r"n_labels=\[400\] are all more than the \d+"):
        low_shot(model, *split, n_labels=400)
    with pytest.raises(ValueError, match=r"n_labels=\(1, 0\) should be positive"):
        low_shot(model, *split, n_labels=(1, 0))


# Retrieval


def random_points(seed, n=60, d=4):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, d)).astype(np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True), rng.integers(0, 5, n)


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), values=st.sampled_from([1, 300, 2**24]))
def test_average_precision_is_that_of_brute_force(seed, values):
    points, y = random_points(seed)
    asked = np.random.default_rng(seed).permutation(60)[:20]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval_module, "RANKED_VALUES", values)
        found = retrieval_module._average_precisions(points, y, asked)
    for row, precision in zip(asked, found, strict=True):
        others = np.delete(np.arange(60), row)
        reference = average_precision_score(
            y[others] == y[row], points[others] @ points[row]
        )
        assert precision == pytest.approx(reference, abs=1e-6)


def test_copies_are_found_first():
    points = np.repeat(np.eye(5, dtype=np.float32), 2, axis=0)
    y = np.repeat(np.arange(5), 2)
    assert (
        retrieval_module._average_precisions(points, y, np.arange(10)).tolist()
        == [1] * 10
    )


def test_retrieval(model, split):
    X, y = split[0][:100], split[1][:100]
    (row,) = retrieval_map(model, X, y)
    assert row["layer"] == "conv4"
    assert row["n_queries"] == 100
    (random,) = retrieval_map(untrained(model, random_state=0), X, y)
    assert row["mean_average_precision"] > random["mean_average_precision"] + 0.02
    (first,) = retrieval_map(model, X, y, layer="conv1")
    assert first["layer"] == "conv1"
    assert first["mean_average_precision"] != row["mean_average_precision"]


def test_retrieval_of_some_rows(model, split):
    X, y = split[0][:100], split[1][:100]
    singles = [retrieval_map(model, X, y, queries=[q])[0] for q in (7, 3)]
    (both,) = retrieval_map(model, X, y, queries=[7, 3])
    mean = np.mean([row["mean_average_precision"] for row in singles])
    assert both["n_queries"] == 2
    assert both["mean_average_precision"] == pytest.approx(mean)


def test_a_query_without_others_of_its_class_does_not_count(model, split):
    X, y = split[0][:40], split[1][:40].copy()
    y[5] = 77
    assert retrieval_map(model, X, y)[0]["n_queries"] == 39
    with pytest.raises(ValueError, match="None of the queries has another image"):
        retrieval_map(model, X, y, queries=[5])
    with pytest.raises(ValueError, match="between 0 and 39"):
        retrieval_map(model, X, y, queries=[40])
    with pytest.raises(ValueError, match="queries should be integers"):
        retrieval_map(model, X, y, queries=[0.5])


def test_retrieval_without_convolutions(rows_model, split):
    (row,) = retrieval_map(rows_model, split[0].reshape(N, -1), split[1])
    assert row["layer"] == "embedding"
    assert 0.1 < row["mean_average_precision"] < 1


@pytest.mark.parametrize(
    ("height", "breadth", "n"), [(8, 8, 14), (2, 2, 14), (1, 1, 14), (6, 9, 20)]
)
def test_regions(height, breadth, n):
    maps = torch.rand(3, 2, height, breadth)
    regions = retrieval_module.region_maxima(maps, 3).reshape(3, n, 2)
    assert regions.max(dim=1).values.tolist() == maps.amax(dim=(2, 3)).tolist()
    turned = retrieval_module.region_maxima(maps.mT, 3).reshape(3, n, 2)
    assert torch.equal(turned.sort(dim=1).values, regions.sort(dim=1).values)
    if height == breadth:
        assert torch.equal(regions[:, 0], maps.amax(dim=(2, 3)))


def test_regions_of_the_second_scale_are_two_thirds():
    maps = torch.arange(36.0).reshape(1, 1, 6, 6)
    assert retrieval_module.region_maxima(maps, 2).tolist() == [[35, 21, 23, 33, 35]]


# Training with labels


def test_fine_tuning_learns_and_leaves_the_model_alone(model, split):
    before = state_of(model.module_)
    table, module = fine_tune(model, *split, n_epochs=3, random_state=0)
    assert_same_state(before, state_of(model.module_))
    assert columns(table, "epoch") == [1, 2, 3]
    assert table[-1]["loss"] < table[0]["loss"]
    assert table[-1]["accuracy"] > 0.8  # 0.88 to 0.93, by processor
    with torch.no_grad():
        logits = module(torch.from_numpy(split[2][:, None]).float())
    accuracy = float(np.mean(logits.argmax(dim=1).numpy() == split[3]))
    assert accuracy == table[-1]["accuracy"]
    assert not any(part.training for part in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert linear_probe(module.network, *split)[-1]["layer"] == "embedding"


def test_fine_tuning_from_nothing(model, split, capsys):
    random = untrained(model, random_state=0)
    table, _ = fine_tune(
        random, *split, n_epochs=6, learning_rate=0.03, random_state=0, verbose=1
    )
    assert table[-1]["accuracy"] > 0.85
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[5].startswith("epoch   6  loss 0.")


@pytest.mark.parametrize(
    ("from_layer", "first"), [(None, 0), ("conv3", 7), ("trunk.7", 7), ("conv4", 10)]
)
def test_what_learns(model, split, from_layer, first):
    _, module = fine_tune(model, *split, from_layer=from_layer, n_epochs=1)
    assert all(parameter.requires_grad for parameter in module.parameters())
    old, new = model.module_.state_dict(), module.network.state_dict()
    for name, values in old.items():
        if name.startswith("trunk.") and not name.endswith("tracked"):
            kept = torch.equal(values, new[name])
            assert kept == (int(name.split(".")[1]) < first), name


def test_only_the_classifier_learns(model, split):
    before = model.module_.state_dict()
    table, module = fine_tune(model, *split, from_layer="embedding", n_epochs=3)
    assert_same_state((before, None), (module.network.state_dict(), None))
    assert table[-1]["loss"] < table[0]["loss"]


def test_fine_tuning_is_repeated_by_its_seed(model, split):
    first, again, other = (
        fine_tune(model, *split, n_epochs=1, random_state=seed)[1].state_dict()
        for seed in (0, 0, 1)
    )
    assert_same_state((first, None), (again, None))
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_fine_tuning_says_why_it_fails(model, split):
    with pytest.raises(ValueError, match="Lower learning_rate=1e"):
        fine_tune(model, *split, learning_rate=1e25, n_epochs=3)
    with pytest.raises(ValueError, match="'conv7' is no layer"):
        fine_tune(model, *split, from_layer="conv7")
    with pytest.raises(ValueError, match=r"model gives maps of shape \(4, 8, 8\)"):
        fine_tune(plain_net()[:3], *split)


def test_untrained_weights(model):
    before = state_of(model.module_)
    random, again = untrained(model, random_state=3), untrained(model, random_state=3)
    assert_same_state(before, state_of(model.module_))
    assert_same_state(state_of(random), state_of(again))
    old, new = model.module_.state_dict(), random.state_dict()
    assert old.keys() == new.keys()
    for name, values in new.items():
        if name.startswith("front."):
            assert torch.equal(values, old[name]), name
        elif values.ndim == 4:
            assert not torch.equal(values, old[name]), name
        elif name.endswith(("mean", "bias", "tracked")):
            assert not values.any(), name
        else:
            assert (values == 1).all(), name
    assert all(p.isfinite().all() for p in new.values())


def test_untrained_keeps_what_is_fixed_and_refuses_what_it_cannot_draw():
    network = plain_net()
    network[0].requires_grad_(False)
    assert torch.equal(untrained(network)[0].weight, network[0].weight)
    assert not torch.equal(untrained(network)[4].weight, network[4].weight)

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.ones(1))

    with pytest.raises(ValueError, match="part '1' has weights but no method reset_"):
        untrained(nn.Sequential(nn.Linear(2, 2), Scale()))


# What goes in


@pytest.mark.parametrize("training", [True, False])
def test_a_module_stays_as_it_is(split, training):
    network = plain_net().append(Noise()).train(training)
    network[1].eval()
    before = state_of(network)
    linear_probe(network, *split)
    retrieval_map(network, *split[:2])
    low_shot(network, *split, n_labels=2, n_repeats=1)
    fine_tune(network, *split, n_epochs=1)
    assert_same_state(before, state_of(network))


def test_a_module_takes_images_in_their_own_units(split):
    X, y, X_test, y_test = split
    network = plain_net()
    table = linear_probe(network, *split)
    for form in (
        lambda images: images[:, None].astype(np.float64),
        lambda images: images[..., None],
        lambda images: torch.from_numpy(images),
    ):
        assert linear_probe(network, form(X), y, form(X_test), y_test) == table
    rows = nn.Sequential(nn.Linear(64, 8), nn.ReLU())
    flat = X.reshape(N, -1), y, X_test.reshape(len(X_test), -1), y_test
    names = columns(linear_probe(rows, *flat), "layer")
    assert names == ["layer1", "embedding"]


def test_the_number_of_rows_does_not_matter(model, split):
    network, images = model.module_, split[0][:, None]
    order = np.random.default_rng(0).permutation(N)[:97]
    names = ["conv1", "conv4", "embedding"]
    whole = features_of(network, images, names)
    some = features_of(network, images[order], names)
    for all_rows, few in zip(whole, some, strict=True):
        assert_array_equal(all_rows[order], few)


def test_broken_files_are_left_out_with_their_classes(model, split, folder):
    skipping = copy.copy(model).set_params(on_error="skip")
    skipping._input_format = dataclasses.replace(model._input_format, dtype=np.uint8)
    y, good = split[1][:40], np.arange(40) != 2
    X, test = split[0][:40], split[2:]
    words = "1 of 40 images cannot be read"
    with pytest.warns(UserWarning, match=words):
        table = linear_probe(skipping, folder, y, *test)
    assert table == linear_probe(model, X[good], y[good], *test)
    with pytest.warns(UserWarning, match=words):
        table = knn_accuracy(skipping, X[good], y[good], folder, y)
    assert table == knn_accuracy(model, X[good], y[good], X[good], y[good])
    with pytest.warns(UserWarning, match=words):
        table = retrieval_map(skipping, folder, y % 3, queries=[1, 2, 10, 33])
    expected = retrieval_map(model, X[good], y[good] % 3, queries=[1, 9, 32])
    assert expected[0]["mean_average_precision"] < 0.9
    assert table == expected
    with pytest.warns(UserWarning, match=words):
        table, _ = fine_tune(skipping, folder, y, folder, y, n_epochs=1, random_state=0)
    data = X[good], y[good], X[good], y[good]
    assert table == fine_tune(model, *data, n_epochs=1, random_state=0)[0]
    with pytest.raises(ValueError, match="X cannot be read in row 2"):
        linear_probe(model, folder, y, *test)


def test_an_untrained_net_in_a_copy_of_the_estimator_reads_files(model, split, folder):
    other = copy.copy(model).set_params(on_error="skip")
    other.module_ = untrained(model, random_state=0)
    y, good = split[1][:40], np.arange(40) != 2
    with pytest.warns(UserWarning, match="cannot be read"):
        table = linear_probe(other, folder, y, *split[2:])
    images = split[0][:40][good]
    assert table == linear_probe(other.module_, images, y[good], *split[2:])


def test_words_about_what_is_wrong(model, split):
    X, y, X_test, y_test = split
    with pytest.raises(
        ValueError, match=r"X_train holds 300 images, but y_train has shape \(299,\)"
    ):
        linear_probe(model, X, y[:-1], X_test, y_test)
    with pytest.raises(ValueError, match=r"X_test holds 200 .*y_test\.argmax\(axis=1"):
        knn_accuracy(model, X, y, X_test, y_test[:, None])
    with pytest.raises(ValueError, match="X_train, y_train, X_test and y_test in this"):
        knn_accuracy(model, X, X_test, y, y_test)
    with pytest.raises(ValueError, match=r"y_test holds '.' and no class of y_train"):
        knn_accuracy(model, X, y, X_test, y_test.astype(str))
    with pytest.raises(ValueError, match=r"X holds 300 images, but y has shape"):
        retrieval_map(model, X, y[:3])
    with pytest.raises(ValueError, match=r"y_train should hold classes.*continuous"):
        low_shot(model, X, y + 0.5, X_test, y_test)
    with pytest.raises(ValueError, match="y_train holds a single class, 7"):
        fine_tune(model, X, np.full(N, 7), X_test, y_test)
    with pytest.raises(ValueError, match="X holds images of shape"):
        linear_probe(model, X, y, X_test[:, 1:], y_test)
    with pytest.raises(ValueError, match=r"X_train holds items of shape .* X_test of"):
        linear_probe(plain_net(), X, y, X_test[:, 1:], y_test)
    with pytest.raises(ValueError, match="does not take a batch of shape"):
        linear_probe(plain_net(), X[:, 1:], y, X_test[:, 1:], y_test)
    with pytest.raises(ValueError, match="NaN in row 0"):
        linear_probe(plain_net(), np.full((N, 8, 8), np.nan), y, X_test, y_test)
    with pytest.raises(TypeError, match="A torch module takes arrays"):
        linear_probe(plain_net(), "photos", y, X_test, y_test)
    with pytest.raises(ValueError, match="'model' parameter of linear_probe must be"):
        linear_probe("model", *split)
    with pytest.raises(ValueError, match="'n_values' parameter"):
        linear_probe(model, *split, n_values=0)
    with pytest.raises(NotFittedError):
        linear_probe(DeepClusterEstimator(), *split)


# Memory


@pytest.fixture
def passes(monkeypatch):
    """Sizes of the passes over images that networks make."""
    made = []

    def counted(network, source, *rest):
        made.append(len(source))
        return layer_features(network, source, *rest)

    monkeypatch.setattr(model_module, "layer_features", counted)
    return made


@pytest.mark.parametrize("form", [str, joblib.Memory], ids=["str", "Memory"])
def test_features_are_found_again(model, split, tmp_path, passes, form):
    options = {"verbose": 0} if form is joblib.Memory else {}
    memory = form(tmp_path, **options)
    first = linear_probe(model, *split, memory=memory)
    assert passes == [300, 200]
    assert linear_probe(copy.deepcopy(model), *split, memory=memory) == first
    assert passes == [300, 200]
    assert linear_probe(model, *split) == first
    assert len(passes) == 4


def test_features_of_something_else_are_not(model, split, tmp_path, passes):
    memory, X = str(tmp_path), split[0]
    knn_accuracy(model, *split, memory=memory)
    low_shot(model, *split, memory=memory, n_repeats=1, n_labels=1)  # the same
    assert len(passes) == 2
    knn_accuracy(model, X[::-1], split[1][::-1], *split[2:], memory=memory)
    assert len(passes) == 3
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.module_.parameters())[0, 0, 0, 0] += 0.1
    knn_accuracy(other, *split, memory=memory)
    assert len(passes) == 5
    linear_probe(model, *split, layers=["conv1"], n_values=100, memory=memory)
    linear_probe(model, *split, layers=["conv1"], n_values=200, memory=memory)
    linear_probe(model, *split, layers=["conv2"], n_values=200, memory=memory)
    assert len(passes) == 11


def test_broken_files_are_known_from_memory(model, split, folder, tmp_path, passes):
    skipping = copy.copy(model).set_params(on_error="skip")
    y, memory = split[1][:40], str(tmp_path / "memory")
    tables = []
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 40 images"):
            tables.append(knn_accuracy(skipping, folder, y, *split[2:], memory=memory))
    assert tables[0] == tables[1]
    assert passes == [40, 200]


# Clusters


def test_a_report_of_clusters():
    y = ["a", "a", "b", "b", "c", "c", "c"]
    (row,) = cluster_report(y, [0, 0, 0, 1, 2, 2, -1])
    assert (row["n_images"], row["n_clusters"]) == (6, 3)
    assert (row["largest"], row["median"], row["smallest"]) == (3, 2, 1)
    assert row["accuracy"] == row["purity"] == pytest.approx(5 / 6)
    assert 0 < row["ari"] < row["nmi"] < 1
    table = cluster_table(y, [0, 0, 0, 1, 2, 2, -1])
    assert columns(table, "cluster") == [0, 1, 2]
    assert columns(table, "size") == [3, 1, 2]
    assert columns(table, "most_frequent") == ["a", "b", "c"]
    assert_allclose(columns(table, "purity"), [2 / 3, 1, 1])


labelings = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        *[st.lists(st.integers(0, 4), min_size=n, max_size=n) for _ in range(2)]
    )
)


@given(labelings)
def test_purity(both):
    y, labels = map(np.array, both)
    found = purity(y, labels)
    sizes = [np.bincount(y[labels == c]).max() for c in np.unique(labels)]
    assert found == pytest.approx(sum(sizes) / len(y))
    assert clustering_accuracy(y, labels) <= found + 1e-12
    table = cluster_table(y, labels)
    weighted = sum(row["size"] * row["purity"] for row in table) / len(y)
    assert weighted == pytest.approx(found)
    assert cluster_report(y, labels)[0]["purity"] == found
    assert purity(y, y) == 1


@pytest.mark.parametrize("function", [cluster_report, cluster_table])
def test_clusters_of_nothing(function):
    with pytest.raises(ValueError, match=r"y_true has shape \(2,\), but labels has"):
        function([0, 1], [0])
    with pytest.raises(ValueError, match="no image with a cluster"):
        function([0, 1], [-1, -1])


def test_stability_is_what_history_tells(model):
    assert stability(model) == [
        {"round": row["round"], "nmi_previous": row["nmi_previous"]}
        for row in model.history_
    ]
    told = copy.copy(model)
    told.history_ = [{**row, "nmi_y": 0.5} for row in model.history_]
    assert columns(stability(told), "nmi_y") == [0.5, 0.5]
    with pytest.raises(NotFittedError):
        stability(DeepClusterEstimator())


def test_nothing_else_is_said(model, split):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_probe(model, *split)
        low_shot(model, *split, n_repeats=1)
        fine_tune(model, *split, n_epochs=1)
