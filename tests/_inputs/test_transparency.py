"""Transparent images are seen as a person sees them, whatever their color."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageDraw

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._inputs.collection import find_images
from skdeepcluster._inputs.common_format import find_common_format
from skdeepcluster._inputs.decoding import decode
from skdeepcluster._inputs.image_format import ImageFormat

RNG = np.random.default_rng(0)
COLOR = ImageFormat((3, 16, 16), np.uint8)
GRAY = ImageFormat((1, 16, 16), np.uint8)


def draw(ink, mode="RGBA"):
    """Return a transparent image with a drawing in one color."""
    image = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    ImageDraw.Draw(image).ellipse((3, 3, 12, 12), fill=(*ink, 255))
    return image.convert(mode)


def draw_palette(ink):
    image = Image.new("P", (16, 16), 0)
    image.putpalette([255, 255, 255, *ink])
    ImageDraw.Draw(image).ellipse((3, 3, 12, 12), fill=1)
    image.info["transparency"] = 0
    return image


INKS = {
    "white": (255, 255, 255),
    "light gray": (238, 238, 238),
    "cream": (255, 250, 235),
    "yellow": (255, 255, 0),
    "black": (0, 0, 0),
    "red": (200, 0, 0),
}
FORMS = {
    "RGBA": draw,
    "LA": lambda ink: draw(ink, "LA"),
    "palette": draw_palette,
}


@pytest.mark.parametrize("image_format", [COLOR, GRAY], ids=["color", "gray"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ink", INKS)
def test_drawings_stay_visible(ink, form, image_format):
    values = decode(FORMS[form](INKS[ink]), image_format).astype(int)
    contrast = np.abs(values[:, 8, 8] - values[:, 0, 0]).max()
    assert contrast >= 20


@pytest.mark.parametrize("ink", ["black", "red", "yellow"])
def test_ground_is_white_below_colors(ink):
    assert (decode(draw(INKS[ink]), COLOR)[:, 0, 0] == 255).all()


def test_soft_edges_and_shadows_stay_visible():
    image = draw(INKS["white"])
    alpha = np.asarray(image.getchannel("A")).astype(int)
    soft = np.minimum(alpha, 60 + 15 * np.arange(16))
    image.putalpha(Image.fromarray(soft.astype(np.uint8)))
    values = decode(image, GRAY)[0].astype(int)
    assert values[8, 8] - values[0, 0] > 100


def test_drawings_in_the_transparency_alone(tmp_path):
    for i in range(6):
        smoke = np.zeros((16, 16, 4), np.uint8)
        smoke[..., 3] = 20 + RNG.integers(0, 200, (16, 16))
        Image.fromarray(smoke).save(tmp_path / f"{i}.png")
    image_format, _ = find_common_format(find_images(tmp_path), None, "auto", 0)
    assert all(decode(path, image_format).std() > 5 for path in tmp_path.iterdir())


def test_hidden_colors_of_an_invisible_image():
    colors = RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    image = Image.fromarray(np.dstack([colors, np.zeros((16, 16), np.uint8)]))
    assert_array_equal(decode(image, COLOR), colors.transpose(2, 0, 1))
    empty = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    assert (decode(empty, COLOR) == 255).all()


def make_bands(kind):
    """Return 12 images with colors (12, 16, 16, 3) and a fourth band."""
    colors = RNG.integers(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    bands = {
        "near infrared": RNG.integers(1, 255, (12, 16, 16)),
        "dark infrared": RNG.integers(1, 40, (12, 16, 16)),
        "depth": np.tile(np.linspace(5, 250, 16), (12, 16, 1)),
    }
    return colors, np.concatenate([colors, bands[kind][..., None]], axis=3).astype("u1")


@pytest.mark.parametrize("ending", [".tif", ".png", ".webp"])
@pytest.mark.parametrize("kind", ["near infrared", "dark infrared", "depth"])
def test_other_bands_are_no_transparency(tmp_path, kind, ending):
    colors, images = make_bands(kind)
    options = {"lossless": True, "exact": True} if ending == ".webp" else {}
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02}{ending}", **options)
    paths = sorted(tmp_path.iterdir())
    with pytest.warns(UserWarning, match="last band of 12 images is left out"):
        image_format, _ = find_common_format(find_images(paths), None, "auto", 0)
    for path, expected in zip(paths, colors, strict=True):
        assert_array_equal(decode(path, image_format), expected.transpose(2, 0, 1))


def test_fourth_band_is_left_out_by_fit_and_predict(tmp_path):
    colors, images = make_bands("near infrared")
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:02}.tif")
    model = DeepClusterEstimator(2, max_iter=1, epochs_per_iter=1, random_state=0)
    with pytest.warns(UserWarning, match="left out"):
        model.fit(folder)
    embedding = model.transform(colors)
    assert_array_equal(model.transform(folder), embedding)
    model.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    assert_array_equal(loaded.transform([folder / "03.tif"]), embedding[3:4])


def save_with_tag(path, extra_samples):
    """Write a TIFF file with a fourth band, and a tag of what it is, or no tag."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[4:12, 4:12] = (200, 30, 30, 255)
    image = Image.fromarray(pixels)
    image.save(path)
    content = bytearray(path.read_bytes())
    offset = int.from_bytes(content[4:8], "little")
    for entry in range(int.from_bytes(content[offset : offset + 2], "little")):
        start = offset + 2 + 12 * entry
        if int.from_bytes(content[start : start + 2], "little") == 338:
            if extra_samples is None:
                # A private tag takes the place of ExtraSamples.
                content[start : start + 2] = (65000).to_bytes(2, "little")
            else:
                content[start + 8 : start + 10] = extra_samples.to_bytes(2, "little")
    path.write_bytes(content)


@pytest.mark.parametrize(("tag", "ground"), [(2, 255), (None, 0), (0, 0)])
def test_tiff_says_whether_a_band_is_transparency(tmp_path, tag, ground):
    save_with_tag(tmp_path / "image.tif", tag)
    values = decode(tmp_path / "image.tif", COLOR)
    assert (values[:, 0, 0] == ground).all()
    assert values[:, 8, 8].tolist() == [200, 30, 30]
