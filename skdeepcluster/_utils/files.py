"""Folders, and files that are either complete or absent."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

# Hidden file in each directory that `io.export_clusters` writes, and its content. A fit
# on a folder leaves out the subfolders that hold the file.
EXPORT_MARK = ".skdeepcluster-export"
EXPORT_TEXT = (
    "skdeepcluster.io.export_clusters wrote this folder. The images of a folder around "
    "it are read without the images in it.\n"
)


def make_folder(path: str | os.PathLike, name: str) -> Path:
    """Return a folder, and make it if it does not exist.

    Parameters
    ----------
    path : str or path-like
        Path of the folder.
    name : str
        Name of the parameter that holds the path.

    Raises
    ------
    ValueError
        If the path is a file, or leads through one.
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
    """Open a temporary file that replaces `path` once the block has ended.

    If the block fails, for instance because the disk is full, the temporary file is
    removed and `path` stays as it was.

    Raises
    ------
    IsADirectoryError, FileNotFoundError
        If `path` is a folder, or lies in a folder that does not exist.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Name a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{path} cannot be written: there is no folder {path.parent.absolute()}. "
            "Make it first."
        )
    # The files of the module tempfile can be read by their owner only.
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)
