"""Signs that a fit fails, with messages that name the parameter to change."""

import math
from numbers import Integral

from .recipe import Parameters

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


def round_symptoms(
    history: list[dict], n_images: int, parameters: Parameters
) -> dict[str, str]:
    """Return messages about problems after a round, by the name of the problem.

    Parameters
    ----------
    history : list of dict
        `history_` up to the round.
    n_images : int
        Number of images of the fit.
    parameters : Parameters
        Parameters of the fit, so that no message advises what is set already.
    """
    symptoms = {}
    record = history[-1]
    # A single round of few steps may be too short to learn anything.
    if len(history) > 1 and _is_guessing(record) and _is_guessing(history[-2]):
        k = record["n_pseudo_labels"]
        cures = ["Raise epochs_per_iter", "change learning_rate"]
        symptoms["guessing"] = (
            f"The network learned nothing in two rounds: its loss is "
            f"{record['loss']:.2f}, and random guesses among {k} pseudo-labels have "
            f"{math.log(k):.2f}. {_join(cures + _suggest_batch_norm(parameters))}."
        )
    fraction = record["largest_cluster"] / n_images
    has_enough_labels = record["n_pseudo_labels"] >= MIN_LABELS_FOR_GIANT
    if has_enough_labels and fraction > GIANT_FRACTION:
        cures = ["Lower learning_rate", "remove images that repeat"]
        if parameters.balance != "uniform":
            cures = ["Set balance='uniform'", "lower learning_rate"]
        symptoms["giant"] = (
            f"After round {record['round']} one pseudo-label holds {fraction:.0%} of "
            f"the images: the features collapse, or most images are alike. "
            f"{_join(cures)}."
        )
    return symptoms


def describe_repeats(
    n_found: int, parameters: Parameters, round_number: int = 0
) -> str | None:
    """Return a message if there are fewer distinct points than clusters to be found.

    It names the numbers that the user has set. Fewer pseudo-labels than "auto" has
    chosen are no problem while there are enough for the clusters.

    Parameters
    ----------
    n_found : int
        Number of pseudo-labels, each of which has an image.
    parameters : Parameters
    round_number : int, default=0
        Round after which they were found. Images that repeat do so before the first
        round.
    """
    if not _warns_of_repeats(parameters):
        return None
    numbers: dict[str, int] = {}
    if not isinstance(parameters.n_clusters, str):
        numbers["n_clusters"] = parameters.n_clusters
    value = parameters.n_pseudo_labels
    if isinstance(value, Integral):
        numbers["n_pseudo_labels"] = int(value)
    elif not isinstance(value, str):
        numbers["n_pseudo_labels"] = max(value)
    too_large = {name: k for name, k in numbers.items() if k > n_found}
    if not too_large and (n_found > 1 or numbers):
        return None
    limits = " and ".join(f"{name} ({k})" for name, k in too_large.items())
    if round_number:
        return (
            f"After round {round_number} k-means finds only {n_found} distinct points, "
            f"fewer than {limits or 'two'}: the features collapse. Lower learning_rate."
        )
    if not too_large:
        return (
            "Number of distinct points is 1: all images are the same to the network, "
            "and form one cluster. Pass images that differ."
        )
    return (
        f"Number of distinct points ({n_found}) is smaller than {limits}. Lower "
        f"{' and '.join(too_large)}, or remove images that repeat."
    )


def final_symptoms(
    history: list[dict],
    n_distinct_labels: int,
    n_reported: int | None,
    parameters: Parameters,
) -> list[str]:
    """Return messages about problems at the end of a fit.

    Parameters
    ----------
    history : list of dict
        `history_` of the whole fit. Empty if nothing was trained.
    n_distinct_labels : int
        Number of clusters in `labels_`.
    n_reported : int or None
        Number of distinct points, if `describe_repeats` has warned about it.
    parameters : Parameters
    """
    symptoms: list[str] = []
    if history:
        symptoms = _training_symptoms(history, parameters)
    n_clusters = parameters.n_clusters
    if isinstance(n_clusters, str) or n_distinct_labels >= n_clusters:
        return symptoms
    # The cause has been named already.
    if n_reported is not None and n_reported < n_clusters:
        return symptoms
    cures = ["Lower n_clusters"]
    if _policy(parameters) == "drop":
        cures.append("set empty_clusters='split'")
    elif history:
        cures.append("raise max_iter")
    symptoms.append(
        f"Only {n_distinct_labels} clusters of n_clusters={n_clusters} have images. "
        f"{_join(cures)}."
    )
    return symptoms


def _training_symptoms(history: list[dict], parameters: Parameters) -> list[str]:
    """Return messages about a training that did not improve the network."""
    symptoms = []
    gain = history[-1]["gain"]
    if gain < WORST_GAIN:
        cures = ["Lower learning_rate", "raise epochs_per_iter"]
        symptoms.append(
            "The network is no better than at its start: slight changes of the images "
            f"change the clusters of its features more (gain {gain:.2f} in history_). "
            f"{_join(cures + _suggest_batch_norm(parameters))}."
        )
    nmi = history[-1]["nmi_previous"]
    if len(history) > 2 and nmi < UNSTABLE_NMI:
        cures = ["Lower learning_rate"]
        k = history[-1]["n_pseudo_labels"]
        if parameters.clusterer == "pic":
            # The method chooses the number of pseudo-labels itself.
            pass
        elif parameters.n_clusters == k:
            cures.append("lower n_clusters")
        elif isinstance(parameters.n_pseudo_labels, str):
            cures.append(f"set n_pseudo_labels to less than {k}, the choice of 'auto'")
        else:
            cures.append("lower n_pseudo_labels")
        symptoms.append(
            f"The pseudo-labels did not settle: after {len(history)} rounds their NMI "
            f"with the previous round is {nmi:.2f}. {_join(cures)}."
        )
    return symptoms


def _is_guessing(record: dict) -> bool:
    """Return whether the loss is close to the loss of random guesses."""
    return record["loss"] > GUESSING_LOSS * math.log(record["n_pseudo_labels"]) > 0


def _suggest_batch_norm(parameters: Parameters) -> list[str]:
    """Return the advice to set the default of `head_norm`, unless it is set."""
    return ["set head_norm='batch'"] if parameters.head_norm != "batch" else []


def _policy(parameters: Parameters) -> str:
    """Return the policy for empty clusters, which `FaissKMeans` replaces."""
    return getattr(parameters.clusterer, "empty_clusters", parameters.empty_clusters)


def _warns_of_repeats(parameters: Parameters) -> bool:
    """Return whether fewer clusters than asked for mean that images repeat.

    Empty clusters may have been dropped, and some methods choose their number.
    """
    clusterer = parameters.clusterer
    if isinstance(clusterer, str):
        return clusterer == "kmeans" and _policy(parameters) != "drop"
    has_number = bool(getattr(clusterer, "n_clusters", None))
    has_policy = hasattr(clusterer, "empty_clusters")
    return has_number and not (has_policy and _policy(parameters) == "drop")


def _join(cures: list[str]) -> str:
    """Return ways to change a fit as an enumeration."""
    if len(cures) < 3:
        return ", or ".join(cures)
    return ", ".join(cures[:-1]) + f", or {cures[-1]}"
