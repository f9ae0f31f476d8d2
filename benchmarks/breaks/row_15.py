"""Names of the greatest length."""

import numpy as np
from PIL import Image

from skdeepcluster.io import export_clusters


def row_15(folder):
    """Export images whose names have 249 to 255 bytes."""
    paths = [folder / ("x" * (n_bytes - 4) + ".png") for n_bytes in (249, 252, 255)]
    for path in paths:
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    for mode in ("symlink", "copy", "csv"):
        try:
            export_clusters([0, 0, 1], paths, folder / mode, mode)
        except OSError as error:
            return f"{type(error).__name__}: {error.strerror}, mode={mode!r}"
    if len(list((folder / "copy").rglob("*x.png"))) != len(paths):
        return "images are missing"
    return "ok"
