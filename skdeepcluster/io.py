"""Results in files: embeddings of any number of images, and groups to look at."""

import csv
import html
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.utils._param_validation import validate_params
from sklearn.utils.validation import check_is_fitted

from ._estimator import DeepClusterEstimator
from ._inputs.decoding import ImageFormat, decode
from ._inputs.read import NO_CLUSTER, InputData, read_input, warn_unreadable
from ._utils.distributed import get_processes
from ._utils.files import write_atomically
from ._utils.hashing import hash_content
from ._utils.optional import import_optional

__all__ = ["export_clusters", "write_embeddings"]

ROW_GROUP = 8192  # images that are embedded, written and then done with
COMPARED = 64  # images by which the beginning of a file is known to be of the same X
SHOWN = 24  # images of a group on the index page
THUMBNAIL = 96  # pixels a side

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


@validate_params(
    {"estimator": [DeepClusterEstimator], "path": [str, os.PathLike]},
    prefer_skip_nested_validation=True,
)
def write_embeddings(estimator, X, path):
    """Embed images into a file, a few thousand at a time.

    A call that was interrupted, by whatever, is completed by the same call: what was
    written in a folder beside the file is not computed again. The file is complete as
    soon as it has its name. Several processes of torchrun write it together.

    Parameters
    ----------
    estimator : DeepClusterEstimator
        Fitted.
    X : array-like, tensor, folder, paths, pictures or dataset
        Images in any form that `estimator.fit` takes.
    path : str or path-like
        Name of the file, which must not exist. ``.npy`` is an array of float32,
        (n, n_features_out), in the order of `X`, for ``numpy.load(path,
        mmap_mode="r")``. ``.parquet`` is a table with the columns ``path``, where the
        images are files, ``cluster`` (int32) and ``embedding`` (list of float32); it
        needs pyarrow (``pip install skdeepcluster[parquet]``).

    Raises
    ------
    ValueError
        If `path` has another ending, or is left from other images or another
        estimator, or `X` is not usable.
    FileExistsError
        If `path` exists.
    ImportError
        If pyarrow is missing.

    See Also
    --------
    DeepClusterEstimator.transform : The same in memory.

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
    path = Path(path)
    kinds = {".npy": (_write_npy, _join_npy), ".parquet": (_write_table, _join_tables)}
    if path.suffix not in kinds:
        raise ValueError(f"path={os.fspath(path)!r} should end in .npy or .parquet.")
    if path.suffix == ".parquet":
        _pyarrow()
    if path.exists():
        raise FileExistsError(f"{path} exists. Remove it, or choose another name.")
    write, join = kinds[path.suffix]
    check_is_fitted(estimator)
    partial = path.with_name(path.name + ".partial")
    processes = get_processes()
    with processes.guard_collectives():
        given = read_input(estimator, X)
        description = _description(estimator, given)
        processes.check_same(description)
        processes.run_on_first(lambda: _begin(partial, description))
        starts = range(0, given.n, ROW_GROUP)
        parts = {start: partial / f"{start:012d}{path.suffix}" for start in starts}
        missing = processes.run_on_first(
            lambda: [s for s in starts if not parts[s].exists()]
        )
        failures: dict[int, str] = {}
        for start in missing[processes.rank :: processes.size]:
            few = given.part(start, min(start + ROW_GROUP, given.n))
            features = estimator._embed(few.source)
            labels = few.in_place(estimator._assign(features), NO_CLUSTER)
            features = few.in_place(features, np.nan)
            failures |= few.failures
            with write_atomically(parts[start]) as file:
                write(file, features, labels, few.paths)
        for told in processes.all_gather_object(failures):
            failures |= told

        def complete() -> None:
            with write_atomically(path) as file:
                join(file, parts.values(), (given.n, estimator._n_features_out))
            shutil.rmtree(partial)

        processes.run_on_first(complete)
        warn_unreadable(failures, given.n)


def _description(estimator, given: InputData) -> dict:
    """Tell results that can be continued from those of something else."""
    some = np.linspace(0, given.n - 1, COMPARED).astype(int)  # by which X is known
    images = None if given.paths is not None else given.source.take(some).values
    return {
        "version": 1,
        "rows": given.n,
        "row_group": ROW_GROUP,
        "estimator": hash_content(estimator.module_.state_dict(), estimator._groups),
        "paths": hash_content(given.paths),
        "images": hash_content(images),
    }


def _begin(partial: Path, description: dict) -> None:
    told = partial / "of.json"
    if not partial.exists():
        partial.mkdir()
        with write_atomically(told) as file:
            file.write(json.dumps(description).encode())
        return
    try:
        found = json.loads(told.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # killed before anything was written
        shutil.rmtree(partial)
        return _begin(partial, description)
    differing = [name for name in description if found.get(name) != description[name]]
    if differing:
        raise ValueError(
            f"{partial} holds the beginning of something else: {', '.join(differing)} "
            "differ. Remove it, or choose another name."
        )


def _write_npy(file, features, labels, paths) -> None:
    np.save(file, features)


def _join_npy(file, parts, shape) -> None:
    head = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)
    for part in parts:
        file.write(np.load(part).astype("<f4").data)


def _pyarrow():
    return (
        import_optional("pyarrow", extra="parquet"),
        import_optional("pyarrow.parquet", extra="parquet"),
    )


def _write_table(file, features, labels, paths) -> None:
    arrow, parquet = _pyarrow()
    width = features.shape[1]
    columns = {} if paths is None else {"path": arrow.array(paths.tolist())}
    columns["cluster"] = arrow.array(labels)
    values = arrow.array(features.ravel())
    columns["embedding"] = arrow.FixedSizeListArray.from_arrays(values, width)
    parquet.write_table(arrow.table(columns), file, row_group_size=len(labels))


def _join_tables(file, parts, shape) -> None:
    _, parquet = _pyarrow()
    first, *_ = parts
    with parquet.ParquetWriter(file, parquet.read_schema(first)) as writer:
        for part in parts:
            writer.write_table(parquet.read_table(part), row_group_size=ROW_GROUP)


def export_clusters(labels, paths, directory, mode="symlink", *, embeddings=None):
    """Put images into one folder for each group, with a page to look at them.

    Open ``index.html`` in the directory: it shows the first images of each group, its
    size and the paths of all. ``clusters.csv`` has a line for each image.

    Parameters
    ----------
    labels : array-like of shape (n,), int
        Group of each image, such as `labels_`. Images of group -1, which could not be
        read, are listed but not shown.
    paths : array-like of shape (n,), str or path-like
        Such as `paths_`.
    directory : str or path-like
        Must not exist. It is complete as soon as it has its name.
    mode : {"symlink", "copy", "csv"}, default="symlink"
        Whether the folders of groups hold links to the images or copies of them. With
        "csv" there are no such folders.
    embeddings : array-like of shape (n, n_features), default=None
        What `transform` gives for the images: in each group the nearest to its mean
        come first. With None they keep their order.

    Raises
    ------
    ValueError, TypeError
        If lengths differ, `mode` is none of these, or `labels` or `paths` hold
        something else.
    FileExistsError
        If `directory` exists.
    OSError
        If an image cannot be linked or copied. Nothing is left behind.

    See Also
    --------
    write_embeddings : Groups and embeddings as one table.

    Examples
    --------
    >>> from skdeepcluster.io import export_clusters
    >>> model = DeepClusterEstimator(10).fit("photos")  # doctest: +SKIP
    >>> export_clusters(model.labels_, model.paths_, "groups")  # doctest: +SKIP
    """
    if mode not in ("symlink", "copy", "csv"):
        raise ValueError(f"mode={mode!r} should be 'symlink', 'copy' or 'csv'.")
    if paths is None or isinstance(paths, str | os.PathLike):
        raise TypeError(
            f"paths={paths!r} should be the paths of all images, such as model.paths_, "
            "which is None where fit saw no files."
        )
    labels, paths, directory = np.asarray(labels), list(paths), Path(directory)
    strange = [p for p in paths if not isinstance(p, str | os.PathLike)]
    if strange:
        raise TypeError(
            f"paths holds a {type(strange[0]).__name__}, but should hold paths of "
            "files. To look at arrays, use inspection.contact_sheet."
        )
    if labels.shape != (len(paths),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels has shape {labels.shape} and dtype {labels.dtype}, but there are "
            f"{len(paths)} paths: pass an integer for each, such as model.labels_."
        )
    if embeddings is not None and len(embeddings) != len(paths):
        raise ValueError(
            f"embeddings has {len(embeddings)} rows, but there are {len(paths)} paths."
        )
    if directory.exists():
        raise FileExistsError(f"{directory} exists. Choose another name.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    numbers = sorted(np.unique(labels).tolist(), key=lambda g: (g == NO_CLUSTER, g))
    groups = [(g, np.flatnonzero(labels == g)) for g in numbers]
    if embeddings is not None:
        groups = [(g, _nearest_first(np.asarray(embeddings), r)) for g, r in groups]
    paths = [Path(path).absolute() for path in paths]
    making = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        making.chmod(0o755)
        sections = [_export_group(making, g, rows, paths, mode) for g, rows in groups]
        n_groups = sum(g != NO_CLUSTER for g in numbers)
        title = f"{_count(len(paths), 'image')} in {_count(n_groups, 'group')}"
        page = PAGE.format(title=title, sections="\n".join(sections))
        (making / "index.html").write_text(page, encoding="utf-8")
        with open(making / "clusters.csv", "w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            lines.writerow(["path", "cluster"])
            lines.writerows((paths[r], g) for g, rows in groups for r in rows)
        making.rename(directory)
    except BaseException:
        shutil.rmtree(making)
        raise


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _nearest_first(embeddings: np.ndarray, rows: np.ndarray) -> np.ndarray:
    own = embeddings[rows]
    return rows[np.argsort(np.square(own - own.mean(axis=0)).sum(axis=1))]


def _export_group(
    making: Path, group: int, rows: np.ndarray, paths: list[Path], mode: str
) -> str:
    """Fill the folder of a group; return its section of the page."""
    name = f"group_{group:03d}" if group != NO_CLUSTER else "unreadable"
    if mode != "csv" and group != NO_CLUSTER:
        (making / name).mkdir()
        for rank, row in enumerate(rows):
            # Numbered, so that equal names do not meet and the order is kept.
            place = making / name / f"{rank:06d}_{paths[row].name}"
            if mode == "copy":
                shutil.copy2(paths[row], place)
            else:
                place.symlink_to(paths[row].resolve(strict=True))
    figures = []
    for rank, row in enumerate(rows[: SHOWN if group != NO_CLUSTER else 0]):
        image = f"thumbnails/{name}_{rank:02d}.jpg"
        (making / "thumbnails").mkdir(exist_ok=True)
        _thumbnail(paths[row], making / image)
        told = html.escape(str(paths[row]))
        figures.append(
            f'<a href="{html.escape(paths[row].as_uri())}">'
            f'<img src="{image}" alt="{told}" title="{told}" loading="lazy"></a>'
        )
    listed = "<br>\n".join(html.escape(str(paths[row])) for row in rows)
    what = f"Group {group}" if group != NO_CLUSTER else "Not readable"
    return (
        f'<section id="{name}"><h2>{what}: {_count(len(rows), "image")}</h2>\n'
        f'<div class="sheet">{"".join(figures)}</div>\n'
        f"<details><summary>Paths</summary>{listed}</details></section>"
    )


def _thumbnail(path: Path, place: Path) -> None:
    wanted = ImageFormat((3, THUMBNAIL, THUMBNAIL), np.uint8)
    Image.fromarray(decode(path, wanted).transpose(1, 2, 0)).save(place, quality=85)
