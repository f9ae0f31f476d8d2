"""Links out of text that also reads well where there is no Sphinx.

On a forge a page links to another by its file, ```Speed <speed.rst>`_``, and names code
in double backquotes. Here both become references that Sphinx checks: to the page, to
the example or to the entry in the reference.
"""

import importlib
import inspect
import re
from pathlib import Path, PurePosixPath

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

import skdeepcluster

FOLDER = Path(skdeepcluster.__file__).parent


def public_names() -> dict[str, str]:
    """Return what each name that a page may use stands for, with its module."""
    modules = ["skdeepcluster"]
    modules += [f"skdeepcluster.{path.stem}" for path in FOLDER.glob("[!_]*.py")]
    names = {}
    for module in modules:
        short = module.removeprefix("skdeepcluster.")
        names[module] = names[short] = module
        found = importlib.import_module(module)
        for name in found.__all__:
            obj = getattr(found, name)
            if inspect.ismodule(obj):
                continue
            forms = [name, f"{short}.{name}", f"{module}.{name}"]
            names |= dict.fromkeys(forms, f"{module}.{name}")
            if inspect.isclass(obj):
                for method in [m for m in vars(obj) if not m.startswith("_")]:
                    names[f"{name}.{method}"] = f"{module}.{name}.{method}"
    return names


NAMES = public_names()
for parameter in inspect.signature(skdeepcluster.DeepClusterEstimator).parameters:
    NAMES.pop(parameter, None)  # that is what pages mean by it


class ForgeLinks(SphinxTransform):
    """Turn links to files, and names of code, into references."""

    default_priority = 500

    def apply(self) -> None:
        """Change the page that is being read."""
        for link in list(self.document.findall(nodes.reference)):
            uri = link.get("refuri", "")
            if uri.endswith(".rst") and "://" not in uri:
                words = nodes.inline("", link.astext())
                link.replace_self(self._page(uri, words))
        for literal in list(self.document.findall(nodes.literal)):
            if isinstance(literal.parent, nodes.TextElement) and not isinstance(
                literal.parent, nodes.title | nodes.reference | addnodes.pending_xref
            ):
                self._link(literal)

    def _link(self, literal: nodes.literal) -> None:
        text = literal.astext()
        if match := re.fullmatch(r"examples/(\w+)\.py", text):
            reference = self._page(f"/auto_examples/{match[1]}", literal)
        elif match := re.fullmatch(r"docs/([\w/]+)\.rst", text):
            reference = self._page(f"/{match[1]}", literal)
        elif full := NAMES.get(text.removesuffix("()")):
            if self.env.docname.endswith(full):
                return  # the page that this is
            reference = self._reference("py", "obj", full, literal, explicit=True)
        else:
            return
        literal.replace_self(reference)

    def _page(self, path: str, words: nodes.Node) -> nodes.Node:
        """Refer to a page, by its title unless it has a link's own words."""
        target = str(PurePosixPath(path).with_suffix(""))
        if path.endswith("examples/README.rst"):
            target = "/auto_examples/index"
        explicit = not isinstance(words, nodes.literal)
        return self._reference("std", "doc", target, words, explicit)

    def _reference(
        self, domain: str, kind: str, target: str, words: nodes.Node, explicit: bool
    ) -> nodes.Node:
        reference = addnodes.pending_xref(
            "",
            words.deepcopy(),
            refdomain=domain,
            reftype=kind,
            reftarget=target,
            refexplicit=explicit,
            refdoc=self.env.docname,
            refwarn=True,
        )
        reference.source, reference.line = words.source, words.line
        return reference


def resolve_short(app, env, node, words):
    """Find what a docstring names as its readers do, without the package."""
    full = NAMES.get(node["reftarget"])
    if node.get("refdomain") != "py" or full in (None, node["reftarget"]):
        return None
    where = node.get("refdoc", ""), app.builder
    return env.domains["py"].resolve_xref(env, *where, "obj", full, node, words)


def setup(app) -> dict:
    """Register the transform."""
    app.add_transform(ForgeLinks)
    app.connect("missing-reference", resolve_short)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
