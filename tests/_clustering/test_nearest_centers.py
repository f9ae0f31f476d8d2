"""Nearest centers on faiss and torch, against exact distances."""

import faiss
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch._subclasses.fake_tensor import FakeTensorMode

from skdeepcluster._clustering.nearest_centers import (
    assign,
    make_search,
    nearest_tensors,
    resolve_kmeans_backend,
)

BACKENDS = ["faiss", "torch"]
CPU = torch.device("cpu")


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_assign_finds_nearest_centers(points, backend, spherical):
    centers = points[:50]
    labels, distances = assign(points, centers, spherical=spherical, backend=backend)
    assert (labels.dtype, distances.dtype) == (np.int32, np.float32)
    exact = np.square(points[:, None].astype(float) - centers).sum(axis=2)
    assigned = exact[np.arange(len(points)), labels]
    assert_allclose(distances, assigned, rtol=1e-4, atol=1e-3)
    if spherical:
        assert_array_equal(labels, (points @ centers.T).argmax(axis=1))
    else:
        assert_allclose(assigned, exact.min(axis=1), rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_assign_is_accurate_far_from_origin(points, backend):
    """In float32, ‖x‖² - 2xc + ‖c‖² keeps no digit of these distances."""
    # float32 holds integers of this size exactly.
    rows = points.round()
    shift = np.float32(2**15)
    labels, distances = assign(rows, rows[:50], backend=backend)
    shifted_labels, shifted_distances = assign(
        rows + shift, rows[:50] + shift, backend=backend
    )
    # A few distances between integers are equal, and their order is free.
    assert np.mean(shifted_labels == labels) > 0.99
    assert_allclose(shifted_distances, distances, rtol=1e-4, atol=0.01)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sum_clusters_adds_up_points(points, backend):
    labels, _ = assign(points, points[:7])
    search = make_search(points, False, backend, CPU)
    sums = search.sum_clusters(labels, 7)
    expected = [points[labels == i].sum(axis=0, dtype=float) for i in range(7)]
    assert sums.dtype == np.float64
    assert_allclose(sums, expected, rtol=1e-3, atol=0.1)


@pytest.mark.usefixtures("simulated_cuda")
@pytest.mark.parametrize("spherical", [False, True])
def test_torch_search_stays_on_device(spherical):
    """Fake tensors refuse to mix devices or to wait for the device."""
    with FakeTensorMode():
        rows = torch.empty(10, 4, device="cuda")
        labels, distances = nearest_tensors(rows, rows[:3], spherical)
    assert labels.device.type == distances.device.type == "cuda"
    assert labels.shape == distances.shape == (10,)


def test_backend_follows_device_and_faiss_build(monkeypatch):
    cpu, cuda, mps = map(torch.device, ("cpu", "cuda", "mps"))
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    assert resolve_kmeans_backend("auto", cpu) == "faiss"
    assert resolve_kmeans_backend("auto", cuda) == "torch"
    assert resolve_kmeans_backend("faiss", cuda) == "faiss"
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    assert resolve_kmeans_backend("auto", cpu) == "faiss"
    assert resolve_kmeans_backend("auto", cuda) == "faiss-gpu"
    assert resolve_kmeans_backend("faiss", cuda) == "faiss-gpu"
    assert resolve_kmeans_backend("auto", mps) == "torch"
    for device in (cpu, cuda, mps):
        assert resolve_kmeans_backend("torch", device) == "torch"
        resolved = resolve_kmeans_backend("auto", device)
        assert resolve_kmeans_backend(resolved, device) == resolved
