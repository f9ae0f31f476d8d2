"""What every Display needs: matplotlib where it is there, axes, and colors."""

import numpy as np

from .._utils.optional import import_optional

# Okabe and Ito's colors, which the color-blind tell apart, without the yellow that
# is hardly seen on white, and the black of what is written.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
GRAY = "#767676"


def import_pyplot():
    """Return `matplotlib.pyplot`; raise ImportError if it is not installed."""
    return import_optional("matplotlib.pyplot", extra="plot")


def get_axes(ax, width: float, height: float):
    """Return the axes that are given, else those of a new figure, sizes in inches."""
    if ax is not None:
        return ax
    return import_pyplot().subplots(figsize=(width, height), layout="constrained")[1]


def size_in_points(ax) -> np.ndarray:
    """Return width and height of axes in points, as text is measured."""
    return 72 * ax.get_window_extent().size / ax.figure.dpi


def label_rows(ax, middles, names, header: str) -> None:
    """Write the names of a picture's rows at their left, below a header."""
    ax.set_xticks([])
    ax.set_yticks(middles, names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    style = {"xycoords": "axes fraction", "textcoords": "offset points"}
    ax.annotate(header, (0, 1), (-4, 4), ha="right", va="baseline", **style)
    ax.set_anchor("NW")  # else the layout measures the header at another place
