"""What several test modules share."""

import hypothesis
import numpy as np
import pytest
from sklearn.datasets import load_digits

# The same examples in every run, so that a failure can be repeated. To search for new
# ones: pytest --hypothesis-profile=default
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session")
def digits_images():
    """All 1,797 digits: uint8 images (n, 8, 8) over 0..255, and int labels (n,)."""
    digits = load_digits()
    return (digits.images * 255 / 16).astype(np.uint8), digits.target
