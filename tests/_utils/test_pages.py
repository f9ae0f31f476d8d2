"""Passes over memory maps release their pages, and keep all values."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from skdeepcluster._clustering.leaves import LinearClassifier
from skdeepcluster._clustering.nearest_centers import ScreenedSearch, assign
from skdeepcluster._clustering.sums import cluster_sums
from skdeepcluster._clustering.whitening import principal_components
from skdeepcluster._fit.loop import sum_values
from skdeepcluster._inputs.arrays import check_finite
from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster._training.features import extract_features
from skdeepcluster._utils import allocation, pages
from skdeepcluster._utils.allocation import allocate_array
from skdeepcluster._utils.compute import Compute
from skdeepcluster._utils.distributed import Sharded
from skdeepcluster._utils.pages import row_blocks, take_rows

N, D = 40_000, 128
LABELS = np.arange(N, dtype=np.int32) % 3
needs_linux = pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(), reason="needs Linux"
)


def count_resident_bytes():
    """Return the bytes of unnamed temporary files in memory of this process."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith("(deleted)") and tempfile.gettempdir() in line
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.fixture
def mapped(monkeypatch):
    """An array in a temporary file, 20 MB, without pages in memory."""
    monkeypatch.setattr(allocation, "MEMORY_BYTES", 0)
    monkeypatch.setattr(pages, "RELEASED_BYTES", 500_000)
    monkeypatch.setattr(pages, "ROW_BYTES", 10_000)
    values = allocate_array((N, D), np.float32, None, purpose="features")
    for rows in row_blocks(values):
        values[rows] = np.arange(rows.start, rows.stop)[:, None] % 7
    return values


class Identity(torch.nn.Module):
    """A network that returns its rows."""

    n_features = D

    def forward(self, x):
        return x


def extract(values):
    source = ArraySource(np.zeros((N, D), np.float32))
    compute = Compute(torch.device("cpu"))
    extract_features(Identity(), source, compute, out=values)


PASSES = {
    "extraction": extract,
    "sum": lambda values: sum_values(Sharded.whole(values)),
    "sample": lambda values: Sharded.whole(values).take(np.arange(0, N, 5)),
    "PCA": lambda values: principal_components(Sharded.whole(values)),
    "sums of clusters": lambda values: cluster_sums(values, LABELS, 3),
    "assignment": lambda values: assign(values, np.eye(3, D, dtype=np.float32)),
    "screened assignment": lambda values: ScreenedSearch(values, False).nearest(
        np.eye(D, dtype=np.float32)
    ),
    "classifier": LinearClassifier(np.zeros((D, 2)), np.zeros(2)).predict,
    "check": lambda values: check_finite(ArraySource(values)),
}


@needs_linux
@pytest.mark.parametrize("name", PASSES)
def test_pass_releases_its_pages(mapped, name):
    assert count_resident_bytes() < 1_000_000
    PASSES[name](mapped)
    assert count_resident_bytes() < 1_000_000
    # A pass without a release leaves all pages in memory.
    mapped.sum()
    assert count_resident_bytes() > 15_000_000


@needs_linux
def test_pages_are_released_during_a_pass(mapped):
    largest = 0
    for number, rows in enumerate(row_blocks(mapped, 100)):
        mapped[rows] += 1
        # The file of mappings takes long to read.
        if number % 40 == 39:
            largest = max(largest, count_resident_bytes())
    assert 0 < largest < 2_000_000


def test_released_pages_keep_their_values(mapped):
    for rows in row_blocks(mapped, 999):
        mapped[rows] = np.arange(rows.start, rows.stop)[:, None]
    assert_array_equal(mapped, np.arange(N)[:, None] * np.ones(D))
    rows = np.random.default_rng(0).permutation(N)[:1000]
    assert_array_equal(take_rows(mapped, rows), mapped[rows])


@pytest.mark.parametrize("n", [0, 1, 5, 6])
@pytest.mark.parametrize("n_rows", [None, 1, 2, 5, 100])
def test_blocks_cover_all_rows(n, n_rows):
    values = np.arange(3 * n).reshape(n, 3)
    blocks = [values[rows] for rows in row_blocks(values, n_rows)]
    assert_array_equal(np.concatenate(blocks), values)
