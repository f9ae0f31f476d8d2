"""Matplotlib import, axes and colors shared by the Displays."""

import numpy as np

from .._utils.optional import import_optional

# Colors of Okabe and Ito, which readers with color blindness can distinguish. Their
# yellow is left out, which is faint on white, and their black, the color of text.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
GRAY = "#767676"
# Longest name of a cluster that is written out, in letters.
MAX_NAME_LENGTH = 24


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


def label_cluster(cluster: int, cluster_names) -> str:
    """Return the number of a cluster, and its name if it has one.

    Parameters
    ----------
    cluster : int
    cluster_names : array-like of str or None
        Name of each cluster. An unnamed cluster has its number as its name.
    """
    if cluster_names is None or cluster_names[cluster] == str(cluster):
        return str(cluster)
    # A line break or a long name would cover other text.
    name = " ".join(cluster_names[cluster].split())
    if len(name) > MAX_NAME_LENGTH:
        name = name[: MAX_NAME_LENGTH - 1] + "…"
    return f"{cluster}: {name}"


def label_width(labels) -> float:
    """Return the width of the labels of rows, in inches."""
    return 0.2 + 0.075 * max(len(label) for label in labels)


def label_rows(ax, centers, labels, header: str, side: str = "left") -> None:
    """Write a label beside each row of an image, below a header."""
    ax.set_xticks([])
    ax.yaxis.set_ticks_position(side)
    # A dollar sign in a name is not the start of a formula.
    ax.set_yticks(centers, labels, parse_math=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    is_left = side == "left"
    ax.annotate(
        header,
        xy=(0 if is_left else 1, 1),
        xytext=(-4 if is_left else 4, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right" if is_left else "left",
        va="baseline",
    )
    # With a centered anchor the constrained layout would misplace the header.
    ax.set_anchor("NW" if is_left else "NE")
