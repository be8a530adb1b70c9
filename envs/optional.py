"""Packages that only some environments need."""

import importlib
from types import ModuleType

from envs.base import EnvError


def import_extra(module: str, *, extra: str, environment: str) -> ModuleType:
    """Return the module, or raise `EnvError` that names the extra which installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise EnvError(
            f"{environment} needs the package {package}, and there is no module {error.name!r}; "
            f"install it with: pip install -c constraints.txt 'prefmarl[{extra}]'"
        ) from error
