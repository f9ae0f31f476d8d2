"""
Cluster a folder of images
==========================

After this example you can cluster a folder of image files, skip broken files, and
export the clusters as folders with an HTML page.
"""

# %%
# The path of a folder is all that ``fit`` needs::
#
#     model = DeepClusterEstimator(n_clusters=10, on_error="skip").fit("my_images")
#     export_clusters(model.labels_, model.paths_, "clusters")
#
# Add ``weights="DEFAULT"`` for photographs.
#
# This example writes its own folder: digits as PNG and JPEG files of many sizes in two
# subfolders, and three files that are not images.
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

folder = Path(tempfile.mkdtemp()) / "digits"
rng = np.random.default_rng(0)
for i, pixels in enumerate(load_digits().images[:600]):
    subfolder = folder / ("new" if i % 3 else "old")
    subfolder.mkdir(parents=True, exist_ok=True)
    size = int(rng.integers(12, 40))
    image = Image.fromarray((255 - 15.9 * pixels).astype(np.uint8))
    image = image.resize((size, size), Image.Resampling.BICUBIC)
    if i % 2:
        image.convert("RGB").save(subfolder / f"{i:04d}.jpg", quality=95)
    else:
        image.save(subfolder / f"{i:04d}.png")
(folder / "empty.png").write_bytes(b"")
(folder / "text.jpg").write_text("This is no image.")
jpeg_bytes = (folder / "new" / "0001.jpg").read_bytes()
(folder / "truncated.jpg").write_bytes(jpeg_bytes[: len(jpeg_bytes) // 2])

# %%
# By default the first broken file stops the fit before training, and the error names
# the file.
from skdeepcluster import DeepClusterEstimator

try:
    DeepClusterEstimator(n_clusters=10).fit(folder)
except ValueError as error:
    print(f"ValueError: {error}\n")

# %%
# ``on_error="skip"`` leaves broken files out with a warning, and lists their rows in
# ``skipped_``. ``image_shape`` makes all images gray and of one size. Without it, all
# images would become color images, since some of the files are.
model = DeepClusterEstimator(
    n_clusters=10, image_shape=(1, 16, 16), on_error="skip", max_iter=2, random_state=0
)
embeddings = model.fit_transform(folder)
print("skipped:", [Path(path).name for path in model.paths_[model.skipped_]])

# %%
# ``labels_`` is in the order of ``paths_``. Export one folder for each cluster, and
# open ``index.html`` to look at the clusters.
from skdeepcluster.io import export_clusters

output = folder.parent / "clusters"
export_clusters(model.labels_, model.paths_, output, embeddings=embeddings)
print(f"open {output / 'index.html'}")

# %%
# A figure of the clusters needs one call as well.
from skdeepcluster.inspection import ContactSheetDisplay

paths = np.delete(model.paths_, model.skipped_)
display = ContactSheetDisplay.from_estimator(model, paths, n_images=18)
display.figure_.suptitle(f"{len(paths)} files in 10 clusters")
display.figure_.savefig("folder.png", dpi=150)
plt.show()
