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

from .._clustering.merging import (
    AVERAGED_ROUNDS,
    LinearAssigner,
    NearestCenterAssigner,
    fit_assigner,
    sample_merge_rows,
)
from .._clustering.pseudo_labels import Clusterer, PseudoLabels
from .._inputs.sources import Source
from .._training.features import allocate_features, extract_features
from .._training.network import Network, build_network
from .._utils.distributed import SINGLE_PROCESS, Processes, Shard
from .._utils.messages import warn
from .._utils.random import RandomStreams, isolated_torch_rng, torch_generators
from .callback_runner import CallbackRunner
from .checkpoints import Checkpoints, fingerprint
from .loop import FitState, Recipe, Round, run_rounds
from .progress import progress_bar
from .recipe import projected_size, resolve_recipe
from .reporting import format_round, mean_nmi
from .symptoms import round_symptoms

STATISTICS_ROWS = 10_000  # images whose mean and scale stand for all


@dataclass(frozen=True)
class Fitted:
    """What a fit has learned."""

    network: Network
    recipe: Recipe
    history: list[dict]
    inertia: float  # of the last k-means
    features: np.ndarray  # float32, of the images that this process holds
    shard: Shard
    groups: NearestCenterAssigner | LinearAssigner


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
    processes : Ranks
        The processes that fit together.

    Raises
    ------
    ValueError
        If they were given different parameters or images.
    """

    def __init__(
        self,
        params: dict,
        source: Source,
        paths: np.ndarray | None,
        before: Network | None,
        history: list[dict],
        processes: Processes = SINGLE_PROCESS,
    ):
        self.processes, self.shard = processes, processes.shard(len(source))
        self.params, self.source = params, source
        self.before, self.history = before, list(history)
        self.views: deque = deque(maxlen=AVERAGED_ROUNDS)
        self.warned: set[str] = set()  # symptoms
        self.resumable = params["checkpoint_dir"] is not None
        fit: dict = {}
        if self.resumable or processes.size > 1:
            fit = fingerprint(params, source, paths)
            # Each process may be given a device and a folder of its own.
            processes.check_same(
                fit | {"device": None, "checkpoint_dir": self.resumable}
            )
        streams = RandomStreams.from_random_state(params["random_state"])
        self.streams = processes.run_on_first(lambda: streams)
        self.checkpoints: Checkpoints | None = None  # the first process has them

        def open_checkpoints() -> None:
            self.checkpoints = Checkpoints(params["checkpoint_dir"], fit)

        if self.resumable:
            processes.run_on_first(open_checkpoints)

    def run(
        self,
        y: np.ndarray | None,
        onlookers: CallbackRunner,
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
        saved = self._read()
        verbose = 0 if self.processes.rank else self.params["verbose"]
        with (
            self._prepared(saved) as (network, recipe, clusterer),
            progress_bar(recipe, verbose > 1) as show,
        ):
            if self.history and saved is not None:
                self.warned = {*round_symptoms(self.history, len(self.source))}
            onlookers.begin_round()
            state: Any
            for state in run_rounds(
                *(self.source, network, recipe, clusterer, self.streams),
                *(len(self.history), saved and saved["progress"], self.processes),
            ):
                if isinstance(state, FitState):
                    show(len(self.history) + 1, state)
                    if self.resumable and self._is_due():
                        self._write(network, state, recipe.device)
                    continue
                self._note(state, y)
                n_left = recipe.max_iter - state.progress.n_rounds
                if verbose:
                    print(format_round(state.record, n_left), flush=True)
                self._warn()

                def fitted(state=state):
                    copied = copy.deepcopy(network)
                    return as_fitted(self._ended(copied, recipe, clusterer, state))

                # What onlookers draw of torch's numbers is not missing in the fit.
                seed = self.streams.seed("onlookers", len(self.history))
                with isolated_torch_rng(seed, recipe.device):
                    told_to_end = onlookers.end_round(list(self.history), fitted)
                settled = 1 - state.record["nmi_previous"] <= self.params["tol"]
                if self.processes.any(told_to_end or settled) or not n_left:
                    break
                if self.resumable:
                    self._write(network, state.progress, recipe.device)
                onlookers.begin_round()
            return self._ended(network, recipe, clusterer, state)

    def _note(self, state: Round, y: np.ndarray | None) -> None:
        """Take down what a round leaves behind."""
        if y is not None:
            labels = state.found.labels
            state.record["nmi_y"] = mean_nmi(np.broadcast_to(y, labels.shape), labels)
        self.history.append(self.processes.run_on_first(lambda: state.record))
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
        saved = self._read(complete=True)
        if saved is None or not saved["progress"]["n_rounds"]:
            raise ValueError(
                f"checkpoint_dir={self.params['checkpoint_dir']!r} holds no complete "
                "round of a fit: there is nothing to recover. Call fit."
            )
        with self._prepared(saved) as (network, recipe, clusterer):
            points = features = self._features(network, recipe)
            if saved["progress"]["remembered"] is not None:
                points = saved["progress"]["remembered"][self.shard.rows]
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
        """Return the features of the images that this process holds."""
        shape = len(self.shard), network.n_features
        return extract_features(
            *(network, self.source, recipe.device, recipe.dtype),
            out=allocate_features(shape, recipe.cache_dir),
            rows=self.shard.rows,
        )

    @contextlib.contextmanager
    def _prepared(
        self, saved: dict | None
    ) -> Iterator[tuple[Network, Recipe, Clusterer]]:
        """Resolve parameters and build the network, all as saved, with its generators.

        Inside the block torch's default generators are those of the fit.
        """
        if saved is not None:
            self.streams = RandomStreams(saved["entropy"])
        processes = self.processes
        recipe, clusterer = resolve_recipe(
            self.params, self.source, self.streams, processes
        )
        device = recipe.device
        with isolated_torch_rng(self.streams.seed("torch"), device):
            network = self._new_network().to(device)
            there = torch_generators(device)
            if processes.rank:  # dropout is another for other images
                for generator in there:
                    generator.manual_seed(self.streams.seed("torch", processes.rank))
            if saved is not None:
                network.load_state_dict(saved["network"])
                self.history = saved["history"]
                self.views.extend(saved["views"])
                states = saved["generators"][processes.rank : processes.rank + 1] or [
                    []
                ]
                for generator, state in zip(there, states[0], strict=False):
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
            *self.processes.run_on_first(lambda: self.source.statistics(rows)),
            sobel=self.params["sobel"],
            head_norm=self.params["head_norm"],
            n_projected=n_projected,
        )

    def _read(self, complete: bool = False) -> dict | None:
        """Return what is saved of this fit, or of its last complete round."""

        def read() -> dict | None:
            there = self.checkpoints
            return None if there is None else there.read(complete)

        return self.processes.run_on_first(read)

    def _is_due(self) -> bool:
        """Tell whether it is time for a checkpoint."""
        return self.processes.any(
            self.checkpoints is not None and self.checkpoints.due()
        )

    def _write(self, network: Network, progress: FitState, device: torch.device):
        """Write a checkpoint, unless training has diverged: the loop will say so."""
        finite = all(bool(p.isfinite().all()) for p in network.parameters())
        if not finite:  # in all processes alike
            return
        state = {
            "progress": progress.state_dict(self.processes),
            "network": network.state_dict(),
            "history": self.history,
            "views": self.views,
            "entropy": self.streams.entropy,
            "generators": self.processes.all_gather_object(
                [generator.get_state() for generator in torch_generators(device)]
            ),
        }
        if self.checkpoints is None:
            return
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
        rows = sample_merge_rows(len(self.source), clusterer.n_clusters, self.streams)
        seed, views = self.streams.seed("groups"), list(self.views)
        groups = fit_assigner(found, features, rows, views, clusterer, seed)
        inertia = sum(each.inertia for each in found.clusters)
        return Fitted(
            *(network, recipe, list(self.history), inertia),
            *(features, self.shard, groups),
        )
