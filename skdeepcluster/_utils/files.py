"""Folders, names of files, and files that are either complete or absent."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

# Longest name of a file or folder that file systems take, in bytes.
MAX_NAME_BYTES = 255
# Bytes of the target's name that the name of a temporary file starts with.
TEMPORARY_NAME_BYTES = 48
# A longer part after the last dot of a name is not a type of files.
MAX_ENDING_BYTES = 32

# Hidden file in each directory that `io.export_clusters` writes, and its content. A fit
# on a folder leaves out the subfolders that hold the file.
EXPORT_MARK = ".skdeepcluster-export"
EXPORT_TEXT = (
    "skdeepcluster.io.export_clusters wrote this folder. The images of a folder around "
    "it are read without the images in it.\n"
)


def escape_path(path: str | os.PathLike) -> str:
    r"""Return a path, or a text that contains one, as valid Unicode for people.

    Python holds the bytes of a name that are not UTF-8 as lone surrogates, which cannot
    be printed or written to a UTF-8 file. Such a byte becomes ``\xe9`` here.
    """
    text = os.fsdecode(path)
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # Surrogates that stand for no byte, such as half of a pair from JSON.
        encoded = text.encode("utf-8", "backslashreplace")
    return encoded.decode("utf-8", "backslashreplace")


def shorten_name(name: str, max_bytes: int = MAX_NAME_BYTES) -> str:
    """Return a file name of at most `max_bytes` bytes.

    Letters are cut from the end of the stem, so that the ending stays.
    """

    def count_bytes(text: str) -> int:
        return len(text.encode("utf-8", "surrogateescape"))

    if count_bytes(name) <= max_bytes:
        return name
    stem, ending = os.path.splitext(name)
    if count_bytes(ending) > min(MAX_ENDING_BYTES, max_bytes):
        stem, ending = name, ""
    # Whole letters are cut, because half a letter is not UTF-8.
    while count_bytes(stem) + count_bytes(ending) > max_bytes:
        stem = stem[:-1]
    return stem + ending


@contextlib.contextmanager
def open_utf8_path(path: str | os.PathLike) -> Iterator[str]:
    """Return a path that a library takes even if it refuses names that are not UTF-8.

    The path is valid inside the block.
    """
    text = os.fsdecode(path)
    if escape_path(text) == text:
        yield text
    else:
        with open(text, "rb") as file:
            yield f"/dev/fd/{file.fileno()}"


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
        raise IsADirectoryError(f"{escape_path(path)} is a folder. Name a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{escape_path(path)} cannot be written: there is no folder "
            f"{escape_path(path.parent.absolute())}. Make it first."
        )
    # The files of the module tempfile can be read by their owner only. The name stays
    # short, because the target's name may have the greatest possible length.
    prefix = shorten_name(path.name, TEMPORARY_NAME_BYTES)
    temporary = path.with_name(f".{prefix}-{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
