"""The pages are valid reStructuredText, readable without Sphinx, and complete.

Their code is run by the doctests; ``make docs`` builds the site from them, which also
checks each reference.
"""

import inspect
import re
from pathlib import Path

import pytest

import skdeepcluster

core = pytest.importorskip("docutils.core")
nodes = pytest.importorskip("docutils.nodes")
rst = pytest.importorskip("docutils.parsers.rst")
utils = pytest.importorskip("docutils.utils")
latex2mathml = pytest.importorskip("docutils.utils.math.latex2mathml")

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *ROOT.glob("*.rst"),
    *DOCS.glob("*.rst"),
    *(DOCS / "inside").glob("*.rst"),
    *(ROOT / "examples").glob("*.rst"),
]
# These hold the site together; all others are plain reStructuredText.
BY_SPHINX = {
    "docs/index.rst": ["toctree"],
    "docs/guide.rst": ["toctree"],
    "docs/inside/index.rst": ["toctree"],
    "docs/api.rst": ["automodule", "autosummary", "currentmodule"],
}


class Anything(rst.Directive):
    """A directive of Sphinx, whose content is for Sphinx."""

    optional_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self):
        return []


def parse(page, monkeypatch):
    for name in BY_SPHINX.get(page.relative_to(ROOT).as_posix(), []):
        monkeypatch.setitem(rst.directives._directives, name, Anything)
    settings = {"halt_level": utils.Reporter.WARNING_LEVEL}
    return core.publish_doctree(
        page.read_text(encoding="utf-8"),
        source_path=str(page),
        settings_overrides=settings,
    )


def entries(page, directive):
    """Return the lines inside a page's directives of that name, but for options."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(rf"^\.\. {directive}::\n((?:\n| +.*\n)+)", text, re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(":")]


def test_promises_are_held_by_tests_that_are_there():
    text = (DOCS / "promises.rst").read_text(encoding="utf-8")
    named = set(re.findall(r"``((?:tests|benchmarks)/[\w/]+\.py)``", text))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_page(page, monkeypatch):
    tree = parse(page, monkeypatch)
    links = [link.get("refuri", "://") for link in tree.findall(nodes.reference)]
    # What the gallery will hold is not there yet.
    files = [link for link in links if not re.match(r".*://|auto_examples/", link)]
    assert [name for name in files if not (page.parent / name).is_file()] == []
    # In a simple table each line of the first column is a row: these want a grid.
    rows = [[cell.astext() for cell in row] for row in tree.findall(nodes.row)]
    assert [cells[0] for cells in rows if not any(cells[1:])] == []
    for formula in tree.findall(lambda n: isinstance(n, nodes.math | nodes.math_block)):
        latex2mathml.tex2mathml(formula.astext())


def test_every_page_is_on_the_site_once():
    found = []
    for name in BY_SPHINX:
        for entry in entries(ROOT / name, "toctree"):
            path = re.sub(r".*<(.*)>", r"\1", entry) + ".rst"
            found.append(((ROOT / name).parent / path).resolve())
    pages = {*DOCS.glob("*.rst"), *(DOCS / "inside").glob("*.rst")}
    on_site = sorted(page for page in found if page in pages)
    assert on_site == sorted(pages - {DOCS / "index.rst"})


def test_every_public_name_is_in_the_reference():
    public = set()
    for name in skdeepcluster.__all__:
        if not inspect.ismodule(obj := getattr(skdeepcluster, name)):
            public.add(name)
            continue
        public |= {f"{name}.{each}" for each in obj.__all__}
    assert set(entries(DOCS / "api.rst", "autosummary")) == public


def test_every_example_that_is_named_is_there():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"examples/\w+\.py", text))
    assert len(named) > 3
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
