"""Labeled image sets that the benchmarks share, by name.

"digits"         1,797 scanned digits of 8x8 pixels, shipped with scikit-learn
"fashion-mnist"  60,000 training and 10,000 test images of 28x28 pixels
"shapes"         1,500 drawings in color, 32x32 pixels, of five shapes
"color"          12,000 patches of ten photographs, 32x32 pixels (extra "bench")
FOLDER           a folder with one subfolder of image files for each class

The class of a color patch is the photograph that the patch is cut from. Training
patches come from the left half of the photograph and test patches from the right half.
Patches of the same half overlap. Nearly flat patches are left out.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits, load_sample_images

from skdeepcluster.datasets import load_fashion_mnist

# Number of drawings.
N_SHAPES = 1500
# Side of the squares that files of a folder are resized to, in pixels.
FOLDER_IMAGE_SIZE = 64
# Side of the color patches, in pixels.
PATCH_SIZE = 32
# Minimum standard deviation of the pixels of a patch, as the mean over channels.
MIN_CONTRAST = 8
# Names of photographs in skimage.data. scikit-learn ships two more.
PHOTOGRAPHS = (
    "astronaut",
    "chelsea",
    "coffee",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "rocket",
    "stereo_motorcycle",
)


class DataSet(NamedTuple):
    """Images and classes for training, and a test set or None."""

    images: np.ndarray
    classes: np.ndarray
    test_images: np.ndarray | None = None
    test_classes: np.ndarray | None = None


def load_data_set(name, limit=None):
    """Return a data set in random order, with at most `limit` training images."""
    if name == "fashion-mnist":
        data = DataSet(*load_fashion_mnist("train"), *load_fashion_mnist("test"))
    elif name == "color":
        data = load_color_patches()
    elif name == "digits":
        digits = load_digits()
        data = DataSet(digits.images.astype(np.uint8), digits.target)
    elif name == "shapes":
        data = DataSet(*draw_shapes(N_SHAPES))
    else:
        data = load_class_folders(Path(name))
    # The order is the same for each limit, so that larger sets contain smaller ones.
    rows = np.random.default_rng(0).permutation(len(data.images))[:limit]
    return data._replace(images=data.images[rows], classes=data.classes[rows])


def load_class_folders(folder):
    """Read the image files of a folder with one subfolder for each class."""
    paths = sorted(path for path in folder.glob("*/*") if path.is_file())
    size = (FOLDER_IMAGE_SIZE, FOLDER_IMAGE_SIZE)
    images = [
        np.asarray(Image.open(path).convert("RGB").resize(size)) for path in paths
    ]
    _, classes = np.unique([path.parent.name for path in paths], return_inverse=True)
    return DataSet(np.stack(images), classes)


def draw_shapes(n):
    """Draw disks, squares, triangles, rings and crosses on plain backgrounds.

    Colors, places and sizes are random, so that only the shape is common to a class.
    """
    rng = np.random.default_rng(0)
    classes = rng.integers(5, size=n)
    images = []
    for shape in classes:
        background = tuple(map(int, rng.integers(0, 99, size=3)))
        fill = tuple(map(int, rng.integers(130, 256, size=3)))
        image = Image.new("RGB", (32, 32), background)
        draw = ImageDraw.Draw(image)
        radius = int(rng.integers(6, 12))
        x, y = map(int, rng.integers(radius, 32 - radius, size=2))
        left, top, right, bottom = x - radius, y - radius, x + radius, y + radius
        box = (left, top, right, bottom)
        if shape == 0:
            draw.ellipse(box, fill=fill)
        elif shape == 1:
            draw.rectangle(box, fill=fill)
        elif shape == 2:
            draw.polygon([(x, top), (left, bottom), (right, bottom)], fill=fill)
        elif shape == 3:
            draw.ellipse(box, outline=fill, width=3)
        else:
            draw.line([(left, y), (right, y)], fill=fill, width=4)
            draw.line([(x, top), (x, bottom)], fill=fill, width=4)
        images.append(np.array(image, dtype=int))
    # Noise keeps plain backgrounds from being constant.
    noisy = np.stack(images) + rng.integers(-15, 15, size=(n, 32, 32, 3))
    return noisy.clip(0, 255).astype(np.uint8), classes


def load_photographs():
    """Return ten color photographs, from 300x451 to 1411x1411 pixels."""
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError(
            "The color patches need scikit-image: pip install skdeepcluster[bench]"
        ) from error
    photographs = [getattr(data, name)() for name in PHOTOGRAPHS]
    # The stereo pair comes as left image, right image and disparities.
    photographs[-1] = photographs[-1][0]
    return [*photographs, *load_sample_images().images]


def cut_patches(image, n, rng):
    """Cut n square patches at random places, skipping nearly flat ones."""
    patches = []
    height, width = image.shape[:2]
    while len(patches) < n:
        y = int(rng.integers(height - PATCH_SIZE + 1))
        x = int(rng.integers(width - PATCH_SIZE + 1))
        patch = image[y : y + PATCH_SIZE, x : x + PATCH_SIZE]
        # A flat patch shows sky or black background, as many photographs do.
        if patch.std(axis=(0, 1)).mean() >= MIN_CONTRAST:
            patches.append(patch)
    return np.stack(patches)


def load_color_patches(n_train=10_000, n_test=2_000):
    """Cut training patches from left halves of photographs, test patches from right."""
    rng = np.random.default_rng(0)
    # Halves without overlap keep test patches apart from training patches.
    photographs = load_photographs()
    middles = [photograph.shape[1] // 2 for photograph in photographs]
    left_halves = [
        photograph[:, :middle]
        for photograph, middle in zip(photographs, middles, strict=True)
    ]
    right_halves = [
        photograph[:, middle:]
        for photograph, middle in zip(photographs, middles, strict=True)
    ]
    return DataSet(
        *_cut_labeled_patches(left_halves, n_train, rng),
        *_cut_labeled_patches(right_halves, n_test, rng),
    )


def _cut_labeled_patches(images, n, rng):
    n_per_image = n // len(images)
    patches = [cut_patches(image, n_per_image, rng) for image in images]
    return np.concatenate(patches), np.repeat(np.arange(len(images)), n_per_image)
