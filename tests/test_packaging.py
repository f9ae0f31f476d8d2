"""What is said in several places is said the same, and is what is built."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import skdeepcluster

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


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


def test_wheel_and_sdist_hold_what_they_should(tmp_path, monkeypatch):
    backend = pytest.importorskip("hatchling.build")  # which `make test` installs
    monkeypatch.chdir(ROOT)
    names = zipfile.ZipFile(tmp_path / backend.build_wheel(str(tmp_path))).namelist()
    told = f"skdeepcluster-{skdeepcluster.__version__}.dist-info"
    modules = {f"skdeepcluster/{p.name}" for p in (ROOT / "skdeepcluster").glob("*.py")}
    beside = {f"{told}/{name}" for name in ("METADATA", "RECORD", "WHEEL")}
    license = f"{told}/licenses/LICENSE"
    assert {*names} == {*modules, *beside, license, "skdeepcluster/py.typed"}

    with tarfile.open(tmp_path / backend.build_sdist(str(tmp_path))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.rst", "PKG-INFO", "Makefile", ".ci/run"} <= names
    assert {"SECURITY.rst", "tests/test_packaging.py", "recipe/recipe.yaml"} <= names
    left = r"__pycache__|\.venv|_build|auto_examples|\.cache|shared|\.pyc"
    assert not [name for name in names if re.search(left, name)]


def pairs(requirements):
    """Name and bounds of each requirement."""
    return dict(re.fullmatch(r"([\w-]+) ?(.*)", text).groups() for text in requirements)


def test_conda_recipe_needs_what_the_wheel_needs():
    recipe = (ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8")

    def listed(key):
        block = re.search(rf"^ *{key}:\n((?: +- .*\n)+)", recipe, flags=re.MULTILINE)
        return [line.strip(" -") for line in block[1].splitlines()]

    project, elsewhere = (
        PYPROJECT["project"],
        {"torch": "pytorch", "faiss-cpu": "faiss"},
    )
    (minimum,) = re.findall(r'python_min: "(.*)"', recipe)
    assert f">={minimum}" == project["requires-python"]
    wheel = pairs(project["dependencies"])
    conda = {elsewhere.get(name, name): bounds for name, bounds in wheel.items()}
    assert pairs(listed("run")) == {"python": ">=${{ python_min }}", **conda}
    host = pairs(listed("host"))
    assert pairs(PYPROJECT["build-system"]["requires"]).items() <= host.items()
    assert f"summary: {project['description']}\n" in recipe
    public = [name for name in skdeepcluster.__all__ if name.islower()]
    assert listed("imports") == [
        "skdeepcluster",
        *(f"skdeepcluster.{n}" for n in public),
    ]


def test_lowest_versions_are_the_bounds():
    command = [sys.executable, ROOT / ".ci" / "lowest.py"]
    lines = subprocess.check_output(command, text=True).splitlines()
    assert {"torch==2.6.*", "scikit-learn==1.6.*", "safetensors==0.5.*"} <= {*lines}
    assert "dask==2025.1.*" in lines  # of dask[distributed]
    assert len(lines) > len(PYPROJECT["project"]["dependencies"]) + 1
    assert not [line for line in lines if not re.fullmatch(r"[\w-]+==[\d.]+\.\*", line)]
