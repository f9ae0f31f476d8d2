"""
A folder of images, some of them broken
=======================================

What lies on a disk is rarely a clean array: sizes differ, some images are gray, some
files are damaged. The path of the folder is all that ``fit`` needs.
"""

# %%
# A folder such as one has: handwritten digits as PNG and JPEG files of many sizes in
# two sub-folders, and three files that are not images.
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.io import export_clusters

folder = Path(tempfile.mkdtemp()) / "digits"
rng = np.random.default_rng(0)
for i, pixels in enumerate(load_digits().images[:600]):
    below = folder / ("new" if i % 3 else "old")
    below.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((255 - 15.9 * pixels).astype(np.uint8))
    image = image.resize((int(rng.integers(12, 40)),) * 2, Image.Resampling.BICUBIC)
    if i % 2:
        image.convert("RGB").save(below / f"{i:04d}.jpg", quality=95)
    else:
        image.save(below / f"{i:04d}.png")
(folder / "empty.png").write_bytes(b"")
(folder / "text.jpg").write_text("no image at all")
whole = (folder / "new" / "0001.jpg").read_bytes()
(folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])

# %%
# By default the first broken file stops the fit before it begins, and is named.
try:
    DeepClusterEstimator(n_clusters=10).fit(folder)
except ValueError as error:
    print(f"ValueError: {error}\n")

# %%
# ``on_error="skip"`` leaves broken files out, and tells which ones. ``image_shape`` is
# set because color means nothing here; without it all images would become color.
model = DeepClusterEstimator(
    n_clusters=10, image_shape=(1, 16, 16), on_error="skip", max_iter=2, random_state=0
)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    embeddings = model.fit_transform(folder)
print(told[-1].message)
print("skipped:", *(Path(path).name for path in model.paths_[model.skipped_]))

# %%
# ``labels_`` follows ``paths_``. A directory with a folder for each group, and a page
# to look at, is one call away.
groups = folder.parent / "groups"
export_clusters(model.labels_, model.paths_, groups, embeddings=embeddings)
print(f"\nopen {groups / 'index.html'}")

# %%
# The first images of each group.
figure, axes = plt.subplots(10, 18, figsize=(8, 4.8), layout="constrained")
for group, row in enumerate(axes):
    files = sorted((groups / f"group_{group:03d}").iterdir())
    row[0].set_ylabel(group, rotation=0, ha="right", va="center")
    for axis, file in zip(row, files, strict=False):
        axis.imshow(Image.open(file).convert("L"), cmap="gray")
    for axis in row:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
figure.suptitle(f"{len(model.paths_)} files in 10 groups")
figure.savefig("folder.png", dpi=150)
plt.show()
