"""Matplotlib import, axes and colors shared by the Displays."""

import numpy as np

from .._utils.optional import import_optional

# Colors of Okabe and Ito, which readers with color blindness can distinguish. Their
# yellow is left out, which is faint on white, and their black, the color of text.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
GRAY = "#767676"


def import_pyplot():
    """Return `matplotlib.pyplot`; raise ImportError if it is not installed."""
    return import_optional("matplotlib.pyplot", extra="plot")


def get_axes(ax, width: float, height: float):
    """Return `ax`, or the axes of a new figure of this size in inches if it is None."""
    if ax is not None:
        return ax
    return import_pyplot().subplots(figsize=(width, height), layout="constrained")[1]


def size_in_points(ax) -> np.ndarray:
    """Return the width and height of axes in points, the unit of font sizes."""
    return 72 * ax.get_window_extent().size / ax.figure.dpi


def label_rows(ax, centers, labels, header: str) -> None:
    """Write a label to the left of each row of an image, below a header."""
    ax.set_xticks([])
    ax.set_yticks(centers, labels)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.annotate(
        header,
        xy=(0, 1),
        xytext=(-4, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        va="baseline",
    )
    # With a centered anchor the constrained layout would misplace the header.
    ax.set_anchor("NW")
