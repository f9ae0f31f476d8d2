"""Fits on a CUDA device. All tests are skipped without one."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score

from skdeepcluster import DeepClusterEstimator

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)


@pytest.fixture(scope="module")
def digits():
    """Return images of digits and their classes."""
    data = load_digits()
    return data.images.astype(np.uint8), data.target


@pytest.fixture(scope="module")
def model(digits):
    """Return an estimator that was fitted on the device that "auto" chooses."""
    return DeepClusterEstimator(10, random_state=0).fit(digits[0])


def test_auto_uses_the_gpu(model):
    assert model.recipe_["device"].startswith("cuda")
    assert model.device_.type == "cuda"


def test_clusters_are_as_good_as_on_a_cpu(model, digits):
    assert normalized_mutual_info_score(digits[1], model.labels_) > 0.85


def test_same_seed_gives_the_same_clusters(model, digits):
    again = clone(model).fit(digits[0])
    assert np.array_equal(again.labels_, model.labels_)
    assert np.array_equal(again.transform(digits[0]), model.transform(digits[0]))


def test_predict_equals_labels(model, digits):
    images = digits[0]
    assert np.array_equal(model.predict(images), model.labels_)
    assert np.array_equal(model.predict(images[:7]), model.labels_[:7])
    assert np.array_equal(
        model.predict_proba(images).argmax(axis=1), model.predict(images)
    )


def test_saved_model_predicts_on_a_cpu(model, digits, tmp_path):
    model.save(tmp_path / "model")
    on_cpu = DeepClusterEstimator.load(tmp_path / "model", device="cpu")
    assert on_cpu.device_.type == "cpu"
    assert np.mean(on_cpu.predict(digits[0]) == model.labels_) > 0.99


def test_resumed_fit_equals_an_uninterrupted_one(digits, tmp_path):
    class Stop(Exception):
        pass

    def stop(history, fitted):
        if len(history) == 2:
            raise Stop

    params = {"n_clusters": 10, "max_iter": 3, "epochs_per_iter": 2, "random_state": 0}
    expected = DeepClusterEstimator(**params).fit(digits[0])
    resumed = DeepClusterEstimator(**params, checkpoint_dir=tmp_path, callbacks=stop)
    with pytest.raises(Stop):
        resumed.fit(digits[0])
    resumed.set_params(callbacks=None).fit(digits[0])
    assert np.array_equal(resumed.labels_, expected.labels_)


@pytest.mark.parametrize(
    "params",
    [
        {"head": "centroids", "n_crops": (2, 2)},
        {"precision": "float32", "sobel": True},
        {"backbone": "resnet18", "balance": "loss"},
        {"init": "features", "n_neighbors": None, "augment": "crops"},
        {"n_clusters": "auto", "batch_size": 256},
    ],
)
def test_other_parameters(digits, params):
    params = {"n_clusters": 10, "max_iter": 1, "epochs_per_iter": 1} | params
    model = DeepClusterEstimator(**params, random_state=0).fit(digits[0])
    assert np.array_equal(model.predict(digits[0]), model.labels_)


def test_gpu_memory_is_released(digits):
    def used():
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    before = used()
    model = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=1, random_state=0)
    model.fit(digits[0])
    del model
    assert used() - before < 2**20


def test_memory_error_names_the_batch_size(digits):
    torch.cuda.set_per_process_memory_fraction(0.001)
    try:
        model = DeepClusterEstimator(
            10, batch_size=1797, image_size=128, max_iter=1, random_state=0
        )
        with pytest.raises(MemoryError, match="batch_size"):
            model.fit(digits[0])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
