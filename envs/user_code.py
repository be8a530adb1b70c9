"""Where code that this package calls, but did not write, stands and fails: file and line."""

import inspect
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import FrameSummary
from typing import Any

from envs.base import EnvError

_OURS = str(Path(__file__).parent)
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")


def place_of(error: BaseException) -> str:
    """Return where in the user's own file an error came from, or else where it was raised."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}"
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    frames = [
        frame
        for one in chain  # the last cause is the innermost, as the last frame is
        for frame in traceback.extract_tb(one.__traceback__)
    ]
    others = [frame for frame in frames if not frame.filename.startswith(_OURS)]
    own = [frame for frame in others if not _is_installed(frame)]
    frame = (own or others or frames)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"


def source_of(thing: Callable[..., Any]) -> str:
    """Return a function's or class's name, file and line, as far as they are known."""
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    try:
        file = inspect.getsourcefile(thing)
        line = inspect.getsourcelines(thing)[1]
    except (TypeError, OSError):
        return f"{name}"
    return f"{name} ({Path(file or '').name}, line {line})"


@contextmanager
def explained(what: str, advice: str = "correct it there") -> Iterator[None]:
    """Turn whatever the user's code raises into one line: what was done, where it failed."""
    try:
        yield
    except EnvError:
        raise
    except Exception as error:
        raise EnvError(
            f"{what} raised {type(error).__name__}: {error} ({place_of(error)}); {advice}"
        ) from error


def _is_installed(frame: FrameSummary) -> bool:
    """Return whether a frame belongs to Python or to an installed package."""
    return "site-packages" in frame.filename or frame.filename.startswith(
        (_STANDARD_LIBRARY, "<frozen")
    )
