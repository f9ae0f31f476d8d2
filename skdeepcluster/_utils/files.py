"""Folders, names of files, and files that are either complete or absent."""

import contextlib
import errno
import glob
import io
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .memory import format_bytes

try:
    import fcntl
# Windows has no such module.
except ImportError:
    fcntl = None  # type: ignore[assignment]

# Longest name of a file or folder that file systems take, in bytes.
MAX_NAME_BYTES = 255
# Bytes of the target's name that the name of a temporary file starts with, and the mark
# at the end of the name, by which a file that a killed process left is known.
TEMPORARY_NAME_BYTES = 48
TEMPORARY_MARK = ".skdeepcluster-temporary"
# Age in seconds below which such a file is kept, as its process may not have locked it.
NEW_SECONDS = 5.0
# A longer part after the last dot of a name is not a type of files.
MAX_ENDING_BYTES = 32

# Errors of file systems that cannot reserve space.
NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)

# Cures for errors that a folder, its disk or a name cause.
NOT_WRITABLE = "Name a folder that this process may write to."
CURES = {
    errno.ENOSPC: "Free space on its disk, or name a folder on a larger one.",
    errno.EDQUOT: "Remove files below your quota, or name a folder on another disk.",
    errno.EFBIG: "Name a folder on a file system that takes larger files.",
    errno.EIO: "Check its disk, or name a folder on another one.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EROFS: NOT_WRITABLE,
    errno.EACCES: NOT_WRITABLE,
    errno.EPERM: NOT_WRITABLE,
}

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


def find_cure(error: OSError) -> str | None:
    """Return what to do about an error of the file system, or None.

    None is also returned for an error with a text of this package, which says it.
    """
    if error.errno is None or error.strerror != os.strerror(error.errno):
        return None
    return CURES.get(error.errno)


@contextlib.contextmanager
def explain_write_errors(
    argument: str, folder: Path, n_bytes: int = 0
) -> Iterator[None]:
    """Name an argument and its folder in errors of the file system inside the block.

    Parameters
    ----------
    argument : str
        Name and value of the argument, such as ``cache_dir='cache'``.
    folder : Path
    n_bytes : int, default=0
        Space that the block needs. 0 if it is unknown.
    """
    try:
        yield
    except OSError as error:
        cure = find_cure(error)
        if cure is None:
            raise
        size = f" for {format_bytes(n_bytes)}" if n_bytes else ""
        raise OSError(
            error.errno,
            f"{argument}: the folder {escape_path(folder.absolute())} cannot be "
            f"written to: {error.strerror}{size}. {cure}",
        ) from error


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
    OSError
        If the folder cannot be made. The error names the parameter.
    """
    folder = Path(path)
    argument = f"{name}={os.fspath(path)!r}"
    _check_characters(path, argument)
    try:
        with explain_write_errors(argument, folder.parent):
            folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"{argument} is, or lies in, a file. Name a folder."
        ) from error
    return folder


def _check_characters(path: str | os.PathLike, argument: str) -> None:
    """Raise ValueError if a path holds a character that no path can hold."""
    if "\0" in os.fsdecode(path):
        raise ValueError(f"{argument} holds a null character. Choose another name.")


def reserve_space(file: IO[bytes], n_bytes: int) -> bool:
    """Allocate the first bytes of a file; return whether the file system can do that.

    Raises
    ------
    OSError
        If the disk is full.
    """
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(file.fileno(), 0, n_bytes)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        return False
    return True


class _TemporaryFile(io.FileIO):
    """New file, locked by this process. Failed writes name an argument."""

    def __init__(self, path: Path, argument: str):
        super().__init__(path, "xb")
        self.folder = path.parent
        self.argument = argument
        _lock(self)

    def write(self, data):
        with explain_write_errors(self.argument, self.folder):
            return super().write(data)


def _lock(file: IO[bytes] | io.FileIO) -> bool:
    """Lock a file until it is closed; return whether that has worked."""
    if os.name == "nt":
        return False
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # The file is another process's, or the file system has no locks.
        return False
    return True


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove temporary files of the same target that killed processes have left.

    A process that lives holds the lock of its file.
    """
    for path in folder.glob(f".{glob.escape(prefix)}-*{TEMPORARY_MARK}"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            is_new = time.time() - os.fstat(file.fileno()).st_mtime < NEW_SECONDS
            if not is_new and _lock(file):
                path.unlink()


def check_target(path: Path) -> None:
    """Raise an error if a file cannot have this path.

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


@contextlib.contextmanager
def write_atomically(
    path: Path, argument: str | None = None, n_bytes: int = 0
) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` once the block has ended.

    If the block fails, for instance because the disk is full, the temporary file is
    removed and `path` stays as it was.

    Parameters
    ----------
    path : Path
    argument : str or None, default=None
        Name and value of the user's argument that decides about the path, for error
        messages, such as ``cache_dir='cache'``. None is ``path=...``.
    n_bytes : int, default=0
        Size of the file, if it is known. The space is reserved before the block starts.

    Raises
    ------
    IsADirectoryError, FileNotFoundError
        If `path` is a folder, or lies in a folder that does not exist.
    OSError
        If the disk is full or broken, or the folder cannot be written to. The error
        names the argument and the folder.
    """
    folder = path.parent
    argument = argument or f"path={os.fspath(path)!r}"
    _check_characters(path, argument)
    # The files of the module tempfile can be read by their owner only. The name stays
    # short, because the target's name may have the greatest possible length.
    prefix = shorten_name(path.name, TEMPORARY_NAME_BYTES)
    temporary = folder / f".{prefix}-{secrets.token_hex(8)}{TEMPORARY_MARK}"
    with explain_write_errors(argument, folder):
        check_target(path)
        _remove_abandoned(folder, prefix)
        raw_file = _TemporaryFile(temporary, argument)
    try:
        with io.BufferedWriter(raw_file) as file:
            if n_bytes:
                with explain_write_errors(argument, folder, n_bytes):
                    reserve_space(raw_file, n_bytes)
            yield file
            with explain_write_errors(argument, folder):
                file.truncate()
                os.fsync(file.fileno())
        with explain_write_errors(argument, folder):
            os.replace(temporary, path)
    except BaseException:
        # The error of the block is not replaced by one of its cleaning.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Write the names of a folder to the disk, where the system can do that."""
    # Windows opens no folder, and some file systems refuse.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
