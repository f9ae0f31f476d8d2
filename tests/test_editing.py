"""Clusters are edited without training, and an edited estimator keeps every promise."""

import copy
import pickle
from itertools import pairwise

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy.cluster import hierarchy
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score

from skdeepcluster import DeepClusterEstimator, _editing

# Fits of a few steps warn that they did not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 120
N_CLUSTERS = 4


def make_model(**params):
    quick = {"n_pseudo_labels": 20, "max_iter": 1, "epochs_per_iter": 1}
    defaults = {"n_clusters": N_CLUSTERS, "random_state": 0, **quick}
    return DeepClusterEstimator(**defaults | params)


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[0][:N]


@pytest.fixture(scope="module")
def model(images):
    return make_model().fit(images)


@pytest.fixture(scope="module")
def embedding(model, images):
    return model.transform(images)


@pytest.fixture
def folder(images, tmp_path):
    """Files of the images."""
    path = tmp_path / "images"
    path.mkdir()
    for i, values in enumerate(images):
        Image.fromarray(values).save(path / f"{i:03d}.png")
    return path


def digest(model):
    """Return a hash of everything that an edit must not change."""
    state = {name: value for name, value in vars(model).items() if name != "module_"}
    return joblib.hash(state), joblib.hash(
        [weights.numpy() for weights in model.module_.state_dict().values()]
    )


def check_clusters(model, X):
    """Check what holds for each fitted estimator."""
    labels, probabilities = model.labels_, model.probabilities_
    readable = labels >= 0
    assert labels.dtype == model.leaf_labels_.dtype == np.int32
    assert_array_equal(np.unique(labels[readable]), np.arange(model.n_clusters_))
    assert_array_equal(model.predict(X), labels)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (len(labels), model.n_clusters_)
    assert_array_equal(probabilities[readable].argmax(axis=1), labels[readable])
    assert_allclose(probabilities[readable].sum(axis=1), 1, rtol=1e-5)
    assert np.isnan(probabilities[~readable]).all()
    # Rounding differs by the number of images in a product.
    assert_allclose(model.predict_proba(X), probabilities, rtol=1e-4)
    assert_array_equal(
        model.predict_proba(X)[readable].argmax(axis=1), labels[readable]
    )
    assert model.cluster_names_.dtype == object
    assert len(set(model.cluster_names_)) == model.n_clusters_
    assert len(model.cluster_centers_) == model.n_clusters_


def assert_same_clusters(model, other):
    for name in ("labels_", "cluster_names_", "cluster_centers_", "probabilities_"):
        assert_array_equal(getattr(model, name), getattr(other, name))
    assert model.n_clusters_ == other.n_clusters_


def test_attributes_of_a_fit(model, images, embedding):
    check_clusters(model, images)
    assert type(model.n_clusters_) is int
    assert model.n_clusters_ == N_CLUSTERS
    assert model.cluster_names_.tolist() == ["0", "1", "2", "3"]
    n_leaves = len(np.unique(model.leaf_labels_))
    assert n_leaves > N_CLUSTERS
    assert model.children_.shape == (n_leaves - 1, 2)
    assert model.children_.dtype == np.int64
    assert model.distances_.shape == (n_leaves - 1,)
    assert model.distances_.dtype == np.float64
    assert_array_equal(model.predict_proba(images), model.probabilities_)


# Edits.


def draw_edit(draw, model):
    """Return an estimator after a random edit."""
    labels = st.integers(0, model.n_clusters_ - 1)
    sizes = np.bincount(model._cluster_model.clusters)
    edits = ["cut", "threshold", "name"]
    if model.n_clusters_ > 1:
        edits.append("merge")
    if sizes.max() > 1:
        edits.append("split")
    edit = draw(st.sampled_from(edits))
    if edit == "cut":
        return model.cut(draw(st.integers(1, len(model.children_) + 1)))
    if edit == "threshold":
        threshold = draw(st.floats(0, 1.5)) * model.distances_[-1]
        return model.cut(distance_threshold=threshold)
    if edit == "merge":
        merged = draw(st.lists(labels, unique=True, min_size=2))
        n_first = draw(st.integers(2, len(merged)))
        merges = [merged[:n_first], merged[n_first:]]
        return model.merge_clusters([merge for merge in merges if len(merge) > 1])
    if edit == "split":
        label = draw(st.sampled_from(np.flatnonzero(sizes > 1).tolist()))
        return model.split_cluster(label, draw(st.integers(2, int(sizes[label]))))
    name = draw(st.text("abß -é🐈", min_size=1).filter(str.strip))
    label = draw(labels)
    if name in np.delete(model.cluster_names_, label):
        return model
    return model.name_clusters({label: name})


@settings(max_examples=30)
@given(data=st.data())
def test_edits_keep_the_promises(model, images, embedding, tmp_path_factory, data):
    before, edited = digest(model), model
    for _ in range(data.draw(st.integers(1, 5))):
        previous, previous_digest = edited, digest(edited)
        edited = draw_edit(data.draw, edited)
        check_clusters(edited, images)
        assert digest(previous) == previous_digest
    for label, center in enumerate(edited.cluster_centers_):
        mean = embedding[edited.labels_ == label].mean(axis=0)
        assert_allclose(center, mean, atol=1e-5)
    assert edited.module_ is model.module_
    assert edited.get_params() == model.get_params()
    path = tmp_path_factory.mktemp("saved") / "model"
    edited.save(path)
    loaded = DeepClusterEstimator.load(path)
    check_clusters(loaded, images)
    assert_same_clusters(loaded, edited)
    # The loaded estimator can be edited, too.
    assert_same_clusters(loaded.cut(N_CLUSTERS), edited.cut(N_CLUSTERS))
    assert_array_equal(edited.cut(N_CLUSTERS).labels_, model.labels_)
    assert digest(model) == before


def test_chain_of_edits(model, images):
    edited = model.cut(3).merge_clusters([[0, 2]]).name_clusters({0: "a"})
    check_clusters(edited, images)
    assert edited.cluster_names_.tolist() == ["a", "1"]
    labels = model.cut(3).labels_
    assert_array_equal(edited.labels_, np.where(labels == 2, 0, labels))
    names = edited.cluster_names_[edited.labels_]
    assert_array_equal(names, np.where(labels == 1, "1", "a"))


def test_cut_equals_the_cut_of_scipy(model):
    n_leaves = len(model.children_) + 1
    merges = np.column_stack(
        [model.children_, model.distances_, np.arange(n_leaves - 1)]
    )
    # Scipy's last column is the number of leaves below each merge.
    counts = [1] * n_leaves
    for i, (left, right) in enumerate(model.children_):
        counts.append(counts[left] + counts[right])
        merges[i, 3] = counts[-1]
    assert hierarchy.is_valid_linkage(merges)
    assert sorted(hierarchy.dendrogram(merges, no_plot=True)["leaves"]) == list(
        range(n_leaves)
    )
    for n_clusters in range(1, n_leaves + 1):
        expected = hierarchy.cut_tree(merges, n_clusters)[model.leaf_labels_, 0]
        labels = model.cut(n_clusters).labels_
        assert adjusted_rand_score(expected, labels) == 1


def test_cuts_are_nested(model):
    labels = [model.cut(n_clusters).labels_ for n_clusters in range(1, 9)]
    for coarse, fine in pairwise(labels):
        assert len(np.unique(np.column_stack([coarse, fine]), axis=0)) == fine.max() + 1


def test_cut_undoes_other_edits(model):
    edited = model.split_cluster(0, 2).merge_clusters([[1, 3]]).name_clusters({0: "a"})
    restored = edited.cut(N_CLUSTERS)
    assert_array_equal(restored.labels_, model.labels_)
    # Cluster 0 has more images than its part with a name.
    assert restored.cluster_names_.tolist() == ["0", "1", "2", "3"]


def test_merge_renumbers_in_order(model):
    merged = model.merge_clusters([[3, 1]])
    assert_array_equal(merged.labels_, np.array([0, 1, 2, 1])[model.labels_])
    pairs = model.merge_clusters([[3, 0], [2, 1]])
    assert_array_equal(pairs.labels_, np.array([0, 1, 1, 0])[model.labels_])


def test_split_keeps_the_other_clusters(model):
    split = model.name_clusters({1: "a", 2: "b"}).split_cluster(1, 2)
    is_other = model.labels_ != 1
    assert_array_equal(split.labels_[is_other], model.labels_[is_other])
    assert set(split.labels_[~is_other]) == {1, N_CLUSTERS}
    assert np.sum(split.labels_ == 1) >= np.sum(split.labels_ == N_CLUSTERS)
    assert split.cluster_names_.tolist() == ["0", "1", "b", "3", "4"]
    assert_array_equal(split.merge_clusters([[1, 4]]).labels_, model.labels_)


def test_edits_of_skipped_images(folder, tmp_path):
    (folder / "003.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=f"1 of {N} images"):
        model = make_model(on_error="skip").fit(folder)
    assert model.leaf_labels_[3] == -1
    model.merge_clusters([[0, 1]]).save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    for edited in (model, model.cut(2), model.split_cluster(0, 2), loaded):
        assert edited.labels_[3] == -1
        assert edited.skipped_.tolist() == [3]
        with pytest.warns(UserWarning, match=f"1 of {N} images"):
            check_clusters(edited, folder)


def test_image_that_vanishes_during_the_fit(folder, make_cache):
    cache_dir = make_cache("none")

    def remove_file(history, fitted):
        (folder / "005.png").unlink(missing_ok=True)

    model = make_model(
        max_iter=2,
        on_error="skip",
        cache_dir=cache_dir,
        callbacks=remove_file,
        n_jobs=1,
    )
    with pytest.warns(UserWarning, match=f"1 of {N} images"):
        model.fit(folder)
    assert model.skipped_.tolist() == [5]
    for edited in (model, model.cut(2)):
        assert edited.labels_[5] == edited.leaf_labels_[5] == -1
        assert np.isnan(edited.probabilities_[5]).all()
        assert np.isfinite(np.delete(edited.probabilities_, 5, axis=0)).all()


@pytest.mark.parametrize(
    "params",
    [
        {"n_pseudo_labels": N_CLUSTERS, "n_neighbors": None},
        {"n_clusters": 1},
        {"n_clusters": 30, "n_pseudo_labels": N},
    ],
    ids=["one leaf per cluster", "one cluster", "many clusters"],
)
def test_edits_of_other_models(images, params):
    model = make_model(**params).fit(images)
    check_clusters(model, images)
    assert_array_equal(model.cut(model.n_clusters_).labels_, model.labels_)
    n_leaves = len(model.children_) + 1
    for n_clusters in {1, n_leaves // 2 or 1, n_leaves}:
        check_clusters(model.cut(n_clusters), images)


def test_single_leaf_cannot_be_split(images):
    model = make_model(n_pseudo_labels=N_CLUSTERS, n_neighbors=None).fit(images)
    with pytest.raises(ValueError, match=r"cluster 0, which is 1\. .*n_pseudo_labels"):
        model.split_cluster(0, 2)


def test_callback_can_edit(images):
    labels = []

    def callback(history, fitted):
        labels.append(fitted().cut(2).labels_)

    model = make_model(callbacks=callback).fit(images)
    assert_array_equal(labels[-1], model.cut(2).labels_)


# Errors leave the estimator unchanged. The cases of each edit are in
# tests/_clustering/test_editing.py.


@pytest.mark.parametrize(
    ("method", "arguments", "error", "message"),
    [
        ("cut", (), ValueError, "n_clusters=None"),
        ("cut", (2, 0.5), ValueError, "either n_clusters or distance_threshold"),
        ("cut", (N + 1,), ValueError, f"n_clusters={N + 1} .*n_pseudo_labels"),
        ("cut", (None, -1), ValueError, "distance_threshold=-1"),
        ("merge_clusters", ([0, 1],), ValueError, r"\[\[0, 1\]\]"),
        ("merge_clusters", ([[0, 4]],), ValueError, "4 in merges .* 0 to 3"),
        ("split_cluster", (4, 2), ValueError, "label=4 .* 0 to 3"),
        ("split_cluster", (0, N), ValueError, f"n_clusters={N} .*n_pseudo_labels"),
        ("name_clusters", ({4: "a"},), ValueError, "4 in names .* 0 to 3"),
        ("name_clusters", ({0: "a", 1: "a"},), ValueError, "'a' to the clusters"),
        ("name_clusters", ({0: "1"},), ValueError, "is a number"),
        ("name_clusters", ({0: "a\nb"},), ValueError, "cannot be printed"),
        ("name_clusters", ({0: "\ud800"},), ValueError, "cannot be printed"),
    ],
)
def test_bad_edit_raises(model, method, arguments, error, message):
    before = digest(model)
    with pytest.raises(error, match=message):
        getattr(model, method)(*arguments)
    assert digest(model) == before


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("cut", (2,)),
        ("merge_clusters", ([[0, 1]],)),
        ("split_cluster", (0, 2)),
        ("name_clusters", ({0: "a"},)),
        ("predict_proba", (np.zeros((3, 8, 8)),)),
    ],
)
def test_unfitted_estimator_raises(method, arguments):
    with pytest.raises(NotFittedError):
        getattr(make_model(), method)(*arguments)


def test_probabilities_of_an_unfitted_estimator():
    assert not hasattr(make_model(), "probabilities_")
    with pytest.raises(NotFittedError):
        _ = make_model().probabilities_


def test_large_probabilities_raise(model, monkeypatch):
    assert "probabilities_" in model._repr_html_()
    monkeypatch.setattr(_editing, "MAX_PROBABILITIES_BYTES", N * N_CLUSTERS * 4 - 1)
    with pytest.raises(AttributeError, match=r"\(120, 4\) would take .*predict_proba"):
        _ = model.probabilities_
    assert "cluster_names_" in model._repr_html_()
    assert_array_equal(model.cut(3).labels_, model.cut(3).probabilities_.argmax(axis=1))


# Copies.


@pytest.mark.parametrize(
    "copy_model",
    [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copy_of_an_edited_estimator(model, images, copy_model):
    edited = model.split_cluster(2, 2).name_clusters({0: "a"})
    copied = copy_model(edited)
    check_clusters(copied, images)
    assert_same_clusters(copied, edited)
    assert_same_clusters(copied.cut(2), edited.cut(2))


def test_edit_shares_a_network_on_another_device(model):
    edited = copy.deepcopy(model)
    edited.device_ = torch.device("meta")  # as if it had been fitted there
    assert edited.cut(2).module_ is edited.module_
    assert edited.cut(2).device_ == torch.device("meta")


def test_settings_of_an_edited_estimator_are_its_own(model, images):
    pytest.importorskip("pandas")
    original = copy.copy(model).set_output(transform="default")
    edited = original.cut(2).set_output(transform="pandas").set_params(n_clusters=7)
    assert hasattr(edited.transform(images), "columns")
    assert isinstance(original.transform(images), np.ndarray)
    assert original.n_clusters == N_CLUSTERS


@pytest.mark.parametrize("warm_start", [False, True])
def test_fit_of_an_edited_estimator_begins_with_its_parameters(
    model, images, warm_start
):
    before = digest(model)
    edited = model.cut(2).name_clusters({0: "a"}).set_params(warm_start=warm_start)
    expected = copy.deepcopy(model).set_params(warm_start=warm_start).fit(images)
    assert_same_clusters(edited.fit(images), expected)
    assert edited.n_clusters_ == N_CLUSTERS
    assert digest(model) == before


def test_clone_of_an_edited_estimator_is_unfitted(model):
    cloned = clone(model.cut(2))
    assert cloned.n_clusters == N_CLUSTERS
    assert not hasattr(cloned, "labels_")
