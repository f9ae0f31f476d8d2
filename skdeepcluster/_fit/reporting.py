"""What a round reports of itself: an entry of `history_`, and its line in print."""

import time
from datetime import timedelta

import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from .._clustering.pseudo_labels import PseudoLabels


class PhaseTimer:
    """Seconds of wall time by phase, added to those already spent."""

    def __init__(self, spent: dict[str, float]):
        self.spent = spent
        self.last = time.perf_counter()

    def tick(self, phase: str) -> None:
        """Book the time since the last tick on `phase`."""
        now = time.perf_counter()
        self.spent[phase] = self.spent.get(phase, 0.0) + now - self.last
        self.last = now


def make_record(
    index: int,
    losses: list[float],
    gain: float,
    previous: np.ndarray,
    found: PseudoLabels,
    n_images: int,
    clock: PhaseTimer,
) -> dict:
    """Return the entry of a round, which trained on `n_images`, in `history_`."""
    sizes = [np.bincount(labels) for labels in found.labels]
    return {
        "round": index,
        "n_pseudo_labels": int(previous.max()) + 1,
        "loss": float(np.mean(losses)),
        "gain": gain,
        "inertia": sum(each.inertia for each in found.clusters),
        "nmi_previous": mean_nmi(previous, found.labels),
        "n_empty_before": int(sum(each.n_empty_before for each in found.clusters)),
        "n_empty_after": int(sum(each.n_empty_after for each in found.clusters)),
        "largest_cluster": int(max(each.max() for each in sizes)),
        "smallest_cluster": int(min(each.min() for each in sizes)),
        "images_per_second": n_images / clock.spent["train"],
        **{f"seconds_{phase}": spent for phase, spent in clock.spent.items()},
    }


def mean_nmi(labels: np.ndarray, others: np.ndarray) -> float:
    """Return the mean NMI of rows of labels with one another, int (h, n)."""
    pairs = zip(labels, others, strict=True)
    return float(np.mean([normalized_mutual_info_score(*pair) for pair in pairs]))


def format_round(record: dict, n_left: int) -> str:
    """Return what `verbose=1` prints of a round, before `n_left` others like it."""
    seconds = sum(v for name, v in record.items() if name.startswith("seconds_"))
    nmi_y = f" (y {record['nmi_y']:.3f})" if "nmi_y" in record else ""
    left = f", {timedelta(seconds=round(n_left * seconds))} left" if n_left else ""
    return (
        f"round {record['round']:3d}: loss {record['loss']:.3f}, "
        f"NMI {record['nmi_previous']:.3f}{nmi_y}, {record['n_empty_before']} empty, "
        f"largest {record['largest_cluster']:,}, "
        f"{record['images_per_second']:,.0f} images/s{left}"
    )
