"""FaissKMeans: k-means as an estimator of its own."""

from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from .._inputs.tables import ROW_FORMS, check_rows
from .._utils.device import resolve_device
from .._utils.random import RandomStreams
from .kmeans import assign, kmeans


class FaissKMeans(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator
):
    """K-means on faiss, that leaves no cluster empty.

    Lloyd's algorithm on all rows in float32, with exact nearest centers from faiss
    (or torch on accelerators that faiss does not know). It is meant for many rows and
    many clusters, where :class:`sklearn.cluster.KMeans` is slow.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters.

    init : {"k-means++", "random"} or array-like of shape (n_clusters, n_features), \
            default="k-means++"
        Where the centers start:

        - "k-means++": rows drawn one after another, with probability proportional to
          the squared distance from those drawn before;
        - "random": rows drawn uniformly, without replacement;
        - an array: these centers.

    n_init : int, default=1
        Number of runs from different starts, of which the one of lowest inertia is
        kept. With an array as `init` there is only one run.

    max_iter : int, default=25
        Largest number of iterations of a run.

    tol : float, default=1e-4
        A run ends when the squared shift of all centers together is at most `tol`
        times the mean variance of the features.

    spherical : bool, default=False
        Whether centers are scaled to unit length and a row belongs to the center of
        the largest inner product. Rows are taken as they are; scale them to unit
        length for clusters by cosine similarity.

    empty_clusters : {"split", "farthest", "drop", "raise"}, default="split"
        What is done with clusters that got no row, while iterating and at the end:

        - "split": cut a large cluster in two by a random hyperplane through its
          center, as DeepCluster does [1]_;
        - "farthest": move the center to the row farthest from its own center;
        - "drop": remove them at the end, so that there are fewer than `n_clusters`;
        - "raise": raise a `ValueError` at the end.

    backend : {"auto", "faiss", "torch"}, default="auto"
        What finds the nearest centers. "auto" is faiss on the CPU, and on CUDA where
        the installed faiss has GPU support; torch on any other accelerator.

    device : str or torch.device, default="auto"
        Where nearest centers are found. "auto" is CUDA, else XPU, else MPS, else the
        CPU.

    random_state : int, RandomState instance or None, default=None
        Determines the starts and the cuts of "split". Pass an int for results that
        are the same, bit by bit, on the same machine and number of threads.

    verbose : int, default=0
        Prints one line a run where larger than 0.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features), float32
        The centers. There are fewer rows if clusters were dropped, or if `X` has fewer
        distinct rows than `n_clusters`.

    labels_ : ndarray of shape (n_samples,), int32
        Cluster of each row of the training data, the same as `predict` gives it.

    inertia_ : float
        Sum of the squared distances of the rows to their centers.

    n_iter_ : int
        Number of iterations of the run that was kept.

    n_empty_clusters_ : int
        Number of clusters that were empty at the end, before `empty_clusters` was
        applied.

    n_features_in_ : int
        Number of features seen during :meth:`fit`.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during :meth:`fit`. Defined only where `X` has feature
        names that are all strings.

    See Also
    --------
    DeepClusterEstimator : Clusters images by features that it learns from clusters.
    sklearn.cluster.KMeans : K-means in float32 or float64 with sample weights.

    Notes
    -----
    Input of any type is converted to float32, which holds seven decimal digits.

    No cluster is empty after "split" and "farthest" if `X` has at least `n_clusters`
    distinct rows. If it has fewer, a
    :class:`~sklearn.exceptions.ConvergenceWarning` says so, and each distinct row is
    a cluster. Unlike `faiss.Kmeans`, no rows are left out where there are more than
    256 for each cluster.

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

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Compute the clusters.

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
        points, unit = self._points(X, reset=True)
        if len(points) < self.n_clusters:
            raise ValueError(
                f"n_samples={len(points)} should be >= n_clusters={self.n_clusters}. "
                "Pass more rows or lower n_clusters."
            )
        init = self.init
        if not isinstance(init, str):
            with np.errstate(over="ignore"):  # found below, with its row
                init = check_array(
                    init,
                    dtype=np.float32,
                    order="C",
                    ensure_all_finite=False,
                    input_name="init",
                )
                init = init / unit
            _check_squares(init, unit, "init")
            shape = (self.n_clusters, points.shape[1])
            if init.shape != shape:
                raise ValueError(
                    f"init has shape {init.shape}, but needs (n_clusters, n_features)="
                    f"{shape}."
                )
        result = kmeans(
            points,
            self.n_clusters,
            init=init,
            n_init=self.n_init,
            max_iter=self.max_iter,
            tol=self.tol,
            spherical=self.spherical,
            empty_clusters=self.empty_clusters,
            backend=self.backend,
            device=resolve_device(self.device),
            seed=RandomStreams.from_random_state(self.random_state).seed("kmeans"),
            verbose=self.verbose,
        )
        # Kept beside: where values are tiny, the product is rounded.
        self._unit, self._centers = unit, result.centers
        self.cluster_centers_ = result.centers if unit == 1 else result.centers * unit
        self.labels_ = result.labels
        self.inertia_ = result.inertia * float(unit) ** 2
        self.n_iter_ = result.n_iter
        self.n_empty_clusters_ = result.n_empty_before
        return self

    def predict(self, X):
        """Find the nearest center of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,), int32
            Clusters, exactly `labels_` for the training data.
        """
        return self._assign(X)[0]

    def transform(self, X):
        """Compute the distances of rows to all centers.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_clusters), float32
            Euclidean distances, also where `spherical` is set.
        """
        check_is_fitted(self)
        points, unit = self._points(X)
        distances = euclidean_distances(points, self._centers)
        distances *= unit
        return distances

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
            Minus the sum of the squared distances of rows to their centers. Larger is
            better, among equal numbers of clusters.
        """
        distances = self._assign(X)[1].sum(dtype=np.float64)
        return -float(distances) * float(self._unit) ** 2

    def _assign(self, X):
        check_is_fitted(self)
        return assign(
            self._points(X)[0],
            self._centers,
            spherical=self.spherical,
            backend=self.backend,
            device=resolve_device(self.device),
        )

    def _points(self, X, reset=False):
        """Return X as float32, and the unit in which float32 holds its squares."""
        check = partial(
            validate_data,
            self,
            reset=reset,
            dtype=np.float32,
            order="C",
            ensure_all_finite=False,
        )
        with np.errstate(over="ignore"):  # found below, with its row
            points = check_rows(X, ROW_FORMS, check)
            unit = self._unit if not reset else np.float32(1)
            if reset and not self.spherical:  # whose centers have a unit of their own
                unit = _unit_of(points)
            points = points / unit if unit != 1 else points
        _check_squares(points, unit, "X")
        return points, unit

    @property
    def _n_features_out(self):
        return len(self.cluster_centers_)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "cluster_centers_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _unit_of(points: np.ndarray) -> np.float32:
    """Return the power of two to divide by: not 1 only where all values are tiny."""
    exponent = np.frexp(max(points.max(), -points.min()))[1]
    return np.float32(2.0 ** max(exponent, -100) if exponent < -30 else 1)


def _check_squares(rows: np.ndarray, unit: np.float32, name: str) -> None:
    """Raise ValueError naming the first row whose squares float32 cannot hold."""
    with np.errstate(over="ignore"):
        squares = np.einsum("ij,ij->i", rows, rows)
    bad = np.flatnonzero(~(squares < np.finfo(np.float32).max / 8))
    if bad.size:
        is_nan = np.isnan(rows[bad[0]]).any()
        what = "NaN" if is_nan else "infinity or a value too large"
        largest = f"{1e18 * unit:.0e}".replace("+", "")
        raise ValueError(
            f"Input {name} contains {what} in row {bad[0]} (of {bad.size} such rows), "
            f"and distances in float32 need finite values below about {largest}: "
            f"remove or impute such rows, or scale {name}."
        )
