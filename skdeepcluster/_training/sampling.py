"""Rows that the network receives in a round, and weights of their loss."""

import math

import numpy as np

from .._utils.distributed import SINGLE_PROCESS, Processes, Shard

# Processes use the statistics of their own images with so many images of a batch each.
# Statistics of all images take two messages for each batch norm, as long as half of the
# computation at 32 images. Batches are of nearly equal size, so that the default of 64
# images gives two processes at least 24 each, except for fewer than 192 images.
MIN_LOCAL_ROWS = 24


def count_steps(n: int, batch_size: int) -> int:
    """Return the number of batches in one pass over `n` rows.

    No batch has a single row, since batch norm has no statistics for one row.
    """
    return max(1, min(math.ceil(n / batch_size), n // 2))


def split_batches(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Split rows into batches of nearly equal size."""
    return np.array_split(rows, count_steps(len(rows), batch_size))


def choose_statistics_processes(shard: Shard) -> Processes:
    """Return the processes that compute the statistics of a batch together.

    The choice is the same in each process. Few images have noisy statistics, so
    processes with small shares of a batch share the statistics as well.
    """
    processes = shard.processes
    smallest_share = shard.n_rows // processes.size
    return SINGLE_PROCESS if smallest_share >= MIN_LOCAL_ROWS else processes


def split_into_passes(n_steps: int, n: int, batch_size: int) -> list[int]:
    """Return the number of rows in each pass of a round of `n_steps` SGD steps.

    All passes are complete except for the last.
    """
    n_complete, n_remaining = divmod(n_steps, count_steps(n, batch_size))
    return [n] * n_complete + [n_remaining * batch_size] * bool(n_remaining)


def sample_rows(
    labels: np.ndarray,
    balance: str | None,
    rng: np.random.Generator,
    n_rows: int | None = None,
) -> np.ndarray:
    """Draw the rows of one training pass, in random order.

    Parameters
    ----------
    labels : ndarray of shape (n,), int
        Pseudo-label of each image.
    balance : {"uniform", "loss"} or None
        "uniform" draws the same number of rows from each pseudo-label, up to one.
        Otherwise each row is drawn at most once.
    rng : numpy.random.Generator
    n_rows : int or None
        Number of rows, at most n. None is n.

    Returns
    -------
    rows : ndarray of shape (n_rows,), int64
        Rows of the data, not of a sorted copy: the network receives image
        `X[rows[i]]` with target `labels[rows[i]]`.

    Notes
    -----
    Section 3.3 of the paper, "trivial parametrization": sampling is uniform over
    pseudo-labels. A row is repeated only after all rows of its cluster have been drawn,
    so that small clusters repeat their rows evenly.
    """
    n = len(labels)
    if balance != "uniform":
        return rng.permutation(n)[:n_rows]
    n_rows = n if n_rows is None else n_rows
    clusters, sizes = np.unique(labels, return_counts=True)
    share, remainder = divmod(n_rows, len(clusters))
    quotas = np.full(len(clusters), share)
    quotas[rng.choice(len(clusters), remainder, replace=False)] += 1

    shuffled = rng.permutation(n)
    by_cluster = shuffled[np.argsort(labels[shuffled], kind="stable")]
    members = np.split(by_cluster, np.cumsum(sizes)[:-1])
    # np.resize repeats the shuffled members cyclically up to the cluster's quota.
    rows = [np.resize(rows, quota) for rows, quota in zip(members, quotas, strict=True)]
    return rng.permutation(np.concatenate(rows))


def loss_weights(labels: np.ndarray, n_labels: int) -> np.ndarray:
    """Weight each pseudo-label by the inverse size of its cluster.

    In expectation this equals uniform sampling (section 3.3 of the paper).

    Parameters
    ----------
    labels : ndarray of shape (n,), int
    n_labels : int
        Number of pseudo-labels.

    Returns
    -------
    weights : ndarray of shape (n_labels,), float32
        The mean over all rows is 1. Pseudo-labels without rows have weight 0.
    """
    sizes = np.bincount(labels, minlength=n_labels)
    weights = np.zeros(n_labels, np.float32)
    is_filled = sizes > 0
    weights[is_filled] = len(labels) / (is_filled.sum() * sizes[is_filled])
    return weights
