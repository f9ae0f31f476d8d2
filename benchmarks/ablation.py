"""What does each choice of the defaults bring?

    python benchmarks/ablation.py --data-set digits
    python benchmarks/ablation.py --data-set fashion-mnist --limit 6000

Each row is a fit with the defaults but for the parameters that its name tells.
"""

from functools import partial

from quality import arguments_parser, ours, report, untrained


def single(train, test, n_clusters, seed, **params):
    """One k for training and result, as in the paper."""
    return ours(train, test, n_clusters, seed, n_pseudo_labels=n_clusters, **params)


def times(factor, train, test, n_clusters, seed):
    """Another number of pseudo-labels for each group."""
    return ours(train, test, n_clusters, seed, n_pseudo_labels=factor * n_clusters)


PAPER = {"init": "features", "n_neighbors": None, "head_norm": None}
VARIANTS = {
    "defaults": ours,
    "init='features'": partial(ours, init="features"),
    "n_neighbors=None": partial(ours, n_neighbors=None),
    "n_neighbors=30": partial(ours, n_neighbors=30),
    "head_norm=None": partial(ours, head_norm=None),
    "augment=None": partial(ours, augment=None),
    "n_pseudo_labels=n_clusters": single,
    "n_pseudo_labels=2 n_clusters": partial(times, 2),
    "n_pseudo_labels=10 n_clusters": partial(times, 10),
    "balance=None": partial(ours, balance=None),
    "max_iter=1": partial(ours, max_iter=1),
    "max_iter=3": partial(ours, max_iter=3),
    "max_iter=12": partial(ours, max_iter=12),
    "batch_size=256": partial(ours, batch_size=256),
    "the paper's clusters and head": partial(single, **PAPER),
    "untrained net": untrained,
}


if __name__ == "__main__":
    report(VARIANTS, arguments_parser(__doc__, "ablation.json").parse_args())
