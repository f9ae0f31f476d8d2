"""Clusters against classes: how many images are in both."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics.cluster import contingency_matrix

from ..._plot.drawing import get_axes, import_pyplot, size_in_points
from .._reports import drop_unlabeled

LETTER, LINE = 7.0, 12.0  # points that a letter, and a line, of a name takes
LARGEST_TEXT = 10  # points
SMALLEST_TEXT = 5  # points, that can still be read
DARK = 0.72  # of the largest number: white is seen better than black on such a cell


class ContingencyDisplay:
    """Number of images of each class in each cluster, as a picture.

    `from_estimator` and `from_predictions` make it and draw it. All parameters are
    stored as attributes.

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
        Rows of `contingency`, from the top of the picture. Clusters and classes are
        matched one to one as `metrics.clustering_accuracy` does, which makes a
        diagonal. Where there are more clusters than classes, each further one is below
        the cluster that is matched to its most frequent class.
    text_ : list of matplotlib Text
        The numbers, but for 0. Where they would be too small to be read, there are none
        but a color bar.
    ax_ : matplotlib Axes
        With the picture.
    figure_ : matplotlib Figure
        What it is in.

    See Also
    --------
    skdeepcluster.evaluation.cluster_table : Each cluster's most frequent class.

    Examples
    --------
    >>> from skdeepcluster import ContingencyDisplay
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
    def from_estimator(cls, estimator, X, y, *, ax=None):
        """Draw the clusters that an estimator finds against classes.

        Parameters
        ----------
        estimator : estimator
            Fitted, with `predict`.
        X : array-like, tensor, folder, paths, pictures or dataset
            Images in any form that `estimator.predict` takes.
        y : array-like of shape (n,)
            Classes.
        ax : matplotlib Axes, default=None
            Where the table is drawn. With None, in a new figure.

        Returns
        -------
        display : ContingencyDisplay
            Drawn. Images that cannot be read, with `on_error="skip"`, are left out.
        """
        import_pyplot()
        return cls.from_predictions(y, estimator.predict(X), ax=ax)

    @classmethod
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
            Where the table is drawn. With None, in a new figure.

        Returns
        -------
        display : ContingencyDisplay
            Drawn.

        Raises
        ------
        ValueError
            If lengths differ, or no image has a cluster.
        """
        import_pyplot()
        y_true, labels = drop_unlabeled(y_true, labels)
        clusters, classes = np.unique(labels), np.unique(y_true)
        table = contingency_matrix(labels, y_true)
        return cls(table, clusters=clusters, classes=classes).plot(ax)

    def plot(self, ax=None):
        """Draw the table.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where the table is drawn. With None, in a new figure.

        Returns
        -------
        display : ContingencyDisplay
            Itself.
        """
        n_clusters, n_classes = self.contingency.shape
        width, height = (min(0.45 * n, 9.0) for n in (n_classes, n_clusters))
        self.ax_ = ax = get_axes(ax, max(2.5, width) + 1, max(2.0, height) + 1)
        self.figure_ = ax.figure
        self.order_ = diagonal_order(self.contingency)
        table = self.contingency[self.order_]
        image = ax.imshow(table, cmap="Blues", vmin=0, aspect="auto")
        ax.set(xlabel="class", ylabel="cluster")
        self._name_rows_and_columns()
        size = self._text_size()
        self.text_ = []
        if size < SMALLEST_TEXT:
            style = {"label": "images", "fraction": 0.04, "aspect": 30}
            self.figure_.colorbar(image, ax=ax, **style)
            return self
        for (row, column), count in np.ndenumerate(table):
            if count == 0:
                continue
            style = {"ha": "center", "va": "center", "fontsize": size}
            style["color"] = "white" if count > DARK * table.max() else "black"
            self.text_.append(ax.text(column, row, f"{count:d}", **style))
        return self

    def _cell(self) -> np.ndarray:
        """Return height and width of a cell in points."""
        return size_in_points(self.ax_)[::-1] / self.contingency.shape

    def _name_rows_and_columns(self) -> None:
        """Write as many names as have room, long ones of columns upright."""
        height, width = self._cell()
        longest = max(len(str(name)) for name in self.classes)
        upright = LETTER * longest > width
        every = int(np.ceil(LINE / width)) if upright else 1
        columns = np.arange(0, len(self.classes), every)
        names = np.asarray(self.classes)[columns]
        self.ax_.set_xticks(columns, names, rotation=90 if upright else 0)
        rows = np.arange(0, len(self.clusters), int(np.ceil(LINE / height)))
        self.ax_.set_yticks(rows, np.asarray(self.clusters)[self.order_[rows]])
        self.ax_.tick_params(length=0)

    def _text_size(self) -> float:
        """Return the size in points at which the longest number fits into a cell."""
        height, width = self._cell()
        digits = len(str(self.contingency.max()))
        return min(LARGEST_TEXT, 0.7 * height, 1.2 * width / digits)


def diagonal_order(table: np.ndarray) -> np.ndarray:
    """Return the rows of a table in the order that makes a diagonal."""
    rows, columns = linear_sum_assignment(table, maximize=True)
    places = table.argmax(axis=1)
    places[rows] = columns
    # No other cluster has more images of a class than the one matched to it.
    return np.lexsort((-np.take_along_axis(table, places[:, None], 1)[:, 0], places))
