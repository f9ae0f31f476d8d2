"""Features of a network that is read, not trained: one pass over the images."""

import os
from collections.abc import Callable

import numpy as np
import torch

from .._training.features import extract_features
from .._utils.array_files import ARRAY_FORMAT, read_array, write_array
from .._utils.distributed import Sharded
from .._utils.files import make_folder
from .._utils.hashing import hash_content
from .._utils.pages import PageReleaser, row_blocks
from .loop import FitSetup, sum_values


def read_features(setup: FitSetup) -> Sharded:
    """Return the features of all images.

    With `cache_dir` they are kept in a file. Its name is a hash of the images, the
    network and the precision, so that a fit with other clusters finds it.

    Raises
    ------
    ValueError
        If features are not finite.
    """

    def extract() -> np.ndarray:
        return extract_features(
            setup.network,
            setup.source,
            setup.recipe.compute,
            out=setup.points.values,
            rows=setup.shard.rows,
        )

    rows = setup.shard.rows
    key = "all", rows.start, rows.stop
    features = _compute_once(setup, key, setup.points.values.shape, extract)
    if features is not setup.points.values:
        releaser = PageReleaser(features)
        for block in row_blocks(setup.points.values):
            setup.points.values[block] = features[block]
            releaser.count(block)
        releaser.release()
    total = sum_values(setup.points)
    if not np.isfinite(total):
        cure = "Check its weights"
        if setup.recipe.compute.dtype != torch.float32:
            cure += ", or set precision='float32'"
        raise ValueError(
            "The network returns features that are NaN or infinite for some images. "
            f"{cure}."
        )
    return setup.points


def read_changed_features(setup: FitSetup) -> np.ndarray:
    """Return the features of a sample of the images after a mild change.

    They are kept in `cache_dir`, too.
    """
    probe = setup.stability_probe

    def extract() -> np.ndarray:
        return probe.extract_changed(setup.network, setup.recipe.compute)

    shape = len(probe.rows), setup.network.n_features
    return _compute_once(setup, ("changed", probe.rows), shape, extract)


def _compute_once(
    setup: FitSetup, key: tuple, shape: tuple[int, ...], extract: Callable
) -> np.ndarray:
    """Return features from their file in `cache_dir`, or extract and write them."""
    if setup.recipe.cache_dir is None:
        return extract()
    folder = make_folder(setup.recipe.cache_dir, "cache_dir")
    name = hash_content(setup.features_hash, key)
    path = folder / f"features_{name}-{ARRAY_FORMAT}.npy"
    saved = read_array(path, shape, np.float32)
    if saved is not None:
        return saved[0]
    features = extract()
    write_array(
        path,
        shape,
        np.float32,
        # Pages of mapped features are released behind each block.
        blocks=(features[rows] for rows in row_blocks(features)),
        argument=f"cache_dir={os.fspath(folder)!r}",
    )
    return features
