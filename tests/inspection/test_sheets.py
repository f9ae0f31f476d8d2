"""Contact sheets of an estimator's clusters."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skdeepcluster.inspection import contact_sheet

# Quick fits may not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize(("order", "sign"), [("nearest", 1), ("farthest", -1)])
def test_contact_sheet_by_distance(model, images, sheet_cells, order, sign):
    sheet = contact_sheet(model, images, 2, n_images=4, order=order, size=16)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 + 2 * 18, 2 + 2 * 18, 3)
    members = np.flatnonzero(model.labels_ == 2)
    offsets = model.transform(images[members]) - model.cluster_centers_[2]
    distances = np.linalg.norm(offsets, axis=1)
    rows = members[np.argsort(sign * distances)[:4]]
    thumbnails = sheet_cells(sheet, 16).reshape(4, 16, 16, 3)
    for thumbnail, row in zip(thumbnails, rows, strict=True):
        expected = images[row].repeat(2, axis=0).repeat(2, axis=1)
        assert_array_equal(thumbnail, expected[..., None].repeat(3, axis=2))


def test_contact_sheet_of_all_clusters_has_one_row_each(model, images, sheet_cells):
    sheet = contact_sheet(model, images, n_images=3, size=8)
    for cluster, row in enumerate(sheet_cells(sheet, 8)):
        single = contact_sheet(model, images, cluster, n_images=3, size=8)
        assert_array_equal(row, sheet_cells(single, 8).reshape(4, 8, 8, 3)[:3])


def test_random_order_depends_on_random_state_only(model, images):
    first, second, other_seed = (
        contact_sheet(
            model, images, 1, n_images=6, order="random", size=8, random_state=seed
        )
        for seed in (0, 0, 1)
    )
    assert_array_equal(first, second)
    assert (other_seed != first).any()


def test_random_images_of_a_cluster_are_the_same_among_all_clusters(
    model, images, sheet_cells
):
    single, sheet = (
        contact_sheet(
            model,
            images,
            cluster,
            n_images=6,
            order="random",
            size=8,
            random_state=0,
        )
        for cluster in (1, None)
    )
    single_images = sheet_cells(single, 8).reshape(-1, 8, 8, 3)[:6]
    assert_array_equal(sheet_cells(sheet, 8)[1], single_images)


def test_empty_cluster_has_an_empty_row(model, images, sheet_cells):
    members = images[model.labels_ == 0][:2]
    sheet = contact_sheet(model, members, size=8)
    assert (sheet_cells(sheet, 8)[1:] == 255).all()
    with pytest.raises(ValueError, match="No image of X is in cluster 1"):
        contact_sheet(model, members, 1)


def test_contact_sheet_leaves_out_broken_files(
    skipping_model, broken_folder, sheet_cells
):
    with pytest.warns(UserWarning, match="1 of 30 images cannot be read"):
        sheet = contact_sheet(skipping_model, broken_folder, n_images=30, size=8)
    is_drawn = (sheet_cells(sheet, 8) != 255).any(axis=(2, 3, 4))
    assert is_drawn.sum() == 29


def test_contact_sheet_raises_for_broken_files_by_default(model, broken_folder):
    with pytest.raises(ValueError, match="in row 3"):
        contact_sheet(model, broken_folder)


def test_contact_sheet_rejects_wrong_parameters(model, images, rows_model, rows):
    with pytest.raises(ValueError, match="cluster=5 does not exist"):
        contact_sheet(model, images, 5)
    with pytest.raises(ValueError, match="'cluster' parameter"):
        contact_sheet(model, images, [0])
    with pytest.raises(ValueError, match="order"):
        contact_sheet(model, images, order="best")
    with pytest.raises(ValueError, match="size"):
        contact_sheet(model, images, size=0)
    with pytest.raises(ValueError, match="X holds rows of 64 values"):
        contact_sheet(rows_model, rows)


def test_contact_sheet_takes_an_estimator_only(model, images):
    for clustering in (model.labels_, model.module_):
        with pytest.raises(TypeError, match=r"ContactSheetDisplay\.from_predictions"):
            contact_sheet(clustering, images)
