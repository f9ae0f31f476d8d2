"""`score` of broken files, and classes with gaps."""

import numpy as np
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator


def row_23(folder):
    """Call `score` with broken files only, and with classes that are partly missing."""
    digits = load_digits()
    X, y = digits.images[:64], digits.target[:64].astype(float)
    model = DeepClusterEstimator(4, max_iter=1, epochs_per_iter=1, on_error="skip")
    model.fit(X)
    paths = [folder / f"{i}.png" for i in range(5)]
    for path in paths:
        path.write_text("not an image")
    try:
        model.score(paths)
    except ValueError as error:
        if "0.png" not in str(error):
            return f"score of broken files: {error}"
    else:
        return "score of broken files has a value"
    y[::3] = np.nan
    gaps = {
        "NaN": y,
        "None": np.where(np.isnan(y), None, y),
        "masked": np.ma.masked_invalid(y),
    }
    for name, classes in gaps.items():
        try:
            model.score(X, classes)
            if "nmi_y" not in model.fit(X, classes).history_[-1]:
                return f"fit ignores y with {name}"
        except Exception as error:
            return f"y with {name}: {type(error).__name__}: {error}"
    return "ok"
