"""Placement of labels on a map."""

import numpy as np
from numpy.testing import assert_allclose

from skdeepcluster._plot.layout import spread_labels


def test_spread_labels_moves_overlapping_labels_only():
    positions = np.array([[0.0, 0], [50, 30], [50, 30], [100, 1]])
    moved = spread_labels(positions, np.tile([4.0, 2], (4, 1)))
    assert_allclose(moved[[0, 3]], positions[[0, 3]], atol=0.05)
    assert np.abs((moved[1] - moved[2]) / [4, 2]).max() >= 0.99
    assert_allclose(moved[1:3], positions[1:3], atol=4)


def test_wide_labels_need_more_room_than_narrow_ones():
    positions = np.array([[0.0, 0], [6, 0], [0, 9], [6, 9]])
    box_sizes = np.array([[10.0, 2], [10, 2], [4, 2], [4, 2]])
    moved = spread_labels(positions, box_sizes)
    assert_allclose(moved[2:], positions[2:], atol=0.05)
    assert moved[1, 0] - moved[0, 0] >= 9.9 or abs(moved[1, 1] - moved[0, 1]) >= 1.98
