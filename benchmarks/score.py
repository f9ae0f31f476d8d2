"""Measure whether `score` ranks fits as their agreement with the classes does.

    python benchmarks/score.py --data-set digits
    python benchmarks/score.py --data-set fashion-mnist --limit 6000

Fit good and bad settings on two thirds of the images. Compare `score` with the NMI of
clusters and classes, both on the last third. A search for parameters without labels is
as reliable as Spearman's correlation of the two figures is high.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
from data_sets import load_data_set
from scipy.stats import spearmanr
from sklearn.metrics import normalized_mutual_info_score

from skdeepcluster import DeepClusterEstimator

# Parameters of the paper's recipe that differ from the defaults.
PAPER = {"init": "features", "n_neighbors": None, "head_norm": None}
# Parameters that differ from the defaults, for better or worse.
SETTINGS = [
    # The defaults.
    {},
    *({"n_clusters": n_clusters} for n_clusters in (3, 5, 7, 14, 20, 30)),
    *({"max_iter": n_rounds} for n_rounds in (1, 3)),
    {"n_neighbors": None},
    {"n_neighbors": 30},
    {"init": "features"},
    {"init": "features", "n_neighbors": None},
    {"head_norm": None},
    {"augment": None},
    *({"learning_rate": rate} for rate in (0.003, 0.2)),
    {"epochs_per_iter": 1},
    {"n_pseudo_labels": 10},
    PAPER | {"n_pseudo_labels": 10},
]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-set", default="digits", help="see data_sets.py")
    parser.add_argument("--limit", type=int, help="largest number of images")
    parser.add_argument("--seeds", type=int, default=1, help="fits of each setting")
    parser.add_argument("--json", default="score.json", help="file to write")
    arguments = parser.parse_args()
    data = load_data_set(arguments.data_set, arguments.limit)
    # Both figures are measured on images that no fit has seen.
    n_train = 2 * len(data.images) // 3
    train, test = data.images[:n_train], data.images[n_train:]
    test_classes = data.classes[n_train:]

    print(f"{'score':>7s}{'NMI':>7s}{'clusters':>10s}  parameters")
    rows = []
    for seed in range(arguments.seeds):
        for setting in SETTINGS:
            params = {"n_clusters": 10, "random_state": seed} | setting
            model = DeepClusterEstimator(**params)
            with warnings.catch_warnings():
                # Some settings are bad on purpose, and their fits warn.
                warnings.simplefilter("ignore")
                model.fit(train)
            labels = model.predict(test)
            score = model.score(test)
            nmi = float(normalized_mutual_info_score(test_classes, labels))
            n_clusters = len(np.unique(labels))
            changed = setting | {"random_state": seed}
            rows.append(
                {
                    "score": score,
                    "nmi": nmi,
                    "n_clusters": n_clusters,
                    "params": changed,
                }
            )
            print(f"{score:7.3f}{nmi:7.3f}{n_clusters:10d}  {changed}", flush=True)
    scores, agreements = [row["score"] for row in rows], [row["nmi"] for row in rows]
    correlation = spearmanr(scores, agreements).statistic
    print(f"\nSpearman's correlation of score and NMI: {correlation:.3f}")
    content = {"spearman": correlation, "arguments": vars(arguments), "rows": rows}
    Path(arguments.json).write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
