"""PostScript under other names starts no program."""

import os
import warnings

from PIL import Image
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.io import export_clusters

SCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nquit\n"


def row_04(folder):
    """Fit and export a folder with EPS files, with a stand-in for Ghostscript."""
    program = folder / "gs"
    program.write_text(f"#!/bin/sh\ntouch {folder / 'started'}\n")
    program.chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    photos = folder / "photos"
    photos.mkdir()
    for row, values in enumerate(load_digits().images[:80]):
        Image.fromarray((values * 15).astype("uint8")).save(photos / f"{row:02d}.png")
    names = ("a.png", "b.jpg", "c.tif")
    for name in names:
        (photos / name).write_bytes(SCRIPT)
    warnings.simplefilter("ignore")
    model = DeepClusterEstimator(
        3, max_iter=1, epochs_per_iter=1, on_error="skip", random_state=0
    ).fit(photos)
    export_clusters(model.labels_, model.paths_, folder / "out")
    if (folder / "started").exists():
        return "Ghostscript is started"
    n_skipped = len(model.skipped_)
    return "ok" if n_skipped == len(names) else f"{n_skipped} files are skipped"
