"""Recipes of published papers, as parameters of `DeepClusterEstimator`."""

__all__ = [
    "deepcluster_alexnet",
    "deepcluster_uncurated",
    "deepcluster_v2",
    "deepcluster_vgg16",
]

# SGD steps of a round of `deepcluster_uncurated`.
STEPS_PER_ROUND = 5_000


def deepcluster_alexnet() -> dict:
    """Return the recipe of the DeepCluster paper: AlexNet on ImageNet.

    The recipe is meant for a million images and a GPU, and trains from fresh weights.
    For fewer images, lower both `n_clusters` and `n_pseudo_labels`. The defaults will
    probably give better clusters of fewer images, with `weights="DEFAULT"` if they are
    photographs.

    Returns
    -------
    params : dict
        Parameters of `DeepClusterEstimator`.

    See Also
    --------
    deepcluster_vgg16 : The same recipe with the paper's larger network.
    deepcluster_uncurated : The same recipe for more images than ImageNet has.

    References
    ----------
    M. Caron, P. Bojanowski, A. Joulin and M. Douze, "Deep Clustering for Unsupervised
    Learning of Visual Features", European Conference on Computer Vision, 2018:
    sections 3.3 and 3.4, and 4.1 for the number of clusters.

    Examples
    --------
    >>> from skdeepcluster import DeepClusterEstimator, presets
    >>> model = DeepClusterEstimator(**presets.deepcluster_alexnet())
    >>> small_model = model.set_params(n_clusters=100, n_pseudo_labels=100)
    """
    return {
        # Ten times the number of classes (section 4.1).
        "n_clusters": 10_000,
        "n_pseudo_labels": 10_000,
        # K-means on the features of the network, from the first round on.
        "init": "features",
        "n_neighbors": None,
        "n_components": 256,
        "whiten": True,
        "normalize": True,
        "empty_clusters": "split",
        # The images are clustered again after each epoch.
        "max_iter": 500,
        "epochs_per_iter": 1,
        # A Sobel filter replaces the colors, and each round starts with a new head.
        "backbone": "alexnet",
        "image_size": 224,
        "resize": "crop",
        "sobel": True,
        "head_norm": None,
        # Each cluster contributes the same number of images (section 3.3).
        "augment": "crops",
        "balance": "uniform",
        # SGD with a constant learning rate (section 3.4).
        "batch_size": 256,
        "learning_rate": 0.05,
        "schedule": "constant",
        "momentum": 0.9,
        "weight_decay": 1e-5,
    }


def deepcluster_vgg16() -> dict:
    """Return the recipe of the DeepCluster paper: VGG-16 with batch normalization.

    Returns
    -------
    params : dict
        Parameters of `DeepClusterEstimator`.

    See Also
    --------
    deepcluster_alexnet : The same recipe with AlexNet.

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


def deepcluster_uncurated(n_images) -> dict:
    """Return the recipe of the DeepCluster paper for more images than ImageNet has.

    The images are clustered again after 5,000 SGD steps, not after an epoch: an epoch
    of a hundred million images would train too long on the same pseudo-labels.

    Parameters
    ----------
    n_images : int
        Number of images of the fit.

    Returns
    -------
    params : dict
        Parameters of `DeepClusterEstimator`. `epochs_per_iter` is the fraction of an
        epoch that has 5,000 steps.

    See Also
    --------
    deepcluster_alexnet : The recipe for a million images.

    Notes
    -----
    5,000 steps of 256 images are an epoch of ImageNet, for which the paper's rounds are
    tuned. The uncurated images of the paper are YFCC100M.

    References
    ----------
    M. Caron et al., ECCV 2018.

    Examples
    --------
    >>> from skdeepcluster import presets
    >>> presets.deepcluster_uncurated(n_images=100_000_000)["epochs_per_iter"]
    0.0128
    """
    params = deepcluster_alexnet()
    params["epochs_per_iter"] = STEPS_PER_ROUND * params["batch_size"] / n_images
    return params


def deepcluster_v2() -> dict:
    """Return the recipe of DeepCluster-v2: ResNet-50 on ImageNet.

    The head's weights are the cluster centers, and k-means clusters the features that
    training has computed, so a round is one pass over the images.

    Returns
    -------
    params : dict
        Parameters of `DeepClusterEstimator`, except for `n_clusters`.

    See Also
    --------
    deepcluster_alexnet : The recipe of the first paper.

    Notes
    -----
    The recipe differs from the paper in three points. SGD with batches of 256 images
    replaces LARS with batches of 4,096. Colors are not distorted. Small crops have 112
    pixels a side, half of the large crops.

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
        # Three classifiers, each with a clustering of its own.
        "n_pseudo_labels": (3_000, 3_000, 3_000),
        "init": "features",
        # Logits are cosines between an embedding and the cluster centers.
        "head": "centroids",
        "n_components": 128,
        "temperature": 0.1,
        "empty_clusters": "split",
        # The images are clustered again after each epoch.
        "max_iter": 400,
        "epochs_per_iter": 1,
        "backbone": "resnet50",
        "image_size": 224,
        "resize": "crop",
        "head_norm": None,
        # Multi-crop: two large and four small crops of each image.
        "augment": "crops",
        "n_crops": (2, 4),
        "balance": None,
        # SGD whose learning rate falls to zero.
        "batch_size": 256,
        "learning_rate": 0.05,
        "schedule": "cosine",
        "momentum": 0.9,
        "weight_decay": 1e-6,
    }
