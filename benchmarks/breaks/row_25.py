"""A callback in two processes raises errors that resemble a lost connection."""

from two_processes import run_in_two_processes

SCRIPT = """
for text in (
    "the data base timed out",
    "[third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer",
):

    def fail(history, fitted):
        raise RuntimeError(text)

    model = DeepClusterEstimator(4, max_iter=1, epochs_per_iter=1, callbacks=fail)
    try:
        model.fit(X)
    except RuntimeError as error:
        if str(error) != text:
            sys.exit(f"a user's error {text!r} became {str(error)[:60]!r}")
"""


def row_25(folder):
    """Raise errors of a user in a callback of two processes."""
    return run_in_two_processes(SCRIPT, folder)
