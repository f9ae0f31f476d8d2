"""
A classifier from a few labels
==============================

Labels are dear, images are not. A network that has seen 1,000 digits without labels
makes features of them; a logistic regression then learns the digits from a few labels
of each, on the features and, for comparison, on the pixels.
"""

# %%
# The network learns from 1,000 images, none of them labeled. The other 797 are the
# test.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepcluster import DeepClusterEstimator

digits = load_digits()
images, labels, n_train = digits.images, digits.target, 1000
model = DeepClusterEstimator(n_clusters=10, max_iter=3, random_state=0)
model.fit(images[:n_train])
kinds = {"embedding": model.transform(images), "pixels": digits.data}

# %%
# Of each digit so many labels are drawn, ten times, and the same ones for both.
counts, n_draws = [1, 2, 5, 10, 20, 50], 10
rng = np.random.default_rng(0)
accuracy = {kind: np.zeros((len(counts), n_draws)) for kind in kinds}
for i, count in enumerate(counts):
    for draw in range(n_draws):
        known = np.concatenate(
            [
                rng.choice(np.flatnonzero(labels[:n_train] == digit), count, False)
                for digit in range(10)
            ]
        )
        for kind, rows in kinds.items():
            classifier = make_pipeline(StandardScaler(), LogisticRegression())
            classifier.fit(rows[known], labels[known])
            found = classifier.score(rows[n_train:], labels[n_train:])
            accuracy[kind][i, draw] = found

print("labels of each digit   embedding       pixels")
for i, count in enumerate(counts):
    cells = (f"{a[i].mean():.3f} ± {a[i].std():.3f}" for a in accuracy.values())
    print(f"{count:20d}", *cells, sep="   ")

# %%
# What is left between the curves is what the network learned from images alone.
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
for kind, found in accuracy.items():
    mean, spread = found.mean(axis=1), found.std(axis=1)
    axis.plot(counts, mean, "o-", label=kind)
    axis.fill_between(counts, mean - spread, mean + spread, alpha=0.2)
axis.set_xscale("log")
axis.set_xticks(counts, counts)
axis.minorticks_off()
axis.set(xlabel="labels of each digit", ylabel="accuracy on the other 797 images")
axis.set_title("Logistic regression from a few labels")
axis.grid(alpha=0.3)
axis.legend(loc="lower right")
plt.show()
