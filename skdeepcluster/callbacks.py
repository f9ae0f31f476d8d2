"""Functions for the parameter `callbacks`, which run after each round of a fit."""

import os
from numbers import Integral, Real

from sklearn.utils._param_validation import Interval, validate_params

from ._utils.distributed import get_processes
from ._utils.optional import import_optional

__all__ = ["MLflow", "StopWhenStable", "TensorBoard"]


class StopWhenStable:
    """End a fit when a column of `history_` has become stable.

    The learning rate falls over all `max_iter` rounds, so a fit that ends early misses
    the smallest steps. With `schedule="constant"` it misses nothing.

    Parameters
    ----------
    column : str, default="nmi_previous"
        Name of the column. The default, the NMI between the pseudo-labels of successive
        rounds, levels off once the pseudo-labels are stable (Fig. 2b of the paper).

    tol : float, default=0.01
        Largest difference between values of the latest `n_rounds` rounds. Raise it to
        stop earlier.

    n_rounds : int, default=3
        Number of rounds that are compared.

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
        """Return whether the column is stable, which ends the fit."""
        if self.column not in history[-1]:
            raise ValueError(
                f"column={self.column!r} is no column of history_. Choose one of "
                f"{', '.join(history[-1])}."
            )
        values = [record[self.column] for record in history[-self.n_rounds :]]
        return len(values) == self.n_rounds and max(values) - min(values) <= self.tol


class TensorBoard:
    """Write the columns of `history_` as curves for TensorBoard.

    Parameters
    ----------
    log_dir : str or path-like
        Folder of the event files. Each fit writes one file.

    Raises
    ------
    ImportError
        If tensorboard is missing (``pip install 'skdeepcluster[tensorboard]'``).

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
        """Add one point to each curve, in the first process of a fit."""
        if get_processes().rank:
            return
        from torch.utils.tensorboard import SummaryWriter

        if not hasattr(self, "_writer"):
            self._writer = SummaryWriter(os.fspath(self.log_dir))
        metrics = dict(history[-1])
        step = metrics.pop("round")
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def __getstate__(self):
        # A copy cannot share an open file, so it opens another.
        return {"log_dir": self.log_dir}


class MLflow:
    """Log the columns of `history_` as metrics of the active run of MLflow.

    If no run is active, MLflow starts one and leaves it open.

    Raises
    ------
    ImportError
        If mlflow is missing (``pip install 'skdeepcluster[mlflow]'``).

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
        """Log the latest round, in the first process of a fit."""
        if get_processes().rank:
            return
        mlflow = import_optional("mlflow", extra="mlflow")
        metrics = dict(history[-1])
        step = metrics.pop("round")
        mlflow.log_metrics(metrics, step=step)
