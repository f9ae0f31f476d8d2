"""DeepClusterEstimator: parameters, validation, fitted attributes; no algorithm."""

import copy
import math
import os
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from . import _persistence as persistence
from ._clustering.graph import nearest_neighbors
from ._clustering.merging import mean_embeddings
from ._clustering.pixels import fit_pixel_projection, project_pixels
from ._fit.callback_runner import (
    Callback,
    CallbackRunner,
    CallbackSupportMixin,
    check_callbacks,
)
from ._fit.fit import Fit, Fitted
from ._fit.stability import mild_augment
from ._fit.symptoms import final_symptoms
from ._inputs.arrays import MAX_ABS_VALUE
from ._inputs.failures import ReadFailures
from ._inputs.read import NO_CLUSTER, InputData, check_class_labels, read_input
from ._inputs.sources import Source
from ._inputs.spec import InputFormat, InputSpec
from ._training.features import extract_features
from ._utils.device import limit_threads, resolve_device
from ._utils.distributed import SINGLE_PROCESS, Processes, Sharded, get_processes
from ._utils.memory import explain_memory_error
from ._utils.messages import warn
from ._utils.random import RandomStreams
from .metrics import reproduced_information

LESS = "Lower image_size or batch_size, or pass fewer images."
SCORE_ROWS = 20_000  # images that `score` looks at


class DeepClusterEstimator(
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    ClusterMixin,
    BaseEstimator,
):
    """Cluster images, and learn features for them, without labels.

    DeepCluster alternates two steps: k-means on the features that a convnet gives for
    all images, and training of the convnet to predict the clusters found. What comes
    out is a clustering of the images and of new ones (`predict`) and an embedding
    for downstream estimators (`transform`).

    Parameters
    ----------
    n_clusters : int, default=8
        Number of groups that `predict` returns.

    n_pseudo_labels : "auto", int or tuple of int, default="auto"
        Number of clusters that the network is trained on, which are finer than the
        groups that are returned. "auto" is 5 for each of the `n_clusters`, but at
        most one for 20 images. With `n_pseudo_labels=n_clusters` the clusters of the
        last round are the groups, as in the paper. Of several numbers each has a
        clustering and a classifier of its own, as in DeepCluster-v2.

    init : {"pixels", "features"}, default="pixels"
        Where the first pseudo-labels come from: the principal components of the
        pixels, or the features of the untrained network, as in the paper.

    clusterer : {"kmeans", "pic"} or estimator, default="kmeans"
        What finds the pseudo-labels: k-means; power iteration clustering, which finds
        out their number itself, the paper's alternative; or a copy of a scikit-learn
        clusterer with `fit_predict`, which is told `n_pseudo_labels` as its
        `n_clusters` or `n_components`, if it has a number there.

    n_neighbors : int or None, default=10
        Edges from each image in the nearest-neighbor graph of the features, whose
        spectral embedding k-means sees beside the features: clusters follow the shape
        of the data. Of more than 20,000 images a random sample makes the graph. With
        None, k-means sees the features alone, as in the paper. With
        `head="centroids"` only the first labels come from a graph.

    max_iter : int, default=6
        Largest number of rounds, each of which trains on the current pseudo-labels
        and then assigns new ones.

    epochs_per_iter : "auto" or int, default="auto"
        Training passes over the images in one round. "auto" is as many as make
        200 SGD steps, from 1 to 30.

    updates_per_iter : int or None, default=None
        SGD steps in one round, in place of `epochs_per_iter`: where one pass over the
        images is too long to wait for new pseudo-labels, or too short.

    backbone : str or torch.nn.Module, default="auto"
        The network: "convnet", small, with batch norm, its depth chosen by the image
        size; "mlp"; "alexnet", with batch norm, as in the paper; the name of a
        torchvision classification model such as "resnet18"; or a module that maps
        (n, C, H, W) to (n, d), which is copied and starts from the weights it has.
        "auto" is "convnet" for images and "mlp" for rows. Nothing is downloaded.

    image_shape : tuple (C, H, W), default=None
        Shape that 2-D rows of `X` are read into, for use behind transformers that
        return 2-D arrays. With None, 2-D rows are plain feature vectors.

    image_size : "auto" or int, default="auto"
        Side, in pixels, of the squares that pictures of mixed sizes are brought to:
        the shorter side is scaled, the longer one cropped around the center. "auto"
        leaves pictures as they are that all have one size of at most 128 pixels a
        side; others get the median of their shorter sides, but at most 64. Arrays of
        images are only resized if it is an int.

    on_error : {"raise", "skip"}, default="raise"
        What becomes of a picture that cannot be read: ValueError, before training as
        far as the headers of files can tell, with its row, path and cause; or a
        warning, label -1 and an embedding of NaN.

    cache_dir : str, path-like or None, default=None
        Folder for decoded images and features. With None, decoded images and features
        are in memory up to 1 GiB each, and more in temporary files, which are gone
        after the fit. If the disk has no room for more images, they are decoded in
        each pass. With a folder, decoded images of files are stored in it under a hash
        of their contents, where later fits of the same files find them; temporary files
        are in it as well. Set it if decoding takes long, or if the system's temporary
        folder is small.

    sobel : bool, default=False
        Whether the network sees fixed Sobel gradients of the gray image instead of
        its pixels, as in the paper.

    augment : {"auto", "crops"}, callable or None, default="auto"
        Transformation of training batches. "auto" is for images a random crop of at
        least 60 % of the area, turned by up to 10 degrees, with contrast and
        brightness changed by up to 30 % (and of each channel by 10 % more), and
        mirrored left to right where mirrored images look like others of their kind; for
        rows it is nothing. "crops" are of random sizes from 8 % of the area, in shapes
        from 3:4 to 4:3, and mirrored, as in the paper. A callable takes and returns a
        float32 tensor (n, C, H, W) in the units of `X`.

    n_crops : int or (int, int), default=1
        How often each image of a batch is augmented, for as many views that are
        trained on together. Of a pair the second number is of further views of half
        the side, of parts at most as large as the smallest crop: the multi-crop of
        DeepCluster-v2, for "auto" and "crops".

    n_components : "auto", int or None, default="auto"
        Number of principal components of the features that are clustered. "auto" is
        as many as explain 99 % of the variance, at most 256; an int is an upper
        bound; None is all. With `head="centroids"` it is the number of outputs of the
        projection head, 128 unless it is an int.

    whiten : bool, default=True
        Whether these components are scaled to unit variance. Not used with
        `head="centroids"`.

    normalize : bool, default=True
        Whether the points that are clustered are scaled to unit length; with
        `head="centroids"` they always are.

    balance : {"uniform", "loss"} or None, default="uniform"
        What keeps the network from predicting one giant cluster: drawing images
        uniformly over pseudo-labels, or weighting the loss by inverse cluster size.

    empty_clusters : {"split", "farthest", "drop", "raise"}, default="split"
        What becomes of an empty cluster: it takes half of a large one through a
        perturbed copy of its center (the paper's way); it is put on the point that
        its own center explains worst; it is dropped; or `fit` raises ValueError.

    head : {"reset", "centroids"}, default="reset"
        What predicts the pseudo-labels: a linear layer that is drawn anew each round,
        as in the paper; or the clusters' own centers, as in DeepCluster-v2. Then a
        projection head, a perceptron with one hidden layer, leads from the features
        to points of unit length. Spherical k-means clusters the points that the
        training passes gave, so that a round needs no other pass over the images.

    temperature : float, default=0.1
        With `head="centroids"`, what cosines to the centers are divided by.

    head_norm : "batch" or None, default="batch"
        Normalization between features and head: a batch norm without weights, or
        nothing, as in the paper, with which small image sets are hardly learned.

    batch_size : int, default=64
        Images in one SGD step, at least 2; under torchrun those of all processes
        together, at least 2 for each.

    learning_rate : float, default=0.03
        Step size of SGD.

    schedule : {"cosine", "constant"}, default="cosine"
        How the step size goes on: for the network it falls to 0 by a cosine over the
        whole fit, for the head it is 1.5 times as large throughout; or it stays what
        it is for both, as in the paper.

    momentum : float, default=0.9
        Momentum of SGD.

    weight_decay : float, default=1e-5
        L2 penalty of SGD.

    device : str or torch.device, default="auto"
        Where the network runs: "cpu", "cuda", "cuda:1", "xpu", "mps". "auto" is the
        first that is there of CUDA, XPU, MPS and the CPU.

    precision : {"auto", "float32", "bfloat16"}, default="auto"
        What convolutions compute in. "auto" is bfloat16 for images where the
        processor has it, else float32.

    kmeans_backend : {"auto", "faiss", "torch"}, default="auto"
        What computes k-means. "auto" is faiss, on its GPUs where it has them and the
        device is CUDA; on another accelerator it is torch.

    n_jobs : int, default=None
        Number of CPU threads, and of processes that decode pictures ahead. -1 is all
        processors. None leaves torch's and faiss's own settings, and decodes in as
        many processes as torch has threads where the system forks them (Linux), else
        in this one.

    random_state : int, RandomState instance or None, default=None
        Seed of everything random. The same int gives the same result, bit for bit,
        on the same machine with the same number of threads. No global generator is
        read or advanced.

    verbose : int, default=0
        With 1, one line is printed for each round: its loss; the NMI with the last
        round's pseudo-labels, and with `y`; empty clusters and the largest one; images
        trained on in a second; and the time that is left. With 2 also a progress bar
        inside rounds, where rich is installed (``pip install skdeepcluster[progress]``)
        and can draw, or else a line every ten seconds.

    callbacks : callable, list of callables or None, default=None
        Functions that are called after each round as ``callback(history, fitted)``,
        where `history` is `history_` so far, and ``fitted()`` makes the estimator that
        it would be if the fit had ended there. The fit does end there if one returns
        True. Some are in `skdeepcluster.callbacks`; those of scikit-learn are set with
        `set_callbacks`.

    warm_start : bool, default=False
        Whether `fit` goes on from the network of the previous call, for another
        `max_iter` rounds.

    checkpoint_dir : str, path-like or None, default=None
        Folder for the state of the fit, after each round and every two minutes of
        training inside one. The same `fit` on the same images goes on from there if
        it was stopped, by whatever, and ends as it would have without; `recover` ends
        it there instead. Each fit needs a folder of its own, which is empty again at
        its end. Needs safetensors (``pip install skdeepcluster[save]``). None for
        none.

    tol : float, default=0.0
        Training ends when 1 - NMI between successive pseudo-labels is at most `tol`.

    Attributes
    ----------
    labels_ : ndarray of shape (n_samples,), int32
        Group of each image, equal to `predict(X)`; -1 for skipped ones.

    paths_ : ndarray of shape (n_samples,), str, or None
        Path of each image, if `X` is a folder or a list of paths. Those of a folder
        are sorted.

    skipped_ : ndarray, int64
        Rows of `X` that could not be read, with `on_error="skip"`.

    cluster_centers_ : ndarray of shape (n_clusters, n_features_out), float32
        Mean embedding of each group.

    inertia_ : float
        Objective of the last k-means of the training, over `n_pseudo_labels`.

    n_iter_ : int
        Number of rounds run.

    history_ : list of dict
        One entry a round: `n_pseudo_labels` trained on; `loss`; `gain`, how much
        better clusters of the features survive slight changes of the images than
        before training; `inertia`; `nmi_previous`, to the previous round's
        pseudo-labels (Fig. 2b of the paper); `nmi_y` where `y` was given;
        `n_empty_before` and `n_empty_after` repair; `largest_cluster` and
        `smallest_cluster` in images; `images_per_second` in training. With several
        `n_pseudo_labels`, NMI are means and counts of empty clusters sums. And
        `seconds_sample`, `seconds_train`, `seconds_embed`, `seconds_cluster` and
        `seconds_judge`, which is for `gain`. `pandas.DataFrame(history_)` is a table.

    module_ : torch.nn.Module
        The trained network, from pixels to the embedding.

    image_shape_ : tuple (C, H, W) or None
        Shape of the images seen in `fit`; None for plain rows.

    device_ : torch.device
        Where the network runs.

    n_features_in_ : int
        Number of values of one image or row.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Column names of `X`, where it had some.

    See Also
    --------
    FaissKMeans : The k-means used here, as an estimator.

    References
    ----------
    M. Caron, P. Bojanowski, A. Joulin and M. Douze, "Deep Clustering for Unsupervised
    Learning of Visual Features", European Conference on Computer Vision, 2018.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> images = load_digits().images[:300]
    >>> model = DeepClusterEstimator(n_clusters=10, max_iter=2, random_state=0)
    >>> model.fit(images).labels_.shape
    (300,)
    >>> model.transform(images).shape
    (300, 256)
    """

    _parameter_constraints: dict = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "n_pseudo_labels": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
            tuple,
            list,
        ],
        "clusterer": [StrOptions({"kmeans", "pic"}), HasMethods(["fit_predict"])],
        "init": [StrOptions({"pixels", "features"})],
        "n_neighbors": [Interval(Integral, 1, None, closed="left"), None],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "epochs_per_iter": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "updates_per_iter": [Interval(Integral, 1, None, closed="left"), None],
        "backbone": [str, torch.nn.Module],
        "image_shape": [tuple, list, None],
        "image_size": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "on_error": [StrOptions({"raise", "skip"})],
        "cache_dir": [str, os.PathLike, None],
        "sobel": ["boolean"],
        "augment": [StrOptions({"auto", "crops"}), callable, None],
        "n_crops": [Interval(Integral, 1, None, closed="left"), tuple, list],
        "n_components": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
            None,
        ],
        "whiten": ["boolean"],
        "normalize": ["boolean"],
        "balance": [StrOptions({"uniform", "loss"}), None],
        "empty_clusters": [StrOptions({"split", "farthest", "drop", "raise"})],
        "head": [StrOptions({"reset", "centroids"})],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "head_norm": [StrOptions({"batch"}), None],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "learning_rate": [Interval(Real, 0, MAX_ABS_VALUE, closed="right")],
        "schedule": [StrOptions({"cosine", "constant"})],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "weight_decay": [Interval(Real, 0, MAX_ABS_VALUE, closed="both")],
        "device": [str, torch.device],
        "precision": [StrOptions({"auto", "float32", "bfloat16"})],
        "kmeans_backend": [StrOptions({"auto", "faiss", "torch"})],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "callbacks": [callable, list, tuple, None],
        "warm_start": ["boolean"],
        "checkpoint_dir": [str, os.PathLike, None],
        "tol": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        n_clusters=8,
        *,
        n_pseudo_labels="auto",
        init="pixels",
        clusterer="kmeans",
        n_neighbors=10,
        max_iter=6,
        epochs_per_iter="auto",
        updates_per_iter=None,
        backbone="auto",
        image_shape=None,
        image_size="auto",
        on_error="raise",
        cache_dir=None,
        sobel=False,
        augment="auto",
        n_crops=1,
        n_components="auto",
        whiten=True,
        normalize=True,
        balance="uniform",
        empty_clusters="split",
        head="reset",
        temperature=0.1,
        head_norm="batch",
        batch_size=64,
        learning_rate=0.03,
        schedule="cosine",
        momentum=0.9,
        weight_decay=1e-5,
        device="auto",
        precision="auto",
        kmeans_backend="auto",
        n_jobs=None,
        random_state=None,
        verbose=0,
        callbacks=None,
        warm_start=False,
        checkpoint_dir=None,
        tol=0.0,
    ):
        self.n_clusters = n_clusters
        self.n_pseudo_labels = n_pseudo_labels
        self.init = init
        self.clusterer = clusterer
        self.n_neighbors = n_neighbors
        self.max_iter = max_iter
        self.epochs_per_iter = epochs_per_iter
        self.updates_per_iter = updates_per_iter
        self.backbone = backbone
        self.image_shape = image_shape
        self.image_size = image_size
        self.on_error = on_error
        self.cache_dir = cache_dir
        self.sobel = sobel
        self.augment = augment
        self.n_crops = n_crops
        self.n_components = n_components
        self.whiten = whiten
        self.normalize = normalize
        self.balance = balance
        self.empty_clusters = empty_clusters
        self.head = head
        self.temperature = temperature
        self.head_norm = head_norm
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.device = device
        self.precision = precision
        self.kmeans_backend = kmeans_backend
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose
        self.callbacks = callbacks
        self.warm_start = warm_start
        self.checkpoint_dir = checkpoint_dir
        self.tol = tol

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Learn features and clusters from images.

        Parameters
        ----------
        X : array-like, tensor, folder, paths, pictures or dataset
            Images (n, H, W), (n, C, H, W) or (n, H, W, C), uint8 or other numbers; or
            rows (n, n_features), see `image_shape`. Of the second and the last
            dimension of a 4-D array the smaller one is the channels, unless
            `image_shape` tells. Memory maps, and the path of a ``.npy`` file, are read
            by the batch.

            Or pictures of any size, see `image_size`: the path of a folder, whose
            image files, also those further below, are taken in sorted order; a list,
            array or Series of paths; a list of PIL images or arrays; or a map-style
            `torch.utils.data.Dataset` of PIL images, arrays or tensors, alone or
            as (image, label), of which labels are ignored.
        y : array-like of shape (n,), default=None
            Never learned from. Where it holds class labels, their NMI with the
            pseudo-labels is logged in `history_`.

        Returns
        -------
        self : DeepClusterEstimator
            Fitted.

        Raises
        ------
        ValueError, TypeError
            If a parameter or `X` is not usable, before any training; ValueError also
            if the loss diverges. The estimator is then as it was before the call.

        Warns
        -----
        ConvergenceWarning
            After the round that shows it, if the network has learned nothing for two
            rounds or one pseudo-label takes most images; at the end, if the network is
            worse than before training, the pseudo-labels did not settle, or there are
            fewer groups than `n_clusters`. It names the parameter to change.
        """
        self._fit(X, y)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def fit_transform(self, X, y=None):
        """Fit, and return the embedding of `X`.

        Parameters
        ----------
        X : array-like, tensor, folder, paths, pictures or dataset
            As in `fit`.
        y : array-like of shape (n,), default=None
            As in `fit`.

        Returns
        -------
        embedding : ndarray of shape (n, n_features_out), float32
            The same as `fit(X).transform(X)`, without a second pass over the images.
        """
        given, fitted = self._fit(X, y)
        embedding = Sharded(fitted.features, fitted.shard).gather()
        return given.scatter_rows(embedding, np.nan)

    @_fit_context(prefer_skip_nested_validation=True)
    def recover(self, X, y=None):
        """Be fitted as after the last complete round of a fit that was stopped.

        For a fit that is to end here rather than go on: after Ctrl-C, say, or when
        training diverged. Its checkpoints stay, and `fit` would still go on from them.

        Parameters
        ----------
        X : array-like, tensor, folder, paths, pictures or dataset
            The images of that fit.
        y : None
            Ignored.

        Returns
        -------
        self : DeepClusterEstimator
            Fitted, with the rounds in `history_` that were complete.

        Raises
        ------
        ValueError
            If `checkpoint_dir` holds no complete round, or one of another fit.
        """
        self._fit(X, None, recovering=True)
        return self

    def transform(self, X):
        """Embed images.

        Parameters
        ----------
        X : array-like, tensor, folder, paths, pictures or dataset
            As in `fit`.

        Returns
        -------
        embedding : ndarray of shape (n, n_features_out), float32
            Output of the network before its head. With `head_norm="batch"` each
            feature has about zero mean and unit variance over the training images.
        """
        check_is_fitted(self)
        return self._shared(X, lambda features: features, np.nan)

    def predict(self, X):
        """Assign images to the groups found in `fit`.

        Parameters
        ----------
        X : array-like, tensor, folder, paths, pictures or dataset
            As in `fit`.

        Returns
        -------
        labels : ndarray of shape (n,), int32
            Group of each image. For the images of `fit` this equals `labels_`.
        """
        check_is_fitted(self)
        return self._shared(X, self._assign, NO_CLUSTER)

    def score(self, X, y=None):
        """Measure, without labels, how well-defined the groups are.

        Parameters
        ----------
        X : array-like or tensor
            At least two images or rows, as in `fit`; best some that `fit` has not
            seen. Of more than 20,000 a random sample is looked at.
        y : None
            Ignored.

        Returns
        -------
        score : float
            How much the group of an image tells about the group of what looks like
            it: mean of `metrics.reproduced_information` between the images and
            slightly cropped, turned and relit ones (rows with 10 % noise), and
            between the images and the nearest others by their pixels. In [0, 1), and
            0.70 at best for 10 equal groups; 0 is what chance or a single group
            gives. Larger is better, also between different `n_clusters`.
        """
        check_is_fitted(self)
        given, failures = read_input(X, self._input_spec(fitted=True))
        rows = RandomStreams(0).sample("score", given.n, SCORE_ROWS)
        source = given.source.take(rows)
        if failures:
            source = source.take(np.flatnonzero(~failures.mask(rows)))
        if len(source) < 2:
            raise ValueError("score compares images: pass at least 2.")
        pixels = project_pixels(
            source, fit_pixel_projection(source, np.arange(len(source)))
        )
        nearest = nearest_neighbors(pixels, 1)[0][:, 0]
        groups = self._assign(self._embed(source))
        viewed = self._assign(self._embed(source, mild_augment(source)))
        others = [viewed, groups[nearest]]
        return float(np.mean([reproduced_information(groups, o) for o in others]))

    def save(self, path):
        """Write the fitted estimator to one file, without pickle.

        Weights and arrays are in safetensors' format, parameters as JSON in its
        header. The file is whole or not there.

        Parameters
        ----------
        path : str or path-like
            Name of the file, which is replaced if it exists.

        Raises
        ------
        ImportError
            If safetensors is missing (``pip install skdeepcluster[save]``).

        Warns
        -----
        UserWarning
            If a parameter is a function or a random generator, which are not saved.
        """
        check_is_fitted(self)
        persistence.save(self, path)

    @classmethod
    def load(cls, path, *, device=None, backbone=None):
        """Read an estimator from a file that `save` wrote.

        Nothing in the file is executed, and no more memory is taken than its size.

        Parameters
        ----------
        path : str or path-like
            Name of the file.
        device : str, torch.device or None, default=None
            Where the network is to run. None is where it was fitted, or the CPU where
            there is no such device.
        backbone : torch.nn.Module or None, default=None
            A module built like the one that was fitted, if `backbone` was a module;
            its weights are replaced by those of the file.

        Returns
        -------
        estimator : DeepClusterEstimator
            Fitted, with the same parameters.

        Raises
        ------
        ValueError
            If the file is damaged, is no such file, or does not fit the backbone.
        ImportError
            If safetensors is missing (``pip install skdeepcluster[save]``).
        """
        return persistence.load(cls, path, device, backbone)

    def _shared(self, X, compute, blank: float) -> np.ndarray:
        """Return what is computed of features, by all processes that there are."""
        processes = get_processes()
        with processes.guard_collectives():
            given, failures = read_input(X, self._input_spec(fitted=True))
            few = len(given.source) < processes.size
            shard = (SINGLE_PROCESS if few else processes).shard(len(given.source))
            values = Sharded(
                compute(self._embed(given.source, rows=shard.rows)), shard
            ).gather()
            failures.share(processes)
            failures.warn(given.n)
            return given.scatter_rows(values, blank)

    def _input_spec(self, fitted: bool) -> InputSpec:
        """Return how X is read: in the format of the fit, or to choose the format."""
        return InputSpec(
            image_shape=self.image_shape,
            image_size=self.image_size,
            on_error=self.on_error,
            n_jobs=self.n_jobs,
            cache_dir=self.cache_dir,
            validate_rows=partial(validate_data, self, reset=not fitted),
            fitted=self._input_format if fitted else None,
        )

    def _fit(self, X, y, recovering: bool = False) -> tuple[InputData, Fitted]:
        """Fit, and return what was given and what was learned."""
        functions = check_callbacks(self.callbacks)
        context = None
        if not recovering:
            context = self._init_callback_context(max_subtasks=self.max_iter)
        before = dict(vars(self))
        processes = get_processes()
        try:
            with (
                limit_threads(self.n_jobs),
                processes.guard_collectives(),
                explain_memory_error("a fit", LESS),
            ):
                return self._fit_validated(
                    X, y, recovering, functions, context, processes
                )
        except BaseException:
            # Nothing half-fitted is left behind, whatever stopped the fit.
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _fit_validated(
        self,
        X,
        y,
        recovering: bool,
        functions: list[Callback],
        context,
        processes: Processes,
    ) -> tuple[InputData, Fitted]:
        task = {"estimator": self, "X": X, "y": y}
        if context is not None:
            context.call_on_fit_task_begin(**task)
        warm = self.warm_start and hasattr(self, "module_")
        if not warm:
            self.__dict__.pop("feature_names_in_", None)
        spec = self._input_spec(fitted=warm)
        given, failures = read_input(X, spec, for_training=True)
        source = given.source
        self.n_features_in_ = math.prod(source.shape)
        y = check_class_labels(y, given.n)
        y = None if y is None else y[given.rows]
        before: Any = self.module_ if warm else None
        history = self.history_ if warm else []
        params = self.get_params(deep=False)
        fit = Fit(params, source, given.paths, before, history, processes)
        if recovering:
            fitted = fit.recover()
        else:
            onlookers = CallbackRunner(functions, context, task)
            fitted = fit.run(y, onlookers, partial(self._as_fitted, given, failures))
        failures.share(processes)
        self._set_fitted(given, failures, fitted)
        n_groups = len(self.cluster_centers_)
        for words in final_symptoms(fitted.history, n_groups, self.n_clusters):
            warn(words, ConvergenceWarning)
        failures.warn(given.n)
        if fit.checkpoints is not None and not recovering:
            fit.checkpoints.clear()
        if context is not None:
            learned = partial(vars, self)
            context.call_on_fit_task_end(**task, reconstruction_attributes=learned)
        return given, fitted

    def _as_fitted(
        self, given: InputData, failures: ReadFailures, fitted: Fitted
    ) -> "DeepClusterEstimator":
        """Return the estimator that this one would be if it had learned `fitted`."""
        model = copy.copy(self)
        for name in [name for name in vars(model) if "_callback" in name]:
            delattr(model, name)  # of the fit that goes on
        model._set_fitted(given, failures, fitted)
        return model

    def _set_fitted(
        self, given: InputData, failures: ReadFailures, fitted: Fitted
    ) -> None:
        source = given.source
        self.module_: torch.nn.Module = fitted.network
        self.device_ = fitted.recipe.device
        self._dtype = fitted.recipe.dtype
        mean, scale = fitted.network.statistics
        self._input_format = InputFormat(source.shape, source.dtype, mean, scale)
        self.image_shape_ = self._input_format.image_shape
        self.history_: list[dict] = fitted.history
        self.n_iter_ = len(fitted.history)
        self.inertia_ = fitted.inertia
        self._groups = fitted.groups
        self._n_features_out = fitted.network.n_features
        own, processes = self._assign(fitted.features), fitted.shard.processes
        self.cluster_centers_ = mean_embeddings(fitted.features, own, processes)
        labels = Sharded(own, fitted.shard).gather()
        self.paths_ = given.paths
        self.skipped_ = failures.rows
        self.labels_ = given.scatter_rows(labels, NO_CLUSTER)

    def _embed(
        self, source: Source, augment=None, rows: slice | None = None
    ) -> np.ndarray:
        with limit_threads(self.n_jobs):
            self.module_.to(self.device_)
            how = self.device_, self._dtype, augment
            return extract_features(self.module_, source, *how, rows=rows)

    def _assign(self, features: np.ndarray) -> np.ndarray:
        with limit_threads(self.n_jobs):
            return self._groups.predict(features)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "module_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def __getstate__(self):
        state = super().__getstate__()
        if "module_" in state and self.device_.type != "cpu":
            # So that it can be loaded where there is no such device.
            state["module_"] = copy.deepcopy(self.module_).cpu()
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        if "module_" in state:
            try:
                resolve_device(self.device_)
            except ValueError:
                self.device_ = torch.device("cpu")
