"""Labeled image sets that the benchmarks share, by name.

"digits"         1,797 scanned digits of 8x8 pixels, shipped with scikit-learn
"fashion-mnist"  60,000 training and 10,000 test images of 28x28 pixels
"shapes"         1,500 drawings in color, 32x32 pixels, of five shapes
"color"          12,000 patches of ten photographs, 32x32 pixels (extra "bench")
"color-digits"   the digits as RGB images
"clip-art"       about 1,500 drawings in ten folders, 128x128 pixels, of Debian's
                 package openclipart-png: apt-get install openclipart-png
FOLDER           a folder with one subfolder of image files for each class

The class of a color patch is the photograph that the patch is cut from. Training
patches come from the left half of the photograph and test patches from the right half.
Patches of the same half overlap. Nearly flat patches are left out.

The class of a drawing is its top-level folder. The ten folders with the most files are
taken, and at most 150 files of each: animals, computer, food, geography (only 130),
people, recreation, shapes, signs_and_symbols, transportation and unsorted. Symbolic
links are left out, because they repeat a drawing, often in another folder.
"""

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits, load_sample_images

from skdeepcluster.datasets import load_fashion_mnist

# Number of drawings of shapes.
N_SHAPES = 1500
# Side of the squares that files of a folder are resized to, in pixels.
FOLDER_IMAGE_SIZE = 64
# Where Debian installs the drawings.
CLIP_ART_FOLDER = Path("/usr/share/openclipart/png")
CLIP_ART_SIZE = 128
N_CLIP_ART_CLASSES = 10
N_CLIP_ART_PER_CLASS = 150
# A few drawings are posters of up to 600 million pixels, which take minutes to decode.
MAX_CLIP_ART_PIXELS = 20_000_000
# Side of the digits in color, in pixels.
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


def load_data_set(name, limit=None, image_size=None):
    """Return a data set in random order, with at most `limit` training images.

    With `image_size`, all images are RGB squares of that side, in pixels: files are
    padded on white, and images of arrays are resized.
    """
    if name == "fashion-mnist":
        data = DataSet(*load_fashion_mnist("train"), *load_fashion_mnist("test"))
    elif name == "color":
        data = load_color_patches()
    elif name == "color-digits":
        data = color_digits()
    elif name == "clip-art":
        data = load_clip_art(image_size or CLIP_ART_SIZE)
    elif name == "digits":
        digits = load_digits()
        data = DataSet(digits.images.astype(np.uint8), digits.target)
    elif name == "shapes":
        data = DataSet(*draw_shapes(N_SHAPES))
    else:
        data = load_class_folders(Path(name), padded_size=image_size)
    # The order is the same for each limit, so that larger sets contain smaller ones.
    rows = np.random.default_rng(0).permutation(len(data.images))[:limit]
    data = data._replace(images=data.images[rows], classes=data.classes[rows])
    if image_size is None:
        return data
    test_images = data.test_images
    if test_images is not None:
        test_images = resize_images(test_images, image_size)
    return data._replace(
        images=resize_images(data.images, image_size), test_images=test_images
    )


def resize_images(images, size):
    """Return uint8 images (n, size, size, 3) of an array of gray or RGB images."""
    if images.shape[1:] == (size, size, 3):
        return images
    resized = np.empty((len(images), size, size, 3), np.uint8)
    for row, image in zip(resized, images, strict=True):
        row[:] = Image.fromarray(image).convert("RGB").resize((size, size))
    return resized


def pad_image(image, size):
    """Resize a PIL image to a square array, padded on white instead of cropped."""
    # Transparent pixels become white, too.
    image = image.convert("RGBA")
    scale = size / max(image.size)
    image = image.resize([max(1, round(scale * side)) for side in image.size])
    square = Image.new("RGBA", (size, size), "white")
    corner = ((size - image.width) // 2, (size - image.height) // 2)
    square.alpha_composite(image, corner)
    return np.asarray(square.convert("RGB"))


def load_class_folders(folder, padded_size=None):
    """Read the image files of a folder with one subfolder for each class.

    Images are stretched to `FOLDER_IMAGE_SIZE`, or padded to `padded_size`.
    """
    paths = sorted(path for path in folder.glob("*/*") if path.is_file())
    images = []
    for path in paths:
        with Image.open(path) as image:
            if padded_size is None:
                size = (FOLDER_IMAGE_SIZE, FOLDER_IMAGE_SIZE)
                images.append(np.asarray(image.convert("RGB").resize(size)))
            else:
                images.append(pad_image(image, padded_size))
    _, classes = np.unique([path.parent.name for path in paths], return_inverse=True)
    return DataSet(np.stack(images), classes)


def load_clip_art(size):
    """Read drawings of the largest folders of openclipart-png, padded on white."""
    if not CLIP_ART_FOLDER.is_dir():
        raise FileNotFoundError(
            f"The drawings are not in {CLIP_ART_FOLDER}. On Debian or Ubuntu: "
            "apt-get install openclipart-png"
        )
    folders = {
        folder.name: [path for path in folder.rglob("*.png") if not path.is_symlink()]
        for folder in CLIP_ART_FOLDER.iterdir()
    }
    names = sorted(folders, key=lambda name: len(folders[name]), reverse=True)
    rng = np.random.default_rng(0)
    images, classes = [], []
    for number, name in enumerate(sorted(names[:N_CLIP_ART_CLASSES])):
        drawings = _read_drawings(sorted(folders[name]), size, rng)
        images += drawings
        classes += [number] * len(drawings)
    return DataSet(np.stack(images), np.array(classes))


def _read_drawings(paths, size, rng):
    drawings = []
    for i in rng.permutation(len(paths)):
        if len(drawings) == N_CLIP_ART_PER_CLASS:
            break
        # The size in the header of a PNG file. PIL would refuse the largest files.
        with paths[i].open("rb") as file:
            width, height = struct.unpack(">16x2I", file.read(24))
        if width * height <= MAX_CLIP_ART_PIXELS:
            with Image.open(paths[i]) as image:
                drawings.append(pad_image(image, size))
    return drawings


def color_digits():
    """Return the digits as RGB images of bytes."""
    digits = load_digits()
    gray = (digits.images * (255 / 16)).round().astype(np.uint8)
    return DataSet(np.repeat(gray[..., None], 3, axis=3), digits.target)


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
