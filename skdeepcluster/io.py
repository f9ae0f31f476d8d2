"""Results in files: embeddings of any number of images, and folders of clusters."""

import contextlib
import csv
import errno
import hashlib
import html
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.utils._param_validation import validate_params
from sklearn.utils.validation import check_is_fitted

from ._estimator import DeepClusterEstimator
from ._inputs.decoding import decode, describe_failure
from ._inputs.image_format import ImageFormat
from ._inputs.read import NO_CLUSTER, InputData, read_input
from ._utils.distributed import get_processes
from ._utils.files import (
    EXPORT_MARK,
    EXPORT_TEXT,
    MAX_NAME_BYTES,
    escape_path,
    shorten_name,
    write_atomically,
)
from ._utils.hashing import hash_content
from ._utils.neutral_state import with_neutral_state
from ._utils.optional import import_optional

__all__ = ["export_clusters", "write_embeddings"]

# Number of images that are embedded and written at once. It bounds the memory.
CHUNK_ROWS = 8192
# Number of images that identify X when an interrupted call is resumed.
COMPARED_IMAGES = 64
# Number of images of a cluster on the index page.
SHOWN_IMAGES = 24
# Width and height of the images on the index page, in pixels.
THUMBNAIL_SIZE = 96
# Longest name of a cluster in the name of a folder, in letters of up to 4 bytes. File
# systems take 255 bytes.
MAX_NAME_LENGTH = 40
DESCRIPTION_NAME = "description.json"
# Cure for an image that cannot be exported.
LEAVE_OUT = "Leave the image out, or give it the label -1."

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>{title}</title><style>
body {{ font: 16px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem;
padding: 0 1rem; color: #222; background: #fff }}
section {{ margin: 2rem 0 }} h2 {{ font-size: 1.1rem }}
.sheet {{ display: grid; gap: 4px;
grid-template-columns: repeat(auto-fill, minmax(76px, 1fr)) }}
.sheet img {{ width: 100%; aspect-ratio: 1; display: block; background: #eee }}
details {{ margin-top: .5rem; overflow-wrap: anywhere; font-size: .85rem }}
</style></head><body><h1>{title}</h1>
{sections}
</body></html>
"""


@with_neutral_state
@validate_params(
    {"estimator": [DeepClusterEstimator], "path": [str, os.PathLike]},
    prefer_skip_nested_validation=True,
)
def write_embeddings(estimator, X, path):
    r"""Write the embeddings of images to a file, a few thousand images at a time.

    If a call is interrupted, the same call resumes it: finished chunks lie in a folder
    beside the file and are not computed again. The file appears under its name once it
    is complete. Several processes of torchrun write it together.

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
    writers = {
        ".npy": (_write_npy, _join_npy),
        ".parquet": (_write_parquet, _join_parquet),
    }
    if path.suffix not in writers:
        raise ValueError(f"path={os.fspath(path)!r} should end in .npy or .parquet.")
    if path.suffix == ".parquet":
        _import_pyarrow()
    if path.exists():
        raise FileExistsError(
            f"{escape_path(path)} exists. Remove it, or choose another name."
        )
    write_chunk, join_chunks = writers[path.suffix]
    check_is_fitted(estimator)
    cluster_names = estimator.cluster_names_
    folder = path.with_name(_partial_name(path.name))
    processes = get_processes()
    with processes.guard_collectives():
        data, failures = read_input(X, estimator._input_spec(fitted=True))
        description = _describe(estimator, data)
        processes.check_same(description)
        processes.run_on_first(lambda: _begin(folder, description))
        starts = range(0, data.n, CHUNK_ROWS)
        chunks = {start: folder / f"{start:012d}{path.suffix}" for start in starts}
        missing = processes.run_on_first(
            lambda: [start for start in starts if not chunks[start].exists()]
        )
        for start in missing[processes.rank :: processes.size]:
            chunk = data.part(start, min(start + CHUNK_ROWS, data.n))
            features = estimator._embed(chunk.source)
            labels = chunk.scatter_rows(estimator._assign(features), NO_CLUSTER)
            embeddings = chunk.scatter_rows(features, np.nan)
            with write_atomically(chunks[start]) as file:
                write_chunk(file, embeddings, labels, chunk.paths, cluster_names)
        failures.share(processes)

        def complete() -> None:
            with write_atomically(path) as file:
                join_chunks(file, chunks.values(), (data.n, estimator._n_features_out))
            shutil.rmtree(folder)

        processes.run_on_first(complete)
        failures.warn(data.n)


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


def _describe(estimator: DeepClusterEstimator, data: InputData) -> dict:
    """Return values that are equal if and only if a call resumes the same work."""
    images = None
    if data.paths is None:
        # Hashing all images would take a second pass over X.
        rows = np.linspace(0, data.n - 1, COMPARED_IMAGES).astype(int)
        images = data.source.take(rows).values
    return {
        "version": 1,
        "rows": data.n,
        "chunk_rows": CHUNK_ROWS,
        "estimator": hash_content(
            estimator.module_.state_dict(),
            estimator._cluster_model,
            estimator.cluster_names_,
        ),
        "paths": hash_content(data.paths),
        "images": hash_content(images),
    }


def _begin(folder: Path, description: dict) -> None:
    """Make the folder of chunks, or check that the same call has made it."""
    path = folder / DESCRIPTION_NAME
    if not folder.exists():
        folder.mkdir()
        with write_atomically(path) as file:
            file.write(json.dumps(description).encode())
        return
    try:
        existing = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # The process was killed before it wrote any chunk.
        shutil.rmtree(folder)
        return _begin(folder, description)
    differing = [
        name for name, value in description.items() if existing.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"{escape_path(folder)} holds an unfinished file of other data: "
            f"{', '.join(differing)} differ. Remove it, or choose another path."
        )


def _write_npy(
    file, embeddings: np.ndarray, labels: np.ndarray, paths, cluster_names
) -> None:
    np.save(file, embeddings)


def _join_npy(file, chunks: Iterable[Path], shape: tuple[int, int]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for chunk in chunks:
        file.write(np.load(chunk).astype("<f4").data)


def _import_pyarrow():
    """Return the modules pyarrow and pyarrow.parquet."""
    pyarrow = import_optional("pyarrow", extra="parquet")
    return pyarrow, import_optional("pyarrow.parquet", extra="parquet")


def _write_parquet(
    file, embeddings: np.ndarray, labels: np.ndarray, paths, cluster_names
) -> None:
    pyarrow, parquet = _import_pyarrow()
    columns = {}
    if paths is not None:
        texts = [escape_path(path) for path in paths]
        columns["path"] = pyarrow.array(texts, pyarrow.string())
    columns["cluster"] = pyarrow.array(labels)
    if _has_names(cluster_names):
        names = [
            None if c == NO_CLUSTER else escape_path(cluster_names[c]) for c in labels
        ]
        columns["cluster_name"] = pyarrow.array(names, pyarrow.string())
    columns["embedding"] = pyarrow.FixedSizeListArray.from_arrays(
        pyarrow.array(embeddings.ravel()), embeddings.shape[1]
    )
    parquet.write_table(pyarrow.table(columns), file, row_group_size=len(labels))


def _join_parquet(file, chunks: Iterable[Path], shape: tuple[int, int]) -> None:
    _, parquet = _import_pyarrow()
    chunks = [*chunks]
    # pyarrow refuses a path that is not UTF-8, and takes a folder named "a=b" for a
    # column, so that it gets open files.
    with open(chunks[0], "rb") as first_chunk:
        schema = parquet.read_schema(first_chunk)
    with parquet.ParquetWriter(file, schema) as writer:
        for chunk in chunks:
            with open(chunk, "rb") as chunk_file:
                table = parquet.read_table(chunk_file)
            writer.write_table(table, row_group_size=CHUNK_ROWS)


def _has_names(cluster_names) -> bool:
    """Return whether any cluster has another name than its number."""
    return any(name != str(cluster) for cluster, name in enumerate(cluster_names))


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
        _write_page(temporary, rows_by_cluster, paths, mode, cluster_names)
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
        raise OSError(
            error.errno or errno.EIO,
            f"directory={os.fspath(directory)!r} cannot be completed: "
            f"{error.strerror or error}",
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


def _write_page(
    directory: Path,
    rows_by_cluster: dict[int, np.ndarray],
    paths: list[Path],
    mode: str,
    cluster_names: dict[int, str],
) -> None:
    """Write the index page and the folders of the clusters."""
    sections = []
    for cluster, rows in rows_by_cluster.items():
        is_readable = cluster != NO_CLUSTER
        name = f"cluster_{cluster:03d}" if is_readable else "unreadable"
        title = f"Cluster {cluster}" if is_readable else "Not readable"
        if cluster in cluster_names:
            name += f"_{_safe_name(cluster_names[cluster])}"
            title += f", {_to_html(cluster_names[cluster])}"
        images = [paths[row] for row in rows]
        if is_readable and mode != "csv":
            _fill_folder(directory / name, images, mode)
        shown = images[:SHOWN_IMAGES] if is_readable else []
        sections.append(_make_section(directory, name, title, images, shown))
    n_clusters = sum(cluster != NO_CLUSTER for cluster in rows_by_cluster)
    title = f"{_count(len(paths), 'image')} in {_count(n_clusters, 'cluster')}"
    page = PAGE.format(title=title, sections="\n".join(sections))
    (directory / "index.html").write_text(page, encoding="utf-8")


def _safe_name(name: str) -> str:
    """Return the letters and digits of a name, which any file system accepts.

    The number of the cluster precedes it, so that two folders never share a name.
    """
    letters = "".join(c if c.isalnum() or c == "-" else "_" for c in name)
    return letters[:MAX_NAME_LENGTH]


def _fill_folder(folder: Path, images: list[Path], mode: str) -> None:
    """Link or copy images into a new folder."""
    folder.mkdir()
    for position, image in enumerate(images):
        # The number keeps the order, and separates images of equal names.
        target = folder / shorten_name(f"{position:06d}_{image.name}")
        try:
            if mode == "copy":
                shutil.copyfile(image, target)
                # Some file systems keep no times or permissions.
                with contextlib.suppress(OSError):
                    shutil.copystat(image, target)
            else:
                target.symlink_to(image.resolve(strict=True))
        except OSError as error:
            action = "copied" if mode == "copy" else "linked"
            other_mode = "symlink" if mode == "copy" else "copy"
            raise OSError(
                error.errno,
                f"{escape_path(image)} cannot be {action}: {error.strerror or error}. "
                f"Name a directory on another disk, or set mode={other_mode!r} or "
                "mode='csv'.",
            ) from error


def _make_section(
    directory: Path, name: str, title: str, images: list[Path], shown: list[Path]
) -> str:
    """Write thumbnails; return the section of a cluster for the index page."""
    links = []
    for position, image in enumerate(shown):
        thumbnail = f"thumbnails/{name}_{position:02d}.jpg"
        _write_thumbnail(image, directory / thumbnail)
        text = _to_html(str(image))
        links.append(
            f'<a href="{html.escape(image.as_uri())}">'
            f'<img src="{thumbnail}" alt="{text}" title="{text}" loading="lazy"></a>'
        )
    lines = "<br>\n".join(_to_html(str(image)) for image in images)
    return (
        f'<section id="{name}"><h2>{title}: {_count(len(images), "image")}</h2>\n'
        f'<div class="sheet">{"".join(links)}</div>\n'
        f"<details><summary>Paths</summary>{lines}</details></section>"
    )


def _to_html(text: str) -> str:
    return html.escape(escape_path(text))


def _write_thumbnail(image: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    image_format = ImageFormat((3, THUMBNAIL_SIZE, THUMBNAIL_SIZE), np.uint8)
    try:
        pixels = decode(image, image_format).transpose(1, 2, 0)
    except MemoryError:
        raise
    # A broken file may raise any error, mostly without the name of the file.
    except Exception as error:
        cause = escape_path(describe_failure(image, error))
        raise OSError(f"{cause}. {LEAVE_OUT}") from error
    Image.fromarray(pixels).save(target, quality=85)


def _write_csv(
    directory: Path,
    rows_by_cluster: dict[int, np.ndarray],
    paths: list[Path],
    cluster_names: dict[int, str],
) -> None:
    path = directory / "clusters.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "cluster"] + ["name"] * bool(cluster_names))
        for cluster, rows in rows_by_cluster.items():
            values = [str(cluster)]
            if cluster_names:
                default = "" if cluster == NO_CLUSTER else str(cluster)
                values.append(escape_path(cluster_names.get(cluster, default)))
            writer.writerows([escape_path(paths[row]), *values] for row in rows)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
