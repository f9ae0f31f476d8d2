"""Arrays, tensors and lists as sources, after checks of shape and values."""

from collections.abc import Mapping
from numbers import Integral

import numpy as np
import scipy.sparse
import torch

from .._utils.messages import warn
from .._utils.pages import PageReleaser
from .image_format import NUMBER_TYPES
from .sources import ArraySource

# Largest absolute value, about 1e30: sums of a batch of such values fit into float32.
MAX_ABS_VALUE = 2.0**100

# Remedy for arrays that cannot be stacked.
UNEQUAL_ROWS = (
    "Rows must have one length; only images, arrays of 2 or 3 dimensions each, may "
    "differ in size."
)


def read_images(
    X, image_shape: tuple[int, int, int] | None, fitted: bool
) -> ArraySource:
    """Read a 3-D or 4-D array, or a list of images of one size.

    Parameters
    ----------
    X : ndarray, tensor or list
        Images (n, H, W), (n, C, H, W) or (n, H, W, C) of bytes, other numbers or bool.
    image_shape : tuple (C, H, W) or None
        Shape that each image must have. It also settles which dimension holds the
        channels. Otherwise the smaller of the second and the last dimension does.
    fitted : bool
        True if `image_shape` comes from `fit`, False if it is the parameter.

    Raises
    ------
    ValueError, TypeError
        If the array has no images, no numbers, or images of another shape.
    """
    values = as_array(X)
    check_numeric(values)
    if values.ndim == 3:
        values = values[:, None]
    elif not _is_channels_first(values.shape[1:], image_shape):
        values = values.transpose(0, 3, 1, 2)
    if len(values) == 0:
        raise ValueError(
            f"Found array with 0 sample(s) (shape={np.shape(X)}) while a minimum of 1 "
            "is required: X is empty."
        )
    if 0 in values.shape[1:]:
        raise ValueError(f"X holds images without pixels: its shape is {np.shape(X)}.")
    if image_shape is not None and values.shape[1:] != tuple(image_shape):
        channels, height, width = image_shape
        expected = (
            f"fit saw images of shape {tuple(image_shape)}"
            if fitted
            else f"image_shape={tuple(image_shape)}"
        )
        # A single color image has as many dimensions as a batch of gray images.
        cure = "Pass images with the same channels, height and width."
        is_color = len(np.shape(X)) == 3 and channels in (len(X), np.shape(X)[-1])
        if np.shape(X) in ((channels, height, width), (height, width, channels)):
            cure = "If X is a single image, pass X[None]."
        elif is_color and channels > 1:
            cure = (
                "If X is a single image, pass X[None]. If X holds gray images, pass "
                "X[:, None]."
            )
        elif 4 in values.shape[1:2] and channels == 3:
            cure = "Leave out the fourth channel, such as X[..., :3]."
        raise ValueError(
            f"X holds images of shape (C, H, W) = {values.shape[1:]}, but {expected}. "
            f"{cure}"
        )
    return ArraySource(values)


def read_rows(
    values: np.ndarray, image_shape: tuple[int, int, int] | None
) -> ArraySource:
    """Read 2-D rows, as flattened images if `image_shape` is not None."""
    if image_shape is None:
        return ArraySource(values)
    if values.shape[1] != np.prod(image_shape):
        raise ValueError(
            f"image_shape={tuple(image_shape)} takes rows of {np.prod(image_shape)} "
            f"values, but X has {values.shape[1]} features. Set image_shape to the "
            "(C, H, W) that the rows were flattened from."
        )
    return ArraySource(values.reshape(len(values), *image_shape))


def as_array(X) -> np.ndarray:
    """Turn array-likes, tensors and lists of equal images into an array."""
    check_dense(X)
    if isinstance(X, torch.Tensor):
        return _tensor_to_array(X)
    if isinstance(X, list | tuple) and len(X) and hasattr(X[0], "shape"):
        arrays = [as_array(x) for x in X]
        for row, array in enumerate(arrays):
            if array.shape != arrays[0].shape:
                raise ValueError(
                    f"X holds arrays of different shapes: row {row} has shape "
                    f"{array.shape}, row 0 has {arrays[0].shape}. {UNEQUAL_ROWS}"
                )
            # Stacked bytes and floats would get one type, and keep two units.
            if number_type(array.dtype) != number_type(arrays[0].dtype):
                raise ValueError(
                    f"X holds arrays of different types: row {row} has "
                    f"{NUMBER_TYPES[number_type(array.dtype)]}, row 0 has "
                    f"{NUMBER_TYPES[number_type(arrays[0].dtype)]}. Convert them to "
                    "one type with one black and white, such as uint8 from 0 to 255."
                )
        return np.stack(arrays)
    try:
        values = np.asarray(X)
    # NumPy raises this error for nested lists of different lengths.
    except ValueError as error:
        raise ValueError(
            f"X holds rows of different lengths. {UNEQUAL_ROWS}"
        ) from error
    check_dense(values)
    # A column of a data frame may hold arrays.
    is_column = values.dtype == object and values.ndim == 1 and len(values) > 0
    if is_column and hasattr(values[0], "shape"):
        return as_array(list(values))
    return values


def as_channels_first(image) -> np.ndarray:
    """Return one array or tensor as (C, H, W), uint8 or another type of numbers.

    Raises
    ------
    TypeError
        If `image` is not an array of numbers.
    ValueError
        If its shape is not that of an image, or its values are not finite.
    """
    check_dense(image, "an image")
    if isinstance(image, torch.Tensor):
        image = _tensor_to_array(image)
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "fiub":
        raise TypeError(_describe_non_image(image))
    values = image[None] if image.ndim == 2 else image
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(
            f"an array of shape {image.shape} is not an image (H, W), (C, H, W) or (H, "
            "W, C); rows of numbers go into one 2-D array"
        )
    if values.shape[0] > values.shape[2]:
        values = values.transpose(2, 0, 1)
    is_float = values.dtype.kind == "f"
    if is_float and not (np.abs(values) <= np.float64(MAX_ABS_VALUE)).all():
        raise ValueError("an image with values that are NaN, infinite or beyond 1e30")
    return values.astype(np.uint8) if values.dtype == bool else values


def check_dense(X, label: str = "X") -> None:
    """Raise TypeError or ValueError if X holds numbers in a form that is not read.

    Other values pass, and are checked elsewhere.

    Parameters
    ----------
    X : any
    label : str, default="X"
        Name of X in the error.
    """
    if isinstance(X, torch.Tensor):
        _check_tensor(X, label)
    elif np.ma.is_masked(X):
        raise ValueError(
            f"{label} is a masked array, and {np.ma.count_masked(X)} of its values are "
            "masked. Pass X.filled(value), with the value to see in their place."
        )
    elif scipy.sparse.issparse(X):
        raise TypeError(f"{label} is sparse. Pass X.toarray().")
    elif isinstance(X, np.ndarray) and X.dtype.names is not None:
        raise TypeError(
            f"{label} is a structured array with the fields {list(X.dtype.names)[:5]}. "
            f"Pass a field, such as X[{X.dtype.names[0]!r}], or "
            "numpy.lib.recfunctions.structured_to_unstructured(X)."
        )


def _check_tensor(tensor: torch.Tensor, label: str) -> None:
    """Raise TypeError or ValueError if a tensor does not hold one number per entry."""
    if tensor.is_nested:
        raise TypeError(f"{label} is a nested tensor. Pass a list, X.unbind().")
    if tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"{label} is a {layout} tensor. Pass X.to_dense().")
    if tensor.is_quantized:
        raise TypeError(f"{label} is a quantized tensor. Pass X.dequantize().")
    if tensor.is_meta:
        raise ValueError(
            f"{label} is a tensor on the device 'meta', which holds no values. Pass a "
            "tensor with values."
        )
    if tensor.is_complex():
        raise ValueError("Complex data not supported: X must hold real numbers.")


def _tensor_to_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor of any device as an array, without a copy where possible."""
    tensor = tensor.detach().cpu().resolve_neg()
    try:
        return tensor.numpy()
    except TypeError:
        # numpy has no bfloat16, and no floats of 8 bits.
        return tensor.float().numpy()


def _describe_non_image(value) -> str:
    """Return why a value is no image, and the way to pass images."""
    if value is None:
        return (
            "None is not an image. cv2.imread returns None for a file that it cannot "
            "read: pass the paths, or leave these images out"
        )
    if isinstance(value, Mapping):
        keys = ", ".join(repr(key) for key in list(value)[:5])
        return (
            f"a {type(value).__name__} with the keys {keys} is not an image: pass the "
            "images alone, such as X['image'] of a data set with columns"
        )
    return (
        f"a {type(value).__name__} is not an image: pass paths, PIL images, arrays or "
        "tensors, or (image, label) pairs of these"
    )


def number_type(dtype: np.dtype | torch.dtype) -> str:
    """Return the name in `NUMBER_TYPES` of the numbers in an array or a tensor."""
    name = str(dtype).removeprefix("torch.")
    if name in ("uint8", "bool"):
        return "bytes" if name == "uint8" else "bool"
    return "floats" if "float" in name else "integers"


def is_table(X) -> bool:
    """Return whether X is a data frame or sparse, which scikit-learn reads."""
    return hasattr(X, "columns") or scipy.sparse.issparse(X)


def check_image_shape(image_shape) -> tuple[int, int, int] | None:
    """Return the `image_shape` parameter as a tuple of int, or None."""
    if image_shape is None:
        return None
    if len(image_shape) != 3 or not all(
        isinstance(length, Integral) and int(length) > 0 for length in image_shape
    ):
        raise ValueError(
            f"image_shape={image_shape!r} should be three positive integers (C, H, W), "
            "such as (1, 8, 8)."
        )
    channels, height, width = (int(length) for length in image_shape)
    if channels == height and width in (1, 3, 4) and width < height:
        warn(
            f"image_shape={image_shape!r} is read as (C, H, W): {channels} channels of "
            f"{height}x{width} pixels. If the channels are last, pass "
            f"image_shape=({width}, {height}, {channels})."
        )
    return channels, height, width


def check_finite(source: ArraySource) -> None:
    """Raise ValueError for NaN, infinite and too large values, naming the row."""
    if source.values.dtype.kind != "f":
        return
    releaser = PageReleaser(source.values)
    for rows in source.split(np.arange(len(source))):
        block = slice(rows[0], rows[-1] + 1)
        # Values too large for float32 become infinite, and are found below.
        with np.errstate(over="ignore"):
            batch = source.batch(block).flatten(1)
        releaser.count(block)
        # Both are NaN if there is a NaN. Most data need this single pass only.
        low, high = torch.aminmax(batch)
        if low >= -MAX_ABS_VALUE and high <= MAX_ABS_VALUE:
            continue
        row = int(torch.nonzero(~(batch.abs() <= MAX_ABS_VALUE).all(dim=1))[0])
        largest = float(batch[row].abs().max())
        if np.isnan(largest):
            problem = "NaN"
        elif np.isinf(largest):
            problem = "infinity (inf) for float32"
        else:
            problem = (
                f"a value too large for sums in float32 ({largest:.2g}, beyond 1e30)"
            )
        raise ValueError(
            f"Input X contains {problem} in row {rows[row]}. Remove that row, replace "
            "the value or scale X."
        )
    releaser.release()


def check_numeric(values: np.ndarray) -> None:
    """Raise ValueError or TypeError if an array holds no real numbers."""
    if values.dtype.kind == "c":
        raise ValueError("Complex data not supported: X must hold real numbers.")
    if values.dtype.kind not in "fiub":
        raise TypeError(
            f"X holds {values.dtype} values, not numbers. Pass an array of numbers, "
            "such as uint8 images of shape (n, H, W), (n, C, H, W) or (n, H, W, C)."
        )


def _is_channels_first(
    shape: tuple[int, ...], image_shape: tuple[int, int, int] | None
) -> bool:
    """Return whether images of this shape are (C, H, W), rather than (H, W, C)."""
    if image_shape is not None:
        channels, height, width = image_shape
        if shape == (channels, height, width):
            return True
        if shape == (height, width, channels):
            return False
    # Images hardly ever have more channels than pixels in a row.
    return shape[0] <= shape[2]
