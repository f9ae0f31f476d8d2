"""Placement of points, thumbnails and labels on a map of an embedding."""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.utils import check_array

from .._utils.random import RandomStreams

# Largest number of points on a map. More points would hide each other.
MAX_POINTS = 20_000
# Size of a thumbnail relative to the longer dimension of the map.
THUMBNAIL_SCALE = 1 / 18
# Largest number of steps that move overlapping labels apart.
MAX_STEPS = 200


def check_points(values, name: str, n: int) -> np.ndarray:
    """Return values as floating-point numbers with one row for each of `n` images."""
    dtypes = [np.float32, np.float64]
    values = check_array(values, dtype=dtypes, ensure_all_finite=False, input_name=name)
    if len(values) != n:
        raise ValueError(
            f"{name} holds {len(values)} rows for {n} images. Pass one row for each "
            "image."
        )
    return values


def project(points: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return points in two dimensions and the explained variance ratio of each axis.

    Points of two features are returned unchanged, with None for the ratios.
    """
    if points.shape[1] == 2:
        return points, None
    if min(points.shape) < 2:
        raise ValueError(
            f"The embedding has {points.shape[0]} rows and {points.shape[1]} columns. "
            "Pass at least 2 images with at least 2 features each."
        )
    # If all points are equal, scikit-learn divides by a variance of zero.
    with np.errstate(invalid="ignore"):
        pca = PCA(2, random_state=0).fit(points)
    return pca.transform(points), np.nan_to_num(pca.explained_variance_ratio_)


def thumbnail_size(points: np.ndarray) -> float:
    """Return the size of a thumbnail in the units of the map."""
    return THUMBNAIL_SCALE * np.ptp(points, axis=0).max()


def sample_points(n: int) -> np.ndarray:
    """Return the rows of at most `MAX_POINTS` of `n` points, in random order."""
    return RandomStreams(0).numpy("map").permutation(n)[:MAX_POINTS]


def select_spaced(points: np.ndarray) -> np.ndarray:
    """Return rows of points so spaced that their thumbnails do not overlap."""
    size, selected = thumbnail_size(points), np.empty(0, int)
    for row in sample_points(len(points)):
        distances = np.abs(points[selected] - points[row]).max(axis=1)
        if distances.min(initial=np.inf) > size:
            selected = np.append(selected, row)
    return selected


def spread_labels(positions: np.ndarray, box_sizes: np.ndarray) -> np.ndarray:
    """Move label positions slightly so that their boxes do not overlap.

    Parameters
    ----------
    positions : ndarray of shape (n, 2)
        Center of each label.
    box_sizes : ndarray of shape (n, 2)
        Width and height of each label.
    """
    # Distance of the centers at which two boxes touch.
    sizes = (box_sizes[:, None] + box_sizes) / 2
    # A tiny offset separates labels that share a position.
    offsets = 1e-3 * np.arange(len(positions))[:, None] * [1, -1]
    positions = positions + offsets * box_sizes
    for _ in range(MAX_STEPS):
        gaps = (positions[:, None] - positions) / sizes
        distances = np.abs(gaps).max(axis=2, keepdims=True)
        overlaps = np.where((distances > 0) & (distances < 1), 1 - distances, 0)
        if not overlaps.any():
            break
        steps = 0.3 * overlaps * gaps / np.where(distances > 0, distances, 1)
        positions += (steps * sizes).sum(axis=1)
    return positions
