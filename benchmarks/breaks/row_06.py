"""A folder holds a pipe, a device and a subfolder that cannot be listed."""

import os
import warnings

from PIL import Image
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator


def row_06(folder):
    """Fit a folder with a named pipe and a link to a device."""
    for row, values in enumerate(load_digits().images[:80]):
        Image.fromarray((values * 15).astype("uint8")).save(folder / f"{row:02d}.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    warnings.simplefilter("ignore")
    model = DeepClusterEstimator(
        3, max_iter=1, epochs_per_iter=1, on_error="skip", random_state=0
    )
    if len(model.fit(folder).labels_) < 80:
        return "images are left out"
    try:
        model.set_params(on_error="raise").fit([*map(str, folder.iterdir())])
    except ValueError as error:
        return "ok" if "regular file" in str(error) else str(error)
    return "a pipe is no error"
