"""Things of the user's own by import path, `module:attribute`."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from envs.base import EnvError
from envs.user_code import place_of


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
    module = _imported(module_name, f"{what} {path!r}", example)
    there = [
        key
        for key, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]
    if not hasattr(module, attribute):
        raise EnvError(
            f"{what} {path!r}: {module_name} has no {attribute!r}"
            f"{did_you_mean(attribute, there)}; it has {', '.join(there) or 'none'}"
        )
    found = getattr(module, attribute)
    if not callable(found):
        raise EnvError(
            f"{what} {path!r} is {found!r}, of type {type(found).__name__}; expected a function "
            "or a class"
        )
    loaded: Callable[..., Any] = found
    return loaded


def _imported(module_name: str, what: str, example: str) -> ModuleType:
    """Return the imported module, or say whether it, or something it imports, is at fault."""
    search_working_directory()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise EnvError(
                f"{what}: no module {error.name!r} in {os.getcwd()} or the installed packages; "
                f"give {example} and run where its file lies"
            ) from error
        raise EnvError(
            f"{what}: importing {module_name!r} failed: it needs the missing module {error.name!r}"
        ) from error
    except Exception as error:
        raise EnvError(
            f"{what}: importing {module_name!r} raised {type(error).__name__}: {error} "
            f"({place_of(error)})"
        ) from error


def search_working_directory() -> None:
    """Let modules be imported from where the user is."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def did_you_mean(word: str, known: list[str]) -> str:
    """Return a suggestion of the nearest known word, or nothing."""
    nearest = get_close_matches(word, known, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
