"""Tensors and arrays that do not hold one number for each pixel."""

import warnings

import numpy as np
import torch
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator


def make_kinds():
    """Return dense images, and each X with the cure that the error should name."""
    x = torch.from_numpy(load_digits().images[:64].astype(np.float32))
    masked = np.ma.masked_less(x.numpy(), 1)
    return x, {
        "quantized": (torch.quantize_per_tensor(x, 1.0, 0, torch.quint8), "dequantize"),
        "sparse": (x.to_sparse(), "to_dense"),
        "nested": (torch.nested.nested_tensor([*x]), "unbind"),
        "meta": (x.to("meta"), "values"),
        "conjugate": (x.to(torch.complex64).conj(), "real"),
        "masked": (masked, "filled"),
        "list of quantized": (
            [torch.quantize_per_tensor(x, 1.0, 0, torch.quint8) for x in x],
            "dequantize",
        ),
        "list of masked": ([*masked], "filled"),
    }


def row_21(folder):
    """Pass such X to `fit` and `predict`."""
    warnings.simplefilter("ignore")
    dense, kinds = make_kinds()
    model = DeepClusterEstimator(4, max_iter=1, epochs_per_iter=1).fit(dense)
    for name, (images, cure) in kinds.items():
        for method in (DeepClusterEstimator(4, max_iter=1).fit, model.predict):
            try:
                method(images)
            except (TypeError, ValueError) as error:
                if cure not in str(error):
                    return f"{name}: {error}"
            except Exception as error:
                return f"{name}: {type(error).__name__}: {error}"
            else:
                return f"{name}: {method.__name__} takes it without a word"
    if not np.array_equal(model.predict(dense.requires_grad_()), model.labels_):
        return "a tensor with gradients has other labels"
    return "ok"
