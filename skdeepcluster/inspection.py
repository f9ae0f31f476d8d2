"""What a network has learned, as pictures: section 4.1 of the paper."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from PIL import Image
from sklearn.utils._param_validation import Interval, StrOptions, validate_params
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.nn import functional

from ._convnets import Standardize
from ._device import limited_threads
from ._estimator import DeepClusterEstimator
from ._features import to_device
from ._images import Source, checked_shape
from ._memory import memory_for
from ._random import Streams
from ._validation import NO_GROUP, Given, read, warn_unreadable

__all__ = ["contact_sheet", "first_layer_filters", "maximal_images", "top_images"]

BATCH_VALUES = 2**19  # input values of one forward pass
LARGEST_BATCH = 512  # images
NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)

# Of the ascent, in units of the images' scale.
START = 1.0  # standard deviation of the noise that it starts from
STEP = 0.3  # root mean square of one step's changes
DECAY = 0.01  # share of the way back to the mean, in each step
BLUR_EVERY = 4  # steps
LIMIT = 3.0  # largest distance from the mean
LEAK = 0.01  # slope below zero: a filter that is silent still knows the way up

GAP = 2  # white pixels between the images of a sheet
WHITE = 255


class _Reached(Exception):
    """Ends a forward pass at the layer that it was for."""

    def __init__(self, output: torch.Tensor):
        self.output = output


@dataclass(frozen=True)
class _Layer:
    """Where a network is looked into."""

    module: nn.Module  # whose output it is
    n_filters: int
    rectified: bool  # whether the output is to be rectified


def first_layer_filters(model) -> np.ndarray:
    """Return the weights of the first convolution, which can be looked at as images.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        Fitted.

    Returns
    -------
    filters : ndarray of shape (n_filters, C, h, w), float32
        A copy. The channels are those of the images or, with `sobel=True`, the
        horizontal and the vertical gradient.

    Raises
    ------
    ValueError
        If the network has no convolution.

    See Also
    --------
    maximal_images : What filters of deeper layers respond to.

    References
    ----------
    M. Caron, P. Bojanowski, A. Joulin and M. Douze, "Deep Clustering for Unsupervised
    Learning of Visual Features", European Conference on Computer Vision, 2018, Fig. 3.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.inspection import first_layer_filters
    >>> images = load_digits().images[:300]
    >>> model = DeepClusterEstimator(n_clusters=10, max_iter=1, random_state=0)
    >>> first_layer_filters(model.fit(images)).shape
    (32, 1, 3, 3)
    """
    network = _network(model)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            return module.weight.detach().float().cpu().numpy().copy()
    raise ValueError(
        f"{_name(model)} has no convolution, so there are no filters to look at. Use a "
        "convnet, such as backbone='convnet'."
    )


@validate_params(
    {
        "n_steps": [Interval(Integral, 1, None, closed="left")],
        "blur": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def maximal_images(
    model,
    layer,
    filters=None,
    *,
    n_steps=100,
    blur=1.0,
    image_shape=None,
    random_state=None,
) -> np.ndarray:
    """Make the images that filters respond to most, by gradient ascent from noise.

    Each step changes all pixels along the gradient of the filter's mean activation, by
    the same amount whatever the size of the gradient. What keeps the images from
    becoming noise that only the network understands is a slight decay towards the mean,
    and a Gaussian blur in each fourth step, which weakens until it is gone at the end.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        Fitted. A module takes float32 images (n, C, H, W).
    layer : str
        "conv1", "conv2" and so on are the convolutions in order of execution, each
        with the normalisation behind it, and rectified. Other layers have the names of
        `named_modules`, such as "trunk.4" of an estimator's `module_`.
    filters : array-like of int, default=None
        Channels of the layer, from 0. None is all.
    n_steps : int, default=100
        Steps of the ascent.
    blur : float, default=1.0
        Width of the first blur: its standard deviation in pixels. 0 is none.
    image_shape : tuple (C, H, W), default=None
        Shape of the images. None is the shape in `fit`; a module needs it.
    random_state : int, RandomState instance or None, default=None
        Seed of the noise. Each filter has noise of its own, whichever others are asked
        for.

    Returns
    -------
    images : ndarray of shape (n_filters, C, H, W), float32
        In the units of `X` in `fit`. No value is further from the mean of its channel
        than 3 standard deviations, nor outside 0 to 255 if `X` was bytes. A module is
        taken to expect a mean of 0 and a standard deviation of 1.

    Raises
    ------
    ValueError
        If there is no such layer or filter, or the network does not take such images.

    See Also
    --------
    top_images : The images of a set that filters respond to most.

    Notes
    -----
    The paper maximises the cross entropy between a filter and the others of its layer.
    Here it is the activation itself, which no filter saturates.

    References
    ----------
    J. Yosinski, J. Clune, A. Nguyen, T. Fuchs and H. Lipson, "Understanding Neural
    Networks Through Deep Visualization", ICML Deep Learning Workshop, 2015.

    M. Caron, P. Bojanowski, A. Joulin and M. Douze, "Deep Clustering for Unsupervised
    Learning of Visual Features", European Conference on Computer Vision, 2018, Fig. 4.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.inspection import maximal_images
    >>> images = load_digits().images[:300]
    >>> model = DeepClusterEstimator(n_clusters=10, max_iter=1, random_state=0)
    >>> maximal_images(model.fit(images), "conv2", [0, 5], random_state=0).shape
    (2, 1, 8, 8)
    """
    shape = checked_shape(image_shape)
    _network(model)
    shape = shape or getattr(model, "image_shape_", None)
    if shape is None:
        raise ValueError(
            f"{_name(model)} does not tell the shape of its images. Set image_shape to "
            "(C, H, W)."
        )
    streams = Streams.from_random_state(random_state)
    with _looked_into(model) as (network, device):
        found = _find_layer(network, layer, shape, device)
        filters = _checked_filters(filters, layer, found)
        mean, scale, low, high = (
            values.to(device) for values in _value_range(model, network)
        )
        noise = [
            torch.randn(shape, generator=streams.torch("noise", int(f)))
            for f in filters
        ]
        images = np.empty((len(filters), *shape), np.float32)
        for part in _parts(len(filters), shape):
            start = START * torch.stack(noise[part]).to(device)
            chosen = torch.from_numpy(filters[part]).to(device)
            ends = _ascend(
                *(network, found, chosen, start, mean, scale),
                *((low - mean) / scale, (high - mean) / scale, n_steps, blur),
            )
            # Once more, for what rounding leaves beyond the limits.
            images[part] = (mean + scale * ends).clamp(low, high).cpu().numpy()
    return images


@validate_params(
    {"n_images": [Interval(Integral, 1, None, closed="left")]},
    prefer_skip_nested_validation=True,
)
def top_images(model, X, layer, filters=None, *, n_images=9) -> list[dict]:
    """Find the images that filters respond to most.

    Images are read by the batch, and only the best so far are kept.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        Fitted. A module takes float32 images (n, C, H, W).
    X : array-like, tensor, folder, paths, pictures or dataset
        Images in any form that `DeepClusterEstimator.fit` takes.
    layer : str
        "conv1", "conv2" and so on are the convolutions in order of execution, each
        with the normalisation behind it, and rectified. Other layers have the names of
        `named_modules`, such as "trunk.4" of an estimator's `module_`.
    filters : array-like of int, default=None
        Channels of the layer, from 0. None is all.
    n_images : int, default=9
        Images for each filter; fewer if `X` holds fewer.

    Returns
    -------
    table : list of dict
        One entry for each `filter` and `rank`, from 0 for the best: `row` of `X`;
        `activation`, the filter's largest in the image; and its place, pixel `y`, `x`,
        which is that of the image's centre for layers without places. Of equal
        activations the first row is first. `pandas.DataFrame(table)` is a table.

    Raises
    ------
    ValueError
        If there is no such layer or filter, or `X` is not usable.

    Warns
    -----
    UserWarning
        If images cannot be read, with `on_error="skip"`. They are left out.

    See Also
    --------
    maximal_images : Images that are made for a filter.

    References
    ----------
    M. Caron, P. Bojanowski, A. Joulin and M. Douze, "Deep Clustering for Unsupervised
    Learning of Visual Features", European Conference on Computer Vision, 2018, Fig. 4
    and 5.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.inspection import top_images
    >>> images = load_digits().images[:300]
    >>> model = DeepClusterEstimator(n_clusters=10, max_iter=1, random_state=0)
    >>> table = top_images(model.fit(images), images, "conv4", [7, 8], n_images=3)
    >>> [(entry["filter"], entry["rank"]) for entry in table]
    [(7, 0), (7, 1), (7, 2), (8, 0), (8, 1), (8, 2)]
    >>> sorted(table[0])
    ['activation', 'filter', 'rank', 'row', 'x', 'y']
    """
    is_module = isinstance(model, nn.Module)
    _network(model)
    given = _read_images(DeepClusterEstimator() if is_module else model, X, is_module)
    shape = given.source.shape
    with _looked_into(model) as (network, device):
        found = _find_layer(network, layer, shape, device)
        filters = _checked_filters(filters, layer, found)
        values = np.empty((0, len(filters)), np.float32)
        rows, places = np.empty((2, *values.shape), np.int64)
        parts = _parts(len(given.source), shape)
        batches = given.source.batches(parts)
        for part, batch in zip(parts, batches, strict=True):
            there = given.rows[part]
            kept = ~np.isin(there, list(given.failures))
            with torch.inference_mode(), _out_of_memory():
                maps = _maps(network, found, to_device(batch, device).float())
                maps = functional.relu(maps) if found.rectified else maps
                largest, at = maps[:, filters].flatten(2).max(dim=2)
            values = np.concatenate([values, largest.cpu().numpy()[kept]])
            places = np.concatenate([places, at.cpu().numpy()[kept]])
            there = np.broadcast_to(there[kept, None], (kept.sum(), len(filters)))
            rows = np.concatenate([rows, there])
            best = np.argsort(-values, axis=0, kind="stable")[:n_images]
            values, places, rows = (
                np.take_along_axis(of_all, best, axis=0)
                for of_all in (values, places, rows)
            )
    warn_unreadable(given.failures, given.n)
    # From the map's positions to pixels, each in the middle of those it stands for.
    (height, width), (_, high, wide) = maps.shape[2:], shape
    y, x = np.divmod(places, width)
    y, x = (2 * y + 1) * high // (2 * height), (2 * x + 1) * wide // (2 * width)
    return [
        {
            "filter": int(number),
            "rank": rank,
            "row": int(rows[rank, column]),
            "activation": float(values[rank, column]),
            "y": int(y[rank, column]),
            "x": int(x[rank, column]),
        }
        for column, number in enumerate(filters)
        for rank in range(len(rows))
    ]


@validate_params(
    {
        "n_images": [Interval(Integral, 1, None, closed="left")],
        "which": [StrOptions({"nearest", "farthest", "random"})],
        "size": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def contact_sheet(
    model,
    X,
    cluster=None,
    *,
    n_images=25,
    which="nearest",
    size=64,
    random_state=None,
) -> np.ndarray:
    """Draw the images of one cluster in a square, or of all clusters in a row each.

    Parameters
    ----------
    model : DeepClusterEstimator or array-like of shape (n,)
        Fitted; or the cluster of each image, where -1 is none.
    X : array-like, tensor, folder, paths, pictures or dataset
        Images in any form that `DeepClusterEstimator.fit` takes.
    cluster : int, default=None
        Which cluster. None is all, in rising order from the top.
    n_images : int, default=25
        Largest number of images of a cluster.
    which : {"nearest", "farthest", "random"}, default="nearest"
        Whether the images are those whose embeddings are nearest to the cluster's
        centre, nearest first, or farthest from it, farthest first, or any. Labels tell
        no centres, so for them it must be "random".
    size : int, default=64
        Longer side of an image in the sheet, in pixels.
    random_state : int, RandomState instance or None, default=None
        Seed for `which="random"`.

    Returns
    -------
    sheet : ndarray of shape (H, W, 3), uint8
        White where there is no image. Images are shown as the network sees them;
        channels other than red, green and blue as their mean. Pixels of files are
        taken as they are, other numbers such that the range of `X` is black to white.

    Raises
    ------
    ValueError
        If `X` or a parameter is not usable, or no image is in the cluster.

    Warns
    -----
    UserWarning
        If images cannot be read, with `on_error="skip"`. They are left out.

    See Also
    --------
    skdeepcluster.io.export_clusters : Folders of files, with a page to look at them.

    Examples
    --------
    >>> from PIL import Image
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.inspection import contact_sheet
    >>> images = load_digits().images[:300]
    >>> model = DeepClusterEstimator(n_clusters=10, max_iter=1, random_state=0)
    >>> sheet = contact_sheet(model.fit(images), images, cluster=3, n_images=9)
    >>> sheet.shape
    (200, 200, 3)
    >>> Image.fromarray(sheet).save("sheet.png")  # doctest: +SKIP
    """
    if isinstance(model, nn.Module):
        raise TypeError("A module has no clusters. Pass a DeepClusterEstimator.")
    given, labels, distances = _clustered(model, X, which)
    there = np.unique(labels[labels != NO_GROUP])
    if isinstance(model, DeepClusterEstimator):
        there = np.arange(len(model.cluster_centers_))
    if cluster is not None and cluster not in there:
        raise ValueError(
            f"cluster={cluster!r} is none of the clusters, which are "
            f"{', '.join(map(str, there))}."
        )
    streams = Streams.from_random_state(random_state)
    chosen = []
    for name in there if cluster is None else [cluster]:
        members = np.flatnonzero(labels == name)
        if which == "random":
            # From the start for each cluster: the same images alone and among all.
            members = streams.numpy("sheet").permutation(members)
        else:
            order = distances[members] * (1 if which == "nearest" else -1)
            members = members[np.argsort(order, kind="stable")]
        chosen.append(members[:n_images])
    if not any(map(len, chosen)):
        name = "any cluster" if cluster is None else f"cluster {cluster}"
        raise ValueError(f"No image of X is in {name}. Pass other images.")
    pictures = _pictures(given, np.concatenate(chosen), size)
    warn_unreadable(given.failures, given.n)
    rows = np.split(pictures, np.cumsum([len(members) for members in chosen])[:-1])
    if cluster is not None:
        side = math.ceil(math.sqrt(len(pictures)))
        rows = [
            pictures[start : start + side] for start in range(0, len(pictures), side)
        ]
    return _grid(rows, *pictures.shape[1:3])


def _network(model) -> nn.Module:
    """Return the network of a model, or say what else it should be."""
    if isinstance(model, nn.Module):
        return model
    if not isinstance(model, DeepClusterEstimator):
        raise TypeError(
            f"model is {type(model).__name__}, but should be a fitted "
            "DeepClusterEstimator or a torch.nn.Module."
        )
    check_is_fitted(model)
    return model.module_


def _name(model) -> str:
    return f"model={type(model).__name__}"


@contextlib.contextmanager
def _looked_into(model) -> Iterator[tuple[nn.Module, torch.device]]:
    """Hand out a model's network in evaluation mode and float32, and its device.

    Gradients are computed inside, whatever mode the caller is in. The training flag of
    each of its modules is as before at the end.
    """
    network = _network(model)
    if network is model:
        first = next(network.parameters(), torch.empty(0))
        device, n_jobs = first.device, None
    else:
        device, n_jobs = model.device_, model.n_jobs
        network.to(device)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with (
            limited_threads(n_jobs),
            torch.autocast(device.type, enabled=False),
            torch.inference_mode(False),
        ):
            yield network, device
    finally:
        for module, mode in modes:
            module.training = mode


def _out_of_memory():
    return memory_for("a forward pass", "Pass smaller images, or fewer filters.")


def _parts(n: int, shape: tuple[int, ...]) -> list[slice]:
    """Split `n` images into batches of bounded size."""
    step = max(1, min(LARGEST_BATCH, BATCH_VALUES // math.prod(shape)))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def _find_layer(
    network: nn.Module, name: str, shape: tuple[int, ...], device: torch.device
) -> _Layer:
    """Return the layer of a name, from one pass through the network.

    "conv1", "conv2" and so on are the convolutions in order of execution, each with the
    normalisation that takes its output as it is; they are to be rectified. Other names
    are paths of modules that return maps (n, filters, h, w) or vectors (n, filters).
    """
    outputs = {}  # of modules by path, in order of execution
    paths = {}  # of convolutions, or of the normalisations behind them

    def note(path: str, module: nn.Module, inputs: tuple, output) -> None:
        if not isinstance(output, torch.Tensor) or output.ndim not in (2, 4):
            return
        if path in outputs:  # executed before
            return
        outputs[path] = output
        if isinstance(module, nn.Conv2d):
            paths[f"conv{len(paths) + 1}"] = path
        elif isinstance(module, NORMS):
            for convolution, before in paths.items():
                if outputs[before] is inputs[0]:
                    paths[convolution] = path

    hooks = [
        module.register_forward_hook(
            lambda *call, path=path: note(path, *call)  # None: the output stays
        )
        for path, module in network.named_modules()
    ]
    try:
        with torch.inference_mode(), _out_of_memory():
            network(torch.zeros(1, *shape, device=device))
    except MemoryError:
        raise
    except Exception as error:  # whatever a user's module raises
        raise ValueError(
            f"The network does not take images of shape (C, H, W) = {shape}: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    path = paths.get(name, name)
    if name == "" or path not in outputs:  # "" is the network itself
        raise ValueError(
            f"layer={name!r} is none of the layers, which are "
            f"{', '.join(filter(None, [*paths, *outputs]))}."
        )
    return _Layer(
        network.get_submodule(path), outputs[path].shape[1], rectified=name in paths
    )


def _checked_filters(filters, name: str, layer: _Layer) -> np.ndarray:
    """Return numbers of filters, int64 (n,)."""
    if filters is None:
        return np.arange(layer.n_filters)
    numbers = np.asarray(filters)
    if numbers.ndim != 1 or len(numbers) == 0 or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"filters={filters!r} should be a list of integers, such as [0, 5]."
        )
    strange = numbers[(numbers < 0) | (numbers >= layer.n_filters)]
    if len(strange):
        raise ValueError(
            f"filters holds {strange[0]}, but layer={name!r} has {layer.n_filters} "
            f"filters, from 0 to {layer.n_filters - 1}."
        )
    return numbers.astype(np.int64)


def _stop(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
    raise _Reached(output)


def _maps(network: nn.Module, layer: _Layer, images: torch.Tensor) -> torch.Tensor:
    """Return a layer's output (n, filters, h, w), not rectified."""
    hook = layer.module.register_forward_hook(_stop)
    try:
        network(images)
    except _Reached as reached:
        output = reached.output.float()
    finally:
        hook.remove()
    return output if output.ndim == 4 else output[..., None, None]


def _value_range(model, network: nn.Module) -> tuple[torch.Tensor, ...]:
    """Return mean, scale and limits of pixels, each of shape (C, 1, 1) or (1,)."""
    front = next((m for m in network.modules() if isinstance(m, Standardize)), None)
    if front is None:
        mean, scale = torch.zeros(1), torch.ones(1)
    else:
        mean, scale = front.mean.cpu(), front.scale.cpu()
    low, high = mean - LIMIT * scale, mean + LIMIT * scale
    if getattr(model, "_image_dtype", None) == np.uint8:
        low, high = low.clamp(min=0), high.clamp(max=255)
    return mean, scale, low, high


def _ascend(
    network: nn.Module,
    layer: _Layer,
    filters: torch.Tensor,
    images: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    n_steps: int,
    blur: float,
) -> torch.Tensor:
    """Change standardised images (n, C, H, W) until each activates its filter."""
    each = torch.arange(len(images), device=images.device)
    for step in range(n_steps):
        images.requires_grad_()
        with _out_of_memory():
            maps = _maps(network, layer, mean + scale * images)
            if layer.rectified:
                maps = functional.leaky_relu(maps, LEAK)
            goal = maps[each, filters].mean(dim=(1, 2)).sum()
            (slope,) = torch.autograd.grad(goal, images)
        with torch.no_grad():
            size = slope.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            images = images + STEP * slope / size.clamp(min=1e-30)
            if step % BLUR_EVERY == 0:
                images = _blurred(images, blur * (1 - step / n_steps))
            images = ((1 - DECAY) * images).clamp(low, high)
    return images


def _blurred(images: torch.Tensor, width: float) -> torch.Tensor:
    """Convolve images with a Gaussian of standard deviation `width`, in pixels."""
    reach = math.ceil(3 * width)
    if reach == 0:
        return images
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    weights = torch.exp(-((offsets / width) ** 2) / 2)
    weights = (weights / weights.sum()).repeat(images.shape[1], 1, 1, 1)
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    for kernel in (weights, weights.mT):
        padded = functional.conv2d(padded, kernel, groups=images.shape[1])
    return padded


def _read_images(reader: DeepClusterEstimator, X, reset: bool = False) -> Given:
    given = read(reader, X, reset=reset)
    if len(given.source.shape) != 3:
        raise ValueError(
            f"X holds rows of {given.source.shape[0]} values, but should hold images. "
            "Fit with image_shape=(C, H, W) if the rows are flattened images."
        )
    return given


def _clustered(model, X, which: str) -> tuple[Given, np.ndarray, np.ndarray | None]:
    """Return images, their clusters (-1 if none) and distances to the centres.

    Both are of the source's items.
    """
    if isinstance(model, DeepClusterEstimator):
        check_is_fitted(model)
        given = _read_images(model, X)
        with _looked_into(model):
            embedding = model._embed(given.source)
        labels = model._assign(embedding)
        labels[np.isin(given.rows, list(given.failures))] = NO_GROUP
        distances = np.linalg.norm(embedding - model.cluster_centers_[labels], axis=1)
        return given, labels, distances
    if which != "random":
        raise ValueError(
            f"which={which!r} needs the centres of clusters, which labels do not tell. "
            "Pass the fitted DeepClusterEstimator, or which='random'."
        )
    # Those that have no cluster need not be readable.
    given = _read_images(DeepClusterEstimator(on_error="skip"), X, reset=True)
    labels = np.asarray(model)
    if labels.shape != (given.n,):
        raise ValueError(
            f"model={type(model).__name__} should be a DeepClusterEstimator, or labels "
            f"of shape ({given.n},), one for each image of X; its shape is "
            f"{labels.shape}."
        )
    return given, labels[given.rows], None


def _pictures(given: Given, rows: np.ndarray, size: int) -> np.ndarray:
    """Return items of the source as pictures, uint8 (n, height, width, 3)."""
    source = given.source
    low, high = (0.0, 255.0) if given.paths is not None else _extremes(source)
    span = (high - low) or 1.0
    _, height, width = source.shape
    larger = size / max(height, width)
    height, width = (max(1, round(larger * side)) for side in (height, width))
    # Pixels of small images stay squares.
    how = Image.Resampling.NEAREST if larger >= 1 else Image.Resampling.BOX
    pictures = np.empty((len(rows), height, width, 3), np.uint8)
    parts = _parts(len(rows), source.shape)
    for part, batch in zip(
        parts, source.batches([rows[part] for part in parts]), strict=True
    ):
        for place, image in zip(range(part.start, part.stop), batch, strict=True):
            values = image.double().numpy()
            if len(values) != 3:
                values = values.mean(axis=0, keepdims=True).repeat(3, axis=0)
            values = np.rint(255 * ((values - low) / span)).astype(np.uint8)
            picture = Image.fromarray(np.ascontiguousarray(values.transpose(1, 2, 0)))
            pictures[place] = picture.resize((width, height), how)
    return pictures


def _extremes(source: Source) -> tuple[float, float]:
    parts = _parts(len(source), source.shape)
    found = [torch.aminmax(batch) for batch in source.batches(parts)]
    return float(min(low for low, _ in found)), float(max(high for _, high in found))


def _grid(rows: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Put rows of pictures below each other, uint8 (H, W, 3)."""
    longest = max(map(len, rows))
    down, across = height + GAP, width + GAP
    shape = (GAP + down * len(rows), GAP + across * longest, 3)
    sheet = np.full(shape, WHITE, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = GAP + down * i, GAP + across * j
            sheet[top : top + height, left : left + width] = picture
    return sheet
