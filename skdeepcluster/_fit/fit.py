"""One fit, from fresh weights or a checkpoint to its final clusters."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from .._clustering.cluster_model import ClusterModel, fit_cluster_model
from .._clustering.merging import ChangedImages, MergeInput
from .._clustering.pseudo_labels import PseudoLabels
from .._inputs.class_labels import UNKNOWN_CLASS
from .._inputs.sources import Source
from .._training.epoch import GeneratorState, module_schema
from .._training.features import allocate_features, extract_features
from .._training.network import BackboneSetup, Network, build_network
from .._training.pixel_statistics import find_pixel_range
from .._utils.content import check_content
from .._utils.distributed import SINGLE_PROCESS, Processes, Sharded
from .._utils.hashing import hash_content
from .._utils.messages import warn
from .._utils.process_lock import hold_process_lock
from .._utils.random import RandomStreams, isolated_torch_rng, torch_generators
from .._utils.threads import (
    IMAGES_PER_THREAD,
    PIXELS_PER_THREAD,
    choose_threads,
    limit_threads,
    release_threads,
)
from .callback_runner import CallbackRunner, copy_history
from .checkpoints import (
    Checkpoints,
    checksum_images,
    explain_content,
    fingerprint,
)
from .forecast import Forecast
from .frozen import read_changed_features, read_features
from .loop import FitSetup, cluster, extract_points, resume, run_rounds
from .progress import progress_bar
from .recipe import Parameters, describe_choices, resolve_recipe
from .reporting import format_round, mean_nmi
from .state import FitState, Recipe, Round
from .symptoms import describe_repeats, round_symptoms

# Number of images that the mean and scale of the standardization are computed from.
STATISTICS_ROWS = 10_000
# The same with given weights, which only compare these with new images.
GIVEN_STATISTICS_ROWS = 256


@dataclass(frozen=True)
class FitResult:
    """Everything that a fit has learned.

    Parameters
    ----------
    network : Network
    recipe : Recipe
    choices : dict
        Attribute `recipe_` of the estimator.
    history : list of dict
        Attribute `history_` of the estimator.
    n_reported : int or None
        Number of distinct points, if the fit has warned that there are few.
    features : Sharded array of shape (n, d), float32
    cluster_model : ClusterModel
        Predicts the cluster of features.
    """

    network: Network
    recipe: Recipe
    choices: dict
    history: list[dict]
    n_reported: int | None
    features: Sharded
    cluster_model: ClusterModel


class Fit:
    """One fit of `DeepClusterEstimator`.

    Parameters
    ----------
    parameters : Parameters
    source : Source
    paths : ndarray of str or None
        Paths of the images, if they are files.
    previous_network : Network or None
        Network that a warm start continues with.
    previous_history : list of dict
        Records of the rounds behind `previous_network`.
    processes : Processes
        Processes that share the fit.
    backbone_setup : BackboneSetup or None
        Result of `resolve_backbone_setup`. None is fresh weights.

    Raises
    ------
    ValueError
        If the processes received different parameters or images.
    """

    def __init__(
        self,
        parameters: Parameters,
        source: Source,
        paths: np.ndarray | None,
        previous_network: Network | None,
        previous_history: list[dict],
        processes: Processes = SINGLE_PROCESS,
        backbone_setup: BackboneSetup | None = None,
    ):
        self.parameters = parameters
        self.backbone_setup = backbone_setup or BackboneSetup()
        self.source = source
        self.paths = paths
        self.processes = processes
        self.previous_network = previous_network
        self.previous_history = previous_history
        self.reported_symptoms: set[str] = set()
        self.n_reported: int | None = None
        self.has_checkpoints = parameters.checkpoint_dir is not None
        identity: dict = {}
        if self.has_checkpoints or processes.size > 1:
            identity = fingerprint(parameters, source, paths)
            # Processes may have different devices and checkpoint folders.
            processes.check_same(
                identity | {"device": None, "checkpoint_dir": self.has_checkpoints}
            )
        streams = RandomStreams.from_random_state(parameters.random_state)
        self.streams = processes.run_on_first(lambda: streams)
        # Only the first process reads and writes checkpoints.
        self.checkpoints: Checkpoints | None = None
        if self.has_checkpoints:
            processes.run_on_first(lambda: self._open_checkpoints(identity))

    def _open_checkpoints(self, identity: dict) -> None:
        all_images = hash_content(identity["X"], checksum_images(self.source))
        identity = identity | {"X": all_images}
        self.checkpoints = Checkpoints(self.parameters.checkpoint_dir, identity)

    def run(
        self,
        y: np.ndarray | None,
        callback_runner: CallbackRunner,
        make_estimator: Callable[[FitResult], Any],
    ) -> FitResult:
        """Run all rounds, resuming from the last checkpoint if there is one.

        Parameters
        ----------
        y : ndarray or None
            Class of each image, to record their NMI with the pseudo-labels. -1 is an
            unknown class.
        callback_runner : CallbackRunner
        make_estimator : callable
            Function from a result to a fitted estimator, for callbacks.
        """
        saved = self._read_checkpoint()
        verbose = 0 if self.processes.rank else self.parameters.verbose
        with (
            self.checkpoints or contextlib.nullcontext(),
            self._prepare(saved) as setup,
            progress_bar(setup.recipe, verbose > 1) as show_progress,
        ):
            if not setup.recipe.fine_tune:
                return self._cluster_frozen(setup)
            callback_runner.begin_round()
            resumed = None
            if saved is not None:
                resumed = self._resume(setup, saved)
                # Problems of the rounds in the checkpoint have been reported already.
                self._skip_symptoms(resumed)
            forecast = Forecast(
                setup.recipe,
                n_images=len(self.source),
                first_round=resumed.n_rounds if resumed is not None else 0,
            )
            for state, finished in run_rounds(setup, self.previous_history, resumed):
                if finished is None:
                    self._handle_step(setup, state)
                    show_progress(len(state.history) + 1, state)
                    forecast_line = forecast.count_step(state)
                    if verbose and forecast_line is not None:
                        print(forecast_line, flush=True)
                    continue
                self._record_classes(finished, y)
                n_remaining = setup.recipe.max_iter - state.n_rounds
                if verbose:
                    print(format_round(finished.record, n_remaining), flush=True)
                self._warn_of_symptoms(state.history)
                if "giant" not in self.reported_symptoms:
                    labels = finished.pseudo_labels.labels
                    self._warn_of_repeats(labels, len(state.history))
                wants_stop = self._run_callbacks(
                    setup, state, finished, callback_runner, make_estimator
                )
                has_settled = 1 - finished.record["nmi_previous"] <= self.parameters.tol
                # Callbacks run in each process, and one of them is enough to stop.
                is_last = self.processes.any(wants_stop or has_settled)
                if is_last or not n_remaining:
                    break
                if self.has_checkpoints:
                    self._write_checkpoint(setup, state)
                callback_runner.begin_round()
            assert finished is not None  # the loop ends with a complete round
            return self._finish(setup, state, finished, setup.network)

    def _handle_step(self, setup: FitSetup, state: FitState) -> None:
        """Warn of repeated images, and write a checkpoint if it is due.

        Parameters
        ----------
        setup : FitSetup
        state : FitState
            State before the first round, or after a batch.
        """
        is_start = state.training is None
        if is_start:
            self._warn_of_repeats(state.labels)
        # With the first pseudo-labels, `recover` can return clusters.
        if self.has_checkpoints and (is_start or self._is_checkpoint_due()):
            self._write_checkpoint(setup, state)

    def recover(self) -> FitResult:
        """Return the result of the last complete round in the checkpoints.

        Before the end of the first round, the result has the clusters of the images as
        they are, without any training.

        Raises
        ------
        ValueError
            If there is no checkpoint.
        """
        saved = self._read_checkpoint(only_complete_rounds=True)
        if saved is None:
            raise ValueError(
                f"checkpoint_dir={self.parameters.checkpoint_dir!r} holds no "
                "checkpoint, so there is nothing to recover. Set the checkpoint_dir of "
                "the stopped fit. A complete fit leaves no checkpoints."
            )
        with self._prepare(saved) as setup:
            state = self._resume(setup, saved)
            features = self._extract_features(setup, setup.network)
            # Checkpoints hold no clusters, since clustering again with the same seed
            # gives the same clusters.
            points = state.training_points
            if points is None:
                extract_points(setup)
                points = setup.points
            seed = self.streams.seed("kmeans", len(state.history))
            with limit_threads(setup.n_clustering_threads):
                pseudo_labels = setup.clusterer.cluster_features(points, seed)
            return self._make_result(
                setup,
                state.history,
                setup.network,
                features,
                pseudo_labels,
                list(state.diffusion_maps),
            )

    def _resume(self, setup: FitSetup, saved: dict) -> FitState:
        with explain_content(saved["path"]):
            return resume(setup, saved["fit"])

    def _skip_symptoms(self, state: FitState) -> None:
        """Count the problems of earlier rounds as reported."""
        if state.history:
            symptoms = round_symptoms(state.history, len(self.source), self.parameters)
            self.reported_symptoms = set(symptoms)
        n_labels = int(state.labels.max()) + 1
        if describe_repeats(n_labels, self.parameters) is not None:
            self.n_reported = n_labels

    def _cluster_frozen(self, setup: FitSetup) -> FitResult:
        """Return the clusters of the features of a network that is not trained."""
        features = read_features(setup)
        with limit_threads(setup.n_clustering_threads):
            pseudo_labels = cluster(setup, features, 0)
        self._warn_of_repeats(pseudo_labels.labels)
        return self._make_result(setup, [], setup.network, features, pseudo_labels, [])

    def _record_classes(self, finished: Round, y: np.ndarray | None) -> None:
        """Add the NMI between pseudo-labels and classes to the record of a round."""
        if y is None:
            return
        labels = finished.pseudo_labels.labels
        is_known = y != UNKNOWN_CLASS
        if is_known.any():
            labels = labels[:, is_known]
            nmi = mean_nmi(np.broadcast_to(y[is_known], labels.shape), labels)
            finished.record["nmi_y"] = nmi

    def _warn_of_symptoms(self, history: list[dict]) -> None:
        """Warn about problems that the rounds show, once for each problem."""
        symptoms = round_symptoms(history, len(self.source), self.parameters)
        for name, message in symptoms.items():
            if name not in self.reported_symptoms:
                warn(message, ConvergenceWarning)
        self.reported_symptoms |= symptoms.keys()

    def _warn_of_repeats(self, labels: np.ndarray, round_number: int = 0) -> None:
        """Warn once if there are fewer distinct points than clusters to be found."""
        n_found = int(labels.max()) + 1
        message = describe_repeats(n_found, self.parameters, round_number)
        if message is not None and self.n_reported is None:
            warn(message, ConvergenceWarning)
            self.n_reported = n_found

    def _run_callbacks(
        self,
        setup: FitSetup,
        state: FitState,
        finished: Round,
        callback_runner: CallbackRunner,
        make_estimator: Callable[[FitResult], Any],
    ) -> bool:
        """Run the callbacks after a round, and return whether one ends the fit."""

        def fitted():
            # A callback may keep the estimator while training changes the network.
            network = copy.deepcopy(setup.network)
            with hold_process_lock(), limit_threads(self.parameters.n_jobs):
                return make_estimator(self._finish(setup, state, finished, network))

        # Numbers that callbacks draw from torch must not change the fit.
        seed = self.streams.seed("onlookers", len(state.history))
        device = setup.recipe.compute.device
        # A callback may wait for a fit in another thread, which waits for this one.
        with isolated_torch_rng(seed, device), release_threads():
            return callback_runner.end_round(state.history, fitted)

    def _finish(
        self, setup: FitSetup, state: FitState, finished: Round, network: Network
    ) -> FitResult:
        """Return the result of the fit if it ended with this round."""
        features = finished.features
        if features is None:
            features = self._extract_features(setup, network)
        return self._make_result(
            setup,
            state.history,
            network,
            features,
            finished.pseudo_labels,
            list(state.diffusion_maps),
        )

    def _extract_features(self, setup: FitSetup, network: Network) -> Sharded:
        shape = len(setup.shard), network.n_features
        features = extract_features(
            network,
            self.source,
            setup.recipe.compute,
            out=allocate_features(shape, setup.recipe.cache_dir),
            rows=setup.shard.rows,
        )
        return Sharded(features, setup.shard)

    def _make_result(
        self,
        setup: FitSetup,
        history: list[dict],
        network: Network,
        features: Sharded,
        pseudo_labels: PseudoLabels,
        diffusion_maps: list[np.ndarray | None],
    ) -> FitResult:
        """Make the final clusters from the pseudo-labels of the last rounds.

        Without rounds they come from the neighbors in the features.
        """
        probe = setup.stability_probe

        def prepare_merge() -> tuple[np.ndarray, np.ndarray | None]:
            if not setup.recipe.fine_tune:
                return read_changed_features(setup), None
            changed = probe.extract_changed(network, setup.recipe.compute)
            return changed, setup.merge_pixels

        # Only the first process merges.
        changed, pixels = self.processes.run_on_first(prepare_merge)
        with limit_threads(setup.n_clustering_threads):
            cluster_model = fit_cluster_model(
                pseudo_labels,
                features,
                MergeInput(
                    rows=setup.merge_rows,
                    diffusion_maps=[m for m in diffusion_maps if m is not None],
                    pixels=pixels,
                    changed=ChangedImages(probe.rows, changed),
                ),
                setup.clusterer,
                seed=self.streams.seed("groups"),
            )
        return FitResult(
            network=network,
            recipe=setup.recipe,
            choices=describe_choices(
                self.parameters,
                setup.recipe,
                setup.clusterer,
                self.source,
                pseudo_labels.n_components,
                cluster_model,
                network.setup,
            ),
            history=copy_history(history),
            n_reported=self.n_reported,
            features=features,
            cluster_model=cluster_model,
        )

    @contextlib.contextmanager
    def _prepare(self, saved: dict | None) -> Iterator[FitSetup]:
        """Resolve the parameters and build the network, both as in the checkpoint.

        Inside the block, torch's default generators belong to the fit.
        """
        if saved is not None:
            self.streams = RandomStreams(saved["entropy"])
        processes = self.processes
        recipe, clusterer = resolve_recipe(
            self.parameters,
            self.source,
            self.streams,
            processes,
            is_given=self.backbone_setup.is_given,
        )
        device = recipe.compute.device
        n_threads = n_clustering_threads = self.parameters.n_jobs
        if n_threads is None:
            # All channels of a pixel are one step of a convolution.
            batch_pixels = recipe.batch_size * math.prod(self.source.shape[-2:])
            n_threads = choose_threads(batch_pixels, PIXELS_PER_THREAD)
            n_clustering_threads = choose_threads(len(self.source), IMAGES_PER_THREAD)
        with (
            isolated_torch_rng(self.streams.seed("torch"), device),
            limit_threads(n_threads),
        ):
            network = self._new_network().to(device)
            generators = torch_generators(device)
            if processes.rank:
                # Processes train on different images, so dropout has to differ, too.
                for generator in generators:
                    generator.manual_seed(self.streams.seed("torch", processes.rank))
            if saved is not None:
                # With more processes than before, the additional ones start anew.
                states = dict(enumerate(saved["generators"])).get(processes.rank, [])
                # On another device, other generators were used.
                states = states[: len(generators)]
                with explain_content(saved["path"]):
                    check_content(saved["network"], module_schema(network), "network")
                    for generator, state in zip(generators, states, strict=False):
                        GeneratorState(generator).check(state, "generators")
                network.load_state_dict(saved["network"])
                for generator, state in zip(generators, states, strict=False):
                    generator.set_state(state)
            yield FitSetup.prepare(
                self.source,
                network,
                recipe,
                clusterer,
                self.streams,
                processes,
                n_clustering_threads,
            )

    def _new_network(self) -> Network:
        """Return a network with fresh weights, or a copy of the previous network."""
        parameters, previous = self.parameters, self.previous_network
        if previous is not None:
            return copy.deepcopy(previous)
        # Standardization is part of the network, so that it is saved with the weights.
        setup, source = self.backbone_setup, self.source
        if len(source.shape) != 3:
            setup = replace(setup, preprocessing=None)
        n_rows = GIVEN_STATISTICS_ROWS if setup.is_given else STATISTICS_ROWS
        rows = self.streams.sample("statistics", len(source), n_rows)
        if not setup.uses_preprocessing:
            mean, scale = self.processes.run_on_first(lambda: source.statistics(rows))
        else:
            # Nothing depends on the statistics of the data, which take time to read.
            mean = scale = np.ones(source.shape[0])
            # Files of bytes have white at 255.
            if self.paths is None or source.dtype != np.uint8:
                black, white = self.processes.run_on_first(
                    lambda: find_pixel_range(source.take(rows))
                )
                setup = replace(setup, black=black, white=white)
        network = build_network(
            parameters.backbone,
            self.source.shape,
            mean,
            scale,
            sobel=parameters.sobel,
            head_norm=parameters.head_norm,
            n_projected=parameters.n_projected,
            setup=setup,
        )
        is_module = not isinstance(parameters.backbone, str)
        if is_module and setup.uses_preprocessing and parameters.preprocess == "auto":
            height, width = source.shape[1:]
            if network.guess_preprocessing((height, width)):
                name = type(parameters.backbone).__name__
                warn(
                    f"The first batch norm of {name} shows that the network was likely "
                    "trained on pixels standardized as "
                    f"{network.setup.name_of_preprocessing}, with white at 1, and not "
                    "as usual for ImageNet. Images are standardized in this way. To "
                    "choose another way, set preprocess to a function or to 'imagenet'."
                )
        return network

    def _read_checkpoint(self, only_complete_rounds: bool = False) -> dict | None:
        """Return the last checkpoint of this fit, or None."""

        def read() -> dict | None:
            if self.checkpoints is None:
                return None
            return self.checkpoints.read(only_complete_rounds)

        return self.processes.run_on_first(read)

    def _is_checkpoint_due(self) -> bool:
        checkpoints = self.checkpoints
        return self.processes.any(checkpoints is not None and checkpoints.is_due())

    def _write_checkpoint(self, setup: FitSetup, state: FitState) -> None:
        """Write a checkpoint, unless the weights are no longer finite.

        A diverged network is an error that the loop raises. Its weights must not
        replace the last good checkpoint.
        """
        parameters = setup.network.parameters()
        if not all(bool(weights.isfinite().all()) for weights in parameters):
            return
        generators = torch_generators(setup.recipe.compute.device)
        content = {
            "fit": state.state_dict(self.processes),
            "network": setup.network.state_dict(),
            "entropy": self.streams.entropy,
            "generators": self.processes.all_gather_object(
                [generator.get_state() for generator in generators]
            ),
        }
        if self.checkpoints is not None:
            is_inside_round = state.training is not None
            n_steps = state.n_steps if is_inside_round else None
            self.checkpoints.write(content, len(state.history), n_steps)
