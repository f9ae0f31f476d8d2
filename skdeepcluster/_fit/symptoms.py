"""Signs that a fit fails, each in words that name the parameter to change."""

import math

GUESSING = 0.95  # of the loss of a head that knows nothing
GIANT = 0.5  # of the images in one pseudo-label
FEWEST_LABELS = 4  # among which one is called giant
WORSE = -0.15  # gain of the features' stability over the start
UNSETTLED = 0.4  # NMI between the pseudo-labels of successive rounds


def round_symptoms(history: list[dict], n_images: int) -> dict[str, str]:
    """Return what is wrong after a round, in words by name; empty if nothing.

    Parameters
    ----------
    history : list of dict
        `history_` up to that round.
    n_images : int
    """
    found = {}
    record = history[-1]
    # Where kinds are simple, a first round of few steps may only just have begun.
    if len(history) > 1 and _is_guessing(record) and _is_guessing(history[-2]):
        k = record["n_pseudo_labels"]
        found["guessing"] = (
            f"The network learned nothing in two rounds: its loss is "
            f"{record['loss']:.2f}, and guessing among {k} pseudo-labels makes "
            f"{math.log(k):.2f}. Raise epochs_per_iter, change learning_rate, or set "
            "head_norm='batch'."
        )
    share = record["largest_cluster"] / n_images
    if record["n_pseudo_labels"] >= FEWEST_LABELS and share > GIANT:
        found["giant"] = (
            f"After round {record['round']} one pseudo-label holds {share:.0%} of the "
            "images: the features collapse, or most images are alike. Set "
            "balance='uniform', and lower learning_rate."
        )
    return found


def final_symptoms(history: list[dict], n_groups: int, n_clusters: int) -> list[str]:
    """Return what is wrong at the end of a fit, in words; empty if nothing."""
    found = []
    gain = history[-1]["gain"]
    if gain < WORSE:
        found.append(
            "The network is no better than at its start: clusters of its features "
            f"survive slight changes of the images less well (gain {gain:.2f} in "
            "history_). Lower learning_rate, raise epochs_per_iter, or set "
            "head_norm='batch'."
        )
    settled = history[-1]["nmi_previous"]
    if len(history) > 2 and settled < UNSETTLED:
        found.append(
            f"The pseudo-labels did not settle: after {len(history)} rounds their NMI "
            f"to the round before is {settled:.2f}. Lower learning_rate, or "
            "n_pseudo_labels."
        )
    # Of fewer pseudo-labels than groups k-means has warned already.
    if n_groups < n_clusters <= history[-1]["n_pseudo_labels"]:
        found.append(
            f"Only {n_groups} of n_clusters={n_clusters} groups are told apart. Lower "
            "n_clusters, or raise max_iter."
        )
    return found


def _is_guessing(record: dict) -> bool:
    return record["loss"] > GUESSING * math.log(record["n_pseudo_labels"]) > 0
