"""Images and their clusters -> one picture of them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from sklearn.utils._param_validation import StrOptions, validate_params
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._activations.layers import evaluation_mode
from .._activations.maps import read_image_input, split_into_batches
from .._activations.model import COUNT
from .._estimator import DeepClusterEstimator
from .._inputs.failures import ReadFailures
from .._inputs.read import NO_CLUSTER, InputData
from .._inputs.sources import Source
from .._inputs.spec import InputSpec
from .._utils.random import RandomStreams

GAP = 2  # white pixels between the images of a sheet
WHITE = 255


@validate_params(
    {
        "n_images": [COUNT],
        "which": [StrOptions({"nearest", "farthest", "random"})],
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
    which="nearest",
    size=64,
    random_state=None,
) -> np.ndarray:
    """Draw the images of one cluster in a square, or of all clusters in a row each.

    Parameters
    ----------
    model : DeepClusterEstimator or array-like of shape (n,)
        Fitted; or the cluster of each image, where -1 is none.
    X : array-like, tensor, folder, paths, pictures or dataset
        Images in any form that `DeepClusterEstimator.fit` takes.
    cluster : int, default=None
        Which cluster. None is all, in rising order from the top.
    n_images : int, default=25
        Largest number of images of a cluster.
    which : {"nearest", "farthest", "random"}, default="nearest"
        Whether the images are those whose embeddings are nearest to the cluster's
        center, nearest first, or farthest from it, farthest first, or any. Labels tell
        no centers, so for them it must be "random".
    size : int, default=64
        Longer side of an image in the sheet, in pixels.
    random_state : int, RandomState instance or None, default=None
        Seed for `which="random"`.

    Returns
    -------
    sheet : ndarray of shape (H, W, 3), uint8
        White where there is no image. Images are shown as the network sees them;
        channels other than red, green and blue as their mean. Pixels of files are
        taken as they are, other numbers such that the range of `X` is black to white.

    Raises
    ------
    ValueError
        If `X` or a parameter is not usable, or no image is in the cluster.

    Warns
    -----
    UserWarning
        If images cannot be read, with `on_error="skip"`. They are left out.

    See Also
    --------
    skdeepcluster.io.export_clusters : Folders of files, with a page to look at them.

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
    drawn = select_thumbnails(model, X, cluster, n_images, which, size, random_state)
    rows = drawn.rows
    if cluster is not None:
        (pictures,) = rows
        side = math.ceil(math.sqrt(len(pictures)))
        rows = [
            pictures[start : start + side] for start in range(0, len(pictures), side)
        ]
    return arrange_grid(rows)


@dataclass(frozen=True)
class ClusterThumbnails:
    """Pictures of the images of clusters."""

    clusters: list[int]
    sizes: list[int]  # images of X in each cluster
    rows: list[np.ndarray]  # for each cluster, uint8 (n, height, width, 3)


def select_thumbnails(
    model, X, cluster, n_images: int, which: str, size: int, random_state
) -> ClusterThumbnails:
    """Draw images of one cluster, or of all; the parameters are `contact_sheet`'s."""
    if isinstance(model, nn.Module):
        raise TypeError("A module has no clusters. Pass a DeepClusterEstimator.")
    given, failures, labels, distances = _clustered(model, X, which)
    there = np.unique(labels[labels != NO_CLUSTER])
    if isinstance(model, DeepClusterEstimator):
        there = np.arange(len(model.cluster_centers_))
    if cluster is not None and cluster not in there:
        raise ValueError(
            f"cluster={cluster!r} is none of the clusters, which are "
            f"{', '.join(map(str, there))}."
        )
    streams = RandomStreams.from_random_state(random_state)
    clusters = there.tolist() if cluster is None else [cluster]
    chosen, sizes = [], []
    for name in clusters:
        members = np.flatnonzero(labels == name)
        sizes.append(len(members))
        if distances is None or which == "random":
            # From the start for each cluster: the same images alone and among all.
            members = streams.numpy("sheet").permutation(members)
        else:
            order = distances[members] * (1 if which == "nearest" else -1)
            members = members[np.argsort(order, kind="stable")]
        chosen.append(members[:n_images])
    if not any(map(len, chosen)):
        name = "any cluster" if cluster is None else f"cluster {cluster}"
        raise ValueError(f"No image of X is in {name}. Pass other images.")
    pictures, readable = make_thumbnails(given, np.concatenate(chosen), size)
    failures.warn(given.n)
    ends = np.cumsum([len(members) for members in chosen])[:-1]
    parts = zip(np.split(pictures, ends), np.split(readable, ends), strict=True)
    return ClusterThumbnails(clusters, sizes, [row[kept] for row, kept in parts])


def _clustered(
    model, X, which: str
) -> tuple[InputData, ReadFailures, np.ndarray, np.ndarray | None]:
    """Return images, their clusters (-1 if none) and distances to the centers.

    Both are of the source's items.
    """
    if isinstance(model, DeepClusterEstimator):
        check_is_fitted(model)
        given, failures = read_image_input(X, model._input_spec(fitted=True))
        with evaluation_mode(model.module_, model.device_):
            embedding = model._embed(given.source)
        labels = model._assign(embedding)
        labels[~given.readable] = NO_CLUSTER
        distances = np.linalg.norm(embedding - model.cluster_centers_[labels], axis=1)
        return given, failures, labels, distances
    if which != "random":
        raise ValueError(
            f"which={which!r} needs the centers of clusters, which labels do not tell. "
            "Pass the fitted DeepClusterEstimator, or which='random'."
        )
    # Those that have no cluster need not be readable.
    given, failures = read_image_input(X, InputSpec(on_error="skip"))
    labels = np.asarray(model)
    if labels.shape != (given.n,):
        raise ValueError(
            f"model={type(model).__name__} should be a DeepClusterEstimator, or labels "
            f"of shape ({given.n},), one for each image of X; its shape is "
            f"{labels.shape}."
        )
    return given, failures, labels[given.rows], None


def make_thumbnails(
    given: InputData, rows: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return items of the source as pictures, and whether each could be read.

    They are uint8 (n, height, width, 3). The longer side is `size`.
    """
    source = given.source
    low, high = (0.0, 255.0) if given.paths is not None else _extremes(source)
    span = (high - low) or 1.0
    _, height, width = source.shape
    larger = size / max(height, width)
    height, width = (max(1, round(larger * side)) for side in (height, width))
    # Pixels of small images stay squares.
    how = Image.Resampling.NEAREST if larger >= 1 else Image.Resampling.BOX
    pictures = np.empty((len(rows), height, width, 3), np.uint8)
    parts = split_into_batches(len(rows), source.shape)
    for part, batch in zip(
        parts, source.batches([rows[part] for part in parts]), strict=True
    ):
        for place, image in zip(range(part.start, part.stop), batch, strict=True):
            values = image.double().numpy()
            if len(values) != 3:
                values = values.mean(axis=0, keepdims=True).repeat(3, axis=0)
            values = np.rint(255 * ((values - low) / span)).astype(np.uint8)
            picture = Image.fromarray(np.ascontiguousarray(values.transpose(1, 2, 0)))
            pictures[place] = np.asarray(picture.resize((width, height), how))
    return pictures, given.readable[rows]


def _extremes(source: Source) -> tuple[float, float]:
    parts = split_into_batches(len(source), source.shape)
    found = [torch.aminmax(batch) for batch in source.batches(parts)]
    return float(min(low for low, _ in found)), float(max(high for _, high in found))


def arrange_grid(rows: list[np.ndarray]) -> np.ndarray:
    """Put rows of pictures below each other, uint8 (H, W, 3)."""
    longest, (height, width) = max(map(len, rows)), rows[0].shape[1:3]
    down, across = height + GAP, width + GAP
    shape = (GAP + down * len(rows), GAP + across * longest, 3)
    sheet = np.full(shape, WHITE, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = GAP + down * i, GAP + across * j
            sheet[top : top + height, left : left + width] = picture
    return sheet
