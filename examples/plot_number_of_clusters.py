"""
How many groups are there?
==========================

Nobody tells the number of groups where there are no labels. ``score`` compares fits of
different ``n_clusters`` on images that they have not seen: how much the group of an
image tells about that of images that look like it.
"""

# %%
# A short fit for each number, on 1,000 digits, scored on the other 797. The labels
# serve only to see afterwards whether the choice was a good one.
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score

from skdeepcluster import DeepClusterEstimator

images, labels = load_digits().images, load_digits().target
train, held_out = slice(0, 1000), slice(1000, None)
numbers = [3, 6, 10, 15, 25]
scores, agreement = [], []
print("n_clusters   score   NMI to the digits")
for number in numbers:
    model = DeepClusterEstimator(number, max_iter=1, random_state=0)
    model.fit(images[train])
    scores.append(model.score(images[held_out]))
    groups = model.predict(images[held_out])
    agreement.append(normalized_mutual_info_score(labels[held_out], groups))
    print(f"{number:10d}   {scores[-1]:.3f}   {agreement[-1]:.3f}")

# %%
# The score rises as long as further groups are found again, and falls where they cut
# through what belongs together. Differences of a hundredth or two mean nothing.
best = numbers[scores.index(max(scores))]
print(f"\nchosen without a label: {best}")
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
axis.plot(numbers, scores, "o-", label="score, without labels")
axis.plot(numbers, agreement, "s--", label="NMI to the digits")
axis.axvline(best, color="gray", linewidth=1, zorder=0)
axis.set(xlabel="n_clusters", title="Fits with 3 to 25 groups")
axis.grid(alpha=0.3)
axis.legend(loc="lower right")
plt.show()
