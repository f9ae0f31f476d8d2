"""The state of a fit after each round -> files, from which the same fit goes on."""

import os
import warnings
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import torch

from ._images import Source
from ._loop import Progress
from ._tensors import read_tensors, safetensors, write_tensors

FORMAT = 1
KEPT = 2  # last rounds
COMPARED = 64  # images by which X is known again
NETWORK, MOMENTUM, VIEW = "network.", "momentum.", "view."
# Parameters that may change between a fit and its continuation.
FREE = ("checkpoint_dir", "verbose", "n_jobs", "features_dir", "cache", "cache_bytes")


@dataclass(frozen=True)
class Checkpoint:
    """What was read from a file."""

    progress: Progress
    weights: dict[str, torch.Tensor]
    history: list[dict]
    views: list[np.ndarray]
    entropy: int  # of the random streams
    generators: list[torch.Tensor]  # states of torch's default generators


class Checkpoints:
    """The files of one fit in a folder.

    Parameters
    ----------
    folder : path-like
        Made if it is not there.
    params : dict
        The estimator's parameters.
    source : Source
    paths : ndarray of str or None

    Raises
    ------
    ImportError
        If safetensors is missing.
    """

    def __init__(self, folder, params: dict, source: Source, paths: np.ndarray | None):
        safetensors()
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        some = np.linspace(0, len(source) - 1, COMPARED).astype(int)
        images = source.take(some).values
        self.told = {
            "X": joblib.hash([len(source), source.shape, images, paths]),
            **{name: _told(v) for name, v in params.items() if name not in FREE},
        }

    def _files(self) -> list[Path]:
        """Return the files of rounds, the last round first."""
        return sorted(self.folder.glob("round_*.safetensors"), reverse=True)

    def read(self) -> Checkpoint | None:
        """Return the last round that is whole, or None.

        Raises
        ------
        ValueError
            If it is of another fit, naming what differs.
        """
        for path in self._files():
            try:
                told, tensors = read_tensors(path)
                if told["format"] != FORMAT:
                    raise ValueError(f"its format is {told['format']}, not {FORMAT}")
            except Exception as error:  # a damaged file may raise anything
                warnings.warn(
                    f"{path} cannot be read: {error}. The round before it is used.",
                    UserWarning,
                    stacklevel=5,
                )
                continue
            fit = told["fit"]
            differing = [n for n in self.told if fit.get(n) != self.told[n]]
            if differing:
                raise ValueError(
                    f"checkpoint_dir={os.fspath(self.folder)!r} holds the beginning of "
                    f"another fit: {', '.join(differing)} differ. Pass the same, or "
                    "another folder."
                )
            return _checkpoint(told, tensors)
        return None

    def write(
        self,
        progress: Progress,
        network: torch.nn.Module,
        history: list[dict],
        views: deque,
        entropy: int,
        generators: list[torch.Tensor],
    ) -> None:
        """Write the state after a round; warn of a full disk, and go on."""
        state = progress.optimizer["state"]
        momenta = {n: values.get("momentum_buffer") for n, values in state.items()}
        momenta = {n: m for n, m in momenta.items() if m is not None}
        tensors = {NETWORK + name: w for name, w in network.state_dict().items()}
        tensors |= {f"{MOMENTUM}{number}": m for number, m in momenta.items()}
        for number, view in enumerate(views):
            if view is not None:
                tensors[f"{VIEW}{number}"] = torch.from_numpy(view)
        for number, generator in enumerate(generators):
            tensors[f"generator.{number}"] = generator
        told = {
            "format": FORMAT,
            "fit": self.told,
            "n_rounds": progress.n_rounds,
            "start": progress.start,
            "groups": progress.optimizer["param_groups"],
            "momenta": list(momenta),
            "schedule": progress.schedule,
            "history": history,
            "n_views": len(views),
            "n_generators": len(generators),
            "entropy": entropy,
        }
        before = self._files()
        path = self.folder / f"round_{len(history):06d}.safetensors"
        try:
            write_tensors(path, told, tensors)
        except OSError as error:
            warnings.warn(
                f"No checkpoint of round {len(history)} in {self.folder}: {error}. The "
                "fit goes on.",
                UserWarning,
                stacklevel=5,
            )
            return
        for old in before[KEPT - 1 :]:
            old.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the files, also unfinished ones: the fit is complete."""
        for path in [*self._files(), *self.folder.glob(".round_*")]:
            path.unlink(missing_ok=True)


def _told(value) -> str:
    """Return what tells whether a parameter is the same."""
    if isinstance(value, torch.nn.Module):
        weights = {n: w.cpu().numpy() for n, w in value.state_dict().items()}
        return joblib.hash([repr(value), weights])
    if isinstance(value, np.random.RandomState):
        return joblib.hash(value.get_state())
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return repr(value)


def _checkpoint(told: dict, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    momenta = {
        n: {"momentum_buffer": tensors[f"{MOMENTUM}{n}"]} for n in told["momenta"]
    }
    optimizer = {"state": momenta, "param_groups": told["groups"]}
    views = [tensors.get(f"{VIEW}{n}") for n in range(told["n_views"])]
    return Checkpoint(
        Progress(told["n_rounds"], told["start"], optimizer, told["schedule"]),
        {
            n.removeprefix(NETWORK): w
            for n, w in tensors.items()
            if n.startswith(NETWORK)
        },
        told["history"],
        [None if view is None else view.numpy() for view in views],
        told["entropy"],
        [tensors[f"generator.{n}"] for n in range(told["n_generators"])],
    )
