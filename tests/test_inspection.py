"""Pictures of what a network has learned, from a model that stays as it is."""

import copy
import random

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.exceptions import NotFittedError
from torch import nn

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._activations import maps as maps_module
from skdeepcluster.inspection import _ascent as ascent_module
from skdeepcluster.inspection import (
    contact_sheet,
    first_layer_filters,
    maximal_images,
    top_images,
)

# Quick fits may well say that they are.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 200
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[0][:N]


@pytest.fixture(scope="module")
def model(images):
    params = {"max_iter": 1, "epochs_per_iter": 10, "random_state": 0}
    return DeepClusterEstimator(5, **params).fit(images)


@pytest.fixture(scope="module")
def rows_model(images):
    params = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0}
    return DeepClusterEstimator(2, **params).fit(images.reshape(N, -1))


@pytest.fixture
def broken_folder(images, tmp_path):
    """PNG files of the first 30 images, but for row 3, which is none."""
    for i, values in enumerate(images[:30]):
        Image.fromarray(values).save(tmp_path / f"{i:03d}.png")
    (tmp_path / "003.png").write_text("no image at all")
    return tmp_path


@pytest.fixture(scope="module")
def skipping(model):
    skipping = copy.deepcopy(model)
    return skipping.set_params(on_error="skip")


def net():
    """A convolution, ReLU, another one without anything behind it, and a vector."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.Flatten(),
    )


def activations(model, layer, images):
    """By hand: conv1 to conv4 end at the ReLUs of the estimator's convnet."""
    trunk = model.module_.trunk
    relus = [i for i, m in enumerate(trunk) if isinstance(m, nn.ReLU)]
    part = trunk[: relus[int(layer[-1]) - 1] + 1]
    with torch.no_grad():
        x = torch.as_tensor(np.asarray(images), dtype=torch.float32)
        x = x if x.ndim == 4 else x[:, None]
        return part(model.module_.front(x)).numpy()


def detail(images):
    """Energy of the differences between neighboring pixels, of that of all."""
    images = images - images.mean(axis=(2, 3), keepdims=True)
    return np.square(np.diff(images, axis=3)).sum() / np.square(images).sum()


def test_first_layer_filters(model):
    filters = first_layer_filters(model)
    weights = model.module_.trunk[0].weight
    assert filters.dtype == np.float32
    assert_array_equal(filters, weights.detach().numpy())
    filters[:] = 0
    assert weights.detach().abs().min() > 0  # it was a copy


def test_first_layer_filters_of_gradients(images):
    params = {"sobel": True, "max_iter": 1, "epochs_per_iter": 1, "random_state": 0}
    model = DeepClusterEstimator(2, **params).fit(images[:40])
    assert first_layer_filters(model).shape == (32, 2, 3, 3)
    assert maximal_images(model, "conv1", [0], n_steps=2).shape == (1, *SHAPE)


def test_first_layer_filters_need_a_convolution(rows_model):
    with pytest.raises(ValueError, match="has no convolution"):
        first_layer_filters(rows_model)
    assert first_layer_filters(nn.Conv2d(3, 5, 2).half()).dtype == np.float32


@pytest.mark.parametrize("layer", ["conv2", "conv3"])
def test_maximal_images_activate_more_than_images_and_noise(model, images, layer):
    made = maximal_images(model, layer, random_state=0)
    assert made.dtype == np.float32
    assert made.min() >= 0
    assert made.max() <= 255
    rng = np.random.default_rng(0)
    noise = rng.normal(made.mean(), made.std(), (N, *SHAPE)).clip(0, 255)
    found = activations(model, layer, made).mean(axis=(2, 3)).diagonal()
    for others in (images, noise):
        best = activations(model, layer, others).mean(axis=(2, 3)).max(axis=0)
        assert len(found) == len(best)
        assert np.mean(found > 1.1 * best) > 0.95
        assert np.median(found / best) > 1.4


def test_more_steps_activate_more(model):
    few, many = (
        activations(
            model, "conv4", maximal_images(model, "conv4", n_steps=n, random_state=0)
        )
        for n in (1, 40)
    )
    few, many = (a.mean(axis=(2, 3)).diagonal() for a in (few, many))
    assert np.all(many > few)


def test_maximal_images_are_repeatable_and_each_by_itself(model):
    params = {"n_steps": 5, "random_state": 3}
    whole = maximal_images(model, "conv2", [4, 1, 7], **params)
    assert_array_equal(maximal_images(model, "conv2", [4, 1, 7], **params), whole)
    one = maximal_images(model, "conv2", [1], **params)
    assert_allclose(one[0], whole[1], atol=0.5)
    other = maximal_images(model, "conv2", [1], n_steps=5, random_state=4)
    assert np.abs(other - one).max() > 20


def test_maximal_images_do_not_depend_on_the_batches(model, monkeypatch):
    whole = maximal_images(model, "conv2", range(6), n_steps=5, random_state=0)
    monkeypatch.setattr(maps_module, "LARGEST_BATCH", 2)
    parts = maximal_images(model, "conv2", range(6), n_steps=5, random_state=0)
    assert_allclose(parts, whole, atol=0.5)


def test_blur_takes_detail_away(model):
    fine, blurred = (
        maximal_images(model, "conv4", range(16), n_steps=30, blur=b, random_state=0)
        for b in (0, 2)
    )
    assert detail(blurred) < 0.8 * detail(fine)


def test_blur_keeps_mean_and_size():
    images = torch.zeros(1, 2, 9, 9)
    images[0, 0, 4, 4] = 1
    blurred = ascent_module._blurred(images, 1.0)
    assert blurred.shape == images.shape
    assert_allclose(blurred.sum(dim=(2, 3)), [[1, 0]], atol=1e-6)
    across = (blurred[0, 0].sum(dim=0) * (torch.arange(9) - 4) ** 2).sum()
    assert across == pytest.approx(1.0, abs=0.05)  # the variance
    assert ascent_module._blurred(images, 0.0) is images


def test_maximal_images_of_float_images_stay_near_their_mean(images):
    params = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0}
    values = np.float32(images[:40]) / 255 - 5
    model = DeepClusterEstimator(2, **params).fit(values)
    made = maximal_images(model, "conv2", random_state=0, n_steps=20)
    assert np.abs(made - values.mean()).max() <= 3.001 * values.std()
    assert made.std() > 0.5 * values.std()


def test_maximal_images_of_a_module():
    made = maximal_images(
        net(), "conv2", n_steps=30, image_shape=(1, 12, 10), random_state=0
    )
    assert made.shape == (6, 1, 12, 10)
    assert np.abs(made).max() <= 3
    with pytest.raises(ValueError, match="Set image_shape"):
        maximal_images(net(), "conv2")


def test_maximal_images_of_another_size(model):
    made = maximal_images(model, "conv1", [0], n_steps=2, image_shape=(1, 13, 16))
    assert made.shape == (1, 1, 13, 16)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_computed_whatever_the_mode(model, mode):
    expected = maximal_images(model, "conv1", [0], n_steps=3, random_state=0)
    network = net()
    with mode(), torch.autocast("cpu", torch.bfloat16):
        found = maximal_images(model, "conv1", [0], n_steps=3, random_state=0)
        maximal_images(network, "conv1", n_steps=1, image_shape=SHAPE)
    assert_array_equal(found, expected)


def test_a_silent_filter_wakes_up():
    silent = net()
    with torch.no_grad():
        silent[0].bias.fill_(-3)  # five times what the noise adds up to
    made = maximal_images(silent, "conv1", image_shape=SHAPE, random_state=0)
    with torch.no_grad():
        maps = silent[0](torch.from_numpy(made)).mean(dim=(2, 3)).diagonal()
    assert maps.max() > 0


def test_a_silent_unit_of_a_perceptron_wakes_up():
    silent = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(inplace=True))
    silent.append(nn.Linear(4, 2))
    with torch.no_grad():
        silent[1].bias.fill_(-3)
    params = {"image_shape": SHAPE, "random_state": 0}
    made = torch.from_numpy(maximal_images(silent, "layer1", **params))
    with torch.no_grad():
        assert silent[:2](made).diagonal().max() > 0
    asleep = torch.from_numpy(maximal_images(silent, "2", **params))
    with torch.no_grad():
        assert silent[:2](asleep).diagonal().max() < 0  # no way up


def test_each_filter_starts_from_noise_of_its_own():
    twins = net()
    with torch.no_grad():
        twins[0].weight[1], twins[0].bias[1] = twins[0].weight[0], twins[0].bias[0]
    params = {"n_steps": 1, "image_shape": SHAPE, "random_state": 0}
    one, other = maximal_images(twins, "conv1", [0, 1], **params)
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.5


def test_what_no_filter_sees_becomes_the_mean():
    network = nn.Conv2d(2, 1, 3, padding=1)
    with torch.no_grad():
        network.weight[:, 1] = 0
    params = {"n_steps": 200, "blur": 0, "image_shape": (2, 8, 8), "random_state": 0}
    seen, unseen = maximal_images(network, "conv1", **params)[0]
    assert seen.std() > 0.5
    assert unseen.std() == pytest.approx((1 - ascent_module.DECAY) ** 200, rel=0.2)


@pytest.mark.parametrize("layer", ["conv1", "conv4"])
@pytest.mark.parametrize("batch", [7, 512])
def test_top_images_against_brute_force(model, images, monkeypatch, layer, batch):
    monkeypatch.setattr(maps_module, "LARGEST_BATCH", batch)
    table = top_images(model, images, layer, [5, 0], n_images=4)
    maps = activations(model, layer, images)
    side, expected = maps.shape[2], []
    for number in (5, 0):
        flat = maps[:, number].reshape(N, -1)
        best = np.argsort(-flat.max(axis=1), kind="stable")[:4]
        for rank, row in enumerate(best):
            y, x = np.divmod(flat[row].argmax(), side)
            y, x = (int((p + 0.5) * 8 / side) for p in (y, x))
            expected.append((number, rank, row, flat[row].max(), y, x))
    keys = ("filter", "rank", "row", "activation", "y", "x")
    assert_allclose([[e[key] for key in keys] for e in table], expected, rtol=1e-4)
    assert {type(table[0][key]) for key in keys} == {int, float}


def test_top_images_of_equal_images_are_the_first(model, images):
    same = np.repeat(images[:1], 30, axis=0)
    table = top_images(model, same, "conv2", [1], n_images=3)
    assert [entry["row"] for entry in table] == [0, 1, 2]


def test_top_images_of_vectors_and_of_few_images(model, images):
    table = top_images(model, images[:3], "norm", [200])
    embedding = model.transform(images[:3])[:, 200]
    assert [entry["row"] for entry in table] == np.argsort(-embedding).tolist()
    assert {(entry["y"], entry["x"]) for entry in table} == {(4, 4)}
    assert top_images(model, images[:3], "embedding", [200]) == table


def test_top_images_of_a_module(images):
    network = net()
    values = torch.from_numpy(images[:, None] / np.float32(255))
    table = top_images(network, values, "2", [3], n_images=2)
    with torch.no_grad():
        best = network[:3](values)[:, 3].amax(dim=(1, 2))
    assert [entry["row"] for entry in table] == best.topk(2).indices.tolist()
    named = top_images(network, values, "conv2", [3], n_images=2)
    assert named[0]["activation"] == pytest.approx(max(0, float(best.max())))


def test_convolutions_are_rectified_and_paths_are_not(images):
    network = net()
    with torch.no_grad():
        network[0].bias.fill_(-1000)
    values = images[:5, None] / np.float32(255)
    assert {e["activation"] for e in top_images(network, values, "conv1")} == {0.0}
    assert max(e["activation"] for e in top_images(network, values, "0")) < -990


def test_a_broken_file_is_left_out(skipping, images, broken_folder):
    with pytest.warns(UserWarning, match="1 of 30 images cannot be read"):
        table = top_images(skipping, broken_folder, "conv2", [0], n_images=30)
    assert sorted(e["row"] for e in table) == [r for r in range(30) if r != 3]
    whole = top_images(skipping, images[:30], "conv2", [0], n_images=30)
    assert [e["row"] for e in table] == [e["row"] for e in whole if e["row"] != 3]
    with pytest.warns(UserWarning, match="1 of 30 images cannot be read"):
        sheet = contact_sheet(skipping, broken_folder, n_images=30, size=8)
    assert n_pictures(sheet, 8) == 29


def test_a_broken_file_stops_it_by_default(model, broken_folder):
    with pytest.raises(ValueError, match="in row 3"):
        top_images(model, broken_folder, "conv2")
    with pytest.raises(ValueError, match="in row 3"):
        contact_sheet(model, broken_folder)


def cells(sheet, size):
    """Pictures of a sheet, (rows, columns, size, size, 3)."""
    down, across = ((n - 2) // (size + 2) for n in sheet.shape[:2])
    parts = sheet[2:, 2:].reshape(down, size + 2, across, size + 2, 3)
    return parts.swapaxes(1, 2)[:, :, :size, :size]


def n_pictures(sheet, size):
    return int((cells(sheet, size) != 255).any(axis=(2, 3, 4)).sum())


@pytest.mark.parametrize(("which", "sign"), [("nearest", 1), ("farthest", -1)])
def test_contact_sheet_by_distance(model, images, which, sign):
    sheet = contact_sheet(model, images, 2, n_images=4, which=which, size=16)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 + 2 * 18, 2 + 2 * 18, 3)
    members = np.flatnonzero(model.labels_ == 2)
    away = model.transform(images[members]) - model.cluster_centers_[2]
    best = members[np.argsort(sign * np.linalg.norm(away, axis=1))[:4]]
    shown = cells(sheet, 16).reshape(4, 16, 16, 3)
    for picture, row in zip(shown, best, strict=True):
        expected = images[row].repeat(2, axis=0).repeat(2, axis=1)
        assert_array_equal(picture, expected[..., None].repeat(3, axis=2))


def test_contact_sheet_of_all_has_a_row_for_each(model, images):
    sheet = contact_sheet(model, images, n_images=3, size=8)
    for cluster, row in enumerate(cells(sheet, 8)):
        alone = contact_sheet(model, images, cluster, n_images=3, size=8)
        assert_array_equal(row, cells(alone, 8).reshape(4, 8, 8, 3)[:3])


def test_contact_sheet_of_random_images(model, images):
    params = {"n_images": 6, "which": "random", "size": 8}
    first = contact_sheet(model, images, 1, **params, random_state=0)
    assert_array_equal(contact_sheet(model, images, 1, **params, random_state=0), first)
    other = contact_sheet(model, images, 1, **params, random_state=1)
    assert (other != first).any()
    labels = contact_sheet(model.labels_, images, 1, **params, random_state=0)
    assert_array_equal(labels, first)
    rows = contact_sheet(model, images, **params, random_state=0)
    assert_array_equal(
        cells(rows, 8)[1], cells(first, 8).reshape(-1, 8, 8, 3)[:6]
    )  # the same images


def test_contact_sheet_of_labels_and_files(broken_folder, images):
    labels = np.arange(30) % 2
    labels[3] = -1
    params = {"n_images": 20, "which": "random", "size": 8, "random_state": 0}
    with pytest.warns(UserWarning, match="1 of 30"):
        sheet = contact_sheet(labels, broken_folder, **params)
    assert n_pictures(sheet, 8) == 29
    first = cells(sheet, 8)[0, :15, :, :, 0].tolist()
    assert sorted(first) == sorted(images[:30:2].tolist())


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_contact_sheet_of_colors_and_floats(channels):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, channels, 9, 12))
    sheet = contact_sheet([0] * 6, values, which="random", size=12, random_state=0)
    low, high = values.min(), values.max()
    gray = values if channels == 3 else values.mean(axis=1, keepdims=True)
    bytes_ = np.rint(255 * (gray - low) / (high - low)).astype(np.uint8)
    expected = sorted(np.broadcast_to(bytes_, (6, 3, 9, 12)).tolist())
    shown = [
        sheet[2:11, 2 + 14 * i : 14 + 14 * i].transpose(2, 0, 1).tolist()
        for i in range(6)
    ]
    assert sorted(shown) == expected


def test_contact_sheet_takes_pixels_of_files_as_they_are(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        Image.new("L", (4, 4), 100 + i).save(path)
    params = {"which": "random", "size": 4}
    shown = [contact_sheet([0, 1], paths, i, **params)[2:6, 2:6] for i in (0, 1)]
    assert [set(picture.flat) for picture in shown] == [{100}, {101}]


def test_contact_sheet_makes_images_smaller():
    stripes = np.tile(np.uint8([0, 200]), (2, 8, 4))
    stripes[1, 0, 0] = 255
    sheet = contact_sheet([0, 1], stripes, 0, which="random", size=4)
    assert set(sheet[2:6, 2:6].flat) == {100}
    values = np.zeros((2, 40, 20), np.uint8)
    values[1, :20] = 255
    sheet = contact_sheet([0, 1], values, which="random", size=10)
    assert sheet.shape == (2 + 2 * 12, 2 + 7, 3)
    assert_array_equal(sheet[14:24, 2:7].mean(axis=(1, 2)), [255] * 5 + [0] * 5)
    Image.fromarray(sheet)


def test_an_empty_cluster_has_an_empty_row(model, images):
    one = images[model.labels_ == 0][:2]
    sheet = contact_sheet(model, one, size=8)
    assert (cells(sheet, 8)[1:] == 255).all()
    with pytest.raises(ValueError, match="No image of X is in cluster 1"):
        contact_sheet(model, one, 1)


def test_models_and_generators_are_left_as_they_are(model, images):
    network = net()
    network[0].train()
    network[2].eval()
    network[2].weight.requires_grad_(False)
    network[0].weight.grad = torch.ones_like(network[0].weight)
    model.module_.train()
    slopes = [p.grad.clone() for p in model.module_.parameters()]
    before = [copy.deepcopy(m.state_dict()) for m in (model.module_, network)]
    states = random.getstate(), np.random.get_state()[1], torch.get_rng_state()
    values = images[:20, None].astype(np.float32)
    for one, shape in ((model, None), (network, SHAPE)):
        first_layer_filters(one)
        maximal_images(one, "conv2", [0], n_steps=2, image_shape=shape)
        top_images(one, values, "conv2")
    for which in ("nearest", "random"):
        contact_sheet(model, images[:20], which=which)
    assert states[0] == random.getstate()
    assert_array_equal(states[1], np.random.get_state()[1])
    assert_array_equal(states[2], torch.get_rng_state())
    after = [m.state_dict() for m in (model.module_, network)]
    for old, new in zip(before, after, strict=True):
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert (network[0].training, network[2].training) == (True, False)
    assert not network[2].weight.requires_grad
    assert (network[0].weight.grad == 1).all()
    assert network[0].bias.grad is None
    assert not any(m._forward_hooks for m in network.modules())
    assert all(m.training for m in model.module_.modules())
    for old, weight in zip(slopes, model.module_.parameters(), strict=True):
        assert torch.equal(old, weight.grad)


def test_the_training_flag_is_restored_after_errors(model):
    model.module_.train()
    with pytest.raises(ValueError, match="'conv9' is no layer"):
        maximal_images(model, "conv9")
    assert all(m.training for m in model.module_.modules())
    assert not any(m._forward_hooks for m in model.module_.modules())


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ([0, 32], "filters holds 32, but layer='conv1' has 32 filters, from 0 to 31"),
        ([-1], "filters holds -1"),
        ([], "should be a list of integers"),
        (3, "should be a list of integers"),
        ([0.5], "should be a list of integers"),
    ],
)
def test_wrong_filters(model, images, filters, words):
    with pytest.raises(ValueError, match=words):
        maximal_images(model, "conv1", filters)
    with pytest.raises(ValueError, match=words):
        top_images(model, images, "conv1", filters)


@pytest.mark.parametrize("layer", ["conv5", "trunk.99", "", None])
def test_wrong_layers_are_told_those_there_are(model, images, layer):
    words = (
        f"{layer!r} is no layer of the model. There are conv1, conv2, conv3, conv4, "
        "embedding, and the submodules front, front.0, "
    )
    with pytest.raises(ValueError, match=words):
        top_images(model, images, layer)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, x: top_images(m, x, "conv1", n_images=0), ValueError, "n_images"),
        (lambda m, x: maximal_images(m, "conv1", n_steps=0), ValueError, "n_steps"),
        (lambda m, x: maximal_images(m, "conv1", blur=-1), ValueError, "blur"),
        (
            lambda m, x: maximal_images(m, "conv1", image_shape=(8, 8)),
            ValueError,
            "image_shape",
        ),
        (
            lambda m, x: maximal_images(m, "conv1", image_shape=(3, 8, 8)),
            ValueError,
            r"does not take a batch of shape \(n, 3, 8, 8\)",
        ),
        (lambda m, x: contact_sheet(m, x, 5), ValueError, "cluster=5 is none of the"),
        (lambda m, x: contact_sheet(m, x, which="best"), ValueError, "which"),
        (lambda m, x: contact_sheet(m, x, size=0), ValueError, "size"),
        (lambda m, x: contact_sheet(m.labels_, x), ValueError, "which='nearest' needs"),
        (
            lambda m, x: contact_sheet(m.labels_[1:], x, which="random"),
            ValueError,
            r"labels of shape \(200,\)",
        ),
        (lambda m, x: maximal_images("model", "conv1"), ValueError, "'model' param"),
        (lambda m, x: top_images("model", x, "conv1"), ValueError, "'model' param"),
        (lambda m, x: contact_sheet(m.module_, x), TypeError, "no clusters"),
        (lambda m, x: first_layer_filters("model"), ValueError, "'model' param"),
        (lambda m, x: top_images(net(), x[:, 0], "conv1"), ValueError, "X holds rows"),
        (lambda m, x: top_images(net(), "nowhere", "conv1"), ValueError, "no folder"),
    ],
)
def test_errors(model, images, call, error, words):
    with pytest.raises(error, match=words):
        call(model, images)


def test_rows_are_not_images(rows_model, images):
    rows = images.reshape(N, -1)
    with pytest.raises(ValueError, match="Set image_shape"):
        maximal_images(rows_model, "trunk.0")
    for call in (
        lambda: top_images(rows_model, rows, "trunk.0"),
        lambda: contact_sheet(rows_model, rows),
    ):
        with pytest.raises(ValueError, match="X holds rows of 64 values"):
            call()


def test_an_unfitted_model(images):
    unfitted = DeepClusterEstimator()
    for call in (
        lambda: first_layer_filters(unfitted),
        lambda: maximal_images(unfitted, "conv1"),
        lambda: top_images(unfitted, images, "conv1"),
        lambda: contact_sheet(unfitted, images),
    ):
        with pytest.raises(NotFittedError):
            call()
