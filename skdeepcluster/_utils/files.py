"""Files that are whole or not there."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def make_folder(path: str | os.PathLike, name: str) -> Path:
    """Return a folder, made if it is not there.

    Raises
    ------
    ValueError
        If there is a file of that name, naming the parameter that it comes from.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"{name}={os.fspath(path)!r} is, or lies in, a file. Name a folder."
        ) from error
    return folder


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator:
    """Open a temporary file that takes the place of `path` once it is complete.

    It is removed if anything goes wrong, such as a full disk.

    Raises
    ------
    IsADirectoryError, FileNotFoundError
        If there cannot be such a file.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Name a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{path} cannot be written: there is no folder {path.parent.absolute()}. "
            "Make it first."
        )
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
