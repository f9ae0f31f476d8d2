"""Two processes pass different images to `predict` and `transform`."""

from two_processes import run_in_two_processes

SCRIPT = """
import numpy as np
model = DeepClusterEstimator(4, max_iter=1, epochs_per_iter=1, random_state=0).fit(X)
for images in (X[32 * rank :][:32], X[: 40 + rank]):
    for method in (model.predict, model.transform, model.predict_proba):
        try:
            method(images)
        except ValueError as error:
            assert "rank 1" in str(error), error
        else:
            sys.exit(f"{method.__name__} returned the rows of both processes")
assert np.array_equal(model.predict(X), model.labels_)
"""


def row_03(folder):
    """Pass the shard of each process to `predict`, `transform` and `predict_proba`."""
    return run_in_two_processes(SCRIPT, folder)
