"""Damaged caches, names that look like formulas, exports among images."""

import numpy as np
from PIL import Image, features
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.io import export_clusters

try:
    from skdeepcluster.evaluation import ContingencyDisplay
except ImportError:
    # The class was elsewhere before.
    from skdeepcluster import ContingencyDisplay


def row_26(folder):
    """Fit with a damaged cache and another decoder, draw, and export."""
    photos, cache = folder / "photos", folder / "cache"
    photos.mkdir()
    for row, image in enumerate(load_digits().images[:40].astype(np.uint8)):
        Image.fromarray(image * 15).save(photos / f"{row:02d}.png")
    name = (
        "cache_dir" if "cache_dir" in DeepClusterEstimator().get_params() else "cache"
    )
    model = DeepClusterEstimator(3, max_iter=1, epochs_per_iter=1, random_state=0)
    model.set_params(**{name: str(cache)}).fit(str(photos))
    labels = model.labels_
    for path in cache.glob("*.npy"):
        content = bytearray(path.read_bytes())
        content[200:1800] = bytes(255 - value for value in content[200:1800])
        path.write_bytes(content)
    if not np.array_equal(model.fit(str(photos)).labels_, labels):
        return "damaged pixels change the labels"

    version = features.version
    features.version = lambda name: "0.1" if name == "pil" else version(name)
    n_files = len(list(cache.glob("*.npy")))
    model.fit(str(photos))
    features.version = version
    if len(list(cache.glob("*.npy"))) == n_files:
        return "the pixels of another decoder are used"

    classes = np.array([r"$\frac{$", r"$_$"])[np.arange(40) % 2]
    try:
        display = ContingencyDisplay.from_predictions(classes, labels)
        display.figure_.savefig(folder / "table.png")
    except ValueError as error:
        return f"a display takes names for formulas: {str(error).splitlines()[0]}"

    export_clusters(labels, model.paths_, photos / "clusters", "copy")
    if len(model.fit(str(photos)).labels_) != len(labels):
        return "exported images are read"
    return "ok"
