"""Mean average precision of image retrieval."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.evaluation import _retrieval, retrieval_map, untrained

# Quick fits may not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def images(digits_split):
    return digits_split["X_train"][:100]


@pytest.fixture(scope="module")
def y(digits_split):
    return digits_split["y_train"][:100]


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), n_values=st.sampled_from([1, 300, 2**24]))
def test_average_precision_equals_scikit_learn(seed, n_values):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(60, 4)).astype(np.float32)
    points, y = (
        points / np.linalg.norm(points, axis=1, keepdims=True),
        rng.integers(0, 5, 60),
    )
    queries = np.random.default_rng(seed).permutation(60)[:20]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_retrieval, "RANKED_VALUES", n_values)
        precisions = _retrieval._average_precisions(points, y, queries)
    for row, precision in zip(queries, precisions, strict=True):
        candidates = np.delete(np.arange(60), row)
        reference = average_precision_score(
            y[candidates] == y[row], points[candidates] @ points[row]
        )
        assert precision == pytest.approx(reference, abs=1e-6)


def test_average_precision_of_duplicates_is_1():
    points = np.repeat(np.eye(5, dtype=np.float32), 2, axis=0)
    y = np.repeat(np.arange(5), 2)
    precisions = _retrieval._average_precisions(points, y, np.arange(10))
    assert precisions.tolist() == [1] * 10


def test_retrieval_map_uses_the_last_convolution(digits_model, images, y):
    precision = retrieval_map(digits_model, images, y)
    assert isinstance(precision, float)
    assert precision == retrieval_map(digits_model, images, y, layer="conv4")
    assert precision != retrieval_map(digits_model, images, y, layer="conv1")


def test_retrieval_map_ranks_trained_above_untrained(digits_model, images, y):
    random_network = untrained(digits_model, random_state=0)
    random = retrieval_map(random_network, images, y)
    assert retrieval_map(digits_model, images, y) > random + 0.02


def test_retrieval_map_is_the_mean_over_queries(digits_model, images, y):
    single = [retrieval_map(digits_model, images, y, queries=[row]) for row in (7, 3)]
    precision = retrieval_map(digits_model, images, y, queries=[7, 3])
    assert precision == pytest.approx(np.mean(single))


def test_retrieval_map_searches_for_all_rows_by_default(digits_model, images, y):
    precision = retrieval_map(digits_model, images, y, queries=range(100))
    assert retrieval_map(digits_model, images, y) == precision


def test_query_without_another_image_of_its_class(digits_model, images, y):
    images, y = images[:40], y[:40].copy()
    y[5] = 77
    rows = [row for row in range(40) if row != 5]
    precision = retrieval_map(digits_model, images, y)
    assert precision == retrieval_map(digits_model, images, y, queries=rows)
    with pytest.raises(ValueError, match="None of the queries has another image"):
        retrieval_map(digits_model, images, y, queries=[5])


def test_queries_must_be_rows(digits_model, images, y):
    with pytest.raises(ValueError, match="integers from 0 to 99"):
        retrieval_map(digits_model, images, y, queries=[100])
    with pytest.raises(ValueError, match="should be a list of integers"):
        retrieval_map(digits_model, images, y, queries=[0.5])


def test_retrieval_map_without_convolutions(digits_split):
    rows = digits_split["X_train"].reshape(300, -1).astype(np.float32)
    y = digits_split["y_train"]
    model = DeepClusterEstimator(4, max_iter=1, epochs_per_iter=1, random_state=0)
    precision = retrieval_map(model.fit(rows), rows, y)
    assert precision == retrieval_map(model, rows, y, layer="embedding")
    assert 0.1 < precision < 1


@pytest.mark.parametrize(
    ("height", "width", "n"), [(8, 8, 14), (2, 2, 14), (1, 1, 14), (6, 9, 20)]
)
def test_regions_cover_the_maps(height, width, n):
    maps = torch.rand(3, 2, height, width)
    regions = _retrieval.region_maxima(maps, 3).reshape(3, n, 2)
    assert regions.max(dim=1).values.tolist() == maps.amax(dim=(2, 3)).tolist()
    transposed = _retrieval.region_maxima(maps.mT, 3).reshape(3, n, 2)
    assert torch.equal(transposed.sort(dim=1).values, regions.sort(dim=1).values)
    if height == width:
        assert torch.equal(regions[:, 0], maps.amax(dim=(2, 3)))


def test_regions_of_the_second_scale_have_two_thirds_of_the_size():
    maps = torch.arange(36.0).reshape(1, 1, 6, 6)
    assert _retrieval.region_maxima(maps, 2).tolist() == [[35, 21, 23, 33, 35]]
