"""What is said in several places is said the same."""

import os
import re
from importlib import metadata
from pathlib import Path

import pytest

import skdeepcluster

ROOT = Path(__file__).parents[1]


def test_installed_version_is_the_package_version():
    try:
        installed = metadata.version("skdeepcluster")
    except metadata.PackageNotFoundError:
        pytest.skip("skdeepcluster is not installed; `make test` installs it")
    assert installed == skdeepcluster.__version__


def test_citation_has_the_package_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    versions = re.findall(r"^version: (\S+)$", citation, flags=re.MULTILINE)
    assert versions == [skdeepcluster.__version__]


def test_package_is_marked_as_typed():
    assert (Path(skdeepcluster.__file__).parent / "py.typed").is_file()


def test_ci_runs_the_test_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    header, commands = script.read_text(encoding="utf-8").split('/.."\n')
    assert commands == "make test\n", header
    readme = (ROOT / "README.rst").read_text(encoding="utf-8")
    assert re.search(r"^\s+(\$ )?make test\b", readme, flags=re.MULTILINE)
