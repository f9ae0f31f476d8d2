"""Displays of training curves and of contingency tables."""

from collections import Counter

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.cluster import KMeans

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.evaluation import ContingencyDisplay, TrainingCurvesDisplay
from skdeepcluster.metrics import clustering_accuracy

pytestmark = [
    pytest.mark.usefixtures("pyplot"),
    # Quick fits may not converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


def make_history(n_rounds, nmi_y=True, smallest_cluster=0.9, largest_cluster=0.9):
    record = {
        "loss": 0.9,
        "nmi_previous": 0.9,
        "nmi_y": 0.9,
        "largest_cluster": largest_cluster,
        "smallest_cluster": smallest_cluster,
        "n_pseudo_labels": 9,
    }
    if not nmi_y:
        del record["nmi_y"]
    return [{**record, "round": i + 1} for i in range(n_rounds)]


def curves(ax):
    return {line.get_label(): line.get_ydata().tolist() for line in ax.lines}


def row_labels(ax):
    return [text.get_text() for text in ax.get_yticklabels()]


def drawn_counts(display):
    """Return the numbers in the cells by their row and column names."""
    rows = row_labels(display.ax_)
    columns = [text.get_text() for text in display.ax_.get_xticklabels()]
    return {
        (rows[round(y)], columns[round(x)]): int(text.get_text())
        for text in display.text_
        for x, y in [text.get_position()]
    }


def random_table(n_clusters, n_classes):
    table = np.random.default_rng(0).integers(10_000, size=(n_clusters, n_classes))
    return ContingencyDisplay(
        table, clusters=range(n_clusters), classes=range(n_classes)
    )


def luminance(color):
    """Return the relative luminance of a color as WCAG defines it, from 0 to 1."""
    rgb = np.array(color[:3])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_training_curves_equal_the_history(display_model):
    display = TrainingCurvesDisplay.from_estimator(display_model)
    (record,) = display_model.history_
    loss_ax, nmi_ax, sizes_ax = display.axes_
    assert loss_ax.lines[0].get_ydata() == [record["loss"]]
    assert curves(nmi_ax) == {
        "to the previous round": [record["nmi_previous"]],
        "to y": [record["nmi_y"]],
    }
    assert curves(sizes_ax) == {
        "largest": [record["largest_cluster"]],
        "mean": [60 / record["n_pseudo_labels"]],
        "smallest": [record["smallest_cluster"]],
    }


def test_training_curves_without_classes_and_n_samples():
    history = make_history(2, nmi_y=False)
    _, nmi_ax, sizes_ax = TrainingCurvesDisplay.from_history(history).axes_
    assert list(curves(nmi_ax)) == ["to the previous round"]
    assert list(curves(sizes_ax)) == ["largest", "smallest"]


def test_training_curves_of_a_data_frame():
    pd = pytest.importorskip("pandas")
    history = make_history(2)
    expected = TrainingCurvesDisplay.from_history(history).axes_[0]
    ax = TrainingCurvesDisplay.from_history(pd.DataFrame(history)).axes_[0]
    assert_array_equal(ax.lines[0].get_ydata(), expected.lines[0].get_ydata())


def test_training_curves_with_classes_in_some_rounds():
    # A warm start may add classes.
    history = make_history(2, nmi_y=False)
    history[1]["nmi_y"] = 0.5
    _, nmi_ax, _ = TrainingCurvesDisplay.from_history(history).axes_
    assert_array_equal(curves(nmi_ax)["to y"], [np.nan, 0.5])


@pytest.mark.parametrize("n_rounds", [1, 2, 7, 200])
def test_round_ticks_are_integers(n_rounds):
    ax = TrainingCurvesDisplay.from_history(make_history(n_rounds)).axes_[0]
    low, high = ax.get_xlim()
    ticks = [tick for tick in ax.get_xticks() if low <= tick <= high]
    assert ticks
    assert all(tick in range(1, n_rounds + 1) for tick in ticks)


@pytest.mark.parametrize("smallest", [0, 1, 30, 39])
def test_size_axis_has_ticks(smallest):
    history = make_history(3, smallest_cluster=smallest, largest_cluster=40)
    ax = TrainingCurvesDisplay.from_history(history).axes_[2]
    low, high = ax.get_ylim()
    assert any(low <= tick <= high for tick in ax.get_yticks())


def test_mean_size_leaves_out_skipped_images(display_folder):
    model = DeepClusterEstimator(
        2,
        on_error="skip",
        max_iter=1,
        epochs_per_iter=1,
        n_pseudo_labels=2,
        random_state=0,
    )
    with pytest.warns(UserWarning, match="2 of 60 images cannot be read"):
        model.fit(display_folder)
    sizes_ax = TrainingCurvesDisplay.from_estimator(model).axes_[2]
    assert curves(sizes_ax)["mean"] == [29]


def test_training_curves_errors(display_model, pyplot):
    with pytest.raises(ValueError, match="history is empty"):
        TrainingCurvesDisplay.from_history([])
    with pytest.raises(ValueError, match="axes holds 1 Axes, but should hold 3"):
        TrainingCurvesDisplay.from_estimator(display_model, axes=pyplot.gca())
    with pytest.raises(ValueError, match="'estimator'"):
        TrainingCurvesDisplay.from_estimator(display_model.module_)


def test_contingency_of_an_estimator(display_model, display_images, display_classes):
    display = ContingencyDisplay.from_estimator(
        display_model, display_images, display_classes
    )
    pairs = zip(display_model.labels_, display_classes, strict=True)
    counts = Counter((str(cluster), str(digit)) for cluster, digit in pairs)
    assert drawn_counts(display) == counts
    assert_array_equal(
        display.ax_.images[0].get_array(), display.contingency[display.order_]
    )


def test_contingency_leaves_out_broken_files(
    display_model, display_classes, display_folder
):
    with pytest.warns(UserWarning, match="2 of 60 images cannot be read"):
        display = ContingencyDisplay.from_estimator(
            display_model, display_folder, display_classes
        )
    assert sum(drawn_counts(display).values()) == 58


def test_matched_clusters_are_on_the_diagonal():
    rng = np.random.default_rng(0)
    classes = rng.integers(8, size=500)
    noise = rng.integers(8, size=500)
    labels = rng.permutation(8)[np.where(rng.random(500) < 0.6, classes, noise)]
    display = ContingencyDisplay.from_predictions(classes, labels)
    table = display.contingency[display.order_]
    assert np.trace(table) / 500 == pytest.approx(clustering_accuracy(classes, labels))


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        pytest.param(
            [[0, 9], [3, 2], [8, 0], [0, 1], [1, 7]],
            ["C", "B", "A", "E", "D"],
            id="unmatched clusters below the matched one",
        ),
        pytest.param(
            # The first column is the largest in both rows. The best matching gives it
            # to B.
            [[10, 9], [9, 0]],
            ["B", "A"],
            id="best matching",
        ),
        pytest.param(
            [[0, 0, 0, 9], [0, 5, 0, 0]], ["B", "A"], id="more classes than clusters"
        ),
    ],
)
def test_order_of_clusters(table, expected):
    table = np.array(table)
    n_clusters, n_classes = table.shape
    display = ContingencyDisplay(
        table, clusters=list("ABCDE")[:n_clusters], classes=range(n_classes)
    )
    assert row_labels(display.plot().ax_) == expected


def test_numbers_contrast_with_their_cells():
    from matplotlib.colors import to_rgb

    table = np.arange(1, 101).reshape(10, 10)
    display = ContingencyDisplay(table, clusters=range(10), classes=range(10)).plot()
    image = display.ax_.images[0]
    assert len(display.text_) == 100
    for text in display.text_:
        cell_color = image.cmap(image.norm(int(text.get_text())))
        dark, light = sorted(
            [luminance(cell_color), luminance(to_rgb(text.get_color()))]
        )
        # Minimum of WCAG 2 for text, level AA.
        assert (light + 0.05) / (dark + 0.05) > 4.5


def test_color_bar_replaces_numbers_that_are_too_small():
    display = random_table(100, 100).plot()
    assert display.text_ == []
    assert [ax.get_ylabel() for ax in display.figure_.axes] == ["cluster", "images"]
    assert len(random_table(30, 10).plot().figure_.axes) == 1


@pytest.mark.parametrize("labels", [[0, 1], [-1, -1, -1]])
def test_contingency_of_wrong_labels(labels):
    with pytest.raises(ValueError, match="labels"):
        ContingencyDisplay.from_predictions([0, 1, 1], labels)


def test_contingency_of_named_clusters(display_model, display_images, display_classes):
    named = display_model.name_clusters({1: "round"})
    display = ContingencyDisplay.from_estimator(named, display_images, display_classes)
    assert display.clusters == ["0", "1: round", "2"]
    assert sorted(row_labels(display.ax_)) == ["0", "1: round", "2"]


def test_contingency_of_an_estimator_without_names(display_images, display_classes):
    rows = display_images.reshape(60, -1)
    estimator = KMeans(3, random_state=0).fit(rows)
    display = ContingencyDisplay.from_estimator(estimator, rows, display_classes)
    assert display.clusters == ["0", "1", "2"]
