"""Nearest centers of points: exhaustive search on faiss or torch."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np
import torch

from .._utils.device import multiplies_bfloat16
from .._utils.memory import check_faiss_memory
from .._utils.pages import row_blocks
from .._utils.threads import limit_threads
from .screening import ScreenedCenters
from .sums import cluster_sums

CPU = torch.device("cpu")
# Smallest centers for which products in bfloat16 save time. The number of points does
# not count, so that the label of a point does not depend on the other points.
MIN_CLUSTERS = 64
MIN_FEATURES = 48
MIN_VALUES = 2**13
# Points for which another thread pays.
MIN_PART_ROWS = 1_024
# Rows in one search of faiss. The limit bounds the copy of shifted points.
SEARCH_ROWS = 65_536
# Products of a point and a center that torch holds in memory.
MAX_PRODUCTS = 2**24
# Largest |mean|² / spread of the centers at which products are taken without a shift.
# Products of float32 lose that factor of the precision of a squared distance.
MAX_OFFSET = 100.0


def resolve_kmeans_backend(backend: str, device: torch.device) -> str:
    """Turn "auto", "faiss" or "torch" into "faiss-gpu", "faiss" or "torch"."""
    has_faiss_gpu = device.type == "cuda" and faiss.get_num_gpus() > 0
    if backend == "auto":
        backend = "faiss" if has_faiss_gpu or device.type == "cpu" else "torch"
    return "faiss-gpu" if backend == "faiss" and has_faiss_gpu else backend


class FaissSearch:
    """Search for the nearest centers of fixed points on faiss.

    Parameters
    ----------
    points : ndarray of shape (n, d), float32
    spherical : bool
        Search for the largest inner product instead of the smallest distance.
    gpu : torch.device or None
        CUDA device that faiss runs on. None is the CPU.
    """

    def __init__(self, points: np.ndarray, spherical: bool, gpu: torch.device | None):
        self.points = points
        self.spherical = spherical
        self.gpu = gpu
        self.resources: Any = faiss.StandardGpuResources() if gpu else None

    def nearest(self, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return labels, int32 (n,), and squared distances, float32 (n,)."""
        check_faiss_memory()
        metric = faiss.METRIC_INNER_PRODUCT if self.spherical else faiss.METRIC_L2
        index: Any = faiss.IndexFlat(centers.shape[1], metric)
        if self.gpu:
            number = self.gpu.index or 0
            index = faiss.index_cpu_to_gpu(self.resources, number, index)
        origin = _shift_origin(centers, self.spherical)
        index.add(centers - origin)

        labels = np.empty(len(self.points), dtype=np.int32)
        distances = np.empty(len(self.points), dtype=np.float32)
        for rows in row_blocks(self.points, SEARCH_ROWS):
            points = self.points[rows] - origin if origin.any() else self.points[rows]
            values, ids = index.search(points, 1)
            labels[rows] = ids[:, 0]
            if self.spherical:
                values = _distances_from_products(
                    points, centers[ids[:, 0]], values[:, 0]
                )
            distances[rows] = values.ravel()
        return labels, distances

    def sum_clusters(self, labels: np.ndarray, n_clusters: int) -> np.ndarray:
        """Return the sum of the points of each cluster, float64 (n_clusters, d)."""
        return cluster_sums(self.points, labels, n_clusters)


class ScreenedSearch(FaissSearch):
    """Search for the nearest centers on the CPU by products in bfloat16.

    Labels equal those of `FaissSearch` wherever float32 can tell which center is the
    nearest. Elsewhere float64 decides, so that the label of a point does not depend on
    the other points. Of centers that are equally near, the first one is taken. For few
    or short centers faiss is faster, and does the search.

    Parameters
    ----------
    points : ndarray of shape (n, d), float32
    spherical : bool
        Search for the largest inner product instead of the smallest distance.
    """

    def __init__(self, points: np.ndarray, spherical: bool):
        super().__init__(points, spherical, None)

    def nearest(self, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return labels, int32 (n,), and squared distances, float32 (n,)."""
        k, d = centers.shape
        if k < MIN_CLUSTERS or d < MIN_FEATURES or k * d < MIN_VALUES:
            return super().nearest(centers)
        screened = ScreenedCenters(centers, self.spherical)
        labels = np.empty(len(self.points), dtype=np.int32)
        distances = np.empty(len(self.points), dtype=np.float32)
        n_threads = torch.get_num_threads()

        def assign_part(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            # Each part is the work of one thread. More than half of it is numpy's,
            # which has no threads of its own.
            with limit_threads(1):
                return screened.nearest(points)

        with ThreadPoolExecutor(n_threads) as pool:
            for rows in row_blocks(self.points, SEARCH_ROWS):
                n_parts = min(n_threads, 1 + len(self.points[rows]) // MIN_PART_ROWS)
                if n_parts == 1:
                    labels[rows], distances[rows] = screened.nearest(self.points[rows])
                    continue
                parts = np.array_split(self.points[rows], n_parts)
                results = zip(*pool.map(assign_part, parts), strict=True)
                labels[rows], distances[rows] = map(np.concatenate, results)
        return labels, distances


class TorchSearch:
    """Search for the nearest centers of fixed points by matrix products of torch.

    It has the parameters of `FaissSearch`, with any torch device.
    """

    def __init__(self, points: np.ndarray, spherical: bool, device: torch.device):
        # torch warns about read-only memory, since it could write to it.
        points = points if points.flags.writeable else points.copy()
        self.points = torch.from_numpy(points).to(device)
        self.spherical = spherical

    def _batches(self, n_clusters: int):
        return self.points.split(max(1, MAX_PRODUCTS // n_clusters))

    def nearest(self, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return labels, int32 (n,), and squared distances, float32 (n,)."""
        origin = _shift_origin(centers, self.spherical)
        shift = self.points.new_tensor(origin)
        shifted_centers = self.points.new_tensor(centers - origin)
        results = [
            nearest_tensors(
                points - shift if origin.any() else points,
                shifted_centers,
                self.spherical,
            )
            for points in self._batches(len(centers))
        ]
        labels, distances = map(torch.cat, zip(*results, strict=True))
        return labels.to(torch.int32).cpu().numpy(), distances.cpu().numpy()

    def sum_clusters(self, labels: np.ndarray, n_clusters: int) -> np.ndarray:
        """Return the sum of the points of each cluster, float64 (n_clusters, d)."""
        labels_on_device = torch.from_numpy(labels).to(self.points.device, torch.int64)
        sums = self.points.new_zeros(n_clusters, self.points.shape[1])
        batches = self._batches(n_clusters)
        # A matrix product is deterministic, while index_add on a GPU is not.
        for batch_labels, points in zip(
            labels_on_device.split(len(batches[0])), batches, strict=True
        ):
            one_hot = torch.nn.functional.one_hot(batch_labels, n_clusters)
            sums += one_hot.to(points.dtype).T @ points
        return sums.cpu().numpy().astype(np.float64)


def nearest_tensors(
    points: torch.Tensor, centers: torch.Tensor, spherical: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels (n,) and squared distances (n,) of points (n, d) in one batch."""
    squares = centers.square().sum(dim=1)
    offset = torch.zeros_like(squares) if spherical else squares / -2
    best, labels = torch.addmm(offset, points, centers.T).max(dim=1)
    products = best - offset[labels]
    distances = points.square().sum(dim=1) - 2 * products + squares[labels]
    return labels, distances.clamp(min=0)


def make_search(
    points: np.ndarray,
    spherical: bool,
    backend: str,
    device: torch.device,
    *,
    screens: bool | None = None,
) -> FaissSearch | TorchSearch:
    """Return the search for the nearest centers that the backend provides.

    Parameters
    ----------
    points : ndarray of shape (n, d), float32
    spherical : bool
    backend : {"auto", "faiss", "torch"}
    device : torch.device
    screens : bool or None, default=None
        Whether the CPU multiplies in bfloat16 before faiss is asked. None means that
        it does if it has instructions for bfloat16.
    """
    resolved = resolve_kmeans_backend(backend, device)
    if resolved == "torch":
        return TorchSearch(points, spherical, device)
    if screens is None:
        screens = multiplies_bfloat16(device)
    if screens and resolved == "faiss":
        return ScreenedSearch(points, spherical)
    return FaissSearch(points, spherical, device if resolved == "faiss-gpu" else None)


def assign(
    points: np.ndarray,
    centers: np.ndarray,
    *,
    spherical: bool = False,
    backend: str = "faiss",
    device: torch.device = CPU,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest center of each point.

    Parameters
    ----------
    points : ndarray of shape (n, d), float32, C-contiguous, finite
    centers : ndarray of shape (k, d), float32
    spherical : bool
        The nearest center is the one with the largest inner product.
    backend : {"auto", "faiss", "torch"}
    device : torch.device

    Returns
    -------
    labels : ndarray of shape (n,), int32
    distances : ndarray of shape (n,), float32
        Squared Euclidean distances.
    """
    return make_search(points, spherical, backend, device).nearest(centers)


def _distances_from_products(points, centers, products):
    """Return squared distances of pairs of rows, given their inner products."""
    squares = [np.einsum("ij,ij->i", rows, rows) for rows in (points, centers)]
    return np.maximum(squares[0] - 2 * products + squares[1], 0)


def _shift_origin(centers: np.ndarray, spherical: bool) -> np.ndarray:
    """Return the vector to subtract from points and centers before multiplication.

    It is zero unless the centers lie close together and far from zero.
    """
    mean = centers.mean(axis=0, dtype=np.float64).astype(centers.dtype)
    spread = np.square(centers - mean).sum(axis=1).mean()
    is_far = not spherical and float(mean @ mean) > MAX_OFFSET * float(spread)
    return mean if is_far else np.zeros_like(mean)
