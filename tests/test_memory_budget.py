"""Arrays beyond the budget are in temporary files, and no result depends on it."""

import tempfile

import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.cluster import KMeans
from torch import nn

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._clustering import pseudo_labels
from skdeepcluster._training import features as features_module
from skdeepcluster._utils import allocation, pages

# Fits this short may warn about their symptoms.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:The network was not trained:UserWarning"),
]

QUICK = {
    "n_clusters": 5,
    "n_pseudo_labels": 20,
    "max_iter": 1,
    "epochs_per_iter": 1,
    "random_state": 0,
}
# Modules with weights get images in color.
MODULE = nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.ReLU())
PARAMETERS = {
    "defaults": {},
    "final labels": {"n_pseudo_labels": 5, "n_neighbors": None, "init": "features"},
    "centroids": {"head": "centroids", "n_components": 16},
    "another clusterer": {"clusterer": KMeans(n_init=1)},
    "frozen": {"backbone": MODULE, "fine_tune": False},
}


@pytest.fixture
def images(digits_images):
    return digits_images[0][:200]


@pytest.fixture
def map_everything(monkeypatch, tmp_path):
    """Function that sets the budget to zero; it returns the folder of the files."""

    def start():
        folder = tmp_path / "temporary"
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        monkeypatch.setattr(allocation, "MEMORY_BYTES", 0)
        monkeypatch.setattr(pages, "RELEASED_BYTES", 10_000)
        return folder

    return start


def results(images, **parameters):
    model = DeepClusterEstimator(**QUICK | parameters)
    embedding = model.fit_transform(images)
    return {
        "labels_": model.labels_,
        "fit_transform": embedding,
        "transform": model.transform(images),
        "predict": model.predict(images),
        "predict_proba": model.predict_proba(images),
        "score": model.score(images),
    }


@pytest.mark.parametrize("n_sampled", [10_000, 150], ids=["all rows", "sample"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_results_do_not_depend_on_the_budget(
    monkeypatch, images, map_everything, name, n_sampled
):
    # Larger sets are clustered by a sample, in blocks of rows.
    monkeypatch.setattr(pseudo_labels, "KMEANS_ROWS", n_sampled)
    monkeypatch.setattr(pseudo_labels, "GRAPH_ROWS", n_sampled)
    monkeypatch.setattr(pseudo_labels, "BLOCK_ROWS", 100)
    expected = results(images, **PARAMETERS[name])
    folder = map_everything()
    mapped = results(images, **PARAMETERS[name])
    for key, value in expected.items():
        assert_array_equal(mapped[key], value, err_msg=key)
        assert type(mapped[key]) is type(value)
    assert list(folder.iterdir()) == []


def test_checkpoint_of_mapped_points(images, map_everything, tmp_path):
    parameters = PARAMETERS["centroids"] | {"max_iter": 2}
    expected = results(images, **parameters)
    map_everything()
    parameters["checkpoint_dir"] = tmp_path / "checkpoints"

    def interrupt(history, fitted):
        if len(history) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results(images, **parameters, callbacks=interrupt)
    assert list((tmp_path / "checkpoints").iterdir())
    resumed = results(images, **parameters)
    for key, value in expected.items():
        assert_array_equal(resumed[key], value, err_msg=key)


def test_cached_features_of_a_frozen_network(images, map_everything, tmp_path):
    expected = results(images, **PARAMETERS["frozen"])
    map_everything()
    for _ in range(2):
        mapped = results(images, **PARAMETERS["frozen"], cache_dir=tmp_path / "cache")
        for key, value in expected.items():
            assert_array_equal(mapped[key], value, err_msg=key)
    assert list((tmp_path / "cache").glob("features_*.npy"))


def test_decoded_images_beyond_the_budget(images, map_everything, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, image in enumerate(images[:100]):
        Image.fromarray(image).save(photos / f"{i:03d}.png")
    expected = results(images[:100])
    folder = map_everything()
    mapped = results(photos)
    for key, value in expected.items():
        assert_array_equal(mapped[key], value, err_msg=key)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("backbone", ["convnet", "mlp"])
def test_predictions_do_not_keep_all_features(monkeypatch, images, backbone):
    model = DeepClusterEstimator(**QUICK, backbone=backbone).fit(images)
    methods = [model.predict, model.predict_proba, model.score]
    expected = [method(images) for method in methods]

    def fail(shape, cache_dir):
        raise AssertionError("all features are allocated")

    monkeypatch.setattr(features_module, "allocate_features", fail)
    monkeypatch.setattr(features_module, "BLOCK_ROWS", 100)
    for method, value in zip(methods, expected, strict=True):
        assert_array_equal(method(images), value)
    with pytest.raises(AssertionError, match="all features"):
        model.transform(images)
