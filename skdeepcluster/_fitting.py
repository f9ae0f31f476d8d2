"""One fit, from fresh weights or a checkpoint to its groups."""

import contextlib
import copy
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from ._callbacks import Onlookers
from ._checkpoints import Checkpoints
from ._clustering import Clusterer, PseudoLabels
from ._convnets import Network, build_network
from ._defaults import projected_size, resolve
from ._features import allocate, embed
from ._groups import (
    AVERAGED_ROUNDS,
    Linear,
    NearestCenter,
    find_groups,
    grouped_rows,
)
from ._history import line, mean_nmi
from ._images import Source
from ._loop import Progress, Recipe, Round, alternate
from ._progress import progress_bar
from ._random import Streams, isolated_torch_rng, torch_generators
from ._symptoms import round_symptoms
from ._warnings import warn

STATISTICS_ROWS = 10_000  # images whose mean and scale stand for all


@dataclass(frozen=True)
class Fitted:
    """What a fit has learned."""

    network: Network
    recipe: Recipe
    history: list[dict]
    inertia: float  # of the last k-means
    features: np.ndarray  # float32 (n, d), of the images
    groups: NearestCenter | Linear


class Fit:
    """The state of a fit while it runs.

    Parameters
    ----------
    params : dict
        The estimator's parameters.
    source : Source
    paths : ndarray of str or None
        Of the images, where they are files.
    before : Network or None
        What a warm start goes on from.
    history : list of dict
        Of the rounds that `before` has behind it.
    """

    def __init__(
        self,
        params: dict,
        source: Source,
        paths: np.ndarray | None,
        before: Network | None,
        history: list[dict],
    ):
        self.params, self.source = params, source
        self.before, self.history = before, list(history)
        self.views: deque = deque(maxlen=AVERAGED_ROUNDS)
        self.warned: set[str] = set()  # symptoms
        self.streams = Streams.from_random_state(params["random_state"])
        folder = params["checkpoint_dir"]
        self.checkpoints = (
            None if folder is None else Checkpoints(folder, params, source, paths)
        )

    def run(
        self,
        y: np.ndarray | None,
        onlookers: Onlookers,
        as_fitted: Callable[[Fitted], Any],
    ) -> Fitted:
        """Go on from the last checkpoint, if there is one, to the end.

        Parameters
        ----------
        y : ndarray or None
            Classes whose NMI with the pseudo-labels is logged.
        onlookers : Onlookers
        as_fitted : callable
            Makes an estimator of what was learned, for onlookers.
        """
        saved = self.checkpoints.read() if self.checkpoints else None
        verbose = self.params["verbose"]
        with (
            self._prepared(saved) as (network, recipe, clusterer),
            progress_bar(recipe, verbose > 1) as show,
        ):
            if self.history and saved is not None:
                self.warned = {*round_symptoms(self.history, len(self.source))}
            onlookers.begin_round()
            state: Any
            for state in alternate(
                *(self.source, network, recipe, clusterer, self.streams),
                *(len(self.history), saved and saved["progress"]),
            ):
                if isinstance(state, Progress):
                    show(len(self.history) + 1, state)
                    if self.checkpoints and self.checkpoints.due():
                        self._write(network, state, recipe.device)
                    continue
                self._note(state, y)
                n_left = recipe.max_iter - state.progress.n_rounds
                if verbose:
                    print(line(state.record, n_left), flush=True)
                self._warn()

                def fitted(state=state):
                    copied = copy.deepcopy(network)
                    return as_fitted(self._ended(copied, recipe, clusterer, state))

                # What onlookers draw of torch's numbers is not missing in the fit.
                seed = self.streams.seed("onlookers", len(self.history))
                with isolated_torch_rng(seed, recipe.device):
                    told_to_end = onlookers.end_round(list(self.history), fitted)
                settled = 1 - state.record["nmi_previous"] <= self.params["tol"]
                if told_to_end or settled or not n_left:
                    break
                if self.checkpoints:
                    self._write(network, state.progress, recipe.device)
                onlookers.begin_round()
            return self._ended(network, recipe, clusterer, state)

    def _note(self, state: Round, y: np.ndarray | None) -> None:
        """Take down what a round leaves behind."""
        if y is not None:
            labels = state.found.labels
            state.record["nmi_y"] = mean_nmi(np.broadcast_to(y, labels.shape), labels)
        self.history.append(state.record)
        self.views.append(state.view)

    def _warn(self) -> None:
        """Warn of what the rounds show, once each."""
        symptoms = round_symptoms(self.history, len(self.source))
        for words in [w for name, w in symptoms.items() if name not in self.warned]:
            warn(words, ConvergenceWarning)
        self.warned |= symptoms.keys()

    def recover(self) -> Fitted:
        """Return what the last complete round in the checkpoints had learned.

        Raises
        ------
        ValueError
            If there is none.
        """
        saved = self.checkpoints.read(complete=True) if self.checkpoints else None
        if saved is None or not saved["progress"]["n_rounds"]:
            raise ValueError(
                f"checkpoint_dir={self.params['checkpoint_dir']!r} holds no complete "
                "round of a fit: there is nothing to recover. Call fit."
            )
        with self._prepared(saved) as (network, recipe, clusterer):
            points = features = self._features(network, recipe)
            if saved["progress"]["remembered"] is not None:
                points = saved["progress"]["remembered"]
            seed = self.streams.seed("kmeans", len(self.history))
            found = clusterer.pseudo_labels(points, seed)
        return self._fitted(network, recipe, clusterer, features, found)

    def _ended(
        self, network: Network, recipe: Recipe, clusterer: Clusterer, state: Round
    ) -> Fitted:
        """Return what the rounds up to `state` have learned."""
        features = state.features
        if features is None:
            features = self._features(network, recipe)
        return self._fitted(network, recipe, clusterer, features, state.found)

    def _features(self, network: Network, recipe: Recipe) -> np.ndarray:
        """Return the features of all images."""
        shape = len(self.source), network.n_features
        features = allocate(shape, recipe.features_dir)
        return embed(network, self.source, recipe.device, recipe.dtype, out=features)

    @contextlib.contextmanager
    def _prepared(
        self, saved: dict | None
    ) -> Iterator[tuple[Network, Recipe, Clusterer]]:
        """Resolve parameters and build the network, all as saved, with its generators.

        Inside the block torch's default generators are those of the fit.
        """
        if saved is not None:
            self.streams = Streams(saved["entropy"])
        recipe, clusterer = resolve(self.params, self.source, self.streams)
        device = recipe.device
        with isolated_torch_rng(self.streams.seed("torch"), device):
            network = self._new_network().to(device)
            if saved is not None:
                network.load_state_dict(saved["network"])
                self.history = saved["history"]
                self.views.extend(saved["views"])
                there = torch_generators(device)
                for generator, state in zip(there, saved["generators"], strict=True):
                    generator.set_state(state)
            yield network, recipe, clusterer

    def _new_network(self) -> Network:
        n_projected = projected_size(self.params)
        if self.before is not None:
            if self.before.n_points != (n_projected or self.before.n_features):
                raise ValueError(
                    "warm_start=True goes on with the network of the previous fit, "
                    "whose projection head does not fit head="
                    f"{self.params['head']!r} and n_components="
                    f"{self.params['n_components']!r}. Leave them, or set "
                    "warm_start=False."
                )
            return copy.deepcopy(self.before)
        n = len(self.source)
        rows = self.streams.sample("statistics", n, STATISTICS_ROWS)
        return build_network(
            self.params["backbone"],
            self.source.shape,
            *self.source.statistics(rows),
            sobel=self.params["sobel"],
            head_norm=self.params["head_norm"],
            n_projected=n_projected,
        )

    def _write(self, network: Network, progress: Progress, device: torch.device):
        """Write a checkpoint, unless training has diverged: the loop will say so."""
        finite = all(bool(p.isfinite().all()) for p in network.parameters())
        if self.checkpoints is None or not finite:
            return
        state = {
            "progress": progress.state_dict(),
            "network": network.state_dict(),
            "history": self.history,
            "views": self.views,
            "entropy": self.streams.entropy,
            "generators": [g.get_state() for g in torch_generators(device)],
        }
        inside = progress.training is not None
        n_steps = progress.schedule.last_epoch if inside else None
        self.checkpoints.write(state, len(self.history), n_steps)

    def _fitted(
        self,
        network: Network,
        recipe: Recipe,
        clusterer: Clusterer,
        features: np.ndarray,
        found: PseudoLabels,
    ) -> Fitted:
        rows = grouped_rows(len(self.source), clusterer.n_clusters, self.streams)
        seed, views = self.streams.seed("groups"), list(self.views)
        groups = find_groups(found, features, rows, views, clusterer, seed)
        inertia = sum(each.inertia for each in found.clusters)
        return Fitted(network, recipe, list(self.history), inertia, features, groups)
