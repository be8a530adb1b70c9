"""JaxMARL is imported without what its import prints and changes."""

import importlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


def import_quietly(module: str) -> ModuleType:
    """Return a module of JaxMARL."""
    with _streams_kept():
        return importlib.import_module(module)


@contextmanager
def _streams_kept() -> Iterator[None]:
    """Keep a notice that JaxMARL prints from the screen, and the process's streams as they were.

    Its import ends with `sys.stdout` and `sys.stderr` pointing at the original streams, which
    would undo a notebook's or a test runner's own, and prints to them.
    """
    stdout, stderr, original = sys.stdout, sys.stderr, sys.__stdout__
    # Typeshed calls the original streams constant; JaxMARL reads them by that name.
    sys.stdout = sys.__stdout__ = io.StringIO()  # type: ignore[misc, assignment]  # constant to typeshed
    try:
        yield
    finally:
        sys.stdout, sys.stderr = stdout, stderr
        sys.__stdout__ = original  # type: ignore[misc]  # as above
