"""Maps of one layer, for inspection: filters, batches and image input."""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch

from .._inputs.failures import ReadFailures
from .._inputs.read import InputData, read_input
from .._inputs.spec import InputSpec
from .._utils.device import autocast
from .._utils.memory import explain_memory_error
from .._utils.threads import limit_threads
from .layers import Layer, LayerOutputs, evaluation_mode, find_layers, trace_calls
from .model import EvaluatedModel

# Largest number of input values in one forward pass.
BATCH_VALUES = 2**19
# Largest number of images in one forward pass.
MAX_BATCH_SIZE = 512


@contextlib.contextmanager
def float32_evaluation(model: EvaluatedModel) -> Iterator[None]:
    """Run a block with the network in evaluation mode and float32.

    Gradients are computed inside the block, also if the caller disabled them.
    """
    # The caller may be inside autocast or inference mode.
    with (
        explain_memory_error(
            "a forward pass", "Pass smaller images, or fewer filters."
        ),
        limit_threads(model.n_jobs),
        evaluation_mode(model.network, model.device),
        autocast(model.device, torch.float32),
        torch.inference_mode(False),
    ):
        yield


def select_filters(
    model: EvaluatedModel,
    shape: tuple[int, ...],
    layer_name: str,
    filters,
    raw: bool = False,
) -> tuple[LayerOutputs, np.ndarray]:
    """Return a network that ends at a layer, and the indices of its filters.

    Parameters
    ----------
    model : EvaluatedModel
    shape : tuple
        Shape of one image.
    layer_name : str
    filters : array-like of int or None
        None selects all filters.
    raw : bool
        True for the maps before their negative values are removed.

    Returns
    -------
    layer_outputs : LayerOutputs
        Returns maps, float32 (n, n_filters, h, w), for images (n, C, H, W). Vectors
        become maps of one pixel.
    filters : ndarray of shape (n_selected,), int64
    """
    calls = trace_calls(model.network, shape, model.device, torch.float32)
    (layer,) = find_layers(calls, [layer_name])
    filters = _check_filters(filters, layer)
    return LayerOutputs(model.network, [layer], _as_maps, raw=raw), filters


def _as_maps(output: torch.Tensor) -> torch.Tensor:
    return (output if output.ndim == 4 else output[..., None, None]).float()


def _check_filters(filters, layer: Layer) -> np.ndarray:
    # The channels of maps (C, H, W), or the features of vectors (d,).
    n_filters = layer.shape[0]
    if filters is None:
        return np.arange(n_filters)
    indices = np.asarray(filters)
    if indices.ndim != 1 or len(indices) == 0 or indices.dtype.kind not in "iu":
        raise ValueError(
            f"filters={filters!r} should be a list of integers, such as [0, 5]."
        )
    out_of_range = indices[(indices < 0) | (indices >= n_filters)]
    if len(out_of_range):
        raise ValueError(
            f"filters holds {out_of_range[0]}, but layer={layer.name!r} has "
            f"{n_filters} filters. Pass integers from 0 to {n_filters - 1}."
        )
    return indices.astype(np.int64)


def split_into_batches(n: int, shape: tuple[int, ...]) -> list[slice]:
    """Split `n` images of a shape into batches of bounded size."""
    step = max(1, min(MAX_BATCH_SIZE, BATCH_VALUES // math.prod(shape)))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def read_image_input(X, spec: InputSpec) -> tuple[InputData, ReadFailures]:
    """Read images. A spec without the format of a fit takes images of any format."""
    data, failures = read_input(X, spec)
    if len(data.source.shape) != 3:
        raise ValueError(
            f"X holds rows of {data.source.shape[0]} values, not images. If the rows "
            "are flattened images, fit with image_shape=(C, H, W)."
        )
    return data, failures
