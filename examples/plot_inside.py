"""
What the network has learned to see
===================================

The figures of section 4.1 of the paper, for a network that has seen 1,000 scanned
digits and no label: its first filters, images that deeper filters respond to most, and
the clusters.
"""

# %%
# Fit.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from skdeepcluster import ContactSheetDisplay, DeepClusterEstimator, FiltersDisplay
from skdeepcluster.inspection import maximal_images, top_images

images = load_digits().images[:1000]
model = DeepClusterEstimator(n_clusters=10, max_iter=3, random_state=0).fit(images)
print(f"{len(images)} images in {len(np.unique(model.labels_))} clusters")

# %%
# The weights of the first convolution: edges and spots, dark where a weight is
# negative, bright where it is positive.
display = FiltersDisplay.from_estimator(model)
display.figure_.savefig("inside_filters.png", dpi=150)

# %%
# Each row is a filter: on the left an image that was made to activate it, beside it the
# nine digits that activate it most, with a mark where. In conv2 they share a stroke, in
# conv4 a part of a digit.
chosen, wanted = [0, 1, 4, 7, 8, 9], 9
for layer in ("conv2", "conv4"):
    made = maximal_images(model, layer, chosen, random_state=0)
    table = top_images(model, images, layer, chosen, n_images=wanted)
    figure, axes = plt.subplots(
        len(chosen), 1 + wanted, figsize=(7, 4.6), layout="constrained"
    )
    for row, number in enumerate(chosen):
        axes[row, 0].imshow(made[row, 0], cmap="gray")
        axes[row, 0].set_ylabel(number, rotation=0, ha="right", va="center")
        for entry in table[wanted * row : wanted * (row + 1)]:
            axis = axes[row, 1 + entry["rank"]]
            axis.imshow(images[entry["row"]], cmap="gray")
            axis.plot(entry["x"], entry["y"], "o", color="tab:red", markersize=3)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.suptitle(f"Filters of {layer}: made for them, and found for them")
    figure.savefig(f"inside_{layer}.png", dpi=150)
    strongest = table[::wanted]
    print(
        f"{layer}: largest activations", *(f"{e['activation']:.1f}" for e in strongest)
    )

# %%
# The clusters: the images nearest to each center in the embedding, and those farthest
# from it, where mistakes are.
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for axis, which in zip(axes, ("nearest", "farthest"), strict=True):
    ContactSheetDisplay.from_estimator(model, images, which=which, ax=axis)
figure.savefig("inside_clusters.png", dpi=150)
print(
    "wrote inside_filters.png, inside_conv2.png, inside_conv4.png, inside_clusters.png"
)
plt.show()
