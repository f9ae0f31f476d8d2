"""The folder of checkpoints becomes read-only after the last round."""

import os
import warnings

from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator

# A user without rights, because root writes into folders that are read-only.
NOBODY = 65534


def row_10(folder):
    """Fit while the folder of checkpoints becomes read-only after the last round."""

    def make_read_only(history, fitted):
        if len(history) == 2:
            for path in (*folder.rglob("*"), folder):
                path.chmod(0o555)
            if os.geteuid() == 0:
                os.seteuid(NOBODY)

    user = os.geteuid()
    model = DeepClusterEstimator(
        4,
        backbone="mlp",
        max_iter=2,
        epochs_per_iter=1,
        callbacks=make_read_only,
        checkpoint_dir=folder,
    )
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(load_digits().images[:100])
    except OSError as error:
        return f"the fit is lost: {type(error).__name__}"
    finally:
        os.seteuid(user)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
    messages = [str(warning.message) for warning in caught]
    if not any(str(folder) in message for message in messages):
        return "no warning names the folder"
    return "ok" if model.n_iter_ == 2 else "rounds are missing"
