"""One of two processes calls `fit` alone."""

from two_processes import run_in_two_processes

SCRIPT = """
model = DeepClusterEstimator(4, max_iter=1, epochs_per_iter=1, random_state=0)
if rank == 1:
    distributed.barrier()
else:
    try:
        model.fit(X)
    except RuntimeError as error:
        assert "Rank 1 of 2 has not called fit" in str(error), error
    else:
        sys.exit("fit of one process returned")
    distributed.barrier()
"""


def row_29(folder):
    """Call `fit` in one process alone, while another one waits at a barrier."""
    return run_in_two_processes(SCRIPT, folder)
