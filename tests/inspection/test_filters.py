"""Weights of the first layer, and images with the largest activations."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._activations import maps as maps_module
from skdeepcluster.inspection import first_layer_filters, top_images

# Quick fits may not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def column(table, name):
    return [entry[name] for entry in table]


def test_first_layer_filters_are_a_copy_of_the_weights(model):
    filters = first_layer_filters(model)
    weights = model.module_.trunk[0].weight
    assert filters.dtype == np.float32
    assert_array_equal(filters, weights.detach().numpy())
    filters[:] = 0
    assert weights.detach().abs().min() > 0


def test_first_layer_filters_of_gradients(images):
    model = DeepClusterEstimator(
        2, sobel=True, max_iter=1, epochs_per_iter=1, random_state=0
    ).fit(images[:40])
    assert first_layer_filters(model).shape == (32, 2, 3, 3)


def test_first_layer_filters_are_float32():
    assert first_layer_filters(nn.Conv2d(3, 5, 2).half()).dtype == np.float32


def test_first_layer_filters_need_a_convolution(rows_model):
    with pytest.raises(ValueError, match="has no convolution"):
        first_layer_filters(rows_model)


@pytest.mark.parametrize("layer", ["conv1", "conv4"])
@pytest.mark.parametrize("batch_size", [7, 512])
def test_top_images_equal_brute_force(
    model, images, compute_maps, monkeypatch, layer, batch_size
):
    monkeypatch.setattr(maps_module, "MAX_BATCH_SIZE", batch_size)
    table = top_images(model, images, layer, [5, 0], n_images=4)
    maps = compute_maps(layer, images)
    map_size, expected = maps.shape[2], []
    for index in (5, 0):
        flat = maps[:, index].reshape(200, -1)
        best = np.argsort(-flat.max(axis=1), kind="stable")[:4]
        for rank, row in enumerate(best):
            y, x = np.divmod(flat[row].argmax(), map_size)
            y, x = (int((position + 0.5) * 8 / map_size) for position in (y, x))
            expected.append((index, rank, row, flat[row].max(), y, x))
    keys = ("filter", "rank", "row", "activation", "y", "x")
    entries = [[entry[key] for key in keys] for entry in table]
    assert_allclose(entries, expected, rtol=1e-4)
    assert {type(table[0][key]) for key in keys} == {int, float}


def test_top_images_orders_ties_by_row(model, images):
    copies = np.repeat(images[:1], 30, axis=0)
    table = top_images(model, copies, "conv2", [1], n_images=3)
    assert column(table, "row") == [0, 1, 2]


def test_top_images_of_vectors_and_of_fewer_images(model, images):
    table = top_images(model, images[:3], "norm", [200])
    embedding = model.transform(images[:3])[:, 200]
    assert column(table, "row") == np.argsort(-embedding).tolist()
    assert {(entry["y"], entry["x"]) for entry in table} == {(4, 4)}
    assert top_images(model, images[:3], "embedding", [200]) == table


def test_top_images_of_a_module(make_network, images):
    network = make_network()
    values = torch.from_numpy(images[:, None] / np.float32(255))
    table = top_images(network, values, "2", [3], n_images=2)
    with torch.no_grad():
        best = network[:3](values)[:, 3].amax(dim=(1, 2))
    assert column(table, "row") == best.topk(2).indices.tolist()
    by_name = top_images(network, values, "conv2", [3], n_images=2)
    assert by_name[0]["activation"] == pytest.approx(max(0, float(best.max())))


def test_convolutions_are_rectified_and_submodules_are_not(make_network, images):
    network = make_network()
    with torch.no_grad():
        network[0].bias.fill_(-1000)
    values = images[:5, None] / np.float32(255)
    assert set(column(top_images(network, values, "conv1"), "activation")) == {0.0}
    assert max(column(top_images(network, values, "0"), "activation")) < -990


def test_top_images_leaves_out_broken_files(skipping_model, images, broken_folder):
    with pytest.warns(UserWarning, match="1 of 30 images cannot be read"):
        table = top_images(skipping_model, broken_folder, "conv2", [0], n_images=30)
    assert sorted(column(table, "row")) == [row for row in range(30) if row != 3]
    complete = top_images(skipping_model, images[:30], "conv2", [0], n_images=30)
    expected = [row for row in column(complete, "row") if row != 3]
    assert column(table, "row") == expected


def test_top_images_raises_for_broken_files_by_default(model, broken_folder):
    with pytest.raises(ValueError, match="in row 3"):
        top_images(model, broken_folder, "conv2")


def test_top_images_rejects_wrong_input(model, make_network, images, rows_model, rows):
    with pytest.raises(ValueError, match="n_images"):
        top_images(model, images, "conv1", n_images=0)
    with pytest.raises(ValueError, match="X holds rows"):
        top_images(make_network(), images[:, 0], "conv1")
    with pytest.raises(ValueError, match="no folder"):
        top_images(make_network(), "nowhere", "conv1")
    with pytest.raises(ValueError, match="X holds rows of 64 values"):
        top_images(rows_model, rows, "trunk.0")
