"""Loaders of image sets that packages ship: nothing is downloaded."""

import gzip
import os
from pathlib import Path

import numpy as np

__all__ = ["load_fashion_mnist"]

# Debian's package dataset-fashion-mnist.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def load_fashion_mnist(split="train", *, data_home=None):
    """Load Fashion-MNIST from the four files that it is distributed as.

    Parameters
    ----------
    split : {"train", "test"}, default="train"
        The 60,000 images for training or the 10,000 for testing.
    data_home : str or path-like, default=None
        Folder with the files, gzipped or not, or one that torchvision downloaded them
        to. With None, the places looked in are the environment variable
        ``SKDEEPCLUSTER_DATA``, the folder of Debian's package
        ``dataset-fashion-mnist``, and ``./data``.

    Returns
    -------
    images : ndarray of shape (n, 28, 28), uint8
        Gray images of clothes.
    labels : ndarray of shape (n,), uint8
        Class of each image, from 0 to 9.

    Raises
    ------
    FileNotFoundError
        If the files are in none of these places; it says how to get them.
    ValueError
        If a file is not what its name says.

    See Also
    --------
    sklearn.datasets.load_digits : Smaller images, that scikit-learn ships.

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
        given = os.environ.get("SKDEEPCLUSTER_DATA")
        folders = [*([Path(given)] if given else []), DEBIAN_FOLDER, Path("data")]
    else:
        folders = [Path(data_home)]
    prefix = "train" if split == "train" else "t10k"
    images = _read_idx(_find(folders, f"{prefix}-images-idx3-ubyte"), 3)
    labels = _read_idx(_find(folders, f"{prefix}-labels-idx1-ubyte"), 1)
    if len(images) != len(labels):
        raise ValueError(
            f"{split} has {len(images)} images but {len(labels)} labels: the files are "
            "not of one data set."
        )
    return images, labels


def _find(folders: list[Path], name: str) -> Path:
    for folder in folders:
        for place in (folder, folder / "FashionMNIST" / "raw"):
            for path in (place / name, place / f"{name}.gz"):
                if path.is_file():
                    return path
    looked = ", ".join(map(str, folders))
    raise FileNotFoundError(
        f"{name} is not in {looked}. Install Debian's dataset-fashion-mnist, or "
        "run torchvision.datasets.FashionMNIST('data', download=True), or pass the "
        "folder as data_home."
    )


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read unsigned bytes in idx format: 0, 0, 8, ndim, sizes (big-endian), values."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    start = 4 + 4 * ndim
    if len(content) < start or content[:4] != bytes([0, 0, 8, ndim]):
        raise ValueError(f"{path} is no idx file of bytes in {ndim} dimensions.")
    shape = tuple(np.frombuffer(content, ">u4", ndim, 4).astype(int))
    if len(content) != start + np.prod(shape):
        raise ValueError(
            f"{path} should hold {np.prod(shape)} values but holds "
            f"{len(content) - start}: it is cut short or damaged."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
