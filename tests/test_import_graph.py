"""The package reads from top to bottom, and is light to import."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import skdeepcluster

PACKAGE = Path(skdeepcluster.__file__).parent

# In the order the data flows: a module imports only from modules above it.
LAYERS = [
    "metrics",
    "_warnings",
    "_memory",
    "_callbacks",
    "_random",
    "_device",
    "_distributed",
    "_batch_norm",
    "_files",
    "_tensors",
    "_images",
    "_rows",
    "_decoding",
    "_items",
    "_cache",
    "_augment",
    "_convnets",
    "_whitening",
    "_empty_clusters",
    "_kmeans",
    "_heads",
    "_faiss_kmeans",
    "_neighbors",
    "_pic",
    "_pixels",
    "_clustering",
    "_groups",
    "_sampling",
    "_features",
    "_stability",
    "_training",
    "_history",
    "_loop",
    "_progress",
    "_checkpoints",
    "_defaults",
    "_symptoms",
    "_fitting",
    "datasets",
    "_validation",
    "_persistence",
    "_estimator",
    "io",
    "callbacks",
    "presets",
    "_layers",
    "_judged",
    "_probing",
    "_retrieval",
    "_tuning",
    "_reports",
    "evaluation",
    "_looking",
    "_filters",
    "_ascent",
    "_sheets",
    "inspection",
    "_drawing",
    "_map",
    "_plot_training",
    "_plot_sheet",
    "_plot_embedding",
    "_plot_contingency",
    "_plot_filters",
]

MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
)


def internal_imports(source):
    """Names of the package's modules that a module of it imports, at any depth.

    The package itself, which would be a circle, is the empty name.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ("skdeepcluster." if node.level else "") + (node.module or "")
            base = base.rstrip(".")
            names = [base]
            if base == "skdeepcluster":  # from . import _random
                names = [f"{base}.{alias.name}" for alias in node.names]
                names = [n if n.split(".")[1] in known() else base for n in names]
        else:
            continue
        for name in names:
            root, _, module = name.partition(".")
            if root == "skdeepcluster":
                yield module


def known():
    return {*MODULES, *LAYERS}


def forbidden_imports(module, source):
    allowed = LAYERS[: LAYERS.index(module)] if module in LAYERS else LAYERS
    return sorted(set(internal_imports(source)) - set(allowed))


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_above(module):
    assert module in LAYERS, (
        f"skdeepcluster/{module}.py has no place yet: add it to LAYERS in {__file__}, "
        "below everything it imports."
    )
    source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    assert forbidden_imports(module, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "from ._kmeans import FaissKMeans",
        "from . import _kmeans",
        "def f():\n    import skdeepcluster._kmeans",
        "from skdeepcluster import _kmeans",
    ],
)
def test_an_import_from_below_is_seen(source):
    assert forbidden_imports("_random", source) == ["_kmeans"]
    assert forbidden_imports("_sampling", source) == []


def test_an_import_of_the_package_itself_is_seen():
    assert forbidden_imports("_loop", "from . import DeepClusterEstimator") == [""]
    assert forbidden_imports("_loop", "from .datasets import x") == ["datasets"]
    assert forbidden_imports("_loop", "import numpy; from numpy import linalg") == []


@pytest.mark.parametrize("module", ["", *MODULES])
def test_module_has_a_docstring(module):
    assert importlib.import_module(f"skdeepcluster.{module}".rstrip(".")).__doc__


def test_public_names_resolve():
    for name in skdeepcluster.__all__:
        assert getattr(skdeepcluster, name, None) is not None, name
    assert len(set(skdeepcluster.__all__)) == len(skdeepcluster.__all__)


OPTIONAL_ONES_MISSING = """
import sys

asked = set()

class Missing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("matplotlib", "pandas", "polars", "torchvision"):
            asked.add(name)
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing)
import skdeepcluster
print(asked - {"pandas"})  # scikit-learn asks for that one
"""


def test_import_needs_no_optional_package_and_asks_for_none():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OPTIONAL_ONES_MISSING],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
