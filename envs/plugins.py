"""The user's own code by import path, `module:attribute`, and where it fails: file and line."""

import ast
import errno
import importlib
import inspect
import os
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from traceback import FrameSummary
from types import ModuleType
from typing import Any

from envs.base import EnvError

_OUR_PACKAGES = ("envs", "marl")
"""Where these are, whatever they import is not searched in the working directory, which may be that
of a downloaded run."""


class NoSubmoduleError(EnvError):
    """A package is installed, but has no module of the name that was asked for."""


def load_attribute(path: str, what: str, example: str) -> Callable[..., Any]:
    """Return the callable that `module:attribute` names; the working directory is on the path then.

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
    if module_name.partition(".")[0] not in _OUR_PACKAGES:
        search_working_directory()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            if lacking := _no_submodule(error.name):
                raise NoSubmoduleError(f"{what}: {lacking}") from error
            raise EnvError(
                f"{what}: no module {error.name!r} in {os.getcwd()} or the installed packages; "
                f"give {example} and run where its file lies"
            ) from error
        raise EnvError(
            f"{what}: importing {module_name!r} failed: it needs the missing module {error.name!r}"
        ) from error
    except (Exception, SystemExit) as error:
        raise EnvError(
            f"{what}: importing {module_name!r} raised {told(error)} ({place_of(error)})"
        ) from error


def _no_submodule(name: str) -> str:
    """Return that a package is there and lacks a module, and the nearest of those it has.

    Empty if the package itself is not there, or the module is.
    """
    package, _, missing = name.rpartition(".")
    if sys.modules.get(package) is None:
        return ""
    path = getattr(sys.modules[package], "__path__", None)
    if path is None:
        return f"{package} is a module, not a package, so there is no {missing!r} in it"
    there = sorted(found.name for found in pkgutil.iter_modules(path) if found.name[0] != "_")
    if missing in there:
        return ""
    return (
        f"{package} is installed but has no module {missing!r}{did_you_mean(missing, there)}; "
        f"it has {', '.join(there) or 'none'}"
    )


def search_working_directory() -> None:
    """Let modules be imported from where the user is."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def callables_in(file: Path) -> list[str]:
    """Return the public functions and classes that a Python file defines; it is not run."""
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError):  # importing it will say so
        return []
    kinds = ast.FunctionDef | ast.ClassDef
    return [node.name for node in body if isinstance(node, kinds) and node.name[0] != "_"]


def did_you_mean(word: str, known: list[str]) -> str:
    """Return a suggestion of the nearest known word, or nothing."""
    nearest = get_close_matches(word, known, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


_OURS = tuple(str(Path(__file__).parents[1] / package) + os.sep for package in _OUR_PACKAGES)
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")


_LONGEST_TEXT = 2_000
"""Characters of a user's exception that a message keeps."""


@contextmanager
def explained(
    what: str, advice: str = "correct it there", blamed: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Turn whatever the user's code raises into one `EnvError`: what was done, where it failed.

    `sys.exit` counts: it would end the program without a word. `blamed` is the user's function
    that is named where no line of theirs was being run, as after an answer of the wrong type.
    """
    try:
        yield
    except EnvError:
        raise
    except (Exception, SystemExit) as error:
        raise EnvError(f"{what} raised {failure(error, advice, blamed)}") from error


def failure(
    error: BaseException, advice: str = "correct it there", blamed: Callable[..., Any] | None = None
) -> str:
    """Return what the user's code raised, where, and what to do."""
    return f"{told(error)} ({place_of(error, blamed)}); {_out_of_files(error) or advice}"


def told(error: BaseException) -> str:
    """Return an exception's type and text, shortened if it is very long."""
    try:
        text = str(error)
    except Exception as again:  # its own __str__ fails
        text = f"a text that cannot be read ({type(again).__name__})"
    if len(text) > _LONGEST_TEXT:
        half = _LONGEST_TEXT // 2
        text = f"{text[:half]} ... [{len(text):,} characters] ... {text[-half:]}"
    return f"{type(error).__name__}: {text}"


def _out_of_files(error: BaseException) -> str:
    """Return what to do where the process may open no more files; empty for another error."""
    if not (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
        return ""
    return "no more files can be opened: allow more before the start, e.g. `ulimit -n 4096`"


def place_of(error: BaseException, blamed: Callable[..., Any] | None = None) -> str:
    """Return where in the user's own file an error came from, or else where it was raised.

    Where only this package's code was being run, that is where `blamed` stands.
    """
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
    if not others and blamed is not None:
        return source_of(blamed)
    frame = (own or others or frames)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"


def users_call(env: Any, call: str) -> Callable[..., Any] | None:
    """Return the user's function behind `reset` or `step` of an environment; None if it is ours.

    Wrappers have the environment inside as `inner`, adapters the user's object as `source`.
    """
    while (inside := getattr(env, "inner", None)) is not None:
        env = inside
    source = getattr(env, "source", env)
    names = {"reset": ("reset", "begin"), "step": ("step", "advance")}[call]
    found = next((getattr(source, name) for name in names if hasattr(source, name)), len)
    try:
        file = inspect.getsourcefile(found)
    except TypeError:  # built in
        return None
    return None if file is None or file.startswith(_OURS) else found


def source_of(thing: Callable[..., Any]) -> str:
    """Return a function's or class's name, file and line, as far as they are known."""
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    try:
        file = inspect.getsourcefile(thing)
        line = inspect.getsourcelines(thing)[1]
    except (TypeError, OSError):
        return f"{name}"
    return f"{name} ({Path(file or '').name}, line {line})"


def _is_installed(frame: FrameSummary) -> bool:
    """Return whether a frame belongs to Python or to an installed package."""
    return "site-packages" in frame.filename or frame.filename.startswith(
        (_STANDARD_LIBRARY, "<frozen")
    )
