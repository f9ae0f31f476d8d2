"""Display of the filters of the first layer."""

import numpy as np

from ..._plot.drawing import get_axes, import_pyplot, label_rows
from ..._utils.neutral_state import with_neutral_state
from .._filters import first_layer_filters
from .._sheets import GAP, WHITE, arrange_grid

# Smallest size of a filter in the grid, in pixels.
FILTER_SIZE = 33
# Largest number of filters in rows of 8. More filters are in rows of 16.
MAX_IN_NARROW_GRID = 64


class FiltersDisplay:
    """Filters of the first layer in a grid.

    Filters of three channels are drawn in color, all others in gray. The channels of
    a gray filter, such as the two gradients of `sobel=True`, are side by side. A
    weight of zero is medium gray; the largest weight of a filter is black or white.

    Create it with `from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    filters : array-like of shape (n_filters, C, h, w)
        Weights, as `inspection.first_layer_filters` returns them.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes of the grid. Each row is labeled with the index of its first filter.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    skdeepcluster.inspection.first_layer_filters : Return the weights.
    skdeepcluster.inspection.top_images : Find images for the filters of any layer.

    Examples
    --------
    >>> from skdeepcluster.inspection import FiltersDisplay
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Conv2d(3, 16, 5), nn.ReLU(), nn.Conv2d(16, 32, 5))
    >>> display = FiltersDisplay.from_estimator(network)
    >>> display.figure_.savefig("filters.png")  # doctest: +SKIP
    """

    def __init__(self, filters):
        self.filters = filters

    @classmethod
    @with_neutral_state
    def from_estimator(cls, estimator, *, ax=None):
        """Draw the filters of a network.

        Parameters
        ----------
        estimator : DeepClusterEstimator or torch.nn.Module
            Fitted estimator, or any network.
        ax : matplotlib Axes, default=None
            Axes to draw on. With None, a new figure is created.

        Returns
        -------
        display : FiltersDisplay
            The drawn display.

        Raises
        ------
        ValueError
            If the network has no convolution.
        """
        import_pyplot()
        return cls(first_layer_filters(estimator)).plot(ax)

    @with_neutral_state
    def plot(self, ax=None):
        """Draw the grid.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on. With None, a new figure is created.

        Returns
        -------
        display : FiltersDisplay
            The display itself.
        """
        images = np.stack([_to_image(weights) for weights in self.filters])
        n_columns = 8 if len(images) <= MAX_IN_NARROW_GRID else 16
        starts = np.arange(0, len(images), n_columns)
        grid = arrange_grid([images[start : start + n_columns] for start in starts])
        step = images.shape[1] + GAP
        # Size of a filter in a new figure.
        inches = 0.5 if n_columns == 8 else 0.4
        height, width = (inches * n_pixels / step for n_pixels in grid.shape[:2])
        self.ax_ = get_axes(ax, width + 0.6, height + 0.3)
        self.figure_ = self.ax_.figure
        self.ax_.imshow(grid)
        # imshow puts the center of the first pixel at 0.
        centers = step * (starts / n_columns + 0.5) + GAP / 2 - 0.5
        label_rows(self.ax_, centers, starts, header="filter")
        return self


def _to_image(weights: np.ndarray) -> np.ndarray:
    """Convert a filter (C, h, w) to pixels, uint8 (height, width, 3)."""
    weights = np.asarray(weights, dtype=float)
    scale = -(-FILTER_SIZE // max(weights.shape[1:]))  # rounded up
    # Each filter has its own scale, because the norms of filters differ widely.
    values = 127.5 + 127.5 * weights / (np.abs(weights).max() or 1.0)
    values = np.rint(values).astype(np.uint8)
    values = values.repeat(scale, axis=1).repeat(scale, axis=2)
    if len(values) == 3:
        image = values.transpose(1, 2, 0)
    else:
        line = np.full((values.shape[1], 1), WHITE, np.uint8)
        pieces = [piece for channel in values for piece in (line, channel)]
        image = np.concatenate(pieces[1:], axis=1)[..., None].repeat(3, axis=2)
    # A wider gap than between photos, because corners of filters are often white.
    return np.pad(image, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=WHITE)
