"""Hashes of the contents of images, by which caches and unfinished files know them."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TypeGuard

import numpy as np
import torch
from PIL import Image, features

from .._utils.workers import map_in_workers
from .collection import ImageCollection
from .images import DecodedSource
from .sources import DerivedSource, Source

# Number of files that a worker hashes at once.
HASHED_ROWS = 256

DIGEST_BYTES = 16

# Pillow's names of itself and of libraries whose releases may decode other pixels from
# the same file.
DECODERS = ("pil", "jpg", "libjpeg_turbo", "jpg_2000", "libtiff", "webp", "avif")


class HashingSource(DerivedSource):
    """Source that hashes its images while they are read once, in order.

    Parameters
    ----------
    source : Source
    """

    def __init__(self, source: Source):
        self.source = source
        self.failures = source.failures
        header = repr((len(source), source.shape)).encode()
        self.digest = hashlib.blake2b(header, digest_size=DIGEST_BYTES)

    def __len__(self) -> int:
        """Return the number of images or rows."""
        return len(self.source)

    def subset(self, rows: slice) -> Source:
        """Return consecutive rows as a source, which does not hash."""
        return self.source.subset(rows)

    def batch(self, rows: slice | np.ndarray) -> torch.Tensor:
        """Return the images at `rows` as a new tensor."""
        return next(self.batches([rows]))

    def batches(
        self, batch_rows: Sequence[slice | np.ndarray]
    ) -> Iterator[torch.Tensor]:
        """Return one batch after another, each as `batch` does."""
        for images in self.source.batches(batch_rows):
            self.digest.update(np.ascontiguousarray(images.numpy()).data)
            yield images


def holds_files(source: Source) -> TypeGuard[DecodedSource]:
    """Return whether the images of a source are files."""
    return isinstance(source, DecodedSource) and source.collection.paths is not None


def hash_images(source: Source) -> str:
    """Return a hash of the contents of all images and of their format.

    Files are hashed without decoding them. Their hash contains the versions of the
    libraries that decode them.
    """
    if holds_files(source):
        return _hash_files(source)
    hashing_source = HashingSource(source)
    for _ in hashing_source.batches(source.split(np.arange(len(source)))):
        pass
    return hashing_source.digest.hexdigest()


def _hash_files(source: DecodedSource) -> str:
    """Return a hash of the contents of all files, of the format and of the decoders."""
    identity = repr((source.image_format, _decoder_versions()))
    key = hashlib.blake2b(identity.encode(), digest_size=DIGEST_BYTES)
    starts = range(0, len(source), HASHED_ROWS)
    tasks = [source.rows[start : start + HASHED_ROWS] for start in starts]
    function = partial(_hash_rows, source.collection)
    for digest in map_in_workers(function, tasks, source.n_workers):
        key.update(digest)
    return key.hexdigest()


def _hash_rows(collection: ImageCollection, rows: np.ndarray) -> bytes:
    """Return the digests of the contents of some files."""
    digests = []
    for path in collection.sequence[rows]:
        try:
            with open(path, "rb") as file:
                digests.append(hashlib.file_digest(file, "blake2b").digest())
        except (OSError, ValueError) as error:
            digests.append(repr(error).encode())
    return b"".join(digests)


def _decoder_versions() -> dict[str, str | None]:
    """Return the versions of Pillow, its libraries, and plug-ins of other packages."""
    known = {*features.modules, *features.codecs, *features.features}
    versions = {name: features.version(name) for name in DECODERS if name in known}
    return versions | _plugin_versions()


def _plugin_versions() -> dict[str, str | None]:
    """Return the version of each package that has registered a format with Pillow."""
    Image.init()
    modules = {factory.__module__ for factory, _ in Image.OPEN.values()}
    packages = {module.partition(".")[0] for module in modules} - {"PIL"}
    return {
        name: getattr(sys.modules.get(name), "__version__", None)
        for name in sorted(packages)
    }
