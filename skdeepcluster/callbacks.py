"""Functions for the parameter `callbacks`: what to do after each round of a fit."""

import os
from numbers import Integral, Real

from sklearn.utils._param_validation import Interval, validate_params

from ._utils.distributed import get_processes
from ._utils.optional import import_optional

__all__ = ["MLflow", "StopWhenStable", "TensorBoard"]


class StopWhenStable:
    """End a fit when a column of `history_` hardly changes any more.

    The step size falls over all `max_iter` rounds, and a fit that ends early misses the
    smallest steps; with `schedule="constant"` it misses nothing.

    Parameters
    ----------
    column : str, default="nmi_previous"
        Which column. The NMI between the pseudo-labels of successive rounds levels off
        where they have settled (Fig. 2b of the paper).

    tol : float, default=0.01
        Largest difference between the values of the last rounds.

    n_rounds : int, default=3
        How many rounds these are.

    Raises
    ------
    ValueError
        From the fit, after its first round, if `history_` has no such column.

    See Also
    --------
    skdeepcluster.DeepClusterEstimator : Its parameter `callbacks`.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.callbacks import StopWhenStable
    >>> model = DeepClusterEstimator(
    ...     n_clusters=10,
    ...     max_iter=50,
    ...     epochs_per_iter=1,
    ...     callbacks=StopWhenStable(tol=0.05),
    ...     random_state=0,
    ... )
    >>> model.fit(load_digits().images[:300]).n_iter_ < 50
    True
    """

    @validate_params(
        {
            "column": [str],
            "tol": [Interval(Real, 0, None, closed="left")],
            "n_rounds": [Interval(Integral, 2, None, closed="left")],
        },
        prefer_skip_nested_validation=True,
    )
    def __init__(self, column="nmi_previous", *, tol=0.01, n_rounds=3):
        self.column = column
        self.tol = tol
        self.n_rounds = n_rounds

    def __call__(self, history, fitted) -> bool:
        """Tell whether the column has settled."""
        if self.column not in history[-1]:
            raise ValueError(
                f"column={self.column!r} is none of history_, which are "
                f"{', '.join(history[-1])}."
            )
        last = [record[self.column] for record in history[-self.n_rounds :]]
        return len(last) == self.n_rounds and max(last) - min(last) <= self.tol


class TensorBoard:
    """Write the columns of `history_` as curves for TensorBoard.

    Parameters
    ----------
    log_dir : str or path-like
        Folder for the event files, one for each fit.

    Raises
    ------
    ImportError
        If tensorboard is missing (``pip install skdeepcluster[tensorboard]``).

    See Also
    --------
    skdeepcluster.DeepClusterEstimator : Its parameter `callbacks`.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.callbacks import TensorBoard
    >>> folder = tempfile.mkdtemp()
    >>> model = DeepClusterEstimator(
    ...     n_clusters=10, max_iter=1, epochs_per_iter=1, callbacks=TensorBoard(folder)
    ... )
    >>> model = model.fit(load_digits().images[:300])  # and then: tensorboard --logdir
    """

    @validate_params(
        {"log_dir": [str, os.PathLike]}, prefer_skip_nested_validation=True
    )
    def __init__(self, log_dir):
        import_optional("tensorboard", extra="tensorboard")
        self.log_dir = log_dir

    def __call__(self, history, fitted) -> None:
        """Write one point of each curve, in the first process of a fit."""
        if get_processes().rank:
            return
        from torch.utils.tensorboard import SummaryWriter

        if not hasattr(self, "_writer"):
            self._writer = SummaryWriter(os.fspath(self.log_dir))
        for name, value in history[-1].items():
            if name != "round":
                self._writer.add_scalar(name, value, history[-1]["round"])
        self._writer.flush()

    def __getstate__(self):
        # An open file goes to no copy: each opens its own.
        return {"log_dir": self.log_dir}


class MLflow:
    """Log the columns of `history_` as metrics of the active run of MLflow.

    Without an active run MLflow starts one, and leaves it open.

    Raises
    ------
    ImportError
        If mlflow is missing (``pip install skdeepcluster[mlflow]``).

    See Also
    --------
    skdeepcluster.DeepClusterEstimator : Its parameter `callbacks`.

    Examples
    --------
    >>> import mlflow
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.callbacks import MLflow
    >>> model = DeepClusterEstimator(n_clusters=10, callbacks=MLflow())
    >>> with mlflow.start_run():  # doctest: +SKIP
    ...     mlflow.log_params(model.get_params())
    ...     model.fit(load_digits().images)
    """

    def __init__(self):
        import_optional("mlflow", extra="mlflow")

    def __call__(self, history, fitted) -> None:
        """Log the last round, in the first process of a fit."""
        if get_processes().rank:
            return
        mlflow = import_optional("mlflow", extra="mlflow")
        metrics = {name: v for name, v in history[-1].items() if name != "round"}
        mlflow.log_metrics(metrics, step=history[-1]["round"])
