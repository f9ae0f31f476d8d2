"""Image files of folders: what is read, left out, and left out with a warning."""

import os
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image
from torch import nn

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._inputs.folders import list_image_files
from skdeepcluster._inputs.read import read_input
from skdeepcluster._inputs.spec import InputSpec
from skdeepcluster.io import export_clusters

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
SCANDIR = os.scandir


def save_images(folder, n=12):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.fromarray(PIXELS[i]).save(folder / f"{i:02d}.png")
    return [str(folder / f"{i:02d}.png") for i in range(n)]


@pytest.fixture
def folder(tmp_path):
    save_images(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def paths(folder):
    return sorted(map(str, folder.iterdir()))


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")


def list_with_warning(folder, on_error="raise"):
    """Return the paths and the only warning."""
    with pytest.warns(UserWarning, match=" ") as record:
        paths = list_image_files(folder, on_error)
    assert len(record) == 1
    return paths, str(record[0].message)


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["a.HEIC", "b.heic", "c.CR2"], ["3 of 15 files", ".heic (2), .cr2 (1)"]),
        (
            ["a.jpg.bak", "b.PNG~", "c.JPG_large"],
            [".bak (1), .jpg_large (1), .png~ (1)"],
        ),
        (["IMG_0001", "a.b/c/README", "photo.", "x"], ["4 of 16", "none (4)"]),
        (["a.jpg?w=300"], ["1 of 13 files", ".jpg?w=300 (1)"]),
        (
            [f"{i}.jpg?w={i}&h=3" for i in range(3)],
            [".jpg?w=0&h=3 and similar (3)"],
        ),
        (["a.jpg (1)", "b.jpg (2)"], [".jpg (1) and similar (2)"]),
        (["scan.001", "scan.002", "dcm.1234567"], [".001 and similar (3)"]),
        (["a.mp3", "b.mp4"], [".mp3 (1), .mp4 (1)"]),
        (["a." + "x" * 100], [" ." + "x" * 15 + "... (1)"]),
        (["a.jp\n\x1b[2Jg"], [r".jp\n\x1b[2jg (1)"]),
        (["a.фото", "b.фото"], [".фото (2)"]),
        (
            [f"{i}.{ending}" for ending in "abcdefg" for i in range(ord(ending) - 95)],
            ["35 of 47", ".g (8), .f (7), .e (6), .d (5), .c (4), 2 more (5)"],
        ),
    ],
)
def test_files_are_counted_by_ending(folder, paths, names, parts):
    for name in names:
        path = folder / name
        touch(path.parent, path.name)
    found, message = list_with_warning(folder)
    assert found == paths
    for part in parts:
        assert part in message
    assert "list of their paths" in message


@pytest.mark.parametrize("name", [b"caf\xe9", b"a.\xe9\xff", b"\xff.txt"])
def test_files_with_names_that_are_not_utf8_are_counted(folder, paths, name):
    with open(os.path.join(os.fsencode(folder), name), "wb"):
        pass
    found, message = list_with_warning(folder)
    assert found == paths
    message.encode("utf-8")
    assert "1 of 13 files" in message


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("a.heic", "pillow_heif.register_heif_opener()"),
        ("a.HIF", "pillow_heif.register_heif_opener()"),
        ("a.jxl", "import pillow_jxl"),
    ],
)
def test_plugins_for_an_ending_are_named(folder, name, cure):
    touch(folder, name, "b.txt")
    assert cure in list_with_warning(folder)[1]


@pytest.mark.parametrize(
    "name",
    [
        *("Thumbs.db", "desktop.ini", "Desktop.ini", ".DS_Store", "ehthumbs.db"),
        *("Icon\r", "._a.txt", ".a.jpg", ".directory", "Picasa.ini"),
    ],
)
def test_hidden_files_and_files_of_the_system_are_not_counted(folder, paths, name):
    touch(folder, name)
    touch(folder / "sub", name)
    assert list_image_files(folder) == paths


def test_fit_warns_once_and_points_to_the_line_of_the_user(folder):
    touch(folder, "a.heic", "b.bak")
    network = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
    model = DeepClusterEstimator(2, backbone=network, fine_tune=False, n_jobs=1)
    with pytest.warns(UserWarning, match=r"2 of 14 files") as record:
        model.fit(folder)
    assert [w.filename for w in record if "files" in str(w.message)] == [__file__]


def fail_at(monkeypatch, name, error):
    """Let the listing of the folders of a name fail: root may list every folder."""

    def scandir(path="."):
        if os.path.basename(os.fspath(path)) == name:
            raise error
        return SCANDIR(path)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "p"),
        OSError(5, "Input/output error"),
        FileNotFoundError(2, "No such file or directory", "p"),
        OSError("stale"),
    ],
)
def test_subfolders_that_cannot_be_listed(monkeypatch, folder, paths, error):
    save_images(folder / "a" / "closed")
    save_images(folder / "z" / "closed")
    fail_at(monkeypatch, "closed", error)
    cause = error.strerror or "stale"
    with pytest.raises(ValueError, match=rf"a/closed.*{cause}.*2 .*on_error='skip'"):
        read_input(folder, InputSpec())
    with pytest.warns(UserWarning, match=rf"2 folders .*a/closed.*{cause}") as record:
        data, _ = read_input(folder, InputSpec(on_error="skip"))
    assert len(record) == 1
    assert data.paths.tolist() == paths


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_the_folder_itself_cannot_be_listed(monkeypatch, folder, on_error):
    fail_at(monkeypatch, "photos", PermissionError(13, "Permission denied"))
    with pytest.raises(
        ValueError, match=r"photos.*Permission denied.*[Aa]llow"
    ) as info:
        list_image_files(folder, on_error)
    assert "skip" not in str(info.value)


def test_the_folder_itself_is_a_loop_of_links(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match=r"loop.*cannot be listed.*links"):
        list_image_files(tmp_path / "loop")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
@pytest.mark.parametrize("mode", [0o000, 0o300])
def test_permissions_are_checked_for_real(folder, mode):
    save_images(folder / "closed")
    (folder / "closed").chmod(mode)
    try:
        with pytest.raises(ValueError, match=r"closed.*Permission denied"):
            list_image_files(folder)
    finally:
        (folder / "closed").chmod(0o700)


@pytest.mark.parametrize(
    ("name", "target"), [("more", "/mnt/nowhere"), ("loop", "loop"), ("a", "00.png/x")]
)
def test_links_to_folders_that_are_gone(folder, paths, name, target):
    (folder / name).symlink_to(target)
    with pytest.raises(ValueError, match=rf"photos/{name}'.*on_error='skip'"):
        list_image_files(folder)
    found, message = list_with_warning(folder, "skip")
    assert found == paths
    assert f"photos/{name}" in message


def test_links_to_files_that_are_gone(folder, paths):
    (folder / "notes").symlink_to("/nowhere/notes.txt")
    (folder / "99.png").symlink_to("/nowhere")
    (folder / ".#lock").symlink_to("user@host:1")
    found, message = list_with_warning(folder)
    assert found == [*paths, str(folder / "99.png")]
    assert "none (1)" in message


@pytest.mark.parametrize(
    "name",
    [
        *(".ipynb_checkpoints", ".git", ".thumbnails", ".Trash-1000", ".hidden"),
        *("@eaDir", "@EADIR", "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN"),
        *("System Volume Information", "lost+found", "__MACOSX", "__pycache__"),
        *("Catalog Previews.lrdata", "node_modules", "CaptureOne", "FOUND.000"),
    ],
)
def test_hidden_folders_and_folders_of_tools_are_left_out(folder, paths, name):
    save_images(folder / name / "sub")
    save_images(folder / "b" / name)
    touch(folder / name, "x.heic")
    assert list_image_files(folder) == paths
    # The folder itself may have any name.
    with pytest.warns(UserWarning, match="heic"):
        assert len(list_image_files(folder / name)) == 12


@pytest.mark.parametrize(
    "name",
    [
        *("thumbnails", "Thumbnails", "thumbs", "_thumbs", "THUMB", "thumbs_256"),
        *("thumbnail-100x100", "Trash", "trash", "Recycle Bin", "trashbin"),
    ],
)
def test_folders_that_may_be_of_tools_are_left_out_with_a_warning(folder, paths, name):
    (folder / "a" / name).mkdir(parents=True)
    touch(folder / "b" / name, "notes.txt")
    assert list_image_files(folder) == paths
    expected = save_images(folder / "c" / name / "sub")
    save_images(folder / name)
    found, message = list_with_warning(folder)
    assert found == paths
    assert "2 folders" in message
    for part in (f"'{folder / name}'", f"'{folder / 'c' / name}'", "X", "rglob"):
        assert part in message
    assert list_image_files(folder / "c" / name) == expected


@pytest.mark.parametrize(
    "name",
    ["thumbs_up", "thumbtacks", "trashed", "trash_cans", "git", "eaDir"],
)
def test_other_folders_are_read(folder, name):
    expected = save_images(folder / name)
    assert expected[0] in list_image_files(folder)


@pytest.mark.parametrize("mode", ["symlink", "copy", "csv"])
def test_exports_are_left_out(folder, paths, mode, tmp_path):
    labels = np.arange(12) % 3
    export_clusters(labels, paths, folder / "groups", mode)
    export_clusters(labels, paths, folder / "a" / "b" / "groups", mode)
    assert list_image_files(folder) == [*paths]
    # A copy of an export is an export, and so is one that was renamed.
    shutil.copytree(folder / "groups", folder / "copy", symlinks=True)
    (folder / "groups").rename(folder / "renamed")
    assert list_image_files(folder) == paths


@pytest.mark.parametrize("mode", ["symlink", "copy"])
def test_an_export_itself_is_read_without_its_thumbnails(folder, paths, mode, tmp_path):
    export = tmp_path / "groups"
    export_clusters(np.arange(12) % 3, paths, export, mode, cluster_names=list("abc"))
    found = list_image_files(export)
    assert len(found) == 12
    assert all("/cluster_00" in path for path in found)
    assert len(list_image_files(export / "cluster_001_b")) == 4
    assert len(list_image_files(export / "thumbnails")) == 12
    for cluster in export.glob("cluster_*"):
        shutil.rmtree(cluster)
    with pytest.raises(ValueError, match=r"no images.*groups/thumbnails"):
        list_image_files(export)


@pytest.mark.parametrize("target", [".", "cluster_001", "cluster_001/sub"])
def test_links_into_exports_elsewhere_are_left_out_with_a_warning(
    folder, paths, tmp_path, target
):
    export_clusters(np.arange(12) % 3, paths, tmp_path / "groups")
    save_images(tmp_path / "groups" / "cluster_001" / "sub", 1)
    (folder / "link").symlink_to(tmp_path / "groups" / target)
    found, message = list_with_warning(folder)
    assert found == paths
    assert str(folder / "link") in message
    with warnings.catch_warnings():
        # The export itself is made of links to the images.
        warnings.filterwarnings("ignore", ".* links that lead out")
        assert list_image_files(folder / "link")


def test_links_into_exports_beside_them_are_left_out(folder, paths):
    export_clusters(np.arange(12) % 3, paths, folder / "groups")
    (folder / "latest").symlink_to("groups")
    (folder / "z").symlink_to("groups/cluster_002")
    assert list_image_files(folder) == paths


def test_links_beside_their_folder_add_nothing(folder, paths):
    expected = save_images(folder / "m")
    for name in ("a", "z"):
        (folder / name).symlink_to("m")
    (folder / "m" / "loop").symlink_to("..")
    (folder / "self").symlink_to(".")
    assert list_image_files(folder) == [*paths, *expected]


def test_of_two_links_the_first_by_name_is_followed(folder, paths, tmp_path):
    save_images(tmp_path / "target")
    for name in ("b", "a", "c"):
        (folder / name).symlink_to(tmp_path / "target")
    found, _ = list_with_warning(folder)
    assert found == [*paths, *(str(folder / "a" / f"{i:02d}.png") for i in range(12))]


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (
            ["a.heic", "b.heic", "c.txt"],
            [".heic (2), .txt (1)", "register_heif_opener"],
        ),
        ([".hidden/a.png"], [".hidden"]),
        (["thumbs/a.png", "@eaDir/a.png"], ["thumbs", "@eaDir", "list of paths"]),
        (["photo"], ["none (1)"]),
        ([], ["such as .jpg"]),
    ],
)
def test_a_folder_without_images_says_what_it_holds(tmp_path, names, parts):
    for name in names:
        path = tmp_path / name
        touch(path.parent, path.name)
    with pytest.raises(ValueError, match="holds no images") as info:
        list_image_files(tmp_path)
    for part in parts:
        assert part in str(info.value)


def test_the_order_is_the_order_of_the_paths(tmp_path):
    names = ["b/1.png", "B.png", "a.png", "a/z.png", "a-b/0.png", "10.png", "9.png"]
    for name in names:
        touch((tmp_path / name).parent, (tmp_path / name).name)
    expected = sorted(str(tmp_path / name) for name in names)
    assert list_image_files(tmp_path) == expected
    assert list_image_files(str(tmp_path) + "//") == expected


@pytest.mark.parametrize("form", [str, lambda path: path, lambda path: f"{path}/."])
def test_paths_start_with_the_folder_as_it_is_passed(monkeypatch, folder, form):
    monkeypatch.chdir(folder.parent)
    relative = folder.relative_to(folder.parent)
    assert list_image_files(form(relative))[0] == "photos/00.png"
    monkeypatch.chdir(folder)
    assert list_image_files(".")[0] == "./00.png"


def test_a_folder_of_images_alone_gives_no_warning(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list_image_files(folder, "skip")) == 12


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_links_out_of_the_folder_cause_a_warning(folder, paths, tmp_path, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(paths[0], outside / "secret.png")
    link = folder / ("link.png" if kind == "file" else "link")
    link.symlink_to(outside / "secret.png" if kind == "file" else outside)
    with pytest.warns(UserWarning, match=rf"1 links .*out of it.*{link.name}"):
        files = list_image_files(folder)
    assert len(files) == len(paths) + 1


def test_links_inside_the_folder_and_folders_of_links_cause_no_warning(
    folder, paths, tmp_path
):
    (folder / "again.png").symlink_to(paths[0])
    assert len(list_image_files(folder)) == len(paths) + 1
    links = tmp_path / "links"
    links.mkdir()
    for row, path in enumerate(paths):
        (links / f"{row}.png").symlink_to(path)
    (links / "all").symlink_to(folder)
    assert len(list_image_files(links)) == 2 * len(paths) + 1
