"""Displays: what they draw, of what, and that they look as they did.

    python tests/test_displays.py

draws the pictures in tests/data/displays anew. Look at them before they are committed.
"""

import itertools
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.exceptions import NotFittedError
from torch import nn

from skdeepcluster import (
    ContactSheetDisplay,
    ContingencyDisplay,
    DeepClusterEstimator,
    EmbeddingDisplay,
    FiltersDisplay,
    TrainingCurvesDisplay,
)
from skdeepcluster._plot import layout as layout_module
from skdeepcluster._plot.drawing import COLORS
from skdeepcluster.inspection import contact_sheet, first_layer_filters
from skdeepcluster.inspection._plot import embedding as embedding_module
from skdeepcluster.inspection._sheets import arrange_grid
from skdeepcluster.metrics import clustering_accuracy

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")
to_hex, to_rgb = matplotlib.colors.to_hex, matplotlib.colors.to_rgb
Text = matplotlib.text.Text

# Quick fits may well say that they are.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

DATA = Path(__file__).parent / "data" / "displays"
N = 60
# Largest difference, of 255, between means over blocks of BLOCK x BLOCK pixels. The
# letters of matplotlib 3.10 and 3.11 differ by up to 36.
BLOCK, TOLERANCE = 10, 45


@pytest.fixture(autouse=True)
def figures():
    """Draw in matplotlib's own style, and leave no figure open."""
    with plt.style.context("default"):
        yield
    plt.close("all")


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[0][:N]


@pytest.fixture(scope="module")
def digits(digits_images):
    return digits_images[1][:N]


@pytest.fixture(scope="module")
def model(images, digits):
    params = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0}
    return DeepClusterEstimator(3, on_error="skip", **params).fit(images, digits)


@pytest.fixture
def broken_folder(images, tmp_path):
    """Files of the images, but number 3 is none, and number 4 lacks its end.

    Of the latter this is only known when its pixels are decoded.
    """
    folder = tmp_path / "images"
    folder.mkdir()
    for i, values in enumerate(images):
        Image.fromarray(values).save(folder / f"{i:03d}.png")
    (folder / "003.png").write_text("no image at all")
    (folder / "004.png").unlink()
    Image.fromarray(images[4]).save(folder / "004.jpg")
    content = (folder / "004.jpg").read_bytes()
    (folder / "004.jpg").write_bytes(content[:-20])
    return folder


def axes(width, height, n=1):
    """Axes at a fixed place, whatever the size of letters."""
    figure = plt.figure(figsize=(width, height))
    left, bottom, right, top = 1 / width, 0.7 / height, 0.1 / width, 0.4 / height
    size = 1 / n - left - right, 1 - bottom - top
    return [figure.add_axes((i / n + left, bottom, *size)) for i in range(n)]


def draw_curves(wrong=False):
    nmi_y = [0.3, 0.45, 0.5, 0.3 if wrong else 0.55]
    history = [
        {
            "round": i + 1,
            "loss": 2 / (i + 1),
            "nmi_previous": 0.6 + 0.08 * i,
            "nmi_y": nmi_y[i],
            "n_pseudo_labels": 10,
            "largest_cluster": 40 - 4 * i,
            "smallest_cluster": 2 + i,
        }
        for i in range(4)
    ]
    return TrainingCurvesDisplay(history, n_samples=150).plot(axes(10, 3, 3))


def stripes():
    """Pictures of stripes, of 4 widths in 5 colors: uint8 (4, 5, 24, 24, 3)."""
    widths = [3, 4, 6, 12]
    ups = [np.arange(24) // width % 2 for width in widths]
    colors = np.uint8(
        [[90, 90, 90], [250, 60, 60], [60, 250, 60], [60, 60, 250], [240, 240, 60]]
    )
    pictures = np.array([[up * color[:, None] for color in colors] for up in ups])
    pictures = pictures.swapaxes(2, 3)[:, :, None].repeat(24, axis=2)
    return pictures.astype(np.uint8)


def draw_sheet(wrong=False):
    rows = list(stripes())
    rows[2] = rows[2][:3]
    if wrong:
        rows[0] = rows[1]
    params = {"clusters": [0, 1, 2, 5], "sizes": [1200, 40, 3, 7]}
    return ContactSheetDisplay(arrange_grid(rows), **params).plot(*axes(4, 3))


def spiral(wrong=False):
    """Points of 15 clusters along a spiral, the last of which are close together."""
    labels = np.arange(300) // 20
    turn = 9 - labels / 2
    at = np.stack([np.cos(turn), np.sin(turn)], axis=1) * turn[:, None]
    labels = np.where(labels == 1, 2, labels) if wrong else labels
    return at + np.random.default_rng(0).normal(scale=0.5, size=(300, 2)), labels


def draw_map(wrong=False):
    share = [0.3, 0.125]
    return EmbeddingDisplay(*spiral(wrong), explained_variance_ratio=share).plot(
        *axes(6, 5)
    )


def draw_thumbnails(wrong=False):
    points, labels = spiral()
    rows = layout_module.select_spaced(points)
    pictures = stripes().reshape(20, 24, 24, 3)[labels[rows]]
    pictures = pictures[:, :, ::-1] if wrong else pictures[:, :18]
    params = {"pictures": pictures, "pictured": rows}
    return EmbeddingDisplay(points, labels, **params).plot(*axes(6, 5))


TABLE = np.array([[0, 2, 31], [3, 40, 0], [3, 9, 12], [25, 0, 1]])


def draw_table(wrong=False):
    table = TABLE.copy()
    table[1, 1] -= 30 * wrong
    params = {"clusters": [0, 1, 2, 3], "classes": ["bag", "coat", "sandal"]}
    return ContingencyDisplay(table, **params).plot(*axes(4, 3))


def draw_filters(wrong=False):
    filters = np.random.default_rng(0).normal(size=(20, 3, 4, 4))
    filters[7] *= -1 if wrong else 1
    return FiltersDisplay(filters).plot(*axes(4, 3))


PICTURES = {
    "curves": draw_curves,
    "sheet": draw_sheet,
    "map": draw_map,
    "thumbnails": draw_thumbnails,
    "table": draw_table,
    "filters": draw_filters,
}


def save(display, path):
    display.figure_.savefig(path, dpi=60, metadata={"Software": None})


def difference(path, other):
    one, two = (Image.open(p).convert("RGB").reduce(BLOCK) for p in (path, other))
    return np.abs(np.asarray(one, int) - np.asarray(two, int)).max()


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name, tmp_path):
    drawn = tmp_path / f"{name}.png"
    save(PICTURES[name](), drawn)
    assert difference(drawn, DATA / f"{name}.png") <= TOLERANCE


@pytest.mark.parametrize("name", PICTURES)
def test_a_wrong_picture_is_noticed(name, tmp_path):
    drawn = tmp_path / f"{name}.png"
    save(PICTURES[name](wrong=True), drawn)
    assert difference(drawn, DATA / f"{name}.png") > TOLERANCE


def long_history(n):
    names = ("loss", "nmi_previous", "nmi_y", "largest_cluster", "smallest_cluster")
    values = dict.fromkeys(names, 0.9) | {"n_pseudo_labels": 9}
    return [values | {"round": i + 1} for i in range(n)]


def random_table(n_clusters, n_classes, name="{}"):
    table = np.random.default_rng(0).integers(10_000, size=(n_clusters, n_classes))
    classes = [name.format(i) for i in range(n_classes)]
    return ContingencyDisplay(table, clusters=range(n_clusters), classes=classes)


def many_clusters(n):
    """All around one place."""
    points = np.random.default_rng(0).normal(size=(1000, 2))
    return EmbeddingDisplay(
        points, np.arange(1000) % n, explained_variance_ratio=[1, 0]
    )


LARGE = {
    "1 round": lambda: TrainingCurvesDisplay(long_history(1), n_samples=60),
    "200 rounds": lambda: TrainingCurvesDisplay(long_history(200), n_samples=60),
    "2 rows": lambda: ContactSheetDisplay(
        arrange_grid([stripes()[0]] * 2), clusters=[0, 1], sizes=[1, 1_000_000]
    ),
    "30 rows": lambda: ContactSheetDisplay(
        arrange_grid([stripes()[0]] * 30), clusters=range(30), sizes=[1000] * 30
    ),
    "2 clusters": lambda: many_clusters(2),
    "30 clusters": lambda: many_clusters(30),
    "2 x 2": lambda: random_table(2, 2),
    "30 x 10": lambda: random_table(30, 10),
    "2 x 100": lambda: random_table(2, 100),
    "100 x 100": lambda: random_table(100, 100),
    "long names": lambda: random_table(8, 10, "class of number {}"),
    "1 filter": lambda: FiltersDisplay(np.ones((1, 1, 3, 3))),
    "256 filters": lambda: FiltersDisplay(np.ones((256, 2, 3, 3))),
}


def written(ax):
    """Boxes of all that can be read in axes and beside them."""
    hidden = set()
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        ticks = axis.get_major_ticks()
        hidden.update(t.label1 for t in ticks if not low <= t.get_loc() <= high)
        hidden.update(t.label2 for t in ticks)
    for text in ax.findobj(Text):
        if text.get_text() and text.get_visible() and text not in hidden:
            yield (text.get_bbox_patch() or text).get_window_extent()


@pytest.mark.parametrize("name", LARGE)
def test_all_can_be_read(name):
    figure = LARGE[name]().plot().figure_
    figure.draw_without_rendering()
    boxes = [box.extents for ax in figure.axes for box in written(ax)]
    low, high = np.array(boxes)[:, :2] + 1, np.array(boxes)[:, 2:] - 1
    assert len(boxes) > 1
    assert (low >= 0).all()
    assert (high <= figure.bbox.size).all()
    overlap = ((low[:, None] < high) & (low < high[:, None])).all(axis=2)
    assert overlap.sum() == len(boxes)  # each with itself


def every_way(model, images, digits):
    """Each way to a display, as a function of where it is drawn."""
    labels, pixels = model.labels_, images.reshape(N, -1)
    return {
        TrainingCurvesDisplay.from_estimator: (model,),
        TrainingCurvesDisplay.from_history: (model.history_,),
        ContactSheetDisplay.from_estimator: (model, images),
        ContactSheetDisplay.from_predictions: (labels, images),
        EmbeddingDisplay.from_estimator: (model, images),
        EmbeddingDisplay.from_predictions: (pixels, labels),
        ContingencyDisplay.from_estimator: (model, images, digits),
        ContingencyDisplay.from_predictions: (digits, labels),
        FiltersDisplay.from_estimator: (model,),
    }


def test_axes_may_be_given(model, images, digits):
    for make, args in every_way(model, images, digits).items():
        if make.__self__ is TrainingCurvesDisplay:
            figure, axes = plt.subplots(3, 1)
            display = make(*args, axes=axes)
            assert display.axes_.tolist() == axes.tolist()
        else:
            figure, ax = plt.subplots()
            display = make(*args, ax=ax)
            assert display.ax_ is ax
        assert type(display) is make.__self__
        assert display.figure_ is figure
        assert display.plot() is display
        assert display.figure_ is not figure
        plt.close("all")


def test_matplotlib_is_named_where_it_is_missing(model, images, digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    words = r"pip install 'skdeepcluster\[plot\]'"
    for make, args in every_way(model, images, digits).items():
        with pytest.raises(ImportError, match=words):
            make(*args)
    with pytest.raises(ImportError, match=words):
        FiltersDisplay(np.ones((1, 1, 3, 3))).plot()


def test_an_unfitted_estimator(images, digits):
    unfitted = DeepClusterEstimator()
    for make, args in every_way_of_estimators(images, digits).items():
        with pytest.raises(NotFittedError):
            make(unfitted, *args)


def every_way_of_estimators(images, digits):
    return {
        TrainingCurvesDisplay.from_estimator: (),
        ContactSheetDisplay.from_estimator: (images,),
        EmbeddingDisplay.from_estimator: (images,),
        ContingencyDisplay.from_estimator: (images, digits),
        FiltersDisplay.from_estimator: (),
    }


def test_init_only_stores():
    things = [object() for _ in range(5)]
    names = ("explained_variance_ratio", "pictures", "pictured")
    display = EmbeddingDisplay(
        things[0], things[1], **dict(zip(names, things[2:], strict=True))
    )
    assert list(vars(display)) == ["projection", "labels", *names]
    assert list(vars(display).values()) == things


def test_the_global_generator_is_left_alone(model, images):
    before = np.random.get_state()[1].copy()
    ContactSheetDisplay.from_predictions(model.labels_, images)
    EmbeddingDisplay.from_estimator(model, images, thumbnails=True)
    assert_array_equal(np.random.get_state()[1], before)


def lines(ax):
    return {line.get_label(): line.get_ydata().tolist() for line in ax.lines}


def test_curves_are_those_of_the_history(model):
    display = TrainingCurvesDisplay.from_estimator(model)
    (record,) = model.history_
    loss, nmi, sizes = display.axes_
    assert loss.lines[0].get_ydata() == [record["loss"]]
    assert lines(nmi) == {
        "to the round before": [record["nmi_previous"]],
        "to y": [record["nmi_y"]],
    }
    assert lines(sizes) == {
        "largest": [record["largest_cluster"]],
        "mean": [N / record["n_pseudo_labels"]],
        "smallest": [record["smallest_cluster"]],
    }


def test_curves_without_classes_and_number_of_images():
    history = long_history(2)
    for record in history:
        del record["nmi_y"]
    _, nmi, sizes = TrainingCurvesDisplay.from_history(history).axes_
    assert list(lines(nmi)) == ["to the round before"]
    assert list(lines(sizes)) == ["largest", "smallest"]
    # As after `warm_start` with classes.
    history[1]["nmi_y"] = 0.5
    _, nmi, _ = TrainingCurvesDisplay.from_history(history).axes_
    assert_array_equal(lines(nmi)["to y"], [np.nan, 0.5])


@pytest.mark.parametrize("n", [1, 2, 7, 200])
def test_rounds_are_whole_numbers(n):
    ax = TrainingCurvesDisplay.from_history(long_history(n)).axes_[0]
    low, high = ax.get_xlim()
    ticks = [tick for tick in ax.get_xticks() if low <= tick <= high]
    assert ticks
    assert all(tick in range(1, n + 1) for tick in ticks)


@pytest.mark.parametrize("least", [0, 1, 30, 39])
def test_sizes_have_ticks(least):
    history = [record | {"smallest_cluster": least} for record in long_history(3)]
    history = [record | {"largest_cluster": 40} for record in history]
    ax = TrainingCurvesDisplay.from_history(history).axes_[2]
    low, high = ax.get_ylim()
    assert any(low <= tick <= high for tick in ax.get_yticks())


def test_skipped_images_do_not_count_for_the_mean(broken_folder):
    params = {"on_error": "skip", "max_iter": 1, "epochs_per_iter": 1}
    model = DeepClusterEstimator(2, **params, n_pseudo_labels=2, random_state=0)
    with pytest.warns(UserWarning, match="2 of 60 images cannot be read"):
        model.fit(broken_folder)
    assert lines(TrainingCurvesDisplay.from_estimator(model).axes_[2])["mean"] == [29]


def row_names(ax):
    return [text.get_text() for text in ax.get_yticklabels()]


@pytest.mark.parametrize("which", ["nearest", "farthest", "random"])
def test_contact_sheet(model, images, which):
    params = {"which": which, "n_images": 4, "size": 16, "random_state": 0}
    display = ContactSheetDisplay.from_estimator(model, images, **params)
    assert_array_equal(display.sheet, contact_sheet(model, images, **params))
    assert_array_equal(display.ax_.images[0].get_array(), display.sheet)
    sizes = np.bincount(model.labels_)
    assert row_names(display.ax_) == [f"{i}  ({n})" for i, n in enumerate(sizes)]
    # Each name is in the middle of its row of 2 + 16 pixels.
    assert_allclose(display.ax_.get_yticks(), [9.5, 27.5, 45.5])


def test_contact_sheet_of_labels_and_broken_files(images, broken_folder):
    labels = np.arange(N) % 2 + 4
    labels[0] = -1
    params = {"n_images": 40, "size": 8, "random_state": 0}
    with pytest.warns(UserWarning, match="2 of 60 images cannot be read"):
        display = ContactSheetDisplay.from_predictions(labels, broken_folder, **params)
    assert display.clusters == [4, 5]
    cells = display.sheet[2:, 2:].reshape(2, 10, -1, 10, 3).swapaxes(1, 2)
    shown = cells[:, :, :8, :8, 0].reshape(-1, 64).tolist()
    expected = images[[i for i in range(N) if i not in (0, 3, 4)]].reshape(-1, 64)
    assert sorted(row for row in shown if min(row) < 255) == sorted(expected.tolist())


def test_contact_sheet_of_a_broken_folder(model, broken_folder):
    with pytest.warns(UserWarning, match="2 of 60 images cannot be read"):
        display = ContactSheetDisplay.from_estimator(model, broken_folder)
    assert sum(display.sizes) == N - 2


def test_map_of_an_estimator(model, images):
    display = EmbeddingDisplay.from_estimator(model, images)
    embedding = model.transform(images)
    _, _, axes = np.linalg.svd(embedding - embedding.mean(axis=0), full_matrices=False)
    expected = (embedding - embedding.mean(axis=0)) @ axes[:2].T
    assert_allclose(np.abs(display.projection), np.abs(expected), atol=1e-3)
    shares = expected.var(axis=0) / embedding.var(axis=0).sum()
    assert_allclose(display.explained_variance_ratio, shares, rtol=1e-3)
    assert f"{shares[0]:.0%} of the variance" in display.ax_.get_xlabel()
    assert_array_equal(display.labels, model.labels_)
    assert [text.get_text() for text in display.text_] == ["0", "1", "2"]
    drawn = np.concatenate([points.get_offsets() for points in display.ax_.collections])
    assert_allclose(sorted(drawn.tolist()), sorted(display.projection.tolist()))


def test_map_of_a_projection(model, images, broken_folder):
    points = np.random.default_rng(0).normal(size=(N, 2))
    points[7] = np.nan
    with pytest.warns(UserWarning, match="2 of 60 images cannot be read"):
        display = EmbeddingDisplay.from_estimator(
            model, broken_folder, projection=points, thumbnails=True
        )
    left = [i for i in range(N) if i not in (3, 4, 7)]
    assert_array_equal(display.projection, points[left])
    assert_array_equal(display.labels, model.labels_[left])
    assert display.ax_.get_xlabel() == ""
    for picture, row in zip(display.pictures, display.pictured, strict=True):
        assert_array_equal(picture[::4, ::4, 0], images[left][row])


def test_map_without_points_that_have_no_place_or_cluster():
    embedding = np.random.default_rng(0).normal(size=(30, 5))
    embedding[2, 3], embedding[5, 0] = np.nan, np.inf
    labels = np.arange(30) % 3
    labels[6:9] = -1
    display = EmbeddingDisplay.from_predictions(embedding, labels)
    left = [i for i in range(30) if i not in (2, 5, 6, 7, 8)]
    assert_array_equal(display.labels, labels[left])
    assert display.projection.shape == (25, 2)
    assert np.isfinite(display.projection).all()


def test_map_with_broken_thumbnails(images, broken_folder):
    points = 100.0 * np.stack(np.divmod(np.arange(N), 8), axis=1)
    with pytest.warns(UserWarning, match="2 of 60 images cannot be read"):
        display = EmbeddingDisplay.from_predictions(
            points, np.zeros(N), images=broken_folder
        )
    assert_array_equal(display.projection, np.delete(points, 3, axis=0))
    assert 3 not in display.pictured
    assert len(display.pictured) == N - 2


def test_thumbnails_are_framed_and_apart():
    display = draw_thumbnails()
    assert not display.ax_.collections
    boxes = []
    for image, row in zip(display.ax_.images, display.pictured, strict=True):
        left, right, low, high = image.get_extent()
        middle = (left + right) / 2, (low + high) / 2
        assert_allclose(middle, display.projection[row])
        boxes.append((left, right, low, high))
        values = image.get_array()
        assert (right - left) / (high - low) == pytest.approx(values.shape[1] / 22)
        edge = display.text_[display.labels[row]].get_bbox_patch().get_edgecolor()
        assert_allclose(values[0, 0] / 255, edge[:3], atol=1 / 255)
    assert len(boxes) > 20
    for one, two in itertools.combinations(np.array(boxes), 2):
        apart = np.maximum(one[::2], two[::2]) >= np.minimum(one[1::2], two[1::2])
        assert apart.any()


def test_numbers_are_at_medians_and_give_way():
    medians = np.array([[0.0, 0], [50, 30], [50, 30], [100, 1]])
    moved = layout_module.spread_labels(medians, np.array([4.0, 2]))
    assert_allclose(moved[[0, 3]], medians[[0, 3]], atol=0.05)
    assert np.abs((moved[1] - moved[2]) / [4, 2]).max() >= 0.99
    assert_allclose(moved[1:3], medians[1:3], atol=4)


def test_clusters_look_different():
    display = EmbeddingDisplay(*(a[:30] for a in (np.eye(40, 2), np.arange(40)))).plot()
    styles = {
        (to_hex(points.get_facecolor()[0]), points.get_paths()[0].vertices.tobytes())
        for points in display.ax_.collections
    }
    assert len(styles) == 30


def test_colors_are_told_apart_by_the_color_blind():
    # Machado, Oliveira and Fernandes (2009), full protanopia and deuteranopia.
    seen = np.array(
        [
            np.eye(3),
            [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
            [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        ]
    )
    colors = np.array([to_rgb(color) for color in COLORS])
    for kind in seen:
        for one, two in itertools.combinations(colors @ kind.T, 2):
            assert np.linalg.norm(one - two) > 0.15


def test_a_sample_of_many_points_is_drawn(monkeypatch):
    monkeypatch.setattr(layout_module, "MOST_POINTS", 100)
    display = many_clusters(3)
    sizes = [len(c.get_offsets()) for c in display.plot().ax_.collections]
    assert sum(sizes) == 100
    assert len(display.projection) == 1000
    assert all(points.get_rasterized() for points in display.ax_.collections)


def test_many_clusters_have_no_numbers(monkeypatch):
    monkeypatch.setattr(embedding_module, "MOST_NUMBERS", 5)
    assert len(many_clusters(5).plot().text_) == 5
    assert many_clusters(6).plot().text_ == []


def test_map_of_one_place():
    labels, images = np.zeros(5), np.zeros((5, 8, 8), np.uint8)
    display = EmbeddingDisplay.from_predictions(np.ones((5, 4)), labels, images=images)
    assert_allclose(display.projection, 0, atol=1e-12)
    assert display.ax_.get_xlabel() == "principal component 1, 0% of the variance"
    assert len(display.pictures) == 1
    display.figure_.draw_without_rendering()


@pytest.mark.parametrize("shape", [(4, 3), (5, 1), (5, 0, 2)])
def test_map_of_another_shape(model, images, shape):
    with pytest.raises(ValueError, match=r"embedding holds|at least 2|0 feature|dim 3"):
        EmbeddingDisplay.from_predictions(np.ones(shape), np.zeros(5))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, x: {"embedding": x, "labels": np.full(N, -1)}, "nothing to draw"),
        (lambda m, x: {"embedding": x, "labels": np.eye(N)}, "labels has shape"),
        (
            lambda m, x: {"embedding": x, "labels": m.labels_, "images": x[:5, None]},
            "images holds 5 images, but labels 60",
        ),
        (lambda m, x: {"estimator": m, "projection": x}, "projection has 64 columns"),
        (lambda m, x: {"estimator": m, "projection": x[:9, :2]}, "9 rows for 60"),
        (lambda m, x: {"estimator": m.module_}, "'estimator' parameter"),
    ],
)
def test_wrong_maps(model, images, call, words):
    given = call(model, images.reshape(N, -1).astype(float))
    if "images" in given:
        given["images"] = images[:5]
    way = EmbeddingDisplay.from_predictions
    if "estimator" in given:
        way, given["X"] = EmbeddingDisplay.from_estimator, images
    with pytest.raises(ValueError, match=words):
        way(**given)


def test_map_of_rows(images):
    rows = images.reshape(N, -1)
    params = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0}
    model = DeepClusterEstimator(2, **params).fit(rows)
    assert len(EmbeddingDisplay.from_estimator(model, rows).labels) == N
    with pytest.raises(ValueError, match="X holds rows of 64 values"):
        EmbeddingDisplay.from_estimator(model, rows, thumbnails=True)


def shown_table(display):
    """Numbers that are written, by the names of their row and column."""
    rows = row_names(display.ax_)
    columns = [text.get_text() for text in display.ax_.get_xticklabels()]
    return {
        (rows[round(y)], columns[round(x)]): int(text.get_text())
        for text in display.text_
        for x, y in [text.get_position()]
    }


def test_table_of_an_estimator(model, images, digits):
    display = ContingencyDisplay.from_estimator(model, images, digits)
    pairs = zip(model.labels_, digits, strict=True)
    counts = Counter((str(cluster), str(digit)) for cluster, digit in pairs)
    assert shown_table(display) == counts
    assert_array_equal(
        display.ax_.images[0].get_array(), display.contingency[display.order_]
    )


def test_table_of_a_broken_folder(model, digits, broken_folder):
    with pytest.warns(UserWarning, match="2 of 60 images cannot be read"):
        display = ContingencyDisplay.from_estimator(model, broken_folder, digits)
    assert sum(shown_table(display).values()) == N - 2


def test_matched_clusters_are_the_diagonal():
    rng = np.random.default_rng(0)
    classes = rng.integers(8, size=500)
    noise = rng.integers(8, size=500)
    labels = rng.permutation(8)[np.where(rng.random(500) < 0.6, classes, noise)]
    display = ContingencyDisplay.from_predictions(classes, labels)
    table = display.contingency[display.order_]
    assert np.trace(table) / 500 == pytest.approx(clustering_accuracy(classes, labels))


def test_further_clusters_are_below_the_matched_one():
    table = np.array([[0, 9], [3, 2], [8, 0], [0, 1], [1, 7]])
    display = ContingencyDisplay(table, clusters=list("ABCDE"), classes=[0, 1]).plot()
    assert row_names(display.ax_) == ["C", "B", "A", "E", "D"]
    # A and B have most images of one class, which is left to B for more in all.
    table = np.array([[10, 9], [9, 0]])
    display = ContingencyDisplay(table, clusters=list("AB"), classes=[0, 1]).plot()
    assert row_names(display.ax_) == ["B", "A"]
    table = np.array([[0, 0, 0, 9], [0, 5, 0, 0]])
    display = ContingencyDisplay(table, clusters=list("AB"), classes=range(4)).plot()
    assert row_names(display.ax_) == ["B", "A"]


def luminance(color):
    """Of a color as WCAG has it, from 0 to 1."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_numbers_contrast_with_their_cells():
    table = np.arange(1, 101).reshape(10, 10)
    names = {"clusters": range(10), "classes": range(10)}
    display = ContingencyDisplay(table, **names).plot()
    image = display.ax_.images[0]
    assert len(display.text_) == 100
    for text in display.text_:
        cell = luminance(image.cmap(image.norm(int(text.get_text())))[:3])
        dark, light = sorted([cell, luminance(text.get_color())])
        assert (light + 0.05) / (dark + 0.05) > 4.5


def test_numbers_that_could_not_be_read_are_left_out():
    display = random_table(100, 100).plot()
    assert display.text_ == []
    assert [ax.get_ylabel() for ax in display.figure_.axes] == ["cluster", "images"]
    assert len(random_table(30, 10).plot().figure_.axes) == 1


@pytest.mark.parametrize("labels", [[0, 1], [-1, -1, -1]])
def test_wrong_tables(labels):
    with pytest.raises(ValueError, match="labels"):
        ContingencyDisplay.from_predictions([0, 1, 1], labels)


def pixel(display, row, column):
    """Color in the grid at a place within a picture, from 0 to 1 each."""
    sheet = display.ax_.images[0].get_array()
    assert sheet.dtype == np.uint8
    return sheet[row, column].tolist()


def test_filters_in_color():
    filters = np.zeros((9, 3, 3, 3))
    filters[0, :, 0, 0] = 2, -2, 0
    filters[8, :, 2, 2] = 0, 0, 1e-9
    display = FiltersDisplay(filters).plot()
    # 2 white pixels around the grid and around each filter, of 3 x 11 pixels a side.
    step = 2 + 2 + 33 + 2
    assert pixel(display, 4, 4) == [255, 0, 128]
    assert pixel(display, 20, 20) == [128, 128, 128]
    assert pixel(display, 3, 20) == [255, 255, 255]
    assert pixel(display, step + 4 + 32, 4 + 32) == [128, 128, 255]
    assert pixel(display, step + 20, step + 20) == [255, 255, 255]
    assert display.ax_.images[0].get_array().shape[:2] == (2 + 2 * step, 2 + 8 * step)
    assert row_names(display.ax_) == ["0", "8"]
    assert_allclose(display.ax_.get_yticks(), [2 + 18, 2 + 18 + step])


def test_filters_in_gray_have_a_part_for_each_channel():
    filters = np.zeros((1, 2, 3, 3))
    filters[0, 0], filters[0, 1] = 1, -0.5
    display = FiltersDisplay(filters).plot()
    assert pixel(display, 20, 4) == [255] * 3
    assert pixel(display, 20, 4 + 33) == [255] * 3
    assert pixel(display, 20, 4 + 34) == [64] * 3
    assert pixel(display, 20, 4 + 34 + 32) == [64] * 3


def test_filters_of_models(model):
    display = FiltersDisplay.from_estimator(model)
    assert_array_equal(display.filters, first_layer_filters(model))
    assert row_names(display.ax_) == ["0", "8", "16", "24"]
    display = FiltersDisplay.from_estimator(nn.Conv2d(3, 96, 11))
    assert row_names(display.ax_) == ["0", "16", "32", "48", "64", "80"]
    with pytest.raises(ValueError, match="has no convolution"):
        FiltersDisplay.from_estimator(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, x: TrainingCurvesDisplay.from_history([]), "history is empty"),
        (
            lambda m, x: TrainingCurvesDisplay.from_estimator(m, axes=plt.gca()),
            "axes holds 1 Axes, but should hold 3",
        ),
        (lambda m, x: TrainingCurvesDisplay.from_estimator(m.module_), "'estimator'"),
        (lambda m, x: ContactSheetDisplay.from_estimator(m, x, which="best"), "which"),
        (lambda m, x: ContactSheetDisplay.from_estimator(m, x, size=0), "size"),
        (lambda m, x: ContactSheetDisplay.from_estimator(m.labels_, x), "'estimator'"),
        (lambda m, x: ContactSheetDisplay.from_predictions([0], x), r"shape \(60,\)"),
        (lambda m, x: FiltersDisplay.from_estimator("model"), "'model' parameter"),
    ],
)
def test_errors(model, images, call, words):
    with pytest.raises(ValueError, match=words):
        call(model, images)


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    for name, drawn_as in PICTURES.items():
        with plt.style.context("default"):
            save(drawn_as(), DATA / f"{name}.png")
