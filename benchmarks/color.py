"""Measure how much pixels and color histograms alone reveal about the color patches.

    python benchmarks/color.py

The table is the baseline for results on the "color" data set (data_sets.py): NMI of
k-means clusters with the classes, and the test accuracy of a logistic regression and of
10 nearest neighbors.
"""

import numpy as np
from data_sets import load_color_patches
from quality import measure_probes
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

# Number of bins of a histogram, for each channel.
N_BINS = 16


def flatten_pixels(images):
    """Return pixels from 0 to 1, one row for each image."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def color_histograms(images):
    """Return the share of the pixels in each bin of each channel."""
    bins = images // (256 // N_BINS)
    shares = [(bins == number).mean(axis=(1, 2)) for number in range(N_BINS)]
    return np.concatenate(shares, axis=1).astype(np.float32)


def main():
    data = load_color_patches()
    n_photographs = len(np.unique(data.classes))
    print(f"{len(data.images)} patches of {n_photographs} photographs\n")
    print(f"{'':12s}{'NMI':>8s}{'linear':>8s}{'10-NN':>8s}")
    representations = {"pixels": flatten_pixels, "histograms": color_histograms}
    for name, compute in representations.items():
        features = compute(data.images)
        # The number of classes is the number of photographs.
        labels = KMeans(n_photographs, n_init=3, random_state=0).fit_predict(features)
        nmi = normalized_mutual_info_score(data.classes, labels)
        linear, nearest = measure_probes(
            features, data.classes, compute(data.test_images), data.test_classes
        )
        print(f"{name:12s}{nmi:8.3f}{linear:8.3f}{nearest:8.3f}", flush=True)


if __name__ == "__main__":
    main()
