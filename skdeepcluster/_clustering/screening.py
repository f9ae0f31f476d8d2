"""Search for nearest centers with a filter in bfloat16.

Some processors multiply several times faster in bfloat16 than in float32. A product in
bfloat16 is inexact, but its error has a bound. The bound leaves few centers that can be
the nearest one of a point, most often a single one. The distances to these candidates
are computed in float32, and in float64 where float32 cannot tell them apart.
"""

import numpy as np
import torch

# Largest number of values in a batch: costs, or coordinates of points. Larger batches
# do not fit into the caches of a processor core.
BATCH_VALUES = 2**20
# A batch has at least as many points, since each product first reorders the centers.
MIN_BATCH_ROWS = 256
# Candidates of a point whose distances are computed one by one. Matrix products are
# faster for more candidates.
MAX_CANDIDATES = 8
# The inner dimension of products is padded to a multiple of this number, for speed.
ALIGNMENT = 32
# Unit roundoff of bfloat16, which has 8 significant bits.
BFLOAT16_ROUNDOFF = 2.0**-9
# Cached because np.finfo is slow.
FLOAT32, FLOAT64 = np.finfo(np.float32), np.finfo(np.float64)
# Squared norms of shorter vectors may underflow.
SMALLEST_LENGTH = 2.0**-60


class ScreenedCenters:
    """Centers, prepared for the search of the nearest ones.

    The cost of a center c for a point p is |p - c|²/2, or -pc if `spherical`, plus a
    number that depends on the point alone. Points and centers are measured from the
    mean of the centers: a shift changes no label and lowers the errors of products.

    Parameters
    ----------
    centers : ndarray of shape (k, d), float32
    spherical : bool
        Search for the largest inner product instead of the smallest distance.
    """

    def __init__(self, centers: np.ndarray, spherical: bool):
        self.centers = centers
        self.spherical = spherical
        centers64 = centers.astype(np.float64)
        mean = centers64.mean(axis=0).astype(np.float32)
        # If `spherical`, points are measured from zero. A shift of the centers alone
        # then adds the same number to all costs of a point.
        self.origin = np.zeros_like(mean) if spherical else mean
        self.shifted = centers64 - mean
        squares = np.einsum("ij,ij->i", self.shifted, self.shifted)
        self.max_length = float(np.sqrt(squares.max()))
        # With these terms costs are not negative, also if `spherical`.
        self.center_offsets = (
            np.full_like(squares, squares.max()) if spherical else squares
        )
        self.center_offsets = self.center_offsets / 2

        rounded = torch.from_numpy(self.shifted).to(torch.bfloat16)
        residuals = self.shifted - rounded.double().numpy()
        self.max_residual = float(np.linalg.norm(residuals, axis=1).max())
        k, d = centers.shape
        width = -(-(d + 4) // ALIGNMENT) * ALIGNMENT
        self.matrix = torch.zeros(k, width, dtype=torch.bfloat16)
        self.matrix[:, :d] = -rounded
        # Three numbers of 8 bits hold an offset as exactly as float32.
        remainder = torch.from_numpy(self.center_offsets.copy())
        for column in range(d, d + 3):
            self.matrix[:, column] = remainder
            remainder -= self.matrix[:, column].double()
        self.matrix[:, d + 3] = 1

        self.batch_rows = max(MIN_BATCH_ROWS, BATCH_VALUES // max(k, d))

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return labels, int32 (n,), and squared distances, float32 (n,).

        Several threads may call it at once.

        Parameters
        ----------
        points : ndarray of shape (n, d), float32
        """
        labels = np.empty(len(points), np.int32)
        distances = np.empty(len(points), np.float32)
        is_undecided = np.empty(len(points), bool)
        buffers = _Buffers(min(self.batch_rows, len(points)), self.matrix, points)
        for start in range(0, len(points), self.batch_rows):
            batch = slice(start, start + self.batch_rows)
            labels[batch], distances[batch], is_undecided[batch] = (
                self._assign_by_candidates(points[batch], buffers)
            )
        undecided_rows = np.flatnonzero(is_undecided)
        for start in range(0, len(undecided_rows), self.batch_rows):
            rows = undecided_rows[start : start + self.batch_rows]
            labels[rows] = self._assign_in_float64(points[rows])
            distances[rows] = _squared_norms(points[rows] - self.centers[labels[rows]])
        return labels, distances

    def _assign_by_candidates(
        self, points: np.ndarray, buffers: "_Buffers"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return labels, distances, and which points have no certain label yet."""
        n = len(points)
        labels, distances = np.zeros(n, np.int32), np.zeros(n, np.float32)
        rows, candidates = self._find_candidates(points, buffers)
        counts = np.bincount(rows, minlength=n)
        is_undecided = counts > MAX_CANDIDATES
        if is_undecided.any():
            is_kept = ~is_undecided[rows]
            rows, candidates = rows[is_kept], candidates[is_kept]
        if not rows.size:
            return labels, distances, is_undecided
        costs, errors, pair_distances = self._pair_costs(points[rows], candidates)
        kept_counts = counts[~is_undecided]
        starts = np.cumsum(kept_counts) - kept_counts
        # The largest cost that the nearest center of a point may have.
        limits = np.empty(n)
        limits[~is_undecided] = np.minimum.reduceat(costs + errors, starts)
        is_nearest = costs - errors <= limits[rows]
        labels[rows[is_nearest]] = candidates[is_nearest]
        distances[rows[is_nearest]] = pair_distances[is_nearest]
        is_undecided |= np.bincount(rows[is_nearest], minlength=n) > 1
        return labels, distances, is_undecided

    def _find_candidates(
        self, points: np.ndarray, buffers: "_Buffers"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs of rows and centers that include the nearest ones, sorted."""
        n, d = points.shape
        shifted = np.subtract(points, self.origin, out=buffers.shifted_points[:n])
        rounded = buffers.rounded_points[:n, :d].copy_(torch.from_numpy(shifted))
        squares = _squared_norms(shifted)
        lengths = _norm_upper_bounds(squares)
        shifted -= rounded.float().numpy()
        residuals = _norm_upper_bounds(_squared_norms(shifted))
        # By the inequality of Cauchy and Schwarz.
        errors = residuals * (self.max_length + self.max_residual)
        errors += lengths * self.max_residual
        errors += _rounding_error_bound(lengths + self.max_length, d, FLOAT32)
        # Costs stay positive in spite of errors. Positive floats sort like their bits,
        # so that 16-bit integers can be compared instead.
        point_offsets = 1.01 * (squares / 2 + errors)
        buffers.rounded_points[:n, d + 3] = torch.from_numpy(point_offsets)
        products = torch.mm(
            buffers.rounded_points[:n], self.matrix.T, out=buffers.costs[:n]
        )
        bits = products.view(torch.int16).numpy()
        smallest = (bits.min(axis=1).astype(np.int32) << 16).view(np.float32)
        # Two costs may be wrong by the error, and by their own rounding.
        limits = 2.02 * errors + (1 + 2.02 * BFLOAT16_ROUNDOFF) * smallest
        limit_bits = limits.astype(np.float32).view(np.int32) >> 16
        # If the limit overflows, all centers stay candidates.
        limit_bits[~np.isfinite(limits)] = np.iinfo(np.int16).max
        limit_bits = limit_bits.astype(np.int16)[:, None]
        is_candidate = np.less_equal(bits, limit_bits, out=buffers.is_candidate[:n])
        return np.divmod(np.flatnonzero(is_candidate), len(self.centers))

    def _pair_costs(
        self, points: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return costs of pairs, bounds of their errors, and squared distances."""
        d = points.shape[1]
        centers = self.centers[labels]
        if self.spherical:
            products = np.einsum("ij,ij->i", points, centers).astype(np.float64)
            length_bounds = _norm_upper_bounds(
                _squared_norms(points)
            ) + _norm_upper_bounds(_squared_norms(centers))
            distances = _squared_norms(points - centers)
            return (
                -products,
                _rounding_error_bound(length_bounds, d, FLOAT32),
                distances,
            )
        distances = _squared_norms(np.subtract(points, centers, out=centers))
        # The error of a difference is small even if points and centers are large.
        errors = _rounding_error_bound(_norm_upper_bounds(distances), d, FLOAT32)
        return distances.astype(np.float64) / 2, errors, distances

    def _assign_in_float64(self, points: np.ndarray) -> np.ndarray:
        """Return the first of the centers that are nearest in float64, int64 (n,)."""
        d = points.shape[1]
        shifted = points - self.origin.astype(np.float64)
        costs = self.center_offsets - shifted @ self.shifted.T
        length_bounds = _norm_upper_bounds(_squared_norms(shifted)) + self.max_length
        limits = costs.min(axis=1) + 2 * _rounding_error_bound(
            length_bounds, d, FLOAT64
        )
        return (costs <= limits[:, None]).argmax(axis=1)


class _Buffers:
    """Memory for one batch after another.

    Parameters
    ----------
    n_rows : int
        Largest number of points in a batch.
    matrix : tensor of shape (k, width), bfloat16
        Matrix of the centers.
    points : ndarray of shape (n, d), float32
    """

    def __init__(self, n_rows: int, matrix: torch.Tensor, points: np.ndarray):
        k, width = matrix.shape
        self.shifted_points = np.empty((n_rows, points.shape[1]), np.float32)
        # The ones in a row multiply the offsets of the centers.
        self.rounded_points = torch.ones(n_rows, width, dtype=torch.bfloat16)
        self.costs = torch.empty(n_rows, k, dtype=torch.bfloat16)
        self.is_candidate = np.empty((n_rows, k), bool)


def _squared_norms(rows: np.ndarray) -> np.ndarray:
    """Return the squared lengths of rows, (n,)."""
    return np.einsum("ij,ij->i", rows, rows)


def _norm_upper_bounds(squares: np.ndarray) -> np.ndarray:
    """Return upper bounds of the lengths, float64, from squared lengths in float32."""
    return 1.001 * np.sqrt(squares.astype(np.float64)) + SMALLEST_LENGTH


def _rounding_error_bound(
    lengths: np.ndarray, n_terms: int, dtype: np.finfo
) -> np.ndarray:
    """Return bounds of the errors of costs from sums and shifts, float64 (n,).

    Parameters
    ----------
    lengths : ndarray of shape (n,)
        Length of a point plus the length of the longest center, or of their difference.
    n_terms : int
        Number of terms of each sum.
    dtype : np.finfo
        Limits of the type of the sums.
    """
    # Each term, and a few more numbers, may be rounded once. Very small numbers may
    # underflow.
    n_roundings = 1.03 * n_terms + 16
    relative = n_roundings * float(dtype.eps) / 4
    absolute = n_roundings * float(dtype.tiny)
    return relative * np.square(lengths) + absolute * (1 + lengths)
