"""Displays of clusters, of an embedding and of filters."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from torch import nn

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._plot import layout as layout_module
from skdeepcluster.inspection import (
    ContactSheetDisplay,
    EmbeddingDisplay,
    FiltersDisplay,
    contact_sheet,
    first_layer_filters,
)
from skdeepcluster.inspection._plot import embedding as embedding_module

pytestmark = [
    pytest.mark.usefixtures("pyplot"),
    # Quick fits may not converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

N = 60


def row_labels(ax):
    return [text.get_text() for text in ax.get_yticklabels()]


def all_rows_but(*rows):
    return [row for row in range(N) if row not in rows]


@pytest.mark.parametrize("order", ["nearest", "farthest", "random"])
def test_sheet_of_an_estimator(display_model, display_images, order):
    display = ContactSheetDisplay.from_estimator(
        display_model, display_images, order=order, n_images=4, size=16, random_state=0
    )
    sheet = contact_sheet(
        display_model, display_images, order=order, n_images=4, size=16, random_state=0
    )
    assert_array_equal(display.sheet, sheet)
    assert_array_equal(display.ax_.images[0].get_array(), display.sheet)
    sizes = np.bincount(display_model.labels_)
    assert row_labels(display.ax_) == [f"{i}  ({n})" for i, n in enumerate(sizes)]
    # Each label is at the center of its row of 2 + 16 pixels.
    assert_allclose(display.ax_.get_yticks(), [9.5, 27.5, 45.5])


def test_sheet_and_map_show_the_names_of_clusters(display_model, display_images):
    named = display_model.name_clusters({1: "round"})
    sheet = ContactSheetDisplay.from_estimator(named, display_images)
    size = np.bincount(named.labels_)[1]
    assert row_labels(sheet.ax_)[1] == f"1: round  ({size})"
    embedding = EmbeddingDisplay.from_estimator(named, display_images)
    assert [text.get_text() for text in embedding.text_] == ["0", "1: round", "2"]


def test_sheet_of_labels_equals_random_sheet_of_the_estimator(model, images):
    display = ContactSheetDisplay.from_predictions(
        model.labels_, images, n_images=6, size=8, random_state=0
    )
    sheet = contact_sheet(
        model, images, n_images=6, order="random", size=8, random_state=0
    )
    assert_array_equal(display.sheet, sheet)


def test_sheet_of_labels_and_broken_files(display_images, display_folder, sheet_cells):
    labels = np.arange(N) % 2 + 4
    labels[0] = -1
    with pytest.warns(UserWarning, match="2 of 60 images cannot be read"):
        display = ContactSheetDisplay.from_predictions(
            labels, display_folder, n_images=40, size=8, random_state=0
        )
    assert display.clusters == [4, 5]
    thumbnails = sheet_cells(display.sheet, 8)[..., 0].reshape(-1, 64).tolist()
    expected = display_images[all_rows_but(0, 3, 4)].reshape(-1, 64).tolist()
    assert sorted(row for row in thumbnails if min(row) < 255) == sorted(expected)


def test_sheet_of_labels_of_which_the_broken_file_has_none(
    broken_folder, images, sheet_cells
):
    labels = np.arange(30) % 2
    labels[3] = -1
    with pytest.warns(UserWarning, match="1 of 30"):
        display = ContactSheetDisplay.from_predictions(
            labels, broken_folder, n_images=20, size=8, random_state=0
        )
    cells = sheet_cells(display.sheet, 8)
    assert (cells != 255).any(axis=(2, 3, 4)).sum() == 29
    thumbnails = cells[0, :15, :, :, 0].tolist()
    assert sorted(thumbnails) == sorted(images[:30:2].tolist())


def test_sheet_of_an_estimator_and_broken_files(display_model, display_folder):
    with pytest.warns(UserWarning, match="2 of 60 images cannot be read"):
        display = ContactSheetDisplay.from_estimator(display_model, display_folder)
    assert sum(display.sizes) == N - 2


@pytest.mark.parametrize("n_channels", [1, 2, 3, 5])
def test_sheet_scales_floats_to_black_and_white(n_channels):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, n_channels, 9, 12))
    sheet = ContactSheetDisplay.from_predictions(
        [0] * 6, values, size=12, random_state=0
    ).sheet
    low, high = values.min(), values.max()
    gray = values if n_channels == 3 else values.mean(axis=1, keepdims=True)
    pixels = np.rint(255 * (gray - low) / (high - low)).astype(np.uint8)
    expected = sorted(np.broadcast_to(pixels, (6, 3, 9, 12)).tolist())
    thumbnails = [
        sheet[2:11, 2 + 14 * i : 14 + 14 * i].transpose(2, 0, 1).tolist()
        for i in range(6)
    ]
    assert sorted(thumbnails) == expected


def test_sheet_does_not_scale_pixels_of_files(tmp_path, sheet_cells):
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        Image.new("L", (4, 4), 100 + i).save(path)
    sheet = ContactSheetDisplay.from_predictions([0, 1], paths, size=4).sheet
    thumbnails = sheet_cells(sheet, 4)[:, 0]
    assert [set(thumbnail.flat) for thumbnail in thumbnails] == [{100}, {101}]


def test_sheet_averages_pixels_of_larger_images(sheet_cells):
    stripes = np.tile(np.uint8([0, 200]), (2, 8, 4))
    stripes[1, 0, 0] = 255
    sheet = ContactSheetDisplay.from_predictions([0, 1], stripes, size=4).sheet
    assert set(sheet_cells(sheet, 4)[0, 0].flat) == {100}


def test_sheet_keeps_the_aspect_ratio():
    values = np.zeros((2, 40, 20), np.uint8)
    values[1, :20] = 255
    sheet = ContactSheetDisplay.from_predictions([0, 1], values, size=10).sheet
    assert sheet.shape == (2 + 2 * 12, 2 + 7, 3)
    assert_array_equal(sheet[14:24, 2:7].mean(axis=(1, 2)), [255] * 5 + [0] * 5)
    Image.fromarray(sheet)


def test_sheet_errors(display_model, display_images):
    with pytest.raises(ValueError, match="order"):
        ContactSheetDisplay.from_estimator(display_model, display_images, order="best")
    with pytest.raises(ValueError, match="size"):
        ContactSheetDisplay.from_estimator(display_model, display_images, size=0)
    with pytest.raises(ValueError, match="'estimator'"):
        ContactSheetDisplay.from_estimator(display_model.labels_, display_images)
    with pytest.raises(ValueError, match=r"labels has shape.*shape \(60,\)"):
        ContactSheetDisplay.from_predictions([0], display_images)


def test_embedding_of_an_estimator(display_model, display_images):
    display = EmbeddingDisplay.from_estimator(display_model, display_images)
    embedding = display_model.transform(display_images)
    centered = embedding - embedding.mean(axis=0)
    _, _, components = np.linalg.svd(centered, full_matrices=False)
    expected = centered @ components[:2].T
    assert_allclose(np.abs(display.projection), np.abs(expected), atol=1e-3)
    ratios = expected.var(axis=0) / embedding.var(axis=0).sum()
    assert_allclose(display.explained_variance_ratio, ratios, rtol=1e-3)
    assert f"{ratios[0]:.0%} of the variance" in display.ax_.get_xlabel()
    assert_array_equal(display.labels, display_model.labels_)
    assert [text.get_text() for text in display.text_] == ["0", "1", "2"]
    drawn = np.concatenate([points.get_offsets() for points in display.ax_.collections])
    assert_allclose(sorted(drawn.tolist()), sorted(display.projection.tolist()))


def test_embedding_of_a_projection(display_model, display_images, display_folder):
    points = np.random.default_rng(0).normal(size=(N, 2))
    points[7] = np.nan
    with pytest.warns(UserWarning, match="2 of 60 images cannot be read"):
        display = EmbeddingDisplay.from_estimator(
            display_model, display_folder, projection=points, thumbnails=True
        )
    rows = all_rows_but(3, 4, 7)
    assert_array_equal(display.projection, points[rows])
    assert_array_equal(display.labels, display_model.labels_[rows])
    assert display.ax_.get_xlabel() == ""
    for thumbnail, row in zip(display.thumbnails, display.thumbnail_rows, strict=True):
        assert_array_equal(thumbnail[::4, ::4, 0], display_images[rows][row])


def test_embedding_leaves_out_points_without_cluster_or_position():
    embedding = np.random.default_rng(0).normal(size=(30, 5))
    embedding[2, 3], embedding[5, 0] = np.nan, np.inf
    labels = np.arange(30) % 3
    labels[6:9] = -1
    display = EmbeddingDisplay.from_predictions(embedding, labels)
    rows = [row for row in range(30) if row not in (2, 5, 6, 7, 8)]
    assert_array_equal(display.labels, labels[rows])
    assert display.projection.shape == (25, 2)
    assert np.isfinite(display.projection).all()


def test_embedding_with_broken_thumbnails(display_folder):
    points = 100.0 * np.stack(np.divmod(np.arange(N), 8), axis=1)
    with pytest.warns(UserWarning, match="2 of 60 images cannot be read"):
        display = EmbeddingDisplay.from_predictions(
            points, np.zeros(N), images=display_folder
        )
    assert_array_equal(display.projection, np.delete(points, 3, axis=0))
    assert 3 not in display.thumbnail_rows
    assert len(display.thumbnail_rows) == N - 2


def test_thumbnails_have_frames_and_do_not_overlap():
    rng = np.random.default_rng(0)
    points, labels = rng.normal(size=(300, 2)), np.arange(300) % 15
    rows = layout_module.select_spaced(points)
    images = rng.integers(256, size=(len(rows), 18, 24, 3)).astype(np.uint8)
    display = EmbeddingDisplay(
        points, labels, thumbnails=images, thumbnail_rows=rows
    ).plot()
    assert not display.ax_.collections
    boxes = []
    for image, row in zip(display.ax_.images, display.thumbnail_rows, strict=True):
        left, right, bottom, top = image.get_extent()
        center = (left + right) / 2, (bottom + top) / 2
        assert_allclose(center, display.projection[row])
        boxes.append((left, right, bottom, top))
        pixels = image.get_array()
        # 18 rows of pixels and a frame of 2 pixels.
        ratio = (right - left) / (top - bottom)
        assert ratio == pytest.approx(pixels.shape[1] / 22)
        text = display.text_[display.labels[row]]
        frame_color = text.get_bbox_patch().get_edgecolor()
        assert_allclose(pixels[0, 0] / 255, frame_color[:3], atol=1 / 255)
    assert len(boxes) > 20
    for box_a, box_b in itertools.combinations(np.array(boxes), 2):
        low = np.maximum(box_a[::2], box_b[::2])
        high = np.minimum(box_a[1::2], box_b[1::2])
        assert (low >= high).any()


def test_clusters_have_distinct_styles():
    from matplotlib.colors import to_hex

    points, labels = np.eye(40, 2)[:30], np.arange(40)[:30]
    display = EmbeddingDisplay(points, labels).plot()
    styles = {
        (to_hex(points.get_facecolor()[0]), points.get_paths()[0].vertices.tobytes())
        for points in display.ax_.collections
    }
    assert len(styles) == 30


def display_of_clusters(n_clusters):
    points = np.random.default_rng(0).normal(size=(1000, 2))
    return EmbeddingDisplay(
        points, np.arange(1000) % n_clusters, explained_variance_ratio=[1, 0]
    )


def test_embedding_draws_a_sample_of_many_points(monkeypatch):
    monkeypatch.setattr(layout_module, "MAX_POINTS", 100)
    display = display_of_clusters(3).plot()
    collections = display.ax_.collections
    assert sum(len(points.get_offsets()) for points in collections) == 100
    assert len(display.projection) == 1000
    assert all(points.get_rasterized() for points in collections)


def test_many_clusters_have_no_numbers(monkeypatch):
    monkeypatch.setattr(embedding_module, "MAX_LABELS", 5)
    assert len(display_of_clusters(5).plot().text_) == 5
    assert display_of_clusters(6).plot().text_ == []


def test_embedding_of_equal_points():
    display = EmbeddingDisplay.from_predictions(
        np.ones((5, 4)), np.zeros(5), images=np.zeros((5, 8, 8), np.uint8)
    )
    assert_allclose(display.projection, 0, atol=1e-12)
    assert display.ax_.get_xlabel() == "principal component 1, 0% of the variance"
    assert len(display.thumbnails) == 1
    display.figure_.draw_without_rendering()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 3), "embedding holds 4 rows for 5 images"),
        ((5, 1), "at least 2 features"),
        ((5, 0, 2), "0 feature|dim 3"),
    ],
)
def test_embedding_of_a_wrong_shape(shape, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingDisplay.from_predictions(np.ones(shape), np.zeros(5))


def test_embedding_of_wrong_predictions(display_model, display_images):
    rows = display_images.reshape(N, -1).astype(float)
    with pytest.raises(ValueError, match="nothing to draw"):
        EmbeddingDisplay.from_predictions(rows, np.full(N, -1))
    with pytest.raises(ValueError, match="labels has shape"):
        EmbeddingDisplay.from_predictions(rows, np.eye(N))
    with pytest.raises(ValueError, match="images holds 5 images, but labels 60"):
        EmbeddingDisplay.from_predictions(
            rows, display_model.labels_, images=display_images[:5]
        )


def test_embedding_of_a_wrong_projection(display_model, display_images):
    rows = display_images.reshape(N, -1).astype(float)
    with pytest.raises(ValueError, match="projection has 64 columns"):
        EmbeddingDisplay.from_estimator(display_model, display_images, projection=rows)
    with pytest.raises(ValueError, match="9 rows for 60"):
        EmbeddingDisplay.from_estimator(
            display_model, display_images, projection=rows[:9, :2]
        )
    with pytest.raises(ValueError, match="'estimator' parameter"):
        EmbeddingDisplay.from_estimator(display_model.module_, display_images)


def test_embedding_of_rows(display_images):
    rows = display_images.reshape(N, -1)
    model = DeepClusterEstimator(2, max_iter=1, epochs_per_iter=1, random_state=0)
    model.fit(rows)
    assert len(EmbeddingDisplay.from_estimator(model, rows).labels) == N
    with pytest.raises(ValueError, match="X holds rows of 64 values"):
        EmbeddingDisplay.from_estimator(model, rows, thumbnails=True)


def pixel(display, row, column):
    """Return the color of a pixel of the grid."""
    grid = display.ax_.images[0].get_array()
    assert grid.dtype == np.uint8
    return grid[row, column].tolist()


def test_filters_of_three_channels_are_in_color():
    filters = np.zeros((9, 3, 3, 3))
    filters[0, :, 0, 0] = 2, -2, 0
    filters[8, :, 2, 2] = 0, 0, 1e-9
    display = FiltersDisplay(filters).plot()
    # The grid and each filter of 3 x 11 pixels have a margin of 2 white pixels.
    step = 2 + 2 + 33 + 2
    assert pixel(display, 4, 4) == [255, 0, 128]
    assert pixel(display, 20, 20) == [128, 128, 128]
    assert pixel(display, 3, 20) == [255, 255, 255]
    assert pixel(display, step + 4 + 32, 4 + 32) == [128, 128, 255]
    assert pixel(display, step + 20, step + 20) == [255, 255, 255]
    assert display.ax_.images[0].get_array().shape[:2] == (2 + 2 * step, 2 + 8 * step)
    assert row_labels(display.ax_) == ["0", "8"]
    assert_allclose(display.ax_.get_yticks(), [2 + 18, 2 + 18 + step])


def test_channels_of_gray_filters_are_side_by_side():
    filters = np.zeros((1, 2, 3, 3))
    filters[0, 0], filters[0, 1] = 1, -0.5
    display = FiltersDisplay(filters).plot()
    assert pixel(display, 20, 4) == [255] * 3
    assert pixel(display, 20, 4 + 33) == [255] * 3
    assert pixel(display, 20, 4 + 34) == [64] * 3
    assert pixel(display, 20, 4 + 34 + 32) == [64] * 3


def test_filters_of_models(display_model):
    display = FiltersDisplay.from_estimator(display_model)
    assert_array_equal(display.filters, first_layer_filters(display_model))
    assert row_labels(display.ax_) == ["0", "8", "16", "24"]
    display = FiltersDisplay.from_estimator(nn.Conv2d(3, 96, 11))
    assert row_labels(display.ax_) == ["0", "16", "32", "48", "64", "80"]


def test_filters_errors():
    with pytest.raises(ValueError, match="has no convolution"):
        FiltersDisplay.from_estimator(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'model' parameter"):
        FiltersDisplay.from_estimator("model")
