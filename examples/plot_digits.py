"""
Digits, start to finish
=======================

Cluster 1,797 scanned digits of 8x8 pixels without their labels, look at the clusters,
and let the learned embedding carry a classifier.
"""

# %%
# The images ship with scikit-learn. A fifth of them is held out for the classifier;
# the labels serve only to judge what was found.
import time

import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepcluster import ContactSheetDisplay, DeepClusterEstimator
from skdeepcluster.metrics import clustering_accuracy

images, digits = load_digits().images.astype(np.uint8), load_digits().target
print(f"{len(images)} images of {images.shape[1]}x{images.shape[2]} pixels\n")

# %%
# Fit. ``y`` is never learned from: given, its agreement with the pseudo-labels is
# logged in ``history_``.
model = DeepClusterEstimator(n_clusters=10, random_state=0, verbose=1)
start = time.perf_counter()
model.fit(images, digits)
print(f"\nfitted in {time.perf_counter() - start:.0f} s, labels unseen")

# %%
# How well do the clusters match the digits, against k-means on the pixels?
pixels = images.reshape(len(images), -1)
kmeans = KMeans(n_clusters=10, n_init=10, random_state=0).fit(pixels)
print(f"\n{'':20s} {'NMI':>6s} {'ARI':>6s} {'accuracy':>9s}")
for name, labels in [
    ("k-means on pixels", kmeans.labels_),
    ("DeepCluster", model.labels_),
]:
    print(
        f"{name:20s} {normalized_mutual_info_score(digits, labels):6.3f} "
        f"{adjusted_rand_score(digits, labels):6.3f} "
        f"{clustering_accuracy(digits, labels):9.3f}"
    )

# %%
# The embedding in a ``Pipeline``: fitted on four fifths of the images, judged on the
# rest, which neither the network nor the classifier has seen.
train_images, test_images, train_digits, test_digits = train_test_split(
    images, digits, test_size=0.2, stratify=digits, random_state=0
)
on_embedding = make_pipeline(
    DeepClusterEstimator(n_clusters=10, random_state=0),
    LogisticRegression(max_iter=1000),
)
on_pixels = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
on_embedding.fit(train_images, train_digits)
on_pixels.fit(train_images.reshape(len(train_images), -1), train_digits)
embedding_accuracy = on_embedding.score(test_images, test_digits)
pixel_accuracy = on_pixels.score(test_images.reshape(len(test_images), -1), test_digits)
print(f"\nlogistic regression on {len(test_images)} held-out images")
print(f"{'on pixels':20s} {pixel_accuracy:6.3f}")
print(f"{'on the embedding':20s} {embedding_accuracy:6.3f}")

# %%
# One row for each cluster: the 20 images nearest to its center.
display = ContactSheetDisplay.from_estimator(model, images, n_images=20)
display.figure_.savefig("digits_clusters.png", dpi=150)
print("\nwrote digits_clusters.png")
