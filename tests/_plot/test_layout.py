"""Placement of labels on a map."""

import numpy as np
from numpy.testing import assert_allclose

from skdeepcluster._plot.layout import spread_labels


def test_spread_labels_moves_overlapping_labels_only():
    positions = np.array([[0.0, 0], [50, 30], [50, 30], [100, 1]])
    moved = spread_labels(positions, np.array([4.0, 2]))
    assert_allclose(moved[[0, 3]], positions[[0, 3]], atol=0.05)
    assert np.abs((moved[1] - moved[2]) / [4, 2]).max() >= 0.99
    assert_allclose(moved[1:3], positions[1:3], atol=4)
