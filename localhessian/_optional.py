"""Packages that only some outputs need."""

import importlib
from types import ModuleType

_EXTRAS = {
    "typer": "cli",
    "pooch": "train",
    "orbax": "train",
    "xarray": "sweep",
    "zarr": "sweep",
    "h5netcdf": "sweep",
}


def optional(name: str) -> ModuleType:
    """Import a package of an extra.

    Raises:
        ImportError: It is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".", maxsplit=1)[0]
        extra = _EXTRAS.get(package, "report")
        raise ImportError(f"this needs {package}: pip install 'localhessian[{extra}]'.") from error
