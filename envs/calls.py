"""Calling what makes a third-party environment, and saying whose fault it is if that fails."""

import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from envs.base import EnvError


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
            f"{name} with {_listed(options)}: {error} (TypeError in {error_place(error)}); "
            + (hint if unknown else "correct that line, or the options it was given")
        ) from error


def error_place(error: BaseException) -> str:
    """Return where in the user's own file an error came from, or else where it was raised."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    traces = [traceback.extract_tb(cause.__traceback__) for cause in reversed(causes)]
    ours = str(Path(__file__).parent)
    own = [
        frame
        for frames in traces
        for frame in reversed(frames)
        if not frame.filename.startswith(ours) and "site-packages" not in frame.filename
    ]
    frame = own[0] if own else traces[0][-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"


def _listed(options: dict[str, Any]) -> str:
    return f"the options {options}" if options else "no options"
