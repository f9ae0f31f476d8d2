"""The package as a whole: light to import, documented, with public names that exist.

import-linter holds the layers of the folders: `make lint`, with the contracts in
pyproject.toml.
"""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import skdeepcluster

PACKAGE = Path(skdeepcluster.__file__).parent
MODULES = sorted(
    ".".join(
        ["skdeepcluster", *path.relative_to(PACKAGE).with_suffix("").parts]
    ).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)

# Hides the optional packages, then prints those that an import asked for.
IMPORT_WITHOUT_OPTIONAL_PACKAGES = """
import sys

requested = set()

class MissingPackages:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("matplotlib", "pandas", "polars", "torchvision"):
            requested.add(name)
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, MissingPackages)
import skdeepcluster
print(requested - {"pandas"})  # scikit-learn asks for pandas.
"""


def test_import_requests_no_optional_package():
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_WITHOUT_OPTIONAL_PACKAGES],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
    )
    assert (process.stdout, process.stderr) == ("set()\n", "")


@pytest.mark.parametrize("module", MODULES)
def test_module_has_a_docstring(module):
    assert importlib.import_module(module).__doc__


def test_public_names_exist_once():
    names = skdeepcluster.__all__
    assert [name for name in names if getattr(skdeepcluster, name, None) is None] == []
    assert len({*names}) == len(names)
