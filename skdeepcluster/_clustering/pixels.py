"""Structure of the pixels without any network: components and mirror symmetry."""

import math

import numpy as np
import torch

from .._inputs.sources import ArraySource, Source
from .._utils.distributed import Sharded
from .._utils.pages import PageReleaser
from .graph import nearest_neighbors
from .kmeans import KMeansOptions, kmeans
from .nearest_centers import assign
from .whitening import Projection, fit_projection

# Number of values that an image is averaged down to before PCA.
MAX_VALUES = 1024
N_COMPONENTS = 64
# Number of values in one batch of images.
BATCH_VALUES = 2**22
# Mirrored images may be this much farther from their nearest image than images are.
SYMMETRY_RATIO = 1.15
# Mirrored images have to hit their own cluster at least this often, relative to images.
SYMMETRY_SHARE = 0.1


def fit_pixel_projection(source: Source, rows: np.ndarray) -> Projection:
    """Fit the principal components, at most 64, of the images at `rows`."""
    values = [_pool_pixels(batch) for batch in source.batches(_split(source, rows))]
    return fit_projection(
        np.concatenate(values), N_COMPONENTS, whiten=False, normalize=False
    )


def project_pixels(
    source: Source,
    projection: Projection,
    out: np.ndarray | None = None,
    rows: slice | None = None,
) -> np.ndarray:
    """Return the principal components of each image, float32 (n, n_components).

    Parameters
    ----------
    source : Source
    projection : Projection
        As `fit_pixel_projection` returns it.
    out : ndarray or None
        Array that the result is written to. None is a new array.
    rows : slice or None
        Images to project. None is all images.
    """
    selected = np.arange(len(source))[slice(None) if rows is None else rows]
    shape = len(selected), projection.components.shape[1]
    components = np.empty(shape, np.float32) if out is None else out
    releaser, start = PageReleaser(components), 0
    for batch in source.batches(_split(source, selected)):
        block = slice(start, start + len(batch))
        components[block] = projection(_pool_pixels(batch))
        releaser.count(block)
        start = block.stop
    releaser.release()
    return components


def is_mirror_symmetric(source: Source, rows: np.ndarray, n_clusters: int) -> bool:
    """Return whether mirrored images look like images of the same cluster.

    Two conditions have to hold for the images at `rows`. The median distance of a
    mirrored image to its nearest image is not much larger than that of an image. And
    the nearest image often lies in the same cluster of pixels. Photographs meet both.
    Digits and letters do not, since a mirrored sign is a different sign. Neither do
    images of classes that differ in direction.
    """
    images = source.batch(rows).numpy()
    projection = fit_pixel_projection(source, rows)
    points = project_pixels(ArraySource(images), projection)
    mirrored = project_pixels(ArraySource(images[..., ::-1]), projection)
    nearest, distances = nearest_neighbors(points, 1)
    mirrored_nearest, mirrored_distances = assign(mirrored, points)
    labels = kmeans(
        Sharded.whole(points),
        min(n_clusters, len(points)),
        KMeansOptions(n_init=3, empty_clusters="drop"),
        seed=0,
    ).labels
    agreement = np.mean(labels[nearest[:, 0]] == labels)
    mirrored_agreement = np.mean(labels[mirrored_nearest] == labels)
    # The distances are squared, and so is the ratio.
    max_distance = SYMMETRY_RATIO**2 * np.median(distances)
    is_close = np.median(mirrored_distances) <= max_distance
    return bool(is_close and mirrored_agreement >= SYMMETRY_SHARE * agreement)


def _split(source: Source, rows: np.ndarray) -> list[np.ndarray]:
    size = max(16, BATCH_VALUES // math.prod(source.shape))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _pool_pixels(batch: torch.Tensor) -> np.ndarray:
    """Average blocks of pixels down to at most 1,024 values; return float32 rows."""
    batch = batch.float().contiguous()
    if batch.ndim == 4:
        channels, height, width = batch.shape[1:]
        shrink = max(1.0, math.sqrt(channels * height * width / MAX_VALUES))
        size = max(1, int(height / shrink)), max(1, int(width / shrink))
        batch = torch.nn.functional.adaptive_avg_pool2d(batch, size)
    return batch.flatten(1).numpy()
