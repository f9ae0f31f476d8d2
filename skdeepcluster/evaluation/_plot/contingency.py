"""Display of a contingency table of clusters and classes."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics.cluster import contingency_matrix

from ..._plot.drawing import get_axes, import_pyplot, label_cluster, size_in_points
from ..._utils.neutral_state import with_neutral_state
from .._reports import drop_unlabeled

# Width of a letter and height of a line of tick labels, in points.
LETTER_WIDTH, LINE_HEIGHT = 7.0, 12.0
# Limits of the font size in the cells, in points. Smaller text cannot be read.
MAX_FONT_SIZE, MIN_FONT_SIZE = 10, 5
# Share of the largest number above which white text has more contrast than black.
WHITE_TEXT_SHARE = 0.72


class ContingencyDisplay:
    """Heat map of the number of images in each cluster and class.

    Create it with `from_estimator` or `from_predictions`. All parameters are stored
    as attributes.

    Parameters
    ----------
    contingency : ndarray of shape (n_clusters, n_classes), int
        Number of images.
    clusters : array-like of shape (n_clusters,)
        Names of the rows.
    classes : array-like of shape (n_classes,)
        Names of the columns.

    Attributes
    ----------
    order_ : ndarray of shape (n_clusters,), int
        Rows of `contingency` from top to bottom. Clusters and classes are matched one
        to one as in `metrics.clustering_accuracy`, which makes a diagonal. Each
        unmatched cluster is placed below the cluster matched to its most frequent
        class.
    text_ : list of matplotlib Text
        Numbers in the cells, without zeros. If they would be too small to read, the
        list is empty and a color bar is drawn.
    ax_ : matplotlib Axes
        Axes of the heat map.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    skdeepcluster.evaluation.cluster_table : Name each cluster's most frequent class.

    Examples
    --------
    >>> from skdeepcluster.evaluation import ContingencyDisplay
    >>> classes, labels = ["a", "a", "b", "b"], [1, 1, 0, 1]
    >>> display = ContingencyDisplay.from_predictions(classes, labels)
    >>> display.order_
    array([1, 0])
    >>> display.figure_.savefig("contingency.png")  # doctest: +SKIP
    """

    def __init__(self, contingency, *, clusters, classes):
        self.contingency = contingency
        self.clusters = clusters
        self.classes = classes

    @classmethod
    @with_neutral_state
    def from_estimator(cls, estimator, X, y, *, ax=None):
        """Draw the clusters that an estimator predicts against classes.

        Parameters
        ----------
        estimator : estimator
            Fitted estimator with a `predict` method.
        X : array-like, tensor, folder, paths, PIL images or dataset
            Images in any form that `estimator.predict` takes.
        y : array-like of shape (n,)
            Classes.
        ax : matplotlib Axes, default=None
            Axes to draw on. With None, a new figure is created.

        Returns
        -------
        display : ContingencyDisplay
            The drawn display. Images that cannot be read are left out if
            `on_error="skip"`.
        """
        # Fail before the prediction if matplotlib is missing.
        import_pyplot()
        display = cls._from_predictions(y, estimator.predict(X))
        # Clusterers of scikit-learn have no names of clusters.
        names = getattr(estimator, "cluster_names_", None)
        display.clusters = [label_cluster(c, names) for c in display.clusters]
        return display.plot(ax)

    @classmethod
    @with_neutral_state
    def from_predictions(cls, y_true, labels, *, ax=None):
        """Draw clusters against classes.

        Parameters
        ----------
        y_true : array-like of shape (n,)
            Classes.
        labels : array-like of shape (n,), int
            Clusters, such as `labels_`. Images of cluster -1, which could not be read,
            are left out.
        ax : matplotlib Axes, default=None
            Axes to draw on. With None, a new figure is created.

        Returns
        -------
        display : ContingencyDisplay
            The drawn display.

        Raises
        ------
        ValueError
            If lengths differ, or no image has a cluster.
        """
        import_pyplot()
        return cls._from_predictions(y_true, labels).plot(ax)

    @classmethod
    def _from_predictions(cls, y_true, labels):
        y_true, labels = drop_unlabeled(y_true, labels)
        clusters, classes = np.unique(labels), np.unique(y_true)
        table = contingency_matrix(labels, y_true)
        return cls(table, clusters=clusters, classes=classes)

    @with_neutral_state
    def plot(self, ax=None):
        """Draw the heat map, with clusters reordered along the diagonal.

        Cells hold the numbers of images. In large tables a color bar replaces the
        numbers.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on. With None, a new figure is created.

        Returns
        -------
        display : ContingencyDisplay
            The display itself.
        """
        n_clusters, n_classes = self.contingency.shape
        # Cells of 0.45 inches, up to a figure that fits on a page.
        width, height = (min(0.45 * n, 9.0) for n in (n_classes, n_clusters))
        self.ax_ = ax = get_axes(ax, max(2.5, width) + 1, max(2.0, height) + 1)
        self.figure_ = ax.figure
        self.order_ = diagonal_order(self.contingency)
        table = self.contingency[self.order_]
        image = ax.imshow(table, cmap="Blues", vmin=0, aspect="auto")
        ax.set(xlabel="class", ylabel="cluster")
        self._label_ticks()
        font_size = self._font_size()
        self.text_ = []
        if font_size < MIN_FONT_SIZE:
            self.figure_.colorbar(
                image, ax=ax, label="images", fraction=0.04, aspect=30
            )
        else:
            self._write_counts(table, font_size)
        return self

    def _write_counts(self, table: np.ndarray, font_size: float) -> None:
        for (row, column), count in np.ndenumerate(table):
            if count == 0:
                continue
            is_dark = count > WHITE_TEXT_SHARE * table.max()
            text = self.ax_.text(
                column,
                row,
                f"{count:d}",
                ha="center",
                va="center",
                fontsize=font_size,
                color="white" if is_dark else "black",
            )
            self.text_.append(text)

    def _cell_size(self) -> np.ndarray:
        """Return the height and width of a cell in points."""
        return size_in_points(self.ax_)[::-1] / self.contingency.shape

    def _label_ticks(self) -> None:
        """Label as many rows and columns as fit; long column names are rotated."""
        height, width = self._cell_size()
        n_letters = max(len(str(name)) for name in self.classes)
        rotated = LETTER_WIDTH * n_letters > width
        step = int(np.ceil(LINE_HEIGHT / width)) if rotated else 1
        columns = np.arange(0, len(self.classes), step)
        names = np.asarray(self.classes)[columns]
        self.ax_.set_xticks(
            columns, names, rotation=90 if rotated else 0, parse_math=False
        )
        rows = np.arange(0, len(self.clusters), int(np.ceil(LINE_HEIGHT / height)))
        self.ax_.set_yticks(
            rows, np.asarray(self.clusters)[self.order_[rows]], parse_math=False
        )
        self.ax_.tick_params(length=0)

    def _font_size(self) -> float:
        """Return the font size in points at which the longest number fits a cell."""
        height, width = self._cell_size()
        n_digits = len(str(self.contingency.max()))
        return min(MAX_FONT_SIZE, 0.7 * height, 1.2 * width / n_digits)


def diagonal_order(table: np.ndarray) -> np.ndarray:
    """Return the order of a table's rows that puts large numbers on the diagonal."""
    rows, columns = linear_sum_assignment(table, maximize=True)
    positions = table.argmax(axis=1)
    positions[rows] = columns
    # Rows of one position are sorted by size. The matched one comes first: an unmatched
    # cluster with more images of that class would have been matched instead.
    sizes = np.take_along_axis(table, positions[:, None], axis=1)[:, 0]
    return np.lexsort((-sizes, positions))
