"""Errors for a lack of memory that name the parameter to lower."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

# Memory of a search by faiss. Measured: 150 to 200 MiB on two threads for any number of
# points.
SEARCH_BYTES = 2**28
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
# Torch's allocator on the CPU and oneDNN raise a RuntimeError with one of these texts.
MEMORY_ERROR_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "out of memory",
)


class OutOfMemory(MemoryError):
    """Error that names the purpose of the memory and the parameter to lower."""


@contextlib.contextmanager
def explain_memory_error(
    purpose: str, remedy: str, n_bytes: float | None = None
) -> Iterator[None]:
    """Replace an error for a lack of memory by one that says what to do.

    Parameters
    ----------
    purpose : str
        Purpose of the memory.
    remedy : str
        Sentence that names the parameter to lower.
    n_bytes : float or None
        Size of the memory. None if only the allocator knows.

    Raises
    ------
    MemoryError
        In place of the errors of numpy, torch and faiss.
    """
    try:
        yield
    except OutOfMemory:
        # An inner block has named its own purpose.
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        size = "" if n_bytes is None else f" ({format_bytes(n_bytes)})"
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OutOfMemory(
            f"There is not enough memory for {purpose}{size}. {remedy} ({cause})"
        ) from error


def check_faiss_memory() -> None:
    """Raise MemoryError if a search by faiss would run out of memory and crash."""
    remedy = "Lower n_jobs, since each thread needs a share, or raise the limit."
    with explain_memory_error("a search by faiss", remedy, SEARCH_BYTES):
        # The system provides pages on the first write, so this allocation is free.
        np.empty(SEARCH_BYTES, np.uint8)


def is_memory_error(error: Exception) -> bool:
    """Return whether an error reports a lack of memory, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(sign in str(error).lower() for sign in MEMORY_ERROR_SIGNS)


def format_bytes(n_bytes: float) -> str:
    """Return a size with a suitable unit, such as "1.5 GiB"."""
    unit = 0
    while n_bytes >= 1024 and unit < len(UNITS) - 1:
        n_bytes, unit = n_bytes / 1024, unit + 1
    return f"{n_bytes:.3g} {UNITS[unit]}"
