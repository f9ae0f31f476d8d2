"""The pages are valid reStructuredText; their code is run by the doctests."""

from pathlib import Path

import docutils.core
import docutils.utils
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.rst"), *(ROOT / "docs").glob("*.rst")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page):
    settings = {"halt_level": docutils.utils.Reporter.WARNING_LEVEL}
    docutils.core.publish_doctree(
        page.read_text(encoding="utf-8"), settings_overrides=settings
    )
