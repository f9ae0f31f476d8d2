"""Warnings that point to the user's line, however deep they come from."""

import contextlib
import sys
import warnings
from pathlib import Path

import sklearn

# scikit-learn wraps `fit` and `transform`, and calls them in pipelines.
PACKAGES = (str(Path(__file__).parents[1]), str(Path(sklearn.__file__).parent))
INSIDE = (*PACKAGES, contextlib.__file__)


def warn(words: str, category: type[Warning] = UserWarning) -> None:
    """Warn, at the first line outside this package and scikit-learn."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(words, category, stacklevel=level)
