"""Import of packages that only some features need."""

import importlib
from types import ModuleType

# Features that need a package outside the core dependencies, by the extra's name.
FEATURES = {
    "mlflow": "callbacks.MLflow",
    "parquet": "Writing .parquet files",
    "plot": "A Display",
    "progress": "A progress bar",
    "tensorboard": "callbacks.TensorBoard",
    "timm": "A backbone of timm",
}


def import_optional(module: str, extra: str) -> ModuleType:
    """Return a module, or raise an error that names the command to install it.

    Parameters
    ----------
    module : str
        Dotted name of the module, such as "matplotlib.pyplot".
    extra : str
        Extra of skdeepcluster that installs the module's package; a key of `FEATURES`.

    Raises
    ------
    ImportError
        If the module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{FEATURES[extra]} needs {package}, which cannot be imported: {error}. "
            f"Run: pip install 'skdeepcluster[{extra}]'"
        ) from error
