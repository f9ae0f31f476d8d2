"""
One kind is most of the images
==============================

The method draws the images of a training pass uniformly over the pseudo-labels, so that
no giant cluster swallows the others (``balance="uniform"``). Does it matter for a set
in which two thirds of the images show the same digit?
"""

# %%
# All ones among 1,300 digits, and eight of each other digit.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score

from skdeepcluster import DeepClusterEstimator

images, digits = load_digits().images, load_digits().target
rows = np.concatenate(
    [np.flatnonzero(digits[:1300] == d)[: None if d == 1 else 8] for d in range(10)]
)
train, train_digits = images[rows], digits[rows]
sizes = np.bincount(train_digits)
print(f"{len(train)} images, {sizes[1] / len(train):.0%} of them ones\n")

# %%
# With the sampler and without, three seeds each. On the features a logistic regression
# is learned from 250 other images, in which all digits are equally frequent, and judged
# on 247 more.
learn, judge = slice(1300, 1550), slice(1550, None)
seeds, accuracy = range(3), {}
print("balance   largest pseudo-label   NMI               accuracy")
for balance in ("uniform", None):
    largest, agreement, found = [], [], []
    for seed in seeds:
        model = DeepClusterEstimator(
            n_clusters=10, balance=balance, max_iter=2, random_state=seed
        )
        groups = model.fit_predict(train)
        largest.append(model.history_[-1]["largest_cluster"] / len(train))
        agreement.append(normalized_mutual_info_score(train_digits, groups))
        classifier = LogisticRegression(max_iter=1000)
        classifier.fit(model.transform(images[learn]), digits[learn])
        found.append(classifier.score(model.transform(images[judge]), digits[judge]))
    accuracy[str(balance)] = found
    cells = (f"{np.mean(v):.3f} ± {np.std(v):.3f}" for v in (agreement, found))
    print(f"{balance!s:7s} {np.mean(largest):16.0%}         ", *cells, sep="  ")

# %%
# The seeds differ by as much as the settings do. The first column tells why there may
# be little to balance: k-means cuts the ones into several pseudo-labels, and none holds
# most of the images. A larger set showed the same: ``docs/paper.rst``, "Unbalanced
# clusters".
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
left.bar(range(10), sizes)
left.set(xticks=range(10), xlabel="digit", title="Images in the set")
for i, found in enumerate(accuracy.values()):
    right.plot([i] * len(found), found, "o", alpha=0.7)
right.set_xticks(range(2), accuracy)
right.set(xlabel="balance", xlim=(-0.5, 1.5), ylim=(0.7, 0.9))
right.set_title("Accuracy, a dot for each seed")
right.grid(axis="y", alpha=0.3)
plt.show()
