"""State of a fit: its recipe, its progress, and the results of one round."""

import os
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch

from .._clustering.merging import MERGED_ROUNDS
from .._clustering.pseudo_labels import PseudoLabels
from .._training.augment import Augment
from .._training.epoch import (
    BatchOptions,
    TrainingState,
    load_optimizer_state,
    optimizer_schema,
    optimizer_state,
)
from .._utils.compute import Compute
from .._utils.content import (
    Anything,
    DictOf,
    InvalidContent,
    ListOf,
    Maybe,
    Number,
    Tensor,
    check_content,
)
from .._utils.distributed import SINGLE_PROCESS, Processes, Sharded

# Version of the dictionaries below. A checkpoint of another version is refused.
CHECKPOINT_FORMAT = 8
# Entries of `history` that are read again. A warm start may have more entries.
RECORD = DictOf(
    Number(),
    required={
        "round": Number(1, is_integer=True),
        "n_pseudo_labels": Number(1, is_integer=True),
        "largest_cluster": Number(1, is_integer=True),
        "loss": Number(),
        "gain": Number(),
        "nmi_previous": Number(),
    },
)


@dataclass(frozen=True)
class Recipe:
    """Choices of the training half, with every "auto" resolved.

    The fields are parameters of `DeepClusterEstimator`, except for the following.

    Parameters
    ----------
    steps_per_round : int
        Number of SGD steps in one round.
    batch_options : BatchOptions
    """

    fine_tune: bool
    init: str
    max_iter: int
    steps_per_round: int
    head: str
    temperature: float
    balance: str | None
    batch_options: BatchOptions
    learning_rate: float
    schedule: str
    momentum: float
    weight_decay: float
    cache_dir: str | os.PathLike | None = None

    @property
    def compute(self) -> Compute:
        """Device and precision."""
        return self.batch_options.compute

    @property
    def batch_size(self) -> int:
        """Number of images in one SGD step."""
        return self.batch_options.batch_size

    @property
    def augment(self) -> Augment | None:
        """Augmentation of training batches."""
        return self.batch_options.augment


@dataclass(frozen=True)
class Round:
    """Results of one complete round.

    Parameters
    ----------
    record : dict
        Entry of `history_`.
    features : Sharded array of shape (n, d), float32, or None
        Features after the round, in memory that the next round overwrites. None if
        other points were clustered.
    pseudo_labels : PseudoLabels
    diffusion_map : ndarray or None
        Contribution of the round to the final clusters. None if the pseudo-labels are
        the final clusters.
    """

    record: dict
    features: Sharded | None
    pseudo_labels: PseudoLabels
    diffusion_map: np.ndarray | None


@dataclass
class FitState:
    """All state besides the network that is needed to resume a fit.

    Parameters
    ----------
    initial_stability : float
        Stability of clusters of the features before training.
    labels : ndarray of shape (h, n), int32
        Pseudo-labels that the current round trains on.
    optimizer : SGD
        Optimizer of the network.
    schedule : learning rate scheduler
    history : list of dict
        Records of complete rounds, including those before a warm start.
    diffusion_maps : deque of ndarrays
        Diffusion maps of the last rounds.
    n_rounds : int
        Number of complete rounds of this fit.
    seconds : dict of str to float
        Time spent in each phase of the current round.
    training : TrainingState or None
        None before the first step of a round.
    training_points : Sharded array of shape (n, n_points), float32, or None
        Points of the images in their last training pass, if these are clustered.
    """

    initial_stability: float
    labels: np.ndarray
    optimizer: torch.optim.SGD
    schedule: torch.optim.lr_scheduler.LRScheduler
    history: list[dict] = field(default_factory=list)
    diffusion_maps: deque = field(default_factory=lambda: deque(maxlen=MERGED_ROUNDS))
    n_rounds: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    training: TrainingState | None = None
    training_points: Sharded | None = None

    @property
    def n_steps(self) -> int:
        """Number of SGD steps of this fit."""
        return self.schedule.last_epoch

    def complete_round(self, finished: Round) -> None:
        """Add the results of a round, and prepare the state for the next round."""
        self.labels = finished.pseudo_labels.labels
        self.history.append(finished.record)
        self.diffusion_maps.append(finished.diffusion_map)
        self.n_rounds += 1
        self.training = None
        self.seconds = {}

    def state_dict(self, processes: Processes = SINGLE_PROCESS) -> dict:
        """Return nested dicts of tensors, arrays and plain values."""
        training, points = self.training, self.training_points
        return {
            "initial_stability": self.initial_stability,
            "labels": self.labels,
            "optimizer": optimizer_state(self.optimizer),
            "n_steps": self.n_steps,
            "history": self.history,
            "diffusion_maps": list(self.diffusion_maps),
            "n_rounds": self.n_rounds,
            "seconds": self.seconds,
            "training": None if training is None else training.state_dict(processes),
            "training_points": None if points is None else points.gather(),
        }

    def load_state_dict(self, state: dict, recipe: Recipe, n_merge_rows: int) -> None:
        """Load the result of `state_dict`, except for `training`.

        The head of a round depends on its pseudo-labels, so `TrainingState` is built
        and loaded later.

        Raises
        ------
        InvalidContent
            If the state is not one of this fit.
        """
        check_content(state, self._schema(recipe, n_merge_rows), "fit")
        labels = state["labels"]
        # Labels count from 0 without gaps, so none is larger than the number of images.
        is_in_range = ((labels >= 0) & (labels < labels.shape[1])).all()
        if not (is_in_range and all(np.bincount(row).all() for row in labels)):
            raise InvalidContent("fit.labels should have an image for each label")
        if len(state["history"]) < state["n_rounds"]:
            raise InvalidContent("fit.history should have an entry for each round")
        self.initial_stability = state["initial_stability"]
        self.labels = labels
        load_optimizer_state(self.optimizer, state["optimizer"])
        # The other entries of the schedule follow from the recipe. A scheduler takes
        # entries of any name, so none of them comes from a file.
        self.schedule.load_state_dict(
            self.schedule.state_dict()
            | {
                "last_epoch": state["n_steps"],
                "_step_count": state["n_steps"] + 1,
                "_last_lr": [state["optimizer"]["learning_rate"]],
            }
        )
        self.history = list(state["history"])
        self.diffusion_maps.extend(state["diffusion_maps"])
        self.n_rounds = state["n_rounds"]
        self.seconds = state["seconds"]
        if self.training_points is not None:
            local_rows = self.training_points.shard.rows
            self.training_points.values[:] = state["training_points"][local_rows]

    def _schema(self, recipe: Recipe, n_merge_rows: int) -> dict:
        """Return the schema of `state_dict`, for `check_content`."""
        points = self.training_points
        n_images = self.labels.shape[1]
        n_steps = recipe.max_iter * recipe.steps_per_round
        return {
            "initial_stability": Number(),
            "labels": Tensor(np.dtype(np.int32), self.labels.shape),
            "optimizer": optimizer_schema(self.optimizer),
            "n_steps": Number(0, n_steps, is_integer=True),
            "history": ListOf(RECORD),
            "diffusion_maps": ListOf(
                Maybe(Tensor(np.dtype(np.float32), (n_merge_rows, None))),
                max_length=MERGED_ROUNDS,
            ),
            # A fit writes no checkpoint after its last round.
            "n_rounds": Number(0, recipe.max_iter - 1, is_integer=True),
            "seconds": DictOf(Number(0)),
            "training": Maybe(Anything()),
            "training_points": None
            if points is None
            else Tensor(np.dtype(np.float32), (n_images, points.values.shape[1])),
        }
