"""The pages are valid reStructuredText; their code is run by the doctests."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.rst"), *(ROOT / "docs").glob("*.rst")]


def test_promises_are_held_by_tests_that_are_there():
    text = (ROOT / "docs" / "promises.rst").read_text(encoding="utf-8")
    named = set(re.findall(r"``((?:tests|benchmarks)/\w+\.py)``", text))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page):
    core = pytest.importorskip("docutils.core")
    warning = pytest.importorskip("docutils.utils").Reporter.WARNING_LEVEL
    settings = {"halt_level": warning}
    core.publish_doctree(page.read_text(encoding="utf-8"), settings_overrides=settings)
