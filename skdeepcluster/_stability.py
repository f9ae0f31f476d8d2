"""Whether clusters of features survive slight changes of the images."""

import numpy as np
import torch

from ._augment import Augment, Jitter, RandomCrop
from ._convnets import Network
from ._features import embed
from ._images import Source
from ._kmeans import assign, kmeans
from ._whitening import fit_projection
from .metrics import reproduced_information

# Changes that a good group should survive, whatever `augment` was trained on.
MILD_CROP = RandomCrop(min_area=0.8, max_angle=5, flip=False, jitter=0.1, tint=0)


def mild_view(source: Source) -> Augment:
    """Return what changes the items of a source slightly: images or rows."""
    return MILD_CROP if len(source.shape) == 3 else Jitter()


def stability(
    network: Network,
    source: Source,
    n_clusters: int,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """Return how well k-means on the features tells items again by a slight change.

    In [0, 1), see `metrics.reproduced_information`; without labels it tells a trained
    network from an untrained one. Features that are not finite have none.
    """
    seen = embed(network, source, device, dtype)
    viewed = embed(network, source, device, dtype, mild_view(source))
    if not np.isfinite(seen.sum() + viewed.sum()):
        return 0.0
    projection = fit_projection(seen, "auto", whiten=False, normalize=True)
    k = min(n_clusters, len(source))
    found = kmeans(projection(seen), k, n_init=3, empty_clusters="drop", seed=0)
    again, _ = assign(projection(viewed), found.centers)
    return reproduced_information(found.labels, again)
