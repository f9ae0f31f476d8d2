"""All Displays: reference images, readable text and constructors.

To draw the reference images in tests/data/displays again:

    python tests/_plot/test_displays.py

Look at them before you commit them.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.exceptions import NotFittedError

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._plot.layout import select_spaced
from skdeepcluster.evaluation import ContingencyDisplay, TrainingCurvesDisplay
from skdeepcluster.inspection import (
    ContactSheetDisplay,
    EmbeddingDisplay,
    FiltersDisplay,
    TreeDisplay,
)
from skdeepcluster.inspection._sheets import arrange_grid

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")
Text = matplotlib.text.Text

pytestmark = [
    pytest.mark.usefixtures("pyplot"),
    # Quick fits may not converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

DATA = Path(__file__).parents[1] / "data" / "displays"
# Images are compared by their means over blocks of this size, in pixels.
BLOCK_SIZE = 10
# Largest difference of a mean, of 255. The letters of matplotlib 3.10 and 3.11 differ
# by up to 36.
TOLERANCE = 45


def fixed_axes(width, height, n_axes=1):
    """Create axes whose position does not depend on the size of letters."""
    figure = plt.figure(figsize=(width, height))
    left, bottom, right, top = 1 / width, 0.7 / height, 0.1 / width, 0.4 / height
    size = 1 / n_axes - left - right, 1 - bottom - top
    return [figure.add_axes((i / n_axes + left, bottom, *size)) for i in range(n_axes)]


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
    axes = fixed_axes(10, 3, n_axes=3)
    return TrainingCurvesDisplay(history, n_samples=150).plot(axes)


def stripe_images():
    """Return striped images of 4 widths in 5 colors, uint8 (4, 5, 24, 24, 3)."""
    widths = [3, 4, 6, 12]
    patterns = [np.arange(24) // width % 2 for width in widths]
    colors = np.uint8(
        [[90, 90, 90], [250, 60, 60], [60, 250, 60], [60, 60, 250], [240, 240, 60]]
    )
    images = np.array(
        [[pattern * color[:, None] for color in colors] for pattern in patterns]
    )
    images = images.swapaxes(2, 3)[:, :, None].repeat(24, axis=2)
    return images.astype(np.uint8)


def draw_sheet(wrong=False):
    rows = list(stripe_images())
    rows[2] = rows[2][:3]
    if wrong:
        rows[0] = rows[1]
    display = ContactSheetDisplay(
        arrange_grid(rows), clusters=[0, 1, 2, 5], sizes=[1200, 40, 3, 7]
    )
    return display.plot(*fixed_axes(4, 3))


def spiral(wrong=False):
    """Return points of 15 clusters along a spiral, which ends in dense clusters."""
    labels = np.arange(300) // 20
    angle = 9 - labels / 2
    centers = np.stack([np.cos(angle), np.sin(angle)], axis=1) * angle[:, None]
    labels = np.where(labels == 1, 2, labels) if wrong else labels
    noise = np.random.default_rng(0).normal(scale=0.5, size=(300, 2))
    return centers + noise, labels


def draw_map(wrong=False):
    points, labels = spiral(wrong)
    display = EmbeddingDisplay(points, labels, explained_variance_ratio=[0.3, 0.125])
    return display.plot(*fixed_axes(6, 5))


def draw_thumbnails(wrong=False):
    points, labels = spiral()
    rows = select_spaced(points)
    images = stripe_images().reshape(20, 24, 24, 3)[labels[rows]]
    images = images[:, :, ::-1] if wrong else images[:, :18]
    display = EmbeddingDisplay(points, labels, thumbnails=images, thumbnail_rows=rows)
    return display.plot(*fixed_axes(6, 5))


def draw_table(wrong=False):
    table = np.array([[0, 2, 31], [3, 40, 0], [3, 9, 12], [25, 0, 1]])
    table[1, 1] -= 30 * wrong
    display = ContingencyDisplay(
        table, clusters=[0, 1, 2, 3], classes=["bag", "coat", "sandal"]
    )
    return display.plot(*fixed_axes(4, 3))


def draw_filters(wrong=False):
    filters = np.random.default_rng(0).normal(size=(20, 3, 4, 4))
    filters[7] *= -1 if wrong else 1
    return FiltersDisplay(filters).plot(*fixed_axes(4, 3))


def tree_of_leaves(n_leaves, leaves_per_cluster, name="{}"):
    """Return a tree in which each leaf joins all leaves before it."""
    nodes = [0, *range(n_leaves, 2 * n_leaves - 2)]
    clusters = [leaf // leaves_per_cluster for leaf in range(n_leaves)]
    return TreeDisplay(
        [(node, i + 1) for i, node in zip(range(n_leaves - 1), nodes, strict=False)],
        [0.2 + 0.1 * i for i in range(n_leaves - 1)],
        thumbnails=list(stripe_images().reshape(4, 5, 24, 24, 3)[[0] * n_leaves, :4]),
        sizes=[10**i % 9999 for i in range(n_leaves)],
        clusters=clusters,
        labels=[name.format(cluster) for cluster in clusters],
    )


def draw_tree(wrong=False):
    rows = list(stripe_images())
    rows[2] = rows[2][:3]
    display = TreeDisplay(
        [(1, 2), (4, 0), (5, 3)],
        [0.2, 0.5, 1.0],
        thumbnails=rows[::-1] if wrong else rows,
        sizes=[1200, 40, 3, 7],
        clusters=[0, 1, 1, 5],
        labels=["0", "1", "1", "5"],
    )
    (ax,) = fixed_axes(6, 2)
    # Room for the labels at the right.
    ax.set_position([0.02, 0.3, 0.75, 0.6])
    return display.plot(ax)


DRAW_FUNCTIONS = {
    "curves": draw_curves,
    "sheet": draw_sheet,
    "map": draw_map,
    "thumbnails": draw_thumbnails,
    "table": draw_table,
    "filters": draw_filters,
    "tree": draw_tree,
}


def save(display, path):
    # The version of matplotlib in the metadata would change the file.
    display.figure_.savefig(path, dpi=60, metadata={"Software": None})


def difference_to_reference(display, name, folder):
    paths = folder / f"{name}.png", DATA / f"{name}.png"
    save(display, paths[0])
    drawn, reference = (
        np.asarray(Image.open(path).convert("RGB").reduce(BLOCK_SIZE), int)
        for path in paths
    )
    return np.abs(drawn - reference).max()


@pytest.mark.parametrize("name", DRAW_FUNCTIONS)
def test_display_equals_the_reference_image(name, tmp_path):
    display = DRAW_FUNCTIONS[name]()
    assert difference_to_reference(display, name, tmp_path) <= TOLERANCE


@pytest.mark.parametrize("name", DRAW_FUNCTIONS)
def test_tolerance_detects_a_wrong_display(name, tmp_path):
    display = DRAW_FUNCTIONS[name](wrong=True)
    assert difference_to_reference(display, name, tmp_path) > TOLERANCE


def curves_of_rounds(n_rounds):
    record = {
        "loss": 0.9,
        "nmi_previous": 0.9,
        "nmi_y": 0.9,
        "largest_cluster": 0.9,
        "smallest_cluster": 0.9,
        "n_pseudo_labels": 9,
    }
    history = [{**record, "round": i + 1} for i in range(n_rounds)]
    return TrainingCurvesDisplay(history, n_samples=60)


# An ellipsis is drawn for long names, and a dollar sign is not the start of a formula.
LONG_NAMES = ["0", "boots with a heel of $5 and more", "a\nb"]


def sheet_of_rows(n_rows, sizes, cluster_names=None):
    sheet = arrange_grid([stripe_images()[0]] * n_rows)
    return ContactSheetDisplay(
        sheet, clusters=range(n_rows), sizes=sizes, cluster_names=cluster_names
    )


def map_of_clusters(n_clusters, cluster_names=None):
    """Return a map of clusters with nearly the same median."""
    points = np.random.default_rng(0).normal(size=(1000, 2))
    return EmbeddingDisplay(
        points,
        np.arange(1000) % n_clusters,
        explained_variance_ratio=[1, 0],
        cluster_names=cluster_names,
    )


def table_of_size(n_clusters, n_classes, class_name="{}"):
    table = np.random.default_rng(0).integers(10_000, size=(n_clusters, n_classes))
    classes = [class_name.format(i) for i in range(n_classes)]
    return ContingencyDisplay(table, clusters=range(n_clusters), classes=classes)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: curves_of_rounds(1), id="1 round"),
        pytest.param(lambda: curves_of_rounds(200), id="200 rounds"),
        pytest.param(lambda: sheet_of_rows(2, sizes=[1, 1_000_000]), id="2 rows"),
        pytest.param(lambda: sheet_of_rows(30, sizes=[1000] * 30), id="30 rows"),
        pytest.param(
            lambda: sheet_of_rows(3, sizes=[1, 2, 3], cluster_names=LONG_NAMES),
            id="rows with names",
        ),
        pytest.param(lambda: map_of_clusters(2), id="2 clusters"),
        pytest.param(
            lambda: map_of_clusters(3, cluster_names=LONG_NAMES), id="named clusters"
        ),
        pytest.param(lambda: map_of_clusters(30), id="30 clusters"),
        pytest.param(lambda: table_of_size(2, 2), id="2 x 2"),
        pytest.param(lambda: table_of_size(30, 10), id="30 x 10"),
        pytest.param(lambda: table_of_size(2, 100), id="2 x 100"),
        pytest.param(lambda: table_of_size(100, 100), id="100 x 100"),
        pytest.param(
            lambda: table_of_size(8, 10, "class of number {}"), id="long names"
        ),
        pytest.param(lambda: tree_of_leaves(1, 1), id="1 leaf"),
        pytest.param(lambda: tree_of_leaves(2, 1), id="2 leaves"),
        pytest.param(lambda: tree_of_leaves(60, 5), id="60 leaves"),
        pytest.param(
            lambda: tree_of_leaves(3, 1, name="a very long name {}"), id="named leaves"
        ),
        pytest.param(lambda: FiltersDisplay(np.ones((1, 1, 3, 3))), id="1 filter"),
        pytest.param(lambda: FiltersDisplay(np.ones((256, 2, 3, 3))), id="256 filters"),
    ],
)
def test_text_is_inside_the_figure_and_does_not_overlap(make):
    figure = make().plot().figure_
    figure.draw_without_rendering()
    boxes = [box.extents for ax in figure.axes for box in visible_text_boxes(ax)]
    low, high = np.array(boxes)[:, :2] + 1, np.array(boxes)[:, 2:] - 1
    assert len(boxes) > 1
    assert (low >= 0).all()
    assert (high <= figure.bbox.size).all()
    overlaps = ((low[:, None] < high) & (low < high[:, None])).all(axis=2)
    # Each box overlaps itself.
    assert overlaps.sum() == len(boxes)


# Each would be an invalid formula.
FORMULAS = [r"$\frac{$", r"$_$ 5$", r"a$\x{$b"]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            lambda: sheet_of_rows(3, sizes=[1, 2, 3], cluster_names=FORMULAS),
            id="sheet",
        ),
        pytest.param(lambda: map_of_clusters(3, cluster_names=FORMULAS), id="map"),
        pytest.param(lambda: tree_of_leaves(3, 1, name=r"$\frac{{$ {}"), id="tree"),
        pytest.param(lambda: table_of_size(3, 3, r"$\frac{{$ {}"), id="classes"),
        pytest.param(lambda: table_of_size(3, 100, r"$\frac{{$ {}"), id="100 classes"),
        pytest.param(
            lambda: ContingencyDisplay(
                np.eye(3, dtype=int), clusters=FORMULAS, classes=FORMULAS
            ),
            id="clusters and classes",
        ),
    ],
)
def test_dollar_signs_in_names_are_no_formulas(make):
    figure = make().plot().figure_
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if "$" in text.get_text()]
    assert texts
    assert not any(text.get_parse_math() for text in texts)


def visible_text_boxes(ax):
    """Yield the box of each visible text of the axes, with its frame."""
    hidden = set()
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        ticks = axis.get_major_ticks()
        outside = [t for t in ticks if not low <= t.get_loc() <= high]
        hidden.update(label for t in outside for label in (t.label1, t.label2))
    for text in ax.findobj(Text):
        if text.get_text() and text.get_visible() and text not in hidden:
            yield (text.get_bbox_patch() or text).get_window_extent()


@pytest.fixture
def constructors(display_model, display_images, display_classes):
    """All constructors with their arguments."""
    labels, rows = display_model.labels_, display_images.reshape(60, -1)
    return {
        TrainingCurvesDisplay.from_estimator: (display_model,),
        TrainingCurvesDisplay.from_history: (display_model.history_,),
        ContactSheetDisplay.from_estimator: (display_model, display_images),
        ContactSheetDisplay.from_predictions: (labels, display_images),
        EmbeddingDisplay.from_estimator: (display_model, display_images),
        EmbeddingDisplay.from_predictions: (rows, labels),
        ContingencyDisplay.from_estimator: (
            display_model,
            display_images,
            display_classes,
        ),
        ContingencyDisplay.from_predictions: (display_classes, labels),
        FiltersDisplay.from_estimator: (display_model,),
        TreeDisplay.from_estimator: (display_model, display_images),
    }


def test_constructors_draw_on_given_axes(constructors):
    for constructor, args in constructors.items():
        if constructor.__self__ is TrainingCurvesDisplay:
            figure, axes = plt.subplots(3, 1)
            display = constructor(*args, axes=axes)
            assert display.axes_.tolist() == axes.tolist()
        else:
            figure, ax = plt.subplots()
            display = constructor(*args, ax=ax)
            assert display.ax_ is ax
        assert type(display) is constructor.__self__
        assert display.figure_ is figure
        assert display.plot() is display
        assert display.figure_ is not figure
        plt.close("all")


def test_missing_matplotlib_is_named(constructors, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    message = r"pip install 'skdeepcluster\[plot\]'"
    for constructor, args in constructors.items():
        with pytest.raises(ImportError, match=message):
            constructor(*args)
    with pytest.raises(ImportError, match=message):
        FiltersDisplay(np.ones((1, 1, 3, 3))).plot()


def test_unfitted_estimator(constructors):
    for constructor, args in constructors.items():
        if constructor.__name__ == "from_estimator":
            with pytest.raises(NotFittedError):
                constructor(DeepClusterEstimator(), *args[1:])


def test_init_only_stores_parameters():
    values = [object() for _ in range(6)]
    display = EmbeddingDisplay(
        values[0],
        values[1],
        explained_variance_ratio=values[2],
        thumbnails=values[3],
        thumbnail_rows=values[4],
        cluster_names=values[5],
    )
    assert list(vars(display)) == [
        "projection",
        "labels",
        "explained_variance_ratio",
        "thumbnails",
        "thumbnail_rows",
        "cluster_names",
    ]
    assert list(vars(display).values()) == values


def test_global_generator_is_not_advanced(display_model, display_images):
    before = np.random.get_state()[1].copy()
    ContactSheetDisplay.from_predictions(display_model.labels_, display_images)
    EmbeddingDisplay.from_estimator(display_model, display_images, thumbnails=True)
    assert_array_equal(np.random.get_state()[1], before)


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    for name, draw in DRAW_FUNCTIONS.items():
        with plt.style.context("default"):
            save(draw(), DATA / f"{name}.png")
