"""Display of the training curves of a fit."""

import numpy as np
from sklearn.utils._param_validation import validate_params
from sklearn.utils.validation import check_is_fitted

from ..._estimator import DeepClusterEstimator
from ..._plot.drawing import COLORS, GRAY, import_pyplot
from ..._utils.neutral_state import with_neutral_state

# Largest number of rounds with markers. With more rounds, markers would touch.
MAX_MARKERS = 30


class TrainingCurvesDisplay:
    """Curves of the loss, the NMI and the cluster sizes over the rounds of a fit.

    Create it with `from_estimator` or `from_history`. All parameters are stored as
    attributes.

    Parameters
    ----------
    history : list of dict
        One record for each round, such as `DeepClusterEstimator.history_`.
    n_samples : int, default=None
        Number of images, for the curve of the mean cluster size. With None, that curve
        is left out.

    Attributes
    ----------
    axes_ : ndarray of 3 matplotlib Axes
        Axes of the loss, the NMI and the cluster sizes.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    skdeepcluster.DeepClusterEstimator : The records are its attribute `history_`.

    Notes
    -----
    The NMI is shown in figures 2a and 2b of the paper.

    Examples
    --------
    >>> from skdeepcluster.evaluation import TrainingCurvesDisplay
    >>> sizes = {"n_pseudo_labels": 50, "largest_cluster": 40, "smallest_cluster": 9}
    >>> history = [
    ...     {"round": 1, "loss": 1.4, "nmi_previous": 0.7, **sizes},
    ...     {"round": 2, "loss": 1.1, "nmi_previous": 0.8, **sizes},
    ... ]
    >>> display = TrainingCurvesDisplay.from_history(history, n_samples=1000)
    >>> display.figure_.savefig("curves.png")  # doctest: +SKIP
    """

    def __init__(self, history, *, n_samples=None):
        self.history = history
        self.n_samples = n_samples

    @classmethod
    @with_neutral_state
    @validate_params(
        {"estimator": [DeepClusterEstimator]}, prefer_skip_nested_validation=True
    )
    def from_estimator(cls, estimator, *, axes=None):
        """Draw the curves of a fitted estimator.

        Parameters
        ----------
        estimator : DeepClusterEstimator
            Fitted estimator.
        axes : array-like of 3 matplotlib Axes, default=None
            Axes to draw on. With None, a new figure is created.

        Returns
        -------
        display : TrainingCurvesDisplay
            The drawn display.
        """
        import_pyplot()
        check_is_fitted(estimator)
        # Skipped images have no cluster, so they do not count for the mean size.
        n_samples = len(estimator.labels_) - len(estimator.skipped_)
        return cls(estimator.history_, n_samples=n_samples).plot(axes)

    @classmethod
    @with_neutral_state
    def from_history(cls, history, *, n_samples=None, axes=None):
        """Draw the curves of a stored history.

        Parameters
        ----------
        history : list of dict or DataFrame
            One record for each round, such as `DeepClusterEstimator.history_`, also
            loaded from JSON or as a data frame.
        n_samples : int, default=None
            Number of images, for the curve of the mean cluster size. With None, that
            curve is left out.
        axes : array-like of 3 matplotlib Axes, default=None
            Axes to draw on. With None, a new figure is created.

        Returns
        -------
        display : TrainingCurvesDisplay
            The drawn display.
        """
        if hasattr(history, "to_dict"):
            history = history.to_dict("records")
        return cls(history, n_samples=n_samples).plot(axes)

    @with_neutral_state
    def plot(self, axes=None):
        """Draw the curves.

        The mean cluster size is `n_samples` divided by the number of clusters of a
        round. If `n_pseudo_labels` is a tuple, the largest number counts.

        Parameters
        ----------
        axes : array-like of 3 matplotlib Axes, default=None
            Axes to draw on. With None, a new figure is created.

        Returns
        -------
        display : TrainingCurvesDisplay
            The display itself.

        Raises
        ------
        ValueError
            If the history is empty, or `axes` does not hold three axes.
        """
        plt = import_pyplot()
        if not self.history:
            raise ValueError(
                "history is empty. Pass the records of at least one round, such as "
                "model.history_."
            )
        if axes is None:
            _, axes = plt.subplots(1, 3, figsize=(9.6, 3.3), layout="constrained")
        self.axes_ = np.asarray(axes, dtype=object).ravel()
        if len(self.axes_) != 3:
            raise ValueError(f"axes holds {len(self.axes_)} Axes, but should hold 3.")
        self.figure_ = self.axes_[0].figure
        loss_ax, nmi_ax, sizes_ax = self.axes_
        self._draw_loss(loss_ax)
        self._draw_nmi(nmi_ax)
        self._draw_sizes(sizes_ax)
        return self

    def _draw_loss(self, ax) -> None:
        self._draw(ax, self._column("loss"), color=COLORS[0], marker="o")
        ax.set_title("Loss")

    def _draw_nmi(self, ax) -> None:
        blue, orange = COLORS[:2]
        self._draw(
            ax,
            self._column("nmi_previous"),
            color=blue,
            marker="o",
            label="to the previous round",
        )
        # After a warm start, only some rounds may have classes.
        if any("nmi_y" in record for record in self.history):
            self._draw(
                ax, self._column("nmi_y"), color=orange, marker="s", label="to y"
            )
        ax.set(title="NMI of the pseudo-labels", ylim=(0, 1.03))
        _add_legend(ax)

    def _draw_sizes(self, ax) -> None:
        from matplotlib import ticker

        blue, orange = COLORS[:2]
        largest = self._column("largest_cluster")
        smallest = self._column("smallest_cluster")
        self._draw(ax, largest, color=orange, marker="^", label="largest")
        if self.n_samples is not None:
            means = self.n_samples / self._column("n_pseudo_labels")
            self._draw(ax, means, color=GRAY, marker=".", label="mean")
        self._draw(ax, smallest, color=blue, marker="v", label="smallest")
        ax.set(title="Images in a cluster", yscale="log")
        # Ticks at 1, 2 and 5 times each power of ten: at least one lies in this range,
        # also if all sizes are nearly equal.
        ax.set_ylim(max(smallest.min(), 1) / 1.6, largest.max() * 1.6)
        ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        ax.yaxis.set_minor_locator(ticker.NullLocator())
        _add_legend(ax)

    def _column(self, name: str) -> np.ndarray:
        return np.array([record.get(name, np.nan) for record in self.history])

    def _draw(self, ax, values: np.ndarray, **style) -> None:
        from matplotlib.ticker import MaxNLocator

        rounds = self._column("round")
        if len(rounds) > MAX_MARKERS:
            style["marker"] = None
        ax.plot(rounds, values, markersize=5, **style)
        ax.set(xlabel="round", xlim=(rounds[0] - 0.3, rounds[-1] + 0.3))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.spines[["top", "right"]].set_visible(False)


def _add_legend(ax) -> None:
    """Add a legend below the axes, where it does not hide a curve."""
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.22),
        frameon=False,
        ncols=3,
        columnspacing=1,
        handlelength=1.2,
    )
