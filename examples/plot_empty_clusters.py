"""
Empty clusters, policy by policy
================================

K-means that starts from the centers of other data leaves some without a point. The
parameter ``empty_clusters`` says what becomes of them.
"""

# %%
# Last year there were twelve kinds of points, in two rows of six. This year those on
# the right are gone, and twenty points lie anywhere among the others.
import matplotlib.pyplot as plt
import numpy as np

from skdeepcluster import FaissKMeans

rng = np.random.default_rng(0)
last_year = np.array([[x, y] for x in range(6) for y in range(2)]) * 4.0
sizes = [400, 200, 200, 100, 60, 40]
kinds = zip(last_year[:6], sizes, strict=True)
points = [rng.normal(center, 0.7, size=(size, 2)) for center, size in kinds]
points = np.concatenate([*points, rng.uniform((-3, -3), (9, 7), size=(20, 2))])

# %%
# "raise" is for those who want to know, and "drop" returns fewer clusters. "split"
# gives the empty one half of a large cluster, as the paper does; "farthest" puts its
# center on the point that is farthest from its own. Both then go on with k-means.
try:
    FaissKMeans(12, init=last_year, empty_clusters="raise").fit(points)
except ValueError as error:
    print(f"raise: ValueError: {error}\n")

fitted = {}
print("policy      clusters   smallest   largest   inertia")
for policy in ("drop", "split", "farthest"):
    kmeans = FaissKMeans(12, init=last_year, empty_clusters=policy, random_state=0)
    kmeans.fit(points)
    sizes = np.bincount(kmeans.labels_)
    print(
        f"{policy:10s} {len(sizes):9d} {sizes.min():10d} {sizes.max():9d} "
        f"{kmeans.inertia_:9.1f}"
    )
    fitted[policy] = kmeans

# %%
# "split" has cut each of the six in two. "farthest" has started six centers at
# outliers, most of which lie around the largest kind, and ended with many clusters
# there.
figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained", sharey=True)
for axis, (policy, kmeans) in zip(axes, fitted.items(), strict=True):
    axis.scatter(*points.T, c=kmeans.labels_, cmap="tab20", s=8)
    axis.plot(*kmeans.cluster_centers_.T, "k+", markersize=10, markeredgewidth=1.5)
    axis.set_title(f"{policy}: {len(kmeans.cluster_centers_)} clusters")
    axis.set(xticks=[], yticks=[], aspect="equal")
figure.suptitle("Centers (+) of k-means from the same twelve starts")
plt.show()

# %%
# ``DeepClusterEstimator`` has the same parameter for the k-means of each of its rounds,
# and ``history_`` counts the empty clusters before and after the policy, as
# ``n_empty_before`` and ``n_empty_after``.
