"""The pages are valid reStructuredText, readable without Sphinx, and complete.

The doctests run the code of the pages. `make docs` checks each reference.
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
# Only these pages, which list pages and public names, may use directives of Sphinx.
SPHINX_DIRECTIVES = {
    "docs/index.rst": ["toctree"],
    "docs/guide.rst": ["toctree"],
    "docs/inside/index.rst": ["toctree"],
    "docs/api.rst": ["automodule", "autosummary", "currentmodule"],
}


class IgnoredDirective(rst.Directive):
    """Stand-in for a directive of Sphinx."""

    optional_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self):
        return []


def parse(page, monkeypatch):
    for name in SPHINX_DIRECTIVES.get(page.relative_to(ROOT).as_posix(), []):
        monkeypatch.setitem(rst.directives._directives, name, IgnoredDirective)
    settings = {"halt_level": utils.Reporter.WARNING_LEVEL}
    return core.publish_doctree(
        page.read_text(encoding="utf-8"),
        source_path=str(page),
        settings_overrides=settings,
    )


def directive_entries(page, directive):
    """Return the content lines of all directives of this name, without options."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(rf"^\.\. {directive}::\n((?:\n| +.*\n)+)", text, re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(":")]


def test_guarantees_name_existing_tests():
    text = (DOCS / "promises.rst").read_text(encoding="utf-8")
    paths = set(re.findall(r"``((?:tests|benchmarks)/[\w/]+\.py)``", text))
    assert len(paths) > 15
    assert [path for path in sorted(paths) if not (ROOT / path).is_file()] == []


def test_method_pages_name_existing_code():
    package = Path(skdeepcluster.__file__).parent
    sources = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    defined = set(
        re.findall(r"^ *(?:def|class) (\w+)", "\n".join(sources.values()), re.M)
    )
    architecture = (DOCS / "architecture.rst").read_text(encoding="utf-8")
    pages = [
        page.read_text(encoding="utf-8") for page in (DOCS / "inside").glob("*.rst")
    ]
    modules = set(re.findall(r"``(_\w+/\w+\.py)``", "\n".join([architecture, *pages])))
    assert len(modules) > 15
    assert [name for name in sorted(modules) if package / name not in sources] == []
    # The last column of the tables has functions, classes and methods.
    names = re.findall(
        r"``([A-Za-z_.]+)``", "".join(re.findall(r"\|[^|\n]+\|\n", architecture))
    )
    members = {part for name in names for part in name.split(".")}
    assert len(members) > 15
    assert sorted(members - defined) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_page_is_valid(page, monkeypatch):
    tree = parse(page, monkeypatch)
    links = [link.get("refuri", "://") for link in tree.findall(nodes.reference)]
    # The build of the site makes the pages of the gallery.
    files = [link for link in links if not re.match(r".*://|auto_examples/", link)]
    assert [name for name in files if not (page.parent / name).is_file()] == []
    # A simple table cannot wrap its first column: each line of it starts a new row.
    rows = [[cell.astext() for cell in row] for row in tree.findall(nodes.row)]
    assert [cells[0] for cells in rows if not any(cells[1:])] == []
    for formula in tree.findall(lambda n: isinstance(n, nodes.math | nodes.math_block)):
        latex2mathml.tex2mathml(formula.astext())


def test_every_page_is_on_the_site_once():
    listed = []
    for name in SPHINX_DIRECTIVES:
        for entry in directive_entries(ROOT / name, "toctree"):
            path = re.sub(r".*<(.*)>", r"\1", entry) + ".rst"
            listed.append(((ROOT / name).parent / path).resolve())
    pages = {*DOCS.glob("*.rst"), *(DOCS / "inside").glob("*.rst")}
    on_site = sorted(page for page in listed if page in pages)
    assert on_site == sorted(pages - {DOCS / "index.rst"})


def test_every_public_name_is_in_the_reference():
    public = set()
    for name in skdeepcluster.__all__:
        if not inspect.ismodule(obj := getattr(skdeepcluster, name)):
            public.add(name)
            continue
        public |= {f"{name}.{member}" for member in obj.__all__}
    assert set(directive_entries(DOCS / "api.rst", "autosummary")) == public


def test_every_named_example_exists():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    paths = set(re.findall(r"examples/\w+\.py", text))
    assert len(paths) > 3
    assert [path for path in sorted(paths) if not (ROOT / path).is_file()] == []
