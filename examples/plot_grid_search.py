"""
Parameters for a classifier, by grid search
===========================================

The estimator is a transformer like any other: here the number of clusters is chosen by
how well a logistic regression on the embedding does in cross-validation, in two
processes.
"""

# %%
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
found = search.cv_results_
print("n_clusters   accuracy of each fold")
for i, params in enumerate(found["params"]):
    folds = [found[f"split{fold}_test_score"][i] for fold in range(3)]
    print(f"{params['embed__n_clusters']:10d}  ", *(f"{each:.3f}" for each in folds))
print(f"\nbest: {search.best_params_}, accuracy {search.best_score_:.3f}")

# %%
# ``search`` is now the pipeline with the best parameters, fitted to all of the images.
# But the folds, which are of different writers, differ more than the numbers do. The
# network is trained on more pseudo-labels than ``n_clusters`` in any case.
figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
for fold in range(3):
    axis.plot(
        grid["embed__n_clusters"], found[f"split{fold}_test_score"], "o", color="C0"
    )
axis.plot(grid["embed__n_clusters"], found["mean_test_score"], color="C0")
axis.set_xticks(grid["embed__n_clusters"])
axis.set(xlabel="n_clusters", ylabel="accuracy", title="Three folds, and their mean")
axis.grid(alpha=0.3)
plt.show()
