"""Warnings that point to the user's line, however deep the call is."""

import contextlib
import os
import sys
import warnings
from pathlib import Path

import sklearn

from .files import escape_path

# scikit-learn wraps `fit` and `transform`, and calls both in pipelines. The separator
# at the end keeps packages such as "sklearn_extra" out.
INTERNAL_FOLDERS = tuple(
    f"{folder}{os.sep}"
    for folder in (Path(__file__).parents[1], Path(sklearn.__file__).parent)
)
SEARCH_FOLDER = f"{Path(sklearn.__file__).parent / 'model_selection'}{os.sep}"


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the first line outside this package and scikit-learn."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_internal(frame.f_code.co_filename):
        level, frame = level + 1, frame.f_back
    # A message may name a file whose name is not UTF-8, and has to be printable.
    warnings.warn(escape_path(message), category, stacklevel=level)


def is_called_by_search() -> bool:
    """Return whether a search or a cross-validation of scikit-learn is running."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename.startswith(SEARCH_FOLDER):
            return True
    return False


def _is_internal(filename: str) -> bool:
    # contextlib runs the context managers that scikit-learn puts around methods.
    return filename.startswith(INTERNAL_FOLDERS) or filename == contextlib.__file__
