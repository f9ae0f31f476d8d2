"""Find the layers of a network and compute their outputs for images."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .._inputs.sources import Source
from .._training.features import extract_features
from .._utils.compute import Compute
from .._utils.device import autocast
from .._utils.memory import explain_memory_error, is_memory_error
from .._utils.random import isolated_torch_rng

# Name of the layer that is the output of the network.
EMBEDDING = "embedding"
# Base class of all convolutions of torch, also of transposed ones.
CONVOLUTION = nn.modules.conv._ConvNd

# A function from maps (n, C, H, W) or vectors (n, d) to float32 (n, width).
Reduce = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Call:
    """One call of a submodule in a forward pass.

    Attributes
    ----------
    path : str
        Path of the submodule, as in `named_modules`.
    module : torch.nn.Module
    index : int
        Position among the calls of this submodule, from 0. A forward pass may call
        one submodule several times.
    input : object
        First argument of the call.
    output : object
    """

    path: str
    module: nn.Module
    index: int
    input: Any
    output: Any = None

    @property
    def is_activation(self) -> bool:
        """Return True for ReLU and the other activations that torch defines."""
        return type(self.module).__module__ == nn.ReLU.__module__

    @property
    def is_convolution(self) -> bool:
        """Return True for a convolution of any dimension."""
        return isinstance(self.module, CONVOLUTION)


@dataclass(frozen=True)
class LayerEnd:
    """The call whose output is the output of a layer.

    Attributes
    ----------
    call : Call
    start_path : str
        Path of the submodule at which the layer starts.
    rectified : bool
        True if the layer has no negative values.
    """

    call: Call
    start_path: str
    rectified: bool


@dataclass(frozen=True)
class Layer:
    """Position of a layer's output in a forward pass.

    Attributes
    ----------
    name : str
    start_path : str
        Path of the submodule at which the layer starts.
    path : str
        Path of the submodule whose output is the layer's output.
    call_index : int
        Call of that submodule, if a forward pass calls it several times.
    rectified : bool
        True if the layer has no negative values.
    ends_in_activation : bool
        True if the submodule is an activation that removes the negative values. Its
        input still has them.
    shape : tuple of int
        Shape of the output for one image, (C, H, W) or (d,).
    """

    name: str
    start_path: str
    path: str
    call_index: int
    rectified: bool
    ends_in_activation: bool
    shape: tuple[int, ...]


@explain_memory_error("a forward pass", "Pass smaller images.")
def trace_calls(
    network: nn.Module, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> list[Call]:
    """Return the calls of submodules in a forward pass, in the order they start.

    Raises
    ------
    ValueError
        If the network rejects images of this shape.
    """
    calls: list[Call] = []
    open_calls: list[Call] = []
    counts: Counter[str] = Counter()

    def open_call(path: str):
        def hook(module, args):
            call = Call(
                path=path,
                module=module,
                index=counts[path],
                input=args[0] if args else None,
            )
            counts[path] += 1
            calls.append(call)
            open_calls.append(call)

        return hook

    def close_call(module, args, output):
        open_calls.pop().output = output

    hooks = []
    try:
        for path, module in network.named_modules():
            hooks.append(module.register_forward_pre_hook(open_call(path)))
            hooks.append(module.register_forward_hook(close_call))
        with evaluation_mode(network, device), torch.no_grad(), autocast(device, dtype):
            network(torch.zeros(2, *shape, device=device))
    except Exception as error:
        # The module is a user's and may raise any exception.
        if is_memory_error(error):
            raise
        raise ValueError(
            f"model does not take a batch of shape (n, {', '.join(map(str, shape))}): "
            f"{error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return calls


@contextlib.contextmanager
def evaluation_mode(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a network in evaluation mode; restore its modes and torch's generators."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        with isolated_torch_rng(0, device):
            yield
    finally:
        # Module.train() would set one mode for all submodules, also for frozen ones.
        for module, mode in modes:
            module.training = mode


def default_layers(calls: list[Call]) -> dict[str, LayerEnd]:
    """Return the layers of a network by name: its convolutions and its output.

    The layer of a convolution ends with the norm and the activation that follow. The
    calls are linked by the identity of their tensors, so an in-place sum, such as the
    shortcut of a residual block, belongs to the layer. If the network applies the
    activation as a function, `LayerOutputs` removes the negative values. The layers
    of a network without convolutions are its activations.
    """
    # A container returns the output of its last child, which would count twice. A
    # convolution may have children: torch registers parametrizations as such.
    leaves = [c for c in calls if c.is_convolution or not any(c.module.children())]
    layers: dict[str, LayerEnd] = {}
    for position, call in enumerate(leaves):
        if call.is_convolution:
            end = _end_of_convolution(call, leaves[position + 1 :])
            name = f"conv{len(layers) + 1}"
            layers[name] = LayerEnd(end, start_path=call.path, rectified=True)
    if not layers:
        activations = [call for call in leaves if call.is_activation]
        for i, call in enumerate(activations, 1):
            layers[f"layer{i}"] = LayerEnd(call, start_path=call.path, rectified=True)
    # The first call is the network itself.
    layers[EMBEDDING] = LayerEnd(calls[0], start_path="", rectified=False)
    return layers


def _end_of_convolution(convolution: Call, next_calls: list[Call]) -> Call:
    """Return the last call that keeps the shape of the maps, up to an activation."""
    end = convolution
    for call in next_calls:
        if call.input is not end.output or call.is_convolution:
            continue
        if getattr(call.output, "shape", None) != end.output.shape:
            break
        end = call
        if end.is_activation:
            break
    return end


def find_layers(calls: list[Call], names: list[str] | None) -> list[Layer]:
    """Return layers by name.

    Parameters
    ----------
    calls : list of Call
    names : list of str or None
        Names of default layers or paths of submodules. None selects all default
        layers. If a submodule is called several times, its last output is used.

    Raises
    ------
    ValueError
        If a name is unknown, or the output of a layer is neither maps nor vectors.
        The message lists all names.
    """
    defaults = default_layers(calls)
    # Later calls overwrite earlier ones: the last output of a submodule counts.
    by_path = {
        call.path: LayerEnd(call, start_path=call.path, rectified=False)
        for call in calls
        if call.path
    }
    # ResNets have a submodule conv1. The default layer of that name takes precedence.
    ends = {**by_path, **defaults}
    layers = []
    for name in defaults if names is None else names:
        if name not in ends:
            raise ValueError(
                f"{name!r} is not a layer of the model. Its layers are "
                f"{', '.join(defaults)}, and its submodules "
                f"{', '.join(by_path) or '(none)'}."
            )
        end = ends[name]
        call = end.call
        shape = getattr(call.output, "shape", type(call.output).__name__)
        if not isinstance(call.output, torch.Tensor) or len(shape) not in (2, 4):
            raise ValueError(
                f"Layer {name!r} returns {shape} for 2 images, but should return maps "
                "(n, C, H, W) or vectors (n, d). Choose another layer, or wrap the "
                "model."
            )
        layers.append(
            Layer(
                name=name,
                start_path=end.start_path,
                path=call.path,
                call_index=call.index,
                rectified=end.rectified,
                ends_in_activation=end.rectified and call.is_activation,
                shape=tuple(call.output.shape[1:]),
            )
        )
    return layers


class _AllLayersComputed(Exception):
    """Stop a forward pass once every requested layer has its output."""


class LayerOutputs(nn.Module):
    """Wrap a network so that it returns the reduced outputs of some layers.

    Parameters
    ----------
    network : torch.nn.Module
    layers : list of Layer
    reduce : callable
        Applied to the output of each layer.
    raw : bool
        True to return the outputs before their negative values are removed.
    """

    def __init__(
        self, network: nn.Module, layers: list[Layer], reduce: Reduce, raw: bool = False
    ):
        super().__init__()
        self.network, self.layers = network, layers
        self.reduce, self.raw = reduce, raw
        self.n_features = sum(reduced_width(layer, reduce) for layer in layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the outputs of all layers side by side, float32 (n, sum of widths)."""
        outputs: list = [None] * len(self.layers)

        def save_output(position: int, layer: Layer):
            calls = itertools.count()

            def hook(module, args, output=None):
                if next(calls) != layer.call_index:
                    return
                maps = args[0] if output is None else output
                if layer.rectified and not layer.ends_in_activation and not self.raw:
                    maps = maps.relu()
                # Copied now: the next submodule may change the maps in place.
                outputs[position] = self.reduce(maps).clone()
                # The rest of the network would be computed in vain.
                if all(value is not None for value in outputs):
                    raise _AllLayersComputed

            return hook

        # The hooks exist during this pass only, so the network is not changed.
        hooks = []
        for position, layer in enumerate(self.layers):
            module = self.network.get_submodule(layer.path)
            hook = save_output(position, layer)
            if self.raw and layer.ends_in_activation:
                hooks.append(module.register_forward_pre_hook(hook))
            else:
                hooks.append(module.register_forward_hook(hook))
        try:
            with contextlib.suppress(_AllLayersComputed):
                self.network(images.float())
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(outputs, dim=1)


def reduced_width(layer: Layer, reduce: Reduce) -> int:
    """Return the number of values that `reduce` keeps of a layer for one image."""
    return reduce(torch.zeros(1, *layer.shape)).shape[1]


def extract_layer_features(
    network: nn.Module,
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    layers: list[Layer],
    reduce: Reduce,
) -> np.ndarray:
    """Return the reduced outputs of some layers for every image, side by side.

    Besides the result, one batch of maps is held in memory.

    Returns
    -------
    features : ndarray of shape (n, sum of widths), float32
    """
    with evaluation_mode(network, device):
        return extract_features(
            LayerOutputs(network, layers, reduce), source, Compute(device, dtype)
        )


def average_pool(maps: torch.Tensor, n_values: int) -> torch.Tensor:
    """Average maps down to `n_values` an image, at least one a channel.

    Vectors are returned as they are.
    """
    if maps.ndim == 2:
        return maps.float()
    n_channels, height, width = maps.shape[1:]
    scale = min(1.0, (n_values / (n_channels * height * width)) ** 0.5)
    # If the height rounds up to one row, the width takes the values that remain.
    rows = max(1, min(int(height * scale), n_values // n_channels))
    columns = max(1, min(int(width * scale), n_values // (n_channels * rows)))
    pooled = functional.adaptive_avg_pool2d(maps.float(), (rows, columns))
    return pooled.flatten(1)
