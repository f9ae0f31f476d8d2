"""Every public docstring passes numpydoc's checks, but for a short list."""

import importlib
import inspect
import tomllib
from pathlib import Path

import pytest

import skdeepcluster

validate = pytest.importorskip("numpydoc.validate").validate

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
_config = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]
IGNORED = set(_config["numpydoc_validation"]["checks"]) - {"all"}
# Examples and See Also belong to classes and functions; their methods need none.
IGNORED_IN_METHODS = IGNORED | {"EX01", "SA01"}


def public_names():
    """(dotted name, whether it is a method), without what is inherited from outside."""
    # Modules and packages, such as evaluation.
    package = Path(skdeepcluster.__file__).parent
    namespaces = [
        importlib.import_module(f"skdeepcluster.{path.stem}")
        for path in sorted(package.iterdir())
        if path.suffix == ".py" or (path / "__init__.py").is_file()
        if not path.name.startswith("_")
    ]
    for module in [skdeepcluster, *namespaces]:
        for name in module.__all__:
            obj = getattr(module, name)
            if not (inspect.isclass(obj) or inspect.isfunction(obj)):
                continue
            yield f"{module.__name__}.{name}", False
            if inspect.isclass(obj):
                for attribute in own_methods(obj):
                    yield f"{module.__name__}.{name}.{attribute}", True


def own_methods(cls):
    kinds = (classmethod, staticmethod, property)
    return sorted(
        {
            name
            for base in cls.__mro__
            if base.__module__.partition(".")[0] == "skdeepcluster"
            for name, value in vars(base).items()
            if not name.startswith("_")
            if inspect.isfunction(value) or isinstance(value, kinds)
        }
    )


@pytest.mark.parametrize(("name", "is_method"), list(public_names()))
def test_docstring(name, is_method):
    ignored = IGNORED_IN_METHODS if is_method else IGNORED
    found = validate(name)
    errors = [
        f"{code}: {text}" for code, text in found["errors"] if code not in ignored
    ]
    assert not errors, f"{found['file']}:{found['file_line']}\n" + "\n".join(errors)
