"""Truncated images in an export."""

import numpy as np
from PIL import Image

from skdeepcluster.io import export_clusters


def row_17(folder):
    """Export an image that is truncated, in two formats."""
    values = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    for ending in ("png", "jpg"):
        path = folder / f"truncated.{ending}"
        Image.fromarray(values).save(path)
        path.write_bytes(path.read_bytes()[:-500])
        try:
            export_clusters([0], [path], folder / "out")
        except OSError as error:
            if path.name not in str(error):
                return f"the error does not name the file: {error}"
        else:
            return f"{path.name} is exported"
        if (folder / "out").exists():
            return "an unfinished folder stays"
    return "ok"
