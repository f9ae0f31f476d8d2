"""Folders of image files, one for each cluster, with a page to look at them."""

import contextlib
import csv
import errno
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from .._inputs.read import NO_CLUSTER
from .._utils.files import EXPORT_MARK, EXPORT_TEXT, escape_path, find_cure
from ._page import LEAVE_OUT, write_page, write_synced


def export_clusters(
    labels, paths, directory, mode="symlink", *, embeddings=None, cluster_names=None
):
    r"""Sort image files into one folder per cluster, with a page to look at them.

    Open ``index.html`` in the directory: it shows the first images of each cluster, its
    size and all its paths. ``clusters.csv`` has one row per image, with the columns
    ``path`` and ``cluster``, in UTF-8. In the texts of both, bytes of a name that are
    not UTF-8 appear as ``\xe9``; links open the file nevertheless.

    Parameters
    ----------
    labels : array-like of shape (n,), int
        Cluster of each image, such as `labels_`. Images with the label -1, which could
        not be read, are listed but not shown.
    paths : array-like of shape (n,), str or path-like
        Path of each image, such as `paths_`.
    directory : str or path-like
        Path of the new directory, which must not exist. It appears under its name once
        it is complete.
    mode : {"symlink", "copy", "csv"}, default="symlink"
        Content of the clusters' folders: links to the images, or copies. "csv" makes no
        such folders. A number precedes each name and keeps the order. If a name would
        exceed 255 bytes, its stem is cut.
    embeddings : array-like of shape (n, n_features), default=None
        Embedding of each image, from `transform`. The images of a cluster are sorted by
        the distance to its mean, nearest first. With None they keep their order.
    cluster_names : array-like of str, default=None
        Name of each cluster, such as `cluster_names_`, for the page, the names of the
        folders and a column ``name`` of ``clusters.csv``. Letters that a name of a
        folder cannot have become ``_``. With None, clusters have their numbers only.

    Raises
    ------
    ValueError, TypeError
        If lengths differ, or if `mode`, `labels`, `paths` or `cluster_names` is
        invalid.
    FileExistsError
        If `directory` exists.
    OSError
        If an image does not exist, is no regular file, or cannot be read, linked or
        copied, or if `directory` cannot be made. No directory is left behind.

    See Also
    --------
    write_embeddings : Write clusters and embeddings to one table.

    Examples
    --------
    >>> from skdeepcluster.io import export_clusters
    >>> model = DeepClusterEstimator(10).fit("photos")  # doctest: +SKIP
    >>> export_clusters(model.labels_, model.paths_, "clusters")  # doctest: +SKIP
    """
    if mode not in ("symlink", "copy", "csv"):
        raise ValueError(f"mode={mode!r} should be 'symlink', 'copy' or 'csv'.")
    labels, paths = _check_labeled_paths(labels, paths)
    if embeddings is not None and len(embeddings) != len(paths):
        raise ValueError(
            f"embeddings has {len(embeddings)} rows, but there are {len(paths)} paths. "
            "Pass one row per path, such as model.transform(paths)."
        )
    cluster_names = _check_names(cluster_names, labels)
    directory = Path(os.fsdecode(directory))
    _check_absent(directory)
    _check_regular_files([paths[row] for row in np.flatnonzero(labels != NO_CLUSTER)])
    rows_by_cluster = _sort_rows(labels, embeddings)
    with _make_directory(directory) as temporary:
        (temporary / EXPORT_MARK).write_text(EXPORT_TEXT, encoding="utf-8")
        write_page(temporary, rows_by_cluster, paths, mode, cluster_names)
        _write_csv(temporary, rows_by_cluster, paths, cluster_names)


@contextlib.contextmanager
def _make_directory(directory: Path) -> Iterator[Path]:
    """Make a temporary directory that gets its name once the block has ended.

    If the block fails, no directory is left behind.
    """
    missing = [parent for parent in directory.parents if not parent.exists()]
    temporary = None
    try:
        with _name_directory(directory):
            directory.parent.mkdir(parents=True, exist_ok=True)
            # The name is short, because the directory's may have the greatest length.
            temporary = Path(tempfile.mkdtemp(prefix=".export-", dir=directory.parent))
            # mkdtemp makes a directory that only its owner can read.
            temporary.chmod(0o755)
            yield temporary
            temporary.rename(directory)
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary)
        for parent in missing:
            # Another process may have written into it.
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


@contextlib.contextmanager
def _name_directory(directory: Path) -> Iterator[None]:
    """Name the parameter `directory` if the system refuses it inside the block."""
    try:
        yield
    except OSError as error:
        text = (
            f"directory={os.fspath(directory)!r} cannot be completed: "
            f"{error.strerror or error}"
        )
        cure = find_cure(error)
        raise OSError(
            error.errno or errno.EIO, text if cure is None else f"{text}. {cure}"
        ) from error


def _check_absent(directory: Path) -> None:
    """Raise an error if a directory exists, or cannot exist."""
    with _name_directory(directory):
        try:
            directory.lstat()
        except FileNotFoundError:
            return
    raise FileExistsError(f"{escape_path(directory)} exists. Choose another name.")


def _check_regular_files(images: list[Path]) -> None:
    """Raise an error that names the first image that is not a regular file.

    A pipe would be waited for without end, and a device can be read without end.
    """
    for image in images:
        try:
            mode = image.stat().st_mode
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None) or errno.EINVAL
            cause = getattr(error, "strerror", None) or str(error)
        else:
            if stat.S_ISREG(mode):
                continue
            is_folder = stat.S_ISDIR(mode)
            number = errno.EISDIR if is_folder else errno.EINVAL
            cause = "it is a folder" if is_folder else "it is not a regular file"
        raise OSError(number, f"paths holds {escape_path(image)}: {cause}. {LEAVE_OUT}")


def _check_labeled_paths(labels, paths) -> tuple[np.ndarray, list[Path]]:
    """Return labels and absolute paths, or raise an error if one is invalid."""
    if paths is None or isinstance(paths, str | os.PathLike):
        raise TypeError(
            f"paths={paths!r} should hold the path of each image. Pass model.paths_, "
            "which is None if the images of fit were not files."
        )
    labels, paths = np.asarray(labels), list(paths)
    invalid = [path for path in paths if not isinstance(path, str | os.PathLike)]
    if invalid:
        raise TypeError(
            f"paths holds a {type(invalid[0]).__name__}, but should hold paths of "
            "files. To look at arrays, use inspection.contact_sheet."
        )
    if labels.shape != (len(paths),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels has shape {labels.shape} and dtype {labels.dtype}, but there are "
            f"{len(paths)} paths. Pass one integer per path, such as model.labels_."
        )
    return labels, [Path(os.fsdecode(path)).absolute() for path in paths]


def _check_names(cluster_names, labels: np.ndarray) -> dict[int, str]:
    """Return the names of the clusters that have another name than their number."""
    if cluster_names is None:
        return {}
    if isinstance(cluster_names, str | Mapping) or not hasattr(
        cluster_names, "__iter__"
    ):
        raise TypeError(
            f"cluster_names is a {type(cluster_names).__name__}, but should hold the "
            "name of each cluster. Pass model.cluster_names_."
        )
    names = list(cluster_names)
    invalid = [name for name in names if not isinstance(name, str)]
    if invalid:
        raise TypeError(
            f"cluster_names holds {invalid[0]!r}, but should hold a str for each "
            "cluster. Pass model.cluster_names_."
        )
    if len(labels) and len(names) <= labels.max():
        raise ValueError(
            f"cluster_names holds {len(names)} names, but labels has the cluster "
            f"{labels.max()}. Pass one name per cluster, such as model.cluster_names_."
        )
    return {c: name for c, name in enumerate(names) if name != str(c)}


def _sort_rows(labels: np.ndarray, embeddings) -> dict[int, np.ndarray]:
    """Return the rows of each cluster, sorted by their distance to the cluster's mean.

    Without embeddings rows keep their order. Unreadable images come last.
    """
    clusters = sorted(np.unique(labels).tolist(), key=lambda c: (c == NO_CLUSTER, c))
    rows_by_cluster = {
        cluster: np.flatnonzero(labels == cluster) for cluster in clusters
    }
    if embeddings is None:
        return rows_by_cluster
    embeddings = np.asarray(embeddings)
    for cluster, rows in rows_by_cluster.items():
        vectors = embeddings[rows]
        distances = np.square(vectors - vectors.mean(axis=0)).sum(axis=1)
        rows_by_cluster[cluster] = rows[np.argsort(distances)]
    return rows_by_cluster


def _write_csv(
    directory: Path,
    rows_by_cluster: dict[int, np.ndarray],
    paths: list[Path],
    cluster_names: dict[int, str],
) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["path", "cluster"] + ["name"] * bool(cluster_names))
    for cluster, rows in rows_by_cluster.items():
        values = [str(cluster)]
        if cluster_names:
            default = "" if cluster == NO_CLUSTER else str(cluster)
            values.append(escape_path(cluster_names.get(cluster, default)))
        writer.writerows([escape_path(paths[row]), *values] for row in rows)
    write_synced(directory / "clusters.csv", file.getvalue())
