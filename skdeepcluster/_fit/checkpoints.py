"""Checkpoints: files from which the same fit resumes."""

import contextlib
import os
import re
import time
import zlib
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import numpy as np
import torch

from .._inputs.sources import Source, holds_array
from .._utils.content import (
    Anything,
    DictOf,
    InvalidContent,
    ListOf,
    Number,
    check_content,
)
from .._utils.files import (
    TEMPORARY_MARK,
    escape_path,
    explain_write_errors,
    make_folder,
)
from .._utils.hashing import hash_content
from .._utils.locks import FolderLock
from .._utils.messages import is_called_by_search, warn
from .._utils.tensors import pack, read_metadata, read_tensors, unpack, write_tensors
from .recipe import Parameters
from .state import CHECKPOINT_FORMAT

# Number of last files that are kept, besides the last complete round.
MAX_FILES = 2
SECONDS_BETWEEN_CHECKPOINTS = 120.0
# Number of images that a fingerprint of X compares.
COMPARED_IMAGES = 64
# Number of letters of a fit's fingerprint that name its folder.
FOLDER_LETTERS = 16
# Parameters that may change between a fit and its resumption.
FREE_PARAMETERS = ("checkpoint_dir", "verbose", "callbacks", "n_jobs", "cache_dir")
# Names of complete rounds, of all files, and of files that were being written.
ROUND = re.compile(r"round_\d{6,}\.safetensors")
FILE = re.compile(r"round_\d{6,}(_\d{9,})?\.safetensors")
UNFINISHED = re.compile(rf"\.round_.*{re.escape(TEMPORARY_MARK)}")
# Content of a file. Its parts are checked further when they are used.
CONTENT = {
    "fit": DictOf(Anything()),
    "network": DictOf(Anything()),
    "entropy": Number(0, 2**32 - 1, is_integer=True),
    "generators": ListOf(ListOf(Anything())),
}


class Checkpoints:
    """Checkpoints of one fit, in a subfolder of a folder that many fits may share.

    ``round_000003`` is the state after three rounds, ``round_000003_000000417`` the
    state inside the fourth round, after 417 steps of the fit.

    As a context manager it marks the subfolder as used by a fit that is running.

    Parameters
    ----------
    folder : path-like
        Created if it does not exist.
    identity : dict
        Result of `fingerprint` for the fit. It names the subfolder.

    Raises
    ------
    ValueError
        If the folder is a file.
    """

    def __init__(self, folder, identity: dict):
        self.parent = make_folder(folder, "checkpoint_dir")
        self.identity = identity
        self.folder = self.parent / hash_content(identity)[:FOLDER_LETTERS]
        self.lock: FolderLock | None = None
        self.last_write = time.monotonic()

    def __enter__(self):
        # A folder that vanishes at this moment holds no checkpoints of this fit.
        with contextlib.suppress(OSError):
            self.lock = FolderLock(self.folder)
        return self

    def __exit__(self, *error) -> None:
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def read(self, only_complete_rounds: bool = False) -> dict | None:
        """Return the content of the latest intact file, with its "path", or None.

        If there are files of other fits alone, a warning says so.

        Raises
        ------
        ValueError
            If the file belongs to another version of the package. With
            `only_complete_rounds`, also if there are files of other fits alone.
        """
        paths = _list_files(self.folder, ROUND if only_complete_rounds else FILE)
        for path, older in zip(paths, [*paths[1:], None], strict=False):
            file_format: int | None = CHECKPOINT_FORMAT
            cause: str | None = None
            try:
                metadata, tensors = read_tensors(path)
                identity, state = metadata["fit"], metadata["state"]
                file_format = metadata["format"]
                if identity != self.identity:
                    raise InvalidContent("it belongs to another fit")
                content = unpack(state, tensors)
                check_content(content, CONTENT, "state")
            except MemoryError:
                raise
            except Exception as error:
                # Reading a damaged file, or one of another version, may raise anything.
                cause = (str(error) or type(error).__name__).rstrip(".")
            if file_format != CHECKPOINT_FORMAT:
                raise ValueError(
                    f"{escape_path(path)} was written by another version of "
                    f"skdeepcluster, in format {file_format!r:.40}, not "
                    f"{CHECKPOINT_FORMAT}. Resume with that version, or pass another "
                    "checkpoint_dir."
                )
            if cause is None:
                return content | {"path": os.fspath(path)}
            fallback = "The fit starts from the beginning"
            if older is not None:
                fallback = f"Using {older.name} instead"
            elif only_complete_rounds:
                fallback = "There is no earlier round"
            warn(f"{escape_path(path)} cannot be read: {cause}. {fallback}.")
        if not paths:
            self._report_other_fits(raises=only_complete_rounds)
        return None

    def _report_other_fits(self, raises: bool) -> None:
        """Name the differences to the most similar fit that has checkpoints.

        A user who resumes a fit with a parameter that differs by mistake should learn
        that the fit starts from the beginning.
        """
        # The fits of a search differ on purpose.
        if not raises and is_called_by_search():
            return
        differences = []
        for folder in self.parent.iterdir():
            identity = _read_identity(folder)
            if identity is None or (not raises and _is_in_use(folder)):
                continue
            names = [
                n for n, value in self.identity.items() if identity.get(n) != value
            ]
            differences.append(names)
        nearest = min(differences, key=len, default=[])
        if raises and nearest:
            raise ValueError(
                f"checkpoint_dir={os.fspath(self.parent)!r} holds checkpoints of "
                f"another fit: {', '.join(nearest)} differ. Pass the same values, or "
                "another folder."
            )
        # Other parameters on other images are no mistake, but another task.
        if nearest and ("X" not in nearest or len(nearest) == 1):
            warn(
                f"checkpoint_dir={os.fspath(self.parent)!r} holds an unfinished fit, "
                f"but {', '.join(nearest)} differ. This fit starts from the beginning. "
                "To resume the other fit, pass the same values."
            )

    def is_due(self) -> bool:
        """Return whether the last checkpoint is old enough to write another one."""
        return time.monotonic() - self.last_write > SECONDS_BETWEEN_CHECKPOINTS

    def write(self, content: dict, n_rounds: int, n_steps: int | None = None) -> None:
        """Write a checkpoint. A full disk or memory is a warning, not an error.

        Parameters
        ----------
        content : nested dict of tensors, arrays and plain values
        n_rounds : int
            Number of complete rounds.
        n_steps : int or None
            Number of SGD steps of the fit inside a round. None at the end of a round.
        """
        tensors: dict[str, torch.Tensor] = {}
        metadata = {
            "format": CHECKPOINT_FORMAT,
            "fit": self.identity,
            "state": pack(content, tensors),
        }
        name = f"round_{n_rounds:06d}" + ("" if n_steps is None else f"_{n_steps:09d}")
        argument = f"checkpoint_dir={os.fspath(self.parent)!r}"
        try:
            with explain_write_errors(argument, self.parent):
                self.folder.mkdir(parents=True, exist_ok=True)
                if self.lock is None:
                    self.lock = FolderLock(self.folder)
            path = self.folder / f"{name}.safetensors"
            write_tensors(path, metadata, tensors, argument)
            self._prune()
        except (OSError, MemoryError) as error:
            # Losing the fit would be worse than losing a checkpoint.
            cause = str(error).rstrip(".")
            warn(f"No checkpoint {name} in {self.folder}: {cause}. The fit continues.")
        self.last_write = time.monotonic()

    def _prune(self) -> None:
        """Remove the files of this fit, but the last ones and the last round."""
        files = [p for p in _list_files(self.folder, FILE) if self._wrote(p)]
        rounds = [path for path in files if ROUND.fullmatch(path.name)]
        for path in {*files} - {*files[:MAX_FILES], *rounds[:1]}:
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the files of this fit at its end, and its folder if it is empty.

        If the same fit is running elsewhere, it needs the files and removes them later.
        """
        try:
            with self:
                if self.lock is None or not self.lock.is_alone():
                    return
                for pattern in (FILE, UNFINISHED):
                    for path in filter(self._wrote, _list_files(self.folder, pattern)):
                        path.unlink(missing_ok=True)
                if not any(self.folder.iterdir()):
                    self.folder.rmdir()
        except FileNotFoundError:
            # Without locks, the same fit may have removed the folder.
            pass
        except OSError as error:
            warn(
                f"The checkpoints in {self.folder} cannot be removed: {error}. The fit "
                "is complete. Remove the folder by hand."
            )

    def _wrote(self, path: Path) -> bool:
        """Return whether this fit wrote a file, by its metadata or its ending."""
        try:
            # A fit that is killed while it writes leaves a file without metadata.
            if UNFINISHED.fullmatch(path.name):
                return True
            return read_metadata(path)["fit"] == self.identity
        except Exception:
            # A damaged file, or a file of the user, may raise anything.
            return False


def _list_files(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Return the files of a folder with fitting names, the latest first."""
    names = (path for path in folder.glob("*") if pattern.fullmatch(path.name))
    # Opening a pipe would wait for ever.
    return sorted(filter(Path.is_file, names), reverse=True)


def _read_identity(folder: Path) -> dict | None:
    """Return the identity of the fit with checkpoints in a folder, or None."""
    for path in _list_files(folder, FILE):
        with contextlib.suppress(Exception):
            return dict(read_metadata(path)["fit"])
    return None


def _is_in_use(folder: Path) -> bool:
    """Return whether a fit that is running uses the folder."""
    try:
        lock = FolderLock(folder)
    except OSError:
        return False
    try:
        return not lock.is_alone()
    finally:
        lock.release()


@contextlib.contextmanager
def explain_content(path: str) -> Iterator[None]:
    """Name the checkpoint if its content does not belong to the fit."""
    try:
        yield
    except InvalidContent as error:
        raise ValueError(
            f"{escape_path(path)} is no checkpoint of this fit: {error}. Remove the "
            "file to resume from an earlier one."
        ) from error


def fingerprint(
    parameters: Parameters, source: Source, paths: np.ndarray | None
) -> dict:
    """Return the identity of a fit: one value for X and one for each parameter.

    The value for X covers all paths, but only a sample of the images.
    """
    rows = np.linspace(0, len(source) - 1, COMPARED_IMAGES).astype(int)
    images = source.take(rows).values
    identity = {"X": hash_content(len(source), source.shape, images, paths)}
    for name, value in vars(parameters).items():
        if name not in FREE_PARAMETERS:
            identity[name] = hash_content(_normalize(value))
    return identity


def checksum_images(source: Source) -> int:
    """Return a checksum of all images that lie in an array, and otherwise 0.

    Images that are decoded in each pass would take as long as a pass, so that a change
    of images outside the sample of `fingerprint` goes unnoticed.
    """
    checksum = 0
    if holds_array(source):
        for batch in source.batches(source.split(np.arange(len(source)))):
            checksum = zlib.crc32(np.ascontiguousarray(batch.numpy()).data, checksum)
    return checksum


def _normalize(value):
    """Return a parameter in the same form as any value with the same effect."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return [_normalize(entry) for entry in value]
    if isinstance(value, torch.device | Enum):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
