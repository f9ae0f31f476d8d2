"""Contact sheets: thumbnails of the images of each cluster in a grid."""

import math
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from PIL import Image
from sklearn.utils._param_validation import StrOptions, validate_params
from sklearn.utils.validation import check_is_fitted

from .._activations.layers import evaluation_mode
from .._activations.maps import read_image_input, split_into_batches
from .._activations.model import COUNT
from .._estimator import DeepClusterEstimator
from .._inputs.failures import ReadFailures
from .._inputs.read import NO_CLUSTER, InputData
from .._inputs.sources import Source
from .._inputs.spec import InputSpec
from .._utils.neutral_state import with_neutral_state
from .._utils.random import RandomStreams

# Number of white pixels between the images of a sheet.
GAP = 2
WHITE = 255


@with_neutral_state
@validate_params(
    {
        "cluster": [Integral, None],
        "n_images": [COUNT],
        "order": [StrOptions({"nearest", "farthest", "random"})],
        "size": [COUNT],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def contact_sheet(
    model,
    X,
    cluster=None,
    *,
    n_images=25,
    order="nearest",
    size=64,
    random_state=None,
) -> np.ndarray:
    """Draw images of one cluster in a square, or of each cluster in a row.

    Parameters
    ----------
    model : DeepClusterEstimator
        Fitted estimator. For the labels of another clustering, use
        `ContactSheetDisplay.from_predictions`.
    X : array-like, tensor, folder, paths, PIL images or dataset
        Images in any form that `DeepClusterEstimator.fit` takes.
    cluster : int, default=None
        Cluster to draw. With None, all clusters are drawn, in ascending order.
    n_images : int, default=25
        Largest number of images of a cluster.
    order : {"nearest", "farthest", "random"}, default="nearest"
        Order of a cluster's images. "nearest" starts with the embeddings nearest to
        the center, which are typical of the cluster. "farthest" starts with the
        outliers. "random" draws at random.
    size : int, default=64
        Longer dimension of a thumbnail in pixels.
    random_state : int, RandomState instance or None, default=None
        Seed for `order="random"`. Pass an int for reproducible results.

    Returns
    -------
    sheet : ndarray of shape (H, W, 3), uint8
        Sheet on white, with the images as the network receives them. Images without
        three channels are shown in gray, as the mean of their channels. Pixels of
        files are not scaled; the range of other values is mapped to black and white.

    Raises
    ------
    TypeError
        If `model` is not a DeepClusterEstimator.
    ValueError
        If `X` or a parameter is invalid, or the cluster has no image.

    Warns
    -----
    UserWarning
        If images cannot be read and `on_error="skip"`. They are left out.

    See Also
    --------
    ContactSheetDisplay : Draw the sheet with names and sizes of the clusters.
    skdeepcluster.io.export_clusters : Link or copy files into one folder per cluster.

    Examples
    --------
    >>> from PIL import Image
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.inspection import contact_sheet
    >>> images = load_digits().images[:300]
    >>> model = DeepClusterEstimator(n_clusters=10, max_iter=1, random_state=0)
    >>> sheet = contact_sheet(model.fit(images), images, cluster=3, n_images=9)
    >>> sheet.shape
    (200, 200, 3)
    >>> Image.fromarray(sheet).save("sheet.png")  # doctest: +SKIP
    """
    if not isinstance(model, DeepClusterEstimator):
        raise TypeError(
            f"model is a {type(model).__name__}, not a DeepClusterEstimator. To draw "
            "labels, use ContactSheetDisplay.from_predictions(labels, X)."
        )
    thumbnails = select_thumbnails(
        predict_clusters(model, X),
        cluster=cluster,
        n_images=n_images,
        order=order,
        size=size,
        random_state=random_state,
    )
    rows = thumbnails.rows
    if cluster is not None:
        (images,) = rows
        # One cluster is drawn as a square instead of one long row.
        n_columns = math.ceil(math.sqrt(len(images)))
        starts = range(0, len(images), n_columns)
        rows = [images[start : start + n_columns] for start in starts]
    return arrange_grid(rows)


@dataclass(frozen=True)
class ClusteredImages:
    """Images and their clusters.

    Attributes
    ----------
    data : InputData
    failures : ReadFailures
    labels : ndarray of shape (n,), int
        Cluster of each image in `data.source`, -1 for none.
    clusters : ndarray of int
        All clusters in ascending order, also empty ones.
    distances : ndarray of shape (n,) or None
        Distance of each embedding to the center of its cluster, if it is known.
    """

    data: InputData
    failures: ReadFailures
    labels: np.ndarray
    clusters: np.ndarray
    distances: np.ndarray | None


@dataclass(frozen=True)
class ClusterThumbnails:
    """Thumbnails of the images of clusters.

    Attributes
    ----------
    clusters : list of int
    sizes : list of int
        Number of images of `X` in each cluster.
    rows : list of ndarray of shape (n_images, height, width, 3), uint8
        Thumbnails of each cluster.
    """

    clusters: list[int]
    sizes: list[int]
    rows: list[np.ndarray]


def predict_clusters(estimator: DeepClusterEstimator, X) -> ClusteredImages:
    """Read images and predict their clusters."""
    check_is_fitted(estimator)
    data, failures = read_image_input(X, estimator._input_spec(fitted=True))
    embedding, labels = embed_and_predict(estimator, data)
    centers = estimator.cluster_centers_
    return ClusteredImages(
        data=data,
        failures=failures,
        labels=labels,
        clusters=np.arange(len(centers)),
        distances=np.linalg.norm(embedding - centers[labels], axis=1),
    )


def embed_and_predict(
    estimator: DeepClusterEstimator, data: InputData
) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings and clusters of the source's images, -1 for unreadable ones."""
    with evaluation_mode(estimator.module_, estimator.device_):
        embedding = estimator._embed(data.source)
    labels = estimator._assign(embedding)
    labels[~data.readable] = NO_CLUSTER
    return embedding, labels


def match_labels(labels, X) -> ClusteredImages:
    """Read images that have labels already, from any clustering."""
    # Images of cluster -1 may be unreadable, and the format is unknown.
    data, failures = read_image_input(X, InputSpec(on_error="skip"))
    labels = np.asarray(labels)
    if labels.shape != (data.n,):
        raise ValueError(
            f"labels has shape {labels.shape}, but X holds {data.n} images. Pass "
            f"labels of shape ({data.n},), one for each image."
        )
    labels = labels[data.rows]
    return ClusteredImages(
        data=data,
        failures=failures,
        labels=labels,
        clusters=np.unique(labels[labels != NO_CLUSTER]),
        distances=None,
    )


def select_thumbnails(
    images: ClusteredImages,
    *,
    cluster: int | None,
    n_images: int,
    order: str,
    size: int,
    random_state,
) -> ClusterThumbnails:
    """Return thumbnails of one cluster, or of all; the parameters of `contact_sheet`.

    Without distances to the centers, the order is random.
    """
    if cluster is not None and cluster not in images.clusters:
        raise ValueError(
            f"cluster={cluster!r} does not exist. The clusters are "
            f"{', '.join(map(str, images.clusters))}."
        )
    streams = RandomStreams.from_random_state(random_state)
    clusters = images.clusters.tolist() if cluster is None else [cluster]
    selected, sizes = [], []
    for name in clusters:
        members = np.flatnonzero(images.labels == name)
        sizes.append(len(members))
        if images.distances is None or order == "random":
            # A new generator each time: a cluster shows the same images alone and
            # among all clusters.
            members = streams.numpy("sheet").permutation(members)
        else:
            keys = images.distances[members] * (1 if order == "nearest" else -1)
            members = members[np.argsort(keys, kind="stable")]
        selected.append(members[:n_images])
    if not any(map(len, selected)):
        name = "any cluster" if cluster is None else f"cluster {cluster}"
        raise ValueError(f"No image of X is in {name}. Pass more images.")
    thumbnails, is_readable = make_thumbnails(
        images.data, np.concatenate(selected), size
    )
    images.failures.warn(images.data.n)
    ends = np.cumsum([len(members) for members in selected])[:-1]
    rows = [
        row[mask]
        for row, mask in zip(
            np.split(thumbnails, ends), np.split(is_readable, ends), strict=True
        )
    ]
    return ClusterThumbnails(clusters=clusters, sizes=sizes, rows=rows)


def make_thumbnails(
    data: InputData, rows: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return thumbnails of some images of a source.

    Parameters
    ----------
    data : InputData
    rows : ndarray of int
        Rows of the source.
    size : int
        Longer dimension of a thumbnail in pixels.

    Returns
    -------
    thumbnails : ndarray of shape (n, height, width, 3), uint8
    is_readable : ndarray of shape (n,), bool
    """
    source = data.source
    low, high = (0.0, 255.0) if data.paths is not None else _value_range(source)
    span = (high - low) or 1.0
    _, height, width = source.shape
    scale = size / max(height, width)
    height, width = (max(1, round(scale * length)) for length in (height, width))
    # Nearest-neighbor resampling shows the pixels of small images as squares.
    resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    thumbnails = np.empty((len(rows), height, width, 3), np.uint8)
    batches = split_into_batches(len(rows), source.shape)
    source_batches = source.batches([rows[batch] for batch in batches])
    for batch, images in zip(batches, source_batches, strict=True):
        for i, image in zip(range(batch.start, batch.stop), images, strict=True):
            values = image.double().numpy()
            # An image of 2 or 5 channels has no colors.
            if len(values) != 3:
                values = values.mean(axis=0, keepdims=True).repeat(3, axis=0)
            values = np.rint(255 * ((values - low) / span)).astype(np.uint8)
            pixels = np.ascontiguousarray(values.transpose(1, 2, 0))
            thumbnail = Image.fromarray(pixels).resize((width, height), resample)
            thumbnails[i] = np.asarray(thumbnail)
    # Only decoding shows which files are broken, so the mask is taken here.
    return thumbnails, data.readable[rows]


def _value_range(source: Source) -> tuple[float, float]:
    batches = split_into_batches(len(source), source.shape)
    ranges = [torch.aminmax(images) for images in source.batches(batches)]
    return float(min(low for low, _ in ranges)), float(max(high for _, high in ranges))


def arrange_grid(rows: list[np.ndarray]) -> np.ndarray:
    """Arrange rows of images (n, height, width, 3) in a grid, uint8 (H, W, 3)."""
    # An empty cluster has an empty row.
    n_columns, (height, width) = max(map(len, rows)), rows[0].shape[1:3]
    row_step, column_step = height + GAP, width + GAP
    shape = (GAP + row_step * len(rows), GAP + column_step * n_columns, 3)
    sheet = np.full(shape, WHITE, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = GAP + row_step * i, GAP + column_step * j
            sheet[top : top + height, left : left + width] = image
    return sheet
