"""Measure how much each choice among the defaults contributes.

    python benchmarks/ablation.py --data-set digits
    python benchmarks/ablation.py --data-set fashion-mnist --limit 6000

Each row is a fit with the defaults, except for the parameters in its name. The columns
are explained in quality.py.
"""

from functools import partial

from quality import fit_skdeepcluster, fit_untrained, make_parser, run_benchmark

# Parameters of the paper's recipe that differ from the defaults.
PAPER = {"init": "features", "n_neighbors": None, "head_norm": None}


def fit_pseudo_labels(factor, train, test, n_clusters, seed, **params):
    """Fit with `factor` pseudo-labels for each cluster."""
    return fit_skdeepcluster(
        train, test, n_clusters, seed, n_pseudo_labels=factor * n_clusters, **params
    )


# Methods by the name of their row, as in quality.py.
VARIANTS = {
    # The first row is the reference for all other rows.
    "defaults": fit_skdeepcluster,
    "init='features'": partial(fit_skdeepcluster, init="features"),
    "n_neighbors=None": partial(fit_skdeepcluster, n_neighbors=None),
    "n_neighbors=30": partial(fit_skdeepcluster, n_neighbors=30),
    "head_norm=None": partial(fit_skdeepcluster, head_norm=None),
    "augment=None": partial(fit_skdeepcluster, augment=None),
    "n_pseudo_labels=n_clusters": partial(fit_pseudo_labels, 1),
    "n_pseudo_labels=2 n_clusters": partial(fit_pseudo_labels, 2),
    "n_pseudo_labels=10 n_clusters": partial(fit_pseudo_labels, 10),
    "balance=None": partial(fit_skdeepcluster, balance=None),
    "max_iter=1": partial(fit_skdeepcluster, max_iter=1),
    "max_iter=3": partial(fit_skdeepcluster, max_iter=3),
    "max_iter=12": partial(fit_skdeepcluster, max_iter=12),
    "batch_size=256": partial(fit_skdeepcluster, batch_size=256),
    # All changes of the paper at once, with one k for training and result.
    "the paper's clusters and head": partial(fit_pseudo_labels, 1, **PAPER),
    "untrained network": fit_untrained,
}


if __name__ == "__main__":
    run_benchmark(VARIANTS, make_parser(__doc__, "ablation.json").parse_args())
