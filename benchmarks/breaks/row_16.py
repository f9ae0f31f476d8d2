"""Several fits share one folder of checkpoints."""

import time
import warnings
from multiprocessing import get_context

from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from skdeepcluster import DeepClusterEstimator

SECONDS_TO_MEET = 30


def make_model(folder, **parameters):
    """Return a small model with checkpoints."""
    return DeepClusterEstimator(
        4,
        backbone="mlp",
        max_iter=3,
        epochs_per_iter=1,
        random_state=0,
        checkpoint_dir=folder,
        **parameters,
    )


def score(model, images, y=None):
    """Return one, because only failures count."""
    return 1.0


def fit_beside_another(folder, meeting, name, learning_rate):
    """Fit, and wait in the second round until the other fit has reached it as well."""
    # A warning would say that another fit is unfinished, but not that it is running.
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", ConvergenceWarning)

    def meet(history, fitted):
        if len(history) == 2:
            (meeting / name).touch()
            end = time.monotonic() + SECONDS_TO_MEET
            while len(list(meeting.iterdir())) < 2 and time.monotonic() < end:
                time.sleep(0.01)

    model = make_model(folder, learning_rate=learning_rate, callbacks=meet)
    try:
        return model.fit(load_digits().images[:100]).n_iter_
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def row_16(folder):
    """Search with two processes, and run two fits at once, in one folder."""
    warnings.simplefilter("ignore")
    shared, meeting = folder / "shared", folder / "meeting"
    meeting.mkdir()
    search = GridSearchCV(
        make_model(shared), {"n_clusters": [3, 4]}, cv=2, n_jobs=2, scoring=score
    )
    try:
        search.fit(load_digits().images[:100])
    except ValueError:
        return "all fits of a search fail"
    n_failed = int(sum(search.cv_results_["mean_test_score"] != 1))
    if n_failed:
        return f"{n_failed} of 2 candidates of a search fail"
    with get_context("spawn").Pool(2) as pool:
        arguments = [
            (shared, meeting, f"{number}", rate)
            for number, rate in enumerate((0.01, 0.02))
        ]
        for result in pool.starmap(fit_beside_another, arguments, chunksize=1):
            if result != 3:
                return f"two fits at once: {result}"
    return "files are left" if any(shared.iterdir()) else "ok"
