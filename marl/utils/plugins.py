"""Plug-ins named by import path: ``package.module:name``, found without registration."""

from collections.abc import Callable
from typing import Any

from envs import EnvError
from envs.plugins import load_attribute
from marl.config import ConfigError
from marl.errors import UserError


class PluginError(UserError, ValueError):
    """A plug-in returned something outside its protocol."""


def load(path: str, what: str) -> Callable[..., Any]:
    """Return the callable at `path`, ``package.module:name``; the current folder is searched first.

    `what` says in error messages which setting is being read, e.g. ``"preferences.labeller"``.
    """
    try:
        return load_attribute(path, what, "an import path such as my_module:my_function")
    except EnvError as error:
        raise ConfigError(str(error)) from error
