"""
Cluster digits and look at the clusters
=======================================

After this example you can cluster an array of images, look at the clusters, compare
them with classes, and use the embedding in a classifier.
"""

# %%
# Fit 1,797 scanned digits of 8x8 pixels, without their labels. Each row of the figure
# shows the 20 images nearest to the center of one cluster.
import numpy as np
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.inspection import ContactSheetDisplay

images = load_digits().images.astype(np.uint8)
model = DeepClusterEstimator(n_clusters=10, random_state=0, verbose=1).fit(images)
display = ContactSheetDisplay.from_estimator(model, images, n_images=20)
display.figure_.savefig("digits_clusters.png", dpi=150)
print("\nwrote digits_clusters.png")

# %%
# Compare the clusters with the true digits. K-means on the pixels is the baseline.
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from skdeepcluster.metrics import clustering_accuracy

digits = load_digits().target
pixels = images.reshape(len(images), -1)
kmeans = KMeans(n_clusters=10, n_init=10, random_state=0).fit(pixels)
clusterings = {"k-means on pixels": kmeans.labels_, "DeepCluster": model.labels_}
print(f"\n{'':20s} {'NMI':>6s} {'ARI':>6s} {'accuracy':>9s}")
for name, labels in clusterings.items():
    nmi = normalized_mutual_info_score(digits, labels)
    ari = adjusted_rand_score(digits, labels)
    accuracy = clustering_accuracy(digits, labels)
    print(f"{name:20s} {nmi:6.3f} {ari:6.3f} {accuracy:9.3f}")

# %%
# Use the estimator as a transformer in a ``Pipeline``. Neither the network nor the
# classifier sees the test images.
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

train_images, test_images, train_digits, test_digits = train_test_split(
    images, digits, test_size=0.2, stratify=digits, random_state=0
)
embedding_classifier = make_pipeline(
    DeepClusterEstimator(n_clusters=10, random_state=0),
    LogisticRegression(max_iter=1000),
)
embedding_classifier.fit(train_images, train_digits)
embedding_accuracy = embedding_classifier.score(test_images, test_digits)

pixel_classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
pixel_classifier.fit(train_images.reshape(len(train_images), -1), train_digits)
pixel_accuracy = pixel_classifier.score(
    test_images.reshape(len(test_images), -1), test_digits
)
print(f"\naccuracy of a logistic regression on {len(test_images)} test images")
print(f"{'on pixels':20s} {pixel_accuracy:6.3f}")
print(f"{'on the embedding':20s} {embedding_accuracy:6.3f}")
