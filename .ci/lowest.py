"""Print the lowest version of each dependency, as constraints for pip."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(
    (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
)["project"]
extras = project["optional-dependencies"].values()
for requirement in sum(extras, project["dependencies"]):
    # Constraints have no extras, such as those of dask[distributed].
    if match := re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement):
        print("{}=={}.*".format(*match.groups()))
