"""Image files of a folder and its subfolders, and warnings of all that is left out."""

import errno
import heapq
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from .._utils.files import EXPORT_MARK
from .._utils.messages import warn
from .file_formats import find_plugin, list_endings

# Files and folders whose name starts with a dot are hidden, and left out in silence. So
# are the following names of files and folders, which only operating systems, storage
# devices and programs make. Names are compared in lower case.
SYSTEM_FILES = frozenset(
    (
        "desktop.ini",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "icon\r",
        "picasa.ini",
        "thumbs.db",
        "zbthumbnail.info",
    )
)
TOOL_FOLDERS = frozenset(
    (
        # Network storage of Synology and QNAP: previews, trash and earlier versions.
        "#recycle",
        "#snapshot",
        "@eadir",
        "@__thumb",
        "@recently-snapshot",
        "@recycle",
        "@tmp",
        "@transcode",
        # Windows.
        "$recycle.bin",
        "found.000",
        "system volume information",
        # Linux and macOS.
        "__macosx",
        "lost+found",
        "network trash folder",
        "resource.frk",
        "temporary items",
        "thevolumesettingsfolder",
        # Programs.
        "__pycache__",
        "_notes",
        "_vti_cnf",
        "captureone",
        "node_modules",
    )
)
# Previews of Lightroom.
TOOL_FOLDER_ENDINGS = (".lrdata", ".lrcat-data")

# Names of folders that tools make and that people choose, too. They are left out with a
# warning.
AMBIGUOUS_FOLDER = re.compile(
    r"[-_@]*(thumb(nail)?s?[-_]*([0-9]+(x[0-9]+)?)?|trash(es)?|recycler|recycled"
    r"|(recycle|trash)[-_ ]?bin)[-_]*"
)

# Files and folders of an export, besides the folders of its clusters.
EXPORT_FILES = ("index.html", "clusters.csv")
EXPORT_THUMBNAILS = "thumbnails"

# Errors of text that is the path of nothing. Any different error is a folder's.
NO_PATH_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL)

# Number of endings and of folders that a warning names.
SHOWN_ENDINGS = 5
SHOWN_FOLDERS = 3

# Longest ending that a warning shows in full, in letters.
MAX_ENDING_LENGTH = 16

# Name of the ending of files that have none.
NO_ENDING = "none"


@dataclass
class FolderContent:
    """Files and folders that a walk through a folder meets.

    Parameters
    ----------
    images : list of str
        Paths of the image files.
    endings : Counter of str
        Number of other files for each ending, without the system's files.
    unlisted : dict of str to str
        Cause for the path of each folder that cannot be listed.
    ambiguous : list of str
        Folders with images that are left out, though the user may have made them.
    skipped : list of str
        Hidden folders, folders that only tools make, and exports.
    outside : list of str
        Links to images and folders that are not inside the folder.
    n_inside : int
        Number of images inside the folder.
    """

    images: list[str] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    unlisted: dict[str, str] = field(default_factory=dict)
    ambiguous: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    n_inside: int = 0


def list_image_files(folder: str | os.PathLike, on_error: str = "raise") -> list[str]:
    """Return the sorted paths of all image files in a folder and its subfolders.

    Links to folders are followed, and each folder is read once. Hidden files and
    folders, folders that tools make and the exports of `io.export_clusters` are left
    out. No rule about names applies to the folder itself.

    Parameters
    ----------
    folder : str or path-like
    on_error : {"raise", "skip"}, default="raise"
        Whether a subfolder that cannot be listed is an error, or skipped with a
        warning.

    Raises
    ------
    ValueError
        If the folder cannot be read, or holds no images.
    """
    _check_is_folder(folder)
    root = str(Path(folder))
    content = _walk(root)
    if root in content.unlisted:
        raise _to_error(folder, content.unlisted[root])
    if content.unlisted and on_error != "skip":
        path = min(content.unlisted)
        n = len(content.unlisted)
        count = f" ({n:,} such folders)" if n > 1 else ""
        raise ValueError(
            f"X={os.fspath(folder)!r} holds a folder that cannot be listed: {path!r}: "
            f"{content.unlisted[path]}{count}. Allow this process to read it, remove "
            "it, or set on_error='skip'."
        )
    reports = _describe_left_out(content, folder)
    if not content.images:
        raise ValueError(
            " ".join(
                [
                    f"X={os.fspath(folder)!r} holds no images: no file in it or its "
                    "subfolders has an ending such as .jpg or .png.",
                    *reports,
                    *_describe_skipped(content.skipped),
                    "Pass a folder of image files.",
                ]
            )
        )
    for report in reports:
        warn(report)
    # A folder of links alone is a collection that somebody has made on purpose.
    if content.outside and content.n_inside:
        warn(
            f"X={os.fspath(folder)!r} holds {len(content.outside):,} links that lead "
            f"out of it, such as {min(content.outside)!r}. The images behind them are "
            "read. Remove the links if they are not yours."
        )
    return sorted(content.images)


def _check_is_folder(folder: str | os.PathLike) -> None:
    """Raise ValueError if a path is no folder."""
    if os.path.isfile(folder):
        raise ValueError(
            f"X={os.fspath(folder)!r} is a file, not a folder. If it is an image, pass "
            "[X]. Read files of other types, and pass the arrays in them."
        )
    if os.path.isdir(folder):
        return
    try:
        os.stat(folder)
    except OSError as error:
        if error.errno not in NO_PATH_ERRORS:
            raise _to_error(folder, _describe_cause(error)) from error
    # A null character cannot be part of a path.
    except ValueError:
        pass
    raise ValueError(
        f"X={os.fspath(folder)!r} is not a folder, relative to {os.getcwd()}. Pass the "
        "path of a folder of images or of a .npy file, or a list of paths. Patterns, ~ "
        "and URLs are not expanded."
    )


def _walk(root: str) -> FolderContent:
    """Return the content of a folder and its subfolders."""
    content = FolderContent()
    endings = list_endings()
    real_root = os.path.realpath(root)
    visited: set[str] = set()
    folders = [root]
    # Links are followed after all other folders: an image that is reached in both ways
    # gets the path without a link. Among links the order of their paths decides.
    links: list[str] = []
    while folders or links:
        is_link = not folders
        folder = heapq.heappop(links) if is_link else folders.pop()
        real_path = os.path.realpath(folder)
        # A link to a parent folder would make an endless walk.
        if real_path in visited:
            continue
        visited.add(real_path)
        is_inside = real_path == real_root or _is_inside(real_path, real_root)
        try:
            with os.scandir(folder) as iterator:
                entries = list(iterator)
        except OSError as error:
            content.unlisted[folder] = _describe_cause(error)
            continue
        is_export = any(entry.name == EXPORT_MARK for entry in entries)
        if is_link and (is_export or _lies_in_export(real_path, real_root)):
            # The user has made the link. The images may be nowhere else in X.
            (content.skipped if is_inside else content.ambiguous).append(folder)
            continue
        if is_export and folder != root:
            content.skipped.append(folder)
            continue
        if is_link and not is_inside:
            content.outside.append(folder)
        for entry in entries:
            if is_export and entry.name == EXPORT_THUMBNAILS:
                content.skipped.append(entry.path)
                continue
            if is_export and entry.name in EXPORT_FILES:
                continue
            subfolder = _add_entry(entry, content, endings)
            if subfolder and entry.is_symlink():
                heapq.heappush(links, subfolder)
            elif subfolder:
                folders.append(subfolder)
            elif content.images and content.images[-1] == entry.path:
                leads_out = entry.is_symlink() and not _is_inside(entry.path, real_root)
                if leads_out and os.path.exists(entry.path):
                    content.outside.append(entry.path)
                content.n_inside += is_inside and not leads_out
    # The order of the entries of a folder depends on the file system.
    content.ambiguous.sort()
    content.skipped.sort()
    return content


def _add_entry(
    entry: os.DirEntry, content: FolderContent, endings: tuple[str, ...]
) -> str | None:
    """Add an entry of a folder to the content; return its path if it is to be walked.

    Parameters
    ----------
    entry : os.DirEntry
    content : FolderContent
        Changed in place.
    endings : tuple of str
        Endings of image files.
    """
    name = entry.name.lower()
    broken_link: OSError | None = None
    try:
        is_folder = entry.is_dir()
        # A stat, of links alone, notices the ones that lead nowhere.
        if not is_folder and entry.is_symlink():
            entry.stat()
    # A link may also lead to itself, or through a folder that cannot be entered.
    except OSError as error:
        is_folder, broken_link = False, error
    if is_folder:
        if _is_tool_folder(name):
            content.skipped.append(entry.path)
        elif not AMBIGUOUS_FOLDER.fullmatch(name):
            return entry.path
        elif _holds_image(entry.path, endings):
            content.ambiguous.append(entry.path)
    elif name[0] == "." or name in SYSTEM_FILES:
        pass
    # A link to a missing image is an image that cannot be read.
    elif name.endswith(endings):
        content.images.append(entry.path)
    elif broken_link is not None and _may_be_folder(entry):
        content.unlisted[entry.path] = _describe_cause(broken_link)
    else:
        content.endings[_find_ending(name)] += 1
    return None


def _is_inside(path: str, real_root: str) -> bool:
    """Return whether a path leads into a folder, which is not itself a link."""
    return os.path.realpath(path).startswith(os.path.join(real_root, ""))


def _is_tool_folder(name: str) -> bool:
    """Return whether a folder with this name, in lower case, is made by tools."""
    return name[0] == "." or name in TOOL_FOLDERS or name.endswith(TOOL_FOLDER_ENDINGS)


def _holds_image(folder: str, endings: tuple[str, ...]) -> bool:
    """Return whether a folder or a subfolder holds, or may hold, an image file."""
    errors: list[OSError] = []
    holds_image = any(
        name.lower().endswith(endings) and name[0] != "."
        for _, _, names in os.walk(folder, onerror=errors.append)
        for name in names
    )
    return holds_image or bool(errors)


def _lies_in_export(real_path: str, real_root: str) -> bool:
    """Return whether a folder lies in an export that `real_root` does not lie in."""
    return any(
        os.path.lexists(parent / EXPORT_MARK)
        for parent in Path(real_path).parents
        if parent != Path(real_root) and parent not in Path(real_root).parents
    )


def _may_be_folder(link: os.DirEntry) -> bool:
    """Return whether a link that cannot be followed may have led to a folder.

    Names of folders seldom have an ending.
    """
    names = [link.name]
    if link.is_symlink():
        names.append(os.readlink(link.path))
    return not any(os.path.splitext(name)[1] for name in names)


def _describe_cause(error: OSError) -> str:
    """Return why a folder cannot be listed."""
    return error.strerror or str(error) or type(error).__name__


def _to_error(folder: str | os.PathLike, cause: str) -> ValueError:
    """Return the error for a folder X that cannot be listed itself."""
    return ValueError(
        f"X={os.fspath(folder)!r} cannot be listed: {cause}. Allow this process to "
        "read the folder."
    )


def _describe_left_out(content: FolderContent, folder: str | os.PathLike) -> list[str]:
    """Return one sentence or more for each reason to leave out possible images."""
    reports = []
    if content.endings:
        reports.append(_describe_endings(content.endings, len(content.images)))
    if content.unlisted:
        n = len(content.unlisted)
        path = min(content.unlisted)
        reports.append(
            f"{_count(n, 'folder')} in X cannot be listed and {_be(n)} skipped. The "
            f"first is {path!r}: {content.unlisted[path]}."
        )
    if content.ambiguous:
        n = len(content.ambiguous)
        pattern = f"pathlib.Path({os.fspath(folder)!r}).rglob('*.jpg')"
        reports.append(
            f"{_count(n, 'folder')} with images {_be(n)} left out of X, by the name or "
            "as a link to an export, since tools make copies of images there: "
            f"{_join(content.ambiguous)}. To read such a folder, rename it, pass it as "
            f"X, or pass a list of paths, such as sorted(map(str, {pattern}))."
        )
    return reports


def _describe_endings(endings: Counter[str], n_images: int) -> str:
    """Return sentences on the files with endings that are not read."""
    n = endings.total()
    groups = _group_endings(endings)
    shown = [f"{ending} ({count:,})" for ending, count in groups[:SHOWN_ENDINGS]]
    rest = groups[SHOWN_ENDINGS:]
    if rest:
        n_rest = sum(count for _, count in rest)
        shown.append(f"{len(rest):,} more ({n_rest:,})")
    cures = ["To read image files whatever their ending, pass a list of their paths."]
    plugins = {find_plugin(ending): ending for ending in endings}
    plugins.pop(None, None)
    cures += [
        f"Pillow reads {ending} after {code}."
        for code, ending in sorted(plugins.items(), key=str)
    ]
    return (
        f"{n:,} of {_count(n + n_images, 'file')} in X {_be(n)} left out, by the "
        f"ending: {', '.join(shown)}. {' '.join(cures)}"
    )


def _group_endings(endings: Counter[str]) -> list[tuple[str, int]]:
    """Return endings as they are shown, and their counts, the largest first.

    Endings that differ only in numbers or in the query of a URL are one group.
    """
    groups: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for ending, count in endings.items():
        word = re.split(r"[^\w.]", ending)[0]
        key = "number" if word[1:].isdigit() else word
        # A query makes a group of its own, besides the ending without one.
        groups[key if word == ending else f"{key}?"][ending] += count
    shown = []
    for group in groups.values():
        text = min(group, key=lambda ending: (-group[ending], ending))
        if not text.isprintable():
            # Bytes that are not UTF-8 could not be written to a log.
            text = text.encode("unicode_escape").decode()
        if len(text) > MAX_ENDING_LENGTH:
            text = f"{text[:MAX_ENDING_LENGTH]}..."
        if len(group) > 1:
            text += " and similar"
        shown.append((text, group.total()))
    return sorted(shown, key=lambda item: (-item[1], item[0]))


def _find_ending(name: str) -> str:
    """Return the ending of a name in lower case, with its dot, or `NO_ENDING`."""
    ending = os.path.splitext(name)[1]
    return ending if len(ending) > 1 else NO_ENDING


def _describe_skipped(folders: list[str]) -> list[str]:
    """Return a sentence on the folders that are left out in silence."""
    if not folders:
        return []
    n = len(folders)
    return [
        f"{_count(n, 'folder')}, hidden, made by tools or exports, {_be(n)} left out: "
        f"{_join(folders)}."
    ]


def _join(folders: list[str]) -> str:
    """Return the first folders of a list, and the number of the rest."""
    shown = ", ".join(map(repr, folders[:SHOWN_FOLDERS]))
    n_rest = len(folders) - SHOWN_FOLDERS
    return f"{shown} and {n_rest:,} more" if n_rest > 0 else shown


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _be(n: int) -> str:
    return "is" if n == 1 else "are"
