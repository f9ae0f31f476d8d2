"""Signs that a fit fails, with messages that name the parameter to change."""

import math

# Fraction of the loss of random guesses above which the network has learned nothing.
GUESSING_LOSS = 0.95
# Fraction of the images above which one pseudo-label is too large.
GIANT_FRACTION = 0.5
# Number of pseudo-labels below which a large one is normal.
MIN_LABELS_FOR_GIANT = 4
# Gain of the features' stability over the start below which the network got worse.
WORST_GAIN = -0.15
# NMI between pseudo-labels of successive rounds below which they are not stable.
UNSTABLE_NMI = 0.4


def round_symptoms(history: list[dict], n_images: int) -> dict[str, str]:
    """Return messages about problems after a round, by the name of the problem.

    Parameters
    ----------
    history : list of dict
        `history_` up to the round.
    n_images : int
        Number of images of the fit.
    """
    symptoms = {}
    record = history[-1]
    # A single round of few steps may be too short to learn anything.
    if len(history) > 1 and _is_guessing(record) and _is_guessing(history[-2]):
        k = record["n_pseudo_labels"]
        symptoms["guessing"] = (
            f"The network learned nothing in two rounds: its loss is "
            f"{record['loss']:.2f}, and random guesses among {k} pseudo-labels have "
            f"{math.log(k):.2f}. Raise epochs_per_iter, change learning_rate, or set "
            "head_norm='batch'."
        )
    fraction = record["largest_cluster"] / n_images
    has_enough_labels = record["n_pseudo_labels"] >= MIN_LABELS_FOR_GIANT
    if has_enough_labels and fraction > GIANT_FRACTION:
        symptoms["giant"] = (
            f"After round {record['round']} one pseudo-label holds {fraction:.0%} of "
            "the images: the features collapse, or most images are alike. Set "
            "balance='uniform', and lower learning_rate."
        )
    return symptoms


def final_symptoms(
    history: list[dict], n_distinct_labels: int, n_clusters: int
) -> list[str]:
    """Return messages about problems at the end of a fit.

    Parameters
    ----------
    history : list of dict
        `history_` of the whole fit.
    n_distinct_labels : int
        Number of clusters in `labels_`.
    n_clusters : int
        Number of clusters that the user has set.
    """
    symptoms: list[str] = []
    if not history:
        # Nothing was trained.
        return symptoms
    gain = history[-1]["gain"]
    if gain < WORST_GAIN:
        symptoms.append(
            "The network is no better than at its start: slight changes of the images "
            f"change the clusters of its features more (gain {gain:.2f} in history_). "
            "Lower learning_rate, raise epochs_per_iter, or set head_norm='batch'."
        )
    nmi = history[-1]["nmi_previous"]
    if len(history) > 2 and nmi < UNSTABLE_NMI:
        symptoms.append(
            f"The pseudo-labels did not settle: after {len(history)} rounds their NMI "
            f"with the previous round is {nmi:.2f}. Lower learning_rate, or "
            "n_pseudo_labels."
        )
    # With fewer pseudo-labels than clusters, k-means has already warned.
    if n_distinct_labels < n_clusters <= history[-1]["n_pseudo_labels"]:
        symptoms.append(
            f"Only {n_distinct_labels} clusters of n_clusters={n_clusters} have "
            "images. Lower n_clusters, or raise max_iter."
        )
    return symptoms


def _is_guessing(record: dict) -> bool:
    """Return whether the loss is close to the loss of random guesses."""
    return record["loss"] > GUESSING_LOSS * math.log(record["n_pseudo_labels"]) > 0
