"""Does `score` rank fits as their true agreement with the classes would?

    python benchmarks/score.py --data-set digits
    python benchmarks/score.py --data-set fashion-mnist --limit 6000

Fits of a grid, some of them good, some bad, on two thirds of the images; `score` and
the NMI with the classes on the last third. Spearman's correlation of the two is what a
search without labels lives by.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
from quality import load
from scipy.stats import spearmanr
from sklearn.metrics import normalized_mutual_info_score

from skdeepcluster import DeepClusterEstimator

PAPER = {"init": "features", "n_neighbors": None, "head_norm": None}
GRID = [
    {},
    *({"n_clusters": k} for k in (3, 5, 7, 14, 20, 30)),
    *({"max_iter": rounds} for rounds in (1, 3)),
    {"n_neighbors": None},
    {"n_neighbors": 30},
    {"init": "features"},
    {"init": "features", "n_neighbors": None},
    {"head_norm": None},
    {"augment": None},
    *({"learning_rate": rate} for rate in (0.003, 0.2)),
    {"epochs_per_iter": 1},
    {"n_pseudo_labels": 10},
    {"n_pseudo_labels": 10, **PAPER},
]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-set", default="digits")
    parser.add_argument("--limit", type=int, help="use this many images")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", default="score.json", help="file to write")
    arguments = parser.parse_args()
    images, classes, *_ = load(arguments.data_set, arguments.limit)
    cut = 2 * len(images) // 3
    print(f"{'score':>7s}{'NMI':>7s}{'groups':>8s}  parameters")
    rows = []
    for seed in range(arguments.seeds):
        for params in GRID:
            model = DeepClusterEstimator(**{"n_clusters": 10, **params})
            with warnings.catch_warnings():  # some of these fits are meant to fail
                warnings.simplefilter("ignore")
                model.set_params(random_state=seed).fit(images[:cut])
            groups = model.predict(images[cut:])
            row = {
                "score": model.score(images[cut:]),
                "nmi": float(normalized_mutual_info_score(classes[cut:], groups)),
                "groups": len(np.unique(groups)),
                "params": {**params, "random_state": seed},
            }
            rows.append(row)
            score, nmi, count, told = row.values()
            print(f"{score:7.3f}{nmi:7.3f}{count:8d}  {told}", flush=True)
    columns = [[row[name] for row in rows] for name in ("score", "nmi")]
    correlation = spearmanr(*columns).statistic
    print(f"\nSpearman's correlation of score and NMI: {correlation:.3f}")
    content = {"spearman": correlation, "arguments": vars(arguments), "rows": rows}
    Path(arguments.json).write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
