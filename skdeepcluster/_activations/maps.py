"""What is looked at: one layer of a model, filters of it, images by the batch."""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch

from .._inputs.failures import ReadFailures
from .._inputs.read import InputData, read_input
from .._inputs.spec import InputSpec
from .._utils.device import autocast, limit_threads
from .._utils.memory import explain_memory_error
from .layers import Layer, LayerOutputs, evaluation_mode, find_layers, trace_calls
from .model import EvaluatedModel

BATCH_VALUES = 2**19  # input values of one forward pass
LARGEST_BATCH = 512  # images


@contextlib.contextmanager
def float32_evaluation(judged: EvaluatedModel) -> Iterator[None]:
    """Hold a network in evaluation mode and float32.

    Gradients are computed inside, whatever mode the caller is in.
    """
    with (
        explain_memory_error(
            "a forward pass", "Pass smaller images, or fewer filters."
        ),
        limit_threads(judged.n_jobs),
        evaluation_mode(judged.network, judged.device),
        autocast(judged.device, torch.float32),
        torch.inference_mode(False),
    ):
        yield


def select_filters(
    judged: EvaluatedModel,
    shape: tuple[int, ...],
    name: str,
    filters,
    raw: bool = False,
) -> tuple[LayerOutputs, np.ndarray]:
    """Return what gives a layer's maps of images, and numbers of its filters.

    Parameters
    ----------
    shape : tuple
        Of one image.
    name : str
        Of the layer.
    filters : array-like of int or None
    raw : bool
        Whether the maps are those before negative values are removed.

    Returns
    -------
    tapped : Tapped
        From images (n, C, H, W) to float32 (n, n_filters, h, w); vectors are maps of
        one pixel.
    numbers : ndarray of shape (n,), int64
    """
    calls = trace_calls(judged.network, shape, judged.device, torch.float32)
    (layer,) = find_layers(calls, [name])
    numbers = _checked_filters(filters, layer)
    return LayerOutputs(judged.network, [layer], _as_maps, raw), numbers


def _as_maps(output: torch.Tensor) -> torch.Tensor:
    return (output if output.ndim == 4 else output[..., None, None]).float()


def _checked_filters(filters, layer: Layer) -> np.ndarray:
    n_filters = layer.shape[0]
    if filters is None:
        return np.arange(n_filters)
    numbers = np.asarray(filters)
    if numbers.ndim != 1 or len(numbers) == 0 or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"filters={filters!r} should be a list of integers, such as [0, 5]."
        )
    strange = numbers[(numbers < 0) | (numbers >= n_filters)]
    if len(strange):
        raise ValueError(
            f"filters holds {strange[0]}, but layer={layer.name!r} has {n_filters} "
            f"filters, from 0 to {n_filters - 1}."
        )
    return numbers.astype(np.int64)


def split_into_batches(n: int, shape: tuple[int, ...]) -> list[slice]:
    """Split `n` images into batches of bounded size."""
    step = max(1, min(LARGEST_BATCH, BATCH_VALUES // math.prod(shape)))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def read_image_input(X, spec: InputSpec) -> tuple[InputData, ReadFailures]:
    """Read X, which has to hold images."""
    given, failures = read_input(X, spec)
    if len(given.source.shape) != 3:
        raise ValueError(
            f"X holds rows of {given.source.shape[0]} values, but should hold images. "
            "Fit with image_shape=(C, H, W) if the rows are flattened images."
        )
    return given, failures
