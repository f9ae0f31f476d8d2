"""A lack of memory, in words that name what to lower."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

SEARCH_BYTES = 2**28  # measured: 150 to 200 MiB on two threads, whatever the points
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
# In what torch's allocator on the CPU and oneDNN say, which have no type of their own.
MEMORY_ERROR_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "out of memory",
)


class OutOfMemory(MemoryError):
    """Says what there is no memory for, and the parameter to lower."""


@contextlib.contextmanager
def explain_memory_error(
    what: str, remedy: str, n_bytes: float | None = None
) -> Iterator[None]:
    """Say what to do, if there is not enough memory inside the block.

    Parameters
    ----------
    what : str
        What the memory is for.
    remedy : str
        What needs less.
    n_bytes : float or None
        How much is needed; None where only the allocator that fails can tell.

    Raises
    ------
    MemoryError
        In the place of what numpy, torch or faiss raise.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        size = "" if n_bytes is None else f" ({format_bytes(n_bytes)})"
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OutOfMemory(
            f"There is not enough memory for {what}{size}. {remedy} ({cause})"
        ) from error


def check_faiss_memory() -> None:
    """Raise MemoryError if faiss has no room for its buffers: it would crash."""
    remedy = "Lower n_jobs, whose threads take a part each, or raise the limit."
    with explain_memory_error("a search by faiss", remedy, SEARCH_BYTES):
        np.empty(SEARCH_BYTES, np.uint8)  # never written to, so it costs nothing


def is_memory_error(error: Exception) -> bool:
    """Tell a lack of memory, on whatever device, from other errors."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(sign in str(error).lower() for sign in MEMORY_ERROR_SIGNS)


def format_bytes(n_bytes: float) -> str:
    """Return a size in a unit that suits it, such as "1.5 GiB"."""
    unit = 0
    while n_bytes >= 1024 and unit < len(UNITS) - 1:
        n_bytes, unit = n_bytes / 1024, unit + 1
    return f"{n_bytes:.3g} {UNITS[unit]}"
