"""Checkpoints: files from which the same fit resumes."""

import os
import time
from pathlib import Path

import numpy as np
import torch

from .._inputs.sources import Source
from .._utils.files import escape_path, make_folder
from .._utils.hashing import hash_content
from .._utils.messages import warn
from .._utils.tensors import pack, read_tensors, unpack, write_tensors
from .recipe import Parameters
from .state import CHECKPOINT_FORMAT

# Number of last files that are kept, besides the last complete round.
MAX_FILES = 2
SECONDS_BETWEEN_CHECKPOINTS = 120.0
# Number of images that a fingerprint of X compares.
COMPARED_IMAGES = 64
# Parameters that may change between a fit and its resumption.
FREE_PARAMETERS = ("checkpoint_dir", "verbose", "callbacks", "n_jobs", "cache_dir")


class Checkpoints:
    """Checkpoints of one fit in a folder.

    ``round_000003`` is the state after three rounds, ``round_000003_000000417`` the
    state inside the fourth round, after 417 steps of the fit.

    Parameters
    ----------
    folder : path-like
        Created if it does not exist.
    identity : dict
        Result of `fingerprint` for the fit.

    Raises
    ------
    ValueError
        If the folder is a file.
    """

    def __init__(self, folder, identity: dict):
        self.folder = make_folder(folder, "checkpoint_dir")
        self.identity = identity
        self.last_write = time.monotonic()

    def _files(self) -> list[Path]:
        """Return all files, the latest first."""
        return sorted(self.folder.glob("round_*.safetensors"), reverse=True)

    def _complete_rounds(self) -> list[Path]:
        """Return the files of complete rounds, the latest first."""
        return [path for path in self._files() if path.stem.count("_") == 1]

    def read(self, only_complete_rounds: bool = False) -> dict | None:
        """Return the content of the latest intact file, or None.

        Raises
        ------
        ValueError
            If the file belongs to another fit, naming the differences, or to another
            version of the package.
        """
        paths = self._complete_rounds() if only_complete_rounds else self._files()
        for path, older in zip(paths, [*paths[1:], None], strict=False):
            try:
                metadata, tensors = read_tensors(path)
            except Exception as error:
                # Reading a damaged file may raise anything.
                fallback = "The fit starts from the beginning"
                if older is not None:
                    fallback = f"Using {older.name} instead"
                warn(f"{path} cannot be read: {error}. {fallback}.")
                continue
            if metadata["format"] != CHECKPOINT_FORMAT:
                raise ValueError(
                    f"{escape_path(path)} was written by another version of "
                    f"skdeepcluster, in format {metadata['format']}, not "
                    f"{CHECKPOINT_FORMAT}. Resume with that version, or pass another "
                    "checkpoint_dir."
                )
            identity = metadata["fit"]
            differing = [
                name
                for name, value in self.identity.items()
                if identity.get(name) != value
            ]
            if differing:
                raise ValueError(
                    f"checkpoint_dir={os.fspath(self.folder)!r} holds checkpoints of "
                    f"another fit: {', '.join(differing)} differ. Pass the same "
                    "values, or another folder."
                )
            return unpack(metadata["state"], tensors)
        return None

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
        path = self.folder / f"{name}.safetensors"
        try:
            write_tensors(path, metadata, tensors)
        except (OSError, MemoryError) as error:
            # Losing the fit would be worse than losing a checkpoint.
            warn(f"No checkpoint {name} in {self.folder}: {error}. The fit continues.")
        else:
            kept = {*self._files()[:MAX_FILES], *self._complete_rounds()[:1]}
            for old in set(self._files()) - kept:
                old.unlink(missing_ok=True)
        self.last_write = time.monotonic()

    def clear(self) -> None:
        """Remove all files, including unfinished ones, at the end of the fit."""
        for path in [*self._files(), *self.folder.glob(".round_*")]:
            path.unlink(missing_ok=True)


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
            identity[name] = hash_content(value)
    return identity
