"""Things of the user's own by import path, `module:attribute`."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from envs.base import EnvError


def load_attribute(path: str, what: str, example: str) -> Callable[..., Any]:
    """Return the callable that `module:attribute` names; the working directory is on the path.

    `what` says in errors what is looked for, `example` how its path could read.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise EnvError(f"{what} {path!r} lacks a side of its colon; give {example}")
    if module_name.endswith(".py"):
        raise EnvError(
            f"{what} {path!r} names a file; name the module: "
            f"{module_name.removesuffix('.py')}:{attribute}"
        )
    search_working_directory()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the user's own file fails to import is theirs to see.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise EnvError(
            f"{what} {path!r}: no module {error.name!r} in {os.getcwd()} or the installed "
            f"packages; give {example} and run where its file lies"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        there = [
            key
            for key, value in vars(module).items()
            if (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == module.__name__
        ]
        raise EnvError(
            f"{what} {path!r}: {module_name} has no class or function {attribute!r}"
            f"{did_you_mean(attribute, there)}; it has {', '.join(there) or 'none'}"
        )
    loaded: Callable[..., Any] = found
    return loaded


def search_working_directory() -> None:
    """Let modules be imported from where the user is."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def did_you_mean(word: str, known: list[str]) -> str:
    """Return a suggestion of the nearest known word, or nothing."""
    nearest = get_close_matches(word, known, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
