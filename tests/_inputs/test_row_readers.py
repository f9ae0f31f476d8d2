"""Images that end the worker that decodes them, and workers without shared memory."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageFile
from torch import nn

from skdeepcluster import DeepClusterEstimator

pytestmark = pytest.mark.skipif(os.name == "nt", reason="processes of POSIX")

N = 80
BROKEN_ROW = 41
RNG = np.random.default_rng(0)


class DeadlyImage(ImageFile.ImageFile):
    """Image of a plug-in that ends its process, as a crash in C code does."""

    format = "DEADLY"

    def _open(self):
        if self.fp.read(20) == b"crashes when opened ":
            os.kill(os.getpid(), signal.SIGKILL)
        self._size, self._mode = (8, 8), "L"

    def load(self):
        os._exit(1)


@pytest.fixture(params=["crashes when opened ", "crashes when decoded"])
def folder(tmp_path, request):
    """Folder of images, one of which ends the process that reads it."""
    for row in range(N):
        values = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"{row:03d}.png")
    (tmp_path / f"{BROKEN_ROW:03d}.png").write_text(request.param)
    Image.init()
    registry = dict(Image.OPEN), list(Image.ID)
    Image.register_open(
        "DEADLY", DeadlyImage, lambda prefix: prefix.startswith(b"crashes")
    )
    yield tmp_path
    Image.OPEN, Image.ID = registry


def quick(**params):
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
    options = {"backbone": module, "fine_tune": False, "n_jobs": 2, "random_state": 0}
    return DeepClusterEstimator(2, **options | params)


@pytest.mark.filterwarnings("ignore:A worker process has ended early")
def test_image_that_ends_workers_is_named(folder):
    with pytest.raises(
        ValueError, match=rf"row {BROKEN_ROW}: .*{BROKEN_ROW:03d}.png: "
    ):
        quick().fit(folder)


@pytest.mark.filterwarnings("ignore:A worker process has ended early")
def test_image_that_ends_workers_is_skipped(folder):
    with pytest.warns(UserWarning, match=r"1 of 80 .*it ends the process .*"):
        model = quick(on_error="skip").fit(folder)
    assert model.skipped_.tolist() == [BROKEN_ROW]
    assert model.labels_[BROKEN_ROW] == -1
    with pytest.warns(UserWarning, match="1 of 80"):
        np.testing.assert_array_equal(model.predict(folder), model.labels_)


SCRIPT = """
import warnings
warnings.simplefilter("ignore")
import joblib, numpy as np, torch
from PIL import Image
from skdeepcluster import DeepClusterEstimator
joblib.cpu_count = lambda *args, **kwargs: 8
model = DeepClusterEstimator(
    2, image_size=96, n_jobs=8, fine_tune=False, random_state=0,
    backbone=torch.nn.Sequential(torch.nn.AvgPool2d(12), torch.nn.Flatten()),
    # torchvision, which resizes, cannot be imported without a temporary folder.
    preprocess=torch.nn.Identity(),
)
print(len(model.fit("photos").labels_))
"""
# Mounts that hide the machine's own folders from one process.
MOUNTS = {
    "small": "mount -t tmpfs -o size=1m tmpfs /dev/shm",
    "read-only": (
        "mount -t tmpfs -o ro tmpfs /dev/shm; mount -t tmpfs -o ro tmpfs /tmp; "
        "mount -t tmpfs -o ro tmpfs /var/tmp"
    ),
}


@pytest.mark.parametrize("kind", MOUNTS)
def test_workers_need_no_shared_memory(tmp_path_factory, kind):
    """A container has 64 MB of shared memory or less, or nothing that is writable."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("mounts need root")
    # A folder that the mounts do not hide.
    folder = os.path.expanduser("~/.cache")
    os.makedirs(folder, exist_ok=True)
    work = os.path.join(folder, f"skdeepcluster-test-{os.getpid()}")
    os.makedirs(os.path.join(work, "photos"))
    try:
        values = RNG.integers(0, 256, (96, 96, 3), dtype=np.uint8)
        for row in range(96):
            path = os.path.join(work, "photos", f"{row}.bmp")
            Image.fromarray(np.roll(values, row)).save(path)
        # Sockets in a folder with such a long name cannot be made.
        environment = os.environ | {
            "CODE": SCRIPT,
            "TMPDIR": "/tmp/" + 90 * "x",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        shell = f'{MOUNTS[kind]}; exec timeout 100 {sys.executable} -c "$CODE"'
        command = ["unshare", "-m", "sh", "-c", shell]
        result = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True
        )
    finally:
        shutil.rmtree(work)
    if "unshare" in result.stderr or "mount:" in result.stderr:
        pytest.skip(f"no mounts here: {result.stderr}")
    assert result.stdout.strip() == "96", result.stderr
