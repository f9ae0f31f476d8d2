"""Display of the merge tree: a dendrogram with images of each leaf."""

import numpy as np
from sklearn.utils._param_validation import validate_params
from sklearn.utils.validation import check_is_fitted

from ..._activations.model import COUNT
from ..._clustering.tree import MergeTree
from ..._estimator import DeepClusterEstimator
from ..._plot.drawing import (
    COLORS,
    GRAY,
    get_axes,
    import_pyplot,
    label_cluster,
    label_rows,
    label_width,
)
from ..._utils.neutral_state import with_neutral_state
from .._sheets import GAP, arrange_grid, predict_clusters, select_thumbnails

# Height of a row in a new figure, in inches.
ROW_HEIGHT = 0.3
# Width of the tree, and of the cluster's line beside the images, in heights of a row.
TREE_WIDTH, LINE_WIDTH = 10, 0.5
# Cluster of a leaf that holds images of several clusters.
SEVERAL_CLUSTERS = -1
HEADER = "cluster (images)"


class TreeDisplay:
    """Merge tree of the clusters, with images of each leaf.

    The root is at the left, and each leaf is a row with its most typical images. The
    position of a merge is the distance of the two merged nodes. Each cluster has a
    color, and merges of several clusters are gray. A cluster that was merged across
    the tree has several lines at the right, each with its number of images.

    Create it with `from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    children : array-like of shape (n_leaves - 1, 2), int
        The two nodes of each merge. Nodes 0 to `n_leaves` - 1 are the leaves, and merge
        i makes node `n_leaves` + i.
    distances : array-like of shape (n_leaves - 1,)
        Distance of the two nodes of each merge.
    thumbnails : list of ndarray of shape (n_images, height, width, 3), uint8
        Images of each leaf.
    sizes : list of int
        Number of images in each leaf.
    clusters : list of int
        Cluster of each leaf, -1 for a leaf with images of several clusters.
    labels : list of str
        Text for the cluster of each leaf.

    Attributes
    ----------
    order_ : ndarray of shape (n_leaves,), int
        Leaves from top to bottom.
    ax_ : matplotlib Axes
        Axes of the tree.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    ContactSheetDisplay : Draw more images of each cluster, without the tree.
    skdeepcluster.DeepClusterEstimator.cut : Choose another number of clusters.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.inspection import TreeDisplay
    >>> images = load_digits().images[:300]
    >>> model = DeepClusterEstimator(n_clusters=10, max_iter=1, random_state=0)
    >>> display = TreeDisplay.from_estimator(model.fit(images), images)
    >>> display.figure_.savefig("tree.png")  # doctest: +SKIP
    """

    def __init__(self, children, distances, *, thumbnails, sizes, clusters, labels):
        self.children = children
        self.distances = distances
        self.thumbnails = thumbnails
        self.sizes = sizes
        self.clusters = clusters
        self.labels = labels

    @classmethod
    @with_neutral_state
    @validate_params(
        {
            "estimator": [DeepClusterEstimator],
            "n_images": [COUNT],
            "size": [COUNT],
            "max_leaves": [COUNT],
        },
        prefer_skip_nested_validation=True,
    )
    def from_estimator(
        cls, estimator, X, *, n_images=4, size=32, max_leaves=60, ax=None
    ):
        """Draw the merge tree of an estimator.

        Parameters
        ----------
        estimator : DeepClusterEstimator
            Fitted estimator.
        X : array-like, tensor, folder, paths, PIL images or dataset
            Images in any form that `DeepClusterEstimator.fit` takes.
        n_images : int, default=4
            Largest number of images of a leaf. They are nearest to its center.
        size : int, default=32
            Longer dimension of a thumbnail in pixels.
        max_leaves : int, default=60
            Largest number of rows. The lowest merges of a larger tree are left out, and
            their leaves share a row.
        ax : matplotlib Axes, default=None
            Axes to draw on. With None, a new figure is created.

        Returns
        -------
        display : TreeDisplay
            The drawn display. Images that cannot be read are left out if
            `on_error="skip"`.
        """
        # Fail before the prediction if matplotlib is missing.
        import_pyplot()
        check_is_fitted(estimator)
        model = estimator._cluster_model
        tree, rows = _keep_top(model.tree, max_leaves)
        # With the rows as its clusters, the estimator finds the images of each row.
        row_estimator = estimator._with_clusters(rows)
        thumbnails = select_thumbnails(
            predict_clusters(row_estimator, X),
            cluster=None,
            n_images=n_images,
            order="nearest",
            size=size,
            random_state=None,
        )
        clusters, labels = [], []
        for row in range(tree.n_leaves):
            first, *others = np.unique(model.clusters[rows == row]).tolist()
            label = label_cluster(first, estimator.cluster_names_)
            clusters.append(SEVERAL_CLUSTERS if others else first)
            labels.append(f"{label} and {len(others)} more" if others else label)
        return cls(
            tree.children,
            tree.distances,
            thumbnails=thumbnails.rows,
            sizes=thumbnails.sizes,
            clusters=clusters,
            labels=labels,
        ).plot(ax)

    @with_neutral_state
    def plot(self, ax=None):
        """Draw the tree.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on. With None, a new figure is created.

        Returns
        -------
        display : TreeDisplay
            The display itself.
        """
        n_leaves = len(self.sizes)
        leaves_below = [[leaf] for leaf in range(n_leaves)]
        for left, right in self.children:
            leaves_below.append(leaves_below[left] + leaves_below[right])
        self.order_ = np.array(leaves_below[-1])
        sheet = arrange_grid([self.thumbnails[leaf] for leaf in self.order_])
        height, width = sheet.shape[:2]
        step = (height - GAP) / n_leaves
        runs = self._find_runs()
        labels = [self._label_run(run) for run in runs]
        # A single leaf has no tree.
        tree_width = TREE_WIDTH * step if n_leaves > 1 else 0.0
        figure_width = ROW_HEIGHT * (tree_width + width + LINE_WIDTH * step) / step
        self.ax_ = ax = get_axes(
            ax,
            figure_width + label_width([HEADER, *labels]),
            ROW_HEIGHT * n_leaves + 0.8,
        )
        self.figure_ = ax.figure
        ax.imshow(sheet)
        # imshow puts the center of the first pixel at 0.
        centers = step * (np.arange(n_leaves) + 0.5) + GAP / 2 - 0.5
        run_centers = [centers[run].mean() for run in runs]
        label_rows(ax, run_centers, labels, header=HEADER, side="right")
        colors = self._choose_colors()
        for run in runs:
            ends = centers[run[0]] - 0.4 * step, centers[run[-1]] + 0.4 * step
            color = colors[self.clusters[self.order_[run[0]]]]
            x = width + LINE_WIDTH * step / 2
            ax.plot([x, x], ends, color=color, linewidth=2, solid_capstyle="butt")
        ax.set_xlim(-1.02 * tree_width - 0.5, width + LINE_WIDTH * step)
        if n_leaves > 1:
            self._draw_branches(leaves_below, centers, tree_width, colors)
        return self

    def _find_runs(self) -> list[np.ndarray]:
        """Return the positions of neighboring leaves that share a cluster."""
        clusters = np.array(self.clusters)[self.order_]
        is_new = (np.diff(clusters) != 0) | (clusters[1:] == SEVERAL_CLUSTERS)
        return np.split(np.arange(len(clusters)), np.flatnonzero(is_new) + 1)

    def _label_run(self, run: np.ndarray) -> str:
        leaves = self.order_[run]
        n_images = sum(self.sizes[leaf] for leaf in leaves)
        return f"{self.labels[leaves[0]]}  ({n_images:,})"

    def _choose_colors(self) -> dict[int, str]:
        """Return the color of each cluster. Neighboring clusters differ."""
        clusters = dict.fromkeys(self.clusters[leaf] for leaf in self.order_)
        colors = {
            cluster: COLORS[i % len(COLORS)] for i, cluster in enumerate(clusters)
        }
        return {**colors, SEVERAL_CLUSTERS: GRAY}

    def _draw_branches(
        self,
        leaves_below: list[list[int]],
        centers: np.ndarray,
        width: float,
        colors: dict[int, str],
    ) -> None:
        """Draw the merges, and an axis of their distances.

        Parameters
        ----------
        leaves_below : list of list of int
            Leaves below each node.
        centers : ndarray of shape (n_leaves,)
            Position of each row from top to bottom.
        width : float
            Width of the tree.
        colors : dict
            Color of each cluster.
        """
        from matplotlib.collections import LineCollection
        from matplotlib.ticker import MaxNLocator

        n_leaves = len(centers)
        scale = width / (max(self.distances) or 1.0)
        x = -scale * np.concatenate([np.zeros(n_leaves), self.distances])
        y = np.empty(len(x))
        y[self.order_] = centers
        node_colors = []
        for leaves in leaves_below:
            clusters = {self.clusters[leaf] for leaf in leaves}
            node_colors.append(
                colors[clusters.pop() if len(clusters) == 1 else SEVERAL_CLUSTERS]
            )
        lines, line_colors = [], []
        for node, (left, right) in enumerate(self.children, start=n_leaves):
            y[node] = (y[left] + y[right]) / 2
            lines.append([(x[node], y[left]), (x[node], y[right])])
            line_colors.append(node_colors[node])
            for child in left, right:
                lines.append([(x[node], y[child]), (x[child], y[child])])
                line_colors.append(node_colors[child])
        self.ax_.add_collection(
            LineCollection(lines, colors=line_colors, capstyle="projecting"),
            autolim=False,
        )
        locator = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
        ticks = locator.tick_values(0, max(self.distances))
        ticks = ticks[ticks <= max(self.distances)]
        self.ax_.set_xticks(-scale * ticks, [f"{tick:g}" for tick in ticks])
        self.ax_.tick_params(axis="x", length=3, color=GRAY)
        self.ax_.set_xlabel("distance", loc="left")
        self.ax_.spines.bottom.set(visible=True, bounds=(-width, 0), color=GRAY)


def _keep_top(tree: MergeTree, n_leaves: int) -> tuple[MergeTree, np.ndarray]:
    """Return the top of a tree, with the leaf there of each leaf of the tree."""
    n_left_out = max(0, tree.n_leaves - n_leaves)
    first_kept = tree.n_leaves + n_left_out
    tops = np.arange(first_kept)
    for i in reversed(range(n_left_out)):
        tops[tree.children[i]] = tops[tree.n_leaves + i]
    tops, rows = np.unique(tops[: tree.n_leaves], return_inverse=True)
    children = tree.children[n_left_out:]
    children = np.where(
        children < first_kept,
        np.searchsorted(tops, children),
        children - 2 * n_left_out,
    )
    return MergeTree(children, tree.distances[n_left_out:]), rows
