"""The embedding as a map, on which images that are alike lie together."""

import numpy as np
from sklearn.utils._param_validation import validate_params
from sklearn.utils.validation import check_is_fitted

from ..._activations.layers import evaluation_mode
from ..._activations.maps import read_image_input
from ..._estimator import DeepClusterEstimator
from ..._inputs.read import NO_CLUSTER, InputData, read_input
from ..._inputs.spec import InputSpec
from ..._plot import layout
from ..._plot.drawing import COLORS, GRAY, get_axes, import_pyplot, size_in_points
from .._sheets import make_thumbnails

MARKERS = "os^DvPX"
MOST_NUMBERS = 200  # more could not be told apart
PIXELS = 32  # of a thumbnail's longer side
FRAME = 2  # pixels around it in the color of its cluster


class EmbeddingDisplay:
    """Map of an embedding in two dimensions, with a color and number for each cluster.

    The number is written at the median of the cluster's points, or as near to it as
    other numbers let it. Of 6 colors, which the color-blind tell apart, each returns
    with another marker. Of more than 20,000 points a random sample is drawn, as pixels
    also in vector formats.

    `from_estimator` and `from_predictions` make it and draw it. All parameters are
    stored as attributes.

    Parameters
    ----------
    projection : ndarray of shape (n, 2)
        A point for each image.
    labels : ndarray of shape (n,), int
        The cluster of each image.
    explained_variance_ratio : array-like of 2 float, default=None
        Share of the variance along each axis, if these are principal components.
    pictures : ndarray of shape (n_pictures, height, width, 3), uint8, default=None
        Thumbnails, which are drawn instead of points.
    pictured : ndarray of shape (n_pictures,), int, default=None
        The point of each picture.

    Attributes
    ----------
    text_ : list of matplotlib Text
        The number of each cluster; of more than 200 clusters, none.
    ax_ : matplotlib Axes
        With the map.
    figure_ : matplotlib Figure
        What it is in.

    See Also
    --------
    ContactSheetDisplay : All clusters, with as many images each.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import EmbeddingDisplay
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
        pictures=None,
        pictured=None,
    ):
        self.projection = projection
        self.labels = labels
        self.explained_variance_ratio = explained_variance_ratio
        self.pictures = pictures
        self.pictured = pictured

    @classmethod
    @validate_params(
        {"estimator": [DeepClusterEstimator]}, prefer_skip_nested_validation=True
    )
    def from_estimator(
        cls, estimator, X, *, projection=None, thumbnails=False, ax=None
    ):
        """Draw a map of images as an estimator sees them.

        Parameters
        ----------
        estimator : DeepClusterEstimator
            Fitted.
        X : array-like, tensor, folder, paths, pictures or dataset
            As in `DeepClusterEstimator.fit`.
        projection : array-like of shape (n, 2), default=None
            A point for each image, from UMAP or t-SNE say. With None it is the first
            two principal components of the embedding.
        thumbnails : bool, default=False
            Whether images are drawn instead of points, as many as have room.
        ax : matplotlib Axes, default=None
            Where the map is drawn. With None, in a new figure.

        Returns
        -------
        display : EmbeddingDisplay
            Drawn. Images that cannot be read, with `on_error="skip"`, and points that
            are not finite are left out.

        Raises
        ------
        ValueError
            If there is not one point for each image, or no image is left.
        """
        import_pyplot()
        check_is_fitted(estimator)
        read = read_image_input if thumbnails else read_input
        given, failures = read(X, estimator._input_spec(fitted=True))
        if projection is not None:
            projection = layout.check_points(projection, "projection", given.n)
            if projection.shape[1] != 2:
                raise ValueError(
                    f"projection has {projection.shape[1]} columns, but should have 2."
                )
        with evaluation_mode(estimator.module_, estimator.device_):
            points = estimator._embed(given.source)
        labels = estimator._assign(points)
        labels[~given.readable] = NO_CLUSTER
        if projection is not None:
            points = projection[given.rows]
        display = cls._of(points, labels, given if thumbnails else None)
        failures.warn(given.n)
        return display.plot(ax)

    @classmethod
    def from_predictions(cls, embedding, labels, *, images=None, ax=None):
        """Draw a map of an embedding and clusters that are given.

        Parameters
        ----------
        embedding : array-like of shape (n, n_features)
            Of two columns it is drawn as it is; of more, its first two principal
            components.
        labels : array-like of shape (n,), int
            The cluster of each image, where -1 is none.
        images : array-like, tensor, folder, paths, pictures or dataset, default=None
            The images, in any form that `DeepClusterEstimator.fit` takes, to be drawn
            instead of points, as many as have room.
        ax : matplotlib Axes, default=None
            Where the map is drawn. With None, in a new figure.

        Returns
        -------
        display : EmbeddingDisplay
            Drawn. Images of cluster -1, or whose embedding is not finite, are left out.

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
            return cls._of(points, labels, None).plot(ax)
        given, failures = read_image_input(images, InputSpec(on_error="skip"))
        if given.n != len(labels):
            raise ValueError(
                f"images holds {given.n} images, but labels {len(labels)} entries."
            )
        display = cls._of(points[given.rows], labels[given.rows], given)
        failures.warn(given.n)
        return display.plot(ax)

    @classmethod
    def _of(cls, points: np.ndarray, labels: np.ndarray, given: InputData | None):
        """Project points, and draw thumbnails of some of the images."""
        there = np.flatnonzero((labels != NO_CLUSTER) & np.isfinite(points).all(axis=1))
        if len(there) == 0:
            raise ValueError(
                "There is nothing to draw: no image has both a cluster and a finite "
                "embedding."
            )
        points, labels = points[there], labels[there]
        points, share = layout.project(points)
        if given is None:
            return cls(points, labels, explained_variance_ratio=share)
        apart = layout.select_spaced(points)
        pictures, readable = make_thumbnails(given, there[apart], PIXELS)
        return cls(
            points,
            labels,
            explained_variance_ratio=share,
            pictures=pictures[readable],
            pictured=apart[readable],
        )

    def plot(self, ax=None):
        """Draw the map.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where the map is drawn. With None, in a new figure.

        Returns
        -------
        display : EmbeddingDisplay
            Itself.
        """
        self.ax_ = ax = get_axes(ax, 7.0, 6.0)
        self.figure_ = ax.figure
        self.text_ = []
        clusters = np.unique(self.labels)
        styles = {
            cluster: (COLORS[i % len(COLORS)], MARKERS[i // len(COLORS) % 7])
            for i, cluster in enumerate(clusters)
        }
        ax.set_aspect("equal", adjustable="datalim")
        if self.pictures is None:
            self._draw_points(styles)
        else:
            self._draw_pictures(styles)
        if len(styles) <= MOST_NUMBERS:
            self._write_numbers(styles)
        ax.spines[:].set_color(GRAY)
        ax.set(xticks=[], yticks=[])
        if self.explained_variance_ratio is not None:
            across, up = self.explained_variance_ratio
            ax.set_xlabel(f"principal component 1, {across:.0%} of the variance")
            ax.set_ylabel(f"principal component 2, {up:.0%} of the variance")
        return self

    def _write_numbers(self, styles: dict) -> None:
        points = [self.projection[self.labels == cluster] for cluster in styles]
        medians = np.array([np.median(each, axis=0) for each in points])
        span = np.ptp(self.projection, axis=0)
        # One point of text in the units of the map, which may be a single place.
        unit = (span / size_in_points(self.ax_)).max() or 1.0
        room = unit * np.array([6 + 6 * max(len(str(name)) for name in styles), 14])
        for (x, y), (cluster, (color, _)) in zip(
            layout.spread_labels(medians, room), styles.items(), strict=True
        ):
            box = {"boxstyle": "round,pad=0.2", "fc": "white", "ec": color}
            style = {"ha": "center", "va": "center", "fontsize": 8, "bbox": box}
            self.text_.append(self.ax_.text(x, y, cluster, **style))

    def _draw_points(self, styles: dict) -> None:
        rows = layout.sample_points(len(self.labels))
        points, labels = self.projection[rows], self.labels[rows]
        size = np.clip(400 / np.sqrt(len(rows)), 3, 30)
        style = {"s": size, "alpha": 0.7, "linewidths": 0, "rasterized": True}
        for cluster, (color, marker) in styles.items():
            here = points[labels == cluster]
            self.ax_.scatter(*here.T, c=color, marker=marker, **style)

    def _draw_pictures(self, styles: dict) -> None:
        from matplotlib.colors import to_rgb
        from matplotlib.image import AxesImage

        side = layout.thumbnail_side(self.projection) or 1.0
        for edge in (self.projection - side / 2, self.projection + side / 2):
            self.ax_.update_datalim(edge)
        self.ax_.autoscale_view()
        for picture, row in zip(self.pictures, self.pictured, strict=True):
            color = 255 * np.array(to_rgb(styles[self.labels[row]][0]))
            framed = np.full(np.add(picture.shape, (2 * FRAME, 2 * FRAME, 0)), color)
            framed[FRAME:-FRAME, FRAME:-FRAME] = picture
            framed = np.rint(framed).astype(np.uint8)
            half = side / 2 * np.array(framed.shape[1::-1]) / max(framed.shape[:2])
            low, high = self.projection[row] - half, self.projection[row] + half
            extent = low[0], high[0], low[1], high[1]
            # Unlike imshow it leaves the limits as they are.
            image = AxesImage(self.ax_, extent=extent, origin="upper")
            image.set_data(framed)
            image.set_clip_path(self.ax_.patch)
            self.ax_.add_image(image)
