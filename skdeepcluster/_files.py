"""Files that are whole or not there."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator:
    """Open a temporary file that takes the place of `path` once it is complete.

    It is removed if anything goes wrong, such as a full disk.
    """
    # Not tempfile's, which nobody else may read.
    unfinished = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with open(unfinished, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    os.replace(unfinished, path)
