"""Coordinates in which float32 holds rows that lie far from zero."""

from dataclasses import dataclass

import numpy as np
from sklearn.utils import gen_batches

# Number of values that are converted at once. The limit bounds their float64 copy.
BATCH_VALUES = 2**18
# Sample from which origins are chosen: number of rows, and of values.
SAMPLE_ROWS = 1024
SAMPLE_VALUES = 2**22
# Ratio of a column's median to its median deviation above which it is shifted. Float32
# loses this factor of its precision of 1e-7 where a column is not shifted.
MAX_RATIO = 8.0
# Range of values, as powers of two, whose squares and their sums fit into float32.
EXPONENTS = range(-30, 41)
# Squares of larger coordinates are refused, so that their unit does not matter.
MAX_EXPONENT = 63
# The smallest unit whose inverse is finite in float64.
MIN_EXPONENT = -1000


@dataclass(frozen=True)
class Coordinates:
    """Coordinates (X - origin) / unit of rows X.

    Timestamps, map coordinates and years lie far from zero compared with their spread.
    Float32 rounds the spread away unless an origin is subtracted first, in float64.

    Parameters
    ----------
    origin : ndarray of shape (d,), float64
    unit : float
        Power of two, so that division is exact.
    """

    origin: np.ndarray
    unit: float = 1.0

    @property
    def is_identity(self) -> bool:
        """Whether the coordinates are the values themselves."""
        return self.unit == 1 and not self.origin.any()

    def to_float32(self, values: np.ndarray) -> np.ndarray:
        """Return coordinates, float32 and C-contiguous. Values overflow to infinity.

        Values that are float32 already are not copied without need.
        """
        with np.errstate(over="ignore"):
            if self.is_identity:
                return np.ascontiguousarray(values, np.float32)
            coordinates = np.empty(values.shape, np.float32)
            for rows in batches_of(values):
                coordinates[rows] = self.to_float64(values[rows])
            return coordinates

    def convert(self, values: np.ndarray, dtype: type | np.dtype) -> np.ndarray:
        """Return coordinates, float32 or float64."""
        if dtype == np.float32:
            return self.to_float32(values)
        return np.ascontiguousarray(self.to_float64(values))

    def to_float64(self, values: np.ndarray) -> np.ndarray:
        """Return coordinates in float64."""
        return (values - self.origin) / self.unit

    def to_values(self, coordinates: np.ndarray) -> np.ndarray:
        """Return values from coordinates, in float64."""
        return coordinates * self.unit + self.origin


def batches_of(values: np.ndarray):
    """Return slices of rows whose copy in float64 is small."""
    n_rows = max(1, BATCH_VALUES // values.shape[1])
    return gen_batches(max(1, len(values)), n_rows)


def choose_coordinates(values: np.ndarray, shifts: bool) -> Coordinates:
    """Return the coordinates in which float32 holds rows.

    Columns that lie near zero keep their values. The unit is 1 unless squares of
    the coordinates would be zero, or their sums infinite.

    Parameters
    ----------
    values : ndarray of shape (n, d), any type of number
        At least one row.
    shifts : bool
        Whether columns may be shifted. Shifts change the directions of rows.
    """
    origin = np.zeros(values.shape[1])
    high, low = (np.asarray(f(axis=0), np.float64) for f in (values.max, values.min))
    # Rows that are not finite are reported by the caller.
    if not (shifts and np.isfinite(high).all() and np.isfinite(low).all()):
        return Coordinates(origin)
    n_rows = min(SAMPLE_ROWS, max(1, SAMPLE_VALUES // values.shape[1]))
    sample = values[:: -(-len(values) // n_rows)].astype(np.float64)
    # Outliers, such as zeros for missing timestamps, do not move a median. It is one of
    # the values, so that integers remain integers, which float32 holds exactly.
    median = _low_median(sample)
    with np.errstate(over="ignore"):
        deviation = _low_median(np.abs(sample - median))
        is_far = np.abs(median) / MAX_RATIO > deviation
        origin = np.where(is_far, median, 0.0)
        largest = max(float((high - origin).max()), float((origin - low).max()))
    exponent = int(np.frexp(largest)[1])
    if exponent in EXPONENTS or exponent > MAX_EXPONENT:
        return Coordinates(origin)
    return Coordinates(origin, 2.0 ** max(exponent, MIN_EXPONENT))


def _low_median(values: np.ndarray) -> np.ndarray:
    """Return the median of each column, of an even number the lower one."""
    middle = (len(values) - 1) // 2
    return np.partition(values, middle, axis=0)[middle]
