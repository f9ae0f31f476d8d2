"""Build the site: ``make docs``, without any network."""

import os
import shutil
import sys
from pathlib import Path

import matplotlib

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]
matplotlib.use("Agg")  # examples draw into files

import skdeepcluster  # noqa: E402

project = "skdeepcluster"
author = "the skdeepcluster developers"
copyright = author
version = release = skdeepcluster.__version__

extensions = [
    "forge_links",
    "mathml",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
default_role = "literal"  # a name in single backquotes, as docstrings have them
nitpicky = True  # a reference to nothing is an error

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
autodoc_typehints = "none"  # numpydoc has the types
numpydoc_show_class_members = False  # the template for classes does

# What examples write stays in the build folder, since they run in their own.
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
    "within_subsection_order": "gallery_order.in_order",
    "backreferences_dir": "api/examples",
    "doc_module": "skdeepcluster",
    "reference_url": {"skdeepcluster": None},
    "default_thumb_file": str(HERE / "_static" / "logo.svg"),
    "abort_on_example_error": False,  # all of them are told, and fail the build
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
