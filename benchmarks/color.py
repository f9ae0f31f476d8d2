"""Color patches of ten photographs that scikit-learn's and scikit-image's wheels ship.

    python benchmarks/color.py

prints what raw pixels and color histograms tell of the classes. The class of a patch
of 32x32 pixels is the photograph that it is cut from: for training anywhere in its left
half, for the test anywhere in its right half, which often shows other things. Patches
overlap others of their half, and nearly flat ones are left out.
"""

import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_images
from sklearn.metrics import normalized_mutual_info_score

SIDE = 32
LEAST_CONTRAST = 8  # standard deviation of the pixels, mean over the channels
NAMES = [
    *("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry"),
    *("retina", "rocket", "stereo_motorcycle"),
]


def photographs():
    """Return ten color photographs, from 300x451 to 1411x1411 pixels."""
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError(
            "The color patches need scikit-image: pip install skdeepcluster[bench]"
        ) from error
    shipped = [getattr(data, name)() for name in NAMES]
    shipped[-1] = shipped[-1][0]  # the left one of two, without the disparities
    return [*shipped, *load_sample_images().images]


def cut(half, n, rng):
    """Cut n patches at random places."""
    patches = []
    while len(patches) < n:
        row, column = (int(rng.integers(size - SIDE + 1)) for size in half.shape[:2])
        patch = half[row : row + SIDE, column : column + SIDE]
        if patch.std(axis=(0, 1)).mean() >= LEAST_CONTRAST:
            patches.append(patch)
    return np.stack(patches)


def load_color(n_train=10_000, n_test=2_000):
    """Return images (n, 32, 32, 3) and classes for training, then for the test."""
    rng = np.random.default_rng(0)
    photos = photographs()
    parts = []
    for part, n in enumerate((n_train, n_test)):
        patches = []
        for photo in photos:
            middle = photo.shape[1] // 2
            half = photo[:, middle:] if part else photo[:, :middle]
            patches.append(cut(half, n // len(photos), rng))
        parts += [np.concatenate(patches)]
        parts += [np.repeat(np.arange(len(photos)), n // len(photos))]
    return tuple(parts)


def histograms(images):
    """Count 16 bins of each channel."""
    bins = images // 16
    counts = [(bins == bin).mean(axis=(1, 2)) for bin in range(16)]
    return np.concatenate(counts, axis=1).astype(np.float32)


def main():
    from quality import probe

    train, classes, test, test_classes = load_color()
    print(f"{len(train)} patches of {len(np.unique(classes))} photographs\n")
    print(f"{'':12s}{'NMI':>8s}{'linear':>8s}{'10-NN':>8s}")
    pixels = [x.reshape(len(x), -1).astype(np.float32) / 255 for x in (train, test)]
    counted = [histograms(x) for x in (train, test)]
    for name, (seen, unseen) in {"pixels": pixels, "histograms": counted}.items():
        labels = KMeans(10, n_init=3, random_state=0).fit_predict(seen)
        figures = [normalized_mutual_info_score(classes, labels)]
        figures += probe(seen, classes, unseen, test_classes)
        print(f"{name:12s}" + "".join(f"{x:8.3f}" for x in figures), flush=True)


if __name__ == "__main__":
    main()
