"""
Look inside the network
=======================

After this example you can draw the first filters of a network, the images that deeper
filters respond to, and typical and doubtful images of each cluster. These are the
figures of section 4.1 of the paper.
"""

# %%
# Fit 1,000 digits without labels, and draw the weights of the first convolution. They
# show edges and spots: dark for negative weights, bright for positive weights.
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.inspection import FiltersDisplay

images = load_digits().images[:1000]
model = DeepClusterEstimator(n_clusters=10, max_iter=3, random_state=0).fit(images)
display = FiltersDisplay.from_estimator(model)
display.figure_.savefig("inside_filters.png", dpi=150)
print("wrote inside_filters.png")

# %%
# Draw one row for each filter. The first image is synthetic and maximizes the
# activation of the filter. The next nine are the digits with the largest activations,
# and a red dot marks the place. In conv2 these digits share a stroke, in conv4 a
# section of a digit.
from skdeepcluster.inspection import maximal_images, top_images

filters = [0, 1, 4, 7, 8, 9]
n_images = 9
for layer in ("conv2", "conv4"):
    synthetic = maximal_images(model, layer, filters, random_state=0)
    table = top_images(model, images, layer, filters, n_images=n_images)
    figure, axes = plt.subplots(
        len(filters), 1 + n_images, figsize=(7, 4.6), layout="constrained"
    )
    for row, number in enumerate(filters):
        axes[row, 0].imshow(synthetic[row, 0], cmap="gray")
        axes[row, 0].set_ylabel(number, rotation=0, ha="right", va="center")
        for entry in table[n_images * row : n_images * (row + 1)]:
            axis = axes[row, 1 + entry["rank"]]
            axis.imshow(images[entry["row"]], cmap="gray")
            axis.plot(entry["x"], entry["y"], "o", color="tab:red", markersize=3)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.suptitle(f"Filters of {layer}: synthetic image, and top nine digits")
    figure.savefig(f"inside_{layer}.png", dpi=150)
    largest = [f"{entry['activation']:.1f}" for entry in table[::n_images]]
    print(f"wrote inside_{layer}.png; largest activations:", *largest)

# %%
# Draw the images nearest to each center, which are typical, and the images farthest
# from it, which contain the mistakes.
from skdeepcluster.inspection import ContactSheetDisplay

figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
ContactSheetDisplay.from_estimator(model, images, order="nearest", ax=axes[0])
ContactSheetDisplay.from_estimator(model, images, order="farthest", ax=axes[1])
figure.savefig("inside_clusters.png", dpi=150)
print("wrote inside_clusters.png")
plt.show()
