"""Features of all images, in the order of the source."""

import math
import os

import numpy as np
import torch

from .._inputs.sources import Source
from .._utils.allocation import allocate_array, allocate_in_memory
from .._utils.compute import Compute
from .._utils.memory import explain_memory_error
from .augment import Augment
from .network import FeatureExtractor

# Number of input values in one forward pass. The activations fit into a CPU's cache.
CPU_BATCH_VALUES = 2**17
ACCELERATOR_BATCH_VALUES = 2**20
# Range of the number of images in one forward pass.
MIN_BATCH, MAX_BATCH = 16, 512


def allocate_features(
    shape: tuple[int, int], cache_dir: str | os.PathLike | None
) -> np.ndarray:
    """Return an uninitialized float32 array for the features of images.

    Up to 1 GiB is in memory. More is in an unnamed temporary file, in `cache_dir` or
    the system's temporary folder, if the disk has room, and otherwise in memory.

    Raises
    ------
    MemoryError
        If neither has room.
    """
    purpose = f"features of {shape[0]} images"
    features = allocate_array(shape, np.float32, cache_dir, purpose=purpose)
    if features is None:
        return allocate_in_memory(shape, np.float32, purpose=purpose)
    return features


@explain_memory_error("a forward pass", "Lower image_size, or use a smaller backbone.")
def extract_features(
    network: FeatureExtractor,
    source: Source,
    compute: Compute,
    *,
    augment: Augment | None = None,
    out: np.ndarray | None = None,
    rows: slice | None = None,
) -> np.ndarray:
    """Return the features of each image, in the order of the source.

    Parameters
    ----------
    network : FeatureExtractor
        On the device. It is put into evaluation mode.
    source : Source
    compute : Compute
    augment : callable or None
        Applied to each batch, with the same draws in each call. None extracts the
        features of the images themselves, as for clustering (section 3.4 of the paper).
    out : ndarray of shape (n, d), float32, or None
        Array that features are written to. None is a new array.
    rows : slice or None
        Rows of the source. None is all rows.

    Returns
    -------
    features : ndarray of shape (n, d), float32
        One batch of images is in memory besides the features.
    """
    network.eval()
    generator = torch.Generator().manual_seed(0)
    is_cpu = compute.device.type == "cpu"
    n_values = CPU_BATCH_VALUES if is_cpu else ACCELERATOR_BATCH_VALUES
    size = min(MAX_BATCH, max(MIN_BATCH, n_values // math.prod(source.shape)))
    # Kernels for one image, or for few rows, round differently from kernels for many.
    # Short batches are filled up, so that the features of a row do not depend on the
    # number of rows around it.
    min_rows = 64 if len(source.shape) == 1 else 2
    start, stop, _ = (slice(None) if rows is None else rows).indices(len(source))
    features = out
    if features is None:
        features = allocate_features((stop - start, network.n_features), None)
    batches = [slice(i, min(i + size, stop)) for i in range(start, stop, size)]
    with torch.inference_mode():
        for batch_rows, batch in zip(batches, source.batches(batches), strict=True):
            n = len(batch)
            if n < min_rows:
                batch = batch[torch.arange(min_rows) % n]
            batch = compute.move(batch)
            if augment is not None:
                batch = augment(batch.float(), generator)
            with compute.autocast():
                extracted = network(batch)
            local_rows = slice(batch_rows.start - start, batch_rows.start - start + n)
            features[local_rows] = extracted[:n].cpu().numpy()
    return features
