"""Plug-ins named by import path: ``package.module:name``, found without registration."""

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from marl.config import ConfigError


class PluginError(ValueError):
    """A plug-in returned something outside its protocol."""


def load(path: str, what: str) -> Callable[..., Any]:
    """Return the callable at `path`, ``package.module:name``; the current folder is searched first.

    `what` says in error messages which setting is being read, e.g. ``"preferences.labeller"``.
    """
    module_name, separator, name = path.partition(":")
    if not (separator and module_name and name.isidentifier()):
        raise ConfigError(
            f"{what} is {path!r}; expected an import path such as 'my_module:my_function'"
        )
    module = _import_module(module_name, what)
    if not hasattr(module, name):
        public = [known for known in vars(module) if not known.startswith("_")]
        raise ConfigError(
            f"{what}: module {module_name!r} ({module.__file__}) has no {name!r}"
            + _suggest(name, public)
        )
    plugin = getattr(module, name)
    if not callable(plugin):
        raise ConfigError(
            f"{what}: {path!r} is {plugin!r}, of type {type(plugin).__name__}; "
            "expected a function or a class"
        )
    return plugin


def _import_module(module_name: str, what: str) -> ModuleType:
    """Return the imported module, or say whether it, or something it imports, is missing."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)  # a console command does not search it, `python -m` does
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{what}: no module named {error.name!r} in {folder} or among the installed "
                "packages; run from the folder that holds it, or install it"
            ) from error
        raise ConfigError(
            f"{what}: importing {module_name!r} failed: it needs the missing module {error.name!r}"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{what}: importing {module_name!r} raised {type(error).__name__}: {error}"
        ) from error


def _suggest(name: str, known: list[str]) -> str:
    """Return "; did you mean ..." naming the nearest known name, or nothing."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
