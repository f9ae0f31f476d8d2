"""A network, images, names of layers -> what these layers give for every image."""

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

EMBEDDING = "embedding"  # name of the network's own output
CONVOLUTION = nn.modules.conv._ConvNd

# Turns maps (n, C, H, W) or vectors (n, d) into float32 (n, width).
Reduce = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Call:
    """One call of a submodule in a forward pass."""

    path: str  # as in `named_modules`
    module: nn.Module
    number: int  # of this module's calls, from 0: a module may be called again
    given: Any  # its first argument
    result: Any = None

    @property
    def is_activation(self) -> bool:
        """Whether the module is torch's ReLU or one of its kin."""
        return type(self.module).__module__ == nn.ReLU.__module__


@dataclass(frozen=True)
class Layer:
    """Where in a forward pass the output of a layer is found."""

    name: str
    start: str  # path of the submodule that the layer begins with
    path: str  # of the submodule whose output it is,
    number: int  # in this of its calls
    rectified: bool  # whether negative values are removed from it:
    activation: bool  # by the submodule, whose argument has them still; else here
    shape: tuple[int, ...]  # of it for one image: (C, H, W) or (d,)


@explain_memory_error("a forward pass", "Pass smaller images.")
def trace_calls(
    network: nn.Module, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> list[Call]:
    """Return the calls of submodules in a forward pass, in the order they start.

    Raises
    ------
    ValueError
        If the network does not take items of `shape`.
    """
    calls: list[Call] = []
    under_way: list[Call] = []
    counts: Counter[str] = Counter()

    def enter(path: str):
        def hook(module, args):
            call = Call(path, module, counts[path], args[0] if args else None)
            counts[path] += 1
            calls.append(call)
            under_way.append(call)

        return hook

    def leave(module, args, result):
        under_way.pop().result = result

    hooks = []
    try:
        for path, module in network.named_modules():
            hooks.append(module.register_forward_pre_hook(enter(path)))
            hooks.append(module.register_forward_hook(leave))
        with evaluation_mode(network, device), torch.no_grad(), autocast(device, dtype):
            network(torch.zeros(2, *shape, device=device))
    except Exception as error:  # whatever a user's module raises
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
    """Hold a network in evaluation mode, and leave no trace of what it does there."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        with isolated_torch_rng(0, device):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def default_layers(calls: list[Call]) -> dict[str, tuple[Call, str, bool]]:
    """Return the layers of a network by their order: convolutions, and its output.

    A convolution's maps are those after the norm and the activation that follow it.
    They are followed by the identity of tensors, so that a sum in place (the shortcut
    of a residual block) belongs to them; where no activation is a submodule, negative
    values are removed here. Networks without convolutions have their activations.

    Returns
    -------
    layers : dict of name to (call that ends it, path of its start, whether rectified)
    """
    leaves = [c for c in calls if _is_convolution(c) or not any(c.module.children())]
    found: dict[str, tuple[Call, str, bool]] = {}
    for place, call in enumerate(leaves):
        if _is_convolution(call):
            last = _followed(call, leaves[place + 1 :])
            found[f"conv{len(found) + 1}"] = last, call.path, True
    if not found:
        activations = [call for call in leaves if call.is_activation]
        found = {f"layer{i}": (c, c.path, True) for i, c in enumerate(activations, 1)}
    return {**found, EMBEDDING: (calls[0], "", False)}


def _followed(call: Call, later: list[Call]) -> Call:
    """Return the last of what keeps the shape of maps, up to an activation."""
    for following in later:
        if following.given is not call.result or _is_convolution(following):
            continue
        if getattr(following.result, "shape", None) != call.result.shape:
            break
        call = following
        if call.is_activation:
            break
    return call


def _is_convolution(call: Call) -> bool:
    return isinstance(call.module, CONVOLUTION)


def find_layers(calls: list[Call], names: list[str] | None) -> list[Layer]:
    """Return the layers of these names: default ones, or paths of submodules.

    Parameters
    ----------
    calls : list of Call
    names : list of str or None
        None is all default layers. Of a submodule that is called more than once the
        last output counts.

    Raises
    ------
    ValueError
        Listing the names there are, if one is unknown; or if the output of one is
        neither maps nor vectors.
    """
    defaults = default_layers(calls)
    by_path = {call.path: (call, call.path, False) for call in calls if call.path}
    known = {**by_path, **defaults}
    layers = []
    for name in defaults if names is None else names:
        if name not in known:
            raise ValueError(
                f"{name!r} is no layer of the model. There are {', '.join(defaults)}, "
                f"and the submodules {', '.join(by_path) or '(none)'}."
            )
        call, start, rectified = known[name]
        activation = rectified and call.is_activation
        found = getattr(call.result, "shape", type(call.result).__name__)
        if not isinstance(call.result, torch.Tensor) or len(found) not in (2, 4):
            raise ValueError(
                f"Layer {name!r} gives {found} for 2 images, but only maps "
                "(n, C, H, W) and vectors (n, d) are looked at. Choose other layers, "
                "or wrap the model."
            )
        where = start, call.path, call.number, rectified, activation
        layers.append(Layer(name, *where, tuple(call.result.shape[1:])))
    return layers


class _Reached(Exception):
    """Ends a forward pass at the last of the layers that it was for."""


class LayerOutputs(nn.Module):
    """A network whose output is that of some of its layers, side by side.

    With `raw` it is what they were before negative values were removed.
    """

    def __init__(
        self, network: nn.Module, layers: list[Layer], reduce: Reduce, raw: bool = False
    ):
        super().__init__()
        self.network, self.layers = network, layers
        self.reduce, self.raw = reduce, raw
        self.n_features = sum(reduced_width(layer, reduce) for layer in layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 (n, sum of the widths)."""
        found: list = [None] * len(self.layers)

        def note(place: int, layer: Layer):
            calls = itertools.count()

            def hook(module, args, result=None):
                if next(calls) != layer.number:
                    return
                # At once, and a copy: the next submodule may change them in place.
                maps = args[0] if result is None else result
                if layer.rectified and not layer.activation and not self.raw:
                    maps = maps.relu()
                found[place] = self.reduce(maps).clone()
                if all(each is not None for each in found):
                    raise _Reached

            return hook

        hooks = []
        for place, layer in enumerate(self.layers):
            module = self.network.get_submodule(layer.path)
            hook = note(place, layer)
            if self.raw and layer.activation:
                hooks.append(module.register_forward_pre_hook(hook))
            else:
                hooks.append(module.register_forward_hook(hook))
        try:
            with contextlib.suppress(_Reached):
                self.network(images.float())
        finally:
            for each in hooks:
                each.remove()
        return torch.cat(found, dim=1)


def reduced_width(layer: Layer, reduce: Reduce) -> int:
    """Return the number of values of one image that are left of a layer."""
    return reduce(torch.zeros(1, *layer.shape)).shape[1]


def layer_features(
    network: nn.Module,
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    layers: list[Layer],
    reduce: Reduce,
) -> np.ndarray:
    """Return what is left of these layers for every item, side by side.

    Returns
    -------
    features : ndarray of shape (n, sum of the widths), float32
        Besides it, one batch is held in memory.
    """
    with evaluation_mode(network, device):
        return extract_features(
            LayerOutputs(network, layers, reduce), source, Compute(device, dtype)
        )


def average_pooled(maps: torch.Tensor, n_values: int) -> torch.Tensor:
    """Average maps to at most `n_values` an image, or one a channel; keep vectors."""
    if maps.ndim == 2:
        return maps.float()
    channels, height, breadth = maps.shape[1:]
    share = min(1.0, (n_values / (channels * height * breadth)) ** 0.5)
    # Of maps that are nearly a line, one side is kept longer than its share.
    rows = max(1, min(int(height * share), n_values // channels))
    columns = max(1, min(int(breadth * share), n_values // (channels * rows)))
    pooled = functional.adaptive_avg_pool2d(maps.float(), (rows, columns))
    return pooled.flatten(1)
