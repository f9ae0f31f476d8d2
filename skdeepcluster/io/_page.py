"""Page that shows the clusters of an export, and the folders that it links to."""

import contextlib
import html
import io
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from .._inputs.decoding import decode, describe_failure
from .._inputs.image_format import ImageFormat
from .._inputs.read import NO_CLUSTER
from .._utils.files import escape_path, shorten_name

# Number of images of a cluster on the index page.
SHOWN_IMAGES = 24
# Width and height of the images on the index page, in pixels.
THUMBNAIL_SIZE = 96
# Longest name of a cluster in the name of a folder, in letters of up to 4 bytes. File
# systems take 255 bytes.
MAX_NAME_LENGTH = 40
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


def write_page(
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
    write_synced(directory / "index.html", page)


def write_synced(path: Path, text: str) -> None:
    """Write a text in UTF-8, which is on the disk when the function returns."""
    with open(path, "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


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
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    # Pillow itself does not tell the cause for which a file cannot be written.
    target.write_bytes(file.getvalue())


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
