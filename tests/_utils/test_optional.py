"""A missing optional package is named, with the command that installs it."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from skdeepcluster._utils.optional import FEATURES, import_optional

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_module_is_returned():
    assert import_optional("json", "parquet") is json
    assert import_optional("json.decoder", "parquet") is json.decoder


@pytest.mark.parametrize("extra", FEATURES)
@pytest.mark.parametrize("module", ["json", "json.decoder"])
def test_missing_package_is_named_with_its_extra(monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    message = re.escape(f"{FEATURES[extra]} needs json, ")
    with pytest.raises(ImportError, match=message) as caught:
        import_optional(module, extra)
    assert str(caught.value).endswith(f"pip install 'skdeepcluster[{extra}]'")


def test_extras_are_those_of_the_package():
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    assert FEATURES.keys() <= project["optional-dependencies"].keys()
