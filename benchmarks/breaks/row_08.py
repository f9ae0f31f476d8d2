"""An unfinished file of embeddings beside files of the user."""

import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.io import write_embeddings

# More rows than one chunk of embeddings has.
N_ROWS = 8193


def row_08(folder):
    """Resume a file of embeddings after the user and the disk have interfered."""
    images = load_digits().images[:60].astype(np.uint8) * 15
    model = DeepClusterEstimator(4, max_iter=1, epochs_per_iter=1, random_state=0)
    model.fit(images)
    foreign = folder / "a.npy.partial" / "thesis.tex"
    foreign.parent.mkdir()
    foreign.touch()
    write_embeddings(model, images, folder / "a.npy")
    if not foreign.exists():
        return "a file of the user is removed"

    first, last = folder / "first.png", folder / "last.png"
    paths = [str(first)] * (N_ROWS - 1) + [str(last)]
    Image.fromarray(images[0]).save(first)
    last.write_bytes(b"")
    interrupt(model, paths, folder / "b.npy")
    n_chunks = count_files(folder / "b.npy.partial")
    with patch.object(Path, "read_text", side_effect=OSError(5, os.strerror(5))):
        interrupt(model, paths, folder / "b.npy")
    if count_files(folder / "b.npy.partial") < n_chunks:
        return "an error of the disk removes finished chunks"

    Image.fromarray(images[1]).save(first)
    Image.fromarray(images[2]).save(last)
    write_embeddings(model, paths, folder / "b.npy")
    if not np.array_equal(
        np.load(folder / "b.npy")[0], model.transform(images[1:2])[0]
    ):
        return "embeddings of a file before and after its change are mixed"
    return "ok"


def interrupt(model, X, path):
    """Write embeddings until an image or the disk fails."""
    try:
        write_embeddings(model, X, path)
    except (OSError, ValueError):
        return
    raise AssertionError("the call should have failed")


def count_files(folder):
    """Return the number of files in a folder."""
    return len(list(folder.iterdir()))
