"""Full disks, in each function that writes."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from small_disk import mount_small_disk

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.io import export_clusters, write_embeddings


def row_28(folder):
    """Write a cache, a model, embeddings and an export to a disk of 16 kB."""
    disk = mount_small_disk(folder / "disk", n_bytes=16_384)
    photos = folder / "photos"
    photos.mkdir()
    for row, image in enumerate(load_digits().images[:60].astype(np.uint8)):
        Image.fromarray(image * 15).resize((32, 32)).save(photos / f"{row:02d}.png")
    params = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0}
    model = DeepClusterEstimator(3, **params).fit(str(photos))
    name = "cache_dir" if "cache_dir" in model.get_params() else "cache"

    def cache():
        DeepClusterEstimator(3, **params).set_params(**{name: disk}).fit(str(photos))

    def export():
        export_clusters(model.labels_, model.paths_, disk / "x", "copy")

    writers = {
        name: cache,
        "path": lambda: model.save(disk / "model"),
        "path=": lambda: write_embeddings(model, str(photos), disk / "x.npy"),
        "directory": export,
    }
    for argument, write in writers.items():
        try:
            write()
        except OSError as error:
            text = str(error)
        else:
            return f"{argument}: no error"
        if argument not in text or str(disk) not in text or "ame a " not in text:
            return f"{argument}: {text}"
        large = [path for path in disk.rglob("*") if path.is_file()]
        large = [path for path in large if path.stat().st_size > 1000]
        if large:
            return f"{argument}: {large[0].name} stays"
    return "ok"
