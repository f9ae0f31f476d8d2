"""An embedding -> points in a plane, and what has room there."""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.utils import check_array

from .._utils.random import RandomStreams

MOST_POINTS = 20_000  # more would hide each other
SIDE = 1 / 18  # of a thumbnail, as a share of the map's longer side
STEPS = 200  # in which numbers move apart


def check_points(values, name: str, n: int) -> np.ndarray:
    """Return values as floating-point numbers, a row for each of `n` images."""
    kinds = [np.float32, np.float64]
    values = check_array(values, dtype=kinds, ensure_all_finite=False, input_name=name)
    if len(values) != n:
        raise ValueError(f"{name} holds {len(values)} rows for {n} images.")
    return values


def project(points: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return points (n, 2), and the share of the variance along each axis.

    Points of two values are returned as they are, and no shares.
    """
    if points.shape[1] == 2:
        return points, None
    if min(points.shape) < 2:
        raise ValueError(
            "A map needs at least 2 images with 2 values each, but there are "
            f"{points.shape[0]} with {points.shape[1]}."
        )
    with np.errstate(invalid="ignore"):  # all points are one: no variance to share
        pca = PCA(2, random_state=0).fit(points)
    return pca.transform(points), np.nan_to_num(pca.explained_variance_ratio_)


def thumbnail_side(points: np.ndarray) -> float:
    """Return the side of a thumbnail in the units of the map."""
    return SIDE * np.ptp(points, axis=0).max()


def sample_points(n: int) -> np.ndarray:
    """Return rows of some of `n` points, in random order."""
    return RandomStreams(0).numpy("map").permutation(n)[:MOST_POINTS]


def select_spaced(points: np.ndarray) -> np.ndarray:
    """Return rows of points, as many as have room for a thumbnail each."""
    side, chosen = thumbnail_side(points), np.empty(0, int)
    for row in sample_points(len(points)):
        away = np.abs(points[chosen] - points[row]).max(axis=1)
        if away.min(initial=np.inf) > side:
            chosen = np.append(chosen, row)
    return chosen


def spread_labels(points: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Move points (n, 2) a little, so that boxes of the size `room` do not overlap."""
    # Not even two that are at the same place stay there.
    points = points / room + 1e-3 * np.arange(len(points))[:, None] * [1, -1]
    for _ in range(STEPS):
        gaps = points[:, None] - points
        away = np.abs(gaps).max(axis=2, keepdims=True)
        lack = np.where((away > 0) & (away < 1), 1 - away, 0)
        if not lack.any():
            break
        points += (0.3 * lack * gaps / np.where(away > 0, away, 1)).sum(axis=1)
    return points * room
