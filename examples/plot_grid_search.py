"""
Choosing parameters for a classifier by grid search
===================================================

The estimator is a transformer like any other: here the number of clusters is chosen by
how well a logistic regression on the embedding does in cross-validation, in two
processes.
"""

# %%
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from skdeepcluster import DeepClusterEstimator

images, digits = load_digits().images.astype(np.uint8), load_digits().target
pipeline = Pipeline(
    [
        ("dc", DeepClusterEstimator(max_iter=2, random_state=0)),
        ("lr", LogisticRegression(max_iter=1000)),
    ]
)
grid = {"dc__n_clusters": [5, 10], "dc__balance": ["uniform", "loss"]}
search = GridSearchCV(pipeline, grid, cv=3, n_jobs=2).fit(images, digits)
print(f"best accuracy {search.best_score_:.4f} with {search.best_params_}")
