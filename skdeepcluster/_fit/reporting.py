"""Records of rounds: entries of `history_`, and the line that is printed."""

import time
from datetime import timedelta

import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from .._clustering.pseudo_labels import PseudoLabels


class PhaseTimer:
    """Adds the wall time of each phase of a round to `seconds`.

    Parameters
    ----------
    seconds : dict of str to float
        Time that earlier runs of the same round spent in each phase.
    """

    def __init__(self, seconds: dict[str, float]):
        self.seconds = seconds
        self.last_tick = time.perf_counter()

    def tick(self, phase: str) -> None:
        """Add the time since the last tick to a phase."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.last_tick
        self.last_tick = now


def make_record(
    index: int,
    losses: list[float],
    gain: float,
    previous_labels: np.ndarray,
    pseudo_labels: PseudoLabels,
    n_images: int,
    seconds: dict[str, float],
) -> dict:
    """Return the entry of a round in `history_`.

    Parameters
    ----------
    index : int
        Number of the round, from 1.
    losses : list of float
        Mean loss of each training pass.
    gain : float
        Stability after the round minus stability before training.
    previous_labels : ndarray of shape (h, n), int
        Pseudo-labels that the round trained on.
    pseudo_labels : PseudoLabels
        Pseudo-labels after the round.
    n_images : int
        Number of images drawn for training in the round.
    seconds : dict of str to float
        Time spent in each phase.
    """
    clusterings = pseudo_labels.clusters
    sizes = [np.bincount(clusters.labels) for clusters in clusterings]
    record = {
        "round": index,
        "n_pseudo_labels": int(previous_labels.max()) + 1,
        "loss": float(np.mean(losses)),
        "gain": gain,
        "inertia": sum(clusters.inertia for clusters in clusterings),
        "nmi_previous": mean_nmi(previous_labels, pseudo_labels.labels),
        "n_empty_before": int(sum(c.n_empty_before for c in clusterings)),
        "n_empty_after": int(sum(c.n_empty_after for c in clusterings)),
        "largest_cluster": int(max(s.max() for s in sizes)),
        "smallest_cluster": int(min(s.min() for s in sizes)),
        "images_per_second": n_images / seconds["train"],
    }
    for phase, spent in seconds.items():
        record[f"seconds_{phase}"] = spent
    return record


def mean_nmi(labels: np.ndarray, other_labels: np.ndarray) -> float:
    """Return the mean NMI of corresponding rows of two label arrays, int (h, n)."""
    pairs = zip(labels, other_labels, strict=True)
    return float(np.mean([normalized_mutual_info_score(*pair) for pair in pairs]))


def format_round(record: dict, n_remaining: int) -> str:
    """Return the line that `verbose=1` prints for a round.

    Parameters
    ----------
    record : dict
        Entry of `history_`.
    n_remaining : int
        Number of rounds that follow.
    """
    seconds = sum(v for name, v in record.items() if name.startswith("seconds_"))
    nmi_y = f" (y {record['nmi_y']:.3f})" if "nmi_y" in record else ""
    remaining = ""
    if n_remaining:
        remaining = f", {timedelta(seconds=round(n_remaining * seconds))} left"
    return (
        f"round {record['round']:3d}: loss {record['loss']:.3f}, "
        f"NMI {record['nmi_previous']:.3f}{nmi_y}, {record['n_empty_before']} empty, "
        f"largest {record['largest_cluster']:,}, "
        f"{record['images_per_second']:,.0f} images/s{remaining}"
    )
