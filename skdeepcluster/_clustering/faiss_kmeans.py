"""FaissKMeans: k-means on faiss or torch as a scikit-learn estimator."""

from dataclasses import replace
from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from .._inputs.tables import ROW_FORMS, check_rows
from .._utils.coordinates import Coordinates, batches_of, choose_coordinates
from .._utils.device import resolve_device
from .._utils.distributed import Sharded
from .._utils.messages import warn
from .._utils.neutral_state import with_neutral_state
from .._utils.random import RandomStreams
from .kmeans import KMeansOptions, kmeans
from .nearest_centers import assign

# Ratio of the inertia to its rounding error in float32 below which k-means is repeated
# in float64: each squared distance is then exact to about one percent only.
COARSE_RATIO = 100
# Types of numbers that rows keep until their origin is subtracted. scikit-learn
# converts other types to the first.
NUMBERS = [
    np.float64,
    np.float32,
    np.float16,
    *(np.int8, np.int16, np.int32, np.int64),
    *(np.uint8, np.uint16, np.uint32, np.uint64),
]


class FaissKMeans(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator
):
    """K-means on faiss, without empty clusters.

    Lloyd's algorithm on all rows, in float32 after a shift of columns that lie far from
    zero. The nearest centers are exact. They come from faiss, from products in bfloat16
    that float32 checks where the processor has instructions for bfloat16, or from torch
    on accelerators that faiss does not support. Use it for many rows and many clusters,
    where :class:`sklearn.cluster.KMeans` is slow.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters.

    init : {"k-means++", "random"} or array-like of shape (n_clusters, n_features), \
            default="k-means++"
        Method for initialization:

        - "k-means++": draw rows one after another, with probability proportional to
          the squared distance to the nearest row drawn so far;
        - "random": draw rows uniformly, without replacement;
        - an array: the initial centers.

    n_init : int, default=1
        Number of runs from different initial centers. The run with the lowest inertia
        is kept. With an array as `init` there is a single run. Raise it for few
        clusters, where single runs end in poor optima.

    max_iter : int, default=25
        Maximum number of iterations of a run.

    tol : float, default=1e-4
        Tolerance. A run ends when the squared shift of all centers is at most `tol`
        times the mean variance of the features.

    spherical : bool, default=False
        Scale centers to unit length, and assign each row to the center with the
        largest inner product. Rows are used as they are. Scale rows to unit length to
        cluster by cosine similarity.

    empty_clusters : {"split", "farthest", "drop", "raise"}, default="split"
        Policy for clusters without rows, in each iteration and at the end:

        - "split": cut a large cluster in two by a random hyperplane through its
          center, as DeepCluster does [1]_;
        - "farthest": move the center to the row that is farthest from its center;
        - "drop": remove empty clusters at the end, so that fewer than `n_clusters`
          remain;
        - "raise": raise a `ValueError` at the end.

    backend : {"auto", "faiss", "torch"}, default="auto"
        Library that finds the nearest centers. "auto" is faiss on the CPU, and on CUDA
        if the installed faiss supports GPUs; it is torch on other accelerators.

    device : str or torch.device, default="auto"
        Device that finds the nearest centers. "auto" is the first available of CUDA,
        XPU, MPS and the CPU.

    random_state : int, RandomState instance or None, default=None
        Seed of the initial centers and of the cuts of "split". Pass an int for results
        that are the same, bit for bit, on the same machine with the same number of
        threads.

    verbose : int, default=0
        Print one line per run if larger than 0.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features)
        Centers: float32 if `X` is float32 and lies near zero, else float64. There are
        fewer than `n_clusters` if clusters were dropped, or if `X` has fewer distinct
        rows.

    labels_ : ndarray of shape (n_samples,), int32
        Cluster of each row of the training data, equal to `predict(X)`.

    inertia_ : float
        Sum of the squared distances of the rows to their centers.

    n_iter_ : int
        Number of iterations of the best run.

    n_empty_clusters_ : int
        Number of clusters that were empty at the end of the best run, before
        `empty_clusters` was applied.

    n_features_in_ : int
        Number of features seen during :meth:`fit`.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during :meth:`fit`. Defined only when `X` has feature
        names that are all strings.

    See Also
    --------
    DeepClusterEstimator : Cluster images by features learned from the clusters.
    sklearn.cluster.KMeans : K-means in float32 or float64, with sample weights.

    Notes
    -----
    Distances are computed in float32, which holds seven decimal digits. From columns
    that lie far from zero, such as timestamps, map coordinates and years, the median is
    subtracted first, in float64. The seven digits then describe the spread of the
    column. If clusters are still so small, compared with their distances, that float32
    confuses them, k-means is repeated by torch in float64, unless `X` is float32. With
    `spherical=True` nothing is subtracted, since directions would change.

    With "split" and "farthest" no cluster is empty if `X` has at least `n_clusters`
    distinct rows. If `X` has fewer, each distinct row becomes a cluster and a
    :class:`~sklearn.exceptions.ConvergenceWarning` is raised. All rows are used, while
    `faiss.Kmeans` by default samples 256 rows per cluster.

    References
    ----------
    .. [1] M. Caron, P. Bojanowski, A. Joulin, M. Douze, "Deep Clustering for
       Unsupervised Learning of Visual Features", ECCV 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from skdeepcluster import FaissKMeans
    >>> X = np.array([[1, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> kmeans = FaissKMeans(n_clusters=2, n_init=10, random_state=0).fit(X)
    >>> bool(kmeans.labels_[0] != kmeans.labels_[3])
    True
    >>> kmeans.predict([[0, 0], [12, 3]]) == kmeans.labels_[[0, 3]]
    array([ True,  True])
    >>> kmeans.inertia_
    16.0
    """

    _parameter_constraints: dict = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "init": [StrOptions({"k-means++", "random"}), "array-like"],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "spherical": ["boolean"],
        "empty_clusters": [StrOptions({"split", "farthest", "drop", "raise"})],
        "backend": [StrOptions({"auto", "faiss", "torch"})],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_clusters=8,
        *,
        init="k-means++",
        n_init=1,
        max_iter=25,
        tol=1e-4,
        spherical=False,
        empty_clusters="split",
        backend="auto",
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.spherical = spherical
        self.empty_clusters = empty_clusters
        self.backend = backend
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @with_neutral_state
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Compute k-means clusters.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to cluster.
        y : None
            Ignored.

        Returns
        -------
        FaissKMeans
            The fitted estimator.
        """
        values = self._check(X, reset=True)
        # Directions of rows, which spherical clusters compare, have a fixed origin, and
        # spherical centers have unit length, whatever the unit of the rows.
        coordinates = choose_coordinates(values, shifts=not self.spherical)
        points, squares = _scale(values, coordinates, "X")
        if len(points) < self.n_clusters:
            raise ValueError(
                f"n_samples={len(points)} should be >= n_clusters={self.n_clusters}. "
                "Pass more rows or lower n_clusters."
            )
        init = start = self.init
        if not isinstance(init, str):
            init = check_array(
                init, dtype=NUMBERS, ensure_all_finite=False, input_name="init"
            )
            shape = (self.n_clusters, points.shape[1])
            if init.shape != shape:
                raise ValueError(
                    f"init has shape {init.shape}, but needs (n_clusters, n_features)="
                    f"{shape}."
                )
            start, _ = _scale(init, coordinates, "init")
        options = KMeansOptions(
            init=start,
            n_init=self.n_init,
            max_iter=self.max_iter,
            tol=self.tol,
            spherical=self.spherical,
            empty_clusters=self.empty_clusters,
            backend=self.backend,
            device=resolve_device(self.device),
            verbose=self.verbose,
        )
        seed = RandomStreams.from_random_state(self.random_state).seed("kmeans")
        result = kmeans(Sharded.whole(points), self.n_clusters, options, seed)
        inertia = _inertia(points, result.centers, result.labels)
        # Products of float32 would confuse clusters that are tiny compared with their
        # distances. float32 rows have no more digits to offer.
        error = np.finfo(np.float32).eps * squares.sum(dtype=np.float64)
        is_coarse = not self.spherical and 0 < inertia < COARSE_RATIO * error
        if is_coarse and values.dtype != np.float32:
            points = coordinates.convert(values, np.float64)
            if not isinstance(init, str):
                start = coordinates.convert(init, np.float64)
            options = replace(
                options, init=start, backend="torch", device=self._exact_device()
            )
            result = kmeans(Sharded.whole(points), self.n_clusters, options, seed)
            inertia = _inertia(points, result.centers, result.labels)
        if len(result.centers) < self.n_clusters and self.empty_clusters != "drop":
            warn(
                f"Number of distinct points ({len(result.centers)}) is smaller than "
                f"n_clusters ({self.n_clusters}) in float32 arithmetic: "
                f"{len(result.centers)} clusters remain. Lower n_clusters, or look for "
                "repeated rows.",
                ConvergenceWarning,
            )
        # The coordinates of the centers are stored as well, since `cluster_centers_`
        # rounds them.
        self._coordinates, self._centers = coordinates, result.centers
        # As in scikit-learn, centers are float64 unless X is float32. Far from zero
        # float32 would move them.
        is_near = not coordinates.origin.any()
        dtype = np.float32 if values.dtype == np.float32 and is_near else np.float64
        self.cluster_centers_ = coordinates.to_values(result.centers).astype(dtype)
        self.labels_ = result.labels
        self.inertia_ = inertia * coordinates.unit**2
        self.n_iter_ = result.n_iter
        self.n_empty_clusters_ = result.n_empty_before
        return self

    @with_neutral_state
    def predict(self, X):
        """Predict the nearest center of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,), int32
            Cluster of each row. For the training data it equals `labels_`.
        """
        return self._assign(self._points(X))

    @with_neutral_state
    def transform(self, X):
        """Compute the distances of rows to all centers.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_clusters), float32
            Euclidean distances, also with `spherical=True`.
        """
        values = self._check(X)
        coordinates = self._coordinates
        centers = coordinates.to_float64(self.cluster_centers_)
        _scale(values, coordinates, "X")
        # Differences are slower than products, and exact for clusters of any size.
        is_exact = self._centers.dtype == np.float64
        measure = cdist if is_exact else euclidean_distances
        distances = np.empty((len(values), len(centers)), np.float32)
        for rows in batches_of(values):
            points = coordinates.to_float64(values[rows])
            distances[rows] = measure(points, centers) * coordinates.unit
        return distances

    @with_neutral_state
    def score(self, X, y=None):
        """Compute the negative inertia of rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : None
            Ignored.

        Returns
        -------
        float
            Negative sum of the squared distances of rows to their centers. Larger is
            better, for equal numbers of clusters.
        """
        points = self._points(X)
        inertia = _inertia(points, self._centers, self._assign(points))
        return -inertia * self._coordinates.unit**2

    def _check(self, X, reset=False):
        """Return rows of numbers of any type, which may be NaN or infinite."""
        if not reset:
            check_is_fitted(self)
        check = partial(
            validate_data, self, reset=reset, dtype=NUMBERS, ensure_all_finite=False
        )
        return check_rows(X, ROW_FORMS, check)

    def _points(self, X):
        """Return the coordinates of new rows, finite and of the type of the centers."""
        values = self._check(X)
        points, _ = _scale(values, self._coordinates, "X")
        if self._centers.dtype == np.float64:
            return self._coordinates.convert(values, np.float64)
        return points

    def _assign(self, points):
        """Return the nearest center of each row of coordinates."""
        is_exact = points.dtype == np.float64
        labels, _ = assign(
            points,
            self._centers,
            spherical=self.spherical,
            backend="torch" if is_exact else self.backend,
            device=self._exact_device() if is_exact else resolve_device(self.device),
        )
        return labels

    def _exact_device(self):
        """Return the device if it computes in float64, else the CPU."""
        device = resolve_device(self.device)
        return device if device.type in ("cpu", "cuda") else torch.device("cpu")

    @property
    def _n_features_out(self):
        return len(self.cluster_centers_)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "cluster_centers_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _inertia(points: np.ndarray, centers: np.ndarray, labels: np.ndarray) -> float:
    """Return the sum of the squared distances of rows to their centers.

    Products of float32, from which the nearest centers are found, give distances that
    are inexact where clusters are small and far apart. Differences are exact.
    """
    total = 0.0
    for rows in batches_of(points):
        differences = points[rows] - centers[labels[rows]]
        total += float(np.einsum("ij,ij->", differences, differences))
    return total


def _scale(
    values: np.ndarray, coordinates: Coordinates, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of rows, float32 (n, d), and their squared lengths (n,).

    Raises
    ------
    ValueError
        If float32 cannot hold the squares of a row. The error names the first one.
    """
    rows = coordinates.to_float32(values)
    with np.errstate(over="ignore"):
        squares = np.einsum("ij,ij->i", rows, rows)
    bad = np.flatnonzero(~(squares < np.finfo(np.float32).max / 8))
    if bad.size:
        is_nan = np.isnan(rows[bad[0]]).any()
        problem = "NaN" if is_nan else "infinity or a value too large"
        limit = f"{1e18 * coordinates.unit:.0e}".replace("+", "")
        place = ""
        if coordinates.origin.any():
            place = ", measured from the median of each column of the rows in fit"
        raise ValueError(
            f"Input {name} contains {problem} in row {bad[0]} ({bad.size} such rows). "
            f"Distances in float32 need finite values below about {limit}{place}. "
            f"Remove or impute these rows, or scale {name}."
        )
    return rows, squares
