"""Version, metadata, wheel, source archive and conda recipe agree with each other."""

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


def test_installed_version_equals_package_version():
    try:
        installed = metadata.version("skdeepcluster")
    except metadata.PackageNotFoundError:
        pytest.skip("skdeepcluster is not installed; `make test` installs it")
    assert installed == skdeepcluster.__version__


def test_citation_version_equals_package_version():
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


def test_files_of_wheel_and_sdist(tmp_path, monkeypatch):
    backend = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(ROOT)
    wheel = zipfile.ZipFile(tmp_path / backend.build_wheel(str(tmp_path)))
    info = f"skdeepcluster-{skdeepcluster.__version__}.dist-info"
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "skdeepcluster").rglob("*.py")
    }
    assert {*wheel.namelist()} == {
        *modules,
        "skdeepcluster/py.typed",
        *(f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL")),
        f"{info}/licenses/LICENSE",
    }

    with tarfile.open(tmp_path / backend.build_sdist(str(tmp_path))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.rst", "PKG-INFO", "Makefile", ".ci/run"} <= names
    assert {"SECURITY.rst", "tests/test_packaging.py", "recipe/recipe.yaml"} <= names
    excluded = r"__pycache__|\.venv|_build|auto_examples|\.cache|shared|\.pyc"
    assert not [name for name in names if re.search(excluded, name)]


def split_requirements(requirements):
    """Return the bounds of each requirement, by its name."""
    return dict(re.fullmatch(r"([\w-]+) ?(.*)", text).groups() for text in requirements)


def test_conda_recipe_has_the_requirements_of_the_wheel():
    recipe = (ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8")

    def list_entries(key):
        block = re.search(rf"^ *{key}:\n((?: +- .*\n)+)", recipe, flags=re.MULTILINE)
        return [line.strip(" -") for line in block[1].splitlines()]

    project = PYPROJECT["project"]
    conda_names = {"torch": "pytorch", "faiss-cpu": "faiss"}
    (minimum,) = re.findall(r'python_min: "(.*)"', recipe)
    assert f">={minimum}" == project["requires-python"]
    wheel = split_requirements(project["dependencies"])
    conda = {conda_names.get(name, name): bounds for name, bounds in wheel.items()}
    run = split_requirements(list_entries("run"))
    assert run == {"python": ">=${{ python_min }}", **conda}
    build = split_requirements(PYPROJECT["build-system"]["requires"])
    assert build.items() <= split_requirements(list_entries("host")).items()
    assert f"summary: {project['description']}\n" in recipe
    modules = [name for name in skdeepcluster.__all__ if name.islower()]
    assert list_entries("imports") == [
        "skdeepcluster",
        *(f"skdeepcluster.{name}" for name in modules),
    ]


def test_lowest_versions_are_the_bounds():
    command = [sys.executable, ROOT / ".ci" / "lowest.py"]
    lines = subprocess.check_output(command, text=True).splitlines()
    assert {"torch==2.6.*", "scikit-learn==1.6.*", "safetensors==0.5.*"} <= {*lines}
    # The extra of dask[distributed] is left out.
    assert "dask==2025.1.*" in lines
    assert len(lines) > len(PYPROJECT["project"]["dependencies"]) + 1
    assert not [line for line in lines if not re.fullmatch(r"[\w-]+==[\d.]+\.\*", line)]
