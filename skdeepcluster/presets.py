"""Recipes of papers, as parameters of `DeepClusterEstimator`."""

__all__ = [
    "deepcluster_alexnet",
    "deepcluster_uncurated",
    "deepcluster_v2",
    "deepcluster_vgg16",
]


def deepcluster_alexnet() -> dict:
    """Return the recipe of the DeepCluster paper: AlexNet on ImageNet.

    It is meant for a million images and a GPU. For fewer images lower both
    `n_clusters` and `n_pseudo_labels`, and expect more of the defaults.

    Returns
    -------
    params : dict
        Parameters of `DeepClusterEstimator`.

    See Also
    --------
    deepcluster_vgg16 : The same with the paper's larger network.
    deepcluster_uncurated : The same for sets too large to be clustered each epoch.

    References
    ----------
    M. Caron, P. Bojanowski, A. Joulin and M. Douze, "Deep Clustering for Unsupervised
    Learning of Visual Features", European Conference on Computer Vision, 2018:
    sections 3.3 and 3.4, and 4.1 for the number of clusters.

    Examples
    --------
    >>> from skdeepcluster import DeepClusterEstimator, presets
    >>> model = DeepClusterEstimator(**presets.deepcluster_alexnet())
    >>> fewer = model.set_params(n_clusters=100, n_pseudo_labels=100)
    """
    return {
        # One k, ten times the number of classes.
        "n_clusters": 10_000,
        "n_pseudo_labels": 10_000,
        # k-means on the features alone, from the first round on.
        "init": "features",
        "n_neighbors": None,
        "n_components": 256,
        "whiten": True,
        "normalize": True,
        "empty_clusters": "split",
        # New clusters after each epoch.
        "max_iter": 500,
        "epochs_per_iter": 1,
        # The network on Sobel gradients, and a fresh linear head on its features.
        "backbone": "alexnet",
        "image_size": 224,
        "sobel": True,
        "head_norm": None,
        # What the network sees: crops, as many of each cluster.
        "augment": "crops",
        "balance": "uniform",
        # SGD.
        "batch_size": 256,
        "learning_rate": 0.05,
        "schedule": "constant",
        "momentum": 0.9,
        "weight_decay": 1e-5,
    }


def deepcluster_vgg16() -> dict:
    """Return the recipe of the DeepCluster paper with VGG-16, with batch norm.

    Returns
    -------
    params : dict
        Parameters of `DeepClusterEstimator`.

    See Also
    --------
    deepcluster_alexnet : The recipe, with AlexNet.

    References
    ----------
    M. Caron et al., ECCV 2018, section 3.4.

    Examples
    --------
    >>> from skdeepcluster import presets
    >>> presets.deepcluster_vgg16()["backbone"]
    'vgg16_bn'
    """
    return {**deepcluster_alexnet(), "backbone": "vgg16_bn"}


def deepcluster_uncurated() -> dict:
    """Return the DeepCluster paper's recipe for sets too large to cluster each epoch.

    New clusters come after a number of updates that does not depend on the number of
    images.

    Returns
    -------
    params : dict
        Parameters of `DeepClusterEstimator`.

    See Also
    --------
    deepcluster_alexnet : The recipe for sets of a million images.

    Notes
    -----
    5,000 updates of 256 images are what an epoch of ImageNet has, to which the paper's
    rounds are tuned; its uncurated set is YFCC100M.

    References
    ----------
    M. Caron et al., ECCV 2018.

    Examples
    --------
    >>> from skdeepcluster import presets
    >>> presets.deepcluster_uncurated()["updates_per_iter"]
    5000
    """
    return {**deepcluster_alexnet(), "updates_per_iter": 5_000}


def deepcluster_v2() -> dict:
    """Return the recipe of DeepCluster-v2: ResNet-50 on ImageNet.

    The classifier of a round is the clusters' own centers, and clusters are those of
    the features that training gave, so that a round is one pass over the images.

    Returns
    -------
    params : dict
        Parameters of `DeepClusterEstimator`. `n_clusters` is not among them.

    See Also
    --------
    deepcluster_alexnet : The recipe of the first paper.

    Notes
    -----
    Left out of the paper's recipe: LARS with batches of 4,096 images, in place of which
    there is SGD with batches of 256, and the distortion of colors. Small crops have
    half the side of the large ones, 112 pixels.

    References
    ----------
    M. Caron, I. Misra, J. Mairal, P. Goyal, P. Bojanowski and A. Joulin, "Unsupervised
    Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020:
    section 4 and the appendix on DeepCluster-v2.

    Examples
    --------
    >>> from skdeepcluster import DeepClusterEstimator, presets
    >>> params = presets.deepcluster_v2() | {"n_pseudo_labels": (100, 100, 100)}
    >>> model = DeepClusterEstimator(n_clusters=20, **params)
    """
    return {
        # Three clusterings of the same number of clusters.
        "n_pseudo_labels": (3_000, 3_000, 3_000),
        "init": "features",
        # Points on the unit sphere, compared with the clusters' centers.
        "head": "centroids",
        "n_components": 128,
        "temperature": 0.1,
        "empty_clusters": "split",
        # New clusters after each epoch.
        "max_iter": 400,
        "epochs_per_iter": 1,
        "backbone": "resnet50",
        "image_size": 224,
        "head_norm": None,
        # Multi-crop.
        "augment": "crops",
        "n_crops": (2, 4),
        "balance": None,
        # SGD.
        "batch_size": 256,
        "learning_rate": 0.05,
        "schedule": "cosine",
        "momentum": 0.9,
        "weight_decay": 1e-6,
    }
