"""A folder of checkpoints holds files of the user, or is named by a stranger's file."""

import warnings

import safetensors.torch
import torch
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator

NAMES = (
    "round_000001.safetensors",
    "round_of_golf.safetensors",
    "round_000009_000000123.safetensors",
    ".round_000001.safetensors-notes",
)


def row_13(folder):
    """Fit beside files named as checkpoints, and with a file that names a folder."""
    warnings.simplefilter("ignore")
    images = load_digits().images[:100]
    parameters = {"backbone": "mlp", "max_iter": 2, "epochs_per_iter": 1}
    home = folder / "home"
    home.mkdir()
    for name in NAMES:
        safetensors.torch.save_file({"weights": torch.ones(3)}, home / name)
    try:
        DeepClusterEstimator(4, **parameters, checkpoint_dir=home).fit(images)
    except Exception as error:
        return f"a user's file stops the fit: {type(error).__name__}"
    lost = [name for name in NAMES if not (home / name).exists()]
    if lost:
        return f"deleted: {', '.join(lost)}"

    # A stranger has fitted the model with a folder that is not the user's.
    stranger = DeepClusterEstimator(4, **parameters).fit(images)
    stranger.set_params(checkpoint_dir=home, cache_dir=home)
    stranger.save(folder / "model")
    loaded = DeepClusterEstimator.load(folder / "model")
    if loaded.checkpoint_dir is not None or loaded.cache_dir is not None:
        return "load sets the stranger's folders"
    return "ok"
