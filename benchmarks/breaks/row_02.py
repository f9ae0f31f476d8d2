"""Workers have no shared memory, and no writable temporary folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SCRIPT = """
import joblib, torch
from skdeepcluster import DeepClusterEstimator
# As many workers as a larger machine starts.
joblib.cpu_count = lambda *args, **kwargs: 8
backbone = torch.nn.Sequential(torch.nn.AvgPool2d(56), torch.nn.Flatten())
model = DeepClusterEstimator(
    2, image_size=448, n_jobs=8, fine_tune=False, backbone=backbone, random_state=0,
    # torchvision, which resizes, cannot be imported without a temporary folder.
    preprocess=torch.nn.Identity(),
)
assert len(model.fit("photos").labels_) == 64
"""
MOUNTS = {
    "/dev/shm of 1 MB": "mount -t tmpfs -o size=1m tmpfs /dev/shm",
    "read-only folders": (
        "mount -t tmpfs -o ro tmpfs /dev/shm; mount -t tmpfs -o ro tmpfs /tmp; "
        "mount -t tmpfs -o ro tmpfs /var/tmp"
    ),
}


def row_02(folder):
    """Fit a folder of images in mounts that hide the shared and temporary folders."""
    # The mounts hide the temporary folder.
    work = Path.home() / f".skdeepcluster-{os.getpid()}"
    (work / "photos").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for row in range(64):
        values = rng.integers(0, 255, (448, 448, 3), dtype=np.uint8)
        Image.fromarray(values).save(work / "photos" / f"{row}.bmp")
    # Sockets in a folder with such a long name cannot be made.
    environment = os.environ | {"CODE": SCRIPT, "TMPDIR": "/tmp/" + 90 * "x"}
    try:
        for name, mount in MOUNTS.items():
            shell = f'{mount}; exec timeout 28 {sys.executable} -W ignore -c "$CODE"'
            result = subprocess.run(
                ["unshare", "-m", "sh", "-c", shell],
                cwd=work,
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            if result.returncode == 124:
                return f"{name}: hangs"
            if result.returncode:
                return f"{name}: {result.stderr.strip().splitlines()[-1]}"
    finally:
        shutil.rmtree(work)
    return "ok"
