"""How a fit went, round by round, as curves."""

import numpy as np
from sklearn.utils._param_validation import validate_params
from sklearn.utils.validation import check_is_fitted

from ..._estimator import DeepClusterEstimator
from ..._plot.drawing import COLORS, GRAY, import_pyplot

MARKED = 30  # rounds; of more, markers would touch


class TrainingCurvesDisplay:
    """Curves of a fit over its rounds: loss, NMI and sizes of clusters.

    `from_estimator` and `from_history` make it and draw it. All parameters are stored
    as attributes.

    Parameters
    ----------
    history : list of dict
        Such as `DeepClusterEstimator.history_`.
    n_samples : int, default=None
        Number of images, for the mean size of clusters.

    Attributes
    ----------
    axes_ : ndarray of 3 matplotlib Axes
        Of the loss, the NMI and the sizes.
    figure_ : matplotlib Figure
        What they are in.

    See Also
    --------
    skdeepcluster.evaluation.stability : The NMI as a table.

    Examples
    --------
    >>> from skdeepcluster import TrainingCurvesDisplay
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
    @validate_params(
        {"estimator": [DeepClusterEstimator]}, prefer_skip_nested_validation=True
    )
    def from_estimator(cls, estimator, *, axes=None):
        """Draw the curves of a fitted estimator.

        Parameters
        ----------
        estimator : DeepClusterEstimator
            Fitted.
        axes : array-like of 3 matplotlib Axes, default=None
            Where the curves are drawn. With None, in a new figure.

        Returns
        -------
        display : TrainingCurvesDisplay
            Drawn.
        """
        import_pyplot()
        check_is_fitted(estimator)
        n_samples = len(estimator.labels_) - len(estimator.skipped_)
        return cls(estimator.history_, n_samples=n_samples).plot(axes)

    @classmethod
    def from_history(cls, history, *, n_samples=None, axes=None):
        """Draw the curves of a history that was kept, as JSON say.

        Parameters
        ----------
        history : list of dict
            Such as `DeepClusterEstimator.history_`.
        n_samples : int, default=None
            Number of images, for the mean size of clusters. With None it is left out.
        axes : array-like of 3 matplotlib Axes, default=None
            Where the curves are drawn. With None, in a new figure.

        Returns
        -------
        display : TrainingCurvesDisplay
            Drawn.
        """
        return cls(history, n_samples=n_samples).plot(axes)

    def plot(self, axes=None):
        """Draw the curves.

        The mean size is that for the number of clusters that a round trained on; of
        several `n_pseudo_labels`, for the largest.

        Parameters
        ----------
        axes : array-like of 3 matplotlib Axes, default=None
            Where the curves are drawn. With None, in a new figure.

        Returns
        -------
        display : TrainingCurvesDisplay
            Itself.

        Raises
        ------
        ValueError
            If there is no round in the history, or not three axes.
        """
        plt = import_pyplot()
        from matplotlib import ticker

        if not self.history:
            raise ValueError("history is empty: there is no round to draw.")
        if axes is None:
            size = {"figsize": (9.6, 3.3), "layout": "constrained"}
            axes = plt.subplots(1, 3, **size)[1]
        self.axes_ = np.asarray(axes, dtype=object).ravel()
        if len(self.axes_) != 3:
            raise ValueError(f"axes holds {len(self.axes_)} Axes, but should hold 3.")
        self.figure_ = self.axes_[0].figure
        loss, nmi, sizes = self.axes_
        blue, orange = COLORS[:2]

        self._draw(loss, self._column("loss"), color=blue, marker="o")
        loss.set_title("Loss")

        to_previous = self._column("nmi_previous")
        self._draw(
            nmi, to_previous, color=blue, marker="o", label="to the round before"
        )
        if any("nmi_y" in record for record in self.history):
            to_y = self._column("nmi_y")
            self._draw(nmi, to_y, color=orange, marker="s", label="to y")
        nmi.set(title="NMI of the pseudo-labels", ylim=(0, 1.03))
        _explain(nmi)

        largest, smallest = map(self._column, ("largest_cluster", "smallest_cluster"))
        self._draw(sizes, largest, color=orange, marker="^", label="largest")
        if self.n_samples is not None:
            means = self.n_samples / self._column("n_pseudo_labels")
            self._draw(sizes, means, color=GRAY, marker=".", label="mean")
        self._draw(sizes, smallest, color=blue, marker="v", label="smallest")
        sizes.set(title="Images in a cluster", yscale="log")
        # One, two or five at each power of ten, and at least one of them in sight.
        sizes.set_ylim(max(smallest.min(), 1) / 1.6, largest.max() * 1.6)
        sizes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        sizes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        sizes.yaxis.set_minor_locator(ticker.NullLocator())
        _explain(sizes)
        return self

    def _column(self, name: str) -> np.ndarray:
        return np.array([record.get(name, np.nan) for record in self.history])

    def _draw(self, ax, values: np.ndarray, **style) -> None:
        from matplotlib.ticker import MaxNLocator

        rounds = self._column("round")
        if len(rounds) > MARKED:
            style["marker"] = None
        ax.plot(rounds, values, markersize=5, **style)
        ax.set(xlabel="round", xlim=(rounds[0] - 0.3, rounds[-1] + 0.3))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.spines[["top", "right"]].set_visible(False)


def _explain(ax) -> None:
    """Put the legend below the axes, where it hides no curve."""
    style = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.22), "frameon": False}
    ax.legend(ncols=3, columnspacing=1, handlelength=1.2, **style)
