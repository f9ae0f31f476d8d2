"""What the first layer looks for: its filters, side by side."""

import numpy as np

from ..._plot.drawing import get_axes, import_pyplot, label_rows
from .._filters import first_layer_filters
from .._sheets import GAP, WHITE, arrange_grid

SIDE = 33  # pixels of a filter in the picture, at least
FEW = 64  # filters that have rows of 8, others of 16


class FiltersDisplay:
    """Filters of the first layer in a grid.

    Filters of red, green and blue are in color. Others are gray; of several channels,
    such as the two gradients of `sobel=True`, each has a part of its own, from left to
    right. A weight of zero is middle gray, and the largest of a filter black or white.

    `from_estimator` makes it and draws it. All parameters are stored as attributes.

    Parameters
    ----------
    filters : array-like of shape (n_filters, C, h, w)
        Weights, such as `inspection.first_layer_filters` returns.

    Attributes
    ----------
    ax_ : matplotlib Axes
        With the grid. At the left of each row is the number of its first filter.
    figure_ : matplotlib Figure
        What it is in.

    See Also
    --------
    skdeepcluster.inspection.first_layer_filters : The weights.
    skdeepcluster.inspection.top_images : What filters of any layer respond to.

    Examples
    --------
    >>> from skdeepcluster import FiltersDisplay
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Conv2d(3, 16, 5), nn.ReLU(), nn.Conv2d(16, 32, 5))
    >>> display = FiltersDisplay.from_estimator(network)
    >>> display.figure_.savefig("filters.png")  # doctest: +SKIP
    """

    def __init__(self, filters):
        self.filters = filters

    @classmethod
    def from_estimator(cls, estimator, *, ax=None):
        """Draw the filters of a network.

        Parameters
        ----------
        estimator : DeepClusterEstimator or torch.nn.Module
            Fitted.
        ax : matplotlib Axes, default=None
            Where the grid is drawn. With None, in a new figure.

        Returns
        -------
        display : FiltersDisplay
            Drawn.

        Raises
        ------
        ValueError
            If the network has no convolution.
        """
        import_pyplot()
        return cls(first_layer_filters(estimator)).plot(ax)

    def plot(self, ax=None):
        """Draw the grid.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where the grid is drawn. With None, in a new figure.

        Returns
        -------
        display : FiltersDisplay
            Itself.
        """
        pictures = np.stack([_picture(weights) for weights in self.filters])
        columns = 8 if len(pictures) <= FEW else 16
        firsts = np.arange(0, len(pictures), columns)
        sheet = arrange_grid([pictures[first : first + columns] for first in firsts])
        step = pictures.shape[1] + GAP
        inches = 0.5 if columns == 8 else 0.4
        height, width = (inches * side / step for side in sheet.shape[:2])
        self.ax_ = get_axes(ax, width + 0.6, height + 0.3)
        self.figure_ = self.ax_.figure
        self.ax_.imshow(sheet)
        middles = step * (firsts / columns + 0.5) + GAP / 2 - 0.5
        label_rows(self.ax_, middles, firsts, "filter")
        return self


def _picture(weights: np.ndarray) -> np.ndarray:
    """Turn a filter (C, h, w) into pixels, uint8 (height, width, 3)."""
    weights = np.asarray(weights, dtype=float)
    larger = -(-SIDE // max(weights.shape[1:]))  # rounded up
    values = 127.5 + 127.5 * weights / (np.abs(weights).max() or 1.0)
    values = np.rint(values).astype(np.uint8)
    values = values.repeat(larger, axis=1).repeat(larger, axis=2)
    if len(values) == 3:
        picture = values.transpose(1, 2, 0)
    else:
        between = np.full((values.shape[1], 1), WHITE, np.uint8)
        parts = [part for channel in values for part in (between, channel)]
        picture = np.concatenate(parts[1:], axis=1)[..., None].repeat(3, axis=2)
    # Wider gaps than between images: corners of filters are often white.
    return np.pad(picture, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=WHITE)
