"""Display of a contact sheet: one row of images for each cluster."""

from sklearn.utils._param_validation import StrOptions, validate_params

from ..._activations.model import COUNT
from ..._estimator import DeepClusterEstimator
from ..._plot.drawing import (
    get_axes,
    import_pyplot,
    label_cluster,
    label_rows,
    label_width,
)
from ..._utils.neutral_state import with_neutral_state
from .._sheets import (
    GAP,
    ClusteredImages,
    arrange_grid,
    match_labels,
    predict_clusters,
    select_thumbnails,
)

# Height of a row in a new figure, in inches.
ROW_HEIGHT = 0.5
HEADER = "cluster (images)"
TITLES = {
    "nearest": "nearest to the center first",
    "farthest": "farthest from the center first",
    "random": "random images",
}


class ContactSheetDisplay:
    """One row of images for each cluster, with the cluster's number, name and size.

    Create it with `from_estimator` or `from_predictions`. All parameters are stored
    as attributes.

    Parameters
    ----------
    sheet : ndarray of shape (H, W, 3), uint8
        Image with one row for each cluster, as `inspection.contact_sheet` returns it.
    clusters : list of int
        Cluster of each row.
    sizes : list of int
        Number of images in each cluster.
    order : {"nearest", "farthest", "random"}, default="nearest"
        Order of a cluster's images, for the title.
    cluster_names : array-like of str, default=None
        Name of each cluster, such as `cluster_names_`. With None, clusters have their
        numbers only.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes of the sheet.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    skdeepcluster.inspection.contact_sheet : Return the image alone, or one cluster.
    skdeepcluster.io.export_clusters : Copy files into one folder for each cluster.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster.inspection import ContactSheetDisplay
    >>> images, labels = load_digits().images, load_digits().target
    >>> display = ContactSheetDisplay.from_predictions(labels, images, random_state=0)
    >>> display.figure_.savefig("clusters.png")  # doctest: +SKIP
    """

    def __init__(self, sheet, *, clusters, sizes, order="nearest", cluster_names=None):
        self.sheet = sheet
        self.clusters = clusters
        self.sizes = sizes
        self.order = order
        self.cluster_names = cluster_names

    @classmethod
    @with_neutral_state
    @validate_params(
        {
            "estimator": [DeepClusterEstimator],
            "n_images": [COUNT],
            "order": [StrOptions(set(TITLES))],
            "size": [COUNT],
            "random_state": ["random_state"],
        },
        prefer_skip_nested_validation=True,
    )
    def from_estimator(
        cls,
        estimator,
        X,
        *,
        n_images=10,
        order="nearest",
        size=64,
        random_state=None,
        ax=None,
    ):
        """Draw the clusters that an estimator predicts.

        Parameters
        ----------
        estimator : DeepClusterEstimator
            Fitted estimator.
        X : array-like, tensor, folder, paths, PIL images or dataset
            Images in any form that `DeepClusterEstimator.fit` takes.
        n_images : int, default=10
            Largest number of images of a cluster.
        order : {"nearest", "farthest", "random"}, default="nearest"
            Order of a cluster's images. "nearest" starts with the embeddings nearest
            to the center, which are typical of the cluster. "farthest" starts with
            the outliers. "random" draws at random.
        size : int, default=64
            Longer dimension of a thumbnail in pixels.
        random_state : int, RandomState instance or None, default=None
            Seed for `order="random"`. Pass an int for reproducible results.
        ax : matplotlib Axes, default=None
            Axes to draw on. With None, a new figure is created.

        Returns
        -------
        display : ContactSheetDisplay
            The drawn display. Images that cannot be read are left out if
            `on_error="skip"`.
        """
        # Fail before the prediction if matplotlib is missing.
        import_pyplot()
        return cls._from_images(
            predict_clusters(estimator, X),
            n_images=n_images,
            order=order,
            size=size,
            random_state=random_state,
            cluster_names=estimator.cluster_names_,
        ).plot(ax)

    @classmethod
    @with_neutral_state
    @validate_params(
        {"n_images": [COUNT], "size": [COUNT], "random_state": ["random_state"]},
        prefer_skip_nested_validation=True,
    )
    def from_predictions(
        cls, labels, X, *, n_images=10, size=64, random_state=None, ax=None
    ):
        """Draw random images of the clusters of any clustering.

        Parameters
        ----------
        labels : array-like of shape (n,), int
            Cluster of each image, -1 for none.
        X : array-like, tensor, folder, paths, PIL images or dataset
            Images in any form that `DeepClusterEstimator.fit` takes.
        n_images : int, default=10
            Largest number of images of a cluster.
        size : int, default=64
            Longer dimension of a thumbnail in pixels.
        random_state : int, RandomState instance or None, default=None
            Seed of the selection of images. Pass an int for reproducible results.
        ax : matplotlib Axes, default=None
            Axes to draw on. With None, a new figure is created.

        Returns
        -------
        display : ContactSheetDisplay
            The drawn display. Images that cannot be read are left out.
        """
        import_pyplot()
        return cls._from_images(
            match_labels(labels, X),
            n_images=n_images,
            order="random",
            size=size,
            random_state=random_state,
        ).plot(ax)

    @classmethod
    def _from_images(
        cls,
        images: ClusteredImages,
        *,
        n_images,
        order,
        size,
        random_state,
        cluster_names=None,
    ):
        thumbnails = select_thumbnails(
            images,
            cluster=None,
            n_images=n_images,
            order=order,
            size=size,
            random_state=random_state,
        )
        return cls(
            arrange_grid(thumbnails.rows),
            clusters=thumbnails.clusters,
            sizes=thumbnails.sizes,
            order=order,
            cluster_names=cluster_names,
        )

    @with_neutral_state
    def plot(self, ax=None):
        """Draw the sheet.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on. With None, a new figure is created.

        Returns
        -------
        display : ContactSheetDisplay
            The display itself.
        """
        n_rows = len(self.clusters)
        height, width = self.sheet.shape[:2]
        row_step = (height - GAP) / n_rows
        sheet_width = ROW_HEIGHT * width / row_step
        labels = [
            f"{label_cluster(cluster, self.cluster_names)}  ({size:,})"
            for cluster, size in zip(self.clusters, self.sizes, strict=True)
        ]
        self.ax_ = get_axes(
            ax,
            label_width([HEADER, *labels]) + sheet_width,
            0.4 + ROW_HEIGHT * n_rows,
        )
        self.figure_ = self.ax_.figure
        self.ax_.imshow(self.sheet)
        # imshow puts the center of the first pixel at 0.
        centers = [(row + 0.5) * row_step + GAP / 2 - 0.5 for row in range(n_rows)]
        label_rows(self.ax_, centers, labels, header=HEADER)
        self.ax_.set_title(TITLES[self.order], loc="left", fontsize="medium", pad=4)
        return self
