"""Turn the plain links and names of the pages into references that Sphinx checks.

The pages are read on GitHub as well, where Sphinx roles such as ``:class:`` appear as
raw text and ``:doc:`` links nowhere. So a page links to the file of another page,
```Speed <speed.rst>`_``, and writes names of code in double backquotes.
"""

import importlib
import inspect
import re
from pathlib import PurePosixPath

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

import skdeepcluster


def public_names() -> dict[str, str]:
    """Return the full name of each public object, by all names that a page may use."""
    modules = {"skdeepcluster": skdeepcluster}
    for name in skdeepcluster.__all__:
        if inspect.ismodule(getattr(skdeepcluster, name)):
            modules[name] = importlib.import_module(f"skdeepcluster.{name}")
    names = {}
    for short, module in modules.items():
        full = module.__name__
        names[full] = names[short] = full
        for name in module.__all__:
            obj = getattr(module, name)
            if inspect.ismodule(obj):
                continue
            for form in (name, f"{short}.{name}", f"{full}.{name}"):
                names[form] = f"{full}.{name}"
            if inspect.isclass(obj):
                for method in vars(obj):
                    if not method.startswith("_"):
                        names[f"{name}.{method}"] = f"{full}.{name}.{method}"
    # `callbacks`, for example, is a module and a parameter: pages mean the parameter.
    for parameter in inspect.signature(skdeepcluster.DeepClusterEstimator).parameters:
        names.pop(parameter, None)
    return names


NAMES = public_names()


class PlainLinks(SphinxTransform):
    """Replace links to files, and names of code, by references."""

    default_priority = 500

    def apply(self) -> None:
        """Change the page that Sphinx reads."""
        for link in list(self.document.findall(nodes.reference)):
            uri = link.get("refuri", "")
            if uri.endswith(".rst") and "://" not in uri:
                link.replace_self(self._page(uri, nodes.inline("", link.astext())))
        for literal in list(self.document.findall(nodes.literal)):
            if isinstance(literal.parent, nodes.TextElement) and not isinstance(
                literal.parent, nodes.title | nodes.reference | addnodes.pending_xref
            ):
                self._link(literal)

    def _link(self, literal: nodes.literal) -> None:
        text = literal.astext()
        if match := re.fullmatch(r"examples/(\w+)\.py", text):
            literal.replace_self(self._page(f"/auto_examples/{match[1]}", literal))
        elif match := re.fullmatch(r"docs/([\w/]+)\.rst", text):
            literal.replace_self(self._page(f"/{match[1]}", literal))
        else:
            full = NAMES.get(text.removesuffix("()"))
            # The page of an object does not link to itself.
            if full and not self.env.docname.endswith(full):
                reference = self._reference("py", "obj", full, literal, explicit=True)
                literal.replace_self(reference)

    def _page(self, path: str, content: nodes.Node) -> nodes.Node:
        """Refer to a page; a literal path is replaced by the title of the page."""
        target = str(PurePosixPath(path).with_suffix(""))
        if path.endswith("examples/README.rst"):
            target = "/auto_examples/index"
        explicit = not isinstance(content, nodes.literal)
        return self._reference("std", "doc", target, content, explicit=explicit)

    def _reference(
        self,
        domain: str,
        role: str,
        target: str,
        content: nodes.Node,
        *,
        explicit: bool,
    ) -> nodes.Node:
        reference = addnodes.pending_xref(
            "",
            content.deepcopy(),
            refdomain=domain,
            reftype=role,
            reftarget=target,
            refexplicit=explicit,
            refdoc=self.env.docname,
            refwarn=True,
        )
        reference.source, reference.line = content.source, content.line
        return reference


def resolve_short_name(app, env, node, content):
    """Resolve a short name of a docstring, such as `metrics.purity`."""
    full = NAMES.get(node["reftarget"])
    if node.get("refdomain") != "py" or full in (None, node["reftarget"]):
        return None
    page = node.get("refdoc", "")
    return env.domains["py"].resolve_xref(
        env, page, app.builder, "obj", full, node, content
    )


def setup(app) -> dict:
    """Register the transform."""
    app.add_transform(PlainLinks)
    app.connect("missing-reference", resolve_short_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
