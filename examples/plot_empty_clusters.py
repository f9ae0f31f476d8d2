"""
Compare policies for empty clusters
===================================

After this example you can choose ``empty_clusters``: what k-means does with a cluster
that has no points.
"""

# %%
# K-means leaves clusters empty if its initial centers come from other data. Here the
# initial centers are twelve old clusters, in two columns of six. Points of the right
# column have since disappeared, and 20 outliers have appeared.
import matplotlib.pyplot as plt
import numpy as np

from skdeepcluster import FaissKMeans

rng = np.random.default_rng(0)
old_centers = np.array([[x, y] for x in range(6) for y in range(2)]) * 4.0
sizes = [400, 200, 200, 100, 60, 40]
points = [
    rng.normal(center, 0.7, size=(size, 2))
    for center, size in zip(old_centers[:6], sizes, strict=True)
]
outliers = rng.uniform((-3, -3), (9, 7), size=(20, 2))
points = np.concatenate([*points, outliers])

# %%
# There are four policies. "raise" stops with an error, and "drop" returns fewer
# clusters. "split" gives the empty cluster one half of a large cluster, as in the
# paper. "farthest" moves its center to the point that is farthest from its own center.
# K-means then continues.
try:
    FaissKMeans(12, init=old_centers, empty_clusters="raise").fit(points)
except ValueError as error:
    print(f"raise: ValueError: {error}\n")

fitted = {}
print("policy      clusters   smallest   largest   inertia")
for policy in ("drop", "split", "farthest"):
    kmeans = FaissKMeans(
        12, init=old_centers, empty_clusters=policy, random_state=0
    ).fit(points)
    sizes = np.bincount(kmeans.labels_)
    print(
        f"{policy:10s} {len(sizes):9d} {sizes.min():10d} {sizes.max():9d} "
        f"{kmeans.inertia_:9.1f}"
    )
    fitted[policy] = kmeans

# %%
# "split" has divided each of the six remaining clusters in two. "farthest" has moved
# six centers to outliers, most of which lie around the largest cluster, so that many
# clusters end up there.
figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained", sharey=True)
for axis, (policy, kmeans) in zip(axes, fitted.items(), strict=True):
    axis.scatter(*points.T, c=kmeans.labels_, cmap="tab20", s=8)
    axis.plot(*kmeans.cluster_centers_.T, "k+", markersize=10, markeredgewidth=1.5)
    axis.set_title(f"{policy}: {len(kmeans.cluster_centers_)} clusters")
    axis.set(xticks=[], yticks=[], aspect="equal")
figure.suptitle("Centers (+) of k-means, from the same twelve initial centers")
plt.show()

# %%
# ``DeepClusterEstimator`` has the same parameter, for the k-means of each round.
# ``history_`` counts the empty clusters before and after the policy is applied, as
# ``n_empty_before`` and ``n_empty_after``.
