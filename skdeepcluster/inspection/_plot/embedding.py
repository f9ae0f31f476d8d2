"""Display of an embedding as a map."""

import numpy as np
from sklearn.utils._param_validation import validate_params
from sklearn.utils.validation import check_is_fitted

from ..._activations.maps import read_image_input
from ..._estimator import DeepClusterEstimator
from ..._inputs.read import NO_CLUSTER, InputData, read_input
from ..._inputs.spec import InputSpec
from ..._plot import layout
from ..._plot.drawing import (
    COLORS,
    GRAY,
    get_axes,
    import_pyplot,
    label_cluster,
    size_in_points,
)
from ..._utils.neutral_state import with_neutral_state
from .._sheets import embed_and_predict, make_thumbnails

MARKERS = "os^DvPX"
# Largest number of clusters with labels. More labels would cover the map.
MAX_LABELS = 200
# Longer dimension of a thumbnail, in pixels.
THUMBNAIL_SIZE = 32
# Width of a thumbnail's frame, in pixels.
FRAME_WIDTH = 2


class EmbeddingDisplay:
    """Map of an embedding in two dimensions, with a color and label for each cluster.

    The label is the cluster's number, and its name if it has one. It is written at the
    median of the cluster's points, and moved slightly if it would overlap another
    label. The map uses six colors that readers with color
    blindness can distinguish, each with several markers. Of more than 20,000 points, a
    random sample is drawn. Points are rasterized in vector formats.

    Create it with `from_estimator` or `from_predictions`. All parameters are stored
    as attributes.

    Parameters
    ----------
    projection : ndarray of shape (n, 2)
        Coordinates of each image.
    labels : ndarray of shape (n,), int
        Cluster of each image.
    explained_variance_ratio : array-like of 2 float, default=None
        Share of the variance along each axis, if the axes are principal components.
    thumbnails : ndarray of shape (n_thumbnails, height, width, 3), uint8, default=None
        Images to draw instead of points.
    thumbnail_rows : ndarray of shape (n_thumbnails,), int, default=None
        Row of `projection` of each thumbnail.
    cluster_names : array-like of str, default=None
        Name of each cluster, such as `cluster_names_`. With None, clusters have their
        numbers only.

    Attributes
    ----------
    text_ : list of matplotlib Text
        Label of each cluster; empty if there are more than 200 clusters.
    ax_ : matplotlib Axes
        Axes of the map.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    ContactSheetDisplay : Draw one row of images for each cluster.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster.inspection import EmbeddingDisplay
    >>> images, pixels = load_digits().images[:300], load_digits().data[:300]
    >>> labels = load_digits().target[:300]
    >>> display = EmbeddingDisplay.from_predictions(pixels, labels, images=images)
    >>> display.figure_.savefig("map.png")  # doctest: +SKIP
    """

    def __init__(
        self,
        projection,
        labels,
        *,
        explained_variance_ratio=None,
        thumbnails=None,
        thumbnail_rows=None,
        cluster_names=None,
    ):
        self.projection = projection
        self.labels = labels
        self.explained_variance_ratio = explained_variance_ratio
        self.thumbnails = thumbnails
        self.thumbnail_rows = thumbnail_rows
        self.cluster_names = cluster_names

    @classmethod
    @with_neutral_state
    @validate_params(
        {"estimator": [DeepClusterEstimator]}, prefer_skip_nested_validation=True
    )
    def from_estimator(
        cls, estimator, X, *, projection=None, thumbnails=False, ax=None
    ):
        """Draw a map of the embedding that an estimator computes.

        Parameters
        ----------
        estimator : DeepClusterEstimator
            Fitted estimator.
        X : array-like, tensor, folder, paths, PIL images or dataset
            Images in any form that `DeepClusterEstimator.fit` takes.
        projection : array-like of shape (n, 2), default=None
            Coordinates of each image, for example from UMAP or t-SNE. None uses the
            first two principal components of the embedding.
        thumbnails : bool, default=False
            Draw images instead of points, as many as fit without overlap.
        ax : matplotlib Axes, default=None
            Axes to draw on. With None, a new figure is created.

        Returns
        -------
        display : EmbeddingDisplay
            The drawn display. Points that are not finite are left out, and unreadable
            images if `on_error="skip"`.

        Raises
        ------
        ValueError
            If `projection` does not hold one point for each image, or no image is
            left.
        """
        import_pyplot()
        check_is_fitted(estimator)
        read = read_image_input if thumbnails else read_input
        data, failures = read(X, estimator._input_spec(fitted=True))
        if projection is not None:
            projection = layout.check_points(projection, "projection", data.n)
            if projection.shape[1] != 2:
                raise ValueError(
                    f"projection has {projection.shape[1]} columns, but should have 2."
                )
        points, labels = embed_and_predict(estimator, data)
        if projection is not None:
            points = projection[data.rows]
        display = cls._from_points(points, labels, data if thumbnails else None)
        display.cluster_names = estimator.cluster_names_
        failures.warn(data.n)
        return display.plot(ax)

    @classmethod
    @with_neutral_state
    def from_predictions(cls, embedding, labels, *, images=None, ax=None):
        """Draw a map of any embedding and clustering.

        Parameters
        ----------
        embedding : array-like of shape (n, n_features)
            Two columns are used as coordinates. More columns are projected on their
            first two principal components.
        labels : array-like of shape (n,), int
            Cluster of each image, -1 for none.
        images : array-like, tensor, folder, paths, PIL images or dataset, default=None
            Images in any form that `DeepClusterEstimator.fit` takes. They are drawn
            instead of points, as many as fit without overlap.
        ax : matplotlib Axes, default=None
            Axes to draw on. With None, a new figure is created.

        Returns
        -------
        display : EmbeddingDisplay
            The drawn display. Images of cluster -1 are left out, and points that are
            not finite.

        Raises
        ------
        ValueError
            If lengths differ, or no image is left.
        """
        import_pyplot()
        labels = np.asarray(labels)
        if labels.ndim != 1:
            raise ValueError(f"labels has shape {labels.shape}, but should be 1-D.")
        points = layout.check_points(embedding, "embedding", len(labels))
        if images is None:
            return cls._from_points(points, labels, None).plot(ax)
        data, failures = read_image_input(images, InputSpec(on_error="skip"))
        if data.n != len(labels):
            raise ValueError(
                f"images holds {data.n} images, but labels {len(labels)} entries. Pass "
                "one label for each image."
            )
        display = cls._from_points(points[data.rows], labels[data.rows], data)
        failures.warn(data.n)
        return display.plot(ax)

    @classmethod
    def _from_points(
        cls, points: np.ndarray, labels: np.ndarray, data: InputData | None
    ):
        """Project points, and draw thumbnails if `data` holds their images."""
        is_drawable = (labels != NO_CLUSTER) & np.isfinite(points).all(axis=1)
        rows = np.flatnonzero(is_drawable)
        if len(rows) == 0:
            raise ValueError(
                "No image has both a cluster and a finite embedding, so there is "
                "nothing to draw. Pass more images."
            )
        points, labels = points[rows], labels[rows]
        points, explained_variance_ratio = layout.project(points)
        if data is None:
            return cls(
                points, labels, explained_variance_ratio=explained_variance_ratio
            )
        spaced = layout.select_spaced(points)
        thumbnails, is_readable = make_thumbnails(data, rows[spaced], THUMBNAIL_SIZE)
        return cls(
            points,
            labels,
            explained_variance_ratio=explained_variance_ratio,
            thumbnails=thumbnails[is_readable],
            thumbnail_rows=spaced[is_readable],
        )

    @with_neutral_state
    def plot(self, ax=None):
        """Draw the map.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on. With None, a new figure is created.

        Returns
        -------
        display : EmbeddingDisplay
            The display itself.
        """
        self.ax_ = ax = get_axes(ax, 7.0, 6.0)
        self.figure_ = ax.figure
        self.text_ = []
        clusters = np.unique(self.labels)
        # All colors are used before the marker changes.
        styles = {
            cluster: (COLORS[i % len(COLORS)], MARKERS[i // len(COLORS) % len(MARKERS)])
            for i, cluster in enumerate(clusters)
        }
        ax.set_aspect("equal", adjustable="datalim")
        if self.thumbnails is None:
            self._draw_points(styles)
        else:
            self._draw_thumbnails(styles)
        if len(styles) <= MAX_LABELS:
            self._write_labels(styles)
        ax.spines[:].set_color(GRAY)
        ax.set(xticks=[], yticks=[])
        if self.explained_variance_ratio is not None:
            x_ratio, y_ratio = self.explained_variance_ratio
            ax.set_xlabel(f"principal component 1, {x_ratio:.0%} of the variance")
            ax.set_ylabel(f"principal component 2, {y_ratio:.0%} of the variance")
        return self

    def _write_labels(self, styles: dict) -> None:
        points = [self.projection[self.labels == cluster] for cluster in styles]
        medians = np.array([np.median(members, axis=0) for members in points])
        span = np.ptp(self.projection, axis=0)
        # Size of one typographic point in map units. If all images coincide, it is 0.
        unit = (span / size_in_points(self.ax_)).max() or 1.0
        labels = [label_cluster(cluster, self.cluster_names) for cluster in styles]
        box_sizes = unit * np.array([[6 + 6 * len(label), 14] for label in labels])
        positions = layout.spread_labels(medians, box_sizes)
        for (x, y), label, (color, _) in zip(
            positions, labels, styles.values(), strict=True
        ):
            text = self.ax_.text(
                x,
                y,
                label,
                ha="center",
                va="center",
                fontsize=8,
                # A dollar sign in a name is not the start of a formula.
                parse_math=False,
                bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": color},
            )
            self.text_.append(text)

    def _draw_points(self, styles: dict) -> None:
        rows = layout.sample_points(len(self.labels))
        points, labels = self.projection[rows], self.labels[rows]
        # More points are drawn smaller, between 3 and 30 square points.
        size = np.clip(400 / np.sqrt(len(rows)), 3, 30)
        for cluster, (color, marker) in styles.items():
            x, y = points[labels == cluster].T
            self.ax_.scatter(
                x,
                y,
                s=size,
                c=color,
                marker=marker,
                alpha=0.7,
                linewidths=0,
                rasterized=True,
            )

    def _draw_thumbnails(self, styles: dict) -> None:
        from matplotlib.colors import to_rgb
        from matplotlib.image import AxesImage

        size = layout.thumbnail_size(self.projection) or 1.0
        # The limits must enclose the thumbnails, not only their centers.
        for corners in (self.projection - size / 2, self.projection + size / 2):
            self.ax_.update_datalim(corners)
        self.ax_.autoscale_view()
        for thumbnail, row in zip(self.thumbnails, self.thumbnail_rows, strict=True):
            color, _ = styles[self.labels[row]]
            framed = _add_frame(thumbnail, 255 * np.array(to_rgb(color)))
            width_and_height = np.array(framed.shape[1::-1])
            half = size / 2 * width_and_height / max(framed.shape[:2])
            low, high = self.projection[row] - half, self.projection[row] + half
            extent = low[0], high[0], low[1], high[1]
            # imshow would change the limits of the axes.
            image = AxesImage(self.ax_, extent=extent, origin="upper")
            image.set_data(framed)
            image.set_clip_path(self.ax_.patch)
            self.ax_.add_image(image)


def _add_frame(thumbnail: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Return a thumbnail, uint8 (height, width, 3), with a frame in a color."""
    width = FRAME_WIDTH
    framed = np.full(np.add(thumbnail.shape, (2 * width, 2 * width, 0)), color)
    framed[width:-width, width:-width] = thumbnail
    return np.rint(framed).astype(np.uint8)
