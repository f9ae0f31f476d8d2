"""Colors and labels of the Displays."""

import itertools

import numpy as np
import pytest

from skdeepcluster._plot.drawing import COLORS, label_cluster

# Machado, Oliveira and Fernandes (2009): full color vision, protanopia, deuteranopia.
VISIONS = np.array(
    [
        np.eye(3),
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    ]
)


def test_colors_are_distinct_with_color_blindness():
    to_rgb = pytest.importorskip("matplotlib.colors").to_rgb
    colors = np.array([to_rgb(color) for color in COLORS])
    for vision in VISIONS:
        for color_a, color_b in itertools.combinations(colors @ vision.T, 2):
            assert np.linalg.norm(color_a - color_b) > 0.15


def test_labels_of_clusters():
    names = ["0", "shoes", "a\tvery  long\nname of a cluster"]
    assert label_cluster(1, None) == "1"
    assert label_cluster(0, names) == "0"
    assert label_cluster(1, names) == "1: shoes"
    assert label_cluster(2, names) == "2: a very long name of a c…"
