"""What the pixels tell without any network: components, and mirror symmetry."""

import math

import numpy as np
import torch

from .._inputs.sources import ArraySource, Source
from .graph import nearest_neighbors
from .kmeans import assign, kmeans
from .whitening import Projection, fit_projection

MAX_VALUES = 1024  # of an image whose principal components are taken
N_COMPONENTS = 64
BATCH_VALUES = 2**22  # read at once
SYMMETRY_RATIO = 1.15  # largest ratio of distances at which they do
SYMMETRY_SHARE = 0.1  # smallest of neighbors in the own cluster, to unmirrored ones


def fit_pixel_projection(source: Source, rows: np.ndarray) -> Projection:
    """Fit the principal components, at most 64, of the items at `rows`."""
    parts = [_pooled(batch) for batch in source.batches(_split(source, rows))]
    return fit_projection(
        np.concatenate(parts), N_COMPONENTS, whiten=False, normalize=False
    )


def project_pixels(
    source: Source,
    projection: Projection,
    out: np.ndarray | None = None,
    rows: slice | None = None,
) -> np.ndarray:
    """Return the principal components of every item, or of those at `rows`, float32."""
    wanted = np.arange(len(source))[slice(None) if rows is None else rows]
    shape = len(wanted), projection.components.shape[1]
    found = np.empty(shape, np.float32) if out is None else out
    parts, start = _split(source, wanted), 0
    for batch in source.batches(parts):
        found[start : start + len(batch)] = projection(_pooled(batch))
        start += len(batch)
    return found


def is_mirror_symmetric(source: Source, rows: np.ndarray, n_clusters: int) -> bool:
    """Tell whether the images at `rows`, mirrored, look like others of the same kind.

    They do where their distance to the nearest image is, in the median, not much
    larger than that of the images themselves, unless that nearest image is hardly ever
    in the same cluster of pixels. Photographs pass; digits and letters, of which flips
    would make other signs, do not, nor do images whose kind is a side.
    """
    sample = source.batch(rows).numpy()
    projection = fit_pixel_projection(source, rows)
    points, mirrored = (
        project_pixels(ArraySource(images), projection)
        for images in (sample, sample[..., ::-1])
    )
    nearest, distances = nearest_neighbors(points, 1)
    other_nearest, other_distances = assign(mirrored, points)
    k = min(n_clusters, len(points))
    clusters = kmeans(points, k, n_init=3, empty_clusters="drop", seed=0).labels
    own = np.mean(clusters[nearest[:, 0]] == clusters)
    other = np.mean(clusters[other_nearest] == clusters)
    # Distances are squared.
    farthest = SYMMETRY_RATIO**2 * np.median(distances)
    fits_in = np.median(other_distances) <= farthest
    return bool(fits_in and other >= SYMMETRY_SHARE * own)


def _split(source: Source, rows: np.ndarray) -> list[np.ndarray]:
    step = max(16, BATCH_VALUES // math.prod(source.shape))
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def _pooled(batch: torch.Tensor) -> np.ndarray:
    """Average blocks of pixels down to at most 1,024 values; return float32 rows."""
    batch = batch.float().contiguous()
    if batch.ndim == 4:
        channels, height, width = batch.shape[1:]
        shrink = max(1.0, math.sqrt(channels * height * width / MAX_VALUES))
        size = max(1, int(height / shrink)), max(1, int(width / shrink))
        batch = torch.nn.functional.adaptive_avg_pool2d(batch, size)
    return batch.flatten(1).numpy()
