"""
Choose the number of clusters without labels
============================================

After this example you can compare fits with different ``n_clusters`` by ``score``,
which needs no labels.
"""

# %%
# Fit 1,000 digits with each number of clusters, and score the remaining 797. The score
# measures how well the cluster of an image predicts the clusters of similar images. The
# NMI with the true digits is shown for comparison only.
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score

from skdeepcluster import DeepClusterEstimator

images, digits = load_digits().images, load_digits().target
train_images, test_images, test_digits = images[:1000], images[1000:], digits[1000:]
cluster_counts = [3, 6, 10, 15, 25]
scores, agreements = [], []
print("n_clusters   score   NMI with the digits")
for n_clusters in cluster_counts:
    model = DeepClusterEstimator(n_clusters, max_iter=1, random_state=0)
    model.fit(train_images)
    score = model.score(test_images)
    labels = model.predict(test_images)
    agreement = normalized_mutual_info_score(test_digits, labels)
    print(f"{n_clusters:10d}   {score:.3f}   {agreement:.3f}")
    scores.append(score)
    agreements.append(agreement)

# %%
# The score rises as long as additional clusters are reproducible, and falls when they
# divide images that belong together. Differences of 0.02 or less mean nothing.
best = cluster_counts[scores.index(max(scores))]
print(f"\nbest n_clusters by score: {best}")
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
axis.plot(cluster_counts, scores, "o-", label="score, without labels")
axis.plot(cluster_counts, agreements, "s--", label="NMI with the digits")
axis.axvline(best, color="gray", linewidth=1, zorder=0)
axis.set(xlabel="n_clusters", title="Fits with 3 to 25 clusters")
axis.grid(alpha=0.3)
axis.legend(loc="lower right")
plt.show()
