"""Networks with given weights: their sources, and the images that they expect."""

import difflib
import math
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from .._utils.messages import warn
from .._utils.optional import import_optional

# Mean and standard deviation of the channels of ImageNet, for pixels from 0 to 1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Network of backbone="auto" with weights="DEFAULT".
DEFAULT_NETWORK = "convnext_tiny"
# Largest side, in pixels, of images for given weights with image_size="auto". Some
# networks ask for much more, at many times the cost.
MAX_GIVEN_SIDE = 224
# Networks of this package.
OWN_NETWORKS = ("convnet", "mlp", "alexnet")
# Prefixes of the names of timm models, and of timm models in local folders.
TIMM_PREFIX = "timm:"
LOCAL_FOLDER = "local-dir:"
# Number of classes of ImageNet.
IMAGENET_CLASSES = 1000
# Suffixes of files of weights.
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# Keys of the weights in the checkpoints of training scripts.
WEIGHT_KEYS = ("state_dict", "model_state_dict", "model")
# Prefix of the weights that torch.nn.DataParallel has written.
PARALLEL_PREFIX = "module."
# torchvision's networks with auxiliary heads, which return tuples in training.
NETWORKS_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Preprocessing:
    """Images that a network with given weights expects.

    Parameters
    ----------
    mean, std : tuple of three floats
        Statistics that standardize the channels of pixels from 0 to 1.
    image_size : int or None, default=None
        Side of the squares, in pixels. None takes images of any size.
    crop_fraction : float or None, default=None
        Side of the square, divided by the size that the shorter side of an image is
        scaled to before the square is cropped around the center.
    interpolation : str, default="bilinear"
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    image_size: int | None = None
    crop_fraction: float | None = None
    interpolation: str = "bilinear"

    @property
    def shorter_side(self) -> int | None:
        """Size in pixels that the shorter side of an image is scaled to."""
        if self.image_size is None or self.crop_fraction is None:
            return None
        # timm rounds down. 224 / (224 / 232) must not become 231.
        return math.floor(self.image_size / self.crop_fraction + 1e-6)


def find_preprocessing(
    backbone: str | nn.Module,
    weights: str | os.PathLike | None,
    preprocess: str | Callable,
    image_size: str | int,
) -> Preprocessing:
    """Return the images that a network expects, without loading its weights.

    Parameters
    ----------
    backbone, weights, preprocess, image_size
        Parameters of `DeepClusterEstimator`.

    Returns
    -------
    preprocessing : Preprocessing
        The preprocessing of the weights if it is known, otherwise that of ImageNet.

    Raises
    ------
    ValueError
        If `weights` do not exist, or belong to another network.
    """
    own = _own_preprocessing(backbone, weights)
    if preprocess == "imagenet":
        own = replace(own, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if image_size != "auto":
        return replace(own, image_size=int(image_size))
    if own.image_size is not None and own.image_size > MAX_GIVEN_SIDE:
        return replace(own, image_size=MAX_GIVEN_SIDE)
    return own


def _own_preprocessing(
    backbone: str | nn.Module, weights: str | os.PathLike | None
) -> Preprocessing:
    """Return the images that the weights were trained on."""
    is_file = weights is not None and is_weight_file(weights)
    if is_file:
        _check_is_file(os.fspath(weights))  # type: ignore[arg-type]
    if isinstance(backbone, nn.Module):
        if weights is not None and not is_file:
            raise ValueError(
                f"weights={weights!r} names no file, but backbone is a module, which "
                "has its weights already. Remove weights, or pass the path of a file."
            )
        return Preprocessing()
    if weights is None:
        return Preprocessing()
    if is_file and backbone == "auto":
        raise ValueError(
            f"weights={os.fspath(weights)!r} is a file, but backbone='auto' does not "
            "say which network they belong to. Name it, such as backbone='resnet18'."
        )
    if not is_file and backbone in OWN_NETWORKS:
        raise ValueError(
            f"weights={weights!r}: there are no weights to download for "
            f"backbone={backbone!r}. Pass the path of a file, or use a network of "
            "torchvision or timm."
        )
    name = resolve_given_backbone(backbone)
    if name.startswith(TIMM_PREFIX):
        return _timm_preprocessing(name, weights)
    if is_file and name in OWN_NETWORKS:
        return Preprocessing()
    return _torchvision_preprocessing(name, os.fspath(weights), is_file)


def resolve_given_backbone(backbone: str) -> str:
    """Turn "auto" into the network whose weights weights="DEFAULT" takes."""
    return DEFAULT_NETWORK if backbone == "auto" else backbone


def is_weight_file(weights: str | os.PathLike) -> bool:
    """Return whether `weights` is a path, not the name of weights."""
    text = os.fspath(weights)
    has_separator = os.sep in text or "/" in text
    return (
        not isinstance(weights, str)
        or has_separator
        or text.endswith(WEIGHT_FILES)
        or os.path.isfile(text)
    )


def has_trained_weights(module: nn.Module) -> bool:
    """Return whether the weights of a module come from training.

    A fresh normalization layer scales all channels alike. Training makes the channels
    different. A module without normalization layers counts as fresh.
    """
    for layer in module.modules():
        if isinstance(layer, NORM_LAYERS):
            for weights in (layer.weight, layer.bias):
                if weights is not None and _differ(weights):
                    return True
    return False


def _differ(values: torch.Tensor) -> bool:
    """Return whether values differ from each other."""
    return bool((values.detach() != values.detach().flatten()[0]).any())


def is_trainable(module: nn.Module) -> bool:
    """Return whether any parameter of a module requires gradients."""
    return any(parameter.requires_grad for parameter in module.parameters())


def load_given_trunk(
    backbone: str,
    weights: str | os.PathLike,
    preprocessing: Preprocessing,
    loads_weights: bool = True,
) -> nn.Module:
    """Return a named network that maps (n, 3, H, W) to features, with given weights.

    Parameters
    ----------
    backbone : str
        Name of a torchvision classifier, or "timm:" and the name of a timm model.
    weights : str or path-like
    preprocessing : Preprocessing
        Result of `find_preprocessing`.
    loads_weights : bool, default=True
        False builds the network without its weights. `load` adds them from its file.

    Raises
    ------
    ValueError
        If the weights do not fit the network.
    OSError
        If weights cannot be downloaded.
    """
    name = resolve_given_backbone(backbone)
    if name.startswith(TIMM_PREFIX):
        trunk = _load_timm(name, weights, preprocessing, loads_weights)
    else:
        trunk = _load_torchvision(name, weights, loads_weights)
    return trunk.eval()


def load_weight_file(
    module: nn.Module, path: str | os.PathLike, ignored_layer: str | None = None
) -> None:
    """Load a file of weights into a module, and check that all names and shapes fit.

    Parameters
    ----------
    module : nn.Module
    path : str or path-like
        File of safetensors, or a state dict that torch.save has written. Nothing in it
        is executed.
    ignored_layer : str or None, default=None
        Name of the classifier, which is removed from the module but may be in the file.
        None ignores one layer that the module does not have.

    Raises
    ------
    ValueError
        If the file is damaged, or does not fit the module.
    """
    path = os.fspath(path)
    weights = read_weight_file(path)
    expected = module.state_dict()
    extra = sorted(weights.keys() - expected.keys())
    extra_layers = {name.rpartition(".")[0] for name in extra}
    if extra_layers == {ignored_layer} or (
        ignored_layer is None and len(extra_layers) == 1
    ):
        weights = {name: weights[name] for name in weights.keys() & expected.keys()}
        extra = []
    problems = [f"{name} is not part of the network" for name in extra]
    for name, values in expected.items():
        if name not in weights:
            # Older files do not count the batches of batch norm.
            if not name.endswith("num_batches_tracked"):
                problems.append(f"{name} is missing")
        elif weights[name].shape != values.shape:
            problems.append(
                f"{name} has shape {tuple(weights[name].shape)} in place of "
                f"{tuple(values.shape)}"
            )
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"weights={path!r} do not fit the backbone: {'; '.join(problems[:3])}"
            f"{more}. Name the backbone that the weights belong to."
        )
    module.load_state_dict(weights, strict=False)


def read_weight_file(path: str) -> dict[str, torch.Tensor]:
    """Return the named weights of a file, or raise ValueError."""
    _check_is_file(path)
    try:
        return _read_state_dict(path)
    except Exception as error:
        # A file from an unknown source may raise any error.
        raise ValueError(
            f"weights={path!r} cannot be read: {error or type(error).__name__}. It "
            "should be a state dict, as safetensors or from torch.save."
        ) from error


def _check_is_file(path: str) -> None:
    if not os.path.isfile(path):
        raise ValueError(
            f"weights={path!r} is not a file. Relative paths start at {os.getcwd()}."
        )


def _read_state_dict(path: str) -> dict[str, torch.Tensor]:
    """Return the named weights of a file."""
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to execute what is in the file.
        raise ValueError(
            "it holds other objects than tensors. Write it with "
            "torch.save(module.state_dict(), path)"
        ) from error
    for key in WEIGHT_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ValueError("it holds no state dict")
    if not all(isinstance(values, torch.Tensor) for values in content.values()):
        raise ValueError("it holds other values than tensors")
    return {name.removeprefix(PARALLEL_PREFIX): v for name, v in content.items()}


# torchvision


def _torchvision_preprocessing(name: str, weights: str, is_file: bool) -> Preprocessing:
    """Return the preprocessing of torchvision's weights.

    Weights of a file are taken to expect the same images as torchvision's default.
    """
    if is_file:
        weights = "DEFAULT"
    entry = _find_torchvision_weights(name, weights, is_required=not is_file)
    if entry is None:
        return Preprocessing()
    transforms = entry.transforms()
    return Preprocessing(
        mean=tuple(map(float, transforms.mean)),
        std=tuple(map(float, transforms.std)),
        image_size=int(transforms.crop_size[0]),
        crop_fraction=transforms.crop_size[0] / transforms.resize_size[0],
        interpolation=transforms.interpolation.value,
    )


def _find_torchvision_weights(name: str, weights: str, is_required: bool = True):
    """Return torchvision's entry for weights of a classifier."""
    # The import takes seconds, so that only users of these backbones wait for it.
    from torchvision import models

    check_torchvision_name(name)
    try:
        entries = models.get_model_weights(name)
    except ValueError:
        entries = None
    if not entries:
        if not is_required:
            return None
        raise ValueError(
            f"weights={weights!r}: torchvision has no weights for backbone={name!r}. "
            "Pass the path of a file, or use another backbone."
        )
    # Both "ResNet50_Weights.IMAGENET1K_V2" and "IMAGENET1K_V2" are names of weights.
    class_name, _, member = weights.rpartition(".")
    if class_name not in ("", entries.__name__) or member not in entries.__members__:
        names = ", ".join(map(repr, entries.__members__))
        raise ValueError(
            f"weights={weights!r} is unknown for backbone={name!r}. Use {names}, or "
            "the path of a file."
        )
    return entries[member]


def check_torchvision_name(name: str) -> None:
    """Raise ValueError if torchvision has no classifier of this name."""
    from torchvision import models

    names = models.list_models(models)
    if name not in names:
        similar = difflib.get_close_matches(name.lower(), [*OWN_NETWORKS, *names])
        hint = f"Did you mean {' or '.join(map(repr, similar))}? " if similar else ""
        raise ValueError(
            f"backbone={name!r} is unknown. {hint}Use 'auto', 'mlp', 'convnet', "
            "'alexnet', a torch nn.Module, 'timm:' and the name of a timm model, or a "
            f"torchvision classifier: {', '.join(names)}."
        )


def _load_torchvision(
    name: str, weights: str | os.PathLike, loads_weights: bool
) -> nn.Module:
    """Return a torchvision classifier with given weights, without its last layer."""
    from torchvision import models

    is_file = is_weight_file(weights)
    check_torchvision_name(name)
    options: dict[str, Any] = {}
    if name in NETWORKS_WITH_AUXILIARY_HEADS:
        options = {"aux_logits": False, "init_weights": False}
        if not is_file:
            # These weights expect a transformation that is a part of the network.
            options["transform_input"] = True
    if loads_weights and not is_file:
        entry = _find_torchvision_weights(name, os.fspath(weights))
        model = _download_torchvision(name, entry, options)
    else:
        model = models.get_model(name, weights=None, **options)
    classifier = drop_classifier(model, name)
    if loads_weights and is_file:
        load_weight_file(model, weights, classifier)
    return model


def _download_torchvision(name: str, entry, options: dict[str, Any]) -> nn.Module:
    """Return a torchvision classifier with weights from torchvision's cache or site."""
    from torchvision import models

    options = {key: v for key, v in options.items() if key == "aux_logits"}
    try:
        return models.get_model(name, weights=entry, **options)
    except (OSError, RuntimeError) as error:
        file_name = entry.url.rpartition("/")[2]
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        raise OSError(
            f"weights={entry} could not be loaded: {error}. {file_name} was looked "
            f"for in {folder}, then at {entry.url}. Download it elsewhere, and put it "
            f"into {folder}, or pass its path as weights."
        ) from error


def drop_classifier(model: nn.Module, name: str) -> str:
    """Replace the last linear layer of a classifier by nothing, and return its name."""
    linear_layers = [
        path for path, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
    if not linear_layers:
        raise ValueError(
            f"backbone={name!r} has no linear layer at its end, which features could "
            "be read from. Choose another model, or pass an nn.Module that returns "
            "(n, d)."
        )
    model.set_submodule(linear_layers[-1], nn.Identity())
    return linear_layers[-1]


# timm


def _timm_name(backbone: str) -> str:
    return backbone.removeprefix(TIMM_PREFIX)


def _timm_config(name: str) -> dict:
    """Return the configuration of the images of a timm model."""
    timm = import_optional("timm", extra="timm")
    # On the meta device a model takes no memory, and has its configuration.
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, num_classes=0)
    return timm.data.resolve_model_data_config(model)


def _timm_preprocessing(backbone: str, weights: str | os.PathLike) -> Preprocessing:
    """Return the preprocessing in the configuration of a timm model."""
    if not is_weight_file(weights) and weights != "DEFAULT":
        raise ValueError(
            f"weights={weights!r} is unknown for backbone={backbone!r}. Use 'DEFAULT', "
            "which takes the weights of the model's tag, or the path of a file."
        )
    name = _timm_name(backbone)
    _check_timm_name(name, backbone)
    config = _timm_config(name)
    side = int(config["input_size"][-1])
    return Preprocessing(
        mean=tuple(map(float, config["mean"])),
        std=tuple(map(float, config["std"])),
        image_size=side,
        crop_fraction=float(config["crop_pct"]),
        interpolation=config["interpolation"],
    )


def _check_timm_name(name: str, backbone: str) -> None:
    """Raise ValueError if timm has no model, or the folder no files."""
    timm = import_optional("timm", extra="timm")
    if name.startswith(LOCAL_FOLDER):
        folder = name.removeprefix(LOCAL_FOLDER)
        if not os.path.isfile(os.path.join(folder, "config.json")):
            raise ValueError(
                f"backbone={backbone!r}: {folder} has no config.json. Relative paths "
                f"start at {os.getcwd()}."
            )
        return
    # "hf-hub:NAME" and similar names are for timm to resolve.
    if ":" in name or timm.is_model(name):
        return
    similar = difflib.get_close_matches(name, timm.list_models())
    hint = f"Did you mean {' or '.join(map(repr, similar))}? " if similar else ""
    raise ValueError(
        f"backbone={backbone!r} is unknown to timm. {hint}timm.list_models() shows all "
        "names."
    )


def build_timm(
    backbone: str,
    image_size: int | None = None,
    loads_weights: bool = False,
    **options: Any,
) -> nn.Module:
    """Return a timm model without its classifier; `options` are for timm."""
    timm = import_optional("timm", extra="timm")
    name = _timm_name(backbone)
    _check_timm_name(name, backbone)
    options = {"in_chans": 3, "num_classes": 0, "pretrained": loads_weights} | options
    if image_size is None or image_size == _timm_config(name)["input_size"][-1]:
        return timm.create_model(name, **options)
    try:
        # Transformers interpolate their positional embeddings to this size.
        return timm.create_model(name, img_size=image_size, **options)
    except TypeError:
        # Convnets take images of any size, and have no such option.
        return timm.create_model(name, **options)


def _load_timm(
    backbone: str,
    weights: str | os.PathLike,
    preprocessing: Preprocessing,
    loads_weights: bool,
) -> nn.Module:
    size = preprocessing.image_size
    if not loads_weights:
        return build_timm(backbone, size)
    options: dict[str, Any] = {}
    if is_weight_file(weights):
        # timm adapts names and positional embeddings. Without the name of a classifier
        # it accepts neither missing nor additional weights.
        state_dict = _read_timm_weights(backbone, os.fspath(weights))
        # Another source would come before them.
        overlay = {"state_dict": state_dict, "classifier": None, "source": ""}
        options = {"pretrained_cfg_overlay": overlay}
    try:
        model = build_timm(backbone, size, loads_weights=True, **options)
        # The configuration would hold the weights a second time.
        model.pretrained_cfg.pop("state_dict", None)  # type: ignore[operator, union-attr]
        return model
    except ValueError:
        raise
    except Exception as error:
        # timm and its hub raise errors of many types.
        if is_weight_file(weights) or LOCAL_FOLDER in backbone:
            reason = " ".join(str(error).split()).rstrip(". ")
            raise ValueError(
                f"weights={os.fspath(weights)!r} do not fit backbone={backbone!r}: "
                f"{reason}. Name the model that the weights belong to."
            ) from error
        raise OSError(_explain_timm_download(backbone, error)) from error


def _read_timm_weights(backbone: str, path: str) -> dict[str, torch.Tensor]:
    """Return the weights of a file without those of the classifier."""
    timm = import_optional("timm", extra="timm")
    with torch.device("meta"):
        model = timm.create_model(_timm_name(backbone), pretrained=False)
    heads = model.get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    layers = {
        name
        for name, module in model.named_modules()
        if any(module is head for head in heads)
    }
    # Older files have "head" in place of "head.fc".
    layers |= {name.rpartition(".")[0] for name in layers} - {""}
    return {
        name: weights
        for name, weights in read_weight_file(path).items()
        if name.rpartition(".")[0] not in layers
    }


def _explain_timm_download(backbone: str, error: Exception) -> str:
    """Return the message for weights of a timm model that cannot be downloaded."""
    timm = import_optional("timm", extra="timm")
    config = timm.get_pretrained_cfg(_timm_name(backbone))
    source = getattr(config, "hf_hub_id", None) or getattr(config, "url", None)
    from huggingface_hub.constants import HF_HUB_CACHE

    return (
        f"The weights of backbone={backbone!r} could not be loaded: {error}. "
        f"model.safetensors of {source} was looked for in {HF_HUB_CACHE}, then "
        "online. Download it elsewhere together with its config.json, and use "
        "backbone='timm:local-dir:FOLDER', or pass its path as weights."
    )


def warn_of_classifier(trunk: nn.Module, n_features: int, name: str) -> None:
    """Warn if a user's module returns scores of ImageNet's classes."""
    linear_layers = [m for m in trunk.modules() if isinstance(m, nn.Linear)]
    is_classifier = (
        n_features == IMAGENET_CLASSES
        and bool(linear_layers)
        and linear_layers[-1].out_features == IMAGENET_CLASSES
    )
    if is_classifier:
        warn(
            f"backbone={name!r} ends in a classifier of {IMAGENET_CLASSES:,} classes, "
            "so that the embedding holds scores of these classes. Features before the "
            "classifier are usually better: replace the last layer by nn.Identity()."
        )
