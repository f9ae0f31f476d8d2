"""Configuration of the site, which `make docs` builds without any network."""

import os
import shutil
import sys
from pathlib import Path

import matplotlib

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]
# Examples draw into files.
matplotlib.use("Agg")

import skdeepcluster  # noqa: E402
from skdeepcluster._editing import ClusterEditingMixin  # noqa: E402

project = "skdeepcluster"
author = "the skdeepcluster developers"
copyright = author
version = release = skdeepcluster.__version__

extensions = [
    "plain_links",
    "mathml",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
# Docstrings have names in single backquotes.
default_role = "literal"
# A broken reference is an error.
nitpicky = True

# Links to other projects need their inventories, which are downloaded.
intersphinx_mapping = {}
if os.environ.get("SKDEEPCLUSTER_INTERSPHINX"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
else:
    nitpick_ignore_regex = [("py:.*", r"(sklearn|torch|numpy)\..*")]

toc_object_entries_show_parents = "hide"
# numpydoc shows the types, and the template for classes shows the members.
autodoc_typehints = "none"
numpydoc_show_class_members = False
# The page of a class documents members of this package, and names scikit-learn's.
autosummary_context = {
    "mixin_members": [n for n in vars(ClusterEditingMixin) if not n.startswith("_")]
}

# Examples write files into their folder, so a copy of them runs in the build folder.
shutil.rmtree(HERE / "_build" / "examples", ignore_errors=True)
shutil.copytree(
    HERE.parent / "examples",
    HERE / "_build" / "examples",
    ignore=shutil.ignore_patterns("*.png", "__pycache__"),
)
sphinx_gallery_conf = {
    "examples_dirs": "_build/examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "gallery_order.sort_key",
    "backreferences_dir": "api/examples",
    "doc_module": "skdeepcluster",
    "reference_url": {"skdeepcluster": None},
    "default_thumb_file": str(HERE / "_static" / "logo.svg"),
    # All failing examples are reported, and fail the build at its end.
    "abort_on_example_error": False,
    "download_all_examples": False,
    "capture_repr": (),
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "remove_config_comments": True,
}

html_theme = "pydata_sphinx_theme"
html_title = "skdeepcluster"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/logo.svg"
html_show_sourcelink = False
html_use_index = False
html_sidebars = {page: [] for page in ("index", "start", "changes")}
html_theme_options = {
    "logo": {"image_light": "_static/logo.svg", "image_dark": "_static/logo.svg"}
    | {"text": project, "alt_text": ""},
    "header_links_before_dropdown": 6,
    "navbar_align": "left",
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "footer_start": ["copyright"],
    "footer_end": [],
}
