"""What is in each cluster, as a row of its images."""

from sklearn.utils._param_validation import StrOptions, validate_params

from ..._activations.model import COUNT
from ..._estimator import DeepClusterEstimator
from ..._plot.drawing import get_axes, import_pyplot, label_rows
from .._sheets import GAP, arrange_grid, select_thumbnails

ROW = 0.5  # inches, the height of a row in a new figure
WORDS = {
    "nearest": "nearest to the center first",
    "farthest": "farthest from the center first",
    "random": "any of its images",
}


class ContactSheetDisplay:
    """Images of each cluster in a row, beside the cluster's number and its size.

    `from_estimator` and `from_predictions` make it and draw it. All parameters are
    stored as attributes.

    Parameters
    ----------
    sheet : ndarray of shape (H, W, 3), uint8
        Picture with a row for each cluster, such as `inspection.contact_sheet` draws.
    clusters : list of int
        The cluster of each row.
    sizes : list of int
        Number of images in each cluster.
    which : {"nearest", "farthest", "random"}, default="nearest"
        What images of a cluster are shown.

    Attributes
    ----------
    ax_ : matplotlib Axes
        With the sheet.
    figure_ : matplotlib Figure
        What it is in.

    See Also
    --------
    skdeepcluster.inspection.contact_sheet : The picture alone, or one cluster.
    skdeepcluster.io.export_clusters : Folders of files, with a page to look at them.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import ContactSheetDisplay
    >>> images, labels = load_digits().images, load_digits().target
    >>> display = ContactSheetDisplay.from_predictions(labels, images, random_state=0)
    >>> display.figure_.savefig("clusters.png")  # doctest: +SKIP
    """

    def __init__(self, sheet, *, clusters, sizes, which="nearest"):
        self.sheet = sheet
        self.clusters = clusters
        self.sizes = sizes
        self.which = which

    @classmethod
    @validate_params(
        {
            "estimator": [DeepClusterEstimator],
            "n_images": [COUNT],
            "which": [StrOptions(set(WORDS))],
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
        which="nearest",
        size=64,
        random_state=None,
        ax=None,
    ):
        """Draw the clusters that an estimator finds.

        Parameters
        ----------
        estimator : DeepClusterEstimator
            Fitted.
        X : array-like, tensor, folder, paths, pictures or dataset
            Images in any form that `DeepClusterEstimator.fit` takes.
        n_images : int, default=10
            Largest number of images of a cluster.
        which : {"nearest", "farthest", "random"}, default="nearest"
            Whether the images are those whose embeddings are nearest to the cluster's
            center, farthest from it, or any.
        size : int, default=64
            Longer side of an image in the sheet, in pixels.
        random_state : int, RandomState instance or None, default=None
            Seed for `which="random"`.
        ax : matplotlib Axes, default=None
            Where the sheet is drawn. With None, in a new figure.

        Returns
        -------
        display : ContactSheetDisplay
            Drawn. Images that cannot be read, with `on_error="skip"`, are left out.
        """
        import_pyplot()
        drawn = select_thumbnails(
            estimator, X, None, n_images, which, size, random_state
        )
        rows = {"clusters": drawn.clusters, "sizes": drawn.sizes}
        return cls(arrange_grid(drawn.rows), **rows, which=which).plot(ax)

    @classmethod
    @validate_params(
        {"n_images": [COUNT], "size": [COUNT], "random_state": ["random_state"]},
        prefer_skip_nested_validation=True,
    )
    def from_predictions(
        cls, labels, X, *, n_images=10, size=64, random_state=None, ax=None
    ):
        """Draw clusters that are given, of which random images are shown.

        Parameters
        ----------
        labels : array-like of shape (n,), int
            The cluster of each image, where -1 is none.
        X : array-like, tensor, folder, paths, pictures or dataset
            Images in any form that `DeepClusterEstimator.fit` takes.
        n_images : int, default=10
            Largest number of images of a cluster.
        size : int, default=64
            Longer side of an image in the sheet, in pixels.
        random_state : int, RandomState instance or None, default=None
            Seed for the choice of images.
        ax : matplotlib Axes, default=None
            Where the sheet is drawn. With None, in a new figure.

        Returns
        -------
        display : ContactSheetDisplay
            Drawn. Images that cannot be read are left out.
        """
        import_pyplot()
        drawn = select_thumbnails(
            labels, X, None, n_images, "random", size, random_state
        )
        rows = {"clusters": drawn.clusters, "sizes": drawn.sizes}
        return cls(arrange_grid(drawn.rows), **rows, which="random").plot(ax)

    def plot(self, ax=None):
        """Draw the sheet.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where the sheet is drawn. With None, in a new figure.

        Returns
        -------
        display : ContactSheetDisplay
            Itself.
        """
        height, width = self.sheet.shape[:2]
        step = (height - GAP) / len(self.clusters)
        across = ROW * width / step
        self.ax_ = get_axes(ax, 1.4 + across, 0.4 + ROW * len(self.clusters))
        self.figure_ = self.ax_.figure
        self.ax_.imshow(self.sheet)
        middles = [
            (row + 0.5) * step + GAP / 2 - 0.5 for row in range(len(self.clusters))
        ]
        names = [
            f"{cluster}  ({size:,})"
            for cluster, size in zip(self.clusters, self.sizes, strict=True)
        ]
        label_rows(self.ax_, middles, names, "cluster (images)")
        self.ax_.set_title(WORDS[self.which], loc="left", fontsize="medium", pad=4)
        return self
