"""Files of embeddings, written in chunks and resumed after an interruption."""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.utils._param_validation import validate_params
from sklearn.utils.validation import check_is_fitted

from .._estimator import DeepClusterEstimator
from .._inputs.content import HashingSource, hash_images, holds_files
from .._inputs.failures import ReadFailures
from .._inputs.read import NO_CLUSTER, InputData, read_input
from .._utils.distributed import get_processes
from .._utils.files import (
    MAX_NAME_BYTES,
    TEMPORARY_MARK,
    check_target,
    escape_path,
    explain_write_errors,
    shorten_name,
    write_atomically,
)
from .._utils.hashing import hash_content
from .._utils.neutral_state import with_neutral_state
from .._utils.optional import import_optional
from .._utils.tensors import read_tensors, write_tensors

# Number of images that are embedded and written at once. It bounds the memory.
CHUNK_ROWS = 8192
# Number of images that identify X when an interrupted call is resumed.
COMPARED_IMAGES = 64
# File of the values by which an interrupted call is known again, and the name of the
# entry that holds them. It marks the folder of chunks.
DESCRIPTION_NAME = ".skdeepcluster-embeddings.json"
KEY = "skdeepcluster.io.write_embeddings"
# Ending of the names of chunks. No other file in the folder is read or removed.
CHUNK_ENDING = ".skdeepcluster-chunk"
# Size in bytes of the header of a .npy file.
NPY_HEADER_BYTES = 128


@with_neutral_state
@validate_params(
    {"estimator": [DeepClusterEstimator], "path": [str, os.PathLike]},
    prefer_skip_nested_validation=True,
)
def write_embeddings(estimator, X, path):
    r"""Write the embeddings of images to a file, a few thousand images at a time.

    If a call is interrupted, the same call resumes it: finished chunks lie in a folder
    beside the file, ``<path>.partial``. A chunk whose images have changed is computed
    again, and images that could not be read are tried again. The file appears under its
    name once it is complete. Several processes of torchrun write it together.

    Parameters
    ----------
    estimator : DeepClusterEstimator
        Fitted estimator.
    X : array-like, tensor, folder, paths, PIL images or dataset
        Images in any form that `estimator.fit` takes.
    path : str or path-like
        Path of the file, which must not exist. ``.npy`` is an array of shape (n,
        n_features_out), float32, in the order of `X`; read it with ``numpy.load(path,
        mmap_mode="r")``. ``.parquet`` is a table with the columns ``path`` (if the
        images are files), ``cluster`` (int32), ``cluster_name`` (if a cluster is named)
        and ``embedding`` (list of float32). It needs pyarrow (``pip install
        'skdeepcluster[parquet]'``). Text of a table is UTF-8: other bytes of a name
        become ``\xe9``, and rows are in the order of `X`.

    Raises
    ------
    ValueError
        If `path` has another suffix, if an interrupted call for `path` had other images
        or another estimator, or if `X` is invalid.
    FileExistsError
        If `path` exists.
    OSError
        If the disk is full or broken, or the folder of `path` cannot be written to. The
        finished chunks are kept.
    ImportError
        If pyarrow is missing.

    See Also
    --------
    DeepClusterEstimator.transform : Return the embeddings as one array in memory.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.io import write_embeddings
    >>> images = load_digits().images[:300]
    >>> model = DeepClusterEstimator(n_clusters=10, max_iter=1, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_embeddings(model.fit(images), images, Path(folder) / "digits.npy")
    ...     np.load(Path(folder) / "digits.npy").shape
    (300, 256)
    """
    path = Path(os.fsdecode(path))
    writers = {".npy": _write_npy, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise ValueError(f"path={os.fspath(path)!r} should end in .npy or .parquet.")
    if path.suffix == ".parquet":
        _import_pyarrow()
    _check_absent(path)
    check_is_fitted(estimator)
    processes = get_processes("write_embeddings")
    with processes.guard_collectives():
        data, failures = read_input(X, estimator._input_spec(fitted=True))
        chunks = _Chunks(path, estimator, data, failures)
        description = _describe(estimator, data)
        processes.check_same(description)
        processes.run_on_first(lambda: chunks.open_folder(description))
        starts = chunks.starts[processes.rank :: processes.size]
        missing = [start for start in starts if not chunks.is_complete(start)]
        # Each process gets the same share of the missing chunks.
        gathered = sorted(itertools.chain(*processes.all_gather_object(missing)))
        for start in gathered[processes.rank :: processes.size]:
            chunks.write(start)
        failures.share(processes)

        def complete() -> None:
            # Another program may have written the file since the call started.
            _check_absent(path)
            writers[path.suffix](path, chunks)
            chunks.remove()

        processes.run_on_first(complete)
        failures.warn(data.n)


def _check_absent(path: Path) -> None:
    """Raise an error if a file exists, or cannot exist."""
    with explain_write_errors(f"path={os.fspath(path)!r}", path.parent):
        if os.path.lexists(path):
            raise FileExistsError(
                f"{escape_path(path)} exists. Remove it, or choose another name."
            )
        check_target(path)


def _describe(estimator: DeepClusterEstimator, data: InputData) -> dict:
    """Return values that are equal if and only if a call resumes the same work."""
    images = None
    if data.paths is None:
        # The remaining images are compared chunk by chunk.
        rows = np.linspace(0, data.n - 1, COMPARED_IMAGES).astype(int)
        images = data.source.take(rows).values
    return {
        "version": 2,
        "rows": data.n,
        "chunk_rows": CHUNK_ROWS,
        "estimator": hash_content(
            estimator.module_.state_dict(),
            estimator._cluster_model,
            estimator.cluster_names_,
            str(estimator._compute.dtype),
        ),
        "paths": hash_content(data.paths),
        "images": hash_content(images),
    }


@dataclass(frozen=True)
class _Chunks:
    """Embeddings and clusters of a few thousand images each, in files of a folder.

    Parameters
    ----------
    path : Path
        Path of the file that the chunks will make.
    estimator : DeepClusterEstimator
    data : InputData
        All images.
    failures : ReadFailures
        Record of the rows that cannot be read.
    """

    path: Path
    estimator: DeepClusterEstimator
    data: InputData
    failures: ReadFailures

    @property
    def folder(self) -> Path:
        """Folder of the chunks, beside the file."""
        return self.path.with_name(_partial_name(self.path.name))

    @property
    def argument(self) -> str:
        """Argument of the user that decides about the folder, for error messages."""
        return f"path={os.fspath(self.path)!r}"

    @property
    def starts(self) -> range:
        """First row of each chunk."""
        return range(0, self.data.n, CHUNK_ROWS)

    def open_folder(self, description: dict) -> None:
        """Make the folder, or check that the same call has made it.

        Raises
        ------
        ValueError
            If the folder belongs to a call with other data.
        OSError
            If the folder cannot be made or read.
        """
        path = self.folder / DESCRIPTION_NAME
        with explain_write_errors(self.argument, self.path.parent):
            try:
                self.folder.mkdir(exist_ok=True)
            except FileExistsError as error:
                raise FileExistsError(
                    f"{escape_path(self.folder)} is a file, but unfinished embeddings "
                    "need a folder of this name. Rename it, or choose another path."
                ) from error
        try:
            content = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            # A new folder, or one of the user, whose files stay in it.
            with write_atomically(path, self.argument) as file:
                file.write(json.dumps({KEY: description}).encode())
            return
        except OSError as error:
            raise OSError(
                error.errno,
                f"{escape_path(path)} cannot be read: {error.strerror}. The finished "
                "chunks beside it are kept. Try again, or choose another path",
            ) from error
        existing = _parse_description(content)
        if not existing:
            raise ValueError(
                f"{escape_path(path)} is damaged, or was not written by this function. "
                f"Remove it to go on with {escape_path(self.folder)}, or choose "
                "another path."
            )
        differing = [
            name for name, value in description.items() if existing.get(name) != value
        ]
        if differing:
            raise ValueError(
                f"{escape_path(self.folder)} holds an unfinished file of other data: "
                f"{', '.join(differing)} differ. Remove it, or choose another path."
            )

    def is_complete(self, start: int) -> bool:
        """Return whether a chunk has been computed from the images as they are now."""
        path = self._chunk_path(start)
        if not path.exists():
            return False
        try:
            metadata, _ = read_tensors(path)
        except MemoryError:
            raise
        # Reading a damaged file may raise anything.
        except Exception:
            return False
        chunk = self._select(start)
        if metadata["images"] != hash_images(chunk.source):
            return False
        return self._still_fail(chunk, np.array(metadata["unreadable"], dtype=np.int64))

    def _still_fail(self, chunk: InputData, rows: np.ndarray) -> bool:
        """Return whether rows that were unreadable before cannot be read now either."""
        source = chunk.source
        for _ in source.batches(source.split(rows - chunk.start)):
            pass
        return bool(self.failures.mask(rows).all())

    def write(self, start: int) -> None:
        """Compute and write a chunk."""
        chunk = self._select(start)
        if holds_files(chunk.source):
            images_hash = hash_images(chunk.source)
            features = self.estimator._embed(chunk.source)
        else:
            # Decoding images twice would take too long.
            source = HashingSource(chunk.source)
            features = self.estimator._embed(source)
            images_hash = source.digest.hexdigest()
        labels = chunk.scatter_rows(self.estimator._assign(features), NO_CLUSTER)
        embeddings = chunk.scatter_rows(features, np.nan)
        metadata = {
            "images": images_hash,
            "unreadable": chunk.rows[~chunk.readable].tolist(),
        }
        tensors = {
            "embeddings": torch.from_numpy(np.asarray(embeddings)),
            "labels": torch.from_numpy(labels),
        }
        write_tensors(self._chunk_path(start), metadata, tensors, self.argument)

    def read(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the embeddings and the clusters of a chunk."""
        path = self._chunk_path(start)
        try:
            _, tensors = read_tensors(path)
        except MemoryError:
            raise
        # Reading a damaged file may raise anything.
        except Exception as error:
            raise OSError(
                f"{escape_path(path)} cannot be read: {error}. Call write_embeddings "
                "again, which computes this chunk again."
            ) from error
        return tensors["embeddings"].numpy(), tensors["labels"].numpy()

    def remove(self) -> None:
        """Remove the files that this class has written, and the folder if it is empty.

        A file that cannot be removed is no reason to fail after the work is done.
        """
        paths = [self._chunk_path(start) for start in self.starts]
        paths.append(self.folder / DESCRIPTION_NAME)
        # A killed process may have left temporary files.
        paths += self.folder.glob(f".*{TEMPORARY_MARK}")
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _select(self, start: int) -> InputData:
        return self.data.part(start, min(start + CHUNK_ROWS, self.data.n))

    def _chunk_path(self, start: int) -> Path:
        return self.folder / f"{start:012d}{CHUNK_ENDING}"


def _parse_description(content: str) -> dict:
    """Return the values of a description; they are empty if it is not one."""
    try:
        return dict(json.loads(content)[KEY])
    except (ValueError, TypeError, KeyError):
        return {}


def _partial_name(name: str) -> str:
    """Return the name of the folder of chunks of a file, different for each file."""
    partial_name = f"{name}.partial"
    encoded = os.fsencode(partial_name)
    if len(encoded) <= MAX_NAME_BYTES:
        return partial_name
    # Long names may differ only in the letters that are cut.
    digest = hashlib.blake2b(encoded, digest_size=16).hexdigest()
    ending = f"-{digest}.partial"
    return shorten_name(Path(name).stem, MAX_NAME_BYTES - len(ending)) + ending


def _write_npy(path: Path, chunks: _Chunks) -> None:
    """Write the embeddings of all chunks as one array."""
    shape = chunks.data.n, chunks.estimator._n_features_out
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    n_bytes = NPY_HEADER_BYTES + 4 * shape[0] * shape[1]
    with write_atomically(path, chunks.argument, n_bytes) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in chunks.starts:
            embeddings, _ = chunks.read(start)
            file.write(embeddings.astype("<f4").data)


def _import_pyarrow():
    """Return the modules pyarrow and pyarrow.parquet."""
    pyarrow = import_optional("pyarrow", extra="parquet")
    return pyarrow, import_optional("pyarrow.parquet", extra="parquet")


def _write_parquet(path: Path, chunks: _Chunks) -> None:
    """Write the paths, clusters and embeddings of all chunks as one table."""
    _, parquet = _import_pyarrow()
    tables = _make_tables(chunks)
    first_table = next(tables)
    # pyarrow refuses a path that is not UTF-8, and takes a folder named "a=b" for a
    # column, so that it gets an open file.
    with (
        write_atomically(path, chunks.argument) as file,
        parquet.ParquetWriter(file, first_table.schema) as writer,
    ):
        writer.write_table(first_table, row_group_size=CHUNK_ROWS)
        for table in tables:
            writer.write_table(table, row_group_size=CHUNK_ROWS)


def _make_tables(chunks: _Chunks) -> Iterator:
    """Yield one table for each chunk."""
    pyarrow, _ = _import_pyarrow()
    paths, cluster_names = chunks.data.paths, chunks.estimator.cluster_names_
    for start in chunks.starts:
        embeddings, labels = chunks.read(start)
        columns = {}
        if paths is not None:
            texts = [escape_path(path) for path in paths[start : start + len(labels)]]
            columns["path"] = pyarrow.array(texts, pyarrow.string())
        columns["cluster"] = pyarrow.array(labels)
        if _has_names(cluster_names):
            names = [
                None if cluster == NO_CLUSTER else escape_path(cluster_names[cluster])
                for cluster in labels
            ]
            columns["cluster_name"] = pyarrow.array(names, pyarrow.string())
        columns["embedding"] = pyarrow.FixedSizeListArray.from_arrays(
            pyarrow.array(embeddings.ravel()), embeddings.shape[1]
        )
        yield pyarrow.table(columns)


def _has_names(cluster_names) -> bool:
    """Return whether any cluster has another name than its number."""
    return any(name != str(cluster) for cluster, name in enumerate(cluster_names))
