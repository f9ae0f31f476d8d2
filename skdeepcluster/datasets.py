"""Loaders of data sets on this machine. They download nothing."""

import gzip
import os
from pathlib import Path

import numpy as np

__all__ = ["load_fashion_mnist"]

# Folder of Debian's package dataset-fashion-mnist. It holds the gzipped files, which
# torchvision's FashionMNIST cannot read: that expects them unzipped, in another layout.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def load_fashion_mnist(split="train", *, data_home=None):
    """Load Fashion-MNIST from its four original files.

    Parameters
    ----------
    split : {"train", "test"}, default="train"
        The 60,000 training images or the 10,000 test images.
    data_home : str or path-like, default=None
        Folder of the files, gzipped or not, or the `root` of
        `torchvision.datasets.FashionMNIST`. None searches the folder in the environment
        variable ``SKDEEPCLUSTER_DATA``, the folder of Debian's package
        ``dataset-fashion-mnist``, and ``./data``.

    Returns
    -------
    images : ndarray of shape (n, 28, 28), uint8
        Grayscale images of clothes.
    labels : ndarray of shape (n,), uint8
        Class of each image, from 0 to 9.

    Raises
    ------
    FileNotFoundError
        If a file is missing. The message says how to get it.
    ValueError
        If a file is damaged.

    See Also
    --------
    sklearn.datasets.load_digits : Smaller images, which scikit-learn includes.

    Examples
    --------
    >>> from skdeepcluster.datasets import load_fashion_mnist
    >>> images, labels = load_fashion_mnist("test")  # doctest: +SKIP
    >>> images.shape  # doctest: +SKIP
    (10000, 28, 28)
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} should be 'train' or 'test'.")
    if data_home is None:
        folders = [DEBIAN_FOLDER, Path("data")]
        if folder := os.environ.get("SKDEEPCLUSTER_DATA"):
            folders.insert(0, Path(folder))
    else:
        folders = [Path(data_home)]
    prefix = "train" if split == "train" else "t10k"
    images = _read_idx(_find(folders, f"{prefix}-images-idx3-ubyte"), 3)
    labels = _read_idx(_find(folders, f"{prefix}-labels-idx1-ubyte"), 1)
    if len(images) != len(labels):
        raise ValueError(
            f"{split} has {len(images)} images but {len(labels)} labels. Get both "
            "files from the same source."
        )
    return images, labels


def _find(folders: list[Path], name: str) -> Path:
    """Return the path of a file, which may be gzipped."""
    for folder in folders:
        # torchvision downloads the files to the subfolder.
        for subfolder in (folder, folder / "FashionMNIST" / "raw"):
            for path in (subfolder / name, subfolder / f"{name}.gz"):
                if path.is_file():
                    return path
    raise FileNotFoundError(
        f"{name} is not in {', '.join(map(str, folders))}. Install Debian's "
        "dataset-fashion-mnist, or run torchvision.datasets.FashionMNIST('data', "
        "download=True), or pass the folder as data_home."
    )


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """Return the array of a file of unsigned bytes in idx format.

    The file holds the bytes 0, 0, 8 and `ndim`, then big-endian sizes, then values.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    start = 4 + 4 * ndim
    if len(content) < start or content[:4] != bytes([0, 0, 8, ndim]):
        raise ValueError(
            f"{path} is no idx file of bytes in {ndim} dimensions. Get it again."
        )
    shape = tuple(np.frombuffer(content, ">u4", ndim, 4).astype(int))
    if len(content) != start + np.prod(shape):
        raise ValueError(
            f"{path} should hold {np.prod(shape)} values but holds "
            f"{len(content) - start}: it is cut short or damaged. Get it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
