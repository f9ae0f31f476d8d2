"""Record of unreadable rows."""

import numpy as np
import pytest

from skdeepcluster._inputs.failures import ReadFailures
from skdeepcluster._utils.distributed import SINGLE_PROCESS


def test_failures_are_recorded():
    failures = ReadFailures()
    assert not failures
    failures.warn(9)
    failures.record({7: "b.png: the file is empty"})
    failures.record({2: "a.png: truncated"})
    failures.share(SINGLE_PROCESS)
    assert len(failures) == 2
    assert failures.rows.tolist() == [2, 7]
    assert failures.rows.dtype == np.int64
    assert failures.mask(np.array([7, 0, 2, 2])).tolist() == [True, False, True, True]
    with pytest.warns(UserWarning, match=r"2 of 9 images .* in row 2: a.png: trunc"):
        failures.warn(9)
    with pytest.raises(TypeError):
        failures.messages[3] = "read-only"


def test_error_names_the_row_and_the_cure():
    error = ReadFailures({3: "a.png: truncated"}).to_error()
    assert str(error).startswith("X cannot be read in row 3: a.png: truncated. ")
    assert "on_error='skip'" in str(error)
    error = ReadFailures({3: "cause", 1: "first cause"}).to_error(skippable=False)
    assert "row 1: first cause (2 such rows so far)" in str(error)
    assert "on_error" not in str(error)
