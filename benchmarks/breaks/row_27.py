"""Checkpoints of a stopped fit are forged, with a checksum that fits."""

import contextlib
import shutil
import warnings

from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._utils.tensors import read_tensors, write_tensors

WRONG = (None, "x", -1, 1.5, float("nan"), 10**400, [], {}, [[None]])


class Stop(Exception):
    """Ends a fit."""


def row_27(folder):
    """Resume from checkpoints in which one value after another is replaced."""
    warnings.simplefilter("ignore")
    images = load_digits().images[:100]
    real, forged = folder / "real", folder / "forged"

    def stop(history, fitted):
        if len(history) == 2:
            raise Stop

    def make_model(place, callback=None):
        return DeepClusterEstimator(
            4,
            backbone="mlp",
            max_iter=3,
            epochs_per_iter=1,
            random_state=0,
            checkpoint_dir=place,
            callbacks=callback,
        )

    with contextlib.suppress(Stop):
        make_model(real, stop).fit(images)
    path = max(real.rglob("round_*"))
    metadata, tensors = read_tensors(path)

    # The network and the state of the fit, with one entry replaced each time.
    state = metadata["state"]
    for parent in (metadata, state, state["fit"], state["fit"]["optimizer"]):
        for key, value in list(parent.items()):
            for wrong in WRONG:
                if wrong == value or (key == "seconds" and wrong == {}):
                    continue
                parent[key] = wrong
                shutil.rmtree(forged, ignore_errors=True)
                shutil.copytree(real, forged)
                write_tensors(forged / path.relative_to(real), metadata, tensors)
                try:
                    make_model(forged, stop).recover(images)
                except ValueError:
                    pass
                except Exception as error:
                    return f"{key}={wrong!r:.20}: {type(error).__name__}"
            parent[key] = value
    return "ok"
