"""Device and precision of computations."""

import torch


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device of the `device` parameter.

    Parameters
    ----------
    device : str or torch.device
        "auto" takes CUDA, XPU, MPS or the CPU, whichever is available first.

    Raises
    ------
    ValueError
        If torch does not know the device, or if this machine does not have it.
    """
    available = [
        name
        for name in ("cuda", "xpu", "mps")
        if getattr(torch, name, None) is not None
        and getattr(torch, name).is_available()
    ]
    if isinstance(device, str) and device == "auto":
        return torch.device(available[0] if available else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device={device!r} is no device that torch knows. Use 'auto', 'cpu', "
            "'cuda', 'cuda:1', 'xpu' or 'mps'."
        ) from error
    names = ", ".join(["'cpu'", *map(repr, available)])
    if resolved.type not in ("cpu", *available):
        raise ValueError(
            f"device={str(device)!r} is not available on this machine, which has "
            f"{names}. Use device='auto' to take the best one."
        )
    count = (
        1
        if resolved.type == "cpu"
        else torch.get_device_module(resolved).device_count()
    )
    if resolved.index is not None and resolved.index >= count:
        raise ValueError(
            f"device={str(device)!r} is not available on this machine: it has {count} "
            f"{resolved.type} device(s), counted from 0."
        )
    return resolved


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for products in bfloat16.

    These are AVX-512 BF16 or AMX, CUDA compute capability 8 or higher, and XPU.
    """
    if device.type == "cpu":
        return (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "xpu"


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of convolutions and products for the `precision` parameter.

    "auto" is bfloat16 if the device has instructions for it, otherwise float32.
    """
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which a network computes in `dtype`."""
    # Inside a caller's autocast, weights of earlier steps would stay in the cache.
    torch.clear_autocast_cache()
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
