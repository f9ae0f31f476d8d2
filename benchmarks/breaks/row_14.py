"""Names that are not UTF-8."""

import os

import numpy as np
from PIL import Image

from skdeepcluster.io import export_clusters


def row_14(folder):
    """Export images whose names are not UTF-8."""
    paths = []
    for name in (b"stra\xdfe.png", b"\xff\xfe.png"):
        paths.append(os.fsdecode(os.fsencode(folder) + b"/" + name))
        with open(paths[-1], "wb") as file:
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "PNG")
    for mode in ("symlink", "copy", "csv"):
        try:
            export_clusters([0, 1], paths, folder / mode, mode)
        except UnicodeError as error:
            return f"{type(error).__name__}, mode={mode!r}"
        if "stra\\xdfe.png" not in (folder / mode / "index.html").read_text("utf-8"):
            return "the page does not show the name"
    return "ok"
