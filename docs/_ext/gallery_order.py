"""The order of the examples in the gallery: from first steps to large sets."""

FIRST = [
    "plot_digits.py",
    "plot_few_labels.py",
    "plot_number_of_clusters.py",
    "plot_grid_search.py",
    "plot_folder.py",
    "plot_inside.py",
    "plot_unbalanced.py",
    "plot_empty_clusters.py",
    "train_large.py",
]


def in_order(name: str) -> tuple[int, str]:
    """Return what to sort by; those that are not listed come last, by name."""
    return FIRST.index(name) if name in FIRST else len(FIRST), name
