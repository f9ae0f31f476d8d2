"""Order of the examples in the gallery: from first steps to large sets."""

ORDER = [
    "plot_digits.py",
    "plot_photographs.py",
    "plot_few_labels.py",
    "plot_number_of_clusters.py",
    "plot_grid_search.py",
    "plot_folder.py",
    "plot_inside.py",
    "plot_unbalanced.py",
    "plot_empty_clusters.py",
    "train_large.py",
    "train_distributed.py",
]


def sort_key(name: str) -> tuple[int, str]:
    """Return the place of an example; unlisted examples come last, by name."""
    return ORDER.index(name) if name in ORDER else len(ORDER), name
