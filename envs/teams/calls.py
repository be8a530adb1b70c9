"""Calling what makes a third-party environment, and saying whose fault it is if that fails."""

import inspect
from collections.abc import Callable
from typing import Any

from envs.base import EnvError
from envs.user_code import place_of


def called(
    name: str,
    hint: str,
    call: Callable[..., Any],
    options: dict[str, Any],
    make: Callable[[], Any] | None = None,
) -> Any:
    """Return ``call(**options)``, or what `make` makes, where that calls it by another way.

    Options that `call` does not take are the user's mistake, which `hint` explains; a `TypeError`
    from inside of it is not.
    """
    try:
        inspect.signature(call).bind(**options)
    except TypeError as error:
        raise EnvError(f"{name} with {_listed(options)}: {error}; {hint}") from error
    try:
        return call(**options) if make is None else make()
    except TypeError as error:
        unknown = any(f"unexpected keyword argument '{key}'" in str(error) for key in options)
        raise EnvError(
            f"{name} with {_listed(options)}: {error} (TypeError in {place_of(error)}); "
            + (hint if unknown else "correct that line, or the options it was given")
        ) from error


def _listed(options: dict[str, Any]) -> str:
    return f"the options {options}" if options else "no options"
