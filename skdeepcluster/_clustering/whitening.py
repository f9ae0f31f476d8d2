"""Points for k-means: PCA, whitening and L2 normalization of features."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.preprocessing import normalize as scale_rows
from sklearn.utils import gen_batches

from .._utils.distributed import Sharded
from .._utils.pages import row_blocks

# Share of the variance that n_components="auto" keeps.
EXPLAINED_VARIANCE = 0.99
# Number of components in the paper (section 3.4).
MAX_COMPONENTS = 256
# Rows in one product, so that no second copy of all features is made.
BATCH_ROWS = 8192
# Variances below this share of the largest are rounding errors of float32.
RANK_TOLERANCE = 1e-6
# Range of the total variance in which float32 holds each component without loss.
MODERATE_VARIANCE = 2.0**-40, 2.0**60
# Smallest standard deviation that has an inverse in float32.
MIN_SCALE = 1e-34
# With more features than this, a covariance matrix takes seconds to decompose.
WIDE_FEATURES = 1024
# Largest coordinate of a point. Its square fits into float32.
MAX_COORDINATE = 1e15
# Exponents of the powers of two by which float32 can be divided.
UNIT_EXPONENTS = -100, 100


@dataclass(frozen=True)
class Projection:
    """An affine map to the principal components and on to the unit sphere.

    Parameters
    ----------
    mean : ndarray of shape (d,), float32
    components : ndarray of shape (d, m), float32
        One column per component, divided by its standard deviation if whitened.
    normalize : bool
        Scale points to unit length.
    """

    mean: np.ndarray
    components: np.ndarray
    normalize: bool

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return points, float32 (n, m), of features, float32 (n, d)."""
        points = np.empty((len(features), self.components.shape[1]), np.float32)
        for rows in gen_batches(len(features), BATCH_ROWS):
            batch = points[rows]
            with np.errstate(over="ignore", invalid="ignore"):
                np.matmul(features[rows] - self.mean, self.components, out=batch)
            # Features of new images may be far from those of the fit. Their points are
            # clipped, so that squared distances stay finite.
            if not (batch.max() < MAX_COORDINATE and batch.min() > -MAX_COORDINATE):
                # NaN comes from infinities of both signs.
                np.nan_to_num(batch, copy=False, nan=MAX_COORDINATE)
                batch.clip(-MAX_COORDINATE, MAX_COORDINATE, out=batch)
        return scale_rows(points, copy=False) if self.normalize else points


@dataclass(frozen=True)
class Components:
    """Principal components of features, ordered by their variance.

    Parameters
    ----------
    mean : ndarray of shape (d,), float64
    unit : float
        Power of two in which variances and points are measured.
    variances : ndarray of shape (m,), float64
    vectors : ndarray of shape (d, m), float64
        One column per component.
    """

    mean: np.ndarray
    unit: float
    variances: np.ndarray
    vectors: np.ndarray

    def projection(
        self, n_components: str | int | None, whiten: bool, normalize: bool
    ) -> Projection:
        """Return the map from features to the points that are clustered.

        Points have a moderate size, so that their squares fit into float32.

        Parameters
        ----------
        n_components : "auto", int or None
            "auto" keeps 99 % of the variance in at most 256 components, since whitening
            all directions of small features amplifies the noisy ones. An int is an
            upper bound. None keeps all components. Directions without variance are
            always dropped.
        whiten : bool
            Scale each component to unit variance.
        normalize : bool
            Scale points to unit length.
        """
        variances = self.variances
        rank = max(1, int((variances > RANK_TOLERANCE * variances[0]).sum()))
        if isinstance(n_components, str):
            share = np.cumsum(variances) / max(variances.sum(), np.finfo(float).tiny)
            n_explaining = int(np.searchsorted(share, EXPLAINED_VARIANCE)) + 1
            n_components = min(MAX_COMPONENTS, rank, n_explaining)
        elif n_components is None:
            n_components = rank
        else:
            n_components = min(n_components, rank)
        components = self.vectors[:, :n_components] / self.unit
        # Smaller deviations, down to features without variance, have no inverse.
        if whiten and self.unit * np.sqrt(variances[0]) > MIN_SCALE:
            components = components / np.sqrt(variances[:n_components])
        return Projection(
            mean=self.mean.astype(np.float32),
            components=np.ascontiguousarray(components, dtype=np.float32),
            # With one component, unit length would leave only two distinct points.
            normalize=normalize and n_components > 1,
        )


def principal_components(features: Sharded) -> Components:
    """Find the principal components of features, float32 (n, d), in bounded memory.

    This is the PCA before clustering in section 3.4 of the paper. The components are
    the same bits in each process.
    """
    n, n_features = features.n_rows, features.values.shape[1]
    multiply = _feature_products
    # The products of rows have the same eigenvalues as the covariance, and are fewer.
    by_rows = n < n_features and n_features > WIDE_FEATURES
    all_processes = features.processes
    if by_rows:
        features = Sharded.whole(features.gather())
        multiply = _row_products
    values, processes = features.values, features.processes
    total = np.zeros(n_features)
    for rows in row_blocks(values):
        total += values[rows].sum(axis=0, dtype=np.float64)
    mean, unit = processes.sum(total) / n, 1.0
    # Squares of tiny or huge values are lost in float32, which the trace shows.
    with np.errstate(over="ignore", invalid="ignore"):
        products = processes.sum(multiply(values, mean, unit)) / max(1, n - 1)
    if not MODERATE_VARIANCE[0] < np.trace(products) < MODERATE_VARIANCE[1]:
        batches = _centered_batches(values, mean, 1.0)
        largest = max((np.abs(batch).max() for batch in batches), default=0.0)
        largest = max(processes.all_gather_object(largest))
        unit = 2.0 ** np.clip(np.frexp(largest)[1], *UNIT_EXPONENTS)
        products = processes.sum(multiply(values, mean, unit)) / max(1, n - 1)
    # Machines with different processors would compute different last bits.
    variances, vectors = all_processes.run_on_first(lambda: np.linalg.eigh(products))
    variances, vectors = variances[::-1].clip(min=0), vectors[:, ::-1]
    if by_rows:
        vectors = _vectors_of_features(values, mean, unit, variances, vectors)
    return Components(mean, unit, variances, vectors)


def _centered_batches(
    features: np.ndarray, mean: np.ndarray, unit: float
) -> Iterator[np.ndarray]:
    for rows in row_blocks(features, BATCH_ROWS):
        centered = features[rows] - mean.astype(np.float32)
        yield centered if unit == 1 else centered / np.float32(unit)


def _feature_products(
    features: np.ndarray, mean: np.ndarray, unit: float
) -> np.ndarray:
    """Return products of centered features, float64 (d, d)."""
    products = np.zeros((features.shape[1], features.shape[1]))
    for centered in _centered_batches(features, mean, unit):
        products += centered.T @ centered
    return products


def _row_products(features: np.ndarray, mean: np.ndarray, unit: float) -> np.ndarray:
    """Return products of centered rows, float64 (n, n)."""
    centered = np.concatenate(list(_centered_batches(features, mean, unit)))
    return (centered @ centered.T).astype(np.float64)


def _vectors_of_features(
    features: np.ndarray,
    mean: np.ndarray,
    unit: float,
    variances: np.ndarray,
    row_vectors: np.ndarray,
) -> np.ndarray:
    """Turn eigenvectors of the products of rows into directions of the features."""
    start = 0
    vectors = np.zeros((features.shape[1], len(features)))
    for centered in _centered_batches(features, mean, unit):
        vectors += centered.T @ row_vectors[start : start + len(centered)]
        start += len(centered)
    lengths = np.sqrt(variances * max(1, len(features) - 1))
    # Without variance there is no direction: division by infinity gives zero.
    lengths[variances <= RANK_TOLERANCE * variances[0]] = np.inf
    return vectors / lengths


def fit_projection(
    features: np.ndarray, n_components: str | int | None, whiten: bool, normalize: bool
) -> Projection:
    """Return the projection that is fitted to features, float32 (n, d)."""
    components = principal_components(Sharded.whole(features))
    return components.projection(n_components, whiten, normalize)
