"""Pseudo-labels -> the rows that the network receives, and their loss weights."""

import math

import numpy as np


def count_steps(n: int, batch_size: int) -> int:
    """Return in how many batches `n` rows are passed, none of which is a single row.

    Batch norm has no statistics for a single row, as a short last batch can be.
    """
    return max(1, min(math.ceil(n / batch_size), n // 2))


def split_into_passes(updates: int, n: int, batch_size: int) -> list[int]:
    """Return how many of `n` rows each pass draws that so many updates make up.

    All but a last one are whole.
    """
    whole, rest = divmod(updates, count_steps(n, batch_size))
    return [n] * whole + [rest * batch_size] * bool(rest)


def sample_rows(
    labels: np.ndarray,
    balance: str | None,
    rng: np.random.Generator,
    n_drawn: int | None = None,
) -> np.ndarray:
    """Draw the rows of one training pass, in random order.

    Parameters
    ----------
    labels : ndarray of shape (n,), int
        Pseudo-label of each row of the data.
    balance : {"uniform", "loss"} or None
        "uniform" draws the same number of rows from each non-empty cluster, up to
        one; otherwise no row comes twice.
    rng : numpy.random.Generator
    n_drawn : int or None
        At most n; None is n.

    Returns
    -------
    rows : ndarray of shape (n_drawn,), int64
        Indices into the data, not into any sorted copy of it: the image that the
        network receives is `X[rows[i]]` and its target `labels[rows[i]]`.

    Notes
    -----
    Section 3.3 of the paper, "trivial parametrization": uniform sampling over
    pseudo-labels. Within a cluster no row is repeated before all rows have been
    drawn, so a cluster smaller than its share repeats its rows evenly.
    """
    n = len(labels)
    if balance != "uniform":
        return rng.permutation(n)[:n_drawn]
    n_drawn = n if n_drawn is None else n_drawn
    clusters, sizes = np.unique(labels, return_counts=True)
    share, rest = divmod(n_drawn, len(clusters))
    quotas = np.full(len(clusters), share)
    quotas[rng.choice(len(clusters), rest, replace=False)] += 1

    shuffled = rng.permutation(n)
    members = np.split(
        shuffled[np.argsort(labels[shuffled], kind="stable")], np.cumsum(sizes)[:-1]
    )
    # np.resize repeats the shuffled members cyclically up to the cluster's quota.
    drawn = [
        np.resize(rows, quota) for rows, quota in zip(members, quotas, strict=True)
    ]
    return rng.permutation(np.concatenate(drawn))


def loss_weights(labels: np.ndarray, n_labels: int) -> np.ndarray:
    """Weight each pseudo-label by the inverse of its cluster's size.

    Parameters
    ----------
    labels : ndarray of shape (n,), int
    n_labels : int
        Number of pseudo-labels; those without a row get weight 0.

    Returns
    -------
    weights : ndarray of shape (n_labels,), float32
        Their mean over the rows is 1. In expectation this equals uniform sampling
        (section 3.3 of the paper).
    """
    sizes = np.bincount(labels, minlength=n_labels)
    weights = np.zeros(n_labels, np.float32)
    filled = sizes > 0
    weights[filled] = len(labels) / (filled.sum() * sizes[filled])
    return weights
