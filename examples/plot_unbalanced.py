"""
Cluster images of which most belong to one class
================================================

After this example you can decide whether ``balance`` matters for unbalanced images. By
default, training draws images uniformly over the pseudo-labels
(``balance="uniform"``), so that no giant cluster dominates the loss.
"""

# %%
# Select all ones among 1,300 digits, and eight images of each other digit. Two thirds
# of the images are then ones.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score

from skdeepcluster import DeepClusterEstimator

images, digits = load_digits().images, load_digits().target
rows_of_digits = [np.flatnonzero(digits[:1300] == digit) for digit in range(10)]
rows = np.concatenate(
    [
        digit_rows if digit == 1 else digit_rows[:8]
        for digit, digit_rows in enumerate(rows_of_digits)
    ]
)
train_images, train_digits = images[rows], digits[rows]
sizes = np.bincount(train_digits)
print(f"{len(train_images)} images, {sizes[1] / len(train_images):.0%} of them ones\n")

# %%
# Fit with and without the uniform sampler, three seeds each. A logistic regression on
# the embedding learns from 250 labeled images, with all digits equally frequent, and is
# scored on 247 test images.
labeled, test = slice(1300, 1550), slice(1550, None)
accuracies = {}
print("balance   largest pseudo-label   NMI               accuracy")
for balance in ("uniform", None):
    largest_shares, agreements, scores = [], [], []
    for seed in range(3):
        model = DeepClusterEstimator(
            n_clusters=10, balance=balance, max_iter=2, random_state=seed
        )
        labels = model.fit_predict(train_images)
        largest_cluster = model.history_[-1]["largest_cluster"]
        largest_shares.append(largest_cluster / len(train_images))
        agreements.append(normalized_mutual_info_score(train_digits, labels))
        classifier = LogisticRegression(max_iter=1000)
        classifier.fit(model.transform(images[labeled]), digits[labeled])
        scores.append(classifier.score(model.transform(images[test]), digits[test]))
    accuracies[str(balance)] = scores
    print(
        f"{balance!s:7s} {np.mean(largest_shares):16.0%}           "
        f"{np.mean(agreements):.3f} ± {np.std(agreements):.3f}  "
        f"{np.mean(scores):.3f} ± {np.std(scores):.3f}"
    )

# %%
# The seeds differ as much as the settings. The first column explains it: k-means
# divides the ones into several pseudo-labels, and no pseudo-label holds most of the
# images. A larger set shows the same in ``docs/paper.rst``, "Unbalanced clusters".
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
left.bar(range(10), sizes)
left.set(xticks=range(10), xlabel="digit", title="Images of each digit")
for position, scores in enumerate(accuracies.values()):
    right.plot([position] * len(scores), scores, "o", alpha=0.7)
right.set_xticks(range(2), accuracies)
right.set(xlabel="balance", xlim=(-0.5, 1.5), ylim=(0.7, 0.9))
right.set_title("Accuracy of each seed")
right.grid(axis="y", alpha=0.3)
plt.show()
