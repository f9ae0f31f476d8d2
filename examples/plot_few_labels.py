"""
Train a classifier from a few labels
====================================

After this example you can learn features from unlabeled images, and train a classifier
on these features with a few labels per class.
"""

# %%
# Fit the network to 1,000 digits without labels. The remaining 797 digits are the test
# set. The classifier sees either the embedding or, for comparison, the pixels.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepcluster import DeepClusterEstimator

digits = load_digits()
images, labels = digits.images, digits.target
n_train = 1000
model = DeepClusterEstimator(n_clusters=10, max_iter=3, random_state=0)
model.fit(images[:n_train])
features = {"embedding": model.transform(images), "pixels": digits.data}

# %%
# Draw the labeled images ten times for each number of labels. Both classifiers get the
# same labels.
label_counts = [1, 2, 5, 10, 20, 50]
n_repeats = 10
rng = np.random.default_rng(0)
accuracies = {name: np.zeros((len(label_counts), n_repeats)) for name in features}
for i, n_labels in enumerate(label_counts):
    for repeat in range(n_repeats):
        labeled_rows = np.concatenate(
            [
                rng.choice(
                    np.flatnonzero(labels[:n_train] == digit), n_labels, replace=False
                )
                for digit in range(10)
            ]
        )
        for name, rows in features.items():
            classifier = make_pipeline(StandardScaler(), LogisticRegression())
            classifier.fit(rows[labeled_rows], labels[labeled_rows])
            accuracy = classifier.score(rows[n_train:], labels[n_train:])
            accuracies[name][i, repeat] = accuracy

print("labels per digit     embedding       pixels")
for i, n_labels in enumerate(label_counts):
    cells = [
        f"{values[i].mean():.3f} ± {values[i].std():.3f}"
        for values in accuracies.values()
    ]
    print(f"{n_labels:16d}", *cells, sep="   ")

# %%
# The gap between the curves is the benefit of the unlabeled images.
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
for name, values in accuracies.items():
    mean, deviation = values.mean(axis=1), values.std(axis=1)
    axis.plot(label_counts, mean, "o-", label=name)
    axis.fill_between(label_counts, mean - deviation, mean + deviation, alpha=0.2)
axis.set_xscale("log")
axis.set_xticks(label_counts, label_counts)
axis.minorticks_off()
axis.set(xlabel="labels per digit", ylabel="accuracy on 797 test images")
axis.set_title("Logistic regression from a few labels")
axis.grid(alpha=0.3)
axis.legend(loc="lower right")
plt.show()
