"""Files of embeddings and folders of clusters: complete or absent, and resumable."""

import csv
import importlib
import subprocess
import sys
import warnings
from unittest.mock import patch

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from skdeepcluster import DeepClusterEstimator, FaissKMeans
from skdeepcluster.io import _embeddings, _page, export_clusters, write_embeddings

# Fits of a few steps warn that they did not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 60


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[0][:N]


@pytest.fixture(scope="module")
def model(images):
    params = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0}
    return DeepClusterEstimator(4, **params).fit(images)


@pytest.fixture
def folder(images, tmp_path):
    (tmp_path / "images").mkdir()
    for i, values in enumerate(images):
        Image.fromarray(values).save(tmp_path / "images" / f"{i:03d}.png")
    return tmp_path / "images"


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(_embeddings, "CHUNK_ROWS", 16)


@pytest.fixture(params=["npy", "parquet"])
def suffix(request):
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return request.param


def read_table(path):
    table = importlib.import_module("pyarrow.parquet").read_table(path)
    embedding = np.array(table["embedding"].to_pylist(), np.float32)
    return table, table["cluster"].to_numpy(), embedding


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("form", ["array", "folder"])
def test_npy_holds_the_result_of_transform(model, images, folder, tmp_path, form):
    path = tmp_path / "x.npy"
    write_embeddings(model, images if form == "array" else folder, str(path))
    embeddings = np.load(path, mmap_mode="r")
    assert embeddings.dtype == np.float32
    assert_array_equal(embeddings, model.transform(images))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "x.npy"]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("form", ["array", "folder"])
def test_parquet_holds_paths_clusters_and_embeddings(
    model, images, folder, tmp_path, form
):
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    write_embeddings(model, images if form == "array" else folder, path)
    table, clusters, embedding = read_table(path)
    assert_array_equal(clusters, model.labels_)
    assert_array_equal(embedding, model.transform(images))
    assert ("path" in table.column_names) == (form == "folder")
    if form == "folder":
        assert table["path"].to_pylist() == list(map(str, sorted(folder.iterdir())))
    assert pq.ParquetFile(path).num_row_groups == 4


@pytest.mark.usefixtures("small_chunks")
def test_parquet_holds_the_names_of_clusters(model, images, folder, tmp_path):
    pytest.importorskip("pyarrow")
    named = model.name_clusters({1: "round"}).set_params(on_error="skip")
    (folder / "020.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 60 images cannot be read"):
        write_embeddings(named, folder, tmp_path / "x.parquet")
    table, clusters, _ = read_table(tmp_path / "x.parquet")
    expected = [None if c == -1 else named.cluster_names_[c] for c in clusters]
    assert table["cluster_name"].to_pylist() == expected
    assert {None, "0", "round"} <= {*expected}
    write_embeddings(model, images, tmp_path / "y.parquet")
    table, _, _ = read_table(tmp_path / "y.parquet")
    assert table.column_names == ["cluster", "embedding"]


@pytest.mark.usefixtures("small_chunks")
def test_unreadable_images_raise_or_are_skipped(
    model, images, folder, tmp_path, suffix
):
    for row in (20, 40):
        (folder / f"{row:03d}.png").write_bytes(b"")
    path = tmp_path / f"x.{suffix}"
    with pytest.raises(ValueError, match=r"row 20: .*020.png: the file is empty"):
        write_embeddings(model, folder, path)
    assert not path.exists()
    model.set_params(on_error="skip")
    try:
        with pytest.warns(UserWarning, match="2 of 60 images cannot be read"):
            write_embeddings(model, folder, path)
    finally:
        model.set_params(on_error="raise")
    embeddings = np.load(path) if suffix == "npy" else read_table(path)[2]
    readable = np.delete(np.arange(N), [20, 40])
    assert_array_equal(embeddings[readable], model.transform(images)[readable])
    assert np.isnan(embeddings[[20, 40]]).all()
    if suffix == "parquet":
        assert read_table(path)[1][[20, 40]].tolist() == [-1, -1]


SCRIPT = """
import sys, time
import numpy as np
from skdeepcluster import DeepClusterEstimator, io
io._embeddings.CHUNK_ROWS = 16
model = DeepClusterEstimator.load(sys.argv[1])
original_embed = model._embed
def embed(source):
    print(len(source), flush=True)
    time.sleep(0.3)
    return original_embed(source)
model._embed = embed
io.write_embeddings(model, np.load(sys.argv[2]), sys.argv[3])
"""


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("suffix", "n_chunks"), [("npy", 0), ("parquet", 3)], indirect=["suffix"]
)
def test_killed_call_is_resumed(model, images, tmp_path, suffix, n_chunks):
    path = tmp_path / "out" / f"x.{suffix}"
    path.parent.mkdir()
    model.save(tmp_path / "model")
    np.save(tmp_path / "images.npy", images)
    files = [tmp_path / "model", tmp_path / "images.npy", path]
    job = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *files], stdout=subprocess.PIPE, text=True
    )
    for _ in range(n_chunks + 1):
        assert job.stdout.readline() in ("16\n", "12\n")
    job.kill()
    job.communicate()
    assert not path.exists()
    with patch.object(model, "_embed", wraps=model._embed) as embed:
        write_embeddings(model, images, path)
    sizes = [len(call.args[0]) for call in embed.call_args_list]
    assert sizes == [16, 16, 16, 12][n_chunks:]
    embeddings = np.load(path) if suffix == "npy" else read_table(path)[2]
    assert_array_equal(embeddings, model.transform(images))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.usefixtures("small_chunks")
def test_unfinished_file_of_other_data_is_refused(model, images, folder, tmp_path):
    path = tmp_path / "x.npy"
    (folder / "059.png").write_bytes(b"")
    with pytest.raises(ValueError, match="row 59"):
        write_embeddings(model, folder, path)
    assert (tmp_path / "x.npy.partial").exists()
    with pytest.raises(ValueError, match=r"partial holds .*: paths, images differ"):
        write_embeddings(model, images, path)
    with pytest.raises(ValueError, match=r"rows, paths, images differ"):
        write_embeddings(model, images[:9], path)
    params = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 1}
    other = DeepClusterEstimator(4, **params).fit(images)
    with pytest.raises(ValueError, match=r"estimator differ"):
        write_embeddings(other, folder, path)
    for edited in (model.merge_clusters([[0, 1]]), model.name_clusters({0: "a"})):
        with pytest.raises(ValueError, match=r"estimator differ"):
            write_embeddings(edited, folder, path)
    (tmp_path / "x.npy.partial" / _embeddings.DESCRIPTION_NAME).unlink()
    write_embeddings(model, images, path)
    assert_array_equal(np.load(path), model.transform(images))


@pytest.mark.usefixtures("small_chunks")
def test_unfinished_file_of_other_arrays_is_refused(
    model, images, tmp_path, monkeypatch
):
    def raise_disk_full(self, start):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(_embeddings._Chunks, "read", raise_disk_full)
        with pytest.raises(OSError, match="disk full"):
            write_embeddings(model, images, tmp_path / "x.npy")
    with pytest.raises(ValueError, match=r"partial holds .*: images differ"):
        write_embeddings(model, images[::-1], tmp_path / "x.npy")
    write_embeddings(model, images, tmp_path / "x.npy")
    assert_array_equal(np.load(tmp_path / "x.npy"), model.transform(images))


def test_invalid_paths_of_files(model, images, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"x.csv' should end in .npy or .parquet"):
        write_embeddings(model, images, tmp_path / "x.csv")
    (tmp_path / "x.npy").write_text("mine")
    with pytest.raises(FileExistsError, match=r"x.npy exists"):
        write_embeddings(model, images, tmp_path / "x.npy")
    assert (tmp_path / "x.npy").read_text() == "mine"

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'skdeepcluster\[parquet\]'"):
        write_embeddings(model, images, tmp_path / "x.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]


# Folders of clusters.


def read_lines(directory):
    with open(directory / "clusters.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("mode", ["symlink", "copy", "csv"])
def test_clusters_in_folders(model, images, folder, tmp_path, mode):
    paths, out = sorted(folder.iterdir()), tmp_path / "a" / "clusters"
    export_clusters(model.labels_, paths, out, mode)
    expected = [
        {"path": str(paths[row]), "cluster": str(model.labels_[row])}
        for row in np.argsort(model.labels_, kind="stable")
    ]
    assert read_lines(out) == expected
    page = (out / "index.html").read_text()
    assert "60 images in 4 clusters" in page
    for cluster in range(4):
        rows = np.flatnonzero(model.labels_ == cluster)
        assert f"Cluster {cluster}: {len(rows)} images" in page
        cluster_folder = out / f"cluster_{cluster:03d}"
        assert cluster_folder.exists() == (mode != "csv")
        if mode == "csv":
            continue
        exported = sorted(cluster_folder.iterdir())
        names = [f"{i:06d}_{paths[row].name}" for i, row in enumerate(rows)]
        assert [path.name for path in exported] == names
        for path, row in zip(exported, rows, strict=True):
            assert path.is_symlink() == (mode == "symlink")
            assert path.read_bytes() == paths[row].read_bytes()
    for path in paths:
        assert str(path) in page
    thumbnails = list((out / "thumbnails").iterdir())
    shown = np.minimum(np.bincount(model.labels_), _page.SHOWN_IMAGES).sum()
    assert len(thumbnails) == shown == page.count("<img ")
    for thumbnail in thumbnails:
        assert f"thumbnails/{thumbnail.name}" in page
        with Image.open(thumbnail) as image:
            assert image.size == (96, 96)


def test_images_nearest_to_the_mean_come_first(model, images, folder, tmp_path):
    embeddings = model.transform(images)
    labels, paths = np.zeros(N, int), sorted(folder.iterdir())
    export_clusters(labels, paths, tmp_path / "x", "csv", embeddings=embeddings)
    distances = np.linalg.norm(embeddings - embeddings.mean(axis=0), axis=1)
    exported = [line["path"] for line in read_lines(tmp_path / "x")]
    assert exported == [str(paths[row]) for row in np.argsort(distances)]


def test_unreadable_images_are_listed(folder, tmp_path):
    paths = sorted(folder.iterdir())
    paths[3].write_bytes(b"")
    labels = np.zeros(N, int)
    labels[3] = -1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_clusters(labels, paths, tmp_path / "x")
    page = (tmp_path / "x" / "index.html").read_text()
    assert "Not readable: 1 image<" in page
    assert "60 images in 1 cluster<" in page
    assert not (tmp_path / "x" / "unreadable").exists()


def test_names_are_escaped(images, tmp_path):
    path = tmp_path / "<b>&\" '.png"
    Image.fromarray(images[0]).save(path)
    export_clusters([0], [path], tmp_path / "x")
    page = (tmp_path / "x" / "index.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;&quot;" in page


UNSAFE_NAMES = [
    "../..",
    "/etc",
    "a" * 300,
    "shoes",
    "Shoes",
    "NUL",
    "<b>.",
    "日本" * 60,
    "8",
    "a\0b\nc",
]


@pytest.mark.parametrize("mode", ["symlink", "copy"])
def test_names_of_clusters_are_safe(images, folder, tmp_path, mode):
    labels, paths = np.arange(N) % 10, sorted(folder.iterdir())
    out = tmp_path / "out" / "x"
    export_clusters(labels, paths, out, mode, cluster_names=UNSAFE_NAMES)
    folders = sorted(path for path in out.iterdir() if path.is_dir())
    names = [path.name for path in folders if path.name != "thumbnails"]
    assert names[:2] == ["cluster_000______", "cluster_001__etc"]
    assert names[3:6] == ["cluster_003_shoes", "cluster_004_Shoes", "cluster_005_NUL"]
    assert names[7] == "cluster_007_" + "日本" * 20
    assert names[8] == "cluster_008"
    assert names[9] == "cluster_009_a_b_c"
    assert len({name.lower() for name in names}) == 10
    assert [len(list((out / name).iterdir())) for name in names] == [6] * 10
    assert [path.name for path in out.parent.iterdir()] == ["x"]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "Cluster 3, shoes: 6 images" in page
    assert "Cluster 8: 6 images" in page
    assert "<b>" not in page
    assert "Cluster 6, &lt;b&gt;.: 6 images" in page
    thumbnails = list((out / "thumbnails").iterdir())
    assert len(thumbnails) == N
    assert all(f"thumbnails/{path.name}" in page for path in thumbnails)
    lines = read_lines(out)
    assert [line["name"] for line in lines] == np.repeat(UNSAFE_NAMES, 6).tolist()


def test_names_of_clusters_and_unreadable_images(folder, tmp_path):
    labels, paths = np.arange(N) % 3 - 1, sorted(folder.iterdir())
    names = np.array(["0", "round"], dtype=object)
    export_clusters(labels, paths, tmp_path / "x", "csv", cluster_names=names)
    pairs = {(line["cluster"], line["name"]) for line in read_lines(tmp_path / "x")}
    assert pairs == {("0", "0"), ("1", "round"), ("-1", "")}


def test_default_names_change_nothing(model, folder, tmp_path):
    paths = sorted(folder.iterdir())
    export_clusters(model.labels_, paths, tmp_path / "x")
    export_clusters(
        model.labels_, paths, tmp_path / "y", cluster_names=model.cluster_names_
    )
    for name in ("index.html", "clusters.csv"):
        assert (tmp_path / "x" / name).read_bytes() == (
            tmp_path / "y" / name
        ).read_bytes()


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["a"], ValueError, r"holds 1 names, but labels has the cluster 1"),
        ([], ValueError, r"holds 0 names.*such as model\.cluster_names_"),
        (["a", 1], TypeError, r"cluster_names holds 1, but .*model\.cluster_names_"),
        (["a", None], TypeError, r"cluster_names holds None"),
        ("ab", TypeError, r"cluster_names is a str"),
        ({0: "a", 1: "b"}, TypeError, r"cluster_names is a dict"),
        (5, TypeError, r"cluster_names is a int"),
    ],
)
def test_invalid_names_of_clusters(tmp_path, names, error, message):
    with pytest.raises(error, match=message):
        export_clusters([0, 1], ["a", "b"], tmp_path / "x", cluster_names=names)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("mode", ["symlink", "copy", "csv"])
def test_directories_are_not_overwritten_or_left_incomplete(folder, tmp_path, mode):
    paths, labels = sorted(folder.iterdir()), np.zeros(N, int)
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine exists"):
        export_clusters(labels, paths, tmp_path / "mine", mode)
    paths[5].unlink()
    with pytest.raises(OSError, match=r"005.png"):
        export_clusters(labels, paths, tmp_path / "x", mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "mine"]


def test_invalid_arguments_of_export(tmp_path):
    with pytest.raises(ValueError, match="mode='move' should be"):
        export_clusters([0], ["a.png"], tmp_path / "x", "move")
    with pytest.raises(ValueError, match=r"shape \(2,\) .*but there are 1 paths"):
        export_clusters([0, 1], ["a.png"], tmp_path / "x")
    with pytest.raises(ValueError, match="embeddings has 2 rows"):
        export_clusters([0], ["a.png"], tmp_path / "x", embeddings=np.ones((2, 3)))
    with pytest.raises(TypeError, match=r"paths=None .*model.paths_"):
        export_clusters([0], None, tmp_path / "x")
    with pytest.raises(TypeError, match="paths='photos' should hold the path of each"):
        export_clusters([0], "photos", tmp_path / "x")
    with pytest.raises(TypeError, match=r"paths holds a ndarray.*contact_sheet"):
        export_clusters([0], np.ones((1, 8, 8)), tmp_path / "x")
    with pytest.raises(ValueError, match=r"dtype float64.*such as model\.labels_"):
        export_clusters([0.5], ["a.png"], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_other_estimators_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'estimator' parameter of write_embeddings"):
        write_embeddings(FaissKMeans(), np.ones((9, 4)), tmp_path / "x.npy")
