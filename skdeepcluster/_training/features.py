"""Features of all images, in the order of the source."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .._inputs.sources import Source
from .._utils.allocation import allocate_array, allocate_in_memory
from .._utils.compute import Compute
from .._utils.memory import explain_memory_error
from .._utils.pages import PageReleaser
from .augment import Augment
from .network import FeatureExtractor

# Number of input values in one forward pass. The activations fit into a CPU's cache.
CPU_BATCH_VALUES = 2**17
ACCELERATOR_BATCH_VALUES = 2**20
# Range of the number of images in one forward pass.
MIN_BATCH, MAX_BATCH = 16, 512
# Smallest number of rows in a product of a fully connected layer. The MKL rounds
# products of up to 15 rows differently.
MIN_PRODUCT_ROWS = 16
# Number of images whose features are in memory at once if the features are not kept.
BLOCK_ROWS = 8192
FORWARD_PASS = "a forward pass", "Lower image_size, or use a smaller backbone."


def allocate_features(
    shape: tuple[int, int], cache_dir: str | os.PathLike | None
) -> np.ndarray:
    """Return an uninitialized float32 array for the features of images.

    Up to 128 MiB is in memory. More is in an unnamed temporary file, in `cache_dir` or
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


@explain_memory_error(*FORWARD_PASS)
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
    start, stop, _ = (slice(None) if rows is None else rows).indices(len(source))
    features = out
    if features is None:
        features = allocate_features((stop - start, network.n_features), None)
    releaser, n_done = PageReleaser(features), 0
    for batch in _extract_batches(network, source, compute, augment, rows):
        block = slice(n_done, n_done + len(batch))
        features[block] = batch
        releaser.count(block)
        n_done = block.stop
    releaser.release()
    return features


@explain_memory_error(*FORWARD_PASS)
def map_features(
    function: Callable[[np.ndarray], np.ndarray],
    network: FeatureExtractor,
    source: Source,
    compute: Compute,
    *,
    augment: Augment | None = None,
    rows: slice | None = None,
) -> np.ndarray:
    """Apply a function to the features of images, without keeping all features.

    Parameters
    ----------
    function : callable
        Function from the features of a block of images to an array with as many rows,
        in memory of its own.
    network, source, compute, augment, rows
        As in `extract_features`.

    Returns
    -------
    values : ndarray with n rows
        Results of the function for all blocks.
    """
    start, stop, _ = (slice(None) if rows is None else rows).indices(len(source))
    n = stop - start
    block = np.empty((min(n, BLOCK_ROWS), network.n_features), np.float32)
    values: np.ndarray | None = None
    n_filled = n_done = 0
    for batch in _extract_batches(network, source, compute, augment, rows):
        # A batch may lie in two blocks.
        while len(batch):
            part = batch[: len(block) - n_filled]
            block[n_filled : n_filled + len(part)] = part
            n_filled, batch = n_filled + len(part), batch[len(part) :]
            if n_filled == min(len(block), n - n_done):
                computed = function(block[:n_filled])
                if values is None:
                    values = np.empty((n, *computed.shape[1:]), computed.dtype)
                values[n_done : n_done + n_filled] = computed
                n_filled, n_done = 0, n_done + n_filled
    assert values is not None  # there is at least one image
    return values


class _FilledProducts(TorchFunctionMode):
    """Fill up the rows of fully connected layers, in this thread alone.

    A filled batch would cost as many passes through the convolutions.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is functional.linear and args and args[0].ndim == 2:
            rows, n = args[0], len(args[0])
            if n < MIN_PRODUCT_ROWS:
                rows = rows[torch.arange(MIN_PRODUCT_ROWS) % n]
            return function(rows, *args[1:], **(kwargs or {}))[:n]
        return function(*args, **(kwargs or {}))


def _extract_batches(
    network: FeatureExtractor,
    source: Source,
    compute: Compute,
    augment: Augment | None,
    rows: slice | None,
) -> Iterator[np.ndarray]:
    """Return the features of one batch of images after another."""
    network.eval()
    generator = torch.Generator().manual_seed(0)
    is_cpu = compute.device.type == "cpu"
    n_values = CPU_BATCH_VALUES if is_cpu else ACCELERATOR_BATCH_VALUES
    size = min(MAX_BATCH, max(MIN_BATCH, n_values // math.prod(source.shape)))
    # Kernels for one image, or for few rows, round differently from kernels for many.
    # Short batches are filled up, so that the features of a row do not depend on the
    # number of rows around it.
    min_rows = 64 if len(source.shape) == 1 else 2
    # Attention has kernels that a mode would switch off, and many rows for each image.
    has_attention = isinstance(network, nn.Module) and any(
        isinstance(module, nn.MultiheadAttention) for module in network.modules()
    )
    start, stop, _ = (slice(None) if rows is None else rows).indices(len(source))
    batches = [slice(i, min(i + size, stop)) for i in range(start, stop, size)]
    for batch in source.batches(batches):
        n = len(batch)
        # The mode must not last while the caller uses the features.
        with torch.inference_mode():
            if n < min_rows:
                batch = batch[torch.arange(min_rows) % n]
            batch = compute.move(batch)
            if augment is not None:
                batch = augment(batch.float(), generator)
            is_filled = len(batch) < MIN_PRODUCT_ROWS and not has_attention
            with _FilledProducts() if is_filled else nullcontext(), compute.autocast():
                extracted = network(batch)
            features = extracted[:n].cpu().numpy()
        yield features
