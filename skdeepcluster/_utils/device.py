"""Device, precision and threads of computations."""

import contextlib
from collections.abc import Iterator

import joblib
import torch
from threadpoolctl import threadpool_limits


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


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of convolutions and products for the `precision` parameter.

    "auto" is bfloat16 if the processor supports it (AVX-512 BF16, AMX, CUDA compute
    capability 8 or higher), otherwise float32.
    """
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    if device.type == "cpu":
        is_supported = (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    elif device.type == "cuda":
        is_supported = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        is_supported = device.type == "xpu"
    return torch.bfloat16 if is_supported else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which a network computes in `dtype`."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def count_threads(n_jobs: int) -> int:
    """Return the number of threads on this machine for `n_jobs`; -1 takes all.

    `joblib.effective_n_jobs` is no substitute: inside a search on a compute cluster it
    returns the number of the cluster's workers for any `n_jobs`.

    Raises
    ------
    ValueError
        If `n_jobs` is 0.
    """
    if n_jobs == 0:
        raise ValueError(
            "n_jobs=0 leaves no thread to work. Use 1 or more, -1 for all processors, "
            "or None."
        )
    return n_jobs if n_jobs > 0 else max(1, joblib.cpu_count() + 1 + n_jobs)


@contextlib.contextmanager
def limit_threads(n_jobs: int | None) -> Iterator[None]:
    """Run a block on `n_jobs` CPU threads; None keeps the present settings."""
    if n_jobs is None:
        yield
        return
    n_threads, previous = count_threads(n_jobs), torch.get_num_threads()
    # threadpoolctl limits faiss and BLAS, but not torch.
    with threadpool_limits(n_threads):
        torch.set_num_threads(n_threads)
        try:
            yield
        finally:
            torch.set_num_threads(previous)
