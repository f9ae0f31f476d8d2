"""Settings of torch and numpy that computations of this package do not depend on."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch

from .threads import limit_threads
from .workers import stop_workers_at_end

DEVICE_TYPES = "cpu", "cuda", "mps", "xpu"


@contextlib.contextmanager
def neutral_state() -> Iterator[None]:
    """Run a block in the settings with which torch and numpy start.

    Gradients are computed, outside of autocast and inference mode. Tensors are float32
    and on the CPU unless the code names a dtype or a device, deterministic algorithms
    are not enforced, and numpy warns about floating-point errors. At the end of the
    block the caller's settings are back, and the workers of the block have ended.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop_workers_at_end())
        # In a forked process, also code before the limit of the caller is limited.
        stack.enter_context(limit_threads(None))
        stack.enter_context(_SHARED_SETTINGS.neutral())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device_type in DEVICE_TYPES:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        # This context costs time in each call of torch.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        # These are the defaults of numpy.
        stack.enter_context(np.errstate(all="warn", under="ignore"))
        yield


def with_neutral_state(function: Callable) -> Callable:
    """Decorate a function so that it runs in the neutral state."""

    # In contrast to a context as decorator, this frame belongs to the package, so that
    # warnings name the caller's line.
    @functools.wraps(function)
    def run(*args, **kwargs):
        with neutral_state():
            return function(*args, **kwargs)

    return run


class _SharedSettings:
    """Settings that all threads of the process share.

    They are neutral as long as one block needs them. The last block that ends restores
    the settings of the caller, since blocks of several threads end in any order.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._n_blocks = 0
        self._outer: tuple[torch.dtype, bool, bool]

    @contextlib.contextmanager
    def neutral(self) -> Iterator[None]:
        """Keep the settings neutral inside the block."""
        with self._lock:
            if self._n_blocks == 0:
                self._outer = _read_shared()
            self._n_blocks += 1
            _write_shared(torch.float32, False, False)
        try:
            yield
        finally:
            with self._lock:
                self._n_blocks -= 1
                if self._n_blocks == 0:
                    _write_shared(*self._outer)


def _read_shared() -> tuple[torch.dtype, bool, bool]:
    return (
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _write_shared(
    dtype: torch.dtype, is_deterministic: bool, is_warning_only: bool
) -> None:
    torch.set_default_dtype(dtype)
    # The first call takes seconds, since it imports the compiler of torch.
    if _read_shared()[1:] != (is_deterministic, is_warning_only):
        torch.use_deterministic_algorithms(is_deterministic, warn_only=is_warning_only)


_SHARED_SETTINGS = _SharedSettings()
