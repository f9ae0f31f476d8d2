"""
Choose parameters by grid search
================================

After this example you can tune ``DeepClusterEstimator`` for a classifier that uses its
embedding, as any other transformer of scikit-learn.
"""

# %%
# Choose the number of clusters by the accuracy of a logistic regression on the
# embedding, in cross-validation. Two processes run the fits.
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from skdeepcluster import DeepClusterEstimator

images, digits = load_digits().images[:400], load_digits().target[:400]
pipeline = Pipeline(
    [
        ("embed", DeepClusterEstimator(max_iter=1, random_state=0)),
        ("classify", LogisticRegression(max_iter=1000)),
    ]
)
grid = {"embed__n_clusters": [3, 10, 20]}
search = GridSearchCV(pipeline, grid, cv=3, n_jobs=2).fit(images, digits)
print(f"best: {search.best_params_}, accuracy {search.best_score_:.3f}\n")

# %%
# ``search`` is now the pipeline with the best parameters, fitted to all images. The
# folds differ more than the numbers of clusters do, because the folds come from
# different writers. The effect of ``n_clusters`` is small because the network trains on
# more pseudo-labels than ``n_clusters`` in any case.
results = search.cv_results_
cluster_counts = grid["embed__n_clusters"]
fold_scores = [results[f"split{fold}_test_score"] for fold in range(3)]
print("n_clusters   accuracy of each fold")
for n_clusters, *scores in zip(cluster_counts, *fold_scores, strict=True):
    print(f"{n_clusters:10d}  ", *(f"{score:.3f}" for score in scores))

figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
for scores in fold_scores:
    axis.plot(cluster_counts, scores, "o", color="C0")
axis.plot(cluster_counts, results["mean_test_score"], color="C0")
axis.set_xticks(cluster_counts)
axis.set(xlabel="n_clusters", ylabel="accuracy", title="Three folds, and their mean")
axis.grid(alpha=0.3)
plt.show()
