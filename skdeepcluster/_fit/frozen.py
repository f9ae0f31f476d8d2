"""Features of a network that is read, not trained: one pass over the images."""

import contextlib

import numpy as np

from .._inputs.cache import hash_images
from .._training.features import extract_features
from .._utils.distributed import Sharded
from .._utils.files import make_folder, write_atomically
from .._utils.hashing import hash_content
from .loop import FitSetup


def read_features(setup: FitSetup) -> Sharded:
    """Return the features of all images.

    With `cache_dir` they are kept in a file. Its name is a hash of the images, the
    network and the precision, so that a fit with other clusters finds it.

    Raises
    ------
    ValueError
        If features are not finite.
    """
    folder = setup.recipe.cache_dir
    if folder is None:
        _extract(setup)
    else:
        _extract_once(setup, make_folder(folder, "cache_dir"))
    with np.errstate(invalid="ignore"):
        total = float(setup.processes.sum(setup.points.values.sum(dtype=float)))
    if not np.isfinite(total):
        raise ValueError(
            "The network returns features that are NaN or infinite for some images. "
            "Check its weights, or set precision='float32'."
        )
    return setup.points


def _extract(setup: FitSetup) -> None:
    """Write the features of this process's images into `setup.points`."""
    extract_features(
        setup.network,
        setup.source,
        setup.recipe.compute,
        out=setup.points.values,
        rows=setup.shard.rows,
    )


def _extract_once(setup: FitSetup, folder) -> None:
    """Read the features from a file in a folder, or extract them and write it."""
    dtype = str(setup.recipe.compute.dtype)
    rows = setup.shard.rows
    key = hash_content(
        hash_images(setup.source), setup.network, dtype, rows.start, rows.stop
    )
    path = folder / f"features_{key}.npy"
    features = setup.points.values
    # A missing or damaged file is written again.
    with contextlib.suppress(OSError, ValueError, EOFError):
        saved = np.load(path, mmap_mode="r")
        if saved.shape == features.shape and saved.dtype == features.dtype:
            features[:] = saved
            return
    _extract(setup)
    with write_atomically(path) as file:
        np.save(file, features)
