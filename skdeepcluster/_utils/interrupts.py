"""Ctrl-C at a moment at which nothing is half done."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def delay_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block, which has to be short.

    Without it, KeyboardInterrupt is raised between any two lines: for instance after a
    process was started, and before any variable knows the process.
    """
    # Python runs handlers of signals in the main thread only.
    is_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    if not is_main_thread or not callable(handler):
        yield
        return
    interrupts = []
    signal.signal(signal.SIGINT, lambda *arguments: interrupts.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if interrupts:
            handler(*interrupts[0])
