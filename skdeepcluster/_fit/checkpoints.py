"""The state of a fit -> files, from which the same fit goes on."""

import os
import time
from pathlib import Path

import numpy as np
import torch

from .._inputs.sources import Source
from .._utils.files import make_folder
from .._utils.hashing import hash_content
from .._utils.messages import warn
from .._utils.tensors import pack, read_tensors, unpack, write_tensors

FORMAT = 5
KEPT = 2  # last files, and that of the last complete round
SECONDS = 120.0  # between two checkpoints inside a round
COMPARED = 64  # images by which X is known again
# Parameters that may change between a fit and its continuation.
FREE = (
    *("checkpoint_dir", "verbose", "callbacks", "n_jobs"),
    *("features_dir", "cache", "cache_bytes"),
)


class Checkpoints:
    """The files of one fit in a folder.

    ``round_000003`` is the state after three rounds, ``round_000003_000000417`` that
    inside the fourth, after 417 steps in all.

    Parameters
    ----------
    folder : path-like
        Made if it is not there.
    fit : dict
        The fit's `fingerprint`.

    Raises
    ------
    ValueError
        If the folder is a file.
    """

    def __init__(self, folder, fit: dict):
        self.folder = make_folder(folder, "checkpoint_dir")
        self.fit = fit
        self.written = time.monotonic()

    def _files(self) -> list[Path]:
        """Return the files, the last one first."""
        return sorted(self.folder.glob("round_*.safetensors"), reverse=True)

    def _rounds(self) -> list[Path]:
        """Return those of complete rounds."""
        return [path for path in self._files() if path.stem.count("_") == 1]

    def read(self, complete: bool = False) -> dict | None:
        """Return the last state that is whole, or None.

        Parameters
        ----------
        complete : bool
            Whether only states at the end of a round are wanted.

        Raises
        ------
        ValueError
            If it is of another fit, naming what differs, or of another version.
        """
        paths = self._rounds() if complete else self._files()
        for path, earlier in zip(paths, [*paths[1:], None], strict=False):
            try:
                told, tensors = read_tensors(path)
            except Exception as error:  # a damaged file may raise anything
                instead = "The fit starts anew" if earlier is None else "Used instead"
                name = "" if earlier is None else f": {earlier.name}"
                warn(f"{path} cannot be read: {error}. {instead}{name}.")
                continue
            if told["format"] != FORMAT:
                raise ValueError(
                    f"{path} was written by another version of skdeepcluster, in "
                    f"format {told['format']}, not {FORMAT}. Go on with that version, "
                    "or pass another checkpoint_dir."
                )
            fit = told["fit"]
            differing = [n for n in self.fit if fit.get(n) != self.fit[n]]
            if differing:
                raise ValueError(
                    f"checkpoint_dir={os.fspath(self.folder)!r} holds the beginning of "
                    f"another fit: {', '.join(differing)} differ. Pass the same, or "
                    "another folder."
                )
            return unpack(told["state"], tensors)
        return None

    def due(self) -> bool:
        """Tell whether the last file is so old that it is time for another."""
        return time.monotonic() - self.written > SECONDS

    def write(self, state: dict, n_rounds: int, n_steps: int | None = None) -> None:
        """Write the state of a fit; warn of a full disk or memory, and go on.

        Parameters
        ----------
        state : nested dict of tensors, arrays and plain values
        n_rounds : int
            Rounds that are complete.
        n_steps : int or None
            Steps of training, inside a round; None at the end of one.
        """
        tensors: dict[str, torch.Tensor] = {}
        told = {"format": FORMAT, "fit": self.fit, "state": pack(state, tensors)}
        name = f"round_{n_rounds:06d}" + ("" if n_steps is None else f"_{n_steps:09d}")
        path = self.folder / f"{name}.safetensors"
        try:
            write_tensors(path, told, tensors)
        except (OSError, MemoryError) as error:
            warn(f"No checkpoint {name} in {self.folder}: {error}. The fit goes on.")
        else:
            kept = {*self._files()[:KEPT], *self._rounds()[:1]}
            for old in set(self._files()) - kept:
                old.unlink(missing_ok=True)
        self.written = time.monotonic()

    def clear(self) -> None:
        """Remove the files, also unfinished ones: the fit is complete."""
        for path in [*self._files(), *self.folder.glob(".round_*")]:
            path.unlink(missing_ok=True)


def fingerprint(params: dict, source: Source, paths: np.ndarray | None) -> dict:
    """Return what tells whether two fits are the same, by the names of what differs.

    Of the images a few are looked at, of their paths all.
    """
    some = np.linspace(0, len(source) - 1, COMPARED).astype(int)
    images = source.take(some).values
    return {
        "X": hash_content(len(source), source.shape, images, paths),
        **{name: hash_content(v) for name, v in params.items() if name not in FREE},
    }
