"""Source -> features of the network, in row order."""

import math
import os
from typing import Any

import numpy as np
import torch

from .._inputs.sources import Source
from .._utils.allocation import allocate_array, allocate_in_memory
from .._utils.device import autocast
from .._utils.memory import explain_memory_error
from .augment import Augment

CACHED_VALUES = 2**17  # input values of one forward pass, whose maps fit into a cache
BATCH_VALUES = 2**20  # the same on accelerators


def allocate_features(
    shape: tuple[int, int], cache_dir: str | os.PathLike | None
) -> np.ndarray:
    """Return a float32 array with any values, for the features of images.

    Up to 1 GiB is in memory, more in an unnamed temporary file if the disk has room.
    """
    purpose = f"features of {shape[0]} images"
    features = allocate_array(shape, np.float32, cache_dir, purpose=purpose)
    if features is None:
        return allocate_in_memory(shape, np.float32, purpose=purpose)
    return features


def to_device(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move a batch to the device, still uint8 where it was, in the fast layout."""
    layout = torch.channels_last if batch.ndim == 4 else torch.contiguous_format
    return batch.to(device, non_blocking=True, memory_format=layout)


@explain_memory_error(
    "a forward pass", "Lower image_size, or choose a smaller backbone."
)
def extract_features(
    network: Any,
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    augment: Augment | None = None,
    out: np.ndarray | None = None,
    points: bool = False,
    rows: slice | None = None,
) -> np.ndarray:
    """Return the features of every item, in the order of the source.

    Parameters
    ----------
    network : Network, or what has its methods, on `device`
        Put into evaluation mode.
    source : Source
    device : torch.device
    dtype : torch.dtype
        What convolutions and products compute in.
    augment : callable or None
        Applied to each batch, always with the same draws. None for the items
        themselves, as clustering sees them (section 3.4 of the paper).
    out : ndarray of shape (n, d), float32, or None
        Where to write the features; None for a new array.
    points : bool
        Whether the network's points are wanted in place of its features.
    rows : slice of the source's rows, or None
        Whose features are wanted; None is all of them.

    Returns
    -------
    features : ndarray of shape (n, d), float32
        Besides it, one batch is held in memory.
    """
    network.eval()
    generator = torch.Generator().manual_seed(0)
    most = CACHED_VALUES if device.type == "cpu" else BATCH_VALUES
    step = min(512, max(16, most // math.prod(source.shape)))
    # Kernels for one row (convolutions) or few rows (products) round differently from
    # those for many: short batches are filled up, so that a row's features do not
    # depend on the rows around it.
    fewest = 64 if len(source.shape) == 1 else 2
    size, forward = network.n_features, network
    if points:
        size, forward = network.n_points, network.points
    first, stop, _ = (slice(None) if rows is None else rows).indices(len(source))
    features = out
    if features is None:
        features = allocate_in_memory(
            (stop - first, size),
            np.float32,
            purpose=f"features of {stop - first} images",
            remedy="Pass fewer images at once.",
        )
    with torch.inference_mode():
        starts = range(0, stop - first, step)
        parts = [slice(first + s, min(first + s + step, stop)) for s in starts]
        for start, batch in zip(starts, source.batches(parts), strict=True):
            n = len(batch)
            if n < fewest:
                batch = batch[torch.arange(fewest) % n]
            batch = to_device(batch, device)
            if augment is not None:
                batch = augment(batch.float(), generator)
            with autocast(device, dtype):
                embedded = forward(batch)
            features[start : start + n] = embedded[:n].cpu().numpy()
    return features
