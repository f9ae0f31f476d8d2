"""An error of the disk that passes while images are decoded."""

import errno
import os
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageFile
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator


def row_09(folder):
    """Fit twice with a cache and on_error="skip"; the disk fails in the first fit."""
    photos = folder / "photos"
    photos.mkdir()
    for row, image in enumerate(load_digits().images[:40].astype(np.uint8)):
        Image.fromarray(image * 15).save(photos / f"{row:02d}.jpg")
    name = (
        "cache_dir" if "cache_dir" in DeepClusterEstimator().get_params() else "cache"
    )
    model = DeepClusterEstimator(
        3, max_iter=1, epochs_per_iter=1, random_state=0, on_error="skip", n_jobs=1
    ).set_params(**{name: str(folder / "cache")})
    load = ImageFile.ImageFile.load

    def load_or_fail(image):
        if image.fp is not None and "07.jpg" in str(getattr(image.fp, "name", "")):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return load(image)

    with patch.object(ImageFile.ImageFile, "load", load_or_fail):
        model.fit(str(photos))
    if model.skipped_.tolist() != [7]:
        return f"the first fit skips {model.skipped_.tolist()}"
    model.fit(str(photos))
    if len(model.skipped_):
        return "the image is skipped on a healthy disk"
    if not np.array_equal(model.predict(str(photos)), model.labels_):
        return "predict differs from labels_"
    return "ok"
