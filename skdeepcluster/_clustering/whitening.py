"""Features -> points for k-means: PCA, whitening and L2 normalization."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.preprocessing import normalize as scale_rows
from sklearn.utils import gen_batches

from .._utils.distributed import SINGLE_PROCESS, Processes, Sharded

EXPLAINED = 0.99  # share of the variance that n_components="auto" keeps
MAX_COMPONENTS = 256  # the paper's number (section 3.4)
ROWS = 8192  # at once: no second copy of all features is made
RANK_TOLERANCE = 1e-6  # of the largest variance: well above the rounding of float32
MODERATE = 2.0**-40, 2.0**60  # total variance whose parts float32 holds without loss
SMALLEST_SCALE = 1e-34
WIDE = 1024  # features; of more, a covariance takes seconds for its eigenvectors
FARTHEST = 1e15  # coordinate of a point
EXPONENTS = -100, 100  # of units by which float32 can be divided


@dataclass(frozen=True)
class Projection:
    """An affine map to the principal components and on to the unit sphere."""

    mean: np.ndarray  # (d,) float32
    components: np.ndarray  # (d, m) float32, divided by the scales where whitened
    normalize: bool

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return points, float32 (n, m), of features, float32 (n, d)."""
        points = np.empty((len(features), self.components.shape[1]), np.float32)
        for rows in gen_batches(len(features), ROWS):
            part = points[rows]
            with np.errstate(over="ignore", invalid="ignore"):
                np.matmul(features[rows] - self.mean, self.components, out=part)
            # Far from the features of the fit: squares must not overflow either.
            if not (part.max() < FARTHEST and part.min() > -FARTHEST):
                np.nan_to_num(part, copy=False, nan=FARTHEST)  # of both infinities
                part.clip(-FARTHEST, FARTHEST, out=part)
        return scale_rows(points, copy=False) if self.normalize else points


@dataclass(frozen=True)
class Components:
    """The principal components of features, in order of their variance."""

    mean: np.ndarray  # (d,) float64
    unit: float  # a power of two: what variances and points are measured in
    variances: np.ndarray  # (m,) float64, m = min(n, d) of n features
    vectors: np.ndarray  # (d, m) float64, a column for each

    def projection(
        self, n_components: str | int | None, whiten: bool, normalize: bool
    ) -> Projection:
        """Return what turns features into the points that are clustered.

        Points are of moderate size, so that their squares fit into float32.

        Parameters
        ----------
        n_components : "auto", int or None
            "auto" keeps 99 % of the variance in at most 256 components: whitening all
            directions of small features blows up those that are noise. An int is an
            upper bound; None keeps all. Directions without variance are always
            dropped.
        whiten : bool
            Whether each component is scaled to unit variance.
        normalize : bool
            Whether points are scaled to unit length.
        """
        variances = self.variances
        rank = max(1, int((variances > RANK_TOLERANCE * variances[0]).sum()))
        if isinstance(n_components, str):  # "auto"
            share = np.cumsum(variances) / max(variances.sum(), np.finfo(float).tiny)
            kept = min(MAX_COMPONENTS, rank, int(np.searchsorted(share, EXPLAINED)) + 1)
        else:
            kept = rank if n_components is None else min(n_components, rank)
        components = self.vectors[:, :kept] / self.unit
        # float32 has no inverse of what is smaller, down to features without variance.
        if whiten and self.unit * np.sqrt(variances[0]) > SMALLEST_SCALE:
            components = components / np.sqrt(variances[:kept])
        return Projection(
            self.mean.astype(np.float32),
            np.ascontiguousarray(components, dtype=np.float32),
            # On a line the unit sphere is two points.
            normalize and kept > 1,
        )


def principal_components(
    features: np.ndarray, processes: Processes = SINGLE_PROCESS
) -> Components:
    """Find the principal components of features, float32 (n, d), in bounded memory.

    Section 3.4 of the paper: PCA to 256 dimensions, whitening, L2 normalization. With
    several processes the features are those of this one's images.
    """
    held = processes.shard_from_sizes(len(features))
    n = held.n_rows
    # The products of rows have the same eigenvalues as the covariance.
    few = n < features.shape[1] and features.shape[1] > WIDE
    products, others = _covariance, processes
    if few:
        features = Sharded(features, held).gather()
        products, others = _products_of_rows, SINGLE_PROCESS
    mean, unit = others.sum(features.sum(axis=0, dtype=np.float64)) / n, 1.0
    # Squares of what is tiny or huge are lost in float32, which the trace tells.
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = others.sum(products(features, mean, unit)) / max(1, n - 1)
    if not MODERATE[0] < np.trace(matrix) < MODERATE[1]:
        parts = _centered(features, mean, 1.0)
        largest = max((np.abs(part).max() for part in parts), default=0.0)
        largest = max(others.all_gather_object(largest))
        unit = 2.0 ** np.clip(np.frexp(largest)[1], *EXPONENTS)
        matrix = others.sum(products(features, mean, unit)) / max(1, n - 1)
    # Everyone has the same bits, which machines of several kinds would not compute.
    variances, vectors = processes.run_on_first(lambda: np.linalg.eigh(matrix))
    variances, vectors = variances[::-1].clip(min=0), vectors[:, ::-1]
    if few:
        start = 0
        turned = np.zeros((features.shape[1], len(features)))
        for centered in _centered(features, mean, unit):
            turned += centered.T @ vectors[start : start + len(centered)]
            start += len(centered)
        lengths = np.sqrt(variances * max(1, len(features) - 1))
        lengths[variances <= RANK_TOLERANCE * variances[0]] = np.inf  # no direction
        vectors = turned / lengths
    return Components(mean, unit, variances, vectors)


def _centered(
    features: np.ndarray, mean: np.ndarray, unit: float
) -> Iterator[np.ndarray]:
    for rows in gen_batches(len(features), ROWS):
        centered = features[rows] - mean.astype(np.float32)
        yield centered if unit == 1 else centered / np.float32(unit)


def _covariance(features: np.ndarray, mean: np.ndarray, unit: float) -> np.ndarray:
    """Return products of features over a power of two, float64 (d, d)."""
    covariance = np.zeros((features.shape[1], features.shape[1]))
    for centered in _centered(features, mean, unit):
        covariance += centered.T @ centered
    return covariance


def _products_of_rows(features: np.ndarray, mean: np.ndarray, unit: float):
    """Return products of rows over a power of two, float64 (n, n)."""
    centered = np.concatenate(list(_centered(features, mean, unit)))
    return (centered @ centered.T).astype(np.float64)


def fit_projection(
    features: np.ndarray, n_components: str | int | None, whiten: bool, normalize: bool
) -> Projection:
    """Return the projection of features, float32 (n, d), that is fitted to them."""
    found = principal_components(features)
    return found.projection(n_components, whiten, normalize)
