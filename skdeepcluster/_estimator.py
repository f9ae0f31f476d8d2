"""DeepClusterEstimator: parameters, validation, fitted attributes; no algorithm."""

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
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
from ._clustering.membership import Membership
from ._clustering.pixels import fit_pixel_projection, project_pixels
from ._editing import ClusterEditingMixin, cluster_attributes
from ._fit.callback_runner import (
    Callback,
    CallbackRunner,
    CallbackSupportMixin,
    check_callbacks,
    copy_history,
)
from ._fit.fit import Fit, FitResult
from ._fit.recipe import (
    NETWORK_PARAMETERS,
    TRAINING_PARAMETERS,
    Parameters,
    check_warm_start,
    resolve_backbone_setup,
)
from ._fit.symptoms import final_symptoms
from ._inputs.arrays import MAX_ABS_VALUE
from ._inputs.failures import ReadFailures
from ._inputs.image_format import RESIZE_MODES, ImageFormat
from ._inputs.read import (
    NO_CLUSTER,
    InputData,
    check_class_labels,
    identify,
    read_input,
)
from ._inputs.sources import Source
from ._inputs.spec import InputFormat, InputSpec
from ._training.augment import Augment, mild_augment
from ._training.features import extract_features, map_features
from ._training.network import BackboneSetup
from ._training.pretrained import MAX_GIVEN_SIDE
from ._utils.compute import Compute
from ._utils.device import resolve_device
from ._utils.distributed import SINGLE_PROCESS, Processes, Sharded, get_processes
from ._utils.memory import explain_memory_error
from ._utils.messages import warn
from ._utils.neutral_state import with_neutral_state
from ._utils.process_lock import hold_process_lock
from ._utils.random import RandomStreams
from ._utils.threads import limit_threads
from .metrics import reproduced_information

MEMORY_REMEDY = "Lower image_size or batch_size, or pass fewer images."
# Number of images that `score` looks at.
SCORE_ROWS = 20_000
MAX_EPOCHS = 1e9
# Color images with a longer shorter side, in pixels, are mostly photographs, of which
# a fresh network learns little.
MAX_FRESH_SIDE = 64


@dataclass(frozen=True)
class TrainingInput:
    """X as `fit` has read it.

    Parameters
    ----------
    data : InputData
    failures : ReadFailures
        Images that could not be read.
    feature_names : ndarray of str or None
        Names of the columns of a data frame.
    backbone_setup : BackboneSetup
    """

    data: InputData
    failures: ReadFailures
    feature_names: np.ndarray | None
    backbone_setup: BackboneSetup


class DeepClusterEstimator(
    ClusterEditingMixin,
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    ClusterMixin,
    BaseEstimator,
):
    """Cluster images, and learn features for them, without labels.

    DeepCluster (Caron et al., 2018, "the paper" below) alternates two steps: k-means
    clusters the features that a convnet extracts from all images, and the convnet is
    trained to predict these clusters. The result is a clustering of the images and of
    new images (`predict`), and an embedding for downstream estimators (`transform`).

    Parameters
    ----------
    n_clusters : int or "auto", default=8
        Number of clusters that `predict` returns. "auto" finds the number in one fit
        (see `cut_scores_`): at most one cluster per 20 images, and rarely more than 30.

    n_pseudo_labels : "auto", int or tuple of int, default="auto"
        Number of clusters that the network is trained on. These pseudo-labels are finer
        than the final clusters, and are merged into them. "auto" is 5 per cluster,
        capped at one per 20 images. With `n_pseudo_labels=n_clusters` the clusters of
        the last round are the final clusters, as in the paper. A tuple trains one
        classifier per number, as in DeepCluster-v2.

    init : {"auto", "pixels", "features"}, default="auto"
        Source of the first pseudo-labels: the principal components of the pixels, or
        the features of the network before training, as in the paper. "auto" is
        "pixels" for fresh weights and "features" for given weights.

    clusterer : {"kmeans", "pic"} or estimator, default="kmeans"
        Method that computes the pseudo-labels: k-means; power iteration clustering,
        which chooses the number of pseudo-labels itself and which the paper also tries;
        or a scikit-learn clusterer with `fit_predict`. An estimator is cloned, and its
        `n_clusters` or `n_components`, unless None, is set to `n_pseudo_labels`. Use
        `FaissKMeans` to set options of k-means, such as its `backend` or `n_init`. Its
        `empty_clusters` then replaces the parameter of the same name.

    n_neighbors : int or None, default=10
        Number of edges from each image in the nearest-neighbor graph of the features.
        K-means sees the spectral embedding of this graph in addition to the features,
        so that clusters follow the shape of the data. In sets of more than 20,000
        images a random sample forms the graph, and each remaining image is embedded at
        its nearest image in the sample. None clusters the features alone, as in the
        paper. With `head="centroids"` only the first pseudo-labels use a graph.

    max_iter : int, default=6
        Maximum number of rounds. Each round trains on the current pseudo-labels and
        then computes new ones. More rounds help large data sets.

    epochs_per_iter : "auto", int or float, default="auto"
        Number of training epochs in one round. "auto" is enough for 200 SGD steps,
        between 1 and 30. With 0.5, new pseudo-labels come after half an epoch, for very
        large data.

    backbone : str or torch.nn.Module, default="auto"
        Network that extracts the features:

        - "convnet": small, with batch norm; the image size decides its depth;
        - "mlp": two hidden layers, for rows;
        - "alexnet": with batch norm, as in the paper;
        - the name of a torchvision classifier such as "resnet18";
        - "timm:" and the name of a timm model such as
          "timm:vit_small_patch14_dinov2", or "timm:local-dir:" and a folder that timm
          has saved (``pip install 'skdeepcluster[timm]'``);
        - a module from (n, C, H, W) to (n, d), which is copied with its weights. A
          module whose normalization layers have been trained has given weights.

        The last layer of a classifier is left out. "auto" is "convnet" for images and
        "mlp" for rows; with `weights="DEFAULT"` it is "convnext_tiny".

    weights : None, str or path-like, default=None
        Weights that the backbone starts from:

        - None: fresh weights. Nothing is downloaded;
        - "DEFAULT", or a name such as "IMAGENET1K_V1": weights that torchvision or timm
          downloads into its cache, if they are not there yet;
        - a member of torchvision's enums, such as ``ResNet50_Weights.IMAGENET1K_V2``;
        - a path: a state dict in safetensors format or from `torch.save`, whose names
          and shapes must fit the backbone. A classifier's last layer may be left over.

        With given weights images are preprocessed as the weights expect (see
        `preprocess`), and the network's batch-norm statistics are never changed.

    fine_tune : "auto" or bool, default="auto"
        Whether the network is trained. False reads the network once: features of all
        images, their clusters, and nothing else. `transform` then returns the network's
        own outputs. True trains it by DeepCluster. "auto" is True for fresh weights and
        False for given weights, and for a module without parameters that require
        gradients. With rows and `backbone="auto"`, False takes the rows as the
        embedding.

    preprocess : {"auto", "imagenet"} or callable, default="auto"
        What turns X into the input of the backbone. "auto" is what given weights were
        trained with: mean, standard deviation, size and interpolation of torchvision's
        or timm's weights. For a module they are those of ImageNet, unless its first
        batch norm shows that it was trained on pixels from 0 to 1 or from -1 to 1;
        `recipe_["standardization"]` names them. Fresh weights get images standardized
        by the data. "imagenet" takes mean and standard deviation
        of ImageNet. A callable takes a float32 tensor (n, C, H, W) in the units of `X`
        and returns the input of the backbone. Gray images are repeated to three
        channels, except by a callable. White is 255 for bytes, and 1 for masks and for
        floating-point numbers up to 1. Larger numbers have white at 255 if their
        maximum lies between 128 and 255, at their maximum below that, and at the number
        that 99.9 % do not exceed above that. Black is 0, or the minimum of whole
        numbers with negative values, as in computed tomography.

    image_shape : tuple (C, H, W), default=None
        Shape that 2-D rows of `X` are reshaped to. Set it if a preceding transformer
        returns 2-D arrays. With None, 2-D rows are plain feature vectors.

    image_size : "auto" or int, default="auto"
        Side, in pixels, of the squares that images of mixed sizes are resized to.
        "auto" keeps images if all have the same size, up to 128 x 128. Otherwise it is
        the median of the shorter sides, capped at 64, in which an image counts by its
        pixels. Set it if details matter that such small images lose.

    resize : {"auto", "crop", "pad", "stretch"}, default="auto"
        How images of other shapes become squares, or get the shape `image_shape`:

        - "crop": the shorter side is scaled, and the longer side is cropped around the
          center, as in the paper. A warning comes if at least a tenth of the images
          lose more than half of their pixels;
        - "pad": the longer side is scaled, and the rest gets the median color of the
          image's border. Use it if the edges matter, as in drawings and logos;
        - "stretch": both sides are scaled, which distorts the image.

        "auto" is "pad" if crops would drop more than 40 % of the pixels, on average
        over the images of `fit`, and "crop" otherwise. `recipe_` shows the choice,
        which new images get, too. A warning comes if crops would drop more than half of
        most images.

    on_error : {"raise", "skip"}, default="raise"
        Reaction to an image that cannot be read. "raise" raises a ValueError with its
        row, path and cause, before any training unless the disk has no room for decoded
        images. "skip" warns, and gives the image label -1 and an embedding of NaN.

    cache_dir : str, path-like or None, default=None
        Folder for decoded images of files, which later fits of the same files find by a
        hash of their contents, and for features above 128 MiB. A full folder raises an
        OSError. With None, decoded images and features stay in memory up to 128 MiB
        each, and larger data goes to temporary files; without room for these, images
        are decoded in each pass. Set it to fit the same files repeatedly, or if the
        system's temporary folder is small.

    sobel : bool, default=False
        If True, the network sees fixed Sobel gradients of the gray image instead of its
        pixels, as in the paper.

    augment : {"auto", "crops"}, callable or None, default="auto"
        Random transformation of training batches:

        - "auto": for images, a crop of at least 60 % of the area, a rotation by up to
          10 degrees, and changes of contrast and brightness by up to 30 %, plus up to
          10 % per channel; for rows, nothing. Images are also mirrored at random if
          mirrored images look like images of the same k-means cluster of pixels.
          `recipe_` shows the decision, which may differ between folds of a search;
        - "crops": crops of 8 to 100 % of the area, with aspect ratios from 3:4 to 4:3
          relative to the image, mirrored at random, as in the paper;
        - a callable that takes and returns a float32 tensor (n, C, H, W) in the units
          of `X`;
        - None: no transformation.

    n_crops : int or (int, int), default=1
        Number of augmented views of each image in a batch. In a pair, the second number
        counts additional small views, at half the side length, of crops no larger than
        the smallest regular crop: the multi-crop of DeepCluster-v2, for `augment`
        "auto" and "crops".

    n_components : "auto", int or None, default="auto"
        Number of principal components of the features that are clustered. "auto"
        explains 99 % of the variance, capped at 256. An int is an upper bound. None
        keeps all components. With `head="centroids"` it is the number of outputs of the
        projection head instead: 128 unless it is an int.

    whiten : bool, default=True
        If True, principal components are scaled to unit variance. Not used with
        `head="centroids"`.

    normalize : bool, default=True
        If True, the clustered points are scaled to unit length. With `head="centroids"`
        they always are.

    balance : {"uniform", "loss"} or None, default="uniform"
        Protection against a giant cluster: "uniform" draws images uniformly over
        pseudo-labels, "loss" weights the loss by inverse cluster sizes, None does
        neither.

    empty_clusters : {"split", "farthest", "drop", "raise"}, default="split"
        Policy for an empty cluster of k-means: "split" gives it half of a large cluster
        through a perturbed copy of the center (the paper's way); "farthest" moves it to
        the point that is farthest from its center; "drop" removes it; "raise" raises a
        ValueError.

    head : {"reset", "centroids"}, default="reset"
        Classifier of the pseudo-labels: "reset" draws a new linear layer in each round,
        as in the paper. "centroids" uses the cluster centers, as in DeepCluster-v2: a
        projection head maps features to points of unit length, and spherical k-means
        clusters the points of the training passes, so that a round needs no additional
        pass over the images.

    temperature : float, default=0.1
        Softmax temperature of the cosines to the centers, with `head="centroids"`.

    head_norm : "batch" or None, default="batch"
        Normalization between features and head: a batch norm without weights, or None,
        as in the paper. With None, networks learn little on small data sets.

    batch_size : int, default=64
        Number of images in one SGD step, at least 2. Under torchrun it is the total of
        all processes, with at least 2 images for each. With 24 or more for each, they
        send one message in a step.

    learning_rate : "auto" or float, default="auto"
        Step size of SGD. Lower it if training diverges. "auto" is 0.03 for fresh
        weights and 0.002 for given weights.

    schedule : {"cosine", "constant"}, default="cosine"
        Course of the step size. "cosine" lowers the network's step size to 0 over the
        whole fit, and keeps the head's at 1.5 times `learning_rate`. "constant" keeps
        both at `learning_rate`, as in the paper.

    momentum : float, default=0.9
        Momentum of SGD.

    weight_decay : float, default=1e-5
        L2 penalty of SGD.

    device : str or torch.device, default="auto"
        Device of the network: "cpu", "cuda", "cuda:1", "xpu" or "mps". "auto" is the
        first available of CUDA, XPU, MPS and the CPU.

    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Precision of convolutions. "auto" is bfloat16 for images if the processor
        supports it, else float32.

    n_jobs : int, default=None
        Number of CPU threads, and of worker processes that decode images. -1 uses all
        processors. With None, a fit uses as many threads as its images and batches
        have work for, at most torch's number of threads: one for 1,000 images of 8x8
        pixels. One worker per torch thread decodes images where processes are forked
        (Linux), else this process. With None, this process reads a `Dataset`, too.

    random_state : int, RandomState instance or None, default=None
        Seed of all random numbers. The same int gives the same result, bit for bit, on
        the same machine with the same number of threads. No global generator is read or
        advanced.

    verbose : int, default=0
        1 prints the expected time of training after a few steps, and a line per round:
        loss, NMI with the previous pseudo-labels and with `y`, number of empty
        clusters, size of the largest cluster, images per second, and remaining time. 2
        also shows a progress bar inside rounds, if tqdm is installed (``pip install
        'skdeepcluster[progress]'``), else a line every ten seconds.

    callbacks : callable, list of callables or None, default=None
        Functions ``callback(history, fitted)`` that are called after each round.
        `history` is `history_` so far, and ``fitted()`` returns the estimator as if the
        fit had ended now. If a callback returns True, the fit ends. See
        `skdeepcluster.callbacks`. Callbacks of scikit-learn are set with
        `set_callbacks`.

    warm_start : bool, default=False
        If True, `fit` continues with the network of the previous call, for `max_iter`
        additional rounds.

    checkpoint_dir : str, path-like or None, default=None
        Folder for checkpoints, which are written after each round and every two minutes
        inside a round. After an interruption, the same call of `fit` on the same images
        resumes from the last checkpoint, and returns the same result as an
        uninterrupted fit. `recover` ends the fit at the last complete round instead.
        Fits may share the folder: each has a subfolder, which is removed at its end.

    tol : float, default=0.0
        Training ends when 1 - NMI between successive pseudo-labels is at most `tol`.

    Attributes
    ----------
    labels_ : ndarray of shape (n_samples,), int32
        Cluster of each image, equal to `predict(X)`. Skipped images have -1.

    n_clusters_ : int
        Number of clusters in `labels_`, which edits such as `cut` change.

    probabilities_ : ndarray of shape (n_samples, n_clusters), float32
        Probability of each cluster for each image, equal to `predict_proba(X)`. Skipped
        images have NaN. It is computed at each access, up to a size of 1 GiB.

    cluster_names_ : ndarray of shape (n_clusters,), str objects
        Name of each cluster: its label, or the name that `name_clusters` has given.
        ``cluster_names_[labels_]`` is the name for each image.

    leaf_labels_ : ndarray of shape (n_samples,), int32
        Leaf of the merge tree of each image. Each cluster consists of leaves. Skipped
        images have -1.

    children_ : ndarray of shape (n_leaves - 1, 2), int64
        Merge tree, as in `sklearn.cluster.AgglomerativeClustering`: merge `i` makes
        node ``n_leaves + i`` of the two nodes in row `i`.

    distances_ : ndarray of shape (n_leaves - 1,), float64
        Distance between the two nodes of each merge, in ascending order. A smaller
        distance than that of an earlier merge is raised to it.

    cut_scores_ : dict of ndarray or None
        With `n_clusters="auto"`, the curve by which the number was chosen, from which
        `pandas.DataFrame(cut_scores_)` makes a table: `n_clusters`, `score`
        (information that clusters share with clusters of similar images, as in `score`)
        and `gap` (distance by which the next merge is farther than the last one). None
        with an int.

    paths_ : ndarray of shape (n_samples,), str objects, or None
        Path of each image, if `X` is a folder or a list of paths. Paths of a folder are
        sorted. Each opens its file. In a name that is not UTF-8, the other bytes are
        surrogates, as in `os.listdir`. Tables such as `pandas.DataFrame` refuse them;
        `io.export_clusters` and `io.write_embeddings` write them as escapes.

    skipped_ : ndarray, int64
        Rows of `X` that could not be read, with `on_error="skip"`.

    cluster_centers_ : ndarray of shape (n_clusters, n_features_out), float32
        Mean embedding of each cluster.

    n_iter_ : int
        Number of rounds, 0 without training.

    recipe_ : dict
        Choices that the fit made: `n_pseudo_labels`, `epochs_per_iter`, `backbone`,
        `image_shape`, `resize`, `n_components` (of the last round), `augment`,
        `mirror` (whether images are mirrored), `fine_tune`, `init`, `learning_rate`,
        `device`, `precision`, `kmeans_backend` and `clusters_from`. The latter is
        "features", or "pixels" if clusters of the pixels change less under mild changes
        of the images than what the network has learned. Without training it is
        "neighbors", or "features" if k-means clusters of the features tell more about
        the clusters of neighbors.

    history_ : list of dict
        One entry per round, from which `pandas.DataFrame(history_)` makes a table. It
        is empty without training.

        - `round`: number of the round, from 1;
        - `n_pseudo_labels`: number of pseudo-labels that the round trained on;
        - `loss`: mean loss;
        - `gain`: stability of clusters under mild changes of the images, minus the
          stability before training;
        - `inertia`: objective of k-means over the pseudo-labels of the round, which is
          not comparable between fits with other numbers of clusters;
        - `nmi_previous`: NMI with the pseudo-labels of the previous round (Fig. 2b of
          the paper);
        - `nmi_y`: NMI with the classes, if `y` was passed;
        - `n_empty_before`, `n_empty_after`: number of empty clusters before and after
          `empty_clusters` was applied;
        - `largest_cluster`, `smallest_cluster`: sizes in images;
        - `images_per_second`: speed of training;
        - `seconds_sample`, `seconds_train`, `seconds_embed`, `seconds_cluster`,
          `seconds_stability`: wall time of each phase.

        With several `n_pseudo_labels`, NMI are means and numbers of empty clusters are
        sums.

    module_ : torch.nn.Module
        Network from images to the embedding, in evaluation mode after `fit`.

    device_ : torch.device
        Device that `device` was resolved to.

    image_shape_ : tuple (C, H, W) or None
        Shape of one image. None if `X` holds rows.

    n_features_in_ : int
        Number of values in one image or row.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, if `X` is a data frame with strings as names.

    See Also
    --------
    FaissKMeans : K-means of this package, as an estimator of its own.

    References
    ----------
    M. Caron, P. Bojanowski, A. Joulin and M. Douze, "Deep Clustering for Unsupervised
    Learning of Visual Features", European Conference on Computer Vision, 2018.

    M. Caron, I. Misra, J. Mairal, P. Goyal, P. Bojanowski and A. Joulin, "Unsupervised
    Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020, for
    DeepCluster-v2.

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

    # A type checker cannot see the attributes that `_set_fitted` sets.
    module_: Any
    device_: torch.device
    image_shape_: tuple[int, int, int] | None
    history_: list[dict]
    cluster_centers_: np.ndarray
    _dtype: torch.dtype
    _input_format: InputFormat
    _network_parameters: dict[str, Any]

    _parameter_constraints: dict = {
        "n_clusters": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "n_pseudo_labels": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
            tuple,
            list,
        ],
        "clusterer": [StrOptions({"kmeans", "pic"}), HasMethods(["fit_predict"])],
        "init": [StrOptions({"auto", "pixels", "features"})],
        "n_neighbors": [Interval(Integral, 1, None, closed="left"), None],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "epochs_per_iter": [
            StrOptions({"auto"}),
            Interval(Real, 0, MAX_EPOCHS, closed="right"),
        ],
        "backbone": [str, torch.nn.Module],
        "weights": [str, os.PathLike, Enum, None],
        "fine_tune": [StrOptions({"auto"}), "boolean"],
        "preprocess": [StrOptions({"auto", "imagenet"}), callable],
        "image_shape": [tuple, list, None],
        "image_size": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "resize": [StrOptions({"auto", *RESIZE_MODES})],
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
        "learning_rate": [
            StrOptions({"auto"}),
            Interval(Real, 0, MAX_ABS_VALUE, closed="right"),
        ],
        "schedule": [StrOptions({"cosine", "constant"})],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "weight_decay": [Interval(Real, 0, MAX_ABS_VALUE, closed="both")],
        "device": [str, torch.device],
        "precision": [StrOptions({"auto", "float32", "bfloat16"})],
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
        init="auto",
        clusterer="kmeans",
        n_neighbors=10,
        max_iter=6,
        epochs_per_iter="auto",
        backbone="auto",
        weights=None,
        fine_tune="auto",
        preprocess="auto",
        image_shape=None,
        image_size="auto",
        resize="auto",
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
        learning_rate="auto",
        schedule="cosine",
        momentum=0.9,
        weight_decay=1e-5,
        device="auto",
        precision="auto",
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
        self.backbone = backbone
        self.weights = weights
        self.fine_tune = fine_tune
        self.preprocess = preprocess
        self.image_shape = image_shape
        self.image_size = image_size
        self.resize = resize
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
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose
        self.callbacks = callbacks
        self.warm_start = warm_start
        self.checkpoint_dir = checkpoint_dir
        self.tol = tol

    @with_neutral_state
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Learn features and clusters from images.

        Parameters
        ----------
        X : array-like, tensor, folder, paths, images or dataset
            Images in one of these forms:

            - an array or tensor (n, H, W), (n, C, H, W) or (n, H, W, C), uint8 or other
              numbers. Of the second and the last dimension of a 4-D array, the smaller
              one is the channels, unless `image_shape` decides;
            - the path of a ``.npy`` file, or a memory map, which is read in batches;
            - the path of a folder: its image files, and those in its sub-folders, are
              read in sorted order;
            - a list, array or Series of paths, or a list of (path, label);
            - a list of PIL images or arrays, of any sizes (see `image_size`), or a
              column of a Hugging Face data set;
            - a map-style `torch.utils.data.Dataset` of PIL images, arrays or tensors,
              alone or as (image, label), where labels are ignored;
            - rows (n, n_features), see `image_shape`.
        y : array-like of shape (n,), default=None
            Not used for learning. If it holds class labels, their NMI with the
            pseudo-labels is recorded in `history_`. NaN, None, NA and masked entries
            are unknown classes, which are left out.

        Returns
        -------
        self : DeepClusterEstimator
            Fitted estimator.

        Raises
        ------
        ValueError, TypeError
            If a parameter or `X` is invalid, before any training. ValueError if the
            loss diverges. The estimator is then the same as before the call.

        Warns
        -----
        ConvergenceWarning
            After a round, if the network has learned nothing for two rounds or one
            pseudo-label takes most images. At the end, if the network is worse than
            before training, if the pseudo-labels did not settle, or if there are fewer
            clusters than `n_clusters`. The warning names the parameter to change.
        UserWarning
            Before training, if files or folders are left out, if several frames, a
            fourth band or mixed numbers of bits are read in a way that may not be
            meant, or if crops or margins take most of many images.
            At the end, if fresh weights were trained on color images of more than 64
            pixels a side, for which given weights would likely do better.
        """
        self._fit(X, y, "fit")
        return self

    @with_neutral_state
    @_fit_context(prefer_skip_nested_validation=True)
    def fit_transform(self, X, y=None):
        """Fit, and return the embedding of `X`.

        Parameters
        ----------
        X : array-like, tensor, folder, paths, images or dataset
            Images in any form that `fit` takes.
        y : array-like of shape (n,), default=None
            As in `fit`.

        Returns
        -------
        embedding : ndarray of shape (n, n_features_out), float32
            Equal to `fit(X).transform(X)`, without a second pass over the images.
        """
        data, result = self._fit(X, y, "fit_transform")
        features = data.scatter_rows(result.features.gather(), np.nan)
        # Mapped features are an ordinary array for the caller.
        return np.asarray(features)

    @with_neutral_state
    @_fit_context(prefer_skip_nested_validation=True)
    def recover(self, X, y=None):
        """End an interrupted fit at its last complete round.

        Use it after Ctrl-C or a diverged training, if the fit is not to be resumed. The
        checkpoints are kept, so that `fit` can still resume. A fit that was interrupted
        in its first round ends with the clusters of images as they are, without any
        training.

        Parameters
        ----------
        X : array-like, tensor, folder, paths, images or dataset
            Images of the interrupted fit.
        y : None
            Ignored.

        Returns
        -------
        self : DeepClusterEstimator
            Fitted estimator, with the complete rounds in `history_`. After an
            interrupted first round, `history_` is an empty list and `n_iter_` is 0.

        Raises
        ------
        ValueError
            If `checkpoint_dir` holds no checkpoint, or checkpoints of another fit.
        """
        self._fit(X, None, "recover")
        return self

    @with_neutral_state
    def transform(self, X):
        """Embed images.

        Parameters
        ----------
        X : array-like, tensor, folder, paths, images or dataset
            Images in any form that `fit` takes.

        Returns
        -------
        embedding : ndarray of shape (n, n_features_out), float32
            Output of the network before its head. Above 128 MiB it lies in a temporary
            file, which is gone with the array. With `head_norm="batch"` each feature
            has about zero mean and unit variance over the training images.
        """
        check_is_fitted(self)
        return self._map_features(X, "transform", None, np.nan)

    @with_neutral_state
    def predict(self, X):
        """Assign images to the clusters of `fit`.

        Parameters
        ----------
        X : array-like, tensor, folder, paths, images or dataset
            Images in any form that `fit` takes.

        Returns
        -------
        labels : ndarray of shape (n,), int32
            Cluster of each image. For the images of `fit` it equals `labels_`.
        """
        check_is_fitted(self)
        return self._map_features(X, "predict", self._assign, NO_CLUSTER)

    @with_neutral_state
    def predict_proba(self, X):
        """Compute how probable each cluster is for images.

        The probabilities are calibrated on mildly changed images of `fit`.

        Parameters
        ----------
        X : array-like, tensor, folder, paths, images or dataset
            Images in any form that `fit` takes.

        Returns
        -------
        probabilities : ndarray of shape (n, n_clusters), float32
            Probability of each cluster. The most probable cluster is that of `predict`.
            Images that cannot be read have NaN.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skdeepcluster import DeepClusterEstimator
        >>> images = load_digits().images[:100]
        >>> model = DeepClusterEstimator(n_clusters=4, max_iter=1, random_state=0)
        >>> probabilities = model.fit(images).predict_proba(images)
        >>> probabilities.shape
        (100, 4)
        >>> (probabilities.argmax(axis=1) == model.labels_).all()
        np.True_
        """
        check_is_fitted(self)
        return self._map_features(
            X, "predict_proba", self._compute_probabilities, np.nan
        )

    @with_neutral_state
    def score(self, X, y=None):
        """Measure, without labels, how well-defined the clusters are.

        Parameters
        ----------
        X : array-like, tensor, folder, paths, images or dataset
            At least two images in any form that `fit` takes, preferably images that
            `fit` has not seen. Of more than 20,000 images a random sample is used.
        y : None
            Ignored.

        Returns
        -------
        score : float
            Information that the cluster of an image gives about the clusters of similar
            images: mean of `metrics.reproduced_information` between the images and
            mildly cropped, rotated and relit copies (rows get 10 % noise), and between
            the images and their nearest neighbors in pixels. It lies in [0, 1). Ten
            equal clusters reach at most 0.70. Chance, or a single cluster, gives 0.
            Larger is better, also across different `n_clusters`.
        """
        check_is_fitted(self)
        data, failures = read_input(X, self._input_spec(fitted=True))
        rows = RandomStreams(0).sample("score", data.n, SCORE_ROWS)
        source = data.source.take(rows)
        if failures:
            source = source.take(np.flatnonzero(~failures.mask(rows)))
        if len(source) < 2 and failures:
            raise failures.to_error(skippable=False)
        if len(source) < 2:
            raise ValueError("score compares images. Pass at least 2 readable images.")
        projection = fit_pixel_projection(source, np.arange(len(source)))
        pixels = project_pixels(source, projection)
        nearest = nearest_neighbors(pixels, 1)[0][:, 0]
        labels = self._map_source(source, self._assign)
        augment = mild_augment(len(source.shape))
        changed_labels = self._map_source(source, self._assign, augment=augment)
        return float(
            np.mean(
                [
                    reproduced_information(labels, changed_labels),
                    reproduced_information(labels, labels[nearest]),
                ]
            )
        )

    @with_neutral_state
    def save(self, path):
        """Write the fitted estimator to one file, without pickle.

        Weights and arrays are in the safetensors format, parameters as JSON in its
        header. The file is written completely or not at all.

        Parameters
        ----------
        path : str or path-like
            Path of the file, which is replaced if it exists.

        Warns
        -----
        UserWarning
            If a parameter is a function or a random generator, which are not saved.
        """
        check_is_fitted(self)
        persistence.save(self, path)

    @classmethod
    @with_neutral_state
    def load(cls, path, *, device=None, backbone=None, preprocess=None):
        """Read an estimator from a file that `save` wrote.

        Nothing in the file is executed, and reading needs no more memory than the size
        of the file.

        Parameters
        ----------
        path : str or path-like
            Path of the file.
        device : str, torch.device or None, default=None
            Device of the network. None is the device of the fit, or the CPU if that
            device is not available.
        backbone : torch.nn.Module or None, default=None
            A module with the architecture of the fitted backbone, if `backbone` was a
            module. Its weights are replaced.
        preprocess : callable or None, default=None
            The function of the fit, if `preprocess` was a function.

        Returns
        -------
        estimator : DeepClusterEstimator
            Fitted estimator with the same parameters.

        Raises
        ------
        ValueError
            If the file is damaged, was not written by `save`, or does not match the
            backbone.
        """
        return persistence.load(cls, path, device, backbone, preprocess)

    def _map_features(
        self,
        X,
        call: str,
        function: Callable[[np.ndarray], np.ndarray] | None,
        fill_value: float,
    ) -> np.ndarray:
        """Apply a function to the features of all images, shared by all processes.

        Without a function, the features are returned. Images that cannot be read get
        the fill value.

        Parameters
        ----------
        X : array-like, tensor, folder, paths, images or dataset
        call : str
            Name of the public method.
        function : callable or None
        fill_value : float
        """
        processes = get_processes(call)
        with processes.guard_collectives():
            spec = self._input_spec(fitted=True)
            data, failures = processes.run_in_each(lambda: read_input(X, spec))
            if processes.size > 1:
                identity = processes.run_in_each(lambda: identify(data))
                processes.check_same(identity)
            n = len(data.source)
            # Processes without an image would have nothing to extract features from.
            shard = (SINGLE_PROCESS if n < processes.size else processes).shard(n)

            def compute() -> np.ndarray:
                if function is None:
                    return self._embed(data.source, rows=shard.rows)
                return self._map_source(data.source, function, rows=shard.rows)

            values = Sharded(processes.run_in_each(compute), shard).gather()
            failures.share(processes)
            failures.warn(data.n)
            # Mapped features are an ordinary array for the caller.
            return np.asarray(data.scatter_rows(values, fill_value))

    def _input_spec(self, fitted: bool) -> InputSpec:
        """Return how X is read: in the format of the fit, or in a format of its own."""
        image_shape = self.image_shape
        if fitted and image_shape is None:
            # Whether rows are images was decided by the fit.
            image_shape = self._network_parameters["image_shape"]
        return InputSpec(
            image_shape=image_shape,
            image_size=self.image_size,
            resize=self.resize,
            on_error=self.on_error,
            n_jobs=self.n_jobs,
            cache_dir=self.cache_dir,
            validate_rows=partial(validate_data, self, reset=not fitted),
            fitted=self._input_format if fitted else None,
        )

    def _fit(self, X, y, call: str) -> tuple[InputData, FitResult]:
        """Fit, set the fitted attributes, and return the data with the result."""
        recover = call == "recover"
        callbacks = check_callbacks(self.callbacks)
        context = None
        if not recover:
            context = self._init_callback_context(max_subtasks=self.max_iter)
        processes = get_processes(call)
        with (
            hold_process_lock(),
            limit_threads(self.n_jobs),
            processes.guard_collectives(),
            explain_memory_error("a fit", MEMORY_REMEDY),
        ):
            if recover:
                return self._recover(X, processes)
            return self._run_fit(X, y, callbacks, context, processes)

    def _run_fit(
        self, X, y, callbacks: list[Callback], context, processes: Processes
    ) -> tuple[InputData, FitResult]:
        """Run a new or interrupted fit to its end."""
        task = {"estimator": self, "X": X, "y": y}
        if context is not None:
            context.call_on_fit_task_begin(**task)
        reading = processes.run_in_each(lambda: self._read_training(X))
        y = processes.run_in_each(lambda: check_class_labels(y, reading.data.n))
        fit = self._new_fit(reading, processes)
        result = fit.run(
            y=None if y is None else y[reading.data.rows],
            callback_runner=CallbackRunner(callbacks, context, task),
            make_estimator=partial(self._make_fitted, reading),
        )
        self._complete_fit(reading, result, processes)
        if fit.checkpoints is not None:
            fit.checkpoints.clear()
        if context is not None:
            attributes = partial(vars, self)
            context.call_on_fit_task_end(**task, reconstruction_attributes=attributes)
        return reading.data, result

    def _recover(self, X, processes: Processes) -> tuple[InputData, FitResult]:
        """End an interrupted fit at its last complete round."""
        reading = processes.run_in_each(lambda: self._read_training(X))
        result = self._new_fit(reading, processes).recover()
        self._complete_fit(reading, result, processes)
        return reading.data, result

    @property
    def _is_warm(self) -> bool:
        return self.warm_start and hasattr(self, "module_")

    def _read_training(self, X) -> TrainingInput:
        """Read X for training, without changing this estimator.

        scikit-learn's validation of rows sets attributes. It sets them on a copy, so
        that an error during the fit leaves this estimator as it was.
        """
        reader = copy.copy(self)
        if not self._is_warm:
            # A data frame of an earlier fit may have had names of columns.
            reader.__dict__.pop("feature_names_in_", None)
        parameters = Parameters(**self.get_params(deep=False))
        if self._is_warm:
            previous = replace(parameters, **self._network_parameters)
            shape = parameters.image_shape
            if shape is not None and tuple(shape) == self.image_shape_:
                # The shape that the fit has read may be written down later.
                previous = replace(previous, image_shape=parameters.image_shape)
            check_warm_start(parameters, previous)
        setup = resolve_backbone_setup(parameters)
        spec = reader._input_spec(fitted=self._is_warm)
        preprocessing = setup.preprocessing
        if preprocessing is not None:
            spec = replace(
                spec,
                auto_size=preprocessing.image_size,
                max_auto_size=MAX_GIVEN_SIDE,
                shorter_side=preprocessing.shorter_side,
                interpolation=preprocessing.interpolation,
            )
        if not setup.is_given:
            spec = replace(spec, shifts_rows=True)
        elif self.fine_tune is not True:
            spec = replace(spec, reads_once=True)
        data, failures = read_input(X, spec, for_training=True)
        if data.image_format is not None and data.image_format.shorter_side is not None:
            setup = replace(setup, is_decoded=True)
        names = getattr(reader, "feature_names_in_", None)
        return TrainingInput(data, failures, names, setup)

    def _validate_params(self):
        """Check each parameter by itself.

        Python's True is also the number 1, so that scikit-learn takes it for one.
        """
        super()._validate_params()
        for name, value in self.get_params(deep=False).items():
            # Parameters of subclasses may have no constraints.
            allowed = self._parameter_constraints.get(name, ["boolean"])
            if isinstance(value, bool) and not {"boolean", "verbose"} & set(allowed):
                raise ValueError(f"{name} should be a number, not {value}.")

    def _new_fit(self, reading: TrainingInput, processes: Processes) -> Fit:
        # "auto" has become a choice when the images were read.
        image_format = reading.data.image_format
        resize = self.resize if image_format is None else image_format.resize
        return Fit(
            Parameters(**self.get_params(deep=False) | {"resize": resize}),
            reading.data.source,
            reading.data.paths,
            previous_network=self.module_ if self._is_warm else None,
            previous_history=copy_history(self.history_) if self._is_warm else [],
            processes=processes,
            backbone_setup=reading.backbone_setup,
        )

    def _complete_fit(
        self, reading: TrainingInput, result: FitResult, processes: Processes
    ) -> None:
        """Set the fitted attributes, and warn about problems of the whole fit."""
        reading.failures.share(processes)
        self._set_fitted(reading, result)
        for message in final_symptoms(
            result.history,
            n_distinct_labels=len(self.cluster_centers_),
            n_reported=result.n_reported,
            parameters=Parameters(**self.get_params(deep=False)),
        ):
            warn(message, ConvergenceWarning)
        self._suggest_weights(reading.data.image_format)
        if not result.recipe.fine_tune:
            self._warn_of_training_parameters()
        reading.failures.warn(reading.data.n)

    def _suggest_weights(self, image_format: ImageFormat | None) -> None:
        """Warn if given weights would likely do better than this fresh network."""
        is_fresh = self.weights is None and self.backbone in ("auto", "convnet")
        if not is_fresh or image_format is None:
            return
        side = image_format.original_side
        if image_format.shape[0] == 3 and side is not None and side > MAX_FRESH_SIDE:
            warn(
                f"X holds color images of about {side} pixels a side, and the network "
                "started from fresh weights. For photographs, and for drawings of "
                "things, given weights would likely do better: "
                "DeepClusterEstimator(..., weights='DEFAULT')."
            )

    def _warn_of_training_parameters(self) -> None:
        """Warn about parameters of the training that were set without a training."""
        defaults = type(self)().get_params(deep=False)
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params(deep=False).items()
            if name in TRAINING_PARAMETERS and value != defaults[name]
        ]
        if changed:
            warn(
                f"The network was not trained, so that {', '.join(changed)} had no "
                "effect. Leave out what has no effect, or set fine_tune=True."
            )

    def _make_fitted(
        self, reading: TrainingInput, result: FitResult
    ) -> "DeepClusterEstimator":
        """Return a new estimator that has learned `result`, for callbacks."""
        model = type(self)(**self.get_params(deep=False))
        model._set_fitted(reading, result)
        return model

    def _set_fitted(self, reading: TrainingInput, result: FitResult) -> None:
        """Set the fitted attributes."""
        data, features = reading.data, result.features
        cluster_model = result.cluster_model
        membership = cluster_model.membership(features.values).gather(features.shard)
        leaf_labels = data.scatter_rows(membership.leaves, NO_CLUSTER)
        if not data.readable.all():
            # Files that vanish during the fit are found after the source was made.
            membership = Membership(
                membership.leaves[data.readable],
                membership.probabilities[data.readable],
            )
        mean, scale = result.network.input_statistics
        input_format = InputFormat(
            data.source.shape,
            data.source.dtype,
            mean,
            scale,
            image_format=data.image_format,
            origin=getattr(data.source, "origin", None),
        )
        attributes = {
            "module_": result.network,
            "device_": result.recipe.compute.device,
            "image_shape_": input_format.image_shape,
            "recipe_": result.choices,
            "history_": result.history,
            "n_iter_": len(result.history),
            "paths_": data.paths,
            "skipped_": reading.failures.rows,
            "n_features_in_": math.prod(data.source.shape),
            "_membership": membership,
            "_dtype": result.recipe.compute.dtype,
            "_input_format": input_format,
            "_network_parameters": {
                name: getattr(self, name) for name in NETWORK_PARAMETERS
            },
            "_n_features_out": result.network.n_features,
        } | cluster_attributes(cluster_model, leaf_labels)
        # A data frame of an earlier fit may have had names of columns.
        self.__dict__.pop("feature_names_in_", None)
        if reading.feature_names is not None:
            attributes["feature_names_in_"] = reading.feature_names
        self.__dict__.update(attributes)

    @property
    def _compute(self) -> Compute:
        return Compute(self.device_, self._dtype)

    def _embed(
        self,
        source: Source,
        augment: Augment | None = None,
        rows: slice | None = None,
    ) -> np.ndarray:
        """Return the embedding of images, float32 (n, n_features_out)."""
        with limit_threads(self.n_jobs):
            self.module_.to(self.device_)
            return extract_features(
                self.module_, source, self._compute, augment=augment, rows=rows
            )

    def _map_source(
        self,
        source: Source,
        function: Callable[[np.ndarray], np.ndarray],
        augment: Augment | None = None,
        rows: slice | None = None,
    ) -> np.ndarray:
        """Apply a function to the features of images, a few thousand at a time."""
        with limit_threads(self.n_jobs):
            self.module_.to(self.device_)
            return map_features(
                function,
                self.module_,
                source,
                self._compute,
                augment=augment,
                rows=rows,
            )

    def _assign(self, features: np.ndarray) -> np.ndarray:
        """Return the cluster of each row of features, int32 (n,)."""
        with limit_threads(self.n_jobs):
            return self._cluster_model.predict(features)

    def _compute_probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return the probability of each cluster, float32 (n, n_clusters)."""
        with limit_threads(self.n_jobs):
            membership = self._cluster_model.membership(features)
            return membership.cluster_probabilities(self._cluster_model.clusters)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "module_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def __copy__(self):
        # The default would go through `__getstate__`, which copies networks on a GPU.
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        if "_sklearn_output_config" in self.__dict__:
            # `set_output` of the copy changes this dict in place.
            copied._sklearn_output_config = dict(self._sklearn_output_config)
        return copied

    def __getstate__(self):
        state = super().__getstate__()
        if "module_" in state and self.device_.type != "cpu":
            # The pickle may be loaded on a machine without the device of the fit.
            state["module_"] = copy.deepcopy(self.module_).cpu()
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        if "module_" in state:
            try:
                resolve_device(self.device_)
            except ValueError:
                self.device_ = torch.device("cpu")
