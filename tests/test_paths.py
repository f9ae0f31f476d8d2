"""Whatever name a file has, each function takes it once `fit` has taken it."""

import contextlib
import csv
import io
import os
import socket
import sys
import unicodedata
import urllib.parse
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.inspection import ContactSheetDisplay, contact_sheet
from skdeepcluster.io import export_clusters, write_embeddings

# Windows has no limits of resources.
resource = pytest.importorskip("resource")

# Fits of a few steps warn that they did not converge.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux"),
]

NOT_UTF8 = {
    b"stra\xdfe.png": r"stra\xdfe.png",
    "写真".encode("shift_jis") + b".png": r"\x8eʐ^.png",
    b"half \xe5\x86.png": r"half \xe5\x86.png",
    b"\xff\xfe\xed\xa0\x80.png": r"\xff\xfe\xed\xa0\x80.png",
}
PUNCTUATION = [
    "line\nfeed\r.png",
    "'single' \"double\".png",
    "a,b;c\td.png",
    "100% #1 ?w=3 &amp; <b>.png",
    "-rf.png",
    " =1+1 .png",
    unicodedata.normalize("NFD", "äöü") + ".png",
    "back\\slash \\xe9.png",
]
LONG = [
    "y" * 251 + ".png",
    "写" * 83 + "ab.png",
    "é" * 125 + ".jpeg",
    "👪" * 60 + "ab.tiff",
    "a." + "b" * 249 + ".png",
]
DEEP = "/".join([f"{level}-" + "d" * 200 for level in range(5)])
N_IMAGES = len(NOT_UTF8) + len(PUNCTUATION) + len(LONG) + 3


def quick(**params):
    params = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0, **params}
    return DeepClusterEstimator(2, **params)


def escape(path):
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def count_bytes(name):
    return len(os.fsencode(name))


@pytest.fixture(scope="module")
def folder(digits_images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / DEEP).mkdir(parents=True)
    names = [
        *map(os.fsdecode, NOT_UTF8),
        *PUNCTUATION,
        *LONG,
        *(f"{DEEP}/{i}.png" for i in range(3)),
    ]
    for name, values in zip(names, digits_images[0], strict=False):
        Image.fromarray(values).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return quick().fit(folder)


class PageLinks(HTMLParser):
    """Links, texts of links, and addresses of thumbnails of a page."""

    def __init__(self, page):
        super().__init__()
        self.links, self.titles, self.thumbnails = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "a":
            self.links.append(values["href"])
        if tag == "img":
            self.titles.append(values["title"])
            self.thumbnails.append(values["src"])


def test_paths_are_strings_that_open_the_files(model, folder):
    assert model.paths_.dtype == object
    assert {type(path) for path in model.paths_} == {str}
    assert len(model.paths_) == N_IMAGES
    assert all(map(os.path.isfile, model.paths_))
    assert max(map(count_bytes, model.paths_)) > 800
    assert_array_equal(model.predict(folder), model.predict(model.paths_))


@pytest.mark.parametrize("form", ["numpy", "object", "bytes entries", "subclass"])
def test_lists_of_paths_become_plain_strings(model, form):
    class Name(str):
        """Path of a library, such as those of upath."""

    paths = list(model.paths_)
    X = {
        "numpy": lambda: np.array(paths),
        "object": lambda: model.paths_,
        "bytes entries": lambda: list(map(BytesPath, paths)),
        "subclass": lambda: list(map(Name, paths)),
    }[form]()
    fitted = quick().fit(X)
    assert fitted.paths_.tolist() == paths
    assert {type(path) for path in fitted.paths_} == {str}
    assert fitted.paths_.dtype == object


class BytesPath:
    """Path whose text is bytes, as that of an entry of os.scandir(b"folder")."""

    def __init__(self, path):
        self.path = os.fsencode(path)

    def __fspath__(self):
        return self.path


def test_one_long_path_costs_the_others_nothing(digits_images, tmp_path):
    (tmp_path / DEEP).mkdir(parents=True)
    Image.fromarray(digits_images[0][0]).save(tmp_path / DEEP / "0.png")
    Image.fromarray(digits_images[0][1]).save(tmp_path / "0.png")
    paths = [str(tmp_path / "0.png")] * 200 + [str(tmp_path / DEEP / "0.png")]
    assert quick(n_jobs=1).fit(paths).paths_.nbytes == 8 * 201


@pytest.mark.parametrize("mode", ["symlink", "copy", "csv"])
def test_export_takes_each_name(model, tmp_path, mode):
    labels, out = np.arange(N_IMAGES) % 2, tmp_path / "out"
    export_clusters(labels, model.paths_, out, mode)
    order = np.argsort(labels, kind="stable")
    expected = [escape(path) for path in model.paths_[order]]

    with open(out / "clusters.csv", newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == expected
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(out / "clusters.csv")
    assert frame["path"].tolist() == expected
    assert frame["cluster"].tolist() == labels[order].tolist()

    page = PageLinks((out / "index.html").read_bytes().decode("utf-8"))
    opened = [
        urllib.parse.unquote_to_bytes(link[len("file://") :]) for link in page.links
    ]
    assert opened == [os.fsencode(path) for path in model.paths_[order]]
    assert all(link.isascii() and " " not in link for link in page.links)
    assert page.titles == expected
    assert all((out / thumbnail).is_file() for thumbnail in page.thumbnails)

    for cluster in (0, 1) if mode != "csv" else ():
        exported = sorted((out / f"cluster_{cluster:03d}").iterdir())
        for i, (target, path) in enumerate(
            zip(exported, model.paths_[labels == cluster], strict=True)
        ):
            name = os.path.basename(path)
            assert target.read_bytes() == Path(path).read_bytes()
            assert target.name.startswith(f"{i:06d}_{name[:20]}")
            assert target.suffix == Path(path).suffix
            assert count_bytes(target.name) <= 255
            if count_bytes(name) <= 248:
                assert target.name == f"{i:06d}_{name}"
            else:
                assert count_bytes(target.name) > 250
                # No letter was cut in half.
                target.name.encode("utf-8")


@pytest.mark.parametrize(("name", "text"), NOT_UTF8.items())
def test_bytes_that_are_not_utf8_are_shown_as_escapes(
    digits_images, tmp_path, name, text
):
    path = os.fsencode(tmp_path) + b"/" + name
    with open(path, "wb") as file:
        Image.fromarray(digits_images[0][0]).save(file, "PNG")
    export_clusters([0], [os.fsdecode(path)], tmp_path / "out")
    assert f"{tmp_path}/{text}" in (tmp_path / "out" / "clusters.csv").read_text(
        "utf-8"
    )
    assert f"{tmp_path}/{text}" in (tmp_path / "out" / "index.html").read_text("utf-8")


def test_export_takes_names_of_clusters_that_are_not_utf8(model, tmp_path):
    labels = np.arange(N_IMAGES) % 3
    names = list(map(os.fsdecode, [b"caf\xe9", b"\xff", b"ok"]))
    export_clusters(labels, model.paths_, tmp_path / "out", cluster_names=names)
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(tmp_path / "out" / "clusters.csv")
    assert frame["name"].drop_duplicates().tolist() == [r"caf\xe9", r"\xff", "ok"]
    assert r"Cluster 0, caf\xe9" in (tmp_path / "out" / "index.html").read_text("utf-8")


def test_embeddings_are_written_for_each_name(model, folder, tmp_path):
    write_embeddings(model, folder, tmp_path / "x.npy")
    embedding = np.load(tmp_path / "x.npy")
    assert_array_equal(embedding, model.transform(folder))
    pq = pytest.importorskip("pyarrow.parquet")
    write_embeddings(model, folder, tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["path"].to_pylist() == [escape(path) for path in model.paths_]
    assert_array_equal(np.array(table["embedding"].to_pylist()), embedding)


def test_paths_are_the_same_after_loading(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    assert loaded.paths_.dtype == object
    assert loaded.paths_.tolist() == model.paths_.tolist()


@pytest.mark.parametrize("name", ["zero\0byte.png", "\ud800.png", "\udce9\ud83d.png"])
def test_names_that_no_file_can_have_are_skipped(folder, model, tmp_path, name):
    skipping = quick(on_error="skip")
    with pytest.warns(UserWarning, match="cannot be read"):
        skipping.fit([*model.paths_, name])
    assert skipping.skipped_.tolist() == [N_IMAGES]
    skipping.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    assert loaded.paths_[:-1].tolist() == model.paths_.tolist()
    export_clusters(skipping.labels_, skipping.paths_, tmp_path / "out")
    if pytest.importorskip("pyarrow"):
        with pytest.warns(UserWarning, match="cannot be read"):
            write_embeddings(skipping, skipping.paths_, tmp_path / "x.parquet")


class InterruptedFit(Exception):
    """Ends a fit after its second round, before its state is written."""


def interrupt(history, fitted):
    if len(history) == 2:
        raise InterruptedFit


@pytest.mark.parametrize("name", [b"caf\xe9 " + b"z" * 240, b"\xff\n[*]?", b"\xed\xa0"])
def test_fits_resume_and_find_their_cache_whatever_the_names(folder, tmp_path, name):
    place = tmp_path / os.fsdecode(name)
    params = {"max_iter": 3, "checkpoint_dir": place / "c", "cache_dir": place / "d"}
    with pytest.raises(InterruptedFit):
        quick(callbacks=interrupt, **params).fit(folder)
    files = {path: path.stat().st_mtime_ns for path in (place / "d").iterdir()}
    assert len(files) == 1
    rounds = []
    resumed = quick(
        callbacks=lambda history, fitted: rounds.append(len(history)), **params
    ).fit(folder)
    # The state after the first round is used. A new start would repeat the round.
    assert rounds[0] == 2
    expected = quick(max_iter=3).fit(folder)
    assert_array_equal(resumed.labels_, expected.labels_)
    assert_array_equal(resumed.transform(folder), expected.transform(folder))
    assert not any((place / "c").iterdir())
    for path, time in files.items():
        assert path.stat().st_mtime_ns == time


def print_to(encoding, text):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    print(text, file=file)
    file.flush()
    return file.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("name", [b"caf\xe9.png", b"\x80\x81.jpg", b"a\xc3.png"])
def test_messages_about_a_file_can_be_printed(digits_images, tmp_path, name, encoding):
    for i in range(4):
        Image.fromarray(digits_images[0][i]).save(tmp_path / f"{i}.png")
    broken = tmp_path / os.fsdecode(name)
    broken.write_bytes(b"")
    with pytest.raises(ValueError, match="on_error='skip'") as caught:
        quick().fit(tmp_path)
    assert escape(broken) in print_to(encoding, caught.value)
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        model = quick(on_error="skip").fit(tmp_path)
        contact_sheet(model, tmp_path, n_images=2)
    texts = [print_to(encoding, record.message) for record in records]
    assert sum(escape(broken) in text for text in texts) == 2
    with pytest.raises(OSError, match="label -1") as caught:
        export_clusters([0], [broken], tmp_path / "out")
    assert escape(broken) in print_to(encoding, caught.value)
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        DeepClusterEstimator.load(broken)
    assert escape(broken) in print_to(encoding, caught.value)
    with pytest.raises(FileExistsError) as caught:
        export_clusters([0], [tmp_path / "0.png"], broken)
    assert escape(broken) in print_to(encoding, caught.value)


def test_displays_take_each_name(pyplot, model, folder):
    assert contact_sheet(model, folder, n_images=3).ndim == 3
    ContactSheetDisplay.from_estimator(model, folder, n_images=3)


OUTPUT_NAMES = [
    b"caf\xe9",
    b"\xff\xfe",
    b"key=value, 100% #?",
    "写".encode() * 80,
    "é".encode() * 119 + b"\xe9",
    b"w" * 240,
    b"-",
]


@pytest.mark.parametrize("name", OUTPUT_NAMES)
def test_results_get_each_name(model, folder, tmp_path, name):
    place = tmp_path / os.fsdecode(name) / DEEP
    place.mkdir(parents=True)
    name = os.fsdecode(name)
    model.save(place / f"{name}.safetensors")
    loaded = DeepClusterEstimator.load(place / f"{name}.safetensors")
    assert_array_equal(loaded.labels_, model.labels_)
    write_embeddings(model, folder, place / f"{name}.npy")
    export_clusters(model.labels_, model.paths_, place / name)
    expected = {f"{name}.safetensors", f"{name}.npy", name}
    if pytest.importorskip("pyarrow"):
        write_embeddings(model, folder, place / f"{name}.parquet")
        expected.add(f"{name}.parquet")
    assert {path.name for path in place.iterdir()} == expected


@pytest.mark.parametrize("letter", ["x", "é", "写"])
def test_names_of_255_bytes(model, folder, tmp_path, letter):
    def fill(ending):
        n_free = 255 - len(ending)
        size = len(letter.encode())
        return letter * (n_free // size) + "_" * (n_free % size) + ending

    names = {fill(""), fill(".npy"), fill(".bin")}
    export_clusters(model.labels_, model.paths_, tmp_path / fill(""))
    write_embeddings(model, folder, tmp_path / fill(".npy"))
    model.save(tmp_path / fill(".bin"))
    assert {path.name for path in tmp_path.iterdir()} == names
    assert {count_bytes(name) for name in names} == {255}


@pytest.mark.parametrize("letter", ["x", "写", os.fsdecode(b"\xe9")])
def test_unfinished_files_of_long_names_are_told_apart(
    model, folder, digits_images, tmp_path, letter
):
    stem = letter * (250 // count_bytes(letter) - 1)
    first, second = tmp_path / f"{stem}1.npy", tmp_path / f"{stem}2.npy"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    for path, paths in ((first, [broken]), (second, [broken, broken])):
        with pytest.raises(ValueError, match="row 0"):
            write_embeddings(model, paths, path)
    unfinished = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert len(unfinished) == 2
    assert all(name.endswith(".partial") for name in unfinished)
    assert max(map(count_bytes, unfinished)) <= 255
    Image.fromarray(digits_images[0][0]).save(broken)
    with pytest.raises(ValueError, match=r"partial holds .*rows, paths differ"):
        write_embeddings(model, [broken, broken], first)
    write_embeddings(model, [broken], first)
    write_embeddings(model, [broken, broken], second)
    assert sorted(tmp_path.iterdir()) == sorted([first, second, broken])


# Images and directories that cannot be exported.


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name)


def make_device(path):
    path.symlink_to("/dev/zero")


def make_folder(path):
    path.mkdir()


def make_loop(path):
    path.symlink_to(path)


def make_dangling_link(path):
    path.symlink_to("nowhere")


def write_truncated(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, path.suffix[1:])
    path.write_bytes(path.read_bytes()[:-900])


def write_text(path):
    path.write_text("no image")


@pytest.mark.parametrize("mode", ["symlink", "copy", "csv"])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (make_pipe, "pipe.png"),
        (make_socket, "socket.png"),
        (make_device, "device.png"),
        (make_folder, "folder.png"),
        (make_loop, "loop.png"),
        (make_dangling_link, "dangling.png"),
        (lambda path: None, "vanished.png"),
        (write_truncated, "truncated.png"),
        (write_truncated, "truncated.jpeg"),
        (write_truncated, "truncated.tiff"),
        (write_text, "text.gif"),
    ],
)
def test_images_that_cannot_be_exported_are_named(
    digits_images, tmp_path, mode, make, name
):
    good = tmp_path / "good.png"
    Image.fromarray(digits_images[0][0]).save(good)
    make(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    paths = [good, tmp_path / name]
    with pytest.raises(OSError, match=name) as caught:
        export_clusters([0, 0], paths, tmp_path / "a" / "b" / "out", mode)
    assert "label -1" in str(caught.value)
    assert caught.value.errno is not None
    assert sorted(tmp_path.iterdir()) == before
    export_clusters([0, -1], paths, tmp_path / "out", mode)


def test_a_file_that_the_disk_refuses_is_named(digits_images, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"directory=.*out") as caught:
            export_clusters([0], [tmp_path / "large.png"], tmp_path / "out", "copy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "large.png" in str(caught.value)
    assert "mode='symlink'" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["large.png"]


@pytest.mark.parametrize(
    "directory", ["/proc/clusters", "file/clusters", "x" * 256, "写" * 86]
)
def test_directories_that_the_system_refuses_are_named(
    digits_images, tmp_path, directory
):
    Image.fromarray(digits_images[0][0]).save(tmp_path / "file", "PNG")
    with pytest.raises(OSError, match=rf"directory='.*{directory}"):
        export_clusters([0], [tmp_path / "file"], tmp_path / directory)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_link_that_leads_nowhere_is_not_replaced(digits_images, tmp_path):
    Image.fromarray(digits_images[0][0]).save(tmp_path / "a.png")
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="out exists"):
        export_clusters([0], [tmp_path / "a.png"], tmp_path / "out")
    assert (tmp_path / "out").is_symlink()


def test_copies_keep_their_times(digits_images, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(digits_images[0][0]).save(path)
    path.chmod(0o444)
    os.utime(path, (1e9, 1e9))
    export_clusters([0], [path], tmp_path / "out", "copy")
    copy = tmp_path / "out" / "cluster_000" / "000000_a.png"
    assert copy.stat().st_mtime == 1e9
