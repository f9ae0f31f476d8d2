"""Features and decoded images on a full disk."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from small_disk import mount_small_disk

from skdeepcluster import DeepClusterEstimator


def row_01(folder):
    """Fit an array and a folder of images with a `cache_dir` of 200 kB."""
    disk = mount_small_disk(folder / "disk", n_bytes=200_000)
    images = load_digits().images[:400].astype(np.uint8)
    photos = folder / "photos"
    photos.mkdir()
    for row, image in enumerate(images[:40]):
        Image.fromarray(image * 15).resize((80, 80)).save(photos / f"{row:02d}.png")
    names = DeepClusterEstimator().get_params()
    features, decoded = "features_dir", "cache"
    if "cache_dir" in names:
        features = decoded = "cache_dir"
    for X, name in ((images, features), (str(photos), decoded)):
        model = DeepClusterEstimator(4, max_iter=1, epochs_per_iter=1)
        model.set_params(**{name: str(disk)})
        try:
            model.fit(X)
        except OSError as error:
            if name not in str(error) or str(disk) not in str(error):
                return f"the error does not name {name} and the folder: {error}"
    return "ok"
